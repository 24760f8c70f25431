"""Interactions with ids replaced by codes: small rows on disk that can be read many times in bounded memory."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

from ipsrec_onnx.errors import DataError
from ipsrec_onnx.ids import plain_ids
from ipsrec_train.interaction_files import readable_errors
from ipsrec_train.item_providers import OnProviderConflict

BATCH_ROWS = 1 << 20


@dataclass(frozen=True, eq=False)
class CodedInteractions:
    """All interactions of an input, unfiltered and in no order, in a Parquet file.

    Attributes:
        path: columns user, item, provider (uint32 codes), timestamp, and row (place in the input).
        user_ids: (num_users,) int64 or large_string, ascending; row r is user code r. Likewise the other two.
        item_ids: (num_items,).
        provider_ids: (num_providers,).
        num_rows: interactions.
    """

    path: Path
    user_ids: pa.Array
    item_ids: pa.Array
    provider_ids: pa.Array
    num_rows: int

    def scan(self) -> pl.LazyFrame:
        """All of it, lazily."""
        return pl.scan_parquet(self.path, glob=False)

    def user_item_batches(self) -> Iterator[tuple[npt.NDArray[np.uint32], npt.NDArray[np.uint32]]]:
        """Read the (n,) uint32 user and item codes in batches."""
        with pq.ParquetFile(self.path) as file:
            for batch in file.iter_batches(BATCH_ROWS, columns=["user", "item"], use_threads=False):
                yield batch["user"].to_numpy(), batch["item"].to_numpy()


def code_interactions(table: pl.LazyFrame, path: Path, *, where: Path) -> CodedInteractions:
    """Number the ids in ascending order, and write the interactions as codes.

    Ids are held in memory once each; interactions stream through.

    Args:
        table: as Interactions has it.
        path: the file to write.
        where: the input, for messages.

    Raises:
        DataError: the input cannot be read, or there is no room for the file.
    """
    ids: dict[str, pa.Array] = {}
    coded = table
    with readable_errors(where, copied=True):
        for name in ("user", "item", "provider"):
            key = f"{name}_id"
            known = table.select(pl.col(key).unique()).collect(engine="streaming").sort(key)
            ids[name] = plain_ids(known[key].to_arrow(), where=f"{where}, {key}")
            numbers = known.with_columns(pl.int_range(pl.len(), dtype=pl.UInt32).alias(name))
            coded = coded.join(numbers.lazy(), on=key, how="inner")
        columns = ("user", "item", "provider", "timestamp", "row")
        coded.select(columns).sink_parquet(path, compression="lz4", row_group_size=BATCH_ROWS, maintain_order=False)
    return CodedInteractions(path, ids["user"], ids["item"], ids["provider"], pq.read_metadata(path).num_rows)


def provider_of_items(
    coded: CodedInteractions, *, on_conflict: OnProviderConflict, where: Path
) -> tuple[npt.NDArray[np.uint32], int]:
    """Find the one provider of each item, over all interactions of the input, the later filtered ones too.

    Args:
        coded: the interactions.
        on_conflict: what to do with an item seen with several providers: refuse it (`error`), or take the provider of
            its latest interaction, by time and then by place in the input (`last`).
        where: the input, for messages.

    Returns:
        provider: (num_items,) uint32 provider code of each item code.
        conflicts: items that were seen with several providers.

    Raises:
        DataError: on_conflict is `error` and there is such an item.
    """
    seen = (
        coded.scan()
        .group_by("item")
        .agg(first=pl.col("provider").min(), other=pl.col("provider").max())
        .collect(engine="streaming")
        .sort("item")
    )
    provider = seen["first"].to_numpy().copy()
    torn = seen.filter(pl.col("first") != pl.col("other"))
    if not len(torn):
        return provider, 0
    if on_conflict == "error":
        item, first, other = torn.row(0)
        raise DataError(
            f"{where}: item {coded.item_ids[item]} has two providers, {coded.provider_ids[first]} and "
            f"{coded.provider_ids[other]} ({len(torn)} such items in all), expected one; correct the input, or take "
            "the latest with --on-provider-conflict last"
        )
    # Two aggregations and joins rather than one sort within groups: each keeps a number an item, not every interaction.
    last = coded.scan().join(torn.lazy().select("item"), on="item", how="semi")
    for column in ("timestamp", "row"):
        last = last.join(last.group_by("item").agg(pl.col(column).max()), on=["item", column], how="semi")
    settled = last.select("item", "provider").collect(engine="streaming")
    provider[settled["item"].to_numpy()] = settled["provider"].to_numpy()
    return provider, len(torn)
