"""Worker threads that turn chunks into results, in the order of the chunks, with a bounded number in flight."""

from __future__ import annotations

import contextlib
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

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
    futures: deque[Future[Result]] = deque()
    workers, stopped = ThreadPoolExecutor(threads, thread_name_prefix=THREAD_NAME), False
    try:
        for result in _submit_all(function, chunks, workers=workers):
            futures.append(result)
            if len(futures) > most:
                yield futures.popleft().result()
        while futures:
            yield futures.popleft().result()
    except (KeyboardInterrupt, SystemExit):
        stopped = True  # a chunk may take seconds, and nothing of it would be kept
        raise
    finally:
        workers.shutdown(wait=not stopped, cancel_futures=True)


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
    function: Callable[[Chunk], Result], chunks: Iterable[Chunk], *, workers: ThreadPoolExecutor
) -> Iterator[Future[Result]]:
    """Give a future for each chunk; where reading fails, one more that fails so, for it waits its turn like a chunk."""
    try:
        for chunk in chunks:
            yield workers.submit(function, chunk)
    except Exception as error:
        failed: Future[Result] = Future()
        failed.set_exception(error)
        yield failed
