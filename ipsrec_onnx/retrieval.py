"""Ranks items for users whose histories are mapped: encode, exact top-k, and the popular items for the cold ones.

Scoring and evaluation both come through rank_users, so that a metric is a metric of what a job would have written.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from ipsrec_kernels.best_list import BestLists, empty_lists
from ipsrec_kernels.history_items import History
from ipsrec_kernels.item_table import ItemTable
from ipsrec_kernels.merge import list_floors, merge_lists
from ipsrec_kernels.popular import PopularItems, popular, popular_items
from ipsrec_kernels.proposals import Proposals, proposals_among
from ipsrec_kernels.proposed import certain_lists, retrieve_proposed
from ipsrec_kernels.ragged import Ragged
from ipsrec_kernels.topk import retrieve
from ipsrec_kernels.weighed_providers import weigh_providers
from ipsrec_onnx.approximate import ApproximateIndex, propose
from ipsrec_onnx.card_opening import open_cards, open_sharded_cards
from ipsrec_onnx.card_search import CardSearch, fill_lists
from ipsrec_onnx.cards import DEFAULT_CARDS, CardOptions, Cards, EncodingCards, ShardedCards
from ipsrec_onnx.encoding import Encoder, EncoderName, open_encoder
from ipsrec_onnx.errors import ModelFileError
from ipsrec_onnx.histories import Histories
from ipsrec_onnx.id_lists import range_positions
from ipsrec_onnx.item_shards import WHOLE, CatalogShards, lay_out_items, shard_ranges
from ipsrec_onnx.mapped_arrays import mapped_bytes
from ipsrec_onnx.model_file import ModelFile
from ipsrec_onnx.session import Device
from ipsrec_onnx.stage_times import StageTimes

ColdUsers = Literal["popular", "empty", "error"]

_CHUNK_CANDIDATES = 1 << 21  # candidates of a chunk at most, so that a long list does not multiply memory
_CARD_CHUNKS = 4  # times as many for a GPU: each width's last batch is not full, and batches are large there


def users_at_once(most: int, *, top_k: int) -> int:
    """Users of a chunk, or of a group of rows: `most`, or fewer where lists of top_k are long; 1 or more."""
    return max(1, min(most, _CHUNK_CANDIDATES // top_k))


@dataclass(frozen=True, eq=False)
class Ranker:
    """A model and the rules of one job; built once, shared by the worker threads.

    Attributes:
        model: the opened model file.
        encode: computes user embeddings.
        tables: the items that may be recommended, laid out for retrieval: one table, or one a shard of the catalog.
        popular: the same items by popularity.
        top_k: length of the lists, never above the number of items.
        keep_seen: may an item of the user's history be recommended?
        max_per_provider: at most so many items of one provider in a list; None for no limit.
        approximate: what proposes the items that are scored; None for an exact search.
        card_search: searches on GPUs; None where the CPU searches.
        on_cards: are users encoded on GPUs?
    """

    model: ModelFile
    encode: Encoder
    tables: tuple[ItemTable, ...]
    popular: PopularItems
    top_k: int
    keep_seen: bool
    max_per_provider: int | None
    approximate: ApproximateIndex | None = None
    card_search: CardSearch | None = None
    on_cards: bool = False

    @property
    def table(self) -> ItemTable:
        """The table of a catalog that is not cut into shards."""
        (table,) = self.tables
        return table

    @property
    def ranges(self) -> list[range]:
        """The item_index of each table."""
        return shard_ranges(self.model.catalog.num_items, len(self.tables))

    @property
    def mapped_bytes(self) -> int:
        """Bytes of its arrays that are mapped from files."""
        arrays = [array for table in self.tables for array in table if isinstance(array, np.ndarray)]
        return mapped_bytes(self.model.item_embeddings, *arrays)

    @property
    def search(self) -> str:
        """What searches: "cpu", "triton" or "onnx"."""
        return "cpu" if self.card_search is None else self.card_search.counts().search

    def users_at_once(self, most: int) -> int:
        """Users of a chunk, or of a group of rows: `most`, or fewer where their lists are long; 1 or more."""
        return users_at_once(most, top_k=self.top_k)

    def chunk_users(self, most: int) -> int:
        """Users of a chunk at most: as many as users_at_once says, and on GPUs some times as many."""
        return self.users_at_once(most) * (_CARD_CHUNKS if self.on_cards else 1)


@dataclass(frozen=True, eq=False)
class Ranking:
    """The lists of some users.

    Attributes:
        lists: (n) item_index and scores, best first.
        cold: (n,) bool, users without a known item.
    """

    lists: BestLists
    cold: npt.NDArray[np.bool_]


def build_ranker(
    model: ModelFile,
    allowed: npt.NDArray[np.bool_] | None,
    *,
    top_k: int,
    keep_seen: bool,
    max_per_provider: int | None,
    encoder: EncoderName = "onnxruntime",
    index_cache: str | Path | None = None,
    device: Device = "cpu",
    cards: CardOptions = DEFAULT_CARDS,
    shards: CatalogShards = WHOLE,
) -> Ranker:
    """Lay out what a job needs of a model.

    Args:
        model: the opened model file.
        allowed: (num_items + 1,) bool, items that may be recommended; None for all.
        top_k: length of the lists, 1 or more.
        keep_seen: may an item of the user's history be recommended?
        max_per_provider: at most so many items of one provider in a list, 1 or more; None for no limit.
        encoder: what computes the user embeddings.
        index_cache: folder in which the laid out items are kept from job to job; None lays them out anew.
        device: where users are encoded and searched for.
        cards: which GPUs, with device "cuda".
        shards: how the catalog is cut; the lists are the same.

    Raises:
        DataError: the cache, or the folder of the shards, cannot be written, or its entry is broken.
        ExecutionProviderError: a GPU, or what its search needs, is not there.
        ModelFileError: an item embedding has NaN or infinity, or the encoder has no kernels for this model.
    """
    catalog = model.catalog
    try:
        tables = lay_out_items(model, allowed, shards=shards, index_cache=index_cache)
    except ValueError as error:
        raise ModelFileError(f"model {model.path}: {error}") from error
    length = min(top_k, catalog.num_items)
    encode, card_search = None, None
    if device == "cuda":
        opened: EncodingCards = (
            open_cards(model, tables[0], cards, device=device)
            if len(tables) == 1
            else open_sharded_cards(model, tables, cards, device=device)
        )
        encode = opened.encode
        card_search = CardSearch(opened, top_k=length) if isinstance(opened, Cards | ShardedCards) else None
    return Ranker(
        model=model,
        encode=encode or open_encoder(model, encoder),
        tables=tables,
        popular=popular_items(catalog.popularity, catalog.item_provider, allowed=allowed),
        top_k=length,
        keep_seen=keep_seen,
        # As many items as there are is no limit, and a number that a kernel can count to.
        max_per_provider=None if max_per_provider is None else min(max_per_provider, catalog.num_items),
        card_search=card_search,
        on_cards=device == "cuda",
    )


def rank_users(
    ranker: Ranker,
    histories: Histories,
    *,
    candidates: Ragged | None,
    cold_users: Literal["popular", "empty"],
    times: StageTimes,
) -> Ranking:
    """Rank items for some users; a user's list does not depend on the others.

    Args:
        ranker: as build_ranker made it.
        histories: (n) known items of each user, the whole history.
        candidates: (n lists) the only item_index to choose from; None for all that are allowed.
        cold_users: what a user without a known item gets: the popular items, or an empty list.
        times: to which encode and retrieve are added.

    Returns:
        (n) a list for each user, in the order of the histories.

    Raises:
        ModelFileError: the graph fails, or gives another shape, NaN or infinity.
    """
    cold = histories.lengths == 0
    if len(cold) and not cold.any():  # of one user's time, selecting users and filling in lists is a noticeable part
        return Ranking(_rank_by_model(ranker, histories, candidates, times=times), cold)
    lists = empty_lists(len(cold), ranker.top_k)
    warm_candidates, cold_candidates = (_of_users(candidates, users) for users in (~cold, cold))
    if not cold.all():
        fill_lists(lists, ~cold, _rank_by_model(ranker, histories.without_empty(), warm_candidates, times=times))
    if cold_users == "popular" and cold.any():
        with times.stage("retrieve"):
            fill_lists(lists, cold, _rank_by_popularity(ranker, int(cold.sum()), cold_candidates))
    return Ranking(lists, cold)


def _rank_by_model(ranker: Ranker, histories: Histories, candidates: Ragged | None, *, times: StageTimes) -> BestLists:
    """Top-k of the full score: the model sees the newest items, the seen filter the whole history."""
    newest, terms = histories.newest(ranker.model.max_len), ranker.model.history_terms
    # A model that learned item weights alone has 0 for providers: without them, none of their items is rescored.
    weighed = newest
    if terms is None or not terms.provider.any():
        weighed = replace(newest, providers=np.zeros_like(newest.providers))
    seen = None if ranker.keep_seen else Ragged(histories.items, histories.offsets)
    if ranker.card_search is not None and candidates is None:
        return _rank_on_cards(ranker, ranker.card_search, newest, seen, weighed, times=times)
    with times.stage("encode"):
        user_embedding = ranker.encode(newest)
    with times.stage("retrieve"):
        if ranker.approximate is None or candidates is not None:
            return _retrieve(ranker, user_embedding, seen, weighed, candidates)
        near = propose(ranker.approximate, ranker.table, user_embedding, weighed=None if terms is None else weighed)
        lists = _retrieve(ranker, user_embedding, seen, weighed, near)
        # All that was proposed may be seen, or of one provider: a list is short only where nothing more is allowed.
        short = lists.counts < ranker.top_k
        if short.any():
            exact = _retrieve(ranker, user_embedding[short], _of_users(seen, short), weighed.of_users(short), None)
            fill_lists(lists, short, exact)
        return lists


def _rank_on_cards(
    ranker: Ranker,
    search: CardSearch,
    newest: Histories,
    seen: Ragged | None,
    weighed: Histories,
    *,
    times: StageTimes,
) -> BestLists:
    """Encode and search on GPUs; the CPU scores what they propose, by the rules of the job."""

    def from_proposals(
        users: npt.NDArray[np.bool_], user_embedding: npt.NDArray[np.float32], proposals: Proposals
    ) -> tuple[BestLists, npt.NDArray[np.bool_]]:
        some = weighed if users.all() else weighed.of_users(users)
        rules: dict[str, Any] = {
            "top_k": ranker.top_k,
            "seen": seen if users.all() else _of_users(seen, users),
            "history": History(some.items, some.providers, some.offsets),
            "terms": ranker.model.history_terms,
            "max_per_provider": ranker.max_per_provider,
        }
        if len(ranker.tables) == 1:
            return retrieve_proposed(ranker.table, user_embedding, proposals, **rules)
        lists = empty_lists(len(user_embedding), ranker.top_k)
        for table, items in zip(ranker.tables, ranker.ranges, strict=True):
            found, _ = retrieve_proposed(table, user_embedding, proposals_among(proposals, items), **rules)
            lists = _merged(ranker, lists, found)
        return lists, certain_lists(lists, proposals.outside)

    def by_cpu(users: npt.NDArray[np.bool_], user_embedding: npt.NDArray[np.float32]) -> BestLists:
        return _retrieve(ranker, user_embedding, _of_users(seen, users), weighed.of_users(users), None)

    num_seen = None if seen is None else np.diff(seen.offsets)
    providers, terms = None, ranker.model.history_terms
    if terms is not None and weighed.providers.any():
        with times.stage("retrieve"):
            history = History(weighed.items, weighed.providers, weighed.offsets)
            providers = weigh_providers(history, terms, num_providers=len(ranker.tables[0].provider_offsets) - 2)
    return search.rank(newest, num_seen, providers, from_proposals=from_proposals, by_cpu=by_cpu, times=times)


def _retrieve(
    ranker: Ranker,
    user_embedding: npt.NDArray[np.float32],
    seen: Ragged | None,
    weighed: Histories,
    candidates: Ragged | None,
) -> BestLists:
    """Call the kernels with the rules of the job, shard by shard; all arguments are of the same users."""
    rules: dict[str, Any] = {
        "top_k": ranker.top_k,
        "seen": seen,
        "history": History(weighed.items, weighed.providers, weighed.offsets),
        "terms": ranker.model.history_terms,
        "candidates": candidates,
        "max_per_provider": ranker.max_per_provider,
    }
    lists = retrieve(ranker.tables[0], user_embedding, **rules)
    for table in ranker.tables[1:]:
        lists = _merged(ranker, lists, retrieve(table, user_embedding, **rules, floors=list_floors(lists)))
    return lists


def _merged(ranker: Ranker, lists: BestLists, found: BestLists) -> BestLists:
    """Lists of several shards, with those of one more."""
    provider = ranker.model.catalog.item_provider
    return merge_lists(lists, found, provider, max_per_provider=ranker.max_per_provider)


def _rank_by_popularity(ranker: Ranker, num_users: int, candidates: Ragged | None) -> BestLists:
    """The popular items under the same filters; a user without a known item has seen none."""
    return popular(
        ranker.popular,
        top_k=ranker.top_k,
        num_users=num_users,
        seen=None,
        candidates=candidates,
        max_per_provider=ranker.max_per_provider,
    )


def _of_users(lists: Ragged | None, users: npt.NDArray[np.bool_]) -> Ragged | None:
    """Select the lists of the users that `users`, (n,) bool, says; None stays None."""
    if lists is None:
        return None
    positions, offsets = range_positions(lists.offsets[:-1][users], np.diff(lists.offsets)[users])
    return Ragged(lists.values[positions], offsets)
