"""Histories from Arrow's values and offsets into right-padded batches.

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
from ipsrec_kernels.copy_runs import LANES, clear_lanes, copy_lanes
from ipsrec_kernels.memory import prefetch
from ipsrec_kernels.padding import PADDING

_ROWS_AHEAD = 4  # rows between the hint to fetch a history and its copy


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
        ValueError: a wrong dtype or shape, a row that is no history, more rows than batch_size, or a history of the
            batch whose offsets fall or leave values. The others are not looked at: a batch is small, a chunk is not.
    """
    values = check_array("values", values, dtype=np.int32)
    offsets = check_array("offsets", offsets, dtype=np.int64)
    rows = check_array("rows", rows, dtype=np.int64)
    check_at_least("bucket_len", bucket_len, low=1)
    check_at_least("batch_size", batch_size, low=max(1, len(rows)))
    if not _are_histories(rows, offsets, len(values)):
        check_range("rows", rows, low=0, high=len(offsets) - 2)
        check_offsets("offsets", offsets, num_values=len(values))
    item_history = np.empty((batch_size, bucket_len), np.int32)
    lengths = np.empty(batch_size, np.int32)
    _pack_rows(values, offsets, rows, item_history, lengths)
    return item_history, lengths


@njit(cache=True, nogil=True)
def _are_histories(rows, offsets, num_values):
    for row in rows:  # noqa: SIM110, Numba has no all() over a generator
        if not (0 <= row < len(offsets) - 1 and 0 <= offsets[row] <= offsets[row + 1] <= num_values):
            return False
    return True


@njit(cache=True, nogil=True)
def _pack_rows(values, offsets, rows, out, lengths):
    """Fill rows from first to last; those beyond the histories are PADDING.

    A row is copied and cleared in whole vectors, which run over its end into rows that are filled later: so the number
    of steps does not depend on its length, and no branch is mispredicted. Near the ends of values and out, entry by
    entry.
    """
    width = out.shape[1]
    for b in range(len(out)):
        stop = offsets[rows[b] + 1] if b < len(rows) else 0
        length = min(stop - offsets[rows[b]], width) if b < len(rows) else 0
        if b + _ROWS_AHEAD < len(rows):  # rows may come in any order, and with gaps between what is kept
            row = rows[b + _ROWS_AHEAD]
            prefetch(values, max(offsets[row], offsets[row + 1] - width))
        lengths[b] = length
        start, at = stop - length, b * width
        if at + width + LANES <= out.size and start + width + LANES <= len(values):
            for lane in range(0, width, LANES):
                copy_lanes(values, start + lane, out, at + lane)
            for lane in range(length, width, LANES):
                clear_lanes(out, at + lane)
        else:
            out[b, :length] = values[start:stop]
            out[b, length:] = PADDING
