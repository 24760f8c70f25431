"""The best k of the items offered so far, for each user: a heap whose root is the worst item kept.

Order: higher score first, then the smaller item_index. Each item is offered at most once. Scores are float32, +-inf
allowed, never NaN. Kernels only; serial, GIL released (Numba's workqueue layer must not be entered from two threads).
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numba import njit

from ipsrec_kernels.array_types import Float32Array, Int32Array
from ipsrec_kernels.padding import PADDING


class BestLists(NamedTuple):
    """What a retrieval gives, and the heaps while it runs.

    Attributes:
        item_index: (B, top_k) int32, best first once finished; PADDING past the end.
        scores: (B, top_k) float32; 0 past the end.
        counts: (B,) int32, items in each list.
    """

    item_index: Int32Array
    scores: Float32Array
    counts: Int32Array


def empty_lists(num_users: int, top_k: int) -> BestLists:
    """Lists with room for top_k items, and none in them."""
    shape = (num_users, top_k)
    return BestLists(np.full(shape, PADDING, np.int32), np.zeros(shape, np.float32), np.zeros(num_users, np.int32))


@njit(cache=True, nogil=True)
def is_worse(score, item, other_score, other_item):
    """Does (score, item) rank behind the other?"""
    return score < other_score or (score == other_score and item > other_item)


@njit(cache=True, nogil=True)
def _sift_down(lists, u, size, hole, score, item):
    """Put (score, item) into the heap of `size` at `hole` or below, so that no parent is better than its child."""
    items, scores = lists.item_index, lists.scores
    child = 2 * hole + 1
    while child < size:
        if child + 1 < size and is_worse(scores[u, child + 1], items[u, child + 1], scores[u, child], items[u, child]):
            child += 1
        if not is_worse(scores[u, child], items[u, child], score, item):
            break
        items[u, hole] = items[u, child]
        scores[u, hole] = scores[u, child]
        hole = child
        child = 2 * hole + 1
    items[u, hole] = item
    scores[u, hole] = score


@njit(cache=True, nogil=True)
def _offer_any(lists, u, score, item):
    """Keep (score, item) if it is among the best k."""
    items, scores = lists.item_index, lists.scores
    size = lists.counts[u]
    if size == items.shape[1]:
        if is_worse(scores[u, 0], items[u, 0], score, item):
            _sift_down(lists, u, size, 0, score, item)
        return
    hole = size
    while hole > 0:
        parent = (hole - 1) >> 1
        if not is_worse(score, item, scores[u, parent], items[u, parent]):
            break
        items[u, hole] = items[u, parent]
        scores[u, hole] = scores[u, parent]
        hole = parent
    items[u, hole] = item
    scores[u, hole] = score
    lists.counts[u] = size + 1


@njit(cache=True, nogil=True)
def offer(lists, u, score, item, item_provider, cap):
    """Kernel: keep (score, item) if it belongs to the best k with at most `cap` items of one provider (0: no cap).

    Wanted is the walk down the whole ranking that passes over items of a provider with `cap` items already. That is
    the best k of T, the union of each provider's `cap` best. A list that equals it for the items offered so far still
    does after one more item x of provider p:
    - p has `cap` items in the list: T gains x exactly if x beats the worst of them, y, and then loses y. Replacing y
      by x (or nothing) is therefore right, and what T holds below the list stays below, being worse than y.
    - p has fewer in the list although `cap` or more were offered: the others lie below a full list. If x beats none
      of those, it does not beat the list's worst either and is refused; otherwise T gains x and loses one that was
      not in the list. Both are what an offer without a cap does.
    - p has had fewer than `cap` offered: T gains x and loses nothing, as without a cap.
    Provider 0 means "no provider" and has no cap.
    """
    provider = item_provider[item]
    if cap > 0 and provider != 0:
        of_provider = 0
        worst = -1
        for at in range(lists.counts[u]):
            there = lists.item_index[u, at]
            if item_provider[there] == provider:
                of_provider += 1
                if worst < 0 or is_worse(
                    lists.scores[u, at], there, lists.scores[u, worst], lists.item_index[u, worst]
                ):
                    worst = at
        if of_provider >= cap:
            if is_worse(lists.scores[u, worst], lists.item_index[u, worst], score, item):
                # A better entry can only move away from the root, where the worst lies.
                _sift_down(lists, u, lists.counts[u], worst, score, item)
            return
    _offer_any(lists, u, score, item)


@njit(cache=True, nogil=True)
def sort_best_first(lists):
    """Kernel: turn every heap into a list, best first, by moving the worst to the end again and again."""
    for u in range(len(lists.counts)):
        for size in range(lists.counts[u] - 1, 0, -1):
            score, item = lists.scores[u, size], lists.item_index[u, size]
            lists.scores[u, size] = lists.scores[u, 0]
            lists.item_index[u, size] = lists.item_index[u, 0]
            _sift_down(lists, u, size, 0, score, item)
