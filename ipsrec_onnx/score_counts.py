"""The account of a scoring job: every row that was read, and every id that was left out, is in one of these numbers."""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict, dataclass, field, fields
from typing import Any

import numpy as np
import numpy.typing as npt


@dataclass(frozen=True)
class ScoreCounts:
    """An account of rows and ids.

    Attributes:
        rows_in: users read.
        rows_out: users with a list in the output, be it empty.
        rows_diverted: malformed rows set aside; rows_in = rows_out + rows_diverted.
        diverted_by_reason: how many of them for which reason.
        cold_users: users without a known item.
        truncated_histories: users with more known items than the model looks at.
        short_lists: users with fewer items than asked for: nothing more was allowed.
        history_items: item ids in the histories.
        unknown_items: those that the catalog does not know.
        unknown_providers: entries of known items whose provider id the catalog does not know.
        unknown_candidates: ids in the candidates column that the catalog does not know.
        history_lengths: how many users have 0, 1, 2, 3-4, 5-8, ... known items; ranges without a user are left out.
    """

    rows_in: int = 0
    rows_out: int = 0
    rows_diverted: int = 0
    diverted_by_reason: dict[str, int] = field(default_factory=dict)
    cold_users: int = 0
    truncated_histories: int = 0
    short_lists: int = 0
    history_items: int = 0
    unknown_items: int = 0
    unknown_providers: int = 0
    unknown_candidates: int = 0
    history_lengths: dict[str, int] = field(default_factory=dict)

    def __add__(self, other: ScoreCounts) -> ScoreCounts:
        reasons = Counter(self.diverted_by_reason) + Counter(other.diverted_by_reason)
        sums = {
            name.name: getattr(self, name.name) + getattr(other, name.name)
            for name in fields(self)
            if name.name not in ("diverted_by_reason", "history_lengths")
        }
        lengths = Counter(self.history_lengths) + Counter(other.history_lengths)
        return ScoreCounts(
            diverted_by_reason=dict(sorted(reasons.items())),
            history_lengths=dict(sorted(lengths.items(), key=lambda item: int(item[0].split("-")[0]))),
            **sums,
        )

    def to_json(self) -> dict[str, Any]:
        """Give the numbers by name."""
        return asdict(self)

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> ScoreCounts:
        """Read what to_json gave.

        Raises:
            TypeError: it has other names.
            ValueError: a number is none.
        """
        counts = cls(**value)
        several = ("diverted_by_reason", "history_lengths")
        numbers = {name: number for name, number in value.items() if name not in several}
        for name, number in (numbers | dict(counts.diverted_by_reason) | dict(counts.history_lengths)).items():
            if not isinstance(number, int) or number < 0:
                raise ValueError(f"{name} is {number!r}, expected a count")
        return counts


def count_lengths(lengths: npt.NDArray[np.int64]) -> dict[str, int]:
    """Count users by range of their histories' lengths, as ScoreCounts.history_lengths has them.

    Args:
        lengths: (n,) known items of each user.
    """
    above = np.maximum(lengths - 1, 0)
    doublings = np.frexp(above.astype(np.float64))[1]  # 0 for 0, 1 for 1, 2 for 2 and 3, 3 for 4 to 7
    counts = np.bincount(np.where(lengths > 0, doublings + 1, 0))
    return {length_range(number): int(count) for number, count in enumerate(counts) if count}


def length_range(number: int) -> str:
    """The words for a range of lengths: 0, 1, 2, 3-4, 5-8, ..."""
    low, high = (2 ** (number - 2) + 1, 2 ** (number - 1)) if number > 2 else (number, number)
    return str(high) if low == high else f"{low}-{high}"
