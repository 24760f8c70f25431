"""Lanes: threads that each do their tasks in order, side by side, with a bounded number of steps in flight."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from typing import Generic, TypeVar

Label = TypeVar("Label")
Result = TypeVar("Result")

THREAD_NAME = "ipsrec-writer"


@dataclass(frozen=True, eq=False)
class Step(Generic[Label, Result]):
    """Tasks that are done when all of them are.

    Attributes:
        label: what the caller knows the step by.
        tasks: (number of a lane, what to call there); a lane calls its tasks in the order in which they come.
    """

    label: Label
    tasks: list[tuple[int, Callable[[], Result]]]


@dataclass(frozen=True, eq=False)
class _Running(Generic[Label, Result]):
    """A step whose tasks the lanes have; it does not hold them, so that what is written is let go."""

    label: Label
    results: list[Future[Result]]

    def done(self) -> bool:
        return all(result.done() for result in self.results)

    def failed(self) -> bool:
        return any(result.done() and result.exception() is not None for result in self.results)


def do_steps(
    steps: Iterable[Step[Label, Result]], *, lanes: int, most: int
) -> Generator[tuple[Label, list[Result]], None, None]:
    """Do steps in threads and give each when it is done, be it before those that came earlier.

    Args:
        steps: taken in the caller's thread, one by one, each when fewer than `most` are in flight.
        lanes: threads, 1 or more.
        most: steps in flight, 1 or more.

    Yields:
        label: of a step.
        results: of its tasks.

    Raises:
        Exception: the first one, in the order of the steps, that taking or doing them raised; all steps before it are
            done by then. Tasks that have not begun are dropped, and every thread has ended when an exception arrives,
            KeyboardInterrupt and SystemExit among them.
    """
    threads = [ThreadPoolExecutor(1, thread_name_prefix=THREAD_NAME) for _ in range(lanes)]
    running: list[_Running[Label, Result]] = []
    try:
        try:
            for step in steps:
                running.append(_Running(step.label, [threads[lane].submit(task) for lane, task in step.tasks]))
                del step  # it would hold its tasks while the next step is waited for
                yield from _finished(running, most=most - 1)
        except Exception:
            yield from _finished(running, most=0)  # where one of them fails, it comes before what brought us here
            raise
        yield from _finished(running, most=0)
    finally:
        for thread in threads:
            thread.shutdown(wait=False, cancel_futures=True)
        for thread in threads:
            thread.shutdown()


def _finished(running: list[_Running[Label, Result]], *, most: int) -> Iterator[tuple[Label, list[Result]]]:
    """Take out what is done until no more than `most` are left; once one has failed, in order up to the first such."""
    while True:
        in_order = any(step.failed() for step in running)
        for step in list(running):
            if in_order or step.done():
                results = [result.result() for result in step.results]
                running.remove(step)
                yield step.label, results
        if len(running) <= most:
            return
        wait([result for step in running for result in step.results if not result.done()], return_when=FIRST_COMPLETED)
