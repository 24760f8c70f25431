"""Where a job's processor time goes, stage by stage."""

from __future__ import annotations

import contextlib
import time
from collections import defaultdict
from collections.abc import Iterator
from typing import Literal

Stage = Literal["read", "map", "encode", "retrieve", "lay_out", "write"]


class StageTimes:
    """Adds up the processor seconds that one thread spends in each stage; each chunk of work has its own.

    Attributes:
        cpu_s: stage -> seconds of the thread that was in it.
    """

    def __init__(self) -> None:
        self.cpu_s: defaultdict[str, float] = defaultdict(float)

    @contextlib.contextmanager
    def stage(self, name: Stage) -> Iterator[None]:
        """Count what the block takes; blocks do not nest."""
        started = time.thread_time()
        try:
            yield
        finally:
            self.cpu_s[name] += time.thread_time() - started

    def add(self, other: StageTimes) -> None:
        """Count what another thread, or this one before, has spent."""
        for name, seconds in other.cpu_s.items():
            self.cpu_s[name] += seconds
