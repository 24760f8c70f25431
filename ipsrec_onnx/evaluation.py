"""Ranks held-out items with a model file, by the scoring code itself, and says how well it did."""

from __future__ import annotations

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
from ipsrec_onnx.dataset import Dataset, open_dataset, read_histories, split_histories
from ipsrec_onnx.encoding import EncoderName, check_encoder
from ipsrec_onnx.errors import DataError
from ipsrec_onnx.histories import map_histories
from ipsrec_onnx.id_lists import IdLists, id_lists, list_id_type
from ipsrec_onnx.ids import find_ids, plain_ids
from ipsrec_onnx.metrics import metrics_of_ranks
from ipsrec_onnx.model_file import ModelFile, open_model_file
from ipsrec_onnx.pipeline import ended, map_in_order
from ipsrec_onnx.progress import JobLog
from ipsrec_onnx.retrieval import Ranker, build_ranker, rank_users
from ipsrec_onnx.session import Device, refuse_missing
from ipsrec_onnx.stage_times import StageTimes
from ipsrec_onnx.staging import staged

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
class HeldOutRanks:
    """Where each user's held-out item came in the list.

    Attributes:
        ranks: (U,) int64, 1 is best; 0 for one that is not in the list. In the order of split_histories.
        cold_users: users without an item that the model knows; they get the popular items.
        unknown_targets: held-out items that the model does not know; they count as not found.
    """

    ranks: npt.NDArray[np.int64]
    cold_users: int
    unknown_targets: int


@staged(inputs=["model", "dataset"])
def evaluate(
    model: str | Path,
    dataset: str | Path,
    *,
    split: Literal["test", "valid"] = "test",
    cutoffs: Sequence[int] = (5, 10),
    exclude_seen: bool = False,
    encoder: EncoderName = "onnxruntime",
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
        encoder: what computes the user embeddings; "fused" is on the CPU.
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
    check_encoder(encoder, device)
    refuse_missing(device)
    opened = open_dataset(dataset)
    held_out = rank_held_out(
        open_model_file(model),
        opened,
        split=split,
        depth=max(cutoffs),
        exclude_seen=exclude_seen,
        encoder=encoder,
        device=device,
        threads=threads,
        progress=progress,
    )
    ranks = held_out.ranks
    wall_s = time.perf_counter() - started
    return EvaluationReport(
        model=str(model),
        dataset=str(dataset),
        dataset_fingerprint=opened.fingerprint,
        split=split,
        exclude_seen=exclude_seen,
        users=len(ranks),
        cold_users=held_out.cold_users,
        unknown_targets=held_out.unknown_targets,
        metrics=metrics_of_ranks(ranks, cutoffs),
        wall_s=wall_s,
        users_per_s=len(ranks) / wall_s,
    )


def rank_held_out(
    model: ModelFile,
    dataset: Dataset,
    *,
    split: Literal["test", "valid"],
    depth: int,
    exclude_seen: bool,
    encoder: EncoderName = "onnxruntime",
    device: Device = "cpu",
    threads: int | None = None,
    progress: bool = False,
) -> HeldOutRanks:
    """Rank each user's held-out item among all items, user by user: what evaluate makes its metrics of.

    Args:
        model: as open_model_file gave it.
        dataset: as open_dataset gave it.
        split: "test" foretells each user's last interaction, "valid" the one before it.
        depth: length of the lists, 1 or more; a rank beyond it is 0.
        exclude_seen: leave the items of the history out of the ranking.
        encoder: what computes the user embeddings.
        device: where they are computed and items searched.
        threads: worker threads; all usable cores by default.
        progress: report progress on stderr.

    Raises:
        DataError: the dataset is broken, or its ids are of another kind than the model's.
        ModelFileError: the model's graph fails.
    """
    histories = read_histories(dataset)
    where = f"dataset {dataset.path}"
    _refuse_other_kinds(histories.schema, model.catalog, where=where)
    held_out = split_histories(histories, split)
    ranker = build_ranker(
        model,
        None,
        top_k=depth,
        keep_seen=not exclude_seen,
        max_per_provider=None,
        encoder=encoder,
        device=device,
    )
    chunks: list[HeldOutRanks] = []
    with JobLog(show=progress).progress(held_out.num_rows, what="users") as advance:
        rank = functools.partial(_rank_targets, ranker=ranker, where=where)
        slices = held_out.to_batches(max_chunksize=ranker.chunk_users(_CHUNK_ROWS * (8 if ranker.on_cards else 1)))
        ranked = map_in_order(rank, slices, threads=threads or usable_cores())
        with ended(ranked):
            for chunk in ranked:
                chunks.append(chunk)
                advance(len(chunk.ranks))
    return HeldOutRanks(
        ranks=np.concatenate([np.zeros(0, np.int64), *(chunk.ranks for chunk in chunks)]),
        cold_users=sum(chunk.cold_users for chunk in chunks),
        unknown_targets=sum(chunk.unknown_targets for chunk in chunks),
    )


def _refuse_other_kinds(schema: pa.Schema, catalog: Catalog, *, where: str) -> None:
    """A dataset with string ids cannot be looked up in a catalog with int64 ids."""
    for column, ids in (("item_history", catalog.item_ids), ("provider_history", catalog.provider_ids)):
        list_id_type(schema.field(column).type, kind=ids.type, where=f"{where}, column {column}")


def _rank_targets(rows: pa.RecordBatch, *, ranker: Ranker, where: str) -> HeldOutRanks:
    """Rank as `ipsrec score` does, and look for each user's held-out item in the list."""
    catalog = ranker.model.catalog
    items = _fitting_lists(rows["item_history"], kind=catalog.item_ids.type, where=f"{where}, column item_history")
    providers = _fitting_lists(
        rows["provider_history"], kind=catalog.provider_ids.type, where=f"{where}, column provider_history"
    )
    mapped = map_histories(items, providers, catalog)
    ranking = rank_users(ranker, mapped.known, candidates=None, cold_users="popular", times=StageTimes())
    target = find_ids(catalog.item_table, plain_ids(rows["target_item"], where=f"{where}, column target_item"))
    hits = (ranking.lists.item_index == target[:, None]) & (target != PADDING)[:, None]  # (n, top_k)
    ranks = np.where(hits.any(axis=1), hits.argmax(axis=1) + 1, 0)
    return HeldOutRanks(ranks, int(ranking.cold.sum()), int(np.count_nonzero(target == PADDING)))


def _fitting_lists(column: pa.Array, *, kind: pa.DataType, where: str) -> IdLists:
    """Bring a column of lists to IdLists; a dataset has no malformed rows to set aside."""
    lists = id_lists(column, kind=kind, where=where)
    if lists.too_large.any():
        raise DataError(f"{where}: found an id beyond int64, expected ids of the catalog's kind; cast the column")
    return lists
