"""Several histories in one row of one width, for training: little of it is padding.

Kernels are serial and release the GIL: parallelism comes from worker threads that each own a chunk (Numba's workqueue
layer must not be entered from two threads).
"""

from __future__ import annotations

import numpy as np
from numba import njit

from ipsrec_kernels.array_types import Int32Array, Int64Array
from ipsrec_kernels.check import check_array, check_at_least, check_offsets, check_range
from ipsrec_kernels.padding import PADDING


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
def _place_rows(values, offsets, row, column, out):
    for h in range(len(row)):
        for at in range(offsets[h + 1] - offsets[h]):
            out[row[h], column[h] + at] = values[offsets[h] + at]


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
