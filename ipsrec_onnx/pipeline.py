"""Worker threads that turn chunks into results, in the order of the chunks, with a bounded number in flight."""

from __future__ import annotations

import contextlib
import functools
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from queue import SimpleQueue
from typing import TypeVar

from ipsrec_onnx.worker_threads import Outcome, WorkerThreads, outcome_of

Chunk = TypeVar("Chunk")
Result = TypeVar("Result")

THREAD_NAME = "ipsrec-worker"
_WAITING_PER_THREAD = 2


def map_in_order(
    function: Callable[[Chunk], Result], chunks: Iterable[Chunk], *, threads: int, waiting: int | None = None
) -> Generator[Result, None, None]:
    """Apply a function to chunks in worker threads and give the results in the order of the chunks.

    The caller's thread reads the chunks and takes the results; chunks are read only as results are taken, so memory
    holds a few of them however many there are. The kernels and ONNX Runtime release the GIL, so threads are enough.

    Args:
        function: called in a worker thread.
        chunks: read in the caller's thread, one by one.
        threads: worker threads, 1 or more.
        waiting: chunks in flight beside the one that is read; two a thread by default.

    Raises:
        Exception: the first one, in the order of the chunks, that reading or the function raised. Chunks that have not
            begun by then are dropped, and every thread has ended when the exception arrives; but for KeyboardInterrupt
            and SystemExit, after which threads end with the chunk that they have.
    """
    most = _WAITING_PER_THREAD * threads if waiting is None else waiting
    slots: deque[SimpleQueue[Outcome[Result]]] = deque()
    workers, stopped = WorkerThreads(threads, name=THREAD_NAME), False
    try:
        for slot in _submit_all(function, chunks, workers=workers):
            slots.append(slot)
            if len(slots) > most:
                yield slots.popleft().get().result()
        while slots:
            yield slots.popleft().get().result()
    except (KeyboardInterrupt, SystemExit):
        stopped = True  # a chunk may take seconds, and nothing of it would be kept
        raise
    finally:
        workers.stop()
        if not stopped:
            workers.join()


@contextlib.contextmanager
def ended(results: Generator[Result, None, None]) -> Iterator[None]:
    """When the block is left, end map_in_order, or a generator that gives what it gives in a block of its own.

    Its threads are waited for unless the process is to stop: contextlib.closing would not say so to the generator.
    """
    try:
        yield
    except (KeyboardInterrupt, SystemExit) as stop:
        results.throw(stop)
    finally:
        results.close()


def _submit_all(
    function: Callable[[Chunk], Result], chunks: Iterable[Chunk], *, workers: WorkerThreads
) -> Iterator[SimpleQueue[Outcome[Result]]]:
    """Give a place for each chunk's outcome; where reading fails, one with the error, which waits its turn, too."""
    try:
        for chunk in chunks:
            slot: SimpleQueue[Outcome[Result]] = SimpleQueue()
            workers.call(functools.partial(_do, function, chunk, slot))
            del chunk  # the worker's now
            yield slot
    except Exception as error:
        failed: SimpleQueue[Outcome[Result]] = SimpleQueue()
        failed.put(Outcome(error=error))
        yield failed


def _do(function: Callable[[Chunk], Result], chunk: Chunk, slot: SimpleQueue[Outcome[Result]]) -> None:
    slot.put(outcome_of(functools.partial(function, chunk)))
