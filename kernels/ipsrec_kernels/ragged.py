"""One list of indices for each user: as NumPy arrays, sorted, and searched.

Kernels are serial and release the GIL: parallelism comes from worker threads that each own a chunk (Numba's workqueue
layer must not be entered from two threads).
"""

from __future__ import annotations

from typing import Final, NamedTuple

import numpy as np
from numba import njit

from ipsrec_kernels.array_types import Int32Array, Int64Array
from ipsrec_kernels.check import check_array, check_offsets, check_range, read_only

LARGEST_INDEX: Final = np.iinfo(np.int32).max  # as `high` of lists that may hold indices that no item has


class Ragged(NamedTuple):
    """One list for each user, end to end.

    Attributes:
        values: (N,) int32.
        offsets: (B + 1,) int64; the list of user u is values[offsets[u]:offsets[u + 1]]. The first may be above 0.
    """

    values: Int32Array
    offsets: Int64Array


def sorted_lists(name: str, lists: Ragged | None, *, num_users: int, high: int) -> Ragged:
    """Copy the lists, each in ascending order; None stands for an empty list for each user.

    Args:
        name: what they are, for the message.
        lists: B lists in any order, duplicates allowed.
        num_users: B.
        high: the largest value allowed.

    Raises:
        ValueError: not B lists, a value outside 0..high, or a wrong dtype or offset.
    """
    if lists is None:
        return Ragged(np.zeros(0, np.int32), read_only(np.zeros(num_users + 1, np.int64)))
    values = check_array(f"{name}.values", lists.values, dtype=np.int32)
    offsets = check_offsets(f"{name}.offsets", lists.offsets, num_values=len(values))
    if len(offsets) != num_users + 1:
        raise ValueError(f"{name} has {len(offsets) - 1} lists, expected {num_users}, one for each user")
    check_range(f"{name}.values", values, low=0, high=high)
    ascending = values.copy()
    _sort_each(ascending, offsets)
    return Ragged(ascending, offsets)


@njit(cache=True, nogil=True)
def _sort_each(values, offsets):
    for u in range(len(offsets) - 1):
        if offsets[u + 1] - offsets[u] > 1:
            values[offsets[u] : offsets[u + 1]].sort()


@njit(cache=True, nogil=True)
def in_sorted(lists, u, value):
    """Kernel: is the value in the ascending list of user u?"""
    low = lists.offsets[u]
    stop = lists.offsets[u + 1]
    high = stop
    while low < high:
        middle = (low + high) >> 1
        if lists.values[middle] < value:
            low = middle + 1
        else:
            high = middle
    return low < stop and lists.values[low] == value
