"""Every file that is written has the rights that the umask leaves, and no more: a job's output may be secret."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from model_files import write_model_file
from training_data import build_graph_once, make_run

from ipsrec_export import export as export_module
from ipsrec_export import external_data
from ipsrec_export.export import export
from ipsrec_onnx.errors import DataError
from ipsrec_onnx.job_folder import LocalJobFolder
from ipsrec_onnx.scoring import score


@pytest.fixture
def mask(request: pytest.FixtureRequest) -> Iterator[int]:
    """A umask of this test alone; a process has one for all its threads."""
    before = os.umask(request.param)
    yield request.param
    os.umask(before)


def check_rights(folder: Path, mask: int) -> set[str]:
    """All below a folder has the rights 666 or 777 without those of the mask; gives the names of the files."""
    names = set()
    for path in [folder, *folder.rglob("*")]:
        rights = path.stat().st_mode & 0o7777
        whole = 0o777 if path.is_dir() else 0o666
        assert rights & mask == 0 and rights & ~whole == 0, f"{path} has {oct(rights)} with umask {oct(mask)}"
        assert rights & 0o400, f"{path} has {oct(rights)}: its owner cannot read it"
        names.add(path.relative_to(folder).as_posix())
    return names


@pytest.mark.parametrize("mask", [0o022, 0o077, 0o027], ids=oct, indirect=True)
@pytest.mark.parametrize("as_folder", [False, True])
def test_what_a_job_writes(tmp_path: Path, mask: int, as_folder: bool) -> None:
    folder = tmp_path / "work"
    folder.mkdir()
    users = pa.table({"user_id": [1, 2, None], "item_history": [[1], [], [2]]})
    write_model_file(tmp_path / "model.onnx")
    pq.write_table(users, tmp_path / "users.parquet")
    score(
        tmp_path / "model.onnx",
        tmp_path / "users.parquet",
        f"{folder}/out/" if as_folder else folder / "out.parquet",
        bad_rows="divert",
        index_cache=folder / "cache",
        threads=1,
    )
    names = check_rights(folder, mask)
    assert any(name.startswith("cache/") and name.endswith(".npy") for name in names)
    for ending in (".manifest.json", ".bad_rows.parquet"):
        assert any(name.endswith(ending) for name in names), names


@pytest.mark.parametrize("mask", [0o022, 0o077], ids=oct, indirect=True)
def test_what_a_broken_job_leaves(tmp_path: Path, mask: int, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "work"
    folder.mkdir()
    write_model_file(tmp_path / "model.onnx")
    pq.write_table(pa.table({"user_id": [1], "item_history": [[1]]}), tmp_path / "users.parquet")

    def stop(*_: object, **__: object) -> None:
        raise DataError("stopped before the results have their names")

    monkeypatch.setattr(LocalJobFolder, "finish", stop)
    with pytest.raises(DataError, match="stopped before"):
        score(tmp_path / "model.onnx", tmp_path / "users.parquet", folder / "out.parquet", threads=1)
    names = check_rights(folder, mask)
    assert {Path(name).name for name in names} >= {"job.json", "lock", "parts", "manifest.json"}


@pytest.mark.parametrize("mask", [0o077, 0o027], ids=oct, indirect=True)
@pytest.mark.parametrize("in_two_files", [False, True])
def test_what_training_and_export_write(
    tmp_path: Path, mask: int, in_two_files: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(export_module, "build_graph", build_graph_once)
    if in_two_files:
        monkeypatch.setattr(external_data, "LARGEST_IN_ONE_FILE", 0)
    (tmp_path / "work").mkdir()
    run = make_run(tmp_path / "work")
    export(run, tmp_path / "work" / "model.onnx")
    names = check_rights(tmp_path / "work", mask)
    assert {Path(name).name for name in names} >= {"model.safetensors", "resume.safetensors", "run.json", "model.onnx"}
    assert any(name.endswith(".data") for name in names) == in_two_files
