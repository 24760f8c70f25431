"""Says how long Numba compiles, as it does once after an install; later it loads what it has compiled."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

from numba.core import event


@contextlib.contextmanager
def compiling() -> Iterator[Callable[[], float]]:
    """Give a function that says how many seconds were spent compiling since the block began."""
    listener = event.TimingListener()
    with event.install_listener("numba:compile", listener):
        yield lambda: float(listener.duration) if listener.done else 0.0
