"""Exact top-k over the item table: a scan with a proven bound finds what a float64 score decides.

Kernels are serial and release the GIL: parallelism comes from worker threads that each own a chunk (Numba's workqueue
layer must not be entered from two threads).
"""

from __future__ import annotations

from typing import Final

import numpy as np
from numba import njit

from ipsrec_kernels.array_types import Float32Array
from ipsrec_kernels.best_list import BestLists, empty_lists
from ipsrec_kernels.check import check_array, check_at_least
from ipsrec_kernels.history_items import (
    CheckedTerms,
    History,
    HistoryTerms,
    check_terms,
    offer_histories,
    offer_items,
    scan_big,
)
from ipsrec_kernels.item_table import ItemTable, pad_dims
from ipsrec_kernels.left_out import fill_bits, left_out
from ipsrec_kernels.ragged import LARGEST_INDEX, Ragged, sorted_lists
from ipsrec_kernels.scan import scan
from ipsrec_kernels.scan_users import prepare_users
from ipsrec_kernels.shortlist import empty_shortlists, first_lists, provider_slots, room_for, settle

TILE_USERS: Final = 192  # users that share one pass over the blocks; their vectors and shortlists stay in L2
_TILE_ENTRIES: Final = 1 << 19  # of all shortlists of a tile: fewer users share a pass where lists are long


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
    floors: Float32Array | None = None,
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
        floors: (B,) float32, scores that top_k items elsewhere reach, in a list under the same rules: lower ones are
            not looked for. None: all are.

    Returns:
        item_index (B, top_k) int32, best first, PADDING past the end; scores (B, top_k) float32, 0 past the end;
        counts (B,) int32, shorter than top_k only where nothing more was allowed, or reaches the floor.

    Raises:
        ValueError: a wrong dtype, shape or index; NaN or infinity in user_embedding or terms; terms without history.
    """
    users = check_users(table, user_embedding)
    check_at_least("top_k", top_k, low=1)
    num_users, num_items = len(users), len(table.item_provider) - 1
    cap = 0 if max_per_provider is None else check_at_least("max_per_provider", max_per_provider, low=1)
    unwanted = sorted_lists("seen", seen, num_users=num_users, high=LARGEST_INDEX)
    checked_terms = check_terms(history, terms, num_users=num_users)
    choice = None
    if candidates is not None:
        choice = sorted_lists("candidates", candidates, num_users=num_users, high=num_items)
    if floors is not None:
        floors = check_array("floors", floors, dtype=np.float32)
        if len(floors) != num_users or np.isnan(floors).any():
            raise ValueError(
                f"floors are of {len(floors)} users or have NaN, expected a number for each of {num_users}"
            )
    best = empty_lists(num_users, top_k)
    _retrieve(table, pad_dims(users), unwanted, checked_terms, choice, cap, floors, best, with_terms=terms is not None)
    return best


def check_users(table: ItemTable, user_embedding: Float32Array) -> Float32Array:
    """Give back user embeddings that fit a table: (B, dim) float32, finite.

    Raises:
        ValueError: they do not.
    """
    users: Float32Array = check_array("user_embedding", user_embedding, dtype=np.float32, ndim=2)
    if users.shape[1] != table.dim:
        raise ValueError(f"user_embedding has {users.shape[1]} dims, the items have {table.dim}; expected as many")
    if not np.isfinite(users).all():
        row = int((~np.isfinite(users)).any(axis=1).argmax())
        raise ValueError(f"user_embedding[{row}] has NaN or infinity, expected finite numbers")
    return users


def users_at_once(num_users: int, room: int) -> int:
    """Users that share a pass, whose shortlists have this room: equal shares of all of them, 1 or more."""
    passes = max(1, -(-num_users // max(1, min(TILE_USERS, _TILE_ENTRIES // room))))
    return max(1, -(-num_users // passes))


def _retrieve(
    table: ItemTable,
    users: Float32Array,
    unwanted: Ragged,
    terms: CheckedTerms,
    choice: Ragged | None,
    cap: int,
    floors: Float32Array | None,
    best: BestLists,
    *,
    with_terms: bool,
) -> None:
    """Fill the lists, a tile of users at a time."""
    top_k = best.scores.shape[1]
    room = room_for(top_k, len(table.item_at))
    scan_users, scratch = prepare_users(table, users)
    at_once = users_at_once(len(users), room)
    lists, slots = empty_shortlists(at_once, room), provider_slots(room)
    filters = left_out(unwanted, terms.sorted_items, terms.sorted_providers, users_at_once=at_once)
    for first in range(0, len(users), at_once):
        some = first_lists(lists, min(at_once, len(users) - first))
        if floors is not None:
            some.floors[:] = floors[first : first + len(some.floors)]
        if choice is not None:
            _choose(table, users, first, unwanted, terms, choice, some, top_k, cap, slots)
        else:
            fill_bits(filters, first, len(some.counts))
            if with_terms and len(table.big_providers):  # a call's arguments alone cost one user 40 microseconds
                every_one = np.ones(len(some.counts), np.bool_)
                scan_big(table, users, scan_users, scratch, first, filters, terms, some, every_one, top_k, cap, slots)
            every = np.arange(len(some.counts))
            scan(table, users, scan_users, scratch, first, some, every, 0, top_k, cap, filters, slots)
            if with_terms:
                offer_histories(table, users, scan_users.norms, first, filters, terms, some, top_k, cap, slots)
        _finish(table, users, first, some, best, cap, slots)


@njit(cache=True, nogil=True)
def _choose(table, users, first, unwanted, terms, choice, lists, k, cap, slots):
    for r in range(len(lists.counts)):
        offer_items(choice, table, users, first + r, unwanted, terms, lists, r, k, cap, slots)


@njit(cache=True, nogil=True)
def _finish(table, users, first, lists, best, cap, slots):
    """Turn the shortlists of users first, first + 1, ... into lists."""
    for r in range(len(lists.counts)):
        finish_list(table, users, first + r, lists, r, best, cap, slots)


@njit(cache=True, nogil=True)
def finish_list(table, users, u, lists, r, best, cap, slots):
    """Kernel: turn shortlist r into the list of user u."""
    settle(lists, r, best.scores.shape[1], cap, table, users, u, slots)
    for at in range(lists.counts[r]):
        best.item_index[u, at] = lists.item[r, at]
        best.scores[u, at] = lists.low[r, at]
    best.counts[u] = lists.counts[r]
