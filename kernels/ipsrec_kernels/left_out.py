"""What the scan must not offer to a user: unwanted items, and what was scored already with its history terms.

Most lookups end at a bitmap of hashes; a bit that is set sends them to the sorted list.
Kernels only; serial, GIL released (Numba's workqueue layer must not be entered from two threads).
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from numba import njit

from ipsrec_kernels.ragged import Ragged, in_sorted

_WORDS = 16  # of 64 bits for a user: 50 items leave 19 lookups of 20 to the bitmap


class LeftOut(NamedTuple):
    """What each user's scan leaves out.

    Attributes:
        unwanted: (B lists) item_index, ascending.
        own_items: (B lists) item_index, ascending.
        own_providers: (B lists) provider_index, ascending; 0 leaves out nothing.
        item_bits: (U, 16) uint64, for U users at a time: the low 10 bits of the items of both lists.
        provider_bits: (U, 16) uint64, likewise of the providers.
    """

    unwanted: Ragged
    own_items: Ragged
    own_providers: Ragged
    item_bits: npt.NDArray[np.uint64]
    provider_bits: npt.NDArray[np.uint64]


def left_out(unwanted: Ragged, own_items: Ragged, own_providers: Ragged, *, users_at_once: int) -> LeftOut:
    """Lists with bitmaps for so many users, not filled yet."""
    shape = (users_at_once, _WORDS)
    return LeftOut(unwanted, own_items, own_providers, np.zeros(shape, np.uint64), np.zeros(shape, np.uint64))


@njit(cache=True, nogil=True)
def fill_bits(lists, first, count):
    """Kernel: make the bitmaps those of users first..first + count - 1."""
    lists.item_bits[:] = 0
    lists.provider_bits[:] = 0
    for r in range(count):
        _set_bits(lists.item_bits, r, lists.unwanted, first + r)
        _set_bits(lists.item_bits, r, lists.own_items, first + r)
        _set_bits(lists.provider_bits, r, lists.own_providers, first + r)


@njit(cache=True, nogil=True)
def _set_bits(bits, r, lists, u):
    for at in range(lists.offsets[u], lists.offsets[u + 1]):
        value = lists.values[at]
        bits[r, (value >> 6) & (_WORDS - 1)] |= np.uint64(1) << np.uint64(value & 63)


@njit(cache=True, nogil=True)
def may_hold(bits, r, value):
    """Kernel: could the value be in a list of row r? Every value of the lists could."""
    return (bits[r, (value >> 6) & (_WORDS - 1)] >> np.uint64(value & 63)) & np.uint64(1) != 0


@njit(cache=True, nogil=True)
def is_item_left_out(lists, u, item):
    """Kernel: is it unwanted, or scored already?"""
    return in_sorted(lists.unwanted, u, item) or in_sorted(lists.own_items, u, item)


@njit(cache=True, nogil=True)
def is_provider_left_out(lists, u, provider):
    """Kernel: were the provider's items scored already?"""
    return provider != 0 and in_sorted(lists.own_providers, u, provider)
