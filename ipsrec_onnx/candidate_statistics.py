"""Looks once over finished candidates, in bounded memory: how scores are spread, and what is recommended how often."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from ipsrec_kernels.padding import PADDING
from ipsrec_onnx.candidates import STATUS_COLD
from ipsrec_onnx.catalog import Catalog
from ipsrec_onnx.errors import DataError
from ipsrec_onnx.ids import find_ids, plain_ids
from ipsrec_onnx.object_store import StorePath, open_whole
from ipsrec_onnx.score_histogram import Histogram

SCORE_BINS = 64


class CandidateStatistics:
    """What candidates hold together.

    Attributes:
        num_lists: users with a candidate.
        num_candidates: of all users.
        item_counts: (num_items + 1,) int64, in how many lists each item_index is.
        first_list: (num_items + 1,) int64, number of the first list with it, from 0; -1 for an item in none.
        scores: of the candidates of users who are not cold.
        best_scores: of the first candidate of each of their lists; bins as wide as those of scores.
    """

    def __init__(self, num_items: int) -> None:
        self.num_lists = self.num_candidates = 0
        self.item_counts = np.zeros(num_items + 1, np.int64)
        self.first_list = np.full(num_items + 1, -1, np.int64)
        self.scores, self.best_scores = Histogram(SCORE_BINS), Histogram(SCORE_BINS)

    def add(self, lists: _Lists) -> None:
        """Count the candidates of some more rows."""
        items, scores, best, cold = lists
        self.item_counts += np.bincount(items, minlength=len(self.item_counts))
        new = np.flatnonzero(self.first_list[items] < 0)[::-1]  # backwards: of equal items, the first one stays
        self.first_list[items[new]] = (np.cumsum(best) - 1)[new] + self.num_lists
        self.num_lists += int(np.count_nonzero(best))
        self.num_candidates += len(items)
        self.scores.add(scores[~cold])
        self.best_scores.add(scores[best & ~cold])


class _Lists(NamedTuple):
    """Candidates of some rows, end to end: item_index, score, is it the first of its list, is its user cold."""

    items: npt.NDArray[np.int32]
    scores: npt.NDArray[np.float32]
    best: npt.NDArray[np.bool_]
    cold: npt.NDArray[np.bool_]


def candidate_statistics(files: Sequence[Path | StorePath], catalog: Catalog, *, any_cold: bool) -> CandidateStatistics:
    """Read candidates, a row group at a time.

    Args:
        files: of either layout, in the order of their rows.
        catalog: of the model that they were made with.
        any_cold: may there be lists of cold users? The long layout does not say which they are: there, a candidate
            whose score is its item's popularity is taken for one.

    Raises:
        DataError: a file cannot be read, or has an item that the catalog does not know.
    """
    statistics = CandidateStatistics(catalog.num_items)
    for path in files:
        try:
            with open_whole(path) as parquet:
                for lists in _row_groups(parquet, catalog, path, any_cold=any_cold):
                    statistics.add(lists)
        except (pa.ArrowException, OSError) as error:
            raise DataError(f"candidates {path}: cannot be read ({error}); score again with --overwrite") from error
    if statistics.scores.exponent is not None:
        statistics.best_scores.coarsen(statistics.scores.exponent)
    return statistics


def _row_groups(
    parquet: pq.ParquetFile, catalog: Catalog, path: Path | StorePath, *, any_cold: bool
) -> Iterator[_Lists]:
    long = "rank" in parquet.schema_arrow.names
    for row_group in range(parquet.num_row_groups):
        columns = ["rank", "item_id", "score"] if long else ["status", "item_ids", "scores"]
        rows = parquet.read_row_group(row_group, columns=columns)
        ids, scores = (_flat(rows[name]) for name in columns[1:])
        items = find_ids(catalog.item_table, plain_ids(ids, where=f"candidates {path}, column {columns[1]}"))
        if not items.all():
            row = int(np.flatnonzero(items == PADDING)[0])
            raise DataError(
                f"candidates {path}, row group {row_group}: item id {ids[row].as_py()!r} is not in the model's "
                "catalog; the file was changed, score again with --overwrite"
            )
        values = scores.to_numpy(zero_copy_only=False)
        if long:
            best = rows["rank"].to_numpy() == 1
            cold = (values == catalog.popularity[items].astype(np.float32)) & any_cold
        else:
            lengths = rows["item_ids"].combine_chunks().value_lengths().to_numpy(zero_copy_only=False)
            best = np.zeros(len(items), np.bool_)
            best[(np.cumsum(lengths) - lengths)[lengths > 0]] = True
            is_cold = pc.equal(rows["status"], STATUS_COLD).to_numpy()
            cold = np.repeat(is_cold, lengths)
        yield _Lists(items, values, best, cold)


def _flat(column: pa.ChunkedArray) -> pa.Array:
    """The values of a column of numbers or strings, or of lists of these."""
    whole = column.combine_chunks()
    if isinstance(whole, pa.ChunkedArray):  # pyarrow keeps zero chunks chunked
        whole = pa.concat_arrays(whole.chunks) if whole.num_chunks else pa.array([], column.type)
    return whole.flatten() if pa.types.is_list(whole.type) else whole
