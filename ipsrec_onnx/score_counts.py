"""The account of a scoring job: every row that was read, and every id that was left out, is in one of these numbers."""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict, dataclass, field, fields
from typing import Any


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

    def __add__(self, other: ScoreCounts) -> ScoreCounts:
        reasons = Counter(self.diverted_by_reason) + Counter(other.diverted_by_reason)
        sums = {
            name.name: getattr(self, name.name) + getattr(other, name.name)
            for name in fields(self)
            if name.name != "diverted_by_reason"
        }
        return ScoreCounts(diverted_by_reason=dict(sorted(reasons.items())), **sums)

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
        numbers = {name: number for name, number in value.items() if name != "diverted_by_reason"}
        for name, number in (numbers | dict(counts.diverted_by_reason)).items():
            if not isinstance(number, int) or number < 0:
                raise ValueError(f"{name} is {number!r}, expected a count")
        return counts
