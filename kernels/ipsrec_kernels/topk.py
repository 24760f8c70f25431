"""Exact top-k over the item table: scan in float32, decide in float64.

Kernels are serial and release the GIL: parallelism comes from worker threads that each own a chunk (Numba's workqueue
layer must not be entered from two threads).
"""

from __future__ import annotations

from typing import Final, NamedTuple

import numpy as np
from numba import njit

from ipsrec_kernels.array_types import Float32Array, Float64Array, Int32Array, Int64Array
from ipsrec_kernels.best_list import BestLists, empty_lists, offer, sort_best_first, worst_score
from ipsrec_kernels.check import check_array, check_at_least, check_offsets, read_only
from ipsrec_kernels.item_table import BLOCK_ITEMS, ItemTable, pad_dims
from ipsrec_kernels.padding import PADDING
from ipsrec_kernels.ragged import Ragged, in_sorted, sorted_lists
from ipsrec_kernels.scan import SCAN_USERS, find_survivors, scan_block, scan_threshold
from ipsrec_kernels.score import age_sum, dot64, rounded

TILE_USERS: Final = 256  # users that share one pass over the blocks; their vectors and heaps stay in L2
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
    users = _pad(users)
    best = empty_lists(num_users, top_k)
    if candidates is not None:
        choice = sorted_lists("candidates", candidates, num_users=num_users, high=num_items)
        _choose(table, users, unwanted, checked_terms, choice, cap, best)
    else:
        if terms is not None:
            _offer_histories(table, users, unwanted, checked_terms, cap, best)
        _scan(table, users, unwanted, checked_terms, cap, best)
    sort_best_first(best)
    return best


def _pad(users: Float32Array) -> Float32Array:
    """Append zeros to rows and users, so that dims and users fill whole steps of the scan."""
    users = pad_dims(users)
    missing = -len(users) % SCAN_USERS
    return read_only(np.pad(users, ((0, missing), (0, 0)))) if missing else users


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
def _choose(table, users, unwanted, terms, choice, cap, best):
    """Score every allowed candidate exactly; no scan."""
    for u in range(len(best.counts)):
        before = PADDING
        for at in range(choice.offsets[u], choice.offsets[u + 1]):
            item = choice.values[at]
            if item == before or not table.allowed[item] or in_sorted(unwanted, u, item):
                continue
            before = item
            provider_term = _provider_term(terms, u, table.item_provider[item])
            score = rounded(dot64(users, u, table.item_embeddings, item), provider_term, _item_term(terms, u, item))
            offer(best, u, score, item, table.item_provider, cap)


@njit(cache=True, nogil=True)
def _offer_histories(table, users, unwanted, terms, cap, best):
    """Score all items that terms can touch: those of the history's providers, and the history's own items."""
    for u in range(len(best.counts)):
        _offer_own_providers(table, users, u, unwanted, terms, cap, best)
        _offer_own_items(table, users, u, unwanted, terms, cap, best)


@njit(cache=True, nogil=True)
def _offer_own_providers(table, users, u, unwanted, terms, cap, best):
    # Names for the inner loop: reading a named tuple's array there costs two atomic reference counts each time.
    own, own_items = terms.sorted_providers, terms.sorted_items
    item_embeddings, item_provider, provider_items = table.item_embeddings, table.item_provider, table.provider_items
    before = 0  # provider 0 is "no provider"
    for at in range(own.offsets[u], own.offsets[u + 1]):
        provider = own.values[at]
        if provider == before or provider >= len(table.provider_offsets) - 1:
            continue
        before = provider
        provider_term = _provider_term(terms, u, provider)
        for place in range(table.provider_offsets[provider], table.provider_offsets[provider + 1]):
            item = provider_items[place]
            if in_sorted(unwanted, u, item):
                continue
            item_term = _item_term(terms, u, item) if in_sorted(own_items, u, item) else 0.0
            score = rounded(dot64(users, u, item_embeddings, item), provider_term, item_term)
            offer(best, u, score, item, item_provider, cap)


@njit(cache=True, nogil=True)
def _offer_own_items(table, users, u, unwanted, terms, cap, best):
    own = terms.sorted_items
    before = PADDING
    for at in range(own.offsets[u], own.offsets[u + 1]):
        item = own.values[at]
        if item == before or item >= len(table.allowed) or not table.allowed[item]:
            continue
        before = item
        provider = table.item_provider[item]
        if (provider != 0 and in_sorted(terms.sorted_providers, u, provider)) or in_sorted(unwanted, u, item):
            continue  # offered with its provider, or not wanted
        score = rounded(dot64(users, u, table.item_embeddings, item), 0.0, _item_term(terms, u, item))
        offer(best, u, score, item, table.item_provider, cap)


@njit(cache=True, nogil=True)
def _scan(table, users, unwanted, terms, cap, best):
    """Offer all other items: those whose float32 sum says that they could get into the list are scored exactly.

    A tile of users shares each block while it is in cache, and their survivors are offered together: a call with named
    tuples costs two atomic reference counts for each array in them. Thresholds only rise, and an item below one can no
    longer get in, cap or no cap: entering a full list means beating its worst. `users` has rows of zeros up to a
    multiple of SCAN_USERS.
    """
    blocks, block_norms = table.blocks, table.block_norms
    num_users, dims = len(best.counts), users.shape[1]
    sums = np.empty((SCAN_USERS, BLOCK_ITEMS), np.float32)
    survivors = np.empty((min(TILE_USERS, num_users) * BLOCK_ITEMS, 2), np.int32)
    thresholds = np.empty(SCAN_USERS, np.float32)
    norms = np.empty(num_users, np.float64)
    worst = np.empty(num_users, np.float32)
    for u in range(num_users):
        norms[u] = np.sqrt(dot64(users, u, users, u))
        worst[u] = worst_score(best, u)
    for first in range(0, num_users, TILE_USERS):
        for block in range(len(blocks)):
            found = 0
            for u in range(first, min(first + TILE_USERS, num_users), SCAN_USERS):
                if _set_thresholds(worst, norms, u, block_norms[block], dims, thresholds):
                    scan_block(users, u, blocks, block, sums)
                    for r in range(min(SCAN_USERS, num_users - u)):
                        found = find_survivors(sums, r, thresholds[r], u + r, survivors, found)
            if found > 0:
                items = table.item_index[block * BLOCK_ITEMS :]
                _offer_survivors(table, users, unwanted, terms, cap, best, items, survivors[:found], worst)


@njit(cache=True, nogil=True)
def _set_thresholds(worst, norms, u, block_norm, dims, thresholds):
    """Fill in the threshold of each user of one pass; False if no item of the block can get into any of their lists."""
    needed = False
    for r in range(min(SCAN_USERS, len(norms) - u)):
        thresholds[r] = scan_threshold(worst[u + r], norms[u + r] * block_norm, dims)
        needed |= thresholds[r] < np.inf
    return needed


@njit(cache=True, nogil=True)
def _offer_survivors(table, users, unwanted, terms, cap, best, items, survivors, worst):
    """Offer the (user, place in items) pairs that are allowed to this user; brings `worst` up to date."""
    own_providers, own_items = terms.sorted_providers, terms.sorted_items
    item_embeddings, item_provider = table.item_embeddings, table.item_provider
    for at in range(len(survivors)):
        u, j = survivors[at]
        if j >= len(items):
            continue  # zeros that fill the last block
        item = items[j]
        provider = item_provider[item]
        if provider != 0 and in_sorted(own_providers, u, provider):
            continue  # was offered with its history terms
        if in_sorted(own_items, u, item) or in_sorted(unwanted, u, item):
            continue
        offer(best, u, rounded(dot64(users, u, item_embeddings, item), 0.0, 0.0), item, item_provider, cap)
        worst[u] = worst_score(best, u)
