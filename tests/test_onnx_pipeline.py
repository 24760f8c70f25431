"""Worker threads: order, bounds, and what an exception leaves behind."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator

import pytest

from ipsrec_onnx.pipeline import map_in_order


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
