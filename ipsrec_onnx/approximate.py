"""Approximate search: an inverted-file index of faiss proposes items, and the exact kernels score them.

Every score of a list is exact, every rule is kept; what may be missing is an item that was not proposed. Exact
search is the default, and the faster one on CPUs with int8 dot products up to millions of items (docs/retrieval.md).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from ipsrec_kernels.item_table import ItemTable
from ipsrec_kernels.ragged import Ragged
from ipsrec_onnx.histories import Histories
from ipsrec_onnx.id_lists import range_positions

_POINTS_PER_LIST = 64  # of the sample that k-means sees: twice what faiss asks for at least
_NO_BLAS = 1 << 30  # queries at once from which faiss would use a matrix product, whose bits depend on the batch


@dataclass(frozen=True, eq=False)
class ApproximateIndex:
    """Proposes items for user embeddings; shared by the worker threads.

    Attributes:
        lists: faiss.IndexIVFFlat over the items that may be recommended, by inner product.
        item_index: (M,) int32, the item of each row of the index.
        probes: lists that a search looks through.
        fetch: items that it proposes for each user.
    """

    lists: Any
    item_index: npt.NDArray[np.int32]
    probes: int
    fetch: int

    @property
    def num_lists(self) -> int:
        """Lists that the items are shared out to."""
        return int(self.lists.nlist)


def build_approximate_index(table: ItemTable) -> ApproximateIndex:
    """Cluster the items of a table; the same index for the same table. Looks through all lists until told otherwise.

    Raises:
        ModuleNotFoundError: faiss is not installed.
    """
    import faiss

    item_index = np.flatnonzero(table.allowed).astype(np.int32)
    vectors = np.ascontiguousarray(table.item_embeddings[item_index, : table.dim])
    # 4 sqrt(M) lists, the middle of what faiss recommends, as far as each can be trained.
    num_lists = max(1, min(int(4 * len(item_index) ** 0.5), len(item_index) // _POINTS_PER_LIST))
    faiss.omp_set_num_threads(1)  # sums that are shared out to threads could differ from one machine to the next
    lists = faiss.IndexIVFFlat(faiss.IndexFlatIP(table.dim), table.dim, num_lists, faiss.METRIC_INNER_PRODUCT)
    lists.cp.max_points_per_centroid = _POINTS_PER_LIST
    lists.train(vectors)
    lists.add(vectors)
    return ApproximateIndex(lists, item_index, probes=num_lists, fetch=1)


def propose(
    index: ApproximateIndex, table: ItemTable, user_embedding: npt.NDArray[np.float32], *, weighed: Histories | None
) -> Ragged:
    """Find items that may be among each user's best; a user's do not depend on the other users.

    Args:
        index: as build_approximate_index made it.
        table: that it was made of.
        user_embedding: (n, dim) float32.
        weighed: (n) histories whose entries add to the score: their items, and all items of their providers, are
            proposed whatever their inner product; provider 0 has none. None where the score is the inner product.

    Returns:
        (n lists) item_index, in no order, some perhaps twice.
    """
    import faiss

    faiss.omp_set_num_threads(1)  # of this thread: a worker's search stays in the worker
    faiss.cvar.distance_compute_blas_threshold = _NO_BLAS
    parameters = faiss.SearchParametersIVF()
    parameters.nprobe = index.probes
    _, rows = index.lists.search(np.ascontiguousarray(user_embedding), index.fetch, params=parameters)
    found = rows >= 0  # (n, fetch); fewer where the lists looked through hold fewer
    near = Ragged(index.item_index[rows[found]], _offsets(found.sum(axis=1)))
    if weighed is None:
        return near
    return _joined(near, Ragged(weighed.items, weighed.offsets), _items_of_providers(table, weighed))


def _items_of_providers(table: ItemTable, histories: Histories) -> Ragged:
    """All items of the providers of each history."""
    offsets = histories.offsets
    providers = histories.providers[offsets[0] : offsets[-1]]
    known = np.where(providers < len(table.provider_offsets) - 1, providers, 0)
    starts, stops = table.provider_offsets[known], table.provider_offsets[known + 1]
    positions, places = range_positions(starts, stops - starts)
    return Ragged(table.provider_items[positions], places[offsets - offsets[0]])


def _offsets(counts: npt.NDArray[np.integer[Any]]) -> npt.NDArray[np.int64]:
    return np.concatenate([np.zeros(1, np.int64), np.cumsum(counts, dtype=np.int64)])


def _joined(*parts: Ragged) -> Ragged:
    """Put the lists of each user behind one another."""
    counts = [np.diff(part.offsets) for part in parts]
    offsets = _offsets(np.sum(counts, axis=0))
    values = np.empty(offsets[-1], np.int32)
    starts = offsets[:-1].copy()
    for part, count in zip(parts, counts, strict=True):
        positions, _ = range_positions(starts, count)
        values[positions] = part.values[part.offsets[0] : part.offsets[-1]]
        starts += count
    return Ragged(values, offsets)
