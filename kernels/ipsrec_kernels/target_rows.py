"""Rows of scores, one for each target, and the history terms that are added to them.

Kernels are serial and release the GIL: parallelism comes from worker threads that each own some rows.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numba import njit

from ipsrec_kernels.array_types import Float32Array, Int32Array, Int64Array
from ipsrec_kernels.check import check_array, check_range


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


def check_columns(columns: Columns, *, width: int) -> None:
    """Refuse columns that rows of this many scores, or each other, do not fit.

    Raises:
        ValueError: another dtype, another number of items or providers, or a column or provider that is not there.
    """
    for name in ("of_item", "begin", "end", "item_provider"):
        check_array(name, getattr(columns, name), dtype=np.int32)
    items, providers = len(columns.of_item), len(columns.begin)
    if len(columns.item_provider) != items or len(columns.end) != providers:
        raise ValueError(
            f"columns of {items} and providers of {len(columns.item_provider)} items, {providers} begins and "
            f"{len(columns.end)} ends of providers, expected as many"
        )
    check_range("of_item", columns.of_item, low=-1, high=width - 1)
    check_range("begin", columns.begin, low=0, high=width)
    check_range("end", columns.end, low=0, high=width)
    check_range("item_provider", columns.item_provider, low=0, high=providers - 1)


def check_histories(histories: TargetHistories, weights: TermWeights, *, rows: int, num_items: int) -> None:
    """Refuse histories that the weights, the rows or the items do not fit.

    Args:
        histories: one a row.
        weights: by age.
        rows: how many.
        num_items: an item_index in a history is at most this.

    Raises:
        ValueError: another dtype or number of histories, one that lies outside the items, or one too long.
    """
    for name in ("provider", "item"):
        check_array(name, getattr(weights, name), dtype=np.float32)
    if len(weights.provider) != len(weights.item):
        raise ValueError(
            f"{len(weights.provider)} weights of providers for {len(weights.item)} of items, expected as many"
        )
    if not len(weights.provider):
        return
    check_array("items", histories.items, dtype=np.int32)
    check_range("items", histories.items, low=0, high=num_items)
    for name in ("start", "stop"):
        check_array(name, getattr(histories, name), dtype=np.int64)
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
