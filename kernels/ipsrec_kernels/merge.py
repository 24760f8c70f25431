"""Puts the lists of two parts of a catalog together; exact, ties and caps included.

The list of a union is the list of the union of both lists: shortlist.py says why, with a cap, too. So parts can be
searched one after the other, in any order, and each after the first only for what reaches the floor of the list so far.

Kernels are serial and release the GIL: parallelism comes from worker threads that each own a chunk (Numba's workqueue
layer must not be entered from two threads).
"""

from __future__ import annotations

import numpy as np
from numba import njit

from ipsrec_kernels.array_types import Float32Array, Int32Array
from ipsrec_kernels.best_list import BestLists, empty_lists, is_worse
from ipsrec_kernels.check import check_array, check_at_least
from ipsrec_kernels.shortlist import count_up, provider_slots


def merge_lists(
    one: BestLists, other: BestLists, item_provider: Int32Array, *, max_per_provider: int | None
) -> BestLists:
    """Make each user's list of two: higher scores first, equal ones by the smaller item_index.

    Args:
        one: (B) lists as retrieve() gives them, of top_k places.
        other: (B) lists of the same users, of as many places, under the same rules, of items that `one` could not have.
        item_provider: (num_items + 1,) int32 provider_index of each item; 0 is "no provider".
        max_per_provider: at most so many items of one provider; "no provider" has no limit. None: no limit.

    Returns:
        (B) lists of top_k places.

    Raises:
        ValueError: the lists are of other users, or have other lengths.
    """
    if one.scores.shape != other.scores.shape:
        raise ValueError(f"lists are of shapes {one.scores.shape} and {other.scores.shape}, expected one shape")
    cap = 0 if max_per_provider is None else check_at_least("max_per_provider", max_per_provider, low=1)
    item_provider = check_array("item_provider", item_provider, dtype=np.int32)
    merged = empty_lists(*one.scores.shape)
    _merge(one, other, item_provider, cap, provider_slots(2 * one.scores.shape[1]), merged)
    return merged


def list_floors(lists: BestLists) -> Float32Array:
    """(B,) float32: the last score of each full list, -inf for the others; floors of what is searched next."""
    return np.where(lists.counts == lists.scores.shape[1], lists.scores[:, -1], np.float32(-np.inf))


@njit(cache=True, nogil=True)
def _merge(one, other, item_provider, cap, slots, merged):
    k = merged.scores.shape[1]
    for u in range(len(merged.counts)):
        if cap > 0:
            slots[:] = 0
        a, b, kept = 0, 0, 0
        while kept < k and (a < one.counts[u] or b < other.counts[u]):
            from_one = b == other.counts[u] or (
                a < one.counts[u]
                and not is_worse(one.scores[u, a], one.item_index[u, a], other.scores[u, b], other.item_index[u, b])
            )
            if from_one:
                item, score = one.item_index[u, a], one.scores[u, a]
                a += 1
            else:
                item, score = other.item_index[u, b], other.scores[u, b]
                b += 1
            if cap == 0 or count_up(slots, item_provider[item]) <= cap:
                merged.item_index[u, kept], merged.scores[u, kept] = item, score
                kept += 1
        merged.counts[u] = kept
