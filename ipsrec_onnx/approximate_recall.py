"""Chooses how far an approximate search looks, by the recall that it has on users of the job."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from ipsrec_onnx.approximate import ApproximateIndex, build_approximate_index
from ipsrec_onnx.errors import DataError
from ipsrec_onnx.histories import Histories
from ipsrec_onnx.retrieval import Ranker, Ranking, rank_users
from ipsrec_onnx.stage_times import StageTimes

SAMPLE_USERS = 256  # with a known item


@dataclass(frozen=True)
class Recall:
    """What was chosen, and how good it is.

    Attributes:
        target: the recall that was asked for.
        measured: share of the items of the exact lists that the approximate lists hold, mean over the users.
        users: on which it was measured.
        probes: lists of the index that a search looks through.
        lists: that it has.
        fetch: items that it proposes for each user.
    """

    target: float
    measured: float
    users: int
    probes: int
    lists: int
    fetch: int

    def in_words(self) -> str:
        """One line for the start of a job."""
        return (
            f"approximate search: recall {self.measured:.4f} of the exact lists on {self.users} users; looks through "
            f"{self.probes:,} of {self.lists:,} lists, proposes {self.fetch:,} items"
        )

    def to_json(self) -> dict[str, Any]:
        """Give everything as one flat JSON object."""
        return asdict(self)

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> Recall:
        """Read what to_json gave.

        Raises:
            TypeError: it has other names.
        """
        return cls(**value)


def choose_recall(ranker: Ranker, sample: Histories, *, target: float) -> tuple[ApproximateIndex, Recall]:
    """Build an index and let it look only as far as the target needs, under all rules of the job.

    The items proposed for each user are twice top_k and then twice as many again, until looking through all lists
    reaches the target; then the lists looked through are halved while it holds.

    Args:
        ranker: with the rules of the job; its search is exact.
        sample: (n) histories, some of them known.
        target: above 0, at most 1.

    Raises:
        DataError: no user of the sample has a known item.
        ModuleNotFoundError: faiss is not installed.
    """
    warm = sample.without_empty()
    if not len(warm.lengths):
        raise DataError(
            "--approximate: no user of the input has an item that the model knows, so that recall cannot be measured; "
            "leave --approximate out"
        )
    exact = _rank(ranker, warm)
    index = build_approximate_index(ranker.table)
    num_items = len(index.item_index)
    index = replace(index, fetch=min(2 * ranker.top_k, num_items))
    recall = _recall(_rank(replace(ranker, approximate=index), warm), exact)
    while recall < target and index.fetch < num_items:
        index = replace(index, fetch=min(2 * index.fetch, num_items))
        recall = _recall(_rank(replace(ranker, approximate=index), warm), exact)
    while index.probes > 1:
        fewer = replace(index, probes=index.probes // 2)
        found = _recall(_rank(replace(ranker, approximate=fewer), warm), exact)
        if found < target:
            break
        index, recall = fewer, found
    return index, Recall(target, recall, len(warm.lengths), index.probes, index.num_lists, index.fetch)


def _rank(ranker: Ranker, histories: Histories) -> Ranking:
    return rank_users(ranker, histories, candidates=None, cold_users="empty", times=StageTimes())


def _recall(approximate: Ranking, exact: Ranking) -> float:
    """Mean share of each exact list that the approximate one holds; users whose exact list is empty lack nothing."""
    shares = [
        np.isin(wanted[:count], found).mean()
        for wanted, found, count in zip(
            exact.lists.item_index, approximate.lists.item_index, exact.lists.counts, strict=True
        )
        if count
    ]
    return float(np.mean(shares)) if shares else 1.0
