"""Slow, obvious twin of prepare: plain Python lists and dictionaries."""

from __future__ import annotations

from collections import Counter
from typing import NamedTuple


class Interaction(NamedTuple):
    user: int
    item: int
    provider: int
    time: int


def within(count: int, minimum: int, maximum: int | None) -> bool:
    return count >= minimum and (maximum is None or count <= maximum)


def k_core(
    rows: list[Interaction], user_bounds: tuple[int, int | None], item_bounds: tuple[int, int | None]
) -> tuple[list[Interaction], int]:
    """Remove rows of users and items outside the bounds until nothing changes; also the rounds that removed some."""
    rounds = 0
    while True:
        users, items = Counter(row.user for row in rows), Counter(row.item for row in rows)
        kept = [row for row in rows if within(users[row.user], *user_bounds) and within(items[row.item], *item_bounds)]
        if len(kept) == len(rows):
            return kept, rounds
        rows, rounds = kept, rounds + 1


def histories(rows: list[Interaction]) -> list[dict[str, object]]:
    """One row a user, sorted by user; a user's interactions by time, equal times as they come."""
    table = []
    for user in sorted({row.user for row in rows}):
        own = sorted((row for row in rows if row.user == user), key=lambda row: row.time)  # sorted() is stable
        table.append(
            {
                "user_id": user,
                "item_history": [row.item for row in own],
                "provider_history": [row.provider for row in own],
            }
        )
    return table


def catalog(rows: list[Interaction]) -> list[tuple[int, int, int]]:
    """(item, provider, training interactions), by provider and then by item."""
    training: Counter[int] = Counter()
    for user in histories(rows):
        training.update(user["item_history"][:-2])
    return [(item, provider, training[item]) for provider, item in sorted({(row.provider, row.item) for row in rows})]


def latest_provider(rows: list[Interaction]) -> dict[int, int]:
    """The provider of each item's latest interaction; of equal times, the later row."""
    return {row.item: row.provider for row in sorted(rows, key=lambda row: row.time)}
