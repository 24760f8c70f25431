"""Leaves entries of histories out: the older ones, and those of unknown items.

Kernels are serial and release the GIL: parallelism comes from worker threads that each own a chunk (Numba's workqueue
layer must not be entered from two threads).
"""

from __future__ import annotations

import numpy as np
from numba import njit

from ipsrec_kernels.array_types import Int32Array, Int64Array
from ipsrec_kernels.check import check_array, check_at_least, check_offsets
from ipsrec_kernels.copy_runs import LANES, copy_run
from ipsrec_kernels.padding import PADDING


def keep_newest(
    item_index: Int32Array, provider_index: Int32Array, offsets: Int64Array, *, max_len: int
) -> tuple[Int32Array, Int32Array, Int64Array]:
    """Keep the last max_len entries of each history; the arrays themselves where none is longer.

    Args:
        item_index: (N,) int32, histories end to end, oldest first.
        provider_index: (N,) int32, the provider of each.
        offsets: (n + 1,) int64; history h is item_index[offsets[h]:offsets[h + 1]].
        max_len: 1 or more.

    Returns:
        item_index, provider_index, offsets of what is kept, as above.

    Raises:
        ValueError: a wrong dtype, arrays of different lengths, or offsets that fall or leave them.
    """
    item_index, provider_index, offsets = _check_streams(item_index, provider_index, offsets)
    check_at_least("max_len", max_len, low=1)
    kept_offsets = np.empty(len(offsets), np.int64)
    kept = int(_newest_offsets(offsets, max_len, kept_offsets))
    if kept == offsets[-1] - offsets[0]:
        return item_index, provider_index, offsets
    kept_item, kept_provider = np.empty(kept + LANES, np.int32), np.empty(kept + LANES, np.int32)
    _keep_newest(item_index, offsets, kept_offsets, kept_item)
    _keep_newest(provider_index, offsets, kept_offsets, kept_provider)
    return kept_item[:kept], kept_provider[:kept], kept_offsets


def drop_unknown(
    item_index: Int32Array, provider_index: Int32Array, offsets: Int64Array
) -> tuple[Int32Array, Int32Array, Int64Array]:
    """Leave out of every history the items that the catalog does not know.

    Args:
        item_index: (N,) int32, histories end to end, PADDING for an unknown item.
        provider_index: (N,) int32, the provider of each; its own value is never looked at.
        offsets: (n + 1,) int64; history h is item_index[offsets[h]:offsets[h + 1]].

    Returns:
        item_index: (K,) int32, without PADDING, order kept.
        provider_index: (K,) int32, the provider of each.
        offsets: (n + 1,) int64 into both, the first is 0.

    Raises:
        ValueError: a wrong dtype, arrays of different lengths, or offsets that fall or leave them.
    """
    item_index, provider_index, offsets = _check_streams(item_index, provider_index, offsets)
    unknown = np.flatnonzero(item_index[offsets[0] : offsets[-1]] == PADDING) + offsets[0]
    kept = int(offsets[-1] - offsets[0]) - len(unknown)
    kept_item, kept_provider = np.empty(kept + LANES, np.int32), np.empty(kept + LANES, np.int32)
    kept_offsets = np.zeros(len(offsets), np.int64)
    _drop_entries(item_index, offsets, unknown, kept_item)
    _drop_entries(provider_index, offsets, unknown, kept_provider)
    _offsets_without(offsets, unknown, kept_offsets)
    return kept_item[:kept], kept_provider[:kept], kept_offsets


def _check_streams(
    item_index: Int32Array, provider_index: Int32Array, offsets: Int64Array
) -> tuple[Int32Array, Int32Array, Int64Array]:
    item_index = check_array("item_index", item_index, dtype=np.int32)
    provider_index = check_array("provider_index", provider_index, dtype=np.int32)
    if len(item_index) != len(provider_index):
        raise ValueError(f"item_index has {len(item_index)} entries, provider_index {len(provider_index)}")
    return item_index, provider_index, check_offsets("offsets", offsets, num_values=len(item_index))


@njit(cache=True, nogil=True)
def _newest_offsets(offsets, max_len, kept_offsets):
    """Fill the offsets of what is kept, from 0; returns how many entries that is."""
    kept_offsets[0] = 0
    for h in range(len(offsets) - 1):
        kept_offsets[h + 1] = kept_offsets[h] + min(offsets[h + 1] - offsets[h], max_len)
    return kept_offsets[-1]


@njit(cache=True, nogil=True)
def _keep_newest(values, offsets, kept_offsets, kept):
    """Fill from first to last, so that what runs over is written again."""
    for h in range(len(offsets) - 1):
        length = kept_offsets[h + 1] - kept_offsets[h]
        copy_run(values, offsets[h + 1] - length, offsets[h + 1], kept, kept_offsets[h])


@njit(cache=True, nogil=True)
def _drop_entries(values, offsets, unknown, kept):
    """Copy the runs between the unknown entries, from first to last."""
    start, at = offsets[0], 0
    for position in unknown:
        copy_run(values, start, position, kept, at)
        at += position - start
        start = position + 1
    copy_run(values, start, offsets[-1], kept, at)


@njit(cache=True, nogil=True)
def _offsets_without(offsets, unknown, kept_offsets):
    """Each offset falls by the start and by the number of unknown entries before it."""
    u = 0
    for h in range(len(offsets)):
        while u < len(unknown) and unknown[u] < offsets[h]:
            u += 1
        kept_offsets[h] = offsets[h] - offsets[0] - u
