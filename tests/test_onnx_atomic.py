"""Outputs that stand in the way, names at the limit, and what a killed process leaves."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from ipsrec_onnx.atomic import atomic_file, atomic_folder, refuse_existing, scratch_folder
from ipsrec_onnx.errors import DataError


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize("name", ["n" * 255, "é" * 127, "n" * 214 + ".parquet"], ids=len)
def test_a_name_as_long_as_the_disk_allows_is_written(tmp_path, name):
    for _ in range(2):
        with atomic_file(tmp_path / name, overwrite=True) as temporary:
            temporary.write_text("whole")
    with atomic_folder(tmp_path / f"d{name[1:]}", marker="m", overwrite=True) as temporary:
        (temporary / "m").touch()
    assert names(tmp_path) == sorted([name, f"d{name[1:]}"])


@pytest.mark.parametrize("name", ["n" * 256, "é" * 128, "n" * 5000], ids=len)
def test_a_longer_name_is_refused_with_one_line(tmp_path, name):
    for use in (atomic_file(tmp_path / name), atomic_folder(tmp_path / name, marker="m")):
        with pytest.raises(DataError, match="the name is too long; choose a shorter one"):
            use.__enter__()
    with pytest.raises(DataError, match="the name is too long"):
        refuse_existing(tmp_path / name / "below", overwrite=True)
    assert names(tmp_path) == []


def test_a_device_or_pipe_is_never_replaced(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "link").symlink_to("/dev/null")
    for target in (tmp_path / "pipe", tmp_path / "link", Path("/dev/null")):
        for overwrite in (False, True):
            with pytest.raises(DataError, match="is a device or a pipe, expected a file or folder; choose another"):
                atomic_file(target, overwrite=overwrite).__enter__()
    assert (tmp_path / "pipe").is_fifo() and Path("/dev/null").is_char_device()
    assert names(tmp_path) == ["link", "pipe"]


def test_a_link_stays_and_what_it_points_to_is_written(tmp_path):
    (tmp_path / "there").mkdir()
    for link, target in (("link", "there/file"), ("second", "link"), ("dangling", "there/new")):
        (tmp_path / link).symlink_to(target)
    (tmp_path / "there" / "file").write_text("old")
    for link in ("link", "dangling"):
        with pytest.raises(DataError, match="exists already"):
            atomic_file(tmp_path / link).__enter__()
    for link, target in (("second", "file"), ("dangling", "new")):
        with atomic_file(tmp_path / link, overwrite=True) as temporary:
            temporary.write_text("new")
        assert (tmp_path / link).is_symlink()
        assert (tmp_path / "there" / target).read_text() == "new"
    assert names(tmp_path / "there") == ["file", "new"]
    (tmp_path / "nowhere").symlink_to("not/there")
    with pytest.raises(DataError, match="is not there; make the folder first"):
        atomic_file(tmp_path / "nowhere", overwrite=True).__enter__()


def test_a_scratch_folder_is_gone_however_the_block_ends(tmp_path):
    with scratch_folder(tmp_path / "out") as folder:
        (folder / "part").touch()
    with pytest.raises(KeyboardInterrupt), scratch_folder(tmp_path / "out") as folder:
        (folder / "part").touch()
        raise KeyboardInterrupt
    assert names(tmp_path) == []


WRITER = """
import sys, time
from ipsrec_onnx.atomic import atomic_file, atomic_folder
with atomic_file(sys.argv[1]) as file, atomic_folder(sys.argv[2], marker="m") as folder:
    (folder / "part").write_text("half")
    print("writing", flush=True)
    time.sleep(60)
"""


def test_what_a_killed_process_left_goes_and_what_a_living_one_holds_stays(tmp_path):
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    command = [sys.executable, "-c", WRITER, str(tmp_path / "file"), str(tmp_path / "folder")]
    writer = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE)
    try:
        assert writer.stdout is not None and writer.stdout.readline() == b"writing\n"
        left = names(tmp_path)
        assert len(left) == 2
        hour_ago = time.time() - 3600
        for name in left:
            os.utime(tmp_path / name, (hour_ago, hour_ago))
        write_both(tmp_path)
        assert names(tmp_path) == sorted([*left, "file", "folder"])  # somebody works there
    finally:
        writer.send_signal(signal.SIGKILL)
        writer.wait()
    for name in left:
        os.utime(tmp_path / name)
    write_both(tmp_path)
    assert names(tmp_path) == sorted([*left, "file", "folder"])  # so young that somebody may be about to
    for name in left:
        os.utime(tmp_path / name, (hour_ago, hour_ago))
    with atomic_file(tmp_path / "another"):
        pass
    assert set(left) <= set(names(tmp_path))  # of other outputs
    write_both(tmp_path)
    assert names(tmp_path) == ["another", "file", "folder"]


def write_both(folder: Path) -> None:
    with atomic_file(folder / "file", overwrite=True):
        pass
    with atomic_folder(folder / "folder", marker="m", overwrite=True) as temporary:
        (temporary / "m").touch()
