"""The rank of one target among all items, from a row of plain scores.

Kernels are serial and release the GIL: parallelism comes from worker threads that each own some rows.
"""

from __future__ import annotations

import numpy as np
from numba import njit

from ipsrec_kernels.array_types import Float32Array, Int32Array, Int64Array
from ipsrec_kernels.check import check_array, check_range
from ipsrec_kernels.target_rows import (
    Columns,
    TargetHistories,
    TermWeights,
    add_terms,
    check_columns,
    check_histories,
)


def target_ranks(
    scores: Float32Array, targets: Int32Array, *, columns: Columns, histories: TargetHistories, weights: TermWeights
) -> Int64Array:
    """Rank each row's target; equal scores go by the smaller column.

    Args:
        scores: (C, N) inner products, float32; overwritten by the full scores.
        targets: (C,) item_index, each with a column of its own.
        columns: which items the columns are.
        histories: what came before each target.
        weights: a and b; (0,) both for a model without history terms.

    Returns:
        (C,) int64 ranks, 1 the best; 0 where a score of the row is no finite number.

    Raises:
        ValueError: arrays do not fit each other.
    """
    check_array("scores", scores, dtype=np.float32, ndim=2)
    check_array("targets", targets, dtype=np.int32)
    check_range("targets", targets, low=1, high=len(columns.of_item) - 1)
    if len(targets) != len(scores):
        raise ValueError(f"scores have {len(scores)} rows for {len(targets)} targets")
    check_columns(columns, width=scores.shape[1])
    if (columns.of_item[targets] < 0).any():
        raise ValueError("a target has no column of its own")
    check_histories(histories, weights, rows=len(scores), num_items=len(columns.of_item) - 1)
    ranks = np.zeros(len(scores), np.int64)
    _rank_rows(scores, columns.of_item[targets], columns, histories, weights, ranks)
    return ranks


@njit(cache=True, nogil=True)
def _rank_rows(scores, target_columns, columns, histories, weights, ranks):
    """Every row."""
    for c in range(scores.shape[0]):
        row = scores[c]
        add_terms(row, columns, histories, weights, c)
        at = target_columns[c]
        own = row[at]
        better, finite = 0, 0
        for i in range(at):
            better += row[i] >= own
            finite += np.abs(row[i]) < np.inf
        for i in range(at, len(row)):
            better += row[i] > own
            finite += np.abs(row[i]) < np.inf
        ranks[c] = better + 1 if finite == len(row) else 0
