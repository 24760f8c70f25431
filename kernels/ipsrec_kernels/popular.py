"""The most popular items under the same filters, for users without a history.

Kernels are serial and release the GIL: parallelism comes from worker threads that each own a chunk (Numba's workqueue
layer must not be entered from two threads).
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numba import njit

from ipsrec_kernels.array_types import BoolArray, Float32Array, Int32Array, Int64Array
from ipsrec_kernels.best_list import BestLists, empty_lists, offer, sort_best_first
from ipsrec_kernels.check import check_array, check_at_least, read_only
from ipsrec_kernels.padding import PADDING
from ipsrec_kernels.ragged import Ragged, in_sorted, sorted_lists
from ipsrec_kernels.shortlist import count_up, provider_slots


class PopularItems(NamedTuple):
    """The items that may be recommended, by popularity; checked once, walked by every call.

    Attributes:
        order: (M,) int32 item_index, by score descending, then ascending.
        scores: (num_items + 1,) float32, the popularity of each item_index.
        item_provider: (num_items + 1,) int32, provider_index of each item_index; 0 is "no provider".
        allowed: (num_items + 1,) bool, whether the item is in order.
    """

    order: Int32Array
    scores: Float32Array
    item_provider: Int32Array
    allowed: BoolArray


def popular_items(popularity: Int64Array, item_provider: Int32Array, *, allowed: BoolArray | None) -> PopularItems:
    """Sort the items that may be recommended, best first.

    Args:
        popularity: (num_items + 1,) int64, interactions of each item_index.
        item_provider: (num_items + 1,) int32, provider_index of each item_index; 0 is "no provider".
        allowed: (num_items + 1,) bool; None allows all. PADDING never is.

    Raises:
        ValueError: a wrong dtype or shape.
    """
    popularity = check_array("popularity", popularity, dtype=np.int64)
    item_provider = check_array("item_provider", item_provider, dtype=np.int32)
    wanted = np.ones(len(popularity), np.bool_)
    if allowed is not None:
        wanted = check_array("allowed", allowed, dtype=np.bool_).copy()
    for name, array in (("item_provider", item_provider), ("allowed", wanted)):
        if len(array) != len(popularity):
            raise ValueError(f"{name} has {len(array)} entries, popularity {len(popularity)}; expected as many")
    wanted[PADDING] = False
    scores = popularity.astype(np.float32)
    items = np.flatnonzero(wanted).astype(np.int32)
    order = items[np.argsort(-scores[items], kind="stable")]
    return PopularItems(read_only(order), read_only(scores), item_provider, read_only(wanted))


def popular(
    items: PopularItems,
    *,
    top_k: int,
    num_users: int,
    seen: Ragged | None,
    candidates: Ragged | None,
    max_per_provider: int | None,
) -> BestLists:
    """Give each user the most popular items; the score is float32(popularity), ties go to the smaller item_index.

    Args:
        items: as popular_items made it.
        top_k: length of the lists, 1 or more.
        num_users: B, the number of lists.
        seen: (B lists) item_index never to recommend to this user; any order. None: nothing is left out.
        candidates: (B lists) the only item_index to choose from; any order. None: all of items.
        max_per_provider: at most so many items of one provider; "no provider" has no limit. None: no limit.

    Returns:
        item_index (B, top_k) int32, best first, PADDING past the end; scores (B, top_k) float32, 0 past the end;
        counts (B,) int32.

    Raises:
        ValueError: a wrong dtype, shape or index.
    """
    check_at_least("top_k", top_k, low=1)
    check_at_least("num_users", num_users, low=0)
    cap = 0 if max_per_provider is None else check_at_least("max_per_provider", max_per_provider, low=1)
    unwanted = sorted_lists("seen", seen, num_users=num_users, high=np.iinfo(np.int32).max)
    best = empty_lists(num_users, top_k)
    if candidates is None:
        _walk(items, unwanted, cap, best, provider_slots(min(top_k, len(items.order))))
        return best
    choice = sorted_lists("candidates", candidates, num_users=num_users, high=len(items.scores) - 1)
    _choose(choice, items, unwanted, cap, best)
    sort_best_first(best)
    return best


@njit(cache=True, nogil=True)
def _walk(items, unwanted, cap, best, slots):
    """Walk down the ranking until the list is full; slots: room to count the providers of one list."""
    order, scores, item_provider = items.order, items.scores, items.item_provider
    for u in range(len(best.counts)):
        slots[:] = 0
        for item in order:
            count = best.counts[u]
            if count == best.item_index.shape[1]:
                break
            if in_sorted(unwanted, u, item) or (cap > 0 and count_up(slots, item_provider[item]) > cap):
                continue
            best.item_index[u, count] = item
            best.scores[u, count] = scores[item]
            best.counts[u] = count + 1


@njit(cache=True, nogil=True)
def _choose(choice, items, unwanted, cap, best):
    """Offer every allowed candidate to the list."""
    scores, item_provider, allowed = items.scores, items.item_provider, items.allowed
    for u in range(len(best.counts)):
        before = PADDING
        for at in range(choice.offsets[u], choice.offsets[u + 1]):
            item = choice.values[at]
            if item != before and allowed[item] and not in_sorted(unwanted, u, item):
                offer(best, u, scores[item], item, item_provider, cap)
            before = item
