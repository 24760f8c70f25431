"""Rows of scores, one for each target, and the history terms that are added to them.

Kernels are serial and release the GIL: parallelism comes from worker threads that each own some rows.
"""

from __future__ import annotations

from typing import NamedTuple

from numba import njit

from ipsrec_kernels.array_types import Float32Array, Int32Array, Int64Array


class Columns(NamedTuple):
    """Which items the columns of the scores are; items are numbered by provider, so a provider is a range of columns.

    Attributes:
        of_item: (num_items + 1,) int32 column of each item_index; -1 where it has none.
        bias: (N,) float32 added to every row, or (0,).
        begin: (num_providers + 1,) int32 first column of each provider_index.
        end: (num_providers + 1,) int32 one past its last column.
        item_provider: (num_items + 1,) int32 provider_index of each item_index, 0 for none.
    """

    of_item: Int32Array
    bias: Float32Array
    begin: Int32Array
    end: Int32Array
    item_provider: Int32Array


class TargetHistories(NamedTuple):
    """What came before each target: items[start[t]:stop[t]], oldest first; empty arrays for a model without terms.

    Attributes:
        items: (M,) int32 item_index.
        start: (C,) int64.
        stop: (C,) int64; age 0 is items[stop[t] - 1].
    """

    items: Int32Array
    start: Int64Array
    stop: Int64Array


class TermWeights(NamedTuple):
    """History terms by age, newest first.

    Attributes:
        provider: (max_len,) float32 a.
        item: (max_len,) float32 b.
    """

    provider: Float32Array
    item: Float32Array


def check_histories(histories: TargetHistories, weights: TermWeights, *, rows: int) -> None:
    """Refuse histories that the weights or the rows do not fit.

    Raises:
        ValueError: another number of histories than rows, one that lies outside the items, or one too long.
    """
    if not len(weights.provider):
        return
    start, stop = histories.start, histories.stop
    if not rows == len(start) == len(stop):
        raise ValueError(f"{len(start)} starts and {len(stop)} stops of histories for {rows} rows, expected as many")
    if rows and (int(start.min()) < 0 or int(stop.max()) > len(histories.items) or (stop < start).any()):
        raise ValueError(f"a history lies outside the {len(histories.items)} items")
    if rows and int((stop - start).max()) > len(weights.provider):
        raise ValueError(f"a history is longer than the {len(weights.provider)} weights; cut it to the newest")


@njit(cache=True, nogil=True)
def add_terms(row, columns, histories, weights, c):
    """Add history terms to one row of float32 scores; nothing for a model without."""
    if len(weights.provider) == 0:
        return
    for at in range(histories.start[c], histories.stop[c]):
        item, age = histories.items[at], histories.stop[c] - 1 - at
        provider = columns.item_provider[item]
        if provider > 0:
            weight = weights.provider[age]
            for i in range(columns.begin[provider], columns.end[provider]):
                row[i] += weight
        if columns.of_item[item] >= 0:
            row[columns.of_item[item]] += weights.item[age]
