"""Jobs whose machine, input or output breaks under them: one line, the exit code, no hang, and what is done stays.

Every job is a process of its own that runs the command line; afterwards the cause is mended, and the job is resumed to
the bytes of one that nobody disturbed.
"""

from __future__ import annotations

import contextlib
import multiprocessing.process
import os
import re
import resource
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import crashes
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from model_files import write_model_file
from other_user import run_as_nobody

SOON_S = 10.0  # a stop that takes longer waited for something


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, bytes]]:
    """A folder with a model and 3,000 users in two files, and what an undisturbed job writes."""
    folder = tmp_path_factory.mktemp("whole")
    model = write_model_file(folder / "model.onnx", num_items=100, max_len=20, dim=16)
    rng, known = np.random.default_rng(0), model.catalog.item_ids
    offsets = np.concatenate([[0], np.cumsum(rng.integers(0, 20, 3000))]).astype(np.int32)
    items = known.take(pa.array(rng.integers(0, len(known), offsets[-1])))
    history = pa.ListArray.from_arrays(pa.array(offsets), items)
    users = pa.table({"user_id": np.arange(3000), "item_history": history})
    (folder / "users").mkdir()
    pq.write_table(users.slice(0, 1700), folder / "users" / "a.parquet", row_group_size=300)
    pq.write_table(users.slice(1700), folder / "users" / "b.parquet", row_group_size=130)
    job = Job(folder, folder)
    assert job.run() == (0, "")
    return folder, crashes.everything(folder / "out")


class Job:
    """A scoring job whose input can be changed: the model is shared, users and output are its own."""

    def __init__(self, folder: Path, shared: Path) -> None:
        self.folder, self.users, self.out = folder, folder / "users", folder / "out"
        self.stderr, self.paused = folder / "stderr", folder / "paused"
        if folder != shared:
            shutil.copytree(shared / "users", self.users)  # with the times of their last change
        self.out.mkdir()
        self.model = shared / "model.onnx"

    def arguments(self, *more: str) -> list[str]:
        paths = {"model": self.model, "input": self.users, "output": self.out / "o.parquet"}
        fixed = ["--top-k", "10", "--threads", "2", "--quiet"]
        return ["score", *(f"--{name}={path}" for name, path in paths.items()), *fixed, *more]

    def start(
        self, *more: str, pause: bool = False, fails: str | None = None, writers: int | None = None
    ) -> multiprocessing.process.BaseProcess:
        arguments = (self.arguments(*more), self.stderr, self.paused if pause else None, fails, writers)
        process = crashes.server().Process(target=crashes.command, args=arguments)
        process.start()
        stop = time.monotonic() + 60
        while pause and not (self.paused.exists() and list(self.out.glob(".*.job/parts/*.parquet"))):
            assert process.is_alive() and time.monotonic() < stop, self.stderr.read_text()
            time.sleep(0.01)
        return process

    def end(self, process: multiprocessing.process.BaseProcess) -> tuple[int | None, str]:
        """Let it go on to its end: exit code, what it said."""
        self.paused.unlink(missing_ok=True)
        process.join(60)
        assert process.exitcode is not None, "the job hangs"
        return process.exitcode, self.stderr.read_text()

    def run(self, *more: str, fails: str | None = None, writers: int | None = None) -> tuple[int | None, str]:
        return self.end(self.start(*more, fails=fails, writers=writers))

    def nothing_unfinished_is_there(self) -> None:
        names = list(crashes.everything(self.out))
        assert all(name.startswith(".") and not name.endswith(".tmp") for name in names), names


@pytest.fixture
def job(tmp_path: Path, whole: tuple[Path, dict[str, bytes]]) -> Iterator[Job]:
    job = Job(tmp_path, whole[0])
    yield job
    job.paused.unlink(missing_ok=True)  # after a failure, nobody else would let it go on, and pytest waits for its end


@pytest.fixture
def expected(whole: tuple[Path, dict[str, bytes]]) -> dict[str, bytes]:
    return whole[1]


def is_one_line(said: str, pattern: str) -> None:
    assert re.fullmatch(rf"ipsrec: {pattern}\n", said), said


def lose_input(users: Path) -> None:
    (users / "b.parquet").unlink()


def cut_input_off(users: Path) -> None:
    os.truncate(users / "b.parquet", 2000)


def cut_open_input_off(users: Path) -> None:
    os.truncate(users / "a.parquet", 100)


def replace_input(users: Path) -> None:
    rows = pq.read_table(users / "b.parquet")
    pq.write_table(rows.slice(1), users / "b.parquet")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lose_input, r"\S+/b\.parquet: is not there any more; put it back, and run again"),
        (cut_input_off, r"\S+/b\.parquet: cannot be read as Parquet \(.*\); write the file again"),
        (cut_open_input_off, r"\S+/a\.parquet, row group \d: (cannot be read|\d+ rows, ).*; the file is broken, .*"),
        (replace_input, r"\S+/b\.parquet: changed while the job ran; begin again when it stays as it is"),
    ],
)
def test_an_input_that_breaks_meanwhile_is_one_line(
    job: Job, expected: dict[str, bytes], change: Callable[[Path], None], message: str
) -> None:
    saved = shutil.copytree(job.users, job.folder / "saved")
    process = job.start(pause=True)
    change(job.users)
    code, said = job.end(process)
    assert code == 1
    is_one_line(said, message)
    job.nothing_unfinished_is_there()
    shutil.rmtree(job.users)
    shutil.copytree(saved, job.users)
    assert job.run("--resume") == (0, "")
    assert crashes.everything(job.out) == expected


def test_a_new_input_file_is_another_input(job: Job, expected: dict[str, bytes]) -> None:
    process = job.start(pause=True)
    process.kill()
    job.end(process)
    shutil.copy(job.users / "b.parquet", job.users / "c.parquet")
    code, said = job.run("--resume")
    assert code == 1
    is_one_line(said, r".*the unfinished job there is another one: its input is .*or start over with --overwrite")
    (job.users / "c.parquet").unlink()
    assert job.run("--resume") == (0, "")
    assert crashes.everything(job.out) == expected


def test_an_output_folder_that_is_removed_meanwhile_is_one_line(job: Job, expected: dict[str, bytes]) -> None:
    process = job.start(pause=True)
    shutil.rmtree(job.out.rename(job.folder / "removed"))  # at once: the job may make a file in the midst of rmtree
    code, said = job.end(process)
    assert code == 1
    is_one_line(said, r"output \S+: \S+ was removed while the job wrote it; keep the folder, and run again")
    assert not job.out.exists()
    job.out.mkdir()
    assert job.run("--resume") == (0, "")
    assert crashes.everything(job.out) == expected


@pytest.mark.parametrize(
    ("fails", "message"),
    [
        ("RuntimeError", r"RuntimeError: of the test, in two lines; this is a defect, please report it with .*"),
        ("SystemError", r"SystemError: of the test, in two lines; this is a defect, please report it with .*"),
        ("MemoryError", r"memory ran out \(MemoryError: .*\); give a smaller --max-memory, fewer --threads or .*"),
        ("ArrowMemoryError", r"memory ran out \(ArrowMemoryError: malloc .*\); give a smaller --max-memory, fewer .*"),
    ],
)
def test_an_exception_in_a_worker_is_one_line(job: Job, expected: dict[str, bytes], fails: str, message: str) -> None:
    code, said = job.run(fails=fails)
    assert code == 1
    is_one_line(said, r"\S+/a\.parquet, row group \d, rows \d+ to \d+: " + message)
    job.nothing_unfinished_is_there()
    assert list(job.out.glob(".*.job/parts/*.parquet"))
    assert job.run("--resume") == (0, "")
    assert crashes.everything(job.out) == expected


@pytest.mark.parametrize("writers", [1, 4])
@pytest.mark.parametrize(
    ("number", "code", "word"), [(signal.SIGTERM, 143, "terminated"), (signal.SIGINT, 130, "interrupted")]
)
def test_a_signal_stops_a_job_whose_workers_are_busy(
    job: Job, expected: dict[str, bytes], number: signal.Signals, code: int, word: str, writers: int
) -> None:
    process = job.start(pause=True, writers=writers)  # the workers stay in their chunks
    assert process.pid is not None
    started = time.monotonic()
    os.kill(process.pid, number)
    process.join(60)
    assert time.monotonic() - started < SOON_S
    assert (process.exitcode, job.stderr.read_text()) == (code, f"ipsrec: {word}\n")
    job.nothing_unfinished_is_there()
    job.paused.unlink()
    assert job.run("--resume") == (0, "")
    assert crashes.everything(job.out) == expected


@pytest.mark.parametrize("options", [[], ["--resume"], ["--overwrite"]])
def test_of_two_jobs_on_one_output_the_second_is_refused_until_the_first_dies(
    job: Job, expected: dict[str, bytes], options: list[str]
) -> None:
    first = job.start(pause=True)
    held = {path: path.read_bytes() for path in job.out.rglob("part*.parquet")}
    paused = job.paused.rename(job.folder / "elsewhere")  # the second one must not wait with the first
    shutil.copy(paused, job.paused)
    second = crashes.server().Process(target=crashes.command, args=(job.arguments(*options), job.folder / "second"))
    second.start()
    second.join(60)
    said = (job.folder / "second").read_text()
    assert second.exitcode == 1
    is_one_line(said, r"output \S+: another job is writing it; wait for its end, or choose another name")
    assert {path: path.read_bytes() for path in job.out.rglob("part*.parquet")} == held
    first.kill()
    first.join(60)
    job.paused.unlink()
    if options:
        assert job.run(*options) == (0, "")
        assert crashes.everything(job.out) == expected
    else:
        code, said = job.run()
        assert code == 1 and "an unfinished job is there" in said


@contextlib.contextmanager
def small_disk(folder: Path, size: str) -> Iterator[Callable[..., None]]:
    """A file system of a size, mounted over a folder; gives a function that mounts it again with other options."""
    mount = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)]
    try:
        done = subprocess.run(mount, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        pytest.skip("there is no mount here")
    if done.returncode:
        pytest.skip(f"mounting is not allowed here: {done.stderr.strip()}")
    try:
        yield lambda options: subprocess.run(["mount", "-o", f"remount,{options}", str(folder)], check=True)
    finally:
        subprocess.run(["umount", str(folder)], check=True)


@pytest.mark.parametrize("writers", [1, 4])
def test_a_full_disk_is_one_line_and_the_job_goes_on_when_there_is_room(
    job: Job, expected: dict[str, bytes], writers: int
) -> None:
    with small_disk(job.out, "200k") as remount:
        code, said = job.run(writers=writers)
        assert code == 1
        is_one_line(said, r"output \S+/o\.parquet: no space is left; make room, or choose another folder")
        job.nothing_unfinished_is_there()
        assert list(job.out.glob(".*.job/parts/*.parquet"))
        remount("size=20m")
        assert job.run("--resume") == (0, "")
        assert crashes.everything(job.out) == expected


def test_a_read_only_disk_is_one_line(job: Job) -> None:
    with small_disk(job.out, "20m") as remount:
        remount("ro")
        code, said = job.run()
        assert code == 1
        is_one_line(said, r"output \S+/o\.parquet: folder \S+ cannot be written to; choose another, or ask .*")
        assert not list(job.out.iterdir())


@pytest.mark.parametrize("writers", [1, 4])
def test_a_file_over_the_limit_is_one_line(job: Job, expected: dict[str, bytes], writers: int) -> None:
    process = job.start(pause=True, writers=writers)
    assert process.pid is not None
    resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (60_000, resource.RLIM_INFINITY))
    code, said = job.end(process)
    assert code == 1
    is_one_line(said, r"output \S+/o\.parquet: the file is too big; make room, or choose another folder")
    job.nothing_unfinished_is_there()
    assert job.run("--resume") == (0, "")
    assert crashes.everything(job.out) == expected


@pytest.mark.parametrize(
    ("closed", "message"),
    [
        ("out", r"output \S+/o\.parquet: folder \S+ cannot be written to; choose another, or ask for the right"),
        ("users/b.parquet", r"\S+/b\.parquet: cannot be read as Parquet \(.*Permission denied.*\); .*"),
    ],
)
def test_what_one_may_not_touch_is_one_line(job: Job, closed: str, message: str) -> None:
    if os.getuid() != 0:
        pytest.skip("only root can become another user")
    job.out.chmod(0o777)
    (job.folder / closed).chmod(0o555 if closed == "out" else 0o000)
    job.model.parent.chmod(0o755)
    done = run_as_nobody(f"ipsrec_cli.main.main({job.arguments()!r})", job.out)
    assert done.returncode == 1
    is_one_line(done.stderr, message)
    assert not list(job.out.iterdir())
