"""Ranks held-out items with a model file, by the scoring code itself, and says how well it did."""

from __future__ import annotations

import contextlib
import functools
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from ipsrec_kernels.padding import PADDING
from ipsrec_onnx.catalog import Catalog
from ipsrec_onnx.cores import usable_cores
from ipsrec_onnx.dataset import open_dataset, read_histories, split_histories
from ipsrec_onnx.errors import DataError
from ipsrec_onnx.histories import map_histories
from ipsrec_onnx.id_lists import IdLists, id_lists, list_id_type
from ipsrec_onnx.ids import find_ids, plain_ids
from ipsrec_onnx.metrics import metrics_of_ranks
from ipsrec_onnx.model_file import open_model_file
from ipsrec_onnx.pipeline import map_in_order
from ipsrec_onnx.progress import show_progress
from ipsrec_onnx.retrieval import Ranker, build_ranker, rank_users
from ipsrec_onnx.session import Device

_CHUNK_ROWS = 1024  # users of a chunk at most


@dataclass(frozen=True)
class EvaluationReport:
    """How well a model file ranks what users took next.

    Attributes:
        model: the model file.
        dataset: the dataset folder.
        dataset_fingerprint: of its content.
        split: which interactions were held out.
        exclude_seen: were items of the history left out of the ranking?
        users: users with a held-out item, the denominator of every metric.
        cold_users: users without an item that the model knows; they get the popular items.
        unknown_targets: held-out items that the model does not know; they count as not found.
        metrics: "hr@N", "mrr@N" and "ndcg@N" for each cut-off N, full ranking.
        wall_s: seconds of it all.
        users_per_s: users ranked per second of them.
    """

    model: str
    dataset: str
    dataset_fingerprint: str
    split: str
    exclude_seen: bool
    users: int
    cold_users: int
    unknown_targets: int
    metrics: dict[str, float]
    wall_s: float
    users_per_s: float

    def to_json(self) -> dict[str, Any]:
        """Give everything as one JSON object."""
        return asdict(self)


@dataclass(frozen=True, eq=False)
class _RankedChunk:
    """Ranks of the targets, (n,) int64, 0 for one that was not ranked; and how many were beyond the model."""

    ranks: npt.NDArray[np.int64]
    cold_users: int
    unknown_targets: int


def evaluate(
    model: str | Path,
    dataset: str | Path,
    *,
    split: Literal["test", "valid"] = "test",
    cutoffs: Sequence[int] = (5, 10),
    exclude_seen: bool = False,
    device: Device = "cpu",
    threads: int | None = None,
    progress: bool = False,
) -> EvaluationReport:
    """Give HR, MRR and NDCG of a model file, each user's held-out item ranked among all items.

    Args:
        model: model file that `ipsrec export` wrote.
        dataset: folder that `ipsrec prepare` made.
        split: "test" foretells each user's last interaction, "valid" the one before it.
        cutoffs: the N of the metrics.
        exclude_seen: leave the items of the history out of the ranking, as `ipsrec score` does by default. A held-out
            item that the user had taken before then counts as not found.
        device: where the model runs.
        threads: worker threads; all usable cores by default.
        progress: report progress on stderr.

    Raises:
        DataError: the dataset is none, or its ids are of another kind than the model's.
        ModelFileError: the model file cannot be used.
        ExecutionProviderError: the device is not there.
        ValueError: no cut-off, or one below 1.
    """
    started = time.perf_counter()
    if not cutoffs or min(cutoffs) < 1:
        raise ValueError(f"cutoffs are {tuple(cutoffs)}, expected one or more, each 1 or more")
    opened = open_dataset(dataset)
    histories = read_histories(opened)
    model_file = open_model_file(model, device=device)
    _refuse_other_kinds(histories.schema, model_file.catalog, where=f"dataset {dataset}")
    held_out = split_histories(histories, split)
    ranker = build_ranker(model_file, None, top_k=max(cutoffs), keep_seen=not exclude_seen, max_per_provider=None)
    chunks: list[_RankedChunk] = []
    with show_progress(held_out.num_rows, what="users", show=progress) as advance:
        rank = functools.partial(_rank_targets, ranker=ranker, where=f"dataset {dataset}")
        slices = held_out.to_batches(max_chunksize=ranker.users_at_once(_CHUNK_ROWS))
        ranked = map_in_order(rank, slices, threads=threads or usable_cores())
        with contextlib.closing(ranked):
            for chunk in ranked:
                chunks.append(chunk)
                advance(len(chunk.ranks))
    ranks = np.concatenate([np.zeros(0, np.int64), *(chunk.ranks for chunk in chunks)])
    wall_s = time.perf_counter() - started
    return EvaluationReport(
        model=str(model),
        dataset=str(dataset),
        dataset_fingerprint=opened.fingerprint,
        split=split,
        exclude_seen=exclude_seen,
        users=len(ranks),
        cold_users=sum(chunk.cold_users for chunk in chunks),
        unknown_targets=sum(chunk.unknown_targets for chunk in chunks),
        metrics=metrics_of_ranks(ranks, cutoffs),
        wall_s=wall_s,
        users_per_s=len(ranks) / wall_s,
    )


def _refuse_other_kinds(schema: pa.Schema, catalog: Catalog, *, where: str) -> None:
    """A dataset with string ids cannot be looked up in a catalog with int64 ids."""
    for column, ids in (("item_history", catalog.item_ids), ("provider_history", catalog.provider_ids)):
        list_id_type(schema.field(column).type, kind=ids.type, where=f"{where}, column {column}")


def _rank_targets(rows: pa.RecordBatch, *, ranker: Ranker, where: str) -> _RankedChunk:
    """Rank as `ipsrec score` does, and look for each user's held-out item in the list."""
    catalog = ranker.model.catalog
    items = _fitting_lists(rows["item_history"], kind=catalog.item_ids.type, where=f"{where}, column item_history")
    providers = _fitting_lists(
        rows["provider_history"], kind=catalog.provider_ids.type, where=f"{where}, column provider_history"
    )
    mapped = map_histories(items, providers, catalog)
    ranking = rank_users(ranker, mapped.known, candidates=None, cold_users="popular")
    target = find_ids(catalog.item_table, plain_ids(rows["target_item"], where=f"{where}, column target_item"))
    hits = (ranking.lists.item_index == target[:, None]) & (target != PADDING)[:, None]  # (n, top_k)
    ranks = np.where(hits.any(axis=1), hits.argmax(axis=1) + 1, 0)
    return _RankedChunk(ranks, int(ranking.cold.sum()), int(np.count_nonzero(target == PADDING)))


def _fitting_lists(column: pa.Array, *, kind: pa.DataType, where: str) -> IdLists:
    """Bring a column of lists to IdLists; a dataset has no malformed rows to set aside."""
    lists = id_lists(column, kind=kind, where=where)
    if lists.too_large.any():
        raise DataError(f"{where}: found an id beyond int64, expected ids of the catalog's kind; cast the column")
    return lists
