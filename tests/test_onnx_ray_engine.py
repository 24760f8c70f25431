"""Jobs on a Ray cluster: the bytes of a job in one process, whoever dies meanwhile."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import crashes
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import ray
from model_files import write_model_file
from test_onnx_scoring import random_users

from ipsrec_onnx import memory_plan, ray_engine, score_outputs
from ipsrec_onnx.engine_options import RayOptions
from ipsrec_onnx.errors import DataError, EngineError, ModelFileError
from ipsrec_onnx.job_description import machine_kind
from ipsrec_onnx.part_files import open_part
from ipsrec_onnx.part_worker import PartDone, PartWorker
from ipsrec_onnx.ray_engine import RayCluster, connect
from ipsrec_onnx.score_counts import ScoreCounts
from ipsrec_onnx.scoring import score
from ipsrec_onnx.user_parts import UserPart

pytestmark = pytest.mark.ray

PART_ROWS, NUM_USERS = 300, 5_000
ROOT = Path(__file__).resolve().parents[1]
FOLDERS = [".", "kernels", "gpu", "train", "export", "experiment", "cli"]


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    """One that all tests here join: four CPUs by its own word."""
    with connect(RayOptions(workers=4), device="cpu", threads=1, note=print):
        yield


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """5,000 users in two files, some rows malformed, some users cold."""
    folder = tmp_path_factory.mktemp("inputs")
    rng = np.random.default_rng(7)
    model = write_model_file(folder / "model.onnx", num_items=3_000, with_history_terms=True)
    users = random_users(model, rng, NUM_USERS)
    nobody = pa.array(np.arange(NUM_USERS) % 97 == 5)
    history = users["item_history"].combine_chunks()
    history = pa.ListArray.from_arrays(history.offsets, history.values, mask=nobody)
    users = users.set_column(users.schema.get_field_index("item_history"), "item_history", history)
    (folder / "users").mkdir()
    pq.write_table(users.slice(0, 3_100), folder / "users" / "a.parquet", row_group_size=700)
    pq.write_table(users.slice(3_100), folder / "users" / "b.parquet")
    return {
        "model": str(model.path),
        "source": str(folder / "users"),
        "top_k": 20,
        "bad_rows": "divert",
        "part_rows": PART_ROWS,
    }


@pytest.fixture
def expected(inputs: dict[str, Any], tmp_path: Path) -> dict[str, bytes]:
    """What a job in this process writes into a folder."""
    (tmp_path / "local").mkdir()
    score(**inputs, output=f"{tmp_path}/local/candidates/", threads=1)
    return crashes.everything(tmp_path / "local")


@pytest.mark.slow
@pytest.mark.parametrize("workers", [1, 2, 4])
def test_a_job_writes_the_same_bytes_with_any_number_of_workers(
    cluster: None, inputs: dict[str, Any], expected: dict[str, bytes], tmp_path: Path, workers: int
) -> None:
    (tmp_path / "ray").mkdir()
    done = score(**inputs, output=f"{tmp_path}/ray/candidates/", engine="ray", workers=workers, threads=1)
    assert crashes.everything(tmp_path / "ray") == expected
    assert done.counts.rows_in == NUM_USERS and done.counts.rows_diverted == len(range(5, NUM_USERS, 97))
    assert done.resumed_rows == 0 and done.cpu_s["retrieve"] > 0


@pytest.mark.slow
def test_workers_that_cut_the_catalog_into_shards_write_the_same_bytes(
    cluster: None, inputs: dict[str, Any], expected: dict[str, bytes], tmp_path: Path
) -> None:
    (tmp_path / "ray").mkdir()
    score(**inputs, output=f"{tmp_path}/ray/candidates/", engine="ray", workers=2, threads=1, catalog_shards=3)
    assert crashes.everything(tmp_path / "ray") == expected


@pytest.mark.slow
def test_workers_carry_lists_over_to_the_same_bytes(
    cluster: None, inputs: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The earlier output has the users of the first file; its name is relative to where the driver runs."""
    first = {**inputs, "source": f"{inputs['source']}/a.parquet"}
    earlier = score(**first, output=f"{tmp_path}/earlier/", threads=1, fingerprints=True)
    for name in ("local", "ray"):
        (tmp_path / name).mkdir()
    score(**inputs, output=f"{tmp_path}/local/candidates/", threads=1, fingerprints=True)
    monkeypatch.chdir(tmp_path)
    done = score(**inputs, output="ray/candidates/", since="earlier", engine="ray", workers=2, threads=1)
    assert crashes.everything(tmp_path / "ray") == crashes.everything(tmp_path / "local")
    assert done.carried_users == earlier.counts.rows_out > 3_000


@pytest.mark.slow
@pytest.mark.parametrize("layout", ["list", "long"])
def test_one_file_is_the_same_too(cluster: None, inputs: dict[str, Any], tmp_path: Path, layout: str) -> None:
    for name, engine in (("local", {}), ("ray", {"engine": "ray", "workers": 2})):
        (tmp_path / name).mkdir()
        score(**inputs, layout=layout, output=tmp_path / name / "c.parquet", threads=1, **engine)
    assert crashes.everything(tmp_path / "ray") == crashes.everything(tmp_path / "local")


@pytest.mark.slow
def test_relative_names_are_those_of_the_driver(
    cluster: None,
    inputs: dict[str, Any],
    expected: dict[str, bytes],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    arguments = {**inputs, "model": os.path.relpath(inputs["model"]), "source": os.path.relpath(inputs["source"])}
    score(**arguments, output="candidates/", index_cache="laid_out", engine="ray", workers=1, threads=1)
    found = crashes.everything(tmp_path / "elsewhere")
    assert any(name.startswith("laid_out/") for name in found)
    assert {name: data for name, data in found.items() if not name.startswith("laid_out")} == expected


@pytest.mark.slow
def test_a_worker_that_is_killed_is_replaced(
    cluster: None, inputs: dict[str, Any], expected: dict[str, bytes], tmp_path: Path
) -> None:
    (tmp_path / "ray").mkdir()
    killed: list[int] = []

    def kill_one() -> None:
        while not killed:
            if len(list(tmp_path.glob("ray/*.job/parts/*.parquet"))) >= 2:
                killed.append(next(iter(actors())))
                os.kill(killed[0], signal.SIGKILL)
            time.sleep(0.01)

    killer = threading.Thread(target=kill_one, daemon=True)
    killer.start()
    done = score(**inputs, output=f"{tmp_path}/ray/candidates/", engine="ray", workers=2, threads=1)
    assert killed
    killer.join()
    assert crashes.everything(tmp_path / "ray") == expected
    assert done.counts.rows_in == NUM_USERS


def dying_actor(marker: Path, *, refused: str | None = None) -> type[Any]:
    """Workers of which the first dies when two accounts are there; those after it may refuse to go on."""

    class Dying(ray_engine._Actor):  # within a function, so that Ray sends its code to workers, who lack this file
        def __call__(self, batch: Any) -> Iterator[dict[str, Any]]:
            second = marker.exists()

            def refuse() -> Any:
                raise DataError(refused)

            if second and refused is not None:
                self._worker = refuse
            for number, row in enumerate(super().__call__(batch)):
                yield row
                if number == 1 and not second:
                    time.sleep(1.0)  # by then the driver has it
                    marker.touch()
                    os._exit(1)

    return Dying


@pytest.mark.slow
def test_each_part_is_told_of_once_though_its_worker_died(
    cluster: None, inputs: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = {**inputs, "source": f"{inputs['source']}/a.parquet"}
    earlier = score(**first, output=f"{tmp_path}/earlier/", threads=1, fingerprints=True)
    (tmp_path / "local").mkdir()
    score(**inputs, output=f"{tmp_path}/local/candidates/", threads=1, fingerprints=True)
    told, real = list[UserPart](), RayCluster.score

    def listened(self: RayCluster, job: Any, parts: Any) -> Iterator[PartDone]:
        for one in real(self, job, parts):
            told.append(one.part)
            yield one
        assert sorted(told) == list(parts)

    monkeypatch.setattr(RayCluster, "score", listened)
    monkeypatch.setattr(ray_engine, "_Actor", dying_actor(tmp_path / "died"))
    (tmp_path / "ray").mkdir()
    done = score(
        **inputs, output=f"{tmp_path}/ray/candidates/", since=f"{tmp_path}/earlier", engine="ray", workers=1, threads=1
    )
    assert (tmp_path / "died").exists() and told
    assert crashes.everything(tmp_path / "ray") == crashes.everything(tmp_path / "local")
    # What is done and not told of when a worker dies is looked through, not scored: one part or two.
    assert earlier.counts.rows_out - 2 * PART_ROWS <= done.carried_users <= earlier.counts.rows_out


@pytest.mark.slow
def test_an_error_after_a_worker_died_is_heard(
    cluster: None, inputs: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ray_engine, "_Actor", dying_actor(tmp_path / "died", refused="no memory is left"))
    with pytest.raises(DataError, match=r"^no memory is left$"):
        score(**inputs, output=f"{tmp_path}/candidates/", engine="ray", workers=1, threads=1)
    assert (tmp_path / "died").exists()


@pytest.mark.slow
def test_a_worker_stops_when_another_job_has_its_folder(
    cluster: None, inputs: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def score_here(self: RayCluster, job: Any, parts: Any) -> Iterator[PartDone]:
        told = PartWorker(job).score(parts)
        yield next(told)
        (job.folder / "job.json").write_text("{}")
        yield from told

    monkeypatch.setattr(RayCluster, "score", score_here)
    with pytest.raises(EngineError, match="a worker finds another job there"):
        score(**inputs, output=f"{tmp_path}/candidates/", engine="ray", workers=1, threads=1)
    assert len(list(tmp_path.glob(".candidates.*.job/parts/*.parquet"))) < 4


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["ray", "local"])
def test_a_driver_that_is_killed_leaves_its_parts_to_another(
    inputs: dict[str, Any], expected: dict[str, bytes], tmp_path: Path, engine: str
) -> None:
    (tmp_path / "ray").mkdir()
    output = f"{tmp_path}/ray/candidates/"
    on_ray = {"engine": "ray", "workers": 2, "threads": 1}
    driver = subprocess.Popen(
        [sys.executable, "-c", DRIVER, json.dumps({**inputs, **on_ray, "output": output})], env=environment()
    )
    parts = list[Path]()
    while driver.poll() is None and len(parts) < 3:
        parts = list(tmp_path.glob("ray/*.job/parts/*.parquet"))
        time.sleep(0.01)
    driver.kill()
    assert driver.wait() == -signal.SIGKILL  # else it was done before
    assert len(parts) < len(range(0, NUM_USERS, PART_ROWS))
    resumed = on_ray if engine == "ray" else {"threads": 2}
    with ray_ended():
        done = score(**inputs, output=output, resume=True, **resumed)
    assert crashes.everything(tmp_path / "ray") == expected
    assert 3 * PART_ROWS <= done.resumed_rows < NUM_USERS


@pytest.mark.slow
def test_the_first_error_in_the_order_of_the_rows_is_the_one(
    cluster: None, inputs: dict[str, Any], tmp_path: Path
) -> None:
    messages = []
    for engine in ({}, {"engine": "ray", "workers": 2}):
        arguments = {**inputs, "bad_rows": "error", "output": f"{tmp_path}/candidates/"}
        with pytest.raises(DataError) as refused:
            score(**arguments, threads=1, overwrite=True, **engine)
        messages.append(str(refused.value))
    assert messages[0] == messages[1]
    assert "a.parquet, row group 0, row 5" in messages[0]
    assert not (tmp_path / "candidates").exists()


def test_the_first_error_waits_for_the_parts_before_it_alone() -> None:
    """Workers tell of batches in any order, and of a batch no more after its first error."""
    parts = [UserPart(0, row, 1) for row in range(6)]
    late, early = DataError("part 4"), DataError("part 1")
    told: list[Any] = [done(parts[3]), ray_engine._Failure(parts[4], late), done(parts[0])]
    more = [ray_engine._Failure(parts[1], early), done(parts[2])]
    heard = ray_engine._until_first_error(iter([*told, *more]), parts)
    assert [next(heard).part for _ in range(2)] == [parts[3], parts[0]]
    with pytest.raises(DataError) as raised:
        next(heard)
    assert raised.value is early
    heard = ray_engine._until_first_error(iter([*told, done(parts[1]), done(parts[2]), done(parts[5])]), parts)
    assert [next(heard).part for _ in range(4)] == [parts[3], parts[0], parts[1], parts[2]]
    with pytest.raises(DataError) as raised:
        next(heard)
    assert raised.value is late
    assert [one.part for one in ray_engine._until_first_error(map(done, parts[::-1]), parts)] == parts[::-1]


def done(part: UserPart) -> PartDone:
    return PartDone(part, ScoreCounts(), None, {}, None, None)


@pytest.mark.slow
@pytest.mark.parametrize("batch", [3, 100])
def test_a_worker_tells_of_its_parts_in_their_order_whoever_asks_again(
    cluster: None,
    inputs: dict[str, Any],
    expected: dict[str, bytes],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    batch: int,
) -> None:
    """Ray drops as many accounts of a batch that is done again as it has had; four writers are done in any order."""
    told = list[PartDone]()

    def score_here(self: RayCluster, job: Any, parts: Any) -> Iterator[PartDone]:
        worker, again = PartWorker(job), PartWorker(job)
        for first in range(0, len(parts), batch):
            of_batch = parts[first : first + batch]
            done = list(worker.score(of_batch))
            told.extend(done)
            assert [one.part for one in done] == of_batch
            assert [replace(one, cpu_s={}) for one in again.score(of_batch)] == [replace(one, cpu_s={}) for one in done]
            yield from done

    def slow_at_first(path: Path, *arguments: Any, **named: Any) -> Any:
        time.sleep(0.2 if path.name.endswith("-000000000000.parquet") else 0)
        return open_part(path, *arguments, **named)

    monkeypatch.setattr(score_outputs, "open_part", slow_at_first)
    monkeypatch.setattr(memory_plan, "num_writers", lambda threads: 4)
    monkeypatch.setattr(RayCluster, "score", score_here)
    (tmp_path / "ray").mkdir()
    report = score(**inputs, output=f"{tmp_path}/ray/candidates/", engine="ray", workers=2, threads=2)
    assert crashes.everything(tmp_path / "ray") == expected
    assert report.counts.rows_in == sum(one.counts.rows_in for one in told) == NUM_USERS
    assert sum(one.cpu_s.get("retrieve", 0) for one in told) == pytest.approx(report.cpu_s["retrieve"])


@pytest.mark.slow
def test_what_cannot_be_opened_ends_the_ray_that_was_started_meanwhile(inputs: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "model.onnx").write_bytes(b"nothing")
    messages = []
    with ray_ended():
        for engine in ({}, {"engine": "ray"}):
            with pytest.raises(ModelFileError) as refused:
                score(**{**inputs, "model": tmp_path / "model.onnx"}, output=f"{tmp_path}/candidates/", **engine)
            messages.append(str(refused.value))
            assert not ray.is_initialized()
    assert messages[0] == messages[1]


@pytest.mark.slow
def test_a_command_whose_cluster_is_not_there_does_not_wait_for_its_model(
    inputs: dict[str, Any], tmp_path: Path
) -> None:
    arguments = ["score", "--model", inputs["model"], "--input", inputs["source"], "--output", f"{tmp_path}/o/"]
    command = subprocess.run(
        [sys.executable, "-c", SLOW_TO_OPEN, *arguments, "--engine", "ray", "--address", "127.0.0.1:1"],
        env=environment(),
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert command.returncode == 1
    assert command.stderr.count("\n") == 1 and "--address 127.0.0.1:1: [Errno 111] Connection refused" in command.stderr


@pytest.mark.slow
def test_a_process_outlives_the_cluster_of_a_job_that_was_refused(inputs: dict[str, Any], tmp_path: Path) -> None:
    """Ray ends a process in which a thread touches a cluster that has ended."""
    arguments = {**inputs, "output": f"{tmp_path}/candidates/", "engine": "ray", "workers": 2, "threads": 1}
    driver = subprocess.run(
        [sys.executable, "-c", TWICE, json.dumps(arguments)],
        env=environment(),
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert driver.returncode == 0, driver.stderr[-2_000:]
    refused, done = driver.stdout.splitlines()
    assert "a.parquet, row group 0, row 5" in refused
    assert done == str(NUM_USERS)


def test_a_cluster_that_is_too_small_is_refused(cluster: None, inputs: dict[str, Any], tmp_path: Path) -> None:
    for workers, threads, room in ((5, 1, 4), (3, 2, 2), (1, 8, 0)):
        with pytest.raises(
            EngineError, match=f"--workers {workers}: the cluster has room for {room} workers of {threads} threads"
        ):
            score(**inputs, output=tmp_path / "c.parquet", engine="ray", workers=workers, threads=threads)
    with pytest.raises(EngineError, match="no machine of the cluster has 2 GPUs"):
        score(**inputs, output=tmp_path / "c.parquet", engine="ray", device="cuda", gpus_per_worker=2)
    assert not list(tmp_path.iterdir())


def test_the_cluster_is_cut_into_workers_by_its_machines(cluster: None) -> None:
    with connect(RayOptions(), device="cpu", threads=None, note=print) as one:
        assert (one.workers, one.threads, one.gpus, one.share) == (1, 4, (), 1.0)
    with connect(RayOptions(workers=3), device="cpu", threads=None, note=print) as three:
        assert (three.workers, three.threads) == (3, 1)
        assert three.share == pytest.approx(1 / 3)
        assert three.machine == machine_kind(None)


def test_a_busy_cluster_is_waited_for_with_a_word(cluster: None, monkeypatch: pytest.MonkeyPatch) -> None:
    class Guest:
        def there(self) -> bool:
            return True

    guest: Any = ray.remote(Guest).options(num_cpus=4).remote()
    ray.get(guest.there.remote())
    notes = list[str]()

    def leave(note: str) -> None:
        notes.append(note)
        ray.kill(guest)

    monkeypatch.setattr(ray_engine, "_CONNECT_S", 0.5)
    with connect(RayOptions(workers=2), device="cpu", threads=1, note=leave) as joined:
        assert joined.workers == 2
    assert notes == ["the cluster is busy: waiting for a free CPU; `ray status` says who has them"]


@pytest.mark.parametrize(
    ("address", "message"),
    [
        ("127.0.0.1:1", "Connection refused"),
        ("nobody", "expected host:port, or auto"),
        ("ray://127.0.0.1:10001", "run it on the cluster"),
        ("auto", "Could not find any running Ray instance"),
    ],
)
def test_a_cluster_that_is_not_there_is_one_line(
    inputs: dict[str, Any], tmp_path: Path, address: str, message: str
) -> None:
    said = rf"--address {address}: .*{message}.*start a cluster with `ray start"
    with ray_ended():
        if address == "auto" and somebody_elses_ray():
            pytest.skip("another Ray is running on this machine, which auto finds")
        with pytest.raises(EngineError, match=said) as refused:
            score(**inputs, output=tmp_path / "c.parquet", engine="ray", address=address)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"workers": 2}, "--address, --workers and --gpus-per-worker are about a cluster, found --engine local"),
        ({"address": "auto"}, "add --engine ray, or leave them out"),
        ({"engine": "ray", "gpus": (0, 1), "device": "cuda"}, "found --engine ray; use --gpus-per-worker"),
    ],
)
def test_options_of_the_other_engine_are_refused(
    inputs: dict[str, Any], tmp_path: Path, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(EngineError, match=message):
        score(**inputs, output=tmp_path / "c.parquet", **options)


@pytest.mark.slow
def test_a_machine_of_another_kind_is_refused(
    cluster: None, inputs: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = RayCluster.score

    def score_as_if_elsewhere(self: RayCluster, job: Any, parts: Any) -> Any:
        other = {**job.machine, "versions": {**job.machine["versions"], "pyarrow": "1.0"}}
        return real(self, replace(job, machine=other), parts)

    monkeypatch.setattr(RayCluster, "score", score_as_if_elsewhere)
    with pytest.raises(EngineError, match=r"would round differently .* versions.pyarrow is \"1.0\""):
        score(**inputs, output=tmp_path / "c.parquet", engine="ray")


DRIVER = """
import json, sys
from ipsrec_onnx.scoring import score
score(**json.loads(sys.argv[1]))
"""


TWICE = """
import json, sys, time
from ipsrec_onnx.errors import DataError
from ipsrec_onnx.scoring import score
arguments = json.loads(sys.argv[1])
for bad_rows in ("error", "divert"):
    try:
        print(score(**{**arguments, "bad_rows": bad_rows}, overwrite=True).counts.rows_in)
    except DataError as error:
        print(error)
    time.sleep(3)  # whoever is still at work has the time to end us
"""


SLOW_TO_OPEN = """
import sys, time
from ipsrec_cli.main import main
from ipsrec_onnx import scoring
scoring.open_model = lambda *_, **__: time.sleep(3_600)
main(sys.argv[1:])
"""


def environment() -> dict[str, str]:
    """In which a process of its own finds this checkout."""
    return {**os.environ, "PYTHONPATH": os.pathsep.join(str(ROOT / folder) for folder in FOLDERS)}


@contextlib.contextmanager
def ray_ended() -> Iterator[None]:
    """Leave the cluster of the tests, where they have joined it, and join it again: for a test of joining another."""
    joined = ray.is_initialized()
    if joined:
        ray.shutdown()
    try:
        yield
    finally:
        if joined:
            ray.init(address="local", num_cpus=4, include_dashboard=False, log_to_driver=False)


def actors() -> Iterator[int]:
    """Processes of this process's workers, which Ray gives a name of what they do; other tests may have some, too."""
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if b"ray::MapWorker" in (process / "cmdline").read_bytes() and os.getpid() in ancestors(process):
                yield int(process.name)


def ancestors(process: Path) -> Iterator[int]:
    """Processes that started this one, upwards."""
    while (parent := int((process / "stat").read_text().rpartition(")")[2].split()[1])) > 0:
        yield parent
        process = process.with_name(str(parent))


def somebody_elses_ray() -> bool:
    """Does a Ray run on this machine, or another process of tests have one?"""
    servers = Path("/proc").glob("[0-9]*/cmdline")
    for server in servers:
        with contextlib.suppress(OSError):
            if b"gcs_server" in server.read_bytes():
                return True
    return False
