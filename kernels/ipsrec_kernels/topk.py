"""Exact top-k over the item table: a scan with a proven bound finds what a float64 score decides.

Kernels are serial and release the GIL: parallelism comes from worker threads that each own a chunk (Numba's workqueue
layer must not be entered from two threads).
"""

from __future__ import annotations

from typing import Final, NamedTuple

import numpy as np
from numba import njit

from ipsrec_kernels.array_types import Float32Array, Float64Array, Int32Array, Int64Array
from ipsrec_kernels.best_list import BestLists, empty_lists
from ipsrec_kernels.check import check_array, check_at_least, check_offsets, read_only
from ipsrec_kernels.item_table import ItemTable, pad_dims
from ipsrec_kernels.left_out import fill_bits, is_item_left_out, is_provider_left_out, left_out, may_hold
from ipsrec_kernels.memory import prefetch_row
from ipsrec_kernels.padding import PADDING
from ipsrec_kernels.ragged import Ragged, in_sorted, sorted_lists
from ipsrec_kernels.scan import scan, wanted_score
from ipsrec_kernels.scan_users import prepare_users
from ipsrec_kernels.score import age_sum, dot64, rounded
from ipsrec_kernels.shortlist import (
    empty_shortlists,
    first_lists,
    make_exact,
    provider_slots,
    room_for,
    settle,
    tighten,
)

TILE_USERS: Final = 192  # users that share one pass over the blocks; their vectors and shortlists stay in L2
_TILE_ENTRIES: Final = 1 << 19  # of all shortlists of a tile: fewer users share a pass where lists are long
_AHEAD: Final = 6  # rows on their way from memory while one is scored
_LARGEST_INDEX: Final = np.iinfo(np.int32).max


class History(NamedTuple):
    """The last max_len entries of each user, end to end, oldest first.

    Attributes:
        items: (N,) int32 item_index.
        providers: (N,) int32 provider_index of each entry; 0 is "no provider" and matches nothing.
        offsets: (B + 1,) int64; user u has entries offsets[u]..offsets[u + 1] - 1. The first may be above 0.
    """

    items: Int32Array
    providers: Int32Array
    offsets: Int64Array


class HistoryTerms(NamedTuple):
    """What a history adds to the score, by age: 0 is the newest entry. Any sign.

    Attributes:
        provider: (max_len,) float64, added for each entry with the item's provider.
        item: (max_len,) float64, added for each entry that is the item itself.
    """

    provider: Float64Array
    item: Float64Array


class _Terms(NamedTuple):
    """Checked history and terms, as the kernels read them; without terms, every history is empty."""

    items: Int32Array
    providers: Int32Array
    offsets: Int64Array
    sorted_items: Ragged
    sorted_providers: Ragged
    provider_weights: Float64Array
    item_weights: Float64Array


def retrieve(
    table: ItemTable,
    user_embedding: Float32Array,
    *,
    top_k: int,
    seen: Ragged | None,
    history: History | None,
    terms: HistoryTerms | None,
    candidates: Ragged | None,
    max_per_provider: int | None,
) -> BestLists:
    """Find each user's best items; exact, and the same whatever the other users of the call.

    score(u, i) = float32(dot + P + I) with, all in float64,
    dot: sum of user_embedding[u, d] * item_embeddings[i, d]; lane j of 8 sums dims j, j + 8, ...; the lanes in order;
    P: sum over the history, oldest to newest, of terms.provider[age] where its provider is item i's, and not 0;
    I: likewise of terms.item[age] where its item is i.
    Higher scores first, equal ones by the smaller item_index. A score beyond float32 is +-inf.

    Args:
        table: as build_item_table made it.
        user_embedding: (B, dim) float32.
        top_k: length of the lists, 1 or more.
        seen: (B lists) item_index never to recommend to this user; any order. None: nothing is left out.
        history: the entries that terms apply to; needed with terms, not read without.
        terms: history terms of the model. None: the score is the inner product.
        candidates: (B lists) the only item_index to choose from; any order. None: the whole table.
        max_per_provider: at most so many items of one provider; "no provider" has no limit. None: no limit.

    Returns:
        item_index (B, top_k) int32, best first, PADDING past the end; scores (B, top_k) float32, 0 past the end;
        counts (B,) int32, shorter than top_k only where nothing more was allowed.

    Raises:
        ValueError: a wrong dtype, shape or index; NaN or infinity in user_embedding or terms; terms without history.
    """
    users = check_array("user_embedding", user_embedding, dtype=np.float32, ndim=2)
    if users.shape[1] != table.dim:
        raise ValueError(f"user_embedding has {users.shape[1]} dims, the items have {table.dim}; expected as many")
    if not np.isfinite(users).all():
        row = int((~np.isfinite(users)).any(axis=1).argmax())
        raise ValueError(f"user_embedding[{row}] has NaN or infinity, expected finite numbers")
    check_at_least("top_k", top_k, low=1)
    num_users, num_items = len(users), len(table.item_provider) - 1
    cap = 0 if max_per_provider is None else check_at_least("max_per_provider", max_per_provider, low=1)
    unwanted = sorted_lists("seen", seen, num_users=num_users, high=_LARGEST_INDEX)
    checked_terms = _check_terms(history, terms, num_users=num_users)
    choice = None
    if candidates is not None:
        choice = sorted_lists("candidates", candidates, num_users=num_users, high=num_items)
    best = empty_lists(num_users, top_k)
    _retrieve(table, pad_dims(users), unwanted, checked_terms, choice, cap, best, with_terms=terms is not None)
    return best


def _retrieve(
    table: ItemTable,
    users: Float32Array,
    unwanted: Ragged,
    terms: _Terms,
    choice: Ragged | None,
    cap: int,
    best: BestLists,
    *,
    with_terms: bool,
) -> None:
    """Fill the lists, a tile of users at a time."""
    top_k = best.scores.shape[1]
    room = room_for(top_k, len(table.item_at))
    scan_users, scratch = prepare_users(table, users)
    passes = max(1, -(-len(users) // max(1, min(TILE_USERS, _TILE_ENTRIES // room))))
    at_once = max(1, -(-len(users) // passes))
    lists, slots = empty_shortlists(at_once, room), provider_slots(room)
    filters = left_out(unwanted, terms.sorted_items, terms.sorted_providers, users_at_once=at_once)
    for first in range(0, len(users), at_once):
        some = first_lists(lists, min(at_once, len(users) - first))
        if choice is not None:
            _choose(table, users, first, unwanted, terms, choice, some, top_k, cap, slots)
        else:
            fill_bits(filters, first, len(some.counts))
            if with_terms:
                _scan_big(table, users, scan_users, scratch, first, filters, terms, some, top_k, cap, slots)
            every = np.arange(len(some.counts))
            scan(table, users, scan_users, scratch, first, some, every, 0, top_k, cap, filters, slots)
            if with_terms:
                _offer_histories(table, users, scan_users.norms, first, filters, terms, some, top_k, cap, slots)
        _finish(table, users, first, some, best, cap, slots)


def _check_terms(history: History | None, terms: HistoryTerms | None, *, num_users: int) -> _Terms:
    """Check both and sort what is searched; empty histories where there are no terms."""
    if terms is None:
        lists = sorted_lists("history", None, num_users=num_users, high=0)
        none, no_weights = read_only(np.zeros(0, np.int32)), read_only(np.zeros(0, np.float64))
        return _Terms(none, none, lists.offsets, lists, lists, no_weights, no_weights)
    if history is None:
        raise ValueError("terms are given without a history, expected both; pass the last max_len entries of each user")
    provider_weights = check_array("terms.provider", terms.provider, dtype=np.float64)
    item_weights = check_array("terms.item", terms.item, dtype=np.float64)
    for name, weights in (("terms.provider", provider_weights), ("terms.item", item_weights)):
        if not (np.abs(weights) <= np.finfo(np.float32).max).all():  # so that no sum of them overflows float64
            raise ValueError(f"{name} has NaN or a number beyond float32, expected finite numbers")
    items = check_array("history.items", history.items, dtype=np.int32)
    providers = check_array("history.providers", history.providers, dtype=np.int32)
    if len(items) != len(providers):
        raise ValueError(f"history has {len(items)} items and {len(providers)} providers, expected as many")
    offsets = check_offsets("history.offsets", history.offsets, num_values=len(items))
    max_len = min(len(provider_weights), len(item_weights))
    longest = int(np.diff(offsets).max(initial=0))
    if longest > max_len:
        raise ValueError(f"a history has {longest} entries, the terms {max_len} ages; pass the last {max_len} entries")
    return _Terms(
        items,
        providers,
        offsets,
        sorted_lists("history.items", Ragged(items, offsets), num_users=num_users, high=_LARGEST_INDEX),
        sorted_lists("history.providers", Ragged(providers, offsets), num_users=num_users, high=_LARGEST_INDEX),
        provider_weights,
        item_weights,
    )


@njit(cache=True, nogil=True)
def _provider_term(terms, u, provider):
    if provider == 0:
        return 0.0
    return age_sum(terms.providers, terms.offsets[u], terms.offsets[u + 1], terms.provider_weights, provider)


@njit(cache=True, nogil=True)
def _item_term(terms, u, item):
    return age_sum(terms.items, terms.offsets[u], terms.offsets[u + 1], terms.item_weights, item)


@njit(cache=True, nogil=True)
def _offer(table, users, u, score, item, lists, r, k, cap, slots):
    """Put an exactly scored item on list r, that of user u, if it could stay there."""
    if score < lists.floors[r]:
        return
    at = lists.counts[r]
    lists.low[r, at], lists.high[r, at], lists.item[r, at] = score, score, item
    lists.counts[r] = at + 1
    if at + 1 == lists.low.shape[1]:
        tighten(lists, r, k, cap, table, users, u, slots)


@njit(cache=True, nogil=True)
def _choose(table, users, first, unwanted, terms, choice, lists, k, cap, slots):
    """Score every allowed candidate exactly; no scan."""
    for r in range(len(lists.counts)):
        u, before = first + r, PADDING
        for at in range(choice.offsets[u], choice.offsets[u + 1]):
            item = choice.values[at]
            if item == before or not table.allowed[item] or in_sorted(unwanted, u, item):
                continue
            before = item
            provider_term = _provider_term(terms, u, table.item_provider[item])
            score = rounded(dot64(users, u, table.item_embeddings, item), provider_term, _item_term(terms, u, item))
            _offer(table, users, u, score, item, lists, r, k, cap, slots)


@njit(cache=True, nogil=True)
def _offer_histories(table, users, norms, first, filters, terms, lists, k, cap, slots):
    """Score the items that terms touch: the history's own, and the others of its providers, but for big ones.

    After the scan, whose floors say of most of them that they need not be looked at; before it, the scan's own floors
    would rise sooner, and the whole took longer.
    """
    for r in range(len(lists.counts)):
        _offer_own_items(table, users, first + r, filters.unwanted, terms, lists, r, k, cap, slots)
        own, before = terms.sorted_providers, 0  # provider 0 is "no provider"
        for at in range(own.offsets[first + r], own.offsets[first + r + 1]):
            provider = own.values[at]
            if provider == before or provider >= len(table.provider_offsets) - 1:
                continue
            before = provider
            if _is_big(table, provider):
                continue
            term = _provider_term(terms, first + r, provider)
            _offer_provider(table, provider, term, users, first + r, norms[first + r], filters, lists, r, k, cap, slots)


@njit(cache=True, nogil=True)
def _is_big(table, provider):
    at = np.searchsorted(table.big_providers, provider)
    return at < len(table.big_providers) and table.big_providers[at] == provider


@njit(cache=True, nogil=True)
def _scan_big(table, users, scan_users, scratch, first, filters, terms, lists, k, cap, slots):
    """Scan the items of each big provider for the users whose history has it: exact scores of all would take longer.

    Before the scan of all items, which leaves these out: if they are the best of all, it would start with nothing but
    items to leave out, and without a floor.
    """
    rows = np.zeros(len(lists.counts), np.int64)
    for big, provider in enumerate(table.big_providers):
        found = 0
        for r in range(len(lists.counts)):
            if may_hold(filters.provider_bits, r, provider) and is_provider_left_out(filters, first + r, provider):
                lists.terms[r] = _provider_term(terms, first + r, provider)
                rows[found] = r
                found += 1
        if found > 0:
            some = rows[:found]
            scan(table, users, scan_users, scratch, first, lists, some, big + 1, k, cap, filters, slots)
            for r in some:
                make_exact(lists, r, k, cap, table, users, first + r, slots)
                lists.terms[r] = 0.0


@njit(cache=True, nogil=True)
def _offer_own_items(table, users, u, unwanted, terms, lists, r, k, cap, slots):
    own, before = terms.sorted_items, PADDING
    for at in range(own.offsets[u], own.offsets[u + 1]):
        item = own.values[at]
        if item == before or item >= len(table.allowed) or not table.allowed[item] or in_sorted(unwanted, u, item):
            continue
        before = item
        provider_term = _provider_term(terms, u, table.item_provider[item])
        score = rounded(dot64(users, u, table.item_embeddings, item), provider_term, _item_term(terms, u, item))
        _offer(table, users, u, score, item, lists, r, k, cap, slots)


@njit(cache=True, nogil=True)
def _offer_provider(table, provider, term, users, u, norm, filters, lists, r, k, cap, slots):
    """Offer the provider's items that are neither unwanted nor the history's own.

    They come by norm: once |user| * |item| + term is below the floor, so are all that follow. Of the others most are
    below it once they are scored: so the lists are asked only about those that are not.
    """
    # Names for the inner loop: reading a named tuple's array there costs two atomic reference counts each time.
    item_embeddings, provider_items, item_bits = table.item_embeddings, table.provider_items, filters.item_bits
    provider_norms = table.provider_norms
    floor, most = lists.floors[r], term + abs(term) * 2.0**-40  # pays for the sum's rounding; 1.0001 for the norms'
    needed = wanted_score(floor)
    start, stop = table.provider_offsets[provider], table.provider_offsets[provider + 1]
    for place in range(start, stop):
        if place + _AHEAD < stop:
            prefetch_row(item_embeddings, provider_items[place + _AHEAD])
        if norm * provider_norms[place] * 1.0001 + most < needed:
            break
        item = provider_items[place]
        score = rounded(dot64(users, u, item_embeddings, item), term, 0.0)
        if score >= floor and not (may_hold(item_bits, r, item) and is_item_left_out(filters, u, item)):
            _offer(table, users, u, score, item, lists, r, k, cap, slots)
            floor = lists.floors[r]
            needed = wanted_score(floor)


@njit(cache=True, nogil=True)
def _finish(table, users, first, lists, best, cap, slots):
    """Turn the shortlists of users first, first + 1, ... into lists."""
    k = best.scores.shape[1]
    for r in range(len(lists.counts)):
        u = first + r
        settle(lists, r, k, cap, table, users, u, slots)
        for at in range(lists.counts[r]):
            best.item_index[u, at] = lists.item[r, at]
            best.scores[u, at] = lists.low[r, at]
        best.counts[u] = lists.counts[r]
