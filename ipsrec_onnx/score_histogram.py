"""A histogram of numbers whose range nobody knows before: exact counts, the same in whatever order they come."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

_FINEST = -20  # exponent of the width of a bin, at least


class Histogram:
    """Counts numbers in bins [b * width, (b + 1) * width) for whole b; width is the least power of two that is enough.

    Attributes:
        exponent: width is 2 ** exponent; None before the first number.
        first: b of the first bin.
        counts: (bins,) int64.
    """

    def __init__(self, most_bins: int) -> None:
        self.exponent: int | None = None
        self.first = 0
        self.counts = np.zeros(0, np.int64)
        self._most_bins = most_bins
        self._low, self._high = math.inf, -math.inf

    @property
    def width(self) -> float:
        """Of a bin."""
        return 2.0 ** (self.exponent or 0)

    @property
    def edges(self) -> npt.NDArray[np.float64]:
        """(bins + 1,) where the bins begin and end."""
        return np.asarray((self.first + np.arange(len(self.counts) + 1)) * self.width, np.float64)

    def add(self, numbers: npt.NDArray[np.float32]) -> None:
        """Count more finite numbers."""
        if not len(numbers):
            return
        self._low, self._high = min(self._low, float(numbers.min())), max(self._high, float(numbers.max()))
        self.coarsen(self._enough())
        width = self.width
        first, last = math.floor(self._low / width), math.floor(self._high / width)
        bins = np.floor(numbers.astype(np.float64) / width).astype(np.int64) - first
        counts = np.bincount(bins, minlength=last - first + 1)
        counts[self.first - first : self.first - first + len(self.counts)] += self.counts
        self.first, self.counts = first, counts

    def coarsen(self, exponent: int) -> None:
        """Widen the bins, neighbours joined, to 2 ** exponent; nothing where they are that wide."""
        if self.exponent is not None and exponent > self.exponent and len(self.counts):
            bins = (self.first + np.arange(len(self.counts))) >> (exponent - self.exponent)
            self.first = int(bins[0])
            self.counts = np.bincount(bins - self.first, weights=self.counts).astype(np.int64)
        self.exponent = exponent if self.exponent is None else max(exponent, self.exponent)

    def _enough(self) -> int:
        """The least exponent that fits the range into the bins, and whose bins have numbers that int64 can tell."""
        largest = max(abs(self._low), abs(self._high))
        exponent = max(_FINEST, math.frexp(largest)[1] - 40)
        while math.floor(self._high / 2.0**exponent) - math.floor(self._low / 2.0**exponent) >= self._most_bins:
            exponent += 1
        return exponent
