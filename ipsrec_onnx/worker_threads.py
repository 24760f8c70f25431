"""Threads that make calls, and may be left at any line of the caller's thread.

A signal's handler raises in the main thread, wherever that is. Locks that Python code takes, as those of
concurrent.futures, then stay taken for ever if that is between taking one and the block that gives it back, and the
threads that need it hang: one job in some hundred did. SimpleQueue is one call of C, which a signal finds before or
after.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable
from dataclasses import dataclass
from queue import Empty, SimpleQueue
from typing import Generic, TypeVar

Result = TypeVar("Result")

Call = Callable[[], None]


class WorkerThreads:
    """Threads that make the calls they are given, in the order in which they come.

    Args:
        count: threads at most; one begins with each call until there are so many.
        name: that their names begin with.
    """

    def __init__(self, count: int, *, name: str) -> None:
        self._count, self._name = count, name
        self._calls: SimpleQueue[Call | None] = SimpleQueue()
        self._threads: list[threading.Thread] = []

    def call(self, call: Call) -> None:
        """Have a thread make a call, which must not raise."""
        self._calls.put(call)
        if len(self._threads) < self._count:
            thread = threading.Thread(target=_work, args=(self._calls,), name=f"{self._name}-{len(self._threads)}")
            self._threads.append(thread)
            thread.start()

    def stop(self) -> None:
        """Drop the calls that have not begun, and have each thread end with the one that it has."""
        with contextlib.suppress(Empty):
            while True:
                self._calls.get_nowait()
        for _ in self._threads:
            self._calls.put(None)

    def join(self) -> None:
        """Wait until all threads have ended; stop comes before it."""
        for thread in self._threads:
            if thread.ident is not None:  # a signal may have come before it began
                thread.join()

    def __del__(self) -> None:
        """Stop the threads where a signal has broken off who was about to, or has left __init__ half done."""
        with contextlib.suppress(AttributeError):
            self.stop()


def _work(calls: SimpleQueue[Call | None]) -> None:
    while (call := calls.get()) is not None:
        call()
        del call  # what it holds may be large, and the next one may be long in coming


@dataclass(frozen=True)
class Outcome(Generic[Result]):
    """What a call came to: one of the two.

    Attributes:
        results: its result alone.
        error: that it raised.
    """

    results: tuple[Result, ...] = ()
    error: BaseException | None = None

    def result(self) -> Result:
        """The result.

        Raises:
            BaseException: the error.
        """
        if self.error is not None:
            raise self.error
        return self.results[0]


def outcome_of(function: Callable[[], Result]) -> Outcome[Result]:
    """Call a function and keep what it gives, or raises."""
    try:
        return Outcome((function(),))
    except BaseException as error:
        return Outcome(error=error)


def in_background(function: Callable[[], Result], *, name: str) -> Callable[[], Result]:
    """Call a function in a thread of its own, at once.

    Args:
        function: what to call.
        name: of the thread.

    Returns:
        Waits for the call, and gives or raises what it did; to be called once, or not at all.
    """
    place: SimpleQueue[Outcome[Result]] = SimpleQueue()
    threading.Thread(target=lambda: place.put(outcome_of(function)), name=name).start()
    return lambda: place.get().result()
