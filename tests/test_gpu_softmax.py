"""The Triton kernel of the softmax: in Triton's interpreter without a GPU, on the GPU where there is one."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import naive
import numpy as np
import pytest
import torch

from ipsrec_kernels import target_rows

pytest.importorskip("triton")

from ipsrec_gpu import softmax
from ipsrec_gpu.softmax import Columns, softmax_gradients

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
ITEMS, PROVIDERS, AGES = 90, 7, 6
# A GPU rounds to the nearest bfloat16, Triton's interpreter towards zero.
LOW_RTOL = 1 / 250 if DEVICE == "cuda" else 1 / 125


@pytest.fixture(params=[32, 1_024])
def tile(request, monkeypatch):
    """Tiles that end inside the rows and behind them; few programs, so that one has several tiles."""
    monkeypatch.setattr(softmax, "_TILE", request.param)
    monkeypatch.setattr(softmax, "_PROGRAMS", 20)


def columns_of(items, *, bias=None, providers=PROVIDERS):
    """Columns for these item_index, of NumPy; the first nine items have no provider."""
    owned = 1 + np.arange(ITEMS - 9) * providers // (ITEMS - 9)
    provider = np.concatenate([np.zeros(10), owned]).astype(np.int32)
    of_item = np.full(ITEMS + 1, -1, np.int32)
    of_item[items] = np.arange(len(items))
    every = np.arange(providers + 1)
    return target_rows.Columns(
        of_item,
        np.zeros(0, np.float32) if bias is None else bias.astype(np.float32),
        np.searchsorted(provider[items], every).astype(np.int32),
        np.searchsorted(provider[items], every, side="right").astype(np.int32),
        provider,
    )


def on_device(columns):
    return Columns(*(torch.from_numpy(part).to(DEVICE) for part in columns))


def by_age(lists, ages=AGES):
    """(C, ages) newest first, PADDING behind."""
    newest_first = np.zeros((len(lists), ages), np.int64)
    for row, items in enumerate(lists):
        newest_first[row, : len(items)] = items[::-1]
    return torch.from_numpy(newest_first).to(DEVICE)


def weights_of(rng, ages=AGES):
    return target_rows.TermWeights(
        rng.uniform(0, 2, ages).astype(np.float32), rng.normal(0, 2, ages).astype(np.float32)
    )


def compare(scores, own, targets, lists, *, columns, weights, low=False, apart=0):
    """Run the kernel on rows that lie `apart` numbers apart, and compare all that it gives with the naive twin."""
    number = torch.bfloat16 if low else torch.float32
    room = torch.full((len(scores), scores.shape[1] + apart), 7.0, dtype=number, device=DEVICE)
    given = room[:, : scores.shape[1]]
    given.copy_(torch.from_numpy(scores))
    expected = naive.softmax_gradients(
        given.float().cpu().numpy(), own, targets, columns=columns, histories=lists, weights=weights
    )
    found = softmax_gradients(
        given,
        torch.from_numpy(own).to(DEVICE),
        torch.from_numpy(targets).to(DEVICE),
        columns=on_device(columns),
        histories=by_age(lists, len(weights.provider)),
        weights=(torch.from_numpy(weights.provider).to(DEVICE), torch.from_numpy(weights.item).to(DEVICE)),
    )
    loss, d_scores, d_own, d_a, d_b = expected
    assert float(found.loss) == pytest.approx(loss, rel=1e-5, abs=1e-5)
    np.testing.assert_allclose(given.float().cpu(), d_scores, rtol=LOW_RTOL if low else 1e-4, atol=1e-7)
    np.testing.assert_allclose(found.d_target_score.cpu(), d_own, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(found.d_provider.cpu(), d_a, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(found.d_item.cpu(), d_b, rtol=1e-4, atol=1e-5)
    assert (room[:, scores.shape[1] :] == 7).all()  # what lies between rows is nobody's to write


def case(rng, kind, rows=9):
    """Scores (rows, N), target scores, targets, columns."""
    if kind == "all items":
        items, bias = np.arange(1, ITEMS + 1), None
    elif kind == "a sample":
        items = np.sort(rng.permutation(np.arange(1, ITEMS + 1))[:33])
        bias = rng.uniform(0, 3, 33)
    else:
        items, bias = np.array([20]), None
    targets = rng.integers(1, ITEMS + 1, rows)
    scores = rng.normal(0, 3, (rows, len(items))).astype(np.float32)
    return scores, rng.normal(0, 3, rows).astype(np.float32), targets, columns_of(items, bias=bias)


def lists_of(rng, rows):
    lists = [rng.integers(1, ITEMS + 1, length).tolist() for length in rng.integers(0, AGES + 1, rows)]
    # Nothing; repeats, full, an item without a provider; such items alone, and the last item of all.
    return [[], [20, 20, 5, 21, 20, 5], [3, 3, ITEMS], *lists][:rows]


@pytest.mark.parametrize("kind", ["all items", "a sample", "one item"])
@pytest.mark.parametrize("with_terms", [True, False])
@pytest.mark.parametrize("low", [True, False])
def test_loss_and_gradients_equal_the_naive_ones(rng, tile, kind, with_terms, low):
    scores, own, targets, columns = case(rng, kind)
    weights = weights_of(rng, AGES if with_terms else 0)
    lists = lists_of(rng, len(scores)) if with_terms else [[] for _ in scores]
    compare(scores, own, targets, lists, columns=columns, weights=weights, low=low, apart=6)


def test_targets_that_came_before_and_histories_of_the_longest_length(rng, tile):
    scores, own, targets, columns = case(rng, "all items", rows=5)
    lists = [[int(target)] * AGES for target in targets]
    lists[0] = rng.integers(1, ITEMS + 1, AGES).tolist()
    compare(scores, own, targets, lists, columns=columns, weights=weights_of(rng))


def test_one_provider_of_all_items(rng, tile):
    scores, own, targets, _ = case(rng, "all items", rows=3)
    columns = columns_of(np.arange(1, ITEMS + 1), providers=1)
    compare(scores, own, targets, [[50, 10, 90], [1, 2], []], columns=columns, weights=weights_of(rng))


def test_one_row_and_one_age(rng, tile):
    scores, own, targets, columns = case(rng, "all items", rows=1)
    compare(scores, own, targets, [[44]], columns=columns, weights=weights_of(rng, 1))


def test_equal_scores(tile):
    columns = columns_of(np.arange(1, ITEMS + 1))
    nothing = np.zeros(0, np.float32)
    scores = np.full((2, ITEMS), -3.0, np.float32)
    compare(
        scores,
        np.full(2, -3.0, np.float32),
        np.array([1, ITEMS]),
        [[], []],
        columns=columns,
        weights=target_rows.TermWeights(nothing, nothing),
    )


@pytest.mark.parametrize("width", [1, 1_023, 1_024, 1_025, 5_000])
def test_rows_of_any_width(rng, width):
    scores = torch.from_numpy(rng.normal(0, 5, (3, width)).astype(np.float32)).to(DEVICE)
    targets = torch.from_numpy(rng.integers(1, width + 1, 3)).to(DEVICE)
    nothing = torch.zeros(1, dtype=torch.int32, device=DEVICE)
    columns = Columns(
        torch.arange(-1, width, dtype=torch.int32, device=DEVICE),
        torch.zeros(0, device=DEVICE),
        nothing,
        nothing,
        torch.zeros(width + 1, dtype=torch.int32, device=DEVICE),
    )
    at = torch.arange(3, device=DEVICE)
    expected = scores.double().softmax(1)
    no_weights = torch.zeros(0, device=DEVICE)
    found = softmax_gradients(
        scores,
        scores[at, targets - 1].clone(),
        targets,
        columns=columns,
        histories=torch.zeros(3, 0, dtype=torch.int64, device=DEVICE),
        weights=(no_weights, no_weights),
    )
    own = expected[at, targets - 1].clone()
    assert float(found.loss) == pytest.approx(float(-own.log().sum()), rel=1e-5, abs=1e-5)
    np.testing.assert_allclose(found.d_target_score.cpu(), (own - 1).cpu(), rtol=1e-4, atol=1e-6)
    expected[at, targets - 1] = 0.0
    np.testing.assert_allclose(scores.cpu(), expected.cpu(), rtol=1e-4, atol=1e-9)


@pytest.mark.parametrize("scale", [1e-30, 1e4, 1e30])
def test_tiny_and_huge_scores_stay_finite(rng, tile, scale):
    scores, own, targets, columns = case(rng, "all items")
    weights = weights_of(rng)
    given = torch.from_numpy(scores * np.float32(scale)).to(DEVICE)
    found = softmax_gradients(
        given,
        torch.from_numpy(own * np.float32(scale)).to(DEVICE),
        torch.from_numpy(targets).to(DEVICE),
        columns=on_device(columns),
        histories=by_age(lists_of(rng, len(scores))),
        weights=(torch.from_numpy(weights.provider).to(DEVICE), torch.from_numpy(weights.item).to(DEVICE)),
    )
    for part in (*found, given):
        assert torch.isfinite(part).all()


def test_a_score_that_is_no_number_shows_in_the_loss(rng):
    scores, own, targets, columns = case(rng, "all items")
    own[2] = np.nan
    nothing = torch.zeros(0, device=DEVICE)
    found = softmax_gradients(
        torch.from_numpy(scores).to(DEVICE),
        torch.from_numpy(own).to(DEVICE),
        torch.from_numpy(targets).to(DEVICE),
        columns=on_device(columns),
        histories=by_age([[]] * len(scores), 0),
        weights=(nothing, nothing),
    )
    assert torch.isnan(found.loss)


def fitting(rows=2):
    """Arguments that fit each other."""
    return {
        "scores": torch.zeros(rows, ITEMS, device=DEVICE),
        "target_scores": torch.zeros(rows, device=DEVICE),
        "targets": torch.ones(rows, dtype=torch.int64, device=DEVICE),
        "columns": on_device(columns_of(np.arange(1, ITEMS + 1))),
        "histories": torch.zeros(rows, AGES, dtype=torch.int64, device=DEVICE),
        "weights": (torch.ones(AGES, device=DEVICE), torch.ones(AGES, device=DEVICE)),
    }


def test_no_rows():
    found = softmax_gradients(**fitting(rows=0))
    assert float(found.loss) == 0.0
    assert [len(part) for part in found[1:]] == [0, AGES, AGES]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"scores": torch.zeros(2, ITEMS, dtype=torch.float64)}, "scores is float64 with 2 axes, expected bfloat16 or"),
        ({"scores": torch.zeros(ITEMS, 2).T}, r"scores have strides \(1, 2\), expected rows of 90"),
        ({"targets": torch.ones(2, dtype=torch.int32)}, "targets is int32 with 1 axes, expected int64 with 1"),
        ({"targets": torch.ones(3, dtype=torch.int64)}, "scores have 2 rows for 3 targets with 2 scores"),
        ({"histories": torch.ones(2, 5, dtype=torch.int64)}, "histories have 5 ages for 6 weights of providers and 6"),
        ({"weights": (torch.ones(6), torch.ones(5))}, "histories have 6 ages for 6 weights of providers and 5"),
        ({"weights": (torch.ones(6), torch.ones(6).double())}, "b is float64 with 1 axes, expected float32"),
    ],
)
def test_tensors_that_do_not_fit_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        softmax_gradients(**{**fitting(), **change})


def test_a_bias_for_other_columns_is_refused():
    given = fitting()
    given["columns"] = given["columns"]._replace(bias=torch.zeros(3, device=DEVICE))
    with pytest.raises(ValueError, match="bias has 3 numbers for 90 columns, expected as many or none"):
        softmax_gradients(**given)


@pytest.mark.slow
def test_the_kernels_compile_for_gpus_that_are_not_here_and_spill_nothing(tmp_path):
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment |= {"TRITON_CACHE_DIR": str(tmp_path), "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(
        [sys.executable, Path(__file__).with_name("compiled_kernels.py"), "softmax", "80", "90", "100"],
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    found = json.loads(done.stdout)
    assert len(found) == 9
    for kernel, used in found.items():
        assert used["stack"] == used["local"] == 0, kernel
        assert used["registers"] <= 64, kernel  # more, and too few programs run at once to wait for memory
        if "_term_kernel" not in kernel:  # which reads a few columns, wherever they begin
            assert used["vector_loads"] > 0, kernel
