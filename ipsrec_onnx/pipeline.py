"""Worker threads that turn chunks into results, in the order of the chunks, with a bounded number in flight."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

Chunk = TypeVar("Chunk")
Result = TypeVar("Result")

_IN_FLIGHT_PER_THREAD = 2


def map_in_order(
    function: Callable[[Chunk], Result], chunks: Iterable[Chunk], *, threads: int
) -> Generator[Result, None, None]:
    """Apply a function to chunks in worker threads and give the results in the order of the chunks.

    The caller's thread reads the chunks and takes the results; chunks are read only as results are taken, so memory
    holds a few of them however many there are. The kernels and ONNX Runtime release the GIL, so threads are enough.

    Args:
        function: called in a worker thread.
        chunks: read in the caller's thread, one by one.
        threads: worker threads, 1 or more.

    Raises:
        Exception: the first one, in the order of the chunks, that reading or the function raised. Chunks that have not
            begun by then are dropped, and every thread has ended when the exception arrives.
    """
    waiting: deque[Future[Result]] = deque()
    workers = ThreadPoolExecutor(threads, thread_name_prefix="ipsrec")
    try:
        for result in _submit_all(function, chunks, workers=workers):
            waiting.append(result)
            if len(waiting) > _IN_FLIGHT_PER_THREAD * threads:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        workers.shutdown(wait=True, cancel_futures=True)


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
