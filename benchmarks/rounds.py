"""Times several ways in turn, round by round, so that a slow phase of the machine falls on all of them alike."""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from limits import TWO_CORES, Limits

ROUNDS = 5


@dataclass(frozen=True)
class Timed:
    """Seconds of one way.

    Attributes:
        seconds: of each round, in order.
        two_thread_ratio: beside each sample, the lower one of before and after it.
    """

    seconds: list[float]
    two_thread_ratio: list[float]

    @property
    def kept(self) -> list[float]:
        """Samples with two whole cores beside them; all of them where fewer than three had."""
        pairs = zip(self.seconds, self.two_thread_ratio, strict=True)
        kept = [seconds for seconds, ratio in pairs if ratio >= TWO_CORES]
        return kept if len(kept) >= min(3, len(self.seconds)) else self.seconds

    @property
    def median(self) -> float:
        """Median of the kept samples, seconds."""
        return statistics.median(self.kept)

    def spread(self, per: float = 1.0, unit: str = "") -> str:
        """Write the median and the range of `per` / seconds."""
        rates = sorted(per / seconds for seconds in self.kept)
        return f"{statistics.median(rates):,.0f}{unit} [{rates[0]:,.0f}..{rates[-1]:,.0f}]"

    @property
    def whole(self) -> int:
        """Samples that had two whole cores beside them."""
        return sum(ratio >= TWO_CORES for ratio in self.two_thread_ratio)

    def to_json(self) -> dict[str, Any]:
        """Median, range and how many samples had two cores."""
        return {"median_s": self.median, "min_s": min(self.kept), "max_s": max(self.kept), "two_cores": self.whole}


def in_turn(
    ways: Mapping[str, Callable[[], object]], limits: Limits | None, *, rounds: int = ROUNDS
) -> dict[str, Timed]:
    """Time each way once a round.

    Args:
        ways: name -> work; already warmed up.
        limits: measures beside each sample whether the threads have a core each; None to leave that out.
        rounds: samples of each way.

    Returns:
        name -> its samples.
    """
    found: dict[str, tuple[list[float], list[float]]] = {name: ([], []) for name in ways}
    before = _ratio(limits)
    for _ in range(rounds):
        for name, work in ways.items():
            started = time.perf_counter()
            work()
            found[name][0].append(time.perf_counter() - started)
            after = _ratio(limits)
            found[name][1].append(min(before, after))
            before = after
    return {name: Timed(*lists) for name, lists in found.items()}


def _ratio(limits: Limits | None) -> float:
    return TWO_CORES if limits is None else limits.two_thread_ratio()


def ratio_in_rounds(slow: Timed, fast: Timed) -> float:
    """How many times as fast `fast` is: the median of the rounds' own ratios, both from one phase of the machine."""
    return statistics.median(a / b for a, b in zip(slow.seconds, fast.seconds, strict=True))


def print_json(figures: Mapping[str, Any]) -> None:
    """Print figures as the one line of JSON that ends a benchmark."""
    print(json.dumps(dict(figures), default=float))
