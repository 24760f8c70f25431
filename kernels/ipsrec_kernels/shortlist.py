"""What could still get into each user's list: items with an interval that holds their score.

The scan knows a score only up to a proven bound, so an entry is (low, high) with low <= score <= high, both float32.
An exact entry has low = high. If k entries have low >= floor, an item whose high is below floor is behind k others and
never needs to be looked at again: so the floor is the k-th largest low. Only what is left at the end is scored
exactly: about twice k items a user, where a filter by exact scores would have had to score ten times k.

With `cap` items of one provider at most, the wanted list is the walk down the whole ranking that passes over items of a
provider with `cap` items already. The sets with at most `cap` items of each provider and at most k in all are the
independent sets of a matroid (a partition matroid, truncated), and the walk is its greedy algorithm. Hence:
- if such a set of k entries has low >= floor in each, an item whose high is below floor is not in the list: when the
  walk comes to it, what it has picked is a largest independent set of all better items, of which k can be picked;
- the list of a union is the list of (the list of one part, together with the other part): what the walk over one part
  leaves out is spanned by better items, and stays so when more items come. So an exact walk may drop the rest.
Provider 0 means "no provider" and has no cap.

Kernels only; serial, GIL released (Numba's workqueue layer must not be entered from two threads).
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numba import njit

from ipsrec_kernels.array_types import Float32Array, Float64Array, Int32Array, Int64Array
from ipsrec_kernels.bits import from_order, to_order
from ipsrec_kernels.memory import prefetch_row
from ipsrec_kernels.score import dot64, rounded


class Shortlists(NamedTuple):
    """Room for the entries of some users, in no order.

    Attributes:
        low: (U, room) float32.
        high: (U, room) float32.
        item: (U, room) int32, item_index; negative while the score is not exact.
        counts: (U,) int64, entries of each user.
        floors: (U,) float32, what an item's high must reach; -inf at first. It only rises.
        terms: (U,) float64, the history term of each entry that is not exact; 0 at first.
    """

    low: Float32Array
    high: Float32Array
    item: Int32Array
    counts: Int64Array
    floors: Float32Array
    terms: Float64Array


def empty_shortlists(num_users: int, room: int) -> Shortlists:
    """Lists with room for so many entries each, and none in them."""
    shape = (num_users, room)
    return Shortlists(
        np.empty(shape, np.float32),
        np.empty(shape, np.float32),
        np.empty(shape, np.int32),
        np.zeros(num_users, np.int64),
        np.full(num_users, -np.inf, np.float32),
        np.zeros(num_users),
    )


def first_lists(lists: Shortlists, count: int) -> Shortlists:
    """The first lists, emptied, for other users."""
    some = Shortlists(
        lists.low[:count],
        lists.high[:count],
        lists.item[:count],
        lists.counts[:count],
        lists.floors[:count],
        lists.terms[:count],
    )
    some.counts[:] = 0
    some.floors[:] = -np.inf
    some.terms[:] = 0.0
    return some


def provider_slots(room: int) -> Int32Array:
    """Scratch for the walks with a cap: a hash table for the providers of a full list."""
    return np.zeros((1 << (2 * room).bit_length(), 2), np.int32)


def room_for(top_k: int, num_items: int) -> int:
    """Entries that a shortlist should have room for: more is scanned with a lower floor, less is tidied more often."""
    return min(3 * top_k + 256, num_items + 1)


@njit(cache=True, nogil=True)
def kth_largest(values, count, k, at_least):
    """A number that k of the first `count` float32, none NaN, reach, and that the next one does not, if it is smaller.

    at_least where that is larger, or there are fewer. Bisects over the bits of the answer: 20 or 30 counts, which
    vectorise, beat a quickselect, which guesses every branch.
    """
    if count < k:
        return at_least
    low, high = np.int64(to_order(at_least)), np.int64(to_order(np.float32(np.inf)))
    while low < high:
        middle = (low + high + 1) >> 1
        pivot = from_order(np.int32(middle))
        reached = np.int32(0)
        for at in range(count):
            reached += np.int32(values[at] >= pivot)
        if reached == k:
            return pivot
        if reached > k:
            low = middle
        else:
            high = middle - 1
    return from_order(np.int32(low))


@njit(cache=True, nogil=True)
def count_up(slots, provider):
    """Kernel: how many items of this provider have come, this one included; 0 for "no provider".

    slots: (2^n, 2) int32, a hash table of provider and count, zeros at first; more slots than providers.
    """
    if provider == 0:
        return np.int32(0)
    last = len(slots) - 1
    slot = (np.int64(provider) * 0x9E3779B1 >> 12) & last
    while slots[slot, 0] != provider and slots[slot, 0] != 0:
        slot = (slot + 1) & last
    slots[slot, 0] = provider
    slots[slot, 1] += 1
    return slots[slot, 1]


@njit(cache=True, nogil=True)
def _picked(low, item, count, floor, item_provider, cap, slots):
    """How many entries with low >= floor one list can hold."""
    slots[:] = 0
    picked = 0
    for at in range(count):
        if low[at] >= floor:
            picked += count_up(slots, item_provider[abs(item[at])]) <= cap
    return picked


@njit(cache=True, nogil=True)
def _capped_floor(low, item, count, item_provider, k, cap, slots):
    """The largest low that k entries reach, `cap` of one provider at most; -inf if there are no k such.

    If the n largest lows hold `picked` < k such entries, k of them need at least k - picked more: no step is too long.
    """
    n = k
    while n <= count:
        floor = kth_largest(low, count, n, np.float32(-np.inf))
        picked = _picked(low, item, count, floor, item_provider, cap, slots)
        if picked >= k:
            return floor
        n += k - picked
    return np.float32(-np.inf)


@njit(cache=True, nogil=True)
def _drop_low(lists, u, k, cap, item_provider, slots):
    """Raise the floor and drop what does not reach it any more."""
    low, high, item = lists.low[u], lists.high[u], lists.item[u]
    count = lists.counts[u]
    if cap == 0:
        floor = kth_largest(low, count, k, lists.floors[u])
    else:
        floor = _capped_floor(low, item, count, item_provider, k, cap, slots)
    floor = max(floor, lists.floors[u])
    kept = 0
    for at in range(count):
        low[kept], high[kept], item[kept] = low[at], high[at], item[at]
        kept += high[at] >= floor
    lists.floors[u], lists.counts[u] = floor, kept


@njit(cache=True, nogil=True)
def tighten(lists, u, k, cap, table, users, user, slots):
    """Kernel: raise the floor of list u, which is that of row `user` of users, and make room.

    The entries that look best are scored: a floor of exact scores is higher than one of lows, so that later blocks
    have fewer entries. At least a quarter of the room is free afterwards: where too many intervals overlap (or a
    provider has many more than `cap` of the best), an exact walk leaves k.
    """
    _drop_low(lists, u, k, cap, table.item_provider, slots)
    if _score_from(lists, u, lists.floors[u], table.item_embeddings, users, user) > 0:
        _drop_low(lists, u, k, cap, table.item_provider, slots)
    if lists.counts[u] > lists.low.shape[1] * 3 // 4:
        settle(lists, u, k, cap, table, users, user, slots)


@njit(cache=True, nogil=True)
def _score_from(lists, u, floor, item_embeddings, users, user):
    """Score exactly what is not, if its low reaches the floor; gives how many that were."""
    low, high, item, term = lists.low[u], lists.high[u], lists.item[u], lists.terms[u]
    scored = 0
    for at in range(lists.counts[u]):
        if item[at] < 0 and low[at] >= floor:
            prefetch_row(item_embeddings, -item[at])
            scored += 1
    if scored == 0:
        return 0
    for at in range(lists.counts[u]):
        if item[at] < 0 and low[at] >= floor:
            item[at] = -item[at]
            low[at] = rounded(dot64(users, user, item_embeddings, item[at]), term, 0.0)
            high[at] = low[at]
    return scored


@njit(cache=True, nogil=True)
def make_exact(lists, u, k, cap, table, users, user, slots):
    """Kernel: leave exact entries alone; may leave more than k."""
    # First those that look best: their exact scores raise the floor above half of the others.
    _score_from(lists, u, lists.floors[u], table.item_embeddings, users, user)
    _drop_low(lists, u, k, cap, table.item_provider, slots)
    _score_from(lists, u, -np.inf, table.item_embeddings, users, user)
    _drop_low(lists, u, k, cap, table.item_provider, slots)


@njit(cache=True, nogil=True)
def offer(lists, r, score, item, k, cap, table, users, u, slots):
    """Kernel: put an exactly scored item on list r, that of user u, if it could stay there; others as for tighten."""
    if score < lists.floors[r]:
        return
    at = lists.counts[r]
    lists.low[r, at], lists.high[r, at], lists.item[r, at] = score, score, item
    lists.counts[r] = at + 1
    if at + 1 == lists.low.shape[1]:
        tighten(lists, r, k, cap, table, users, u, slots)


@njit(cache=True, nogil=True)
def settle(lists, u, k, cap, table, users, user, slots):
    """Kernel: leave the exact list of what was offered: k entries or fewer, best first, equal ones by item_index."""
    make_exact(lists, u, k, cap, table, users, user, slots)
    low, high, item = lists.low[u], lists.high[u], lists.item[u]
    count = lists.counts[u]
    keys = np.empty(count, np.int64)
    for at in range(count):
        keys[at] = (np.int64(~to_order(low[at])) << 32) | item[at]  # ascending: the best score, then the smaller item
    keys.sort()
    slots[:] = 0
    kept = 0
    for key in keys:
        if kept == k:
            break
        found = np.int32(key & 0x7FFFFFFF)
        if cap > 0 and count_up(slots, table.item_provider[found]) > cap:
            continue
        low[kept] = from_order(~np.int32(key >> 32))
        high[kept], item[kept] = low[kept], found
        kept += 1
    lists.counts[u] = kept
