"""The parts of the fused encoder against NumPy in float64."""

from __future__ import annotations

import math

import numpy as np
import pytest
from numba import njit

from ipsrec_kernels.dense import dense, dense_into_panels, pack_weights, padded
from ipsrec_kernels.encoder_arrays import SLACK_ROWS, Norm
from ipsrec_kernels.gemm_tile import FEW_ROWS, LANES, PANEL, ROWS
from ipsrec_kernels.row_kernels import add_norm, softmax_row, softmax_rows, turn_block


@njit
def softmax_of_one(scores, counts, width):
    softmax_row(scores.ctypes.data, scores.shape[1], counts.ctypes.data, width)


@njit
def softmax_of_few(scores, counts, width):
    softmax_rows(scores.ctypes.data, scores.shape[1], counts.ctypes.data, width)


@njit
def turned(block, out):
    turn_block(block.ctypes.data, block.shape[1], out.ctypes.data, out.shape[1])


def erf_gelu(x: np.ndarray) -> np.ndarray:
    return x / 2 * (1 + np.vectorize(math.erf)(x / math.sqrt(2)))


@pytest.mark.parametrize(("inputs", "outputs"), [(1, 1), (7, 20), (64, 64), (64, 256), (256, 64), (33, 100)])
@pytest.mark.parametrize("activate", [False, True])
def test_a_dense_layer_is_its_product(inputs: int, outputs: int, activate: bool, rng: np.random.Generator) -> None:
    weights, bias = rng.normal(size=(inputs, outputs)), rng.normal(size=padded(outputs)).astype(np.float32)
    weights = (weights / math.sqrt(inputs)).astype(np.float32)
    x = rng.normal(size=(3 * ROWS + SLACK_ROWS, inputs)).astype(np.float32)
    expected = x.astype(np.float64) @ weights.astype(np.float64) + bias[:outputs]
    expected = erf_gelu(expected) if activate else expected
    panels = pack_weights(weights, rows=inputs, columns=padded(outputs))
    whole = np.zeros((len(x), padded(outputs)), np.float32)
    dense(x, 0, 0, 3 * ROWS, panels, bias, whole, 0, 0, activate)
    assert np.abs(whole[: 3 * ROWS, :outputs] - expected[: 3 * ROWS]).max() < 5e-6
    for count in range(1, 3 * ROWS):  # a last tile of any height gives the bits of a full one
        part = np.zeros_like(whole)
        dense(x, 0, 0, count, panels, bias, part, 0, 0, activate)
        assert part[:count].tobytes() == whole[:count].tobytes()


def test_outputs_in_panels_are_the_same_outputs(rng: np.random.Generator) -> None:
    x = rng.normal(size=(20 + SLACK_ROWS, 10)).astype(np.float32)
    panels = pack_weights(rng.normal(size=(10, 40)).astype(np.float32), rows=10, columns=padded(40))
    bias = rng.normal(size=padded(40)).astype(np.float32)
    in_rows = np.zeros((len(x), padded(40)), np.float32)
    in_panels = np.zeros((padded(40) // PANEL, len(x), PANEL), np.float32)
    dense(x, 0, 0, 20, panels, bias, in_rows, 0, 0, False)
    dense_into_panels(x, 20, panels, bias, in_panels)
    assert np.array_equal(np.concatenate(list(in_panels), axis=1)[:20], in_rows[:20])


def test_gelu_stays_near_erf_everywhere() -> None:
    values = np.concatenate([np.linspace(-8, 8, 100_001), [-1e30, -100, 0, 100, 1e30]]).astype(np.float32)
    x = np.zeros((len(values) + SLACK_ROWS, 1), np.float32)
    x[: len(values), 0] = values
    out = np.zeros((len(x), PANEL), np.float32)
    dense(x, 0, 0, len(values), pack_weights(np.ones((1, 1), np.float32), rows=1, columns=PANEL),
          np.zeros(PANEL, np.float32), out, 0, 0, True)  # fmt: skip
    apart = np.abs(out[: len(values), 0] - erf_gelu(values.astype(np.float64)))
    assert (apart <= 4e-7 * np.maximum(np.abs(values), 1)).all()


def test_nan_is_not_hidden_by_gelu_or_softmax() -> None:
    x = np.full((1 + SLACK_ROWS, 1), np.nan, np.float32)
    out = np.zeros((len(x), PANEL), np.float32)
    dense(x, 0, 0, 1, pack_weights(np.ones((1, 1), np.float32), rows=1, columns=PANEL), np.zeros(PANEL, np.float32),
          out, 0, 0, True)  # fmt: skip
    assert np.isnan(out[0, 0])
    scores = np.zeros((1, LANES), np.float32)
    scores[0, 3] = np.nan
    softmax_of_one(scores, np.array([5]), LANES)
    assert np.isnan(scores[0, :5]).any()


@pytest.mark.parametrize("width", [LANES, 2 * LANES, 7 * LANES])
@pytest.mark.parametrize("size", [0.0, 1.0, 100.0, 1e30])
def test_softmax_sums_to_one_and_ends_where_it_should(width: int, size: float, rng: np.random.Generator) -> None:
    scores = (rng.normal(size=(FEW_ROWS, width)) * size).astype(np.float32)
    counts = rng.integers(1, width + 1, FEW_ROWS)
    expected = np.zeros(scores.shape)
    for row, count in enumerate(counts):
        powers = np.exp(scores[row, :count].astype(np.float64) - scores[row, :count].max())
        expected[row, :count] = powers / powers.sum()
    alone = scores[:1].copy()
    softmax_of_few(scores, counts, width)
    assert np.abs(scores - expected).max() < 3e-7
    softmax_of_one(alone, counts[:1], width)
    assert alone.tobytes() == scores[:1].tobytes()


@pytest.mark.parametrize("dim", [1, 8, 15, 16, 17, 64, 100])
def test_layer_norm_is_over_the_models_own_width(dim: int, rng: np.random.Generator) -> None:
    width = padded(dim)
    residual, added = np.zeros((2, 30 + SLACK_ROWS, width), np.float32)
    residual[:, :dim], added[:, :dim] = rng.normal(size=(2, len(added), dim)) * 3 + 1
    scale, shift = np.zeros((2, width), np.float32)
    scale[:dim], shift[:dim] = rng.normal(size=(2, dim))
    total = (residual[5:] + added[:-5]).astype(np.float64)[:, :dim]
    centred = total - total.mean(1, keepdims=True)
    expected = centred / np.sqrt((centred**2).mean(1, keepdims=True) + 1e-6) * scale[:dim] + shift[:dim]
    out = np.zeros_like(residual)
    add_norm(residual, added, scale, shift, 5, 25, Norm(dim, np.float32(1e-6)), out)
    assert np.abs(out[5:30, :dim] - expected[:25]).max() < 2e-5
    assert not out[:5].any() and not out[:, dim:].any()


def test_a_block_is_turned(rng: np.random.Generator) -> None:
    block, out = rng.normal(size=(LANES, 40)).astype(np.float32), np.zeros((LANES, 24), np.float32)
    turned(block, out)
    assert np.array_equal(out[:, :LANES], block[:, :LANES].T)
    assert not out[:, LANES:].any()


def test_weights_that_do_not_fit_are_refused() -> None:
    for rows, columns in ((3, PANEL), (4, PANEL + 1)):
        with pytest.raises(ValueError, match="weights are 4 x 5, expected to fit"):
            pack_weights(np.zeros((4, 5), np.float32), rows=rows, columns=columns)
