"""Cuts the users into ranges of few enough interactions to hold."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from ipsrec_train.codes import CodedInteractions
from ipsrec_train.k_core import BoolArray

# Interactions that are held at once. Each range reads the user codes of the whole input.
CHUNK_INTERACTIONS = 1 << 22


def user_ranges(
    coded: CodedInteractions, *, users: BoolArray | None = None, chunk_interactions: int = CHUNK_INTERACTIONS
) -> Iterator[tuple[int, int]]:
    """Cut the user codes into ranges [first, last), ascending; users of no range have no interactions that count.

    Args:
        coded: the interactions.
        users: (num_users,) bool, whose interactions count; all if None.
        chunk_interactions: most interactions of a range, unless one user has more.
    """
    counts = np.zeros(len(coded.user_ids), np.int64)
    for user, _ in coded.user_item_batches():
        np.add.at(counts, user, 1)
    if users is not None:
        counts[~users] = 0
    ends = np.cumsum(counts)
    first = 0
    while first < len(ends):
        before = int(ends[first - 1]) if first else 0
        last = max(int(np.searchsorted(ends, before + chunk_interactions, side="right")), first + 1)
        if counts[first:last].any():
            yield first, last
        first = last
