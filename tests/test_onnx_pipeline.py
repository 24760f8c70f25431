"""Worker threads: order, bounds, and what an exception leaves behind."""

from __future__ import annotations

import contextlib
import itertools
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from model_files import write_model_file
from test_onnx_scoring import random_users

from ipsrec_onnx import score_run
from ipsrec_onnx.pipeline import map_in_order
from ipsrec_onnx.progress import JobLog
from ipsrec_onnx.score_run import score_named_chunk
from ipsrec_onnx.scored_chunk import ScoredChunk, ScoreRules
from ipsrec_onnx.scoring import score
from ipsrec_onnx.user_chunks import UserChunk


@pytest.mark.parametrize("threads", [1, 4])
def test_results_come_in_the_order_of_the_chunks(threads: int) -> None:
    def slow_at_first(number: int) -> int:
        time.sleep(0.002 * (number % 3))
        return number

    assert list(map_in_order(slow_at_first, range(50), threads=threads)) == list(range(50))


def test_only_a_few_chunks_are_in_flight() -> None:
    read = taken = most = 0

    def chunks() -> Iterator[int]:
        nonlocal read, most
        for number in range(200):
            read += 1
            most = max(most, read - taken)
            yield number

    for _ in map_in_order(lambda number: number, chunks(), threads=2):
        taken += 1
    assert most <= 6


@pytest.mark.parametrize("threads", [1, 8])
@pytest.mark.parametrize("failing_chunk", [0, 1, 2])
def test_a_chunk_that_fails_comes_before_a_reader_that_fails_after_it(threads: int, failing_chunk: int) -> None:
    def work(number: int) -> int:
        time.sleep(0.005)  # so that the reader fails first by the clock
        if number == failing_chunk:
            raise RuntimeError(f"chunk {number}")
        return number

    def chunks() -> Iterator[int]:
        yield from range(3)
        raise OSError("reader")

    taken: list[int] = []
    with pytest.raises(RuntimeError, match=f"chunk {failing_chunk}"):
        taken.extend(map_in_order(work, chunks(), threads=threads))
    assert taken == list(range(failing_chunk))


@pytest.mark.parametrize("threads", [1, 8])
def test_a_reader_that_fails_is_heard_after_the_chunks_before_it(threads: int) -> None:
    def chunks() -> Iterator[int]:
        yield from range(3)
        raise OSError("reader")

    taken: list[int] = []
    with pytest.raises(OSError, match="reader"):
        taken.extend(map_in_order(lambda number: number, chunks(), threads=threads))
    assert taken == [0, 1, 2]


@pytest.mark.parametrize("where", ["worker", "reader", "taker"])
def test_the_first_exception_ends_every_thread(where: str) -> None:
    started: list[int] = []

    def work(number: int) -> int:
        started.append(number)
        if where == "worker" and number == 5:
            raise RuntimeError("worker")
        time.sleep(0.001)
        return number

    def chunks() -> Iterator[int]:
        for number in range(1000):
            if where == "reader" and number == 5:
                raise RuntimeError("reader")
            yield number

    results = map_in_order(work, chunks(), threads=3)
    with pytest.raises(RuntimeError, match=where):
        try:
            for number in results:
                if where == "taker" and number == 5:
                    raise RuntimeError("taker")
        finally:
            results.close()
    assert len(started) < 20
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("ipsrec")]


@pytest.mark.parametrize("stop", [SystemExit(143), KeyboardInterrupt()], ids=["terminated", "interrupted"])
def test_a_stop_while_a_job_counts_waits_for_no_chunk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stop: BaseException
) -> None:
    """A signal may come at any line of the caller's thread: here between two results, where no generator is at work."""
    model = write_model_file(tmp_path / "model.onnx")
    pq.write_table(random_users(model, np.random.default_rng(3), 900), tmp_path / "users.parquet")
    numbers, go_on = itertools.count(), threading.Event()

    def busy(chunk: UserChunk, rules: ScoreRules) -> ScoredChunk:
        if next(numbers):
            go_on.wait()
        return score_named_chunk(chunk, rules)

    @contextlib.contextmanager
    def stopping(*args: Any, **options: Any) -> Iterator[Callable[[int], None]]:
        def advance(users: int) -> None:
            raise stop

        yield advance

    monkeypatch.setattr(score_run, "CHUNK_ROWS", 128)
    monkeypatch.setattr(score_run, "score_named_chunk", busy)
    monkeypatch.setattr(JobLog, "progress", stopping)
    last = threading.Timer(30.0, go_on.set)  # a stop that waits for the chunks fails, and does not hang
    last.start()
    try:
        with pytest.raises(type(stop)):
            score(model.path, tmp_path / "users.parquet", tmp_path / "o.parquet", threads=2)
        assert not go_on.is_set()
    finally:
        last.cancel()
        go_on.set()
