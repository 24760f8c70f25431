"""Jobs whose files lie in an object store: a real S3 server on loopback. The bytes are those of a disk."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import crashes
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from model_files import write_model_file
from s3_server import ACCESS_KEY, SECRET_KEY, S3Server
from test_onnx_scoring import random_users

from ipsrec_onnx import job_folder, object_store
from ipsrec_onnx.errors import DataError, EngineError
from ipsrec_onnx.object_store import StorePath
from ipsrec_onnx.output_paths import output_paths
from ipsrec_onnx.scoring import score

NUM_USERS, PART_ROWS = 1_500, 200
ROOT = Path(__file__).resolve().parents[1]
FOLDERS = [".", "kernels", "gpu", "train", "export", "experiment", "cli"]


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """1,500 users in two files of two partitions, some rows malformed."""
    folder = tmp_path_factory.mktemp("inputs")
    model = write_model_file(folder / "model.onnx", num_items=500)
    users = random_users(model, np.random.default_rng(3), NUM_USERS)
    history = users["item_history"].combine_chunks()
    nobody = pa.array(np.arange(NUM_USERS) % 97 == 5)
    history = pa.ListArray.from_arrays(history.offsets, history.values, mask=nobody)
    users = users.set_column(users.schema.get_field_index("item_history"), "item_history", history)
    for name, rows in (("a", users.slice(0, 900)), ("b", users.slice(900))):
        (folder / "users" / f"dt={name}").mkdir(parents=True)
        pq.write_table(rows, folder / "users" / f"dt={name}" / "users.parquet")
    return {
        "model": str(model.path),
        "source": f"{folder}/users",
        "top_k": 10,
        "bad_rows": "divert",
        "part_rows": PART_ROWS,
        "threads": 2,
    }


@pytest.fixture(params=["candidates/", "candidates.parquet"])
def output(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def expected(inputs: dict[str, Any], output: str, tmp_path: Path) -> dict[str, bytes]:
    """What the same job writes on a disk."""
    (tmp_path / "local").mkdir()
    score(**inputs, output=f"{tmp_path}/local/{output}")
    return crashes.everything(tmp_path / "local")


def stored(server: S3Server, bucket: str) -> dict[str, bytes]:
    """All that is in a bucket; rclone makes a folder for each slash, and leaves it when it is empty."""
    return crashes.everything(server.folder / bucket.removeprefix("s3://"))


def test_the_bytes_are_those_of_a_disk(
    s3_server: S3Server, bucket: str, inputs: dict[str, Any], output: str, expected: dict[str, bytes]
) -> None:
    done = score(**inputs, output=f"{bucket}/{output}")
    assert stored(s3_server, bucket) == expected
    assert done.output == f"{bucket}/{output}" and done.manifest.startswith(f"{bucket}/candidates")
    assert done.counts.rows_in == NUM_USERS and done.counts.rows_diverted == len(range(5, NUM_USERS, 97))
    with pytest.raises(DataError, match=r"exists already; choose another name, or replace it with --overwrite"):
        score(**inputs, output=f"{bucket}/{output}")
    again = score(**inputs, output=f"{bucket}/{output}", resume=True)
    assert again.resumed_rows == NUM_USERS
    assert stored(s3_server, bucket) == expected


def test_users_and_lists_of_items_come_from_the_store(
    s3_server: S3Server, bucket: str, inputs: dict[str, Any], expected: dict[str, bytes], tmp_path: Path
) -> None:
    folder = s3_server.folder / bucket.removeprefix("s3://")
    for file in Path(inputs["source"]).rglob("*.parquet"):
        target = folder / "users" / file.relative_to(inputs["source"])
        target.parent.mkdir(parents=True)
        target.write_bytes(file.read_bytes())
    (folder / "model.onnx").write_bytes(Path(inputs["model"]).read_bytes())
    (folder / "deny.txt").write_text("1\n", encoding="utf-8")
    (tmp_path / "o").mkdir()
    plain = score(**inputs, output=f"{tmp_path}/o/candidates/")
    source = {"model": f"{bucket}/model.onnx", "source": f"{bucket}/users/dt=*/*.parquet"}
    done = score(**{**inputs, **source}, output=f"{tmp_path}/o/from_store/")
    assert done.counts == plain.counts and done.model_sha256 == plain.model_sha256
    for file in (tmp_path / "o" / "candidates").rglob("*.parquet"):
        there = tmp_path / "o" / "from_store" / file.relative_to(tmp_path / "o" / "candidates")
        assert there.read_bytes() == file.read_bytes()
    with pytest.raises(DataError, match=r"deny\.txt"):
        score(**{**inputs, "deny_items": f"{bucket}/not/deny.txt"}, output=f"{tmp_path}/o/third/")


def test_the_manifest_comes_last_and_goes_first(
    s3_server: S3Server, bucket: str, inputs: dict[str, Any], output: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    changes: list[tuple[str, str]] = []
    send, remove = StorePath.send, StorePath.remove

    def noted_send(self: StorePath, file: Path) -> None:
        changes.append(("send", self.path.partition("/")[2]))
        send(self, file)

    def noted_remove(self: StorePath) -> None:
        changes.append(("remove", self.path.partition("/")[2]))
        remove(self)

    monkeypatch.setattr(StorePath, "send", noted_send)
    monkeypatch.setattr(StorePath, "remove", noted_remove)
    score(**inputs, output=f"{bucket}/{output}")
    first = list(changes)
    changes.clear()
    score(**{**inputs, "top_k": 11}, output=f"{bucket}/{output}", overwrite=True)
    manifest = f"{output.rstrip('/')}.manifest.json"
    for done in (first, changes):
        outside = [change for change in done if ".job" not in change[1]]
        assert outside[-1] == ("send", manifest)
        assert [change for change in outside if change == ("send", manifest)] == outside[-1:]
        assert outside[0] == ("remove", manifest)


def test_an_overwritten_output_keeps_no_part_of_the_old_one(
    s3_server: S3Server, bucket: str, inputs: dict[str, Any], expected: dict[str, bytes], output: str
) -> None:
    score(**{**inputs, "part_rows": 50}, output=f"{bucket}/{output}")
    score(**inputs, output=f"{bucket}/{output}", overwrite=True)
    assert stored(s3_server, bucket) == expected


@pytest.mark.slow
def test_a_job_that_is_killed_goes_on_to_the_same_bytes(
    s3_server: S3Server, bucket: str, inputs: dict[str, Any], output: str, expected: dict[str, bytes]
) -> None:
    arguments = {**inputs, "output": f"{bucket}/{output}", "threads": 1}
    command = [sys.executable, "-c", JOB, json.dumps(arguments)]
    path = os.pathsep.join(str(ROOT / folder) for folder in FOLDERS)
    job = subprocess.Popen(command, env={**os.environ, "PYTHONPATH": path})
    folder, done = s3_server.folder / bucket.removeprefix("s3://"), list[Path]()
    while job.poll() is None and len(done) < 2:
        done = list(folder.glob(".*.job/records/parts/**/*.json"))
        time.sleep(0.005)
    job.send_signal(signal.SIGKILL)
    assert job.wait() == -signal.SIGKILL  # else it was done before
    assert not list(folder.glob("*.manifest.json"))
    with pytest.raises(DataError, match=r"an unfinished job is there, \d+ parts done; go on with --resume"):
        score(**arguments)
    with pytest.raises(DataError, match=r"the unfinished job there is another one: its options\.top_k is 10"):
        score(**{**arguments, "top_k": 9}, resume=True)
    resumed = score(**arguments, resume=True)
    assert resumed.resumed_rows >= 2 * 100
    assert stored(s3_server, bucket) == expected


JOB = """
import json, sys
from ipsrec_onnx.scoring import score
score(**json.loads(sys.argv[1]))
"""


@pytest.mark.slow
def test_a_store_that_fails_is_one_line_and_what_is_done_stays(
    inputs: dict[str, Any],
    output: str,
    expected: dict[str, bytes],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    server = S3Server(tmp_path / "store")
    for name, value in server.environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "2")
    server.make_bucket("ours")
    sent, real = list[str](), StorePath.send

    def send_until_it_fails(self: StorePath, file: Path) -> None:
        if len(sent) == 8:
            server.stop()
        sent.append(self.path)
        real(self, file)

    monkeypatch.setattr(StorePath, "send", send_until_it_fails)
    try:
        with pytest.raises(
            DataError, match="the store cannot be reached; check the endpoint and the network"
        ) as failed:
            score(**inputs, output=f"s3://ours/{output}")
        assert "\n" not in str(failed.value)
        monkeypatch.setattr(StorePath, "send", real)
        server.start()
        resumed = score(**inputs, output=f"s3://ours/{output}", resume=True)
        assert 0 < resumed.resumed_rows < NUM_USERS
        assert crashes.everything(server.folder / "ours") == expected
    finally:
        server.stop()


def test_a_job_that_fails_before_a_part_is_done_leaves_nothing_in_the_way(
    s3_server: S3Server,
    bucket: str,
    inputs: dict[str, Any],
    output: str,
    expected: dict[str, bytes],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with monkeypatch.context() as broken:
        real = StorePath.write_json

        def refuse_records(self: StorePath, value: dict[str, Any]) -> None:
            if "/records/" in self.path:
                raise DataError("the store is full")
            real(self, value)

        broken.setattr(StorePath, "write_json", refuse_records)
        with pytest.raises(DataError, match="the store is full"):
            score(**inputs, output=f"{bucket}/{output}")
    assert stored(s3_server, bucket) == {}
    score(**inputs, output=f"{bucket}/{output}")
    assert stored(s3_server, bucket) == expected


@pytest.mark.ray
@pytest.mark.slow
def test_workers_of_a_cluster_write_into_the_store(
    s3_server: S3Server, bucket: str, inputs: dict[str, Any], output: str, expected: dict[str, bytes]
) -> None:
    query = f"endpoint_override={s3_server.endpoint.removeprefix('http://')}&scheme=http"
    place = f"s3://{ACCESS_KEY}:{SECRET_KEY}@{bucket.removeprefix('s3://')}/{output}?{query}"
    done = score(**{**inputs, "threads": 1}, output=place, engine="ray", workers=2)
    assert stored(s3_server, bucket) == expected
    assert SECRET_KEY not in json.dumps(done.to_json())


def test_what_cannot_be_written_is_refused_before_the_work(
    s3_server: S3Server, bucket: str, inputs: dict[str, Any], output: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(DataError, match="there is no bucket nowhere; make it first"):
        score(**inputs, output=f"s3://nowhere/{output}")
    with pytest.raises(DataError, match="has no name of its own"):
        score(**inputs, output=f"{bucket}/")
    with pytest.raises(DataError, match="neither pyarrow nor fsspec knows gopher://"):
        score(**inputs, output=f"gopher://bucket/{output}")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "another")
    with pytest.raises(DataError, match="access is denied; check the credentials"):
        score(**inputs, output=f"{bucket}/{output}")
    assert not stored(s3_server, bucket)


def test_a_folder_that_holds_something_else_is_not_replaced(
    s3_server: S3Server, bucket: str, inputs: dict[str, Any]
) -> None:
    (s3_server.folder / bucket.removeprefix("s3://") / "candidates").mkdir()
    (s3_server.folder / bucket.removeprefix("s3://") / "candidates" / "thesis.tex").write_text("years of work")
    with pytest.raises(DataError, match=r"holds 'thesis\.tex', which is no part of candidates, so it is not replaced"):
        score(**inputs, output=f"{bucket}/candidates/", overwrite=True)


def test_a_file_uri_is_a_path(inputs: dict[str, Any], expected: dict[str, bytes], output: str, tmp_path: Path) -> None:
    (tmp_path / "uri").mkdir()
    score(**{**inputs, "source": f"file://{inputs['source']}"}, output=f"file://{tmp_path}/uri/{output}")
    assert crashes.everything(tmp_path / "uri") == expected


def test_a_store_of_fsspec_takes_a_job(inputs: dict[str, Any], expected: dict[str, bytes], output: str) -> None:
    place = object_store.store_path("memory://jobs")
    score(**inputs, output=f"memory://jobs/{output}")
    found = {}
    for name in place.files():
        with place.file_system.open_input_stream(f"{place.path}/{name}") as stream:
            found[name] = stream.read()
    place.remove()
    assert found == expected


def test_an_output_that_is_an_input_is_refused(
    s3_server: S3Server, bucket: str, inputs: dict[str, Any], tmp_path: Path
) -> None:
    place = object_store.store_path(bucket)
    (place / "m.onnx").send(Path(inputs["model"]))
    for output in ("m.onnx", "m.onnx/"):
        with pytest.raises(DataError, match=r"m\.onnx is (the model file, or holds it|a file, expected a folder)"):
            score(
                **{**inputs, "model": f"{bucket}/m.onnx"},
                output=f"{bucket}/{output}",
                overwrite=True,
            )
    with pytest.raises(DataError, match=r"m\.onnx is a file, expected a folder or nothing"):
        score(**inputs, output=f"{bucket}/m.onnx/")
    assert (s3_server.folder / bucket.removeprefix("s3://") / "m.onnx").read_bytes() == Path(
        inputs["model"]
    ).read_bytes()
    score(**inputs, fingerprints=True, output=f"{bucket}/monday/")
    with pytest.raises(DataError, match="monday is what --since carries over"):
        score(**inputs, since=f"{bucket}/monday/", output=f"{bucket}/monday/", overwrite=True)


def test_workers_do_not_write_into_another_job(inputs: dict[str, Any], tmp_path: Path) -> None:
    folder = job_folder.LocalJobFolder(tmp_path, output_paths(f"{tmp_path}/c/", bad_rows=False))
    with pytest.raises(EngineError, match="a worker finds no job there; give an output that all machines share"):
        job_folder.refuse_other_job(folder, {"options": 1})
    (tmp_path / "job.json").write_text('{"options": 2}', encoding="utf-8")
    with pytest.raises(EngineError, match="a worker finds another job there"):
        job_folder.refuse_other_job(folder, {"options": 1})
    job_folder.refuse_other_job(folder, {"options": 2})
