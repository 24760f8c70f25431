"""What a job will take, said before it, and how wrong that was."""

from __future__ import annotations

import inspect
import itertools
import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner
from model_files import TinyModel, write_model_file
from test_onnx_scoring import random_users

from ipsrec_cli.plan import plan as plan_command
from ipsrec_cli.score import score as score_command
from ipsrec_onnx import planning, probe
from ipsrec_onnx.errors import DataError
from ipsrec_onnx.job_plan import check_plan, prediction_for, read_plan
from ipsrec_onnx.memory_plan import ChunkPlan
from ipsrec_onnx.planning import plan
from ipsrec_onnx.probe import Probe
from ipsrec_onnx.score_run import score_named_chunk
from ipsrec_onnx.scoring import score
from ipsrec_onnx.throughput import Throughput, steady_span
from ipsrec_onnx.user_chunks import read_chunks
from ipsrec_onnx.user_parts import UserPart, plan_parts
from ipsrec_onnx.users import UserColumns, open_users

COLUMNS = UserColumns("user_id", "item_history", None, None)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> TinyModel:
    return write_model_file(tmp_path_factory.mktemp("model") / "model.onnx", num_items=300)


@pytest.fixture(scope="module")
def users(model: TinyModel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """4,000 users in row groups of 700."""
    path = tmp_path_factory.mktemp("users") / "users.parquet"
    pq.write_table(random_users(model, np.random.default_rng(5), 4_000), path, row_group_size=700)
    return path


def written(planned: Any, path: Path) -> Path:
    path.write_text(json.dumps(planned.to_json()))
    return path


def test_plan_takes_what_score_takes() -> None:
    of_score, of_plan = (inspect.signature(function).parameters for function in (score, plan))
    for name in of_plan.keys() & of_score.keys() - {"workers"}:
        assert of_plan[name].default == of_score[name].default, name
    assert of_plan.keys() - of_score.keys() == {"as_folder"}
    command = {option.name: option for option in plan_command.params}
    assert command.keys() - of_plan.keys() == {"output", "overwrite", "as_json"}
    assert of_plan.keys() <= command.keys()
    shared = [option for option in score_command.params if option.name in of_plan and option.name != "workers"]
    assert all(command[option.name] is option for option in shared) and len(shared) == len(of_plan) - 2


@pytest.mark.parametrize("output", ["o.parquet", "o/"])
@pytest.mark.parametrize("layout", ["list", "long"])
def test_the_output_is_as_large_as_planned(
    tmp_path: Path, model: TinyModel, users: Path, output: str, layout: str
) -> None:
    options: dict[str, Any] = {"top_k": 20, "layout": layout, "part_rows": 1_500, "threads": 2}
    options["fingerprints"] = layout == "list"
    planned = plan(model.path, users, as_folder=output == "o/", **options)
    assert planned.rows == 4_000 and planned.cluster is None and planned.threads == 2
    path = written(planned, tmp_path / "plan.json")
    done = score(model.path, users, f"{tmp_path}/{output}", plan=path, **options)
    assert done.plan is not None
    size = done.plan.output_bytes
    assert (
        size.taken
        == done.output_bytes
        == sum(file.stat().st_size for file in tmp_path.rglob("*.parquet") if file.is_file())
    )
    assert size.percent == pytest.approx(100 * (size.planned - size.taken) / size.taken)
    assert abs(size.percent) < 5
    assert done.plan.wall_s.planned == planned.here.wall_s and done.plan.wall_s.taken == done.wall_s
    assert done.plan.memory_bytes is not None and done.plan.memory_bytes.taken == done.peak_memory_bytes > 0
    assert done.to_json()["plan"]["output_bytes"]["percent"] == size.percent


class _Clock:
    """Stands in for the module time; goes on when it is told."""

    def __init__(self) -> None:
        self.now = 0.0

    def perf_counter(self) -> float:
        return self.now


def test_the_first_chunk_is_start_up_and_no_speed(
    tmp_path: Path, model: TinyModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A user takes ten milliseconds, and the very first chunk a second more."""
    pq.write_table(random_users(model, np.random.default_rng(6), 3_000), tmp_path / "u.parquet", row_group_size=1_500)
    plan(model.path, tmp_path / "u.parquet", top_k=5, threads=1)  # compiles what is not, which takes real seconds
    clock, lasts = _Clock(), itertools.chain([1.0], itertools.repeat(0.0))

    def slow(chunk: Any, rules: Any) -> Any:
        clock.now += next(lasts) + 0.01 * chunk.rows.num_rows
        return score_named_chunk(chunk, rules)

    monkeypatch.setattr(probe, "time", clock)
    monkeypatch.setattr(probe, "score_named_chunk", slow)
    monkeypatch.setattr(probe, "_LEAST_ROWS", 1)
    planned = plan(model.path, tmp_path / "u.parquet", top_k=5, threads=1)
    assert planned.probe is not None
    assert planned.probe.first_s == pytest.approx(1.0)
    assert planned.here.start_s > 1.0
    assert planned.probe.chunk_rows == 50  # two seconds in four rounds, at 100 users a second


def test_the_speed_is_that_of_all_threads_over_the_chunks_that_were_probed(
    tmp_path: Path, model: TinyModel, users: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[list[tuple[float, int]], int]] = []

    def span(samples: list[tuple[float, int]], *, at_once: int) -> tuple[float, float]:
        asked.append((list(samples), at_once))
        return 700.0, 7.0

    monkeypatch.setattr(probe, "steady_span", span)
    planned = plan(model.path, users, top_k=5, threads=3, workers=2, part_rows=2_000)
    ((samples, at_once),) = asked
    assert at_once == 3 and samples[0] == (0.0, 0) and len(samples) > 3 * 3
    assert [done for _, done in samples] == sorted({done for _, done in samples})
    assert samples[-1][1] <= 4_000 and samples[-1][0] > 0
    assert planned.probe is not None and planned.cluster is not None
    assert planned.probe.users_per_s == 100.0
    assert planned.here.loop_s == pytest.approx(planning._loop_s(planned.probe, 4_000, planned.probe.chunks.rows))
    assert planned.cluster.loop_s == pytest.approx(
        planning._loop_s(planned.probe, 2_000, planned.probe.part_chunk_rows), rel=0.01
    )


@pytest.mark.parametrize("threads", [1, 2, 3])
@pytest.mark.parametrize("late_s", [0.0, 0.2, 0.45])
@pytest.mark.parametrize("rounds", [2, 3, 5])
def test_threads_that_finish_one_after_another_are_as_fast_as_those_that_finish_together(
    threads: int, late_s: float, rounds: int
) -> None:
    """Each chunk of 100 users takes its thread a second; the second thread begins late_s after the first, and so on."""
    finished = sorted(late_s * thread + turn + 1 for thread in range(threads) for turn in range(rounds))
    throughput = Throughput()
    for seconds in finished:
        throughput.add_at(5.0 + seconds, 100)  # the kernels are loaded before all
    users, seconds = steady_span(throughput.samples, at_once=threads)
    assert users == pytest.approx(100 * threads * (rounds - 1))
    assert seconds == pytest.approx(rounds - 1)


@pytest.mark.parametrize(("chunks", "threads"), [(1, 1), (1, 4), (3, 2), (7, 4)])
def test_few_chunks_are_measured_from_the_start(chunks: int, threads: int) -> None:
    throughput = Throughput()
    for number in range(chunks):
        throughput.add_at(number + 1.0, 10)
    assert steady_span(throughput.samples, at_once=threads) == (10.0 * chunks, float(chunks))


def test_the_probe_takes_chunks_of_the_job_from_all_over_the_input(tmp_path: Path, model: TinyModel) -> None:
    (tmp_path / "users").mkdir()
    for name, rows, group in (("a", 1_300, 300), ("b", 0, 10), ("c", 2_000, 2_000), ("d", 40, 7)):
        pq.write_table(
            random_users(model, np.random.default_rng(1), rows),
            tmp_path / "users" / f"{name}.parquet",
            row_group_size=group,
        )
    opened = open_users(tmp_path / "users", COLUMNS)
    parts = plan_parts(opened, 1_000)
    cut = ChunkPlan(threads=1, rows=90, ids=600, waiting=1, writers=1, writing=1, peak=0)

    def places(wanted: list[UserPart]) -> list[tuple[str, int | None, int, int]]:
        return [
            (chunk.name, chunk.row_group, chunk.first_row, chunk.rows.num_rows)
            for chunk in read_chunks(opened, wanted, chunk_rows=cut.rows, chunk_ids=cut.ids)
        ]

    of_job = places(parts)
    for count in (1, 4, 13, 10_000):
        chosen = probe._choose(opened, parts, cut, most_rows=1, least=count)
        found = places(chosen)
        assert len(chosen) == len(found) == min(count, len(of_job)) and set(found) <= set(of_job)
        assert found == [place for place in of_job if place in found]  # in the order of the rows
        distances = np.diff([of_job.index(place) for place in found])
        assert count == 1 or distances.max() - distances.min() <= 1
    assert len(probe._choose(opened, parts, cut, most_rows=3_340, least=1)) == len(of_job)
    assert len(probe._choose(opened, parts, cut, most_rows=1_670, least=1)) == len(of_job) // 2


def test_few_large_row_groups_are_read(tmp_path: Path, model: TinyModel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probe, "_MOST_READ_ROWS", 1_000)
    pq.write_table(random_users(model, np.random.default_rng(1), 4_000), tmp_path / "u.parquet", row_group_size=500)
    opened = open_users(tmp_path / "u.parquet", COLUMNS)
    cut = ChunkPlan(threads=1, rows=50, ids=10**6, waiting=1, writers=1, writing=1, peak=0)
    chosen = probe._choose(opened, plan_parts(opened), cut, most_rows=1, least=10)
    assert len(chosen) == 10 and {part.first_row // 500 for part in chosen} == {2, 6}


def test_nobody_takes_no_time(tmp_path: Path, model: TinyModel) -> None:
    nobody = pa.table({"user_id": pa.array([], pa.int64()), "item_history": pa.array([], pa.list_(pa.int64()))})
    pq.write_table(nobody, tmp_path / "u.parquet")
    planned = plan(model.path, tmp_path / "u.parquet", workers=3)
    assert planned.rows == 0 and planned.probe is None and planned.here.loop_s == 0.0
    assert planned.cluster is not None and planned.cluster.workers == 3
    done = score(model.path, tmp_path / "u.parquet", tmp_path / "o", plan=written(planned, tmp_path / "p"))
    assert done.plan is not None and done.plan.output_bytes.planned == 0


@pytest.mark.parametrize("num_users", [1, 2, 300])
def test_few_users_are_all_probed(tmp_path: Path, model: TinyModel, num_users: int) -> None:
    pq.write_table(random_users(model, np.random.default_rng(1), num_users), tmp_path / "u.parquet")
    planned = plan(model.path, tmp_path / "u.parquet", top_k=3, threads=2, part_rows=1)
    assert planned.probe is not None and planned.here.loop_s > 0
    done = score(
        model.path, tmp_path / "u.parquet", tmp_path / "o", top_k=3, threads=2, part_rows=1,
        plan=written(planned, tmp_path / "p"),
    )  # fmt: skip
    assert done.plan is not None and abs(done.plan.output_bytes.percent) < 2


def parts_probe(users_per_s: float, threads: int = 1) -> Probe:
    chunks = ChunkPlan(threads, rows=100, ids=10**6, waiting=1, writers=1, writing=1, peak=0)
    return Probe(
        users=int(users_per_s), seconds=1.0, chunk_rows=100, chunks=chunks, part_chunk_rows=10, first_s=0.25, held=1,
        peak=2, memory=3, row_bytes=10.0, part_bytes=3.0, gather_s=0.001, hash_s=0.0,
    )  # fmt: skip


@pytest.mark.parametrize(("threads", "loop_s"), [(1, 10.5), (2, 11.0), (4, 12.0)])
def test_threads_wait_for_half_a_chunk_at_the_end(threads: int, loop_s: float) -> None:
    """100 users a second in all, so a chunk of 100 takes its thread so many seconds as there are threads."""
    found = planning._here(parts_probe(100.0, threads), [UserPart(0, 0, 1_050)], 2.0, as_folder=False)
    assert found.loop_s == pytest.approx(loop_s)
    assert (found.start_s, found.users_per_s) == (2.25, 100.0)


@pytest.mark.parametrize(("workers", "loop_s"), [(1, 10.5), (2, 6.0), (3, 4.5), (5, 3.0), (50, 3.0)])
def test_workers_take_the_next_batch_when_they_are_free(workers: int, loop_s: float) -> None:
    parts = [UserPart(0, 0, rows) for rows in (300, 300, 150, 300)]
    found = planning._cluster(parts_probe(100.0), parts, 1.0, 2.0, as_folder=True, workers=workers)
    assert (found.loop_s, found.finish_s) == (loop_s, 0.0)
    assert found.start_s == planning._RAY_START_S + planning._RAY_S + 1.0 + 2.0 + 0.25
    slow = planning._cluster(parts_probe(100.0), parts, 60.0, 2.0, as_folder=True, workers=workers)
    assert slow.start_s == 60.0 + planning._RAY_S + 60.0 + 2.0 + 0.25  # Ray has started long before
    assert found.output_bytes == 10 * 1050 + 3 * 4
    one_file = planning._cluster(parts_probe(100.0), parts, 1.0, 2.0, as_folder=False, workers=workers)
    assert one_file.finish_s == pytest.approx(1.05) and one_file.output_bytes == 10 * 1050 + 3


def test_what_score_would_refuse_is_refused(tmp_path: Path, model: TinyModel, users: Path) -> None:
    bad = pa.table({"user_id": [1, 2], "item_history": pa.array([[1], None], pa.list_(pa.int64()))})
    (tmp_path / "users" / "status=x").mkdir(parents=True)
    pq.write_table(bad, tmp_path / "users" / "status=x" / "u.parquet")
    with pytest.raises(DataError, match=r"row 1: item_history is null"):
        plan(model.path, tmp_path / "users")
    assert plan(model.path, tmp_path / "users", bad_rows="divert").rows == 2
    with pytest.raises(DataError, match="status is a column of the candidates"):
        plan(model.path, tmp_path / "users", bad_rows="divert", as_folder=True)
    with pytest.raises(DataError, match="the job needs at least"):
        plan(model.path, users, max_memory=10**6)
    with pytest.raises(ValueError, match="workers is 0"):
        plan(model.path, users, workers=0)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"top_k": 4}, r"its options\.top_k is 5, asked for is 4"),
        ({"threads": 1}, "its threads is 2, asked for is 1"),
        ({"max_memory": 10**10}, "its max_memory is null, asked for is 10000000000"),
        ({"catalog_shards": 2}, "its catalog_shards is 1, asked for is 2"),
        ({"part_rows": 9}, "its part_rows is 8192, asked for is 9"),
        ({"output": "o/"}, 'its output is "file", asked for is "folder"'),
        ({"source": "other"}, r"its input\[0\]\.rows is 4000, asked for is 10"),
        ({"model": "other"}, "its model_sha256 is"),
        ({"index_cache": "cache"}, "its index_cache is false, asked for is true"),
    ],
)
def test_a_plan_of_another_job_is_refused_with_the_first_difference(
    tmp_path: Path, model: TinyModel, users: Path, changes: dict[str, Any], message: str
) -> None:
    path = written(plan(model.path, users, top_k=5, threads=2), tmp_path / "plan.json")
    pq.write_table(random_users(model, np.random.default_rng(1), 10), tmp_path / "users.parquet")
    other = {"source": tmp_path / "users.parquet", "model": write_model_file(tmp_path / "m.onnx", seed=3).path}
    changes = {name: other[name] if value == "other" else value for name, value in changes.items()}
    job: dict[str, Any] = {"model": model.path, "source": users, "top_k": 5, "threads": 2, "output": "o", **changes}
    job["output"] = f"{tmp_path}/{job['output']}"
    with pytest.raises(DataError, match=rf"plan {path}: it is of another job: {message}.*; plan this one"):
        score(**job, plan=path)
    assert not (tmp_path / "o").exists()


@pytest.mark.parametrize("content", ["", "{", "[]", "{}", '{"format_version": 2}', '{"format_version": 1, "job": {}}'])
def test_a_file_that_is_no_plan_is_one_line(tmp_path: Path, model: TinyModel, users: Path, content: str) -> None:
    (tmp_path / "plan.json").write_text(content)
    with pytest.raises(DataError, match=r"plan\.json: cannot be read \(.*\); make it with `ipsrec plan --output`"):
        score(model.path, users, tmp_path / "o", plan=tmp_path / "plan.json")
    with pytest.raises(DataError, match="none: cannot be read"):
        read_plan(tmp_path / "none")


def test_a_plan_is_of_one_number_of_workers(tmp_path: Path, model: TinyModel, users: Path) -> None:
    planned = read_plan(written(plan(model.path, users, workers=2), tmp_path / "p"))
    assert prediction_for(planned, planned["job"], workers=None, path="p") == planned["here"]
    assert prediction_for(planned, planned["job"], workers=2, path="p") == planned["cluster"]
    with pytest.raises(
        DataError, match="plan p: it is of 2 workers, and 3 are to do the job; make it with --workers 3"
    ):
        prediction_for(planned, planned["job"], workers=3, path="p")
    with pytest.raises(DataError, match="it is of no workers, and 1 are to do the job"):
        prediction_for({**planned, "cluster": None}, planned["job"], workers=1, path="p")
    check = check_plan(planned["cluster"], wall_s=1e-9, memory_bytes=None, output_bytes=0)
    assert check.memory_bytes is None and check.output_bytes.percent == 0.0 and check.wall_s.percent > 100


def test_a_job_that_goes_on_has_nothing_to_compare(
    tmp_path: Path, model: TinyModel, users: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = written(plan(model.path, users, top_k=5), tmp_path / "plan.json")
    assert score(model.path, users, tmp_path / "o", top_k=5, plan=path).plan is not None
    assert score(model.path, users, tmp_path / "o", top_k=5, plan=path, resume=True).plan is None


def test_the_commands_say_what_is_planned_and_how_wrong_it_was(tmp_path: Path, model: TinyModel, users: Path) -> None:
    same = ["--model", str(model.path), "--input", str(users), "--top-k", "5", "--threads", "2"]
    path = str(tmp_path / "plan.json")
    runner = CliRunner()
    said = runner.invoke(plan_command, [*same, "--workers", "2", "--output", path], catch_exceptions=False).output
    for words in ("4,000 users, 2 threads", "start-up", "finishing", "2 workers, each", "this machine", "probed "):
        assert words in said
    assert json.loads(Path(path).read_text())["rows"] == 4_000
    with pytest.raises(DataError, match="exists already"):
        runner.invoke(plan_command, [*same, "--output", path], catch_exceptions=False)
    as_json = runner.invoke(plan_command, [*same, "--json", "--output", path, "--overwrite"], catch_exceptions=False)
    assert json.loads(as_json.output) == json.loads(Path(path).read_text())
    page = str(tmp_path / "page.html")
    job = [*same, "--output", str(tmp_path / "o"), "--quiet", "--plan", path, "--report", page]
    said = runner.invoke(score_command, job, catch_exceptions=False).output
    for words in ("time: ", "memory: ", "output: ", " planned ", "%)"):
        assert words in said
    assert "its plan" in Path(page).read_text() and "; output " in Path(page).read_text()


def test_a_plan_can_be_made_again_from_its_json(tmp_path: Path, model: TinyModel, users: Path) -> None:
    planned = plan(model.path, users, top_k=5, threads=1)
    assert read_plan(written(planned, tmp_path / "p")) == json.loads(json.dumps(planned.to_json()))
    assert planned.here.wall_s == planned.here.start_s + planned.here.loop_s + planned.here.finish_s
    slower = replace(planned.here, loop_s=planned.here.loop_s + 1)
    assert slower.to_json()["wall_s"] == pytest.approx(planned.here.wall_s + 1)


@pytest.mark.ray
@pytest.mark.slow
def test_a_cluster_says_how_wrong_its_plan_was(tmp_path: Path, model: TinyModel, users: Path) -> None:
    options: dict[str, Any] = {"top_k": 5, "threads": 1, "part_rows": 1_000, "workers": 2}
    path = written(plan(model.path, users, as_folder=True, **options), tmp_path / "plan.json")
    done = score(model.path, users, f"{tmp_path}/o/", plan=path, engine="ray", **options)
    assert done.plan is not None and done.plan.memory_bytes is None
    assert done.plan.wall_s.planned == json.loads(path.read_text())["cluster"]["wall_s"]
    assert abs(done.plan.output_bytes.percent) < 5


def test_kernels_that_are_compiled_are_no_start_up(tmp_path: Path, model: TinyModel, users: Path) -> None:
    script = (
        "import json, sys, time\nfrom ipsrec_onnx.planning import plan\n"
        "started = time.perf_counter()\nfound = plan(*sys.argv[1:], top_k=5, threads=1).to_json()\n"
        "print(json.dumps([found['compiled'], found['here']['start_s'], time.perf_counter() - started]))\n"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    environment["NUMBA_CACHE_DIR"] = str(tmp_path / "cache")
    said = []
    for _ in range(2):
        command = [sys.executable, "-c", script, str(model.path), str(users)]
        run = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        assert run.returncode == 0, run.stderr
        said.append(json.loads(run.stdout))
    (first, first_s, first_all_s), (second, _, second_all_s) = said
    assert (first, second) == (True, False)
    assert first_s < 0.5 * (first_all_s - second_all_s)  # which is what compiling took
