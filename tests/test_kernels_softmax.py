from __future__ import annotations

import naive
import numpy as np
import pytest

from ipsrec_kernels.softmax import softmax_gradients
from ipsrec_kernels.target_rank import target_ranks
from ipsrec_kernels.target_rows import Columns, TargetHistories, TermWeights

ITEMS, PROVIDERS, AGES = 90, 7, 6
NO_TERMS = TermWeights(np.zeros(0, np.float32), np.zeros(0, np.float32))
NOBODY = TargetHistories(np.zeros(0, np.int32), np.zeros(0, np.int64), np.zeros(0, np.int64))


def columns_of(items, *, bias=None):
    """Columns for these item_index; the first nine items have no provider."""
    provider = np.concatenate([np.zeros(10), np.repeat(np.arange(1, PROVIDERS + 1), 12)]).astype(np.int32)[: ITEMS + 1]
    of_item = np.full(ITEMS + 1, -1, np.int32)
    of_item[items] = np.arange(len(items))
    every = np.arange(PROVIDERS + 1)
    return Columns(
        of_item,
        np.zeros(0, np.float32) if bias is None else bias.astype(np.float32),
        np.searchsorted(provider[items], every).astype(np.int32),
        np.searchsorted(provider[items], every, side="right").astype(np.int32),
        provider,
    )


WHOLE = columns_of(np.arange(1, ITEMS + 1))


def lists_of(rng, rows):
    lists = [rng.integers(1, ITEMS + 1, length).tolist() for length in rng.integers(0, AGES + 1, rows)]
    if rows > 1:
        lists[0], lists[1] = [], [20, 20, 5, 21, 20, 5]  # nothing; repeats; full; no provider
    ends = np.cumsum([len(items) for items in lists]).astype(np.int64)
    values = np.array([item for items in lists for item in items], np.int32)
    return lists, TargetHistories(values, ends - np.array([len(items) for items in lists], np.int64), ends)


def weights_of(rng):
    return TermWeights(rng.uniform(0, 2, AGES).astype(np.float32), rng.normal(0, 2, AGES).astype(np.float32))


def to_bfloat16(array):
    """Bits of the nearest bfloat16 below in size, and its value."""
    bits = (array.view(np.uint32) >> 16).astype(np.uint16)
    return bits, from_bfloat16(bits)


def from_bfloat16(bits):
    return (bits.astype(np.uint32) << 16).view(np.float32)


def case(rng, kind, rows=12):
    """Scores (rows, N), targets, columns."""
    if kind == "all items":
        items, bias = np.arange(1, ITEMS + 1), None
    elif kind == "a sample":
        items = np.sort(rng.permutation(np.arange(1, ITEMS + 1))[:33])
        bias = rng.uniform(0, 3, 33)
    else:
        items, bias = np.array([20]), None
    targets = rng.integers(1, ITEMS + 1, rows).astype(np.int32)
    scores = rng.normal(0, 3, (rows, len(items))).astype(np.float32)
    return scores, rng.normal(0, 3, rows).astype(np.float32), targets, columns_of(items, bias=bias)


@pytest.mark.parametrize("kind", ["all items", "a sample", "one item"])
@pytest.mark.parametrize("with_terms", [True, False])
@pytest.mark.parametrize("low", [True, False])
def test_loss_and_gradients_equal_the_naive_ones(rng, kind, with_terms, low):
    scores, own, targets, columns = case(rng, kind)
    lists, histories = lists_of(rng, len(scores))
    weights = weights_of(rng) if with_terms else NO_TERMS
    bits, rounded = to_bfloat16(scores)
    loss, d_scores, d_own, d_a, d_b = naive.softmax_gradients(
        rounded if low else scores, own, targets, columns=columns, histories=lists, weights=weights
    )
    given = bits if low else scores
    found = softmax_gradients(
        given, own, targets, columns=columns, histories=histories if with_terms else NOBODY, weights=weights
    )
    assert found.loss == pytest.approx(loss, rel=1e-5)
    gradients = from_bfloat16(given) if low else given
    np.testing.assert_allclose(gradients, d_scores, rtol=1 / 250 if low else 1e-4, atol=1e-7)
    np.testing.assert_allclose(found.d_target_score, d_own, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(found.d_provider, d_a, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(found.d_item, d_b, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("width", [1, 15, 16, 17, 1_023, 1_024, 1_025, 5_000])
def test_rows_of_any_width(rng, width):
    scores = rng.normal(0, 5, (3, width)).astype(np.float32)
    plain = scores.astype(np.float64)
    of_item = np.arange(-1, width, dtype=np.int32)
    nothing = np.zeros(1, np.int32)
    columns = Columns(of_item, np.zeros(0, np.float32), nothing, nothing, np.zeros(width + 1, np.int32))
    targets = rng.integers(1, width + 1, 3).astype(np.int32)
    own = scores[np.arange(3), targets - 1].copy()
    found = softmax_gradients(scores, own, targets, columns=columns, histories=NOBODY, weights=NO_TERMS)
    probability = np.exp(plain - plain.max(1, keepdims=True))
    probability /= probability.sum(1, keepdims=True)
    expected = probability[np.arange(3), targets - 1]
    assert found.loss == pytest.approx(-np.log(expected).sum(), rel=1e-5, abs=1e-5)
    np.testing.assert_allclose(found.d_target_score, expected - 1, rtol=1e-4, atol=1e-6)
    scores[np.arange(3), targets - 1] = expected
    np.testing.assert_allclose(scores, probability, rtol=1e-4, atol=1e-9)


@pytest.mark.parametrize("scale", [1e-30, 1.0, 1e4, 1e30])
def test_tiny_and_huge_scores_stay_finite(rng, scale):
    scores, own, targets, columns = case(rng, "all items")
    found = softmax_gradients(
        scores * np.float32(scale),
        own * np.float32(scale),
        targets,
        columns=columns,
        histories=NOBODY,
        weights=NO_TERMS,
    )
    assert np.isfinite(found.loss)
    assert np.isfinite(found.d_target_score).all()


def test_no_rows():
    columns = columns_of(np.arange(1, ITEMS + 1))
    found = softmax_gradients(
        np.zeros((0, ITEMS), np.float32),
        np.zeros(0, np.float32),
        np.zeros(0, np.int32),
        columns=columns,
        histories=NOBODY,
        weights=NO_TERMS,
    )
    assert found.loss == 0.0


@pytest.mark.parametrize("with_terms", [True, False])
def test_ranks_equal_the_naive_ones_with_ties(rng, with_terms):
    scores, _, targets, columns = case(rng, "all items", rows=60)
    scores = np.round(scores)
    lists, histories = lists_of(rng, len(scores))
    whole = TermWeights(np.round(weights_of(rng).provider), np.round(weights_of(rng).item))
    weights = whole if with_terms else NO_TERMS
    expected = [
        naive.target_rank(scores[c], target, columns=columns, history=lists[c] if with_terms else [], weights=weights)
        for c, target in enumerate(targets.tolist())
    ]
    found = target_ranks(
        scores, targets, columns=columns, histories=histories if with_terms else NOBODY, weights=weights
    )
    assert found.tolist() == expected


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_row_with_a_score_that_is_no_finite_number_has_rank_zero(rng, bad):
    scores, _, targets, columns = case(rng, "all items")
    scores[3, 50] = bad
    found = target_ranks(scores, targets, columns=columns, histories=NOBODY, weights=NO_TERMS)
    assert np.flatnonzero(found == 0).tolist() == [3]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"targets": np.array([0, 1], np.int32)}, r"targets\[0\] is 0, expected 1..90"),
        ({"targets": np.array([1, 91], np.int32)}, r"targets\[1\] is 91, expected 1..90"),
        ({"targets": np.array([1], np.int32)}, "scores have 2 rows for 1 targets"),
        ({"targets": np.array([1, 2])}, "targets is int64 with 1 axes, expected int32"),
        (
            {"histories": TargetHistories(np.ones(9, np.int32), np.zeros(2, np.int64), np.full(2, 7))},
            "longer than the 6",
        ),
        ({"histories": TargetHistories(np.ones(3, np.int32), np.zeros(2, np.int64), np.full(2, 4))}, "outside the 3"),
        ({"histories": NOBODY}, "0 starts and 0 stops of histories for 2 rows"),
        (
            {"histories": TargetHistories(np.array([1, 91], np.int32), np.zeros(2, np.int64), np.full(2, 2))},
            r"items\[1\] is 91, expected 0..90",
        ),
        ({"scores": np.zeros((2, ITEMS))}, "scores is float64 with 2 axes, expected float32"),
        ({"scores": np.zeros((2, ITEMS - 1), np.float32)}, r"of_item\[90\] is 89, expected -1..88"),
        ({"weights": TermWeights(np.ones(6, np.float32), np.ones(5, np.float32))}, "6 weights of providers for 5 of"),
        ({"weights": TermWeights(np.ones(6), np.ones(6))}, "provider is float64 with 1 axes, expected float32"),
        ({"columns": WHOLE._replace(begin=WHOLE.begin[:-1])}, "7 begins and 8 ends of providers, expected as many"),
        ({"columns": WHOLE._replace(end=WHOLE.end + np.int32(1))}, r"end\[7\] is 91, expected 0..90"),
        (
            {"columns": WHOLE._replace(item_provider=WHOLE.item_provider * 2)},
            r"item_provider\[\d+\] is 8, expected 0..7",
        ),
    ],
)
@pytest.mark.parametrize("face", ["gradients", "ranks"])
def test_arrays_that_do_not_fit_are_refused(rng, face, change, message):
    _, histories = lists_of(rng, 2)
    given = {
        "scores": np.zeros((2, ITEMS), np.float32),
        "targets": np.array([1, 2], np.int32),
        "weights": weights_of(rng),
        "columns": columns_of(np.arange(1, ITEMS + 1)),
        "histories": histories,
        **change,
    }
    scores, targets = given.pop("scores"), given.pop("targets")
    with pytest.raises(ValueError, match=message):
        if face == "ranks":
            target_ranks(scores, targets, **given)
        else:
            softmax_gradients(scores, np.zeros(2, np.float32), targets, **given)


def test_a_bias_that_does_not_fit_is_refused():
    columns = columns_of(np.arange(1, ITEMS + 1), bias=np.zeros(3))
    one = np.zeros(1, np.float32)
    with pytest.raises(ValueError, match="bias has 3 numbers for 90 columns"):
        softmax_gradients(
            np.zeros((1, ITEMS), np.float32),
            one,
            np.ones(1, np.int32),
            columns=columns,
            histories=NOBODY,
            weights=NO_TERMS,
        )
