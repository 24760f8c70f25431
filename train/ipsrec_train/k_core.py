"""Which users and items stay when everyone must have a number of interactions within bounds."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

BoolArray = npt.NDArray[np.bool_]
CodeBatches = Callable[[], Iterable[tuple[npt.NDArray[np.uint32], npt.NDArray[np.uint32]]]]


@dataclass(frozen=True)
class Bounds:
    """How many interactions a user or an item must have to stay; no upper bound if maximum is None."""

    minimum: int
    maximum: int | None = None

    def hold(self, counts: npt.NDArray[np.int64]) -> BoolArray:
        """(n,) interactions -> (n,) bool: within the bounds. What has no interaction is never kept."""
        inside = counts >= max(self.minimum, 1)
        return inside if self.maximum is None else inside & (counts <= self.maximum)


@dataclass(frozen=True)
class Core:
    """What is left.

    Attributes:
        users: (num_users,) bool, the user stays.
        items: (num_items,) bool, the item stays.
        rounds: how often interactions were removed, 0 if all stayed.
        interactions: those left, between a user and an item that both stay.
    """

    users: BoolArray
    items: BoolArray
    rounds: int
    interactions: int


def k_core(batches: CodeBatches, num_users: int, num_items: int, *, user_bounds: Bounds, item_bounds: Bounds) -> Core:
    """Remove users and items outside the bounds until nothing changes.

    Each round counts what the last one left, then removes users and items at the same time, as RecBole does
    (RUCAIBox/RecBole:recbole/data/dataset/dataset.py, _filter_by_inter_num): without upper bounds the order would not
    matter, with them it does.

    Args:
        batches: called once a round; gives all interactions as pairs of (n,) uint32 user and (n,) uint32 item codes,
            so that memory grows with users and items alone, not with interactions.
        num_users: user codes are 0..num_users - 1.
        num_items: item codes are 0..num_items - 1.
        user_bounds: interactions of a user.
        item_bounds: interactions of an item.
    """
    users, items = np.ones(num_users, np.bool_), np.ones(num_items, np.bool_)
    rounds = 0
    while True:
        user_counts, item_counts = np.zeros(num_users, np.int64), np.zeros(num_items, np.int64)
        for user, item in batches():
            kept = users[user] & items[item]
            np.add.at(user_counts, user[kept], 1)  # in place: bincount would make a full-length array a batch
            np.add.at(item_counts, item[kept], 1)
        users, items = user_bounds.hold(user_counts), item_bounds.hold(item_counts)
        if not user_counts[~users].any() and not item_counts[~items].any():
            return Core(users, items, rounds, int(user_counts.sum()))
        rounds += 1
