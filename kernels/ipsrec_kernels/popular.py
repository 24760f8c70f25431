"""The most popular items under the same filters, for users without a history.

Kernels are serial and release the GIL: parallelism comes from worker threads that each own a chunk (Numba's workqueue
layer must not be entered from two threads).
"""

from __future__ import annotations

import numpy as np
from numba import njit

from ipsrec_kernels.array_types import BoolArray, Int32Array, Int64Array
from ipsrec_kernels.best_list import BestLists, empty_lists, offer, sort_best_first
from ipsrec_kernels.check import check_array, check_at_least, check_range
from ipsrec_kernels.padding import PADDING
from ipsrec_kernels.ragged import Ragged, in_sorted, sorted_lists


def popular_order(popularity: Int64Array, *, allowed: BoolArray | None) -> Int32Array:
    """Sort the items that may be recommended, best first: the `order` of popular().

    Args:
        popularity: (num_items + 1,) int64.
        allowed: (num_items + 1,) bool; None allows all. PADDING never is.

    Returns:
        (M,) int32 item_index, by float32 popularity descending, then ascending.
    """
    popularity = check_array("popularity", popularity, dtype=np.int64)
    wanted = np.ones(len(popularity), np.bool_) if allowed is None else allowed.copy()
    wanted[PADDING] = False
    items = np.flatnonzero(wanted).astype(np.int32)
    return items[np.argsort(-popularity[items].astype(np.float32), kind="stable")]


def popular(
    order: Int32Array,
    popularity: Int64Array,
    item_provider: Int32Array,
    *,
    top_k: int,
    num_users: int,
    seen: Ragged | None,
    candidates: Ragged | None,
    max_per_provider: int | None,
) -> BestLists:
    """Give each user the most popular items; the score is float32(popularity), ties go to the smaller item_index.

    Args:
        order: (M,) int32, the items that may be recommended, best first (popular_order).
        popularity: (num_items + 1,) int64, interactions of each item_index.
        item_provider: (num_items + 1,) int32, provider_index of each item_index; 0 is "no provider".
        top_k: length of the lists, 1 or more.
        num_users: B, the number of lists.
        seen: (B lists) item_index never to recommend to this user; any order. None: nothing is left out.
        candidates: (B lists) the only item_index to choose from; any order. None: all of order.
        max_per_provider: at most so many items of one provider; "no provider" has no limit. None: no limit.

    Returns:
        item_index (B, top_k) int32, best first, PADDING past the end; scores (B, top_k) float32, 0 past the end;
        counts (B,) int32.

    Raises:
        ValueError: a wrong dtype, shape or index, or an order that is not best first.
    """
    order = check_array("order", order, dtype=np.int32)
    popularity = check_array("popularity", popularity, dtype=np.int64)
    item_provider = check_array("item_provider", item_provider, dtype=np.int32)
    if len(popularity) != len(item_provider):
        raise ValueError(f"popularity has {len(popularity)} entries, item_provider {len(item_provider)}")
    num_items = len(popularity) - 1
    check_range("order", order, low=PADDING + 1, high=num_items)
    check_at_least("top_k", top_k, low=1)
    check_at_least("num_users", num_users, low=0)
    cap = 0 if max_per_provider is None else check_at_least("max_per_provider", max_per_provider, low=1)
    scores = popularity.astype(np.float32)
    sorted_so = (scores[order[:-1]] > scores[order[1:]]) | (
        (scores[order[:-1]] == scores[order[1:]]) & (order[:-1] < order[1:])
    )
    if not sorted_so.all():
        raise ValueError(f"order[{int((~sorted_so).argmax()) + 1}] is out of order; make it with popular_order")
    unwanted = sorted_lists("seen", seen, num_users=num_users, high=np.iinfo(np.int32).max)
    best = empty_lists(num_users, top_k)
    if candidates is None:
        _walk(order, scores, item_provider, unwanted, cap, best)
        return best
    allowed = np.zeros(num_items + 1, np.bool_)
    allowed[order] = True
    choice = sorted_lists("candidates", candidates, num_users=num_users, high=num_items)
    _choose(choice, allowed, scores, item_provider, unwanted, cap, best)
    sort_best_first(best)
    return best


@njit(cache=True, nogil=True)
def _has_room(best, u, provider, item_provider, cap):
    """May this list take one more item of the provider?"""
    if cap == 0 or provider == 0:
        return True
    of_provider = 0
    for at in range(best.counts[u]):
        of_provider += item_provider[best.item_index[u, at]] == provider
    return of_provider < cap


@njit(cache=True, nogil=True)
def _walk(order, scores, item_provider, unwanted, cap, best):
    """Walk down the ranking until the list is full."""
    for u in range(len(best.counts)):
        for item in order:
            count = best.counts[u]
            if count == best.item_index.shape[1]:
                break
            if in_sorted(unwanted, u, item) or not _has_room(best, u, item_provider[item], item_provider, cap):
                continue
            best.item_index[u, count] = item
            best.scores[u, count] = scores[item]
            best.counts[u] = count + 1


@njit(cache=True, nogil=True)
def _choose(choice, allowed, scores, item_provider, unwanted, cap, best):
    """Offer every allowed candidate to the list."""
    for u in range(len(best.counts)):
        before = PADDING
        for at in range(choice.offsets[u], choice.offsets[u + 1]):
            item = choice.values[at]
            if item != before and allowed[item] and not in_sorted(unwanted, u, item):
                offer(best, u, scores[item], item, item_provider, cap)
            before = item
