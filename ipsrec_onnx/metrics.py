"""Ranking metrics of one relevant item a user: HR, MRR and NDCG at a cut-off."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt


def metrics_of_ranks(ranks: npt.NDArray[np.integer], cutoffs: Sequence[int]) -> dict[str, float]:
    """Average over users what the rank of each one's target is worth.

    With one relevant item, the ideal DCG is 1, so that NDCG is 1 / log2(rank + 1) (Jarvelin and Kekalainen 2002).

    Args:
        ranks: (U,) rank of each user's target, 1 is best; 0 for a target that was not ranked.
        cutoffs: the N of HR@N, MRR@N and NDCG@N.

    Returns:
        "hr@N", "mrr@N" and "ndcg@N" for each N; 0.0 each for no users.
    """
    rank = np.asarray(ranks, np.float64)
    metrics: dict[str, float] = {}
    for cutoff in cutoffs:
        found = rank[(rank >= 1) & (rank <= cutoff)]
        users = max(len(rank), 1)
        metrics[f"hr@{cutoff}"] = len(found) / users
        metrics[f"mrr@{cutoff}"] = float((1 / found).sum()) / users
        metrics[f"ndcg@{cutoff}"] = float((1 / np.log2(found + 1)).sum()) / users
    return metrics
