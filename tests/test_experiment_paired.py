from __future__ import annotations

import math

import numpy as np
import pytest
from experiment_data import make_plan, make_result
from scipy.stats import t, ttest_1samp

from ipsrec_experiment.paired import best_baseline, compare_rows, paired_test
from ipsrec_experiment.plan import COUNTING
from ipsrec_experiment.results import RowResult, ndcg_of_ranks


def test_the_test_equals_a_calculation_by_hand():
    ours, theirs = np.array([0.5, 0.4, 0.9, 0.2]), np.array([0.3, 0.4, 0.5, 0.3])
    differences = [0.2, 0.0, 0.4, -0.1]
    mean = sum(differences) / 4
    variance = sum((difference - mean) ** 2 for difference in differences) / 3
    error = math.sqrt(variance / 4)
    half = t.ppf(0.975, 3) * error
    base = 1.5 / 4
    difference, low, high, p = paired_test(ours, theirs)
    assert difference == pytest.approx(mean / base)
    assert (low, high) == pytest.approx(((mean - half) / base, (mean + half) / base))
    assert p == pytest.approx(2 * t.sf(mean / error, 3))


def test_the_test_equals_a_one_sample_test_of_the_differences(rng):
    ours, theirs = rng.random(500), rng.random(500)
    expected = ttest_1samp(ours - theirs, 0.0)
    difference, low, high, p = paired_test(ours, theirs)
    interval = expected.confidence_interval(0.95)
    assert p == pytest.approx(expected.pvalue)
    assert (low, high) == pytest.approx((interval.low / theirs.mean(), interval.high / theirs.mean()))
    assert difference == pytest.approx(ours.mean() / theirs.mean() - 1)


@pytest.mark.parametrize(
    ("ours", "theirs", "expected"),
    [
        ([0.5, 0.7], [0.5, 0.7], (0.0, 0.0, 0.0, None)),
        ([0.75, 0.75], [0.5, 0.5], (0.5, 0.5, 0.5, None)),
        ([0.6], [0.5], (0.2, None, None, None)),
        ([0.5, 0.1], [0.0, 0.0], (None, None, None, None)),
        ([], [], (None, None, None, None)),
    ],
)
def test_where_there_is_nothing_to_test_there_is_no_p(ours, theirs, expected):
    found = paired_test(np.array(ours, float), np.array(theirs, float))
    assert [None if part is None else round(part, 12) for part in found] == list(expected)


def test_a_user_counts_once_with_the_mean_over_seeds(tmp_path, rng):
    result = make_result(make_plan(tmp_path).rows[0], rng, users=6, seeds=2, good=0.7)
    first, second = (seed["test_kept"] for seed in result.ranks)
    expected = [
        sum(1 / math.log2(rank + 1) if rank else 0.0 for rank in ranks) / 2 for ranks in zip(first, second, strict=True)
    ]
    assert result.ndcg("test", "kept") == pytest.approx(expected)
    assert ndcg_of_ranks(np.array([0, 1, 10, 11])) == pytest.approx([0, 1, 1 / math.log2(11), 0])


def test_the_best_baseline_is_chosen_by_validation_and_not_by_test(tmp_path, rng):
    row = make_plan(tmp_path).rows[0]
    good_in_test = make_result(row, rng, users=400, seeds=1, good=0.3)
    good_in_validation = make_result(row, rng, users=400, seeds=1, good=0.9)
    metrics = [result.cells[0]["metrics"] for result in (good_in_test, good_in_validation)]
    metrics[0]["test"], metrics[1]["test"] = metrics[1]["test"], metrics[0]["test"]
    assert metrics[0]["test"]["kept"]["ndcg@10"] > metrics[1]["test"]["kept"]["ndcg@10"]
    for protocol in ("kept", "excluded"):
        assert best_baseline([good_in_test, good_in_validation], protocol) is good_in_validation
    assert best_baseline([], "kept") is None


def test_each_pair_is_compared_once_and_a_baseline_only_with_what_it_names(tmp_path, rng):
    plan = make_plan(tmp_path)
    results = [make_result(row, rng, users=50, seeds=2, good=0.5) for row in plan.rows]
    counting = make_result(plan.rows[0], rng, users=50, seeds=1, good=0.5)
    counting = RowResult(COUNTING, None, counting.cells, counting.ranks)
    tests = compare_rows(results, counting, reference="A", protocol="kept")
    assert [(test.row, test.against, test.why) for test in tests] == [
        ("B + terms", "A", "best baseline"),
        ("B + terms", COUNTING, "named"),
    ]
    assert [test.seeds for test in tests] == [(2, 2), (2, 1)]
    assert {test.users for test in tests} == {50}
