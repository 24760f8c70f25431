"""Paired t-tests over users: do two rows differ in NDCG@10 by more than the users' chance?

The test treats users as the sample, each with the mean over a row's seeds: it says nothing of the spread over seeds or
over data sets. Several tests are made and none is corrected for that, so a p-value between .001 and .05 is no finding.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt
from scipy.stats import ttest_rel

from ipsrec_experiment.cell import PROTOCOLS
from ipsrec_experiment.plan import COUNTING
from ipsrec_experiment.results import RowResult

CONFIDENCE = 0.95


@dataclass(frozen=True)
class Comparison:
    """One test.

    Attributes:
        row: the row in question.
        against: what it is compared with.
        why: "best baseline", "best baseline, other protocol", "reference" or "named" (by the plan).
        protocol: what became of seen items.
        difference: of the mean NDCG@10, relative to `against`: 0.05 is 5% more; None where that is 0.
        low: lower end of the 95% interval of the difference; None for one user, who says nothing of others.
        high: upper end.
        p: two-sided; None where every user has the same difference, so that there is no test.
        users: how many.
        seeds: of the row, and of `against`.
    """

    row: str
    against: str
    why: str
    protocol: Literal["kept", "excluded"]
    difference: float | None
    low: float | None
    high: float | None
    p: float | None
    users: int
    seeds: tuple[int, int]


def best_baseline(results: Sequence[RowResult], protocol: str) -> RowResult | None:
    """The baseline with the best mean NDCG@10 of VALIDATION, the first of equals; None without a baseline."""
    baselines = [result for result in results if result.row is not None and result.row.baseline]
    return max(baselines, key=lambda row: float(np.mean(row.values("valid", protocol, "ndcg@10"))), default=None)


def compare_rows(
    results: Sequence[RowResult], counting: RowResult, *, reference: str | None, protocol: Literal["kept", "excluded"]
) -> list[Comparison]:
    """Compare each row that is no baseline with the best baseline, the reference and the rows that the plan names.

    Args:
        results: of the rows.
        counting: of the floor.
        reference: name of a row; None for none.
        protocol: what becomes of seen items.

    Returns:
        The tests, in the order of the rows; a pair is tested once.
    """
    known = {result.name: result for result in (*results, counting)}
    best = best_baseline(results, protocol)
    # The best of the other protocol is tested too, so that both protocols have the same pairs.
    others = [best_baseline(results, other) for other in PROTOCOLS if other != protocol]
    tests = []
    for result in results:
        if result.row is None:
            continue
        named = [(name, "named") for name in result.row.against]
        if not result.row.baseline:
            baselines = [(best, "best baseline"), *((other, "best baseline, other protocol") for other in others)]
            named = [*((row.name, why) for row, why in baselines if row), (reference or "", "reference"), *named]
        asked: dict[str, str] = {}
        for name, why in named:
            if name in known and name != result.name:
                asked.setdefault(name, why)
        tests += [compare(result, known[name], why=why, protocol=protocol) for name, why in asked.items()]
    return tests


def compare(result: RowResult, against: RowResult, *, why: str, protocol: Literal["kept", "excluded"]) -> Comparison:
    """Test one row against another on the test split."""
    ours, theirs = result.ndcg("test", protocol), against.ndcg("test", protocol)
    difference, low, high, p = paired_test(ours, theirs)
    return Comparison(
        row=result.name,
        against=against.name,
        why=why,
        protocol=protocol,
        difference=difference,
        low=low,
        high=high,
        p=p,
        users=len(ours),
        seeds=(len(result.cells), 1 if against.name == COUNTING else len(against.cells)),
    )


def paired_test(
    ours: npt.NDArray[np.float64], theirs: npt.NDArray[np.float64]
) -> tuple[float | None, float | None, float | None, float | None]:
    """Relative difference of the means with its 95% interval, and the two-sided p of the paired t-test.

    Args:
        ours: (U,) one number a user.
        theirs: (U,) of the same users.

    Returns:
        difference, low, high and p. Where the mean of `theirs` is 0 there is nothing to be relative to: all are None.
        One user has a difference alone. p is None where all differences are the same.
    """
    mean, base = float((ours - theirs).mean()) if len(ours) else 0.0, float(theirs.mean()) if len(ours) else 0.0
    if base == 0:
        return None, None, None, None
    if len(ours) == 1:
        return mean / base, None, None, None
    if np.ptp(ours - theirs) == 0:
        return mean / base, mean / base, mean / base, None
    test = ttest_rel(ours, theirs)
    interval = test.confidence_interval(CONFIDENCE)
    return mean / base, float(interval.low) / base, float(interval.high) / base, float(test.pvalue)
