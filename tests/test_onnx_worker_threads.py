"""Worker threads whose caller is stopped, as by a signal, at each line in turn: none of them is left waiting."""

from __future__ import annotations

import gc
import sys
import threading
from collections.abc import Callable
from types import FrameType
from typing import Any

import pytest

from ipsrec_onnx.lanes import Step, do_steps
from ipsrec_onnx.pipeline import map_in_order
from ipsrec_onnx.worker_threads import WorkerThreads, in_background, outcome_of


def chunks_in_order() -> None:
    assert list(map_in_order(lambda number: number + 1, range(6), threads=2)) == [1, 2, 3, 4, 5, 6]


def steps_in_lanes() -> None:
    steps = [Step(number, [(number % 2, lambda: 1), (0, lambda: 2)]) for number in range(5)]
    assert len(list(do_steps(steps, lanes=2, most=2))) == 5


def stopped_at(line: int, work: Callable[[], None]) -> bool:
    """Do some work, and raise in this thread where its line-th line of ours would begin; gives whether it had so many.

    Lines of the standard library stay whole: a signal is handled only between some of them.
    """
    lines = 0

    def count(frame: FrameType, event: str, argument: Any) -> Any:
        nonlocal lines
        caller = frame.f_back
        in_del = "__del__" in (
            frame.f_code.co_name,
            caller.f_code.co_name if caller else "",
        )  # whose errors are dropped
        if in_del or "ipsrec_onnx" not in frame.f_code.co_filename:
            return None
        if event == "line":
            lines += 1
            if lines == line:
                raise KeyboardInterrupt
        return count

    before = sys.gettrace()
    sys.settrace(count)
    try:
        work()
    except KeyboardInterrupt:
        return True
    finally:
        sys.settrace(before)
    return False


@pytest.mark.parametrize("work", [chunks_in_order, steps_in_lanes])
def test_a_stop_at_any_line_leaves_no_thread_behind(work: Callable[[], None]) -> None:
    line = 1
    while stopped_at(line, work):
        gc.collect(0)  # of the frames that the stop went through
        for thread in threading.enumerate():
            if thread.name.startswith("ipsrec-w"):
                thread.join(10)
                assert not thread.is_alive(), f"stopped at line {line}, {thread.name} waits"
        line += 1
    assert line > 100


def test_calls_that_have_not_begun_are_dropped() -> None:
    made: list[int] = []
    begun, go_on = threading.Event(), threading.Event()

    def first() -> None:
        begun.set()
        go_on.wait(60)

    threads = WorkerThreads(1, name="ipsrec-test")
    threads.call(first)
    threads.call(lambda: made.append(2))
    assert begun.wait(60)
    threads.stop()
    go_on.set()
    threads.join()
    assert not made


@pytest.mark.parametrize("error", [ValueError("of the test"), KeyboardInterrupt()])
def test_an_outcome_is_a_result_or_an_error(error: BaseException) -> None:
    def fail() -> int:
        raise error

    assert outcome_of(lambda: None).result() is None
    with pytest.raises(type(error)) as raised:
        outcome_of(fail).result()
    assert raised.value is error


def test_a_call_in_the_background_gives_or_raises_what_it_did() -> None:
    begin = threading.Event()

    def called() -> str:
        begin.wait()
        return threading.current_thread().name

    waited = in_background(called, name="ipsrec-test")
    begin.set()
    assert waited() == "ipsrec-test"
    with pytest.raises(ZeroDivisionError):
        in_background(lambda: 1 // 0, name="ipsrec-test")()
