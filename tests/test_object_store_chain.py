"""All commands with every path in an object store: a real S3 server on loopback; the files are those of a disk."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from s3_server import S3Server

from ipsrec_cli.main import main
from ipsrec_onnx.object_store import store_path

CONFIG = "[settings]\ndim = 16\nnum_layers = 1\nmax_len = 8\n\n[training]\nepochs = 2\nbatch_size = 16\n"


def run(*arguments: str) -> None:
    with pytest.raises(SystemExit) as ended:
        main([*arguments])
    assert ended.value.code == 0


def chain(place: str, source: str, config: Path) -> None:
    """Interactions to candidates, below a folder or a URI."""
    run("prepare", "--input", source, "--output", f"{place}/dataset", "--min-item-interactions", "1",
        "--min-user-interactions", "3")  # fmt: skip
    run("train", "--dataset", f"{place}/dataset", "--output", f"{place}/run", "--config", str(config), "--quiet")
    run("export", "--checkpoint", f"{place}/run", "--dataset", f"{place}/dataset", "--output", f"{place}/m.onnx")
    run("score", "--model", f"{place}/m.onnx", "--input", f"{place}/users.parquet", "--output", f"{place}/c/",
        "--top-k", "5", "--deny-items", f"{place}/deny.txt", "--quiet",
        "--report", f"{place}/report.html")  # fmt: skip


@pytest.mark.slow
def test_every_path_of_every_command_may_be_a_uri(
    s3_server: S3Server, bucket: str, small_interactions: pa.Table, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pq.write_table(small_interactions, tmp_path / "interactions.parquet")
    (tmp_path / "config.toml").write_text(CONFIG, encoding="utf-8")
    (tmp_path / "deny.txt").write_text("5000\n", encoding="utf-8")
    lists = small_interactions.group_by("user_id", use_threads=False).aggregate([("item_id", "list")])
    pq.write_table(lists.rename_columns(["user_id", "item_history"]), tmp_path / "users.parquet")
    place = store_path(bucket)
    for name in ("interactions.parquet", "users.parquet", "deny.txt"):
        (place / name).send(tmp_path / name)
    chain(str(tmp_path), f"{tmp_path}/interactions.parquet", tmp_path / "config.toml")
    chain(bucket, f"{bucket}/interactions.parquet", tmp_path / "config.toml")
    said = capsys.readouterr()
    assert "ipsrec-" not in said.out.replace("ipsrec-c", "")  # no name of a scratch folder
    assert f"{bucket}/m.onnx" in said.out
    folder = s3_server.folder / bucket.removeprefix("s3://")
    for pattern in ("dataset/*.parquet", "c/*.parquet", "run/model.safetensors"):
        ours = sorted(path.relative_to(folder) for path in folder.glob(pattern))
        assert ours and ours == sorted(path.relative_to(tmp_path) for path in tmp_path.glob(pattern))
        for name in ours:
            if not name.name.startswith("part-"):
                assert (folder / name).read_bytes() == (tmp_path / name).read_bytes(), name
            else:
                assert pq.read_table(folder / name).equals(pq.read_table(tmp_path / name))
    assert (folder / "report.html").stat().st_size > 1000
    results = []
    for where in (str(tmp_path), bucket):
        run("evaluate", "--model", f"{where}/m.onnx", "--dataset", f"{where}/dataset", "--json", "--quiet")
        results.append(json.loads(capsys.readouterr().out))
    assert results[0]["metrics"] == results[1]["metrics"]
    assert results[1]["model"] == f"{bucket}/m.onnx" and results[1]["dataset"] == f"{bucket}/dataset"
    run("inspect", f"{bucket}/m.onnx", "--json")
    assert json.loads(capsys.readouterr().out)["path"] == f"{bucket}/m.onnx"


def test_what_is_there_is_replaced_only_when_asked_and_refusals_name_the_uri(
    s3_server: S3Server, bucket: str, small_interactions: pa.Table, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pq.write_table(small_interactions, tmp_path / "interactions.parquet")
    place = store_path(bucket)
    (place / "in" / "a.parquet").send(tmp_path / "interactions.parquet")
    arguments = ["prepare", "--input", f"{bucket}/in", "--output", f"{bucket}/dataset", "--min-item-interactions", "1"]
    run(*arguments)
    first = (place / "dataset").files()
    assert "dataset.json" in first
    (place / "dataset" / "old.parquet").send(tmp_path / "interactions.parquet")
    capsys.readouterr()
    with pytest.raises(SystemExit) as refused:
        main(arguments)
    assert refused.value.code == 1
    assert f"output {bucket}/dataset exists already" in capsys.readouterr().err
    run(*arguments, "--overwrite")
    assert (place / "dataset").files() == first
    with pytest.raises(SystemExit):
        main(["inspect", f"{bucket}/nothing.onnx"])
    assert f"{bucket}/nothing.onnx: there is no such file or folder" in capsys.readouterr().err
