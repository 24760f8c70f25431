"""Cross entropy of one target against many items: scores in, gradients out, in one pass over each row.

A row is widened to float32, history terms are added where they act, the exponentials are taken, and the gradient is
written back where the score was. PyTorch's own operators make seven passes over the row, and none of them can add a
number to one provider's items alone.

Kernels are serial and release the GIL: parallelism comes from worker threads that each own some rows.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from numba import njit

from ipsrec_kernels.array_types import Float32Array, Float64Array, Int32Array
from ipsrec_kernels.check import check_array, check_range
from ipsrec_kernels.target_rows import (
    Columns,
    TargetHistories,
    TermWeights,
    add_terms,
    check_columns,
    check_histories,
)

# Reordered sums let LLVM use whole vectors; no NaN and no infinity gets here (the faces' scores are finite).
_FAST = {"reassoc", "nsz", "arcp", "contract", "nnan"}
_TILE = 1_024  # floats of a row that stay in the first-level cache between two loops
_LOWEST = np.float32(-3.0e38)

# exp(x) = 2^n exp(r), r = x - n ln 2 in two parts (Cody and Waite); the polynomial is that of Cephes' expf.
_LOG2_E = np.float32(1.44269504088896341)
_LN2_HIGH, _LN2_LOW = np.float32(0.693359375), np.float32(-2.12194440e-4)
_ROUND = np.float32(12_582_912.0)  # 1.5 * 2^23: adding and taking it away rounds to a whole number
_C5, _C4, _C3 = np.float32(1.9875691500e-4), np.float32(1.3981999507e-3), np.float32(8.3334519073e-3)
_C2, _C1, _C0 = np.float32(4.1665795894e-2), np.float32(1.6666665459e-1), np.float32(5.0000001201e-1)
_SMALLEST = np.float32(-87.0)  # e^-87 is the smallest normal float32


class SoftmaxRows(NamedTuple):
    """What softmax_gradients gives beside the gradients of the scores, which lie where the scores lay.

    Attributes:
        loss: () sum over the rows of the cross entropy.
        d_target_score: (C,) float32 gradient of each row's own target score.
        d_provider: (max_len,) float64 gradient of a.
        d_item: (max_len,) float64 gradient of b.
    """

    loss: float
    d_target_score: Float32Array
    d_provider: Float64Array
    d_item: Float64Array


def softmax_gradients(
    scores: npt.NDArray[np.float32] | npt.NDArray[np.uint16],
    target_scores: Float32Array,
    targets: Int32Array,
    *,
    columns: Columns,
    histories: TargetHistories,
    weights: TermWeights,
) -> SoftmaxRows:
    """Replace plain scores by the gradient of each row's cross entropy.

    A target's own score is given apart, and its own column, if it has one, takes no part: so the same rows serve a
    softmax over all items and over a sample of them, whose `bias` makes up for what the sample leaves out.

    Args:
        scores: (C, N) inner products, float32, or bfloat16 as its uint16 bits; finite; overwritten.
        target_scores: (C,) inner product of each row with its target.
        targets: (C,) item_index.
        columns: which items the columns are.
        histories: what came before each target.
        weights: a and b; (0,) both for a model without history terms, whose histories are not looked at.

    Raises:
        ValueError: arrays do not fit each other.
    """
    rows = len(scores)
    check_array("scores", scores, dtype=np.uint16 if scores.dtype == np.uint16 else np.float32, ndim=2)
    check_array("target_scores", target_scores, dtype=np.float32)
    check_array("targets", targets, dtype=np.int32)
    check_range("targets", targets, low=1, high=len(columns.of_item) - 1)
    if not rows == len(target_scores) == len(targets):
        raise ValueError(f"scores have {rows} rows for {len(targets)} targets with {len(target_scores)} scores")
    check_columns(columns, width=scores.shape[1])
    check_array("bias", columns.bias, dtype=np.float32)
    if columns.bias.size not in (0, scores.shape[1]):
        raise ValueError(
            f"bias has {columns.bias.size} numbers for {scores.shape[1]} columns, expected as many or none"
        )
    check_histories(histories, weights, rows=rows, num_items=len(columns.of_item) - 1)
    d_target = np.zeros(rows, np.float32)
    d_provider, d_item = np.zeros(len(weights.provider)), np.zeros(len(weights.item))
    kernel = _bfloat16_rows if scores.dtype == np.uint16 else _float32_rows
    loss = kernel(scores, target_scores, targets, columns, histories, weights, d_target, d_provider, d_item)
    return SoftmaxRows(loss, d_target, d_provider, d_item)


@njit(cache=True, nogil=True, fastmath=_FAST, error_model="numpy")
def _float32_rows(scores, target_scores, targets, columns, histories, weights, d_target, d_provider, d_item):
    """Every row of float32 scores, in place."""
    powers = np.empty(_TILE, np.int32)
    loss = 0.0
    for c in range(scores.shape[0]):
        target = _target_score(target_scores[c], targets[c], columns, histories, weights, c)
        row_loss, d_target[c] = _softmax_row(scores[c], target, targets[c], columns, histories, weights, c, powers)
        _term_gradients(scores[c], d_target[c], targets[c], columns, histories, c, d_provider, d_item)
        loss += row_loss
    return loss


@njit(cache=True, nogil=True, fastmath=_FAST, error_model="numpy")
def _bfloat16_rows(scores, target_scores, targets, columns, histories, weights, d_target, d_provider, d_item):
    """Every row of bfloat16 scores: widened to float32, treated, and rounded back to the nearest even."""
    powers = np.empty(_TILE, np.int32)
    row = np.empty(scores.shape[1], np.float32)
    bits = row.view(np.uint32)
    loss = 0.0
    for c in range(scores.shape[0]):
        narrow = scores[c]
        for i in range(len(narrow)):
            bits[i] = np.uint32(narrow[i]) << np.uint32(16)
        target = _target_score(target_scores[c], targets[c], columns, histories, weights, c)
        row_loss, d_target[c] = _softmax_row(row, target, targets[c], columns, histories, weights, c, powers)
        _term_gradients(row, d_target[c], targets[c], columns, histories, c, d_provider, d_item)
        loss += row_loss
        for i in range(len(narrow)):
            x = bits[i]
            narrow[i] = np.uint16((x + np.uint32(0x7FFF) + ((x >> np.uint32(16)) & np.uint32(1))) >> np.uint32(16))
    return loss


@njit(cache=True, nogil=True)
def _target_score(dot, target, columns, histories, weights, c):
    """The target's full score."""
    score = dot
    if len(weights.provider) > 0:
        provider = columns.item_provider[target]
        for at in range(histories.start[c], histories.stop[c]):
            age = histories.stop[c] - 1 - at
            if provider > 0 and columns.item_provider[histories.items[at]] == provider:
                score += weights.provider[age]
            if histories.items[at] == target:
                score += weights.item[age]
    return score


@njit(cache=True, nogil=True, fastmath=_FAST, error_model="numpy")
def _softmax_row(row, target_score, target, columns, histories, weights, c, powers):
    """Turn a row of scores into probabilities; gives its cross entropy and the target's probability less 1."""
    if len(columns.bias) > 0:
        for i in range(len(row)):
            row[i] += columns.bias[i]
    add_terms(row, columns, histories, weights, c)
    if columns.of_item[target] >= 0:
        row[columns.of_item[target]] = _LOWEST
    top = max(_highest(row), target_score)
    total = np.float32(0.0)
    for start in range(0, len(row), _TILE):
        tile = row[start : start + _TILE]
        _exponentials(tile, top, powers)
        total += _sum(tile)
    of_target = np.exp(target_score - top)
    total += of_target
    share = np.float32(1.0) / total
    for i in range(len(row)):
        row[i] *= share
    if columns.of_item[target] >= 0:
        row[columns.of_item[target]] = np.float32(0.0)
    return np.log(total) + top - target_score, of_target * share - np.float32(1.0)


@njit(cache=True, nogil=True)
def _highest(row):
    """The maximum, found among the bits as integers of the same order: LLVM vectorises that, no float maximum."""
    bits = row.view(np.int32)
    top = _flipped(bits[0])
    for i in range(len(bits)):
        key = _flipped(bits[i])
        top = key if key > top else top
    one = np.empty(1, np.int32)
    one[0] = _flipped(top)
    return one.view(np.float32)[0]


@njit(cache=True, nogil=True)
def _flipped(bits):
    """Make negative floats' bits fall as the floats do; its own inverse."""
    return bits ^ ((bits >> np.int32(31)) & np.int32(0x7FFFFFFF))


@njit(cache=True, nogil=True, fastmath={"contract"}, error_model="numpy")
def _exponentials(tile, top, powers):
    """Replace up to _TILE scores by exp(score - top), to 1e-7 of their size."""
    scale = powers.view(np.float32)
    for i in range(len(tile)):
        x = tile[i] - top
        x = x if x > _SMALLEST else _SMALLEST
        n = (x * _LOG2_E + _ROUND) - _ROUND  # reordered, this would be x * _LOG2_E
        r = x - n * _LN2_HIGH - n * _LN2_LOW
        p = ((((_C5 * r + _C4) * r + _C3) * r + _C2) * r + _C1) * r + _C0
        tile[i] = p * r * r + r + np.float32(1.0)
        powers[i] = (np.int32(n) + np.int32(127)) << np.int32(23)
    for i in range(len(tile)):
        tile[i] *= scale[i]


@njit(cache=True, nogil=True, fastmath=_FAST, error_model="numpy")
def _sum(values):
    """Sum, in whatever order is fastest."""
    total = np.float32(0.0)
    for i in range(len(values)):
        total += values[i]
    return total


@njit(cache=True, nogil=True, fastmath=_FAST, error_model="numpy")
def _term_gradients(row, d_target, target, columns, histories, c, d_provider, d_item):
    """Add what a row's gradients say of the weights of each age."""
    if len(d_provider) == 0:
        return
    for at in range(histories.start[c], histories.stop[c]):
        item, age = histories.items[at], histories.stop[c] - 1 - at
        provider = columns.item_provider[item]
        if provider > 0:
            d_provider[age] += _sum(row[columns.begin[provider] : columns.end[provider]])
            if columns.item_provider[target] == provider:
                d_provider[age] += d_target
        if columns.of_item[item] >= 0:
            d_item[age] += row[columns.of_item[item]]
        if item == target:
            d_item[age] += d_target
