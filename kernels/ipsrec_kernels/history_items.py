"""History terms: the items that they touch are scored exactly, or, of a big provider, scanned.

All other items of a user's list have the inner product alone, which is what the scan of topk.py knows.

Kernels are serial and release the GIL: parallelism comes from worker threads that each own a chunk (Numba's workqueue
layer must not be entered from two threads).
"""

from __future__ import annotations

from typing import Final, NamedTuple

import numpy as np
from numba import njit

from ipsrec_kernels.array_types import Float64Array, Int32Array, Int64Array
from ipsrec_kernels.check import check_array, check_offsets, read_only
from ipsrec_kernels.left_out import is_item_left_out, is_provider_left_out, may_hold
from ipsrec_kernels.memory import prefetch_row
from ipsrec_kernels.padding import PADDING
from ipsrec_kernels.ragged import LARGEST_INDEX, Ragged, in_sorted, sorted_lists
from ipsrec_kernels.scan import scan, wanted_score
from ipsrec_kernels.score import age_sum, dot64, rounded
from ipsrec_kernels.shortlist import make_exact, offer

_AHEAD: Final = 6  # rows on their way from memory while one is scored


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


class CheckedTerms(NamedTuple):
    """Checked history and terms, as the kernels read them; without terms, every history is empty."""

    items: Int32Array
    providers: Int32Array
    offsets: Int64Array
    sorted_items: Ragged
    sorted_providers: Ragged
    provider_weights: Float64Array
    item_weights: Float64Array


def check_terms(history: History | None, terms: HistoryTerms | None, *, num_users: int) -> CheckedTerms:
    """Check both and sort what is searched; empty histories where there are no terms."""
    if terms is None:
        lists = sorted_lists("history", None, num_users=num_users, high=0)
        none, no_weights = read_only(np.zeros(0, np.int32)), read_only(np.zeros(0, np.float64))
        return CheckedTerms(none, none, lists.offsets, lists, lists, no_weights, no_weights)
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
    return CheckedTerms(
        items,
        providers,
        offsets,
        sorted_lists("history.items", Ragged(items, offsets), num_users=num_users, high=LARGEST_INDEX),
        sorted_lists("history.providers", Ragged(providers, offsets), num_users=num_users, high=LARGEST_INDEX),
        provider_weights,
        item_weights,
    )


@njit(cache=True, nogil=True)
def provider_term(terms, u, provider):
    """Kernel: what the history of user u adds to each item of a provider."""
    if provider == 0:
        return 0.0
    return age_sum(terms.providers, terms.offsets[u], terms.offsets[u + 1], terms.provider_weights, provider)


@njit(cache=True, nogil=True)
def item_term(terms, u, item):
    """Kernel: what it adds to an item that is in it, beside the provider's."""
    return age_sum(terms.items, terms.offsets[u], terms.offsets[u + 1], terms.item_weights, item)


@njit(cache=True, nogil=True)
def offer_items(items, table, users, u, unwanted, terms, lists, r, k, cap, slots):
    """Kernel: score each allowed item of the ascending list of user u exactly; no scan."""
    before = PADDING
    for at in range(items.offsets[u], items.offsets[u + 1]):
        item = items.values[at]
        if item == before or item >= len(table.allowed) or not table.allowed[item] or in_sorted(unwanted, u, item):
            continue
        before = item
        of_provider = provider_term(terms, u, table.item_provider[item])
        score = rounded(dot64(users, u, table.item_embeddings, item), of_provider, item_term(terms, u, item))
        offer(lists, r, score, item, k, cap, table, users, u, slots)


@njit(cache=True, nogil=True)
def offer_histories(table, users, norms, first, filters, terms, lists, k, cap, slots):
    """Kernel: score the items that terms touch: the history's own, and the others of its providers, but for big ones.

    After the scan, whose floors say of most of them that they need not be looked at; before it, the scan's own floors
    would rise sooner, and the whole took longer.
    """
    for r in range(len(lists.counts)):
        offer_items(terms.sorted_items, table, users, first + r, filters.unwanted, terms, lists, r, k, cap, slots)
        offer_providers(table, users, norms, first, filters, terms, lists, r, k, cap, slots)


@njit(cache=True, nogil=True)
def offer_providers(table, users, norms, first, filters, terms, lists, r, k, cap, slots):
    """Kernel: the second half of that, for list r alone."""
    own, before = terms.sorted_providers, 0  # provider 0 is "no provider"
    for at in range(own.offsets[first + r], own.offsets[first + r + 1]):
        provider = own.values[at]
        if provider == before or provider >= len(table.provider_offsets) - 1:
            continue
        before = provider
        if _is_big(table, provider):
            continue
        term = provider_term(terms, first + r, provider)
        _offer_provider(table, provider, term, users, first + r, norms[first + r], filters, lists, r, k, cap, slots)


@njit(cache=True, nogil=True)
def _is_big(table, provider):
    at = np.searchsorted(table.big_providers, provider)
    return at < len(table.big_providers) and table.big_providers[at] == provider


@njit(cache=True, nogil=True)
def scan_big(table, users, scan_users, scratch, first, filters, terms, lists, wanted, k, cap, slots):
    """Kernel: scan the items of each big provider for the users whose history has it, of those that `wanted` selects.

    Exact scores of all would take longer. Before the scan of all items, which leaves these out: if they are the best of
    all, it would start with nothing but items to leave out, and without a floor.
    """
    rows = np.zeros(len(lists.counts), np.int64)
    for big, provider in enumerate(table.big_providers):
        found = 0
        for r in range(len(lists.counts)):
            if not wanted[r] or not may_hold(filters.provider_bits, r, provider):
                continue
            if is_provider_left_out(filters, first + r, provider):
                lists.terms[r] = provider_term(terms, first + r, provider)
                rows[found] = r
                found += 1
        if found > 0:
            some = rows[:found]
            scan(table, users, scan_users, scratch, first, lists, some, big + 1, k, cap, filters, slots)
            for r in some:
                make_exact(lists, r, k, cap, table, users, first + r, slots)
                lists.terms[r] = 0.0


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
            offer(lists, r, score, item, k, cap, table, users, u, slots)
            floor = lists.floors[r]
            needed = wanted_score(floor)
