"""Lanes: threads that each do their tasks in order, side by side, with a bounded number of steps in flight."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Generator, Iterable, Iterator
from dataclasses import dataclass, field
from queue import Empty, SimpleQueue
from typing import Any, Generic, TypeVar

from ipsrec_onnx.worker_threads import Outcome, WorkerThreads, outcome_of

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


@dataclass(eq=False)
class _Running(Generic[Label, Result]):
    """A step whose tasks the lanes have; it does not hold them, so that what is written is let go.

    Attributes:
        label: of the step.
        tasks: how many it has.
        outcomes: of those that are done, by their place in it.
    """

    label: Label
    tasks: int
    outcomes: dict[int, Outcome[Result]] = field(default_factory=dict)

    def done(self) -> bool:
        return len(self.outcomes) == self.tasks

    def failed(self) -> bool:
        return any(outcome.error is not None for outcome in self.outcomes.values())

    def results(self) -> list[Result]:
        """Of all tasks, or the error of the first that has failed."""
        return [self.outcomes[place].result() for place in range(self.tasks)]


class _Steps(Generic[Label, Result]):
    """Steps in flight, in order; what the lanes have done is looked at in the caller's thread alone."""

    def __init__(self) -> None:
        self.running: list[_Running[Label, Result]] = []
        self._done: SimpleQueue[tuple[_Running[Label, Result], int, Outcome[Result]]] = SimpleQueue()

    def begin(self, step: Step[Label, Result], threads: list[WorkerThreads]) -> None:
        """Give the tasks of a step to their lanes."""
        running: _Running[Label, Result] = _Running(step.label, len(step.tasks))
        self.running.append(running)
        for place, (lane, task) in enumerate(step.tasks):
            threads[lane].call(functools.partial(self._do, running, place, task))

    def finished(self, *, most: int) -> Iterator[tuple[Label, list[Result]]]:
        """Take out what is done until no more than `most` are left; once one failed, in order up to the first such."""
        while True:
            with contextlib.suppress(Empty):
                while True:
                    self._note(*self._done.get_nowait())
            in_order = any(step.failed() for step in self.running)
            for step in list(self.running):
                while in_order and not step.done():
                    self._note(*self._done.get())
                if step.done():
                    results = step.results()  # a step that has failed stays, for it comes first whoever asks again
                    self.running.remove(step)
                    yield step.label, results
            if len(self.running) <= most:
                return
            self._note(*self._done.get())

    def _do(self, running: _Running[Label, Result], place: int, task: Callable[[], Result]) -> None:
        self._done.put((running, place, outcome_of(task)))

    @staticmethod
    def _note(running: _Running[Label, Result], place: int, outcome: Outcome[Any]) -> None:
        running.outcomes[place] = outcome


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
    threads = [WorkerThreads(1, name=THREAD_NAME) for _ in range(lanes)]
    in_flight: _Steps[Label, Result] = _Steps()
    try:
        try:
            for step in steps:
                in_flight.begin(step, threads)
                del step  # it would hold its tasks while the next step is waited for
                yield from in_flight.finished(most=most - 1)
        except Exception:
            yield from in_flight.finished(most=0)  # where one of them fails, it comes before what brought us here
            raise
        yield from in_flight.finished(most=0)
    finally:
        for thread in threads:
            thread.stop()
        for thread in threads:
            thread.join()
