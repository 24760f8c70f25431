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
from ipsrec_kernels.check import check_array, check_at_least, check_range, read_only
from ipsrec_kernels.history_items import (
    History,
    HistoryTerms,
    check_terms,
    offer_items,
    offer_providers,
    provider_term,
    scan_big,
)
from ipsrec_kernels.item_table import ItemTable, pad_dims, row_norms
from ipsrec_kernels.left_out import fill_bits, is_item_left_out, is_provider_left_out, left_out, may_hold
from ipsrec_kernels.memory import prefetch_row
from ipsrec_kernels.padding import PADDING
from ipsrec_kernels.proposals import UNKNOWN, Proposals
from ipsrec_kernels.ragged import LARGEST_INDEX, Ragged, sorted_lists
from ipsrec_kernels.scan_users import prepare_users
from ipsrec_kernels.score import dot64, rounded
from ipsrec_kernels.shortlist import empty_shortlists, first_lists, offer, provider_slots, room_for, tighten
from ipsrec_kernels.topk import check_users, finish_lists, users_at_once

_AHEAD: Final = 6  # rows on their way from memory while one is scored


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
    has_big = terms is not None and len(table.big_providers) > 0 and bool(unknown.any())
    scan_users, scratch = prepare_users(table, users) if has_big else (None, None)
    for first in range(0, num_users, at_once):
        some = first_lists(lists, min(at_once, num_users - first))
        fill_bits(filters, first, len(some.counts))
        _offer_proposed(table, users, first, items, filters, some, top_k, cap, slots)
        of_some = unknown[first : first + len(some.counts)]
        if has_big:
            scan_big(table, users, scan_users, scratch, first, filters, checked_terms, some, of_some, top_k, cap, slots)
        if terms is not None:
            _offer_touched(
                table, users, norms, first, touched, of_some, filters, checked_terms, some, top_k, cap, slots
            )
        finish_lists(table, users, first, some, best, cap, slots)
    certain = (best.counts == top_k) & (best.scores[:, -1] > outside)
    return best, certain | (outside == -np.inf)


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
def _offer_proposed(table, users, first, items, filters, lists, k, cap, slots):
    """Score what is proposed, but not what terms touch: that is offered with them.

    Then the floors rise to what the lists have, so that most of what terms touch need not be looked at.
    """
    # Names for the inner loop: reading a named tuple's array there costs two atomic reference counts each time.
    item_embeddings, item_provider, allowed = table.item_embeddings, table.item_provider, table.allowed
    item_bits, provider_bits = filters.item_bits, filters.provider_bits
    most = items.shape[1]
    for r in range(len(lists.counts)):
        u = first + r
        for at in range(most):
            item = items[u, at]
            if item == PADDING:
                continue
            if at + _AHEAD < most:
                prefetch_row(item_embeddings, items[u, at + _AHEAD])
            provider = item_provider[item]
            if not allowed[item] or (may_hold(item_bits, r, item) and is_item_left_out(filters, u, item)):
                continue
            if may_hold(provider_bits, r, provider) and is_provider_left_out(filters, u, provider):
                continue
            score = rounded(dot64(users, u, item_embeddings, item), 0.0, 0.0)
            offer(lists, r, score, item, k, cap, table, users, u, slots)
        tighten(lists, r, k, cap, table, users, u, slots)


@njit(cache=True, nogil=True)
def _offer_touched(table, users, norms, first, touched, unknown, filters, terms, lists, k, cap, slots):
    """Score what terms touch: the history's own items, and the items of its providers that are proposed, or all."""
    item_embeddings, item_provider, allowed = table.item_embeddings, table.item_provider, table.allowed
    item_bits = filters.item_bits
    for r in range(len(lists.counts)):
        u = first + r
        offer_items(terms.sorted_items, table, users, u, filters.unwanted, terms, lists, r, k, cap, slots)
        if unknown[r]:
            offer_providers(table, users, norms, first, filters, terms, lists, r, k, cap, slots)
            continue
        for at in range(touched.shape[1]):
            item = touched[u, at]
            if item == PADDING:
                continue
            if at + _AHEAD < touched.shape[1]:
                prefetch_row(item_embeddings, touched[u, at + _AHEAD])
            if not allowed[item] or (may_hold(item_bits, r, item) and is_item_left_out(filters, u, item)):
                continue
            term = provider_term(terms, u, item_provider[item])
            score = rounded(dot64(users, u, item_embeddings, item), term, 0.0)
            offer(lists, r, score, item, k, cap, table, users, u, slots)
