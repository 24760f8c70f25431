"""Several threads write the parts of a job: the same bytes, bounded memory, and the first error decides."""

from __future__ import annotations

import contextlib
import threading
import time
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import crashes
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from model_files import TinyModel, write_model_file
from test_onnx_scoring import random_users

from ipsrec_onnx import memory_plan, score_outputs, score_run, user_parts
from ipsrec_onnx.errors import DataError, DefectError
from ipsrec_onnx.lanes import THREAD_NAME
from ipsrec_onnx.memory_plan import ChunkPlan, plan_chunks
from ipsrec_onnx.part_files import open_part
from ipsrec_onnx.row_writer import RowWriter
from ipsrec_onnx.score_report import ScoreReport
from ipsrec_onnx.scored_chunk import ScoredChunk, score_chunk
from ipsrec_onnx.scoring import score

NUM_USERS = 2_300


@pytest.fixture
def job(tmp_path: Path, rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """2,300 users in two files, in seven parts of 400 at most and chunks of 100; some rows are malformed."""
    monkeypatch.setattr(user_parts, "PART_ROWS", 400)
    monkeypatch.setattr("ipsrec_onnx.score_run.CHUNK_ROWS", 100)
    model: TinyModel = write_model_file(tmp_path / "model.onnx", num_items=300)
    users = random_users(model, rng, NUM_USERS)
    nobody = pa.array(np.arange(NUM_USERS) % 97 == 5)
    history = pa.compute.if_else(nobody, None, users["item_history"])
    users = users.set_column(users.schema.get_field_index("item_history"), "item_history", history)
    (tmp_path / "users").mkdir()
    pq.write_table(users.slice(0, 1_350), tmp_path / "users" / "a.parquet", row_group_size=370)
    pq.write_table(users.slice(1_350), tmp_path / "users" / "b.parquet", row_group_size=130)
    return {"model": model.path, "source": tmp_path / "users", "top_k": 20, "bad_rows": "divert", "threads": 2}


def run(job: dict[str, Any], output: str, writers: int, monkeypatch: pytest.MonkeyPatch, **more: Any) -> ScoreReport:
    Path(output).parent.mkdir(exist_ok=True)
    monkeypatch.setattr(memory_plan, "num_writers", lambda threads: writers)
    return score(**job, output=output, **more)


@pytest.mark.parametrize("name", ["o.parquet", "o/"])
@pytest.mark.parametrize("layout", ["list", "long"])
def test_the_bytes_and_the_account_do_not_depend_on_the_writers(
    job: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, layout: str
) -> None:
    done, files = {}, {}
    for writers in (1, 2, 4):
        report = run(job, f"{tmp_path}/{writers}/{name}", writers, monkeypatch, layout=layout)
        done[writers], files[writers] = report.counts, crashes.everything(tmp_path / str(writers))
        assert report.cpu_s["write"] > 0 and report.resumed_rows == 0
    assert done[1].rows_in == NUM_USERS and done[1].rows_diverted > 0
    assert done[1] == done[2] == done[4]
    assert files[1] == files[2] == files[4]
    assert len(files[1]) == (9 if name == "o/" else 3)
    assert not any(thread.name.startswith(THREAD_NAME) for thread in threading.enumerate())


@pytest.mark.parametrize("name", ["o.parquet", "o/"])
@pytest.mark.parametrize("writers", [1, 4])
def test_any_set_of_finished_parts_is_taken_over(
    job: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, writers: int
) -> None:
    run(job, f"{tmp_path}/whole/{name}", 1, monkeypatch)
    with monkeypatch.context() as broken:
        broken.setattr(
            "ipsrec_onnx.job_folder.LocalJobFolder.commit", lambda *_, **__: 1 / 0
        )  # all parts are done by then
        with pytest.raises(ZeroDivisionError):
            run(job, f"{tmp_path}/o/{name}", 1, monkeypatch)
    parts = sorted((tmp_path / "o").glob(".*.job/parts/*.parquet"))
    assert len(parts) == 7
    for number in (0, 3, 4):
        parts[number].unlink()
    report = run(job, f"{tmp_path}/o/{name}", writers, monkeypatch, resume=True)
    assert report.resumed_rows == NUM_USERS - 400 - 150 - 400
    assert crashes.everything(tmp_path / "o") == crashes.everything(tmp_path / "whole")


@contextlib.contextmanager
def failing_writers(errors: dict[str, tuple[float, Exception]], monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """While the block runs, writing rows to files of these names takes so long and fails so."""

    @contextlib.contextmanager
    def opened(path: Path, schema: pa.Schema, *, group_rows: int) -> Iterator[RowWriter]:
        with open_part(path, schema, group_rows=group_rows) as writer:
            if path.name in errors and path.parent.name != "bad_rows":
                seconds, error = errors[path.name]

                def write(rows: pa.Table) -> None:
                    time.sleep(seconds)
                    raise error

                monkeypatch.setattr(writer, "write", write)
            yield writer

    with monkeypatch.context() as patched:
        patched.setattr(score_outputs, "open_part", opened)
        yield


def part(file: int, first_row: int) -> str:
    return f"part-{file:05d}-{first_row:012d}.parquet"


@pytest.mark.parametrize("name", ["o.parquet", "o/"])
@pytest.mark.parametrize("writers", [1, 2, 4])
def test_of_several_errors_the_first_in_the_order_of_the_rows_decides(
    job: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, writers: int
) -> None:
    run(job, f"{tmp_path}/whole/{name}", 1, monkeypatch)
    errors = {part(0, 400): (0.3, OSError(28, "first")), part(0, 800): (0.0, OSError(27, "second"))}
    with (
        failing_writers(errors, monkeypatch),
        pytest.raises(DataError, match=r"output \S+/o(\.parquet)?: no space is left; make room, or choose another"),
    ):
        run(job, f"{tmp_path}/o/{name}", writers, monkeypatch)
    left = crashes.everything(tmp_path / "o")
    assert all(file.startswith(".") and not file.endswith(".tmp") for file in left)
    done = {file.rsplit("/", 1)[1] for file in left if "/parts/" in file}
    assert part(0, 0) in done and not done & errors.keys()
    assert not any(thread.name.startswith("ipsrec") for thread in threading.enumerate())
    run(job, f"{tmp_path}/o/{name}", writers, monkeypatch, resume=True)
    assert crashes.everything(tmp_path / "o") == crashes.everything(tmp_path / "whole")


@pytest.mark.parametrize("writers", [1, 4])
def test_an_exception_in_a_writer_names_the_file(
    job: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, writers: int
) -> None:
    errors: dict[str, tuple[float, Exception]] = {part(1, 0): (0.0, RuntimeError("of the test"))}
    with (
        failing_writers(errors, monkeypatch),
        pytest.raises(DefectError, match=rf"output \S+/parts/{part(1, 0)}: RuntimeError: of the test; this is a"),
    ):
        run(job, f"{tmp_path}/o/", writers, monkeypatch)


@pytest.mark.parametrize("writers", [1, 4])
def test_a_malformed_row_is_heard_after_the_parts_before_it_are_done(
    job: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, writers: int
) -> None:
    rows = pa.table({"user_id": range(1_500), "item_history": pa.array([[1]] * 1_450 + [None] * 50)})
    pq.write_table(rows, tmp_path / "bad.parquet")
    write = RowWriter.write

    def slow(writer: RowWriter, rows: pa.Table) -> None:
        time.sleep(0.02)
        write(writer, rows)

    monkeypatch.setattr(RowWriter, "write", slow)
    job |= {"source": tmp_path / "bad.parquet", "bad_rows": "error"}
    with pytest.raises(DataError, match=r"row 1450.*item_history is null"):
        run(job, f"{tmp_path}/o/", writers, monkeypatch)
    assert len(list(tmp_path.glob(".*.job/parts/*.parquet"))) == 3


@pytest.mark.parametrize("name", ["o.parquet", "o/"])
@pytest.mark.parametrize("writers", [1, 2, 4])
def test_chunks_in_flight_are_as_many_as_the_plan_says(
    job: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, writers: int
) -> None:
    live = most = 0
    lock, go_on = threading.Lock(), threading.Event()
    plans: list[ChunkPlan] = []
    write = RowWriter.write

    def gone() -> None:
        nonlocal live
        with lock:
            live -= 1

    def counted(*arguments: Any) -> ScoredChunk:
        nonlocal live, most
        scored = score_chunk(*arguments)
        with lock:
            live += 1
            most = max(most, live)
        weakref.finalize(scored, gone)
        return scored

    def stuck(writer: RowWriter, rows: pa.Table) -> None:
        go_on.wait(1.5)  # meanwhile, all that may pile up does
        go_on.set()
        write(writer, rows)

    def noted(*positional: Any, **named: Any) -> ChunkPlan:
        plans.append(plan_chunks(*positional, **named))
        return plans[-1]

    monkeypatch.setattr(score_run, "_LEAST_CHUNK_ROWS", 100)
    monkeypatch.setattr(score_run, "_CHUNKS_PER_THREAD", 1)
    monkeypatch.setattr(score_run, "score_chunk", counted)
    monkeypatch.setattr(score_run, "plan_chunks", noted)
    monkeypatch.setattr(RowWriter, "write", stuck)
    run(job, f"{tmp_path}/o/{name}", writers, monkeypatch)
    (plan,) = plans
    assert (plan.rows, plan.writers, plan.writing) == (100, writers, writers + 2 * (writers - 1))
    assert plan.waiting < most <= plan.waiting + plan.writing
    assert live == 0
