"""Lanes: order within each, bounds, which exception decides, and what an exception leaves behind."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator

import pytest

from ipsrec_onnx.lanes import THREAD_NAME, Step, do_steps


def do(number: int) -> Callable[[], int]:
    return lambda: number


def fail(error: Exception, after_s: float = 0.0) -> Callable[[], int]:
    def task() -> int:
        time.sleep(after_s)
        raise error

    return task


def no_thread_is_left() -> bool:
    return not [thread for thread in threading.enumerate() if thread.name.startswith(THREAD_NAME)]


@pytest.mark.parametrize(("lanes", "most"), [(1, 1), (1, 5), (3, 1), (3, 9)])
def test_each_lane_does_its_tasks_in_order_and_every_step_is_given_once(lanes: int, most: int) -> None:
    done: list[list[int]] = [[] for _ in range(lanes)]

    def note(lane: int, number: int) -> int:
        time.sleep(0.001 * (number % 3))
        done[lane].append(number)
        return number

    def steps() -> Iterator[Step[int, int]]:
        for number in range(40):
            both = {number % lanes, (number + 1) % lanes}
            yield Step(number, [(lane, lambda lane=lane, number=number: note(lane, number)) for lane in both])

    given = dict(do_steps(steps(), lanes=lanes, most=most))
    assert sorted(given) == list(range(40)) and all(set(given[number]) == {number} for number in given)
    assert all(numbers == sorted(numbers) for numbers in done)
    assert sum(map(len, done)) == sum(map(len, given.values()))
    assert no_thread_is_left()


def test_no_steps_are_done_at_once() -> None:
    assert list(do_steps(iter(()), lanes=2, most=1)) == []


@pytest.mark.parametrize(("lanes", "most"), [(1, 1), (2, 3), (4, 9)])
def test_a_step_is_taken_only_when_fewer_than_most_are_in_flight(lanes: int, most: int) -> None:
    taken = given = 0
    seen: list[int] = []

    def steps() -> Iterator[Step[int, None]]:
        nonlocal taken
        for number in range(60):
            taken += 1
            seen.append(taken - given)
            yield Step(number, [(number % lanes, lambda: time.sleep(0.001))])

    for _ in do_steps(steps(), lanes=lanes, most=most):
        given += 1
    assert max(seen) == most


def test_a_step_is_given_when_it_is_done_though_an_earlier_one_is_not() -> None:
    go_on = threading.Event()
    steps = [Step("slow", [(0, lambda: go_on.wait(60))]), Step("fast", [(1, lambda: True)])]
    given = do_steps(steps, lanes=2, most=3)
    assert next(given)[0] == "fast"
    go_on.set()
    assert [label for label, _ in given] == ["slow"]


def test_of_several_exceptions_the_first_in_the_order_of_the_steps_decides() -> None:
    steps = [
        Step(0, [(0, do(0))]),
        Step(1, [(0, fail(OSError("first"), after_s=0.1))]),
        Step(2, [(1, fail(OSError("second")))]),
        Step(3, [(1, do(3))]),
    ]
    given: list[int] = []
    with pytest.raises(OSError, match="first"):
        given.extend(label for label, _ in do_steps(steps, lanes=2, most=9))
    assert 0 in given and not {1, 2} & set(given)
    assert no_thread_is_left()


@pytest.mark.parametrize("fails", [True, False])
def test_a_failure_to_take_a_step_waits_for_the_steps_before_it(fails: bool) -> None:
    def steps() -> Iterator[Step[int, int]]:
        for number in range(3):
            yield Step(number, [(number, fail(OSError("writer"), after_s=0.05) if fails and number == 1 else do(0))])
        raise RuntimeError("reader")

    given: list[int] = []
    with pytest.raises(OSError if fails else RuntimeError, match="writer" if fails else "reader"):
        given.extend(label for label, _ in do_steps(steps(), lanes=3, most=9))
    assert set(given) >= ({0} if fails else {0, 1, 2})
    assert no_thread_is_left()


@pytest.mark.parametrize("stop", [KeyboardInterrupt, SystemExit])
def test_who_is_to_stop_does_not_wait_for_tasks_that_have_not_begun(stop: type[BaseException]) -> None:
    begun: list[int] = []

    def slow(number: int) -> None:
        begun.append(number)
        time.sleep(0.05)

    def steps() -> Iterator[Step[int, None]]:
        for number in range(8):
            yield Step(number, [(0, lambda number=number: slow(number))])
        raise stop

    with pytest.raises(stop):
        list(do_steps(steps(), lanes=1, most=9))
    assert len(begun) < 4
    assert no_thread_is_left()


def test_who_takes_no_more_ends_the_threads() -> None:
    given = do_steps((Step(number, [(number % 2, do(number))]) for number in range(1000)), lanes=2, most=5)
    next(given)
    given.close()
    assert no_thread_is_left()
