"""How far a job was at what time: a bounded number of samples, however long it takes."""

from __future__ import annotations

import time

import numpy as np

_MOST_SAMPLES = 512


class Throughput:
    """Samples of how many users are done.

    Attributes:
        samples: (seconds since the start, users done by then), in order; the first is (0, 0), the last the newest.
    """

    def __init__(self) -> None:
        self.samples: list[tuple[float, int]] = [(0.0, 0)]
        self._started = time.perf_counter()
        self._least_gap_s = 0.0

    def add(self, users: int) -> None:
        """Say that so many more users are done."""
        self.add_at(time.perf_counter() - self._started, users)

    def add_at(self, seconds: float, users: int) -> None:
        """Say when so many more users were done."""
        done = self.samples[-1][1] + users
        if len(self.samples) > 2 and self.samples[-1][0] - self.samples[-2][0] < self._least_gap_s:
            self.samples.pop()
        self.samples.append((seconds, done))
        if len(self.samples) > _MOST_SAMPLES:
            del self.samples[1:-1:2]
            self._least_gap_s = seconds / (_MOST_SAMPLES // 2)


def steady_span(samples: list[tuple[float, int]], *, at_once: int) -> tuple[float, float]:
    """What was done in which time while all threads were at work.

    From the middle of the first chunks, one of each thread, to the middle of the last ones: threads that finish one
    after another count as those that finish together do. Before the first chunks, threads begin one after another.

    Args:
        samples: as Throughput has them, one a chunk.
        at_once: threads.

    Returns:
        users: a part of one is possible.
        seconds: that they took.
        Both from the very start to the end where there are fewer than two chunks a thread.
    """
    done = np.array(samples, np.float64)
    if len(samples) <= 2 * at_once:
        seconds, users = done[-1] - done[0]
    else:
        seconds, users = done[-at_once:].mean(axis=0) - done[1 : at_once + 1].mean(axis=0)
    return float(users), float(seconds)


def users_per_second(samples: list[tuple[float, int]], *, most: int) -> tuple[list[float], list[float]]:
    """Cut the time into equal spans that have several samples each, and say how fast each was.

    Args:
        samples: as Throughput has them.
        most: spans.

    Returns:
        edges: of the spans, seconds, one more than spans.
        rates: users per second in each; empty where nothing was done.
    """
    seconds, done = (np.array(column, np.float64) for column in zip(*samples, strict=True))
    if not seconds[-1] > 0 or not done[-1]:
        return [0.0], []
    edges = np.linspace(0.0, seconds[-1], max(1, min(most, (len(samples) - 1) // 3)) + 1)
    rates = np.diff(np.interp(edges, seconds, done)) / np.diff(edges)
    return edges.tolist(), rates.tolist()
