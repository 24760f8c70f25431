"""Ranks items for users whose histories are mapped: encode, exact top-k, and the popular items for the cold ones.

Scoring and evaluation both come through rank_users, so that a metric is a metric of what a job would have written.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from ipsrec_kernels.best_list import BestLists, empty_lists
from ipsrec_kernels.item_table import ItemTable, build_item_table
from ipsrec_kernels.popular import popular, popular_order
from ipsrec_kernels.ragged import Ragged
from ipsrec_kernels.topk import History, retrieve
from ipsrec_onnx.encoding import encode
from ipsrec_onnx.errors import ModelFileError
from ipsrec_onnx.histories import Histories
from ipsrec_onnx.id_lists import range_positions
from ipsrec_onnx.model_file import ModelFile

ColdUsers = Literal["popular", "empty", "error"]


@dataclass(frozen=True, eq=False)
class Ranker:
    """A model and the rules of one job; built once, shared by the worker threads.

    Attributes:
        model: the opened model file.
        table: the items that may be recommended, laid out for retrieval.
        order: (M,) int32, the same items by popularity, best first.
        top_k: length of the lists, never above the number of items.
        keep_seen: may an item of the user's history be recommended?
        max_per_provider: at most so many items of one provider in a list; None for no limit.
    """

    model: ModelFile
    table: ItemTable
    order: npt.NDArray[np.int32]
    top_k: int
    keep_seen: bool
    max_per_provider: int | None


@dataclass(frozen=True, eq=False)
class Ranking:
    """The lists of some users.

    Attributes:
        item_index: (n, top_k) int32, best first, PADDING past the end.
        scores: (n, top_k) float32, 0 past the end.
        counts: (n,) int32, items in each list.
        cold: (n,) bool, users without a known item.
    """

    item_index: npt.NDArray[np.int32]
    scores: npt.NDArray[np.float32]
    counts: npt.NDArray[np.int32]
    cold: npt.NDArray[np.bool_]


def build_ranker(
    model: ModelFile,
    allowed: npt.NDArray[np.bool_] | None,
    *,
    top_k: int,
    keep_seen: bool,
    max_per_provider: int | None,
) -> Ranker:
    """Lay out what a job needs of a model.

    Args:
        model: the opened model file.
        allowed: (num_items + 1,) bool, items that may be recommended; None for all.
        top_k: length of the lists, 1 or more.
        keep_seen: may an item of the user's history be recommended?
        max_per_provider: at most so many items of one provider in a list, 1 or more; None for no limit.

    Raises:
        ModelFileError: an item embedding has NaN or infinity.
    """
    catalog = model.catalog
    try:
        table = build_item_table(model.item_embeddings, catalog.item_provider, allowed=allowed)
    except ValueError as error:
        raise ModelFileError(f"model {model.path}: {error}") from error
    return Ranker(
        model=model,
        table=table,
        order=popular_order(catalog.popularity, allowed=allowed),
        top_k=min(top_k, catalog.num_items),
        keep_seen=keep_seen,
        max_per_provider=max_per_provider,
    )


def rank_users(
    ranker: Ranker, histories: Histories, *, candidates: Ragged | None, cold_users: Literal["popular", "empty"]
) -> Ranking:
    """Rank items for some users; a user's list does not depend on the others.

    Args:
        ranker: as build_ranker made it.
        histories: (n) known items of each user, the whole history.
        candidates: (n lists) the only item_index to choose from; None for all that are allowed.
        cold_users: what a user without a known item gets: the popular items, or an empty list.
    """
    cold = histories.lengths == 0
    ranked = empty_lists(len(cold), ranker.top_k)
    warm_candidates, cold_candidates = (_of_users(candidates, users) for users in (~cold, cold))
    if not cold.all():
        _fill(ranked, ~cold, _rank_by_model(ranker, histories.without_empty(), warm_candidates))
    if cold_users == "popular" and cold.any():
        _fill(ranked, cold, _rank_by_popularity(ranker, int(cold.sum()), cold_candidates))
    return Ranking(ranked.item_index, ranked.scores, ranked.counts, cold)


def _rank_by_model(ranker: Ranker, histories: Histories, candidates: Ragged | None) -> BestLists:
    """Exact top-k of the full score: the model sees the newest items, the seen filter the whole history."""
    newest = histories.newest(ranker.model.max_len)
    return retrieve(
        ranker.table,
        encode(ranker.model, newest),
        top_k=ranker.top_k,
        seen=None if ranker.keep_seen else Ragged(histories.items, histories.offsets),
        history=History(newest.items, newest.providers, newest.offsets),
        terms=ranker.model.history_terms,
        candidates=candidates,
        max_per_provider=ranker.max_per_provider,
    )


def _rank_by_popularity(ranker: Ranker, num_users: int, candidates: Ragged | None) -> BestLists:
    """The popular items under the same filters; a user without a known item has seen none."""
    catalog = ranker.model.catalog
    return popular(
        ranker.order,
        catalog.popularity,
        catalog.item_provider,
        top_k=ranker.top_k,
        num_users=num_users,
        seen=None,
        candidates=candidates,
        max_per_provider=ranker.max_per_provider,
    )


def _of_users(lists: Ragged | None, users: npt.NDArray[np.bool_]) -> Ragged | None:
    """The lists of some users."""
    if lists is None:
        return None
    positions, offsets = range_positions(lists.offsets[:-1][users], np.diff(lists.offsets)[users])
    return Ragged(lists.values[positions], offsets)


def _fill(ranked: BestLists, users: npt.NDArray[np.bool_], part: BestLists) -> None:
    """Put the lists of some users at their rows."""
    ranked.item_index[users] = part.item_index
    ranked.scores[users] = part.scores
    ranked.counts[users] = part.counts
