"""Exact lists from what a search elsewhere proposes, and which of them are certain.

Kernels are serial and release the GIL: parallelism comes from worker threads that each own a chunk (Numba's workqueue
layer must not be entered from two threads).
"""

from __future__ import annotations

from typing import Final

import numpy as np
from numba import njit

from ipsrec_kernels.array_types import BoolArray, Float32Array, Int32Array
from ipsrec_kernels.best_list import BestLists, empty_lists
from ipsrec_kernels.bits import from_order, to_order
from ipsrec_kernels.check import check_array, check_at_least, check_range, read_only
from ipsrec_kernels.history_items import (
    History,
    HistoryTerms,
    check_terms,
    offer_items,
    offer_providers,
    scan_big,
)
from ipsrec_kernels.item_table import ItemTable, pad_dims, row_norms
from ipsrec_kernels.left_out import fill_bits, is_item_left_out, is_provider_left_out, left_out, may_hold
from ipsrec_kernels.memory import prefetch_row
from ipsrec_kernels.padding import PADDING
from ipsrec_kernels.proposals import UNKNOWN, Proposals
from ipsrec_kernels.ragged import LARGEST_INDEX, Ragged, in_sorted, sorted_lists
from ipsrec_kernels.scan_users import prepare_users
from ipsrec_kernels.score import age_sum, dot64, dot_at, rounded
from ipsrec_kernels.shortlist import count_up, empty_shortlists, first_lists, offer, provider_slots, room_for, tighten
from ipsrec_kernels.topk import check_users, finish_list, users_at_once

_AHEAD: Final = 16  # rows on their way from memory while one is scored: a few microseconds a user less than 6


def retrieve_proposed(
    table: ItemTable,
    user_embedding: Float32Array,
    proposals: Proposals,
    *,
    top_k: int,
    seen: Ragged | None,
    history: History | None,
    terms: HistoryTerms | None,
    max_per_provider: int | None,
) -> tuple[BestLists, BoolArray]:
    """Find each user's best items among the proposed ones and those that history terms touch.

    A list that is certain is the one that retrieve() gives, to the last bit. Nothing that was left out scores above
    `outside`: so the list is certain if it is full and its last score is above that; an equal one could be of a smaller
    item_index. This holds with a cap, too: the walk down the whole ranking has picked the same k items by then.

    Args:
        table: as build_item_table made it.
        user_embedding: (B, dim) float32.
        proposals: (B) of the table's allowed items, by the plain inner product.
        top_k: this and what follows as for retrieve().
        seen: (B lists) item_index never to recommend to this user.
        history: the entries that terms apply to.
        terms: history terms of the model.
        max_per_provider: at most so many items of one provider.

    Returns:
        The lists, as retrieve() gives them, and (B,) bool, which of them are certain.

    Raises:
        ValueError: as retrieve(), or proposals of other users or items.
    """
    users = check_users(table, user_embedding)
    check_at_least("top_k", top_k, low=1)
    num_users = len(users)
    cap = 0 if max_per_provider is None else check_at_least("max_per_provider", max_per_provider, low=1)
    items = check_array("proposals.items", proposals.items, dtype=np.int32, ndim=2)
    outside = check_array("proposals.outside", proposals.outside, dtype=np.float32)
    if not len(items) == len(outside) == num_users:
        raise ValueError(f"proposals are of {len(items)} and {len(outside)} users, expected {num_users}")
    check_range("proposals.items", items.reshape(-1), low=PADDING, high=len(table.item_provider) - 1)
    unwanted = sorted_lists("seen", seen, num_users=num_users, high=LARGEST_INDEX)
    checked_terms = check_terms(history, terms, num_users=num_users)
    best = empty_lists(num_users, top_k)
    touched = _check_touched(proposals, num_users=num_users, num_items=len(table.item_provider) - 1)
    unknown = touched[:, 0] == UNKNOWN
    users = pad_dims(users)
    norms = np.zeros(num_users, np.float64)
    row_norms(users, norms)
    room = room_for(top_k, len(table.item_at))
    at_once = users_at_once(num_users, room)
    lists, slots = empty_shortlists(at_once, room), provider_slots(room)
    filters = left_out(unwanted, checked_terms.sorted_items, checked_terms.sorted_providers, users_at_once=at_once)
    by_lists = unknown if terms is not None else np.zeros(num_users, np.bool_)
    has_big = len(table.big_providers) > 0 and bool(by_lists.any())
    scan_users, scratch = prepare_users(table, users) if has_big else (None, None)
    longest = int(np.diff(checked_terms.offsets).max(initial=0))
    keys = np.zeros(items.shape[1] + touched.shape[1] + longest, np.int64)
    many_slots = provider_slots(len(keys))
    for first in range(0, num_users, at_once):
        some = first_lists(lists, min(at_once, num_users - first))
        rows = by_lists[first : first + len(some.counts)]
        fill_bits(filters, first, len(rows))
        _rank_rows(table, users, first, rows, items, touched, filters, checked_terms, keys, best, cap, many_slots)
        if rows.any():
            _offer_proposed(table, users, first, rows, items, filters, some, top_k, cap, slots)
            if has_big:
                scan_big(
                    table, users, scan_users, scratch, first, filters, checked_terms, some, rows, top_k, cap, slots
                )
            _offer_touched(table, users, norms, first, rows, filters, checked_terms, some, best, cap, slots)
    return best, certain_lists(best, outside)


def certain_lists(lists: BestLists, outside: Float32Array) -> BoolArray:
    """Which lists are certain: those that are full and end above all that was left out, or of which nothing was.

    Args:
        lists: (B) of what was proposed.
        outside: (B,) float32, as Proposals has it.

    Returns:
        (B,) bool.
    """
    full = lists.counts == lists.scores.shape[1]
    certain: BoolArray = (full & (lists.scores[:, -1] > outside)) | (outside == -np.inf)
    return certain


def _check_touched(proposals: Proposals, *, num_users: int, num_items: int) -> Int32Array:
    """Give proposals.touched, (B, 1 or more); where there are none, nothing is known of any row."""
    if proposals.touched is None:
        return read_only(np.full((num_users, 1), UNKNOWN, np.int32))
    touched: Int32Array = check_array("proposals.touched", proposals.touched, dtype=np.int32, ndim=2)
    if len(touched) != num_users or touched.shape[1] == 0:
        raise ValueError(f"proposals.touched has shape {touched.shape}, expected ({num_users}, 1 or more)")
    check_range("proposals.touched", touched.reshape(-1), low=UNKNOWN, high=num_items)
    return touched


@njit(cache=True, nogil=True)
def _key(score, item):
    """A number that sorts ascending as lists do: the best score first, equal ones by the smaller item."""
    return (np.int64(~to_order(score)) << 32) | item


@njit(cache=True, nogil=True)
def _rank_rows(table, users, first, by_lists, items, touched, filters, terms, keys, best, cap, slots):
    """Rank what is proposed and what terms touch, for the users of a tile of whom all of that is known.

    Every score is exact, so that one sort makes a list: shortlists, made for items by the thousand, took five times as
    long. Items are allowed ones, as Proposals has it, and are not looked up again.
    """
    # Names for the inner loops: reading a named tuple's array there costs two atomic reference counts each time.
    item_embeddings, item_provider, allowed = table.item_embeddings, table.item_provider, table.allowed
    item_bits, provider_bits, own = filters.item_bits, filters.provider_bits, terms.sorted_items
    own_items, own_offsets, entry_items, entry_providers = own.values, own.offsets, terms.items, terms.providers
    offsets, provider_weights, item_weights = terms.offsets, terms.provider_weights, terms.item_weights
    best_items, best_scores, counts = best.item_index, best.scores, best.counts
    dims, k = users.shape[1], best_items.shape[1]
    item_rows, user_rows = item_embeddings.ctypes.data, users.ctypes.data
    for r in range(len(by_lists)):
        if by_lists[r]:
            continue
        u, count = first + r, 0
        user, start, stop = user_rows + u * dims * 4, offsets[u], offsets[u + 1]
        for at in range(items.shape[1]):
            item = items[u, at]
            if item == PADDING:
                continue
            if at + _AHEAD < items.shape[1]:
                prefetch_row(item_embeddings, items[u, at + _AHEAD])
            if may_hold(item_bits, r, item) and is_item_left_out(filters, u, item):
                continue
            if stop > start:  # what is touched comes later
                provider = item_provider[item]
                if may_hold(provider_bits, r, provider) and is_provider_left_out(filters, u, provider):
                    continue
            keys[count] = _key(rounded(dot_at(user, item_rows + item * dims * 4, dims), 0.0, 0.0), item)
            count += 1
        if stop > start:
            for at in range(touched.shape[1]):
                item = touched[u, at]
                if item == PADDING:
                    continue
                if at + _AHEAD < touched.shape[1]:
                    prefetch_row(item_embeddings, touched[u, at + _AHEAD])
                if may_hold(item_bits, r, item) and is_item_left_out(filters, u, item):
                    continue
                term = age_sum(entry_providers, start, stop, provider_weights, item_provider[item])
                keys[count] = _key(rounded(dot_at(user, item_rows + item * dims * 4, dims), term, 0.0), item)
                count += 1
            before = PADDING
            for at in range(own_offsets[u], own_offsets[u + 1]):
                item = own_items[at]
                if item == before or item >= len(allowed) or not allowed[item] or in_sorted(filters.unwanted, u, item):
                    continue
                before, provider, term = item, item_provider[item], 0.0
                if provider != 0:
                    term = age_sum(entry_providers, start, stop, provider_weights, provider)
                own_term = age_sum(entry_items, start, stop, item_weights, item)
                keys[count] = _key(rounded(dot_at(user, item_rows + item * dims * 4, dims), term, own_term), item)
                count += 1
        ranked, kept = keys[:count], 0
        ranked.sort()
        if cap > 0:
            slots[:] = 0
        for key in ranked:
            if kept == k:
                break
            item = np.int32(key & 0x7FFFFFFF)
            if cap > 0 and count_up(slots, item_provider[item]) > cap:
                continue
            best_items[u, kept], best_scores[u, kept] = item, from_order(~np.int32(key >> 32))
            kept += 1
        counts[u] = kept


@njit(cache=True, nogil=True)
def _offer_proposed(table, users, first, wanted, items, filters, lists, k, cap, slots):
    """Score what is proposed, but not what terms touch: that is offered with them; of users that `wanted` selects.

    Then the floors rise to what the lists have, so that most of what terms touch need not be looked at.
    """
    item_embeddings, item_provider, allowed = table.item_embeddings, table.item_provider, table.allowed
    item_bits, provider_bits = filters.item_bits, filters.provider_bits
    for r in range(len(lists.counts)):
        if not wanted[r]:
            continue
        u = first + r
        for at in range(items.shape[1]):
            item = items[u, at]
            if item == PADDING:
                continue
            provider = item_provider[item]
            if not allowed[item] or (may_hold(item_bits, r, item) and is_item_left_out(filters, u, item)):
                continue
            if may_hold(provider_bits, r, provider) and is_provider_left_out(filters, u, provider):
                continue
            score = rounded(dot64(users, u, item_embeddings, item), 0.0, 0.0)
            offer(lists, r, score, item, k, cap, table, users, u, slots)
        tighten(lists, r, k, cap, table, users, u, slots)


@njit(cache=True, nogil=True)
def _offer_touched(table, users, norms, first, wanted, filters, terms, lists, best, cap, slots):
    """Score all that terms touch, and finish the lists."""
    k = best.scores.shape[1]
    for r in range(len(lists.counts)):
        if not wanted[r]:
            continue
        u = first + r
        offer_items(terms.sorted_items, table, users, u, filters.unwanted, terms, lists, r, k, cap, slots)
        offer_providers(table, users, norms, first, filters, terms, lists, r, k, cap, slots)
        finish_list(table, users, u, lists, r, best, cap, slots)
