"""Histories from Arrow's values and offsets into right-padded rows, for scoring and for training.

Right padding keeps an item's position the same in every bucket.
Kernels are serial and release the GIL: parallelism comes from worker threads that each own a chunk (Numba's workqueue
layer must not be entered from two threads).
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from numba import njit

from ipsrec_kernels.array_types import Int32Array, Int64Array
from ipsrec_kernels.check import check_array, check_at_least, check_offsets, check_range
from ipsrec_kernels.padding import PADDING


def pack_histories(
    values: Int32Array,
    offsets: Int64Array,
    rows: npt.NDArray[np.int64] | npt.NDArray[np.intp],
    *,
    bucket_len: int,
    batch_size: int,
) -> tuple[Int32Array, Int32Array]:
    """Copy the newest items of some histories into one right-padded batch.

    Args:
        values: (N,) int32 item_index (or provider_index), histories end to end, oldest first.
        offsets: (n + 1,) int64; history h is values[offsets[h]:offsets[h + 1]].
        rows: (m,) int64, the histories of this batch, m <= batch_size.
        bucket_len: width of the batch, 1 or more; older items are dropped.
        batch_size: rows of the batch; those after the m-th are padding rows.

    Returns:
        item_history: (batch_size, bucket_len) int32, PADDING after the last item.
        lengths: (batch_size,) int32, items kept; 0 for an empty history and for a padding row.

    Raises:
        ValueError: a wrong dtype or shape, offsets that fall or leave values, a row that is no history, or more
            rows than batch_size.
    """
    values = check_array("values", values, dtype=np.int32)
    offsets = check_offsets("offsets", offsets, num_values=len(values))
    rows = check_array("rows", rows, dtype=np.int64)
    check_range("rows", rows, low=0, high=len(offsets) - 2)
    check_at_least("bucket_len", bucket_len, low=1)
    check_at_least("batch_size", batch_size, low=max(1, len(rows)))
    item_history = np.full((batch_size, bucket_len), PADDING, np.int32)
    lengths = np.zeros(batch_size, np.int32)
    _pack_rows(values, offsets, rows, item_history, lengths)
    return item_history, lengths


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
    item_index = check_array("item_index", item_index, dtype=np.int32)
    provider_index = check_array("provider_index", provider_index, dtype=np.int32)
    if len(item_index) != len(provider_index):
        raise ValueError(f"item_index has {len(item_index)} entries, provider_index {len(provider_index)}")
    offsets = check_offsets("offsets", offsets, num_values=len(item_index))
    size = int(offsets[-1] - offsets[0])
    kept_item, kept_provider = np.empty(size, np.int32), np.empty(size, np.int32)
    kept_offsets = np.zeros(len(offsets), np.int64)
    _drop_unknown(item_index, provider_index, offsets, kept_item, kept_provider, kept_offsets)
    kept = int(kept_offsets[-1])
    return kept_item[:kept], kept_provider[:kept], kept_offsets


def pack_end_to_end(values: Int32Array, offsets: Int64Array, *, width: int) -> tuple[Int32Array, Int32Array, int]:
    """Find each history a place in rows of one width, several to a row, so that little is padding.

    First-fit decreasing: the longest history first (of equal ones the first), each into the first row with room.

    Args:
        values: (N,) int32, histories end to end; only their lengths matter here.
        offsets: (n + 1,) int64; history h is values[offsets[h]:offsets[h + 1]], 1 to width entries.
        width: of a row.

    Returns:
        row: (n,) int32, the row of each history.
        column: (n,) int32, the column of its first entry.
        num_rows: how many rows are used.

    Raises:
        ValueError: a history is empty or longer than width (leave the first out, cut the second), or a wrong dtype.
    """
    values = check_array("values", values, dtype=np.int32)
    offsets = check_offsets("offsets", offsets, num_values=len(values))
    check_at_least("width", width, low=1)
    lengths = np.diff(offsets)
    check_range("history lengths", lengths, low=1, high=width)
    longest_first = np.argsort(-lengths, kind="stable")
    row, column = np.empty(len(lengths), np.int32), np.empty(len(lengths), np.int32)
    num_rows = int(_place_first_fit(lengths, longest_first, width, row, column))
    return row, column, num_rows


def place_histories(
    values: Int32Array, offsets: Int64Array, row: Int32Array, column: Int32Array, *, num_rows: int, width: int
) -> Int32Array:
    """Copy each history to the place that pack_end_to_end found for it.

    Args:
        values: (N,) int32, histories end to end; any stream of the same offsets (items, providers, targets).
        offsets: (n + 1,) int64; history h is values[offsets[h]:offsets[h + 1]].
        row: (n,) int32, the row of each history.
        column: (n,) int32, the column of its first entry. Places must not overlap; this is not checked.
        num_rows: rows of the result.
        width: of a row.

    Returns:
        (num_rows, width) int32, PADDING where no history lies.

    Raises:
        ValueError: a place lies outside the result, or a wrong dtype or shape.
    """
    values = check_array("values", values, dtype=np.int32)
    offsets = check_offsets("offsets", offsets, num_values=len(values))
    row = check_array("row", row, dtype=np.int32)
    column = check_array("column", column, dtype=np.int32)
    lengths = np.diff(offsets)
    if not len(row) == len(column) == len(lengths):
        raise ValueError(f"{len(lengths)} histories, but {len(row)} rows and {len(column)} columns; expected as many")
    check_at_least("num_rows", num_rows, low=0)
    check_at_least("width", width, low=1)
    check_range("row", row, low=0, high=num_rows - 1)
    check_range("column", column, low=0, high=width - 1)
    check_range("end of history (column + length)", column + lengths, low=0, high=width)
    out = np.full((num_rows, width), PADDING, np.int32)
    _place_rows(values, offsets, row, column, out)
    return out


@njit(cache=True, nogil=True)
def _copy_row(values, start, stop, out, row, column):
    """Copy values[start:stop] into out[row, column:]; the one copy that scoring and training share."""
    for at in range(stop - start):
        out[row, column + at] = values[start + at]


@njit(cache=True, nogil=True)
def _pack_rows(values, offsets, rows, out, lengths):
    for b in range(len(rows)):
        stop = offsets[rows[b] + 1]
        start = max(offsets[rows[b]], stop - out.shape[1])
        _copy_row(values, start, stop, out, b, 0)
        lengths[b] = stop - start


@njit(cache=True, nogil=True)
def _place_rows(values, offsets, row, column, out):
    for h in range(len(row)):
        _copy_row(values, offsets[h], offsets[h + 1], out, row[h], column[h])


@njit(cache=True, nogil=True)
def _drop_unknown(item_index, provider_index, offsets, kept_item, kept_provider, kept_offsets):
    kept = 0
    for h in range(len(offsets) - 1):
        for at in range(offsets[h], offsets[h + 1]):
            if item_index[at] != PADDING:
                kept_item[kept] = item_index[at]
                kept_provider[kept] = provider_index[at]
                kept += 1
        kept_offsets[h + 1] = kept


@njit(cache=True, nogil=True)
def _place_first_fit(lengths, longest_first, width, row, column):
    """Place all; returns the number of rows.

    While the length stays the same, rows that had no room never get any, so the search goes on where it stopped: the
    whole costs n + width * rows steps instead of a search tree.
    """
    room = np.full(len(lengths), width, np.int64)
    num_rows = 0
    r = 0
    before = width
    for h in longest_first:
        if lengths[h] < before:
            r = 0
            before = lengths[h]
        while room[r] < lengths[h]:
            r += 1
        row[h] = r
        column[h] = width - room[r]
        room[r] -= lengths[h]
        num_rows = max(num_rows, r + 1)
    return num_rows
