"""Merges repeated interactions of a user with an item, in bounded memory."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import polars as pl
import pyarrow.parquet as pq

from ipsrec_train.codes import BATCH_ROWS, CodedInteractions
from ipsrec_train.user_ranges import CHUNK_INTERACTIONS, user_ranges


def merge_repeats(
    coded: CodedInteractions, path: Path, *, chunk_interactions: int = CHUNK_INTERACTIONS
) -> CodedInteractions:
    """Keep one interaction of each user with each item: the latest by time, and of equal times the last in the input.

    RecBole's conversion of Tmall keeps the most recent one as well (RUCAIBox/RecSysDatasets:conversion_tools/usage/
    Tmall.md), but takes the last in the file for it, and tells repeats apart by seller and category too.

    Args:
        coded: the interactions.
        path: the file to write; the old one is deleted.
        chunk_interactions: how many interactions to hold at once, at least those of one user.
    """
    num_rows = 0
    writer: pq.ParquetWriter | None = None
    try:
        for first, last in user_ranges(coded, chunk_interactions=chunk_interactions):
            rows = coded.scan().filter((pl.col("user") >= first) & (pl.col("user") < last))
            table = (
                rows.sort("timestamp", "row")
                .unique(["user", "item"], keep="last", maintain_order=True)
                .collect(engine="streaming")
                .to_arrow()
            )
            writer = writer or pq.ParquetWriter(path, table.schema, compression="lz4")
            writer.write_table(table, row_group_size=BATCH_ROWS)
            num_rows += len(table)
    finally:
        if writer is not None:
            writer.close()
    coded.path.unlink()
    return dataclasses.replace(coded, path=path, num_rows=num_rows)
