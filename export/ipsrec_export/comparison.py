"""Measures how far an exported model is from the model that it was made from: vectors, lists, quality.

Each side ranks with its own item table and history terms: PyTorch's with the model's, ONNX Runtime's with the file's.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from ipsrec_kernels.history_items import History, HistoryTerms
from ipsrec_kernels.item_table import ItemTable, build_item_table
from ipsrec_kernels.pack import pack_histories
from ipsrec_kernels.topk import retrieve
from ipsrec_onnx.metrics import metrics_of_ranks
from ipsrec_train.batches import Histories
from ipsrec_train.model import Model

TOP_K = 100
VALIDATION_USERS = 2048
VALIDATION_BATCH = 256

# item_history, provider_history (batch, sequence) and lengths (batch,), int32 -> user_embedding (batch, dim) float32
Encode = Callable[[npt.NDArray[np.int32], npt.NDArray[np.int32], npt.NDArray[np.int32]], npt.NDArray[np.float32]]


@dataclass(frozen=True, eq=False)
class Exported:
    """What scoring has of a model.

    Attributes:
        encode: the graph in ONNX Runtime.
        item_embeddings: (num_items + 1, dim) float32, the file's output table.
        item_provider: (num_items + 1,) int32 of the file's catalog.
        history_terms: of the file; None for a model without.
    """

    encode: Encode
    item_embeddings: npt.NDArray[np.float32]
    item_provider: npt.NDArray[np.int32]
    history_terms: HistoryTerms | None


@dataclass(frozen=True)
class Validated:
    """What the validation users gave; fields as in GateReport."""

    users: int
    embedding_error: float
    overlap: float
    ndcg_pytorch: float
    ndcg_onnx: float
    ndcg_standard_error: float


@dataclass(frozen=True, eq=False)
class _Side:
    """What one side ranks with."""

    table: ItemTable
    terms: HistoryTerms | None

    def lists(self, users: npt.NDArray[np.float32], history: History | None = None) -> npt.NDArray[np.int32]:
        """(B, top_k) item_index, best first; without a history, of the plain inner products."""
        found = retrieve(
            self.table,
            users,
            top_k=min(TOP_K, len(self.table.item_provider) - 1),
            seen=None,
            history=history if self.terms is not None else None,
            terms=self.terms if history is not None else None,
            candidates=None,
            max_per_provider=None,
        )
        return found.item_index


class Comparison:
    """PyTorch on one side, ONNX Runtime on the other, the same retrieval behind both."""

    def __init__(self, model: Model, exported: Exported) -> None:
        self.model, self.encode = model, exported.encode
        table, item_provider = model.item_embeddings().detach().numpy(), model.item_provider.numpy().astype(np.int32)
        self.exported = _Side(
            build_item_table(exported.item_embeddings, exported.item_provider, allowed=None), exported.history_terms
        )
        # Equal tables are built once: for a large catalog they are most of the memory.
        same = same_bits(table, exported.item_embeddings) and same_bits(item_provider, exported.item_provider)
        self.trained = _Side(
            self.exported.table if same else build_item_table(table, item_provider, allowed=None), history_terms(model)
        )

    def cell(
        self, items: npt.NDArray[np.int32], providers: npt.NDArray[np.int32], lengths: npt.NDArray[np.int32]
    ) -> tuple[float, float]:
        """Embedding error and list overlap of one batch."""
        expected, found = self._both(items, providers, lengths)
        if not np.isfinite(found).all():  # no list can be made of them
            return float("inf"), 0.0
        return _error(expected, found), _overlap(self.trained.lists(expected), self.exported.lists(found))

    def validate(self, histories: Histories) -> Validated:
        """Errors, overlap and NDCG@10 on validation users."""
        max_len = self.model.settings.max_len
        users = np.flatnonzero(np.diff(histories.offsets) > 0)[:VALIDATION_USERS]
        if not len(users):
            return Validated(
                users=0, embedding_error=0.0, overlap=1.0, ndcg_pytorch=0.0, ndcg_onnx=0.0, ndcg_standard_error=0.0
            )
        items, lengths = pack_histories(
            histories.values, histories.offsets, users, bucket_len=max_len, batch_size=len(users)
        )
        providers = self.model.item_provider.numpy().astype(np.int32)[items]
        expected, found = self._both_in_batches(items, providers, lengths)
        real = np.arange(max_len)[None, :] < lengths[:, None]
        offsets = np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)])
        history = History(items=items[real], providers=providers[real], offsets=offsets)
        targets = histories.targets[users]
        before = self.trained.lists(expected, history)
        after = self.exported.lists(found, history) if np.isfinite(found).all() else np.zeros_like(before)
        ranks_before, ranks_after = _ranks(before, targets), _ranks(after, targets)
        return Validated(
            users=len(users),
            embedding_error=_error(expected, found),
            overlap=_overlap(before, after),
            ndcg_pytorch=metrics_of_ranks(ranks_before, [10])["ndcg@10"],
            ndcg_onnx=metrics_of_ranks(ranks_after, [10])["ndcg@10"],
            ndcg_standard_error=_standard_error(_gains(ranks_after) - _gains(ranks_before)),
        )

    def _both(
        self, items: npt.NDArray[np.int32], providers: npt.NDArray[np.int32], lengths: npt.NDArray[np.int32]
    ) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
        """(B, D) from PyTorch and from ONNX Runtime."""
        with torch.no_grad():
            expected = self.model(*(torch.from_numpy(array) for array in (items, providers, lengths))).numpy()
        return expected, self.encode(items, providers, lengths)

    def _both_in_batches(
        self, items: npt.NDArray[np.int32], providers: npt.NDArray[np.int32], lengths: npt.NDArray[np.int32]
    ) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
        """The same for many users, without the attention of all of them in memory at once."""
        parts = [
            self._both(items[first:stop], providers[first:stop], lengths[first:stop])
            for first, stop in ((first, first + VALIDATION_BATCH) for first in range(0, len(items), VALIDATION_BATCH))
        ]
        expected, found = zip(*parts, strict=True)
        return np.concatenate(expected), np.concatenate(found)


def history_terms(model: Model) -> HistoryTerms | None:
    """The learned weights as the kernels take them: (max_len,) float64 each, newest first."""
    if model.history_terms is None:
        return None
    return HistoryTerms(
        provider=model.history_terms.provider_weights().detach().double().numpy(),
        item=model.history_terms.item_weights().detach().double().numpy(),
    )


def same_bits(one: npt.NDArray[Any], other: npt.NDArray[Any]) -> bool:
    """Are two arrays of numbers equal to the last bit?"""
    return one.dtype == other.dtype and bool(
        np.array_equal(np.ascontiguousarray(one).view(np.uint8), np.ascontiguousarray(other).view(np.uint8))
    )


def _error(expected: npt.NDArray[np.float32], found: npt.NDArray[np.float32]) -> float:
    """Largest difference as a share of the user's largest element; infinite where ONNX Runtime gave no number."""
    if not np.isfinite(found).all():
        return float("inf")
    scale = np.maximum(np.abs(expected).max(1, keepdims=True), np.finfo(np.float32).tiny)
    return float((np.abs(expected - found) / scale).max())


def _overlap(before: npt.NDArray[np.int32], after: npt.NDArray[np.int32]) -> float:
    """Mean share of each list that the other has too."""
    shared = [len(np.intersect1d(a, b)) / len(a) for a, b in zip(before, after, strict=True)]
    return float(np.mean(shared))


def _ranks(lists: npt.NDArray[np.int32], targets: npt.NDArray[np.int32]) -> npt.NDArray[np.int64]:
    """(B,) rank of each target in its list, 0 where it is not."""
    hit = lists == targets[:, None]
    return np.where(hit.any(1), hit.argmax(1) + 1, 0)


def _gains(ranks: npt.NDArray[np.int64]) -> npt.NDArray[np.float64]:
    """(B,) NDCG@10 of each user alone."""
    return np.where((ranks >= 1) & (ranks <= 10), 1 / np.log2(np.maximum(ranks, 1) + 1), 0.0)


def _standard_error(values: npt.NDArray[np.float64]) -> float:
    """Of the mean of some numbers; 0 for one, of which nobody can say."""
    return float(values.std(ddof=1) / np.sqrt(len(values))) if len(values) > 1 else 0.0
