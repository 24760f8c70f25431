"""Who offers each item, where the input says it in a second file."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import polars as pl

from ipsrec_onnx.errors import DataError

OnProviderConflict = Literal["error", "last"]


def one_provider_each(pairs: pl.LazyFrame, *, on_conflict: OnProviderConflict, where: Path) -> tuple[pl.LazyFrame, int]:
    """Make sure that an item has one provider, so that a join with it keeps the number of interactions.

    Args:
        pairs: item_id, provider_id, row; no nulls. An item may come again.
        on_conflict: refuse an item with several providers (`error`), or take the one that comes last (`last`).
        where: the file, for messages.

    Returns:
        table: item_id, provider_id, each item once; in memory.
        conflicts: items that had several.

    Raises:
        DataError: on_conflict is `error` and there is such an item.
    """
    items = (
        pairs.group_by("item_id")
        .agg(
            first=pl.col("provider_id").min(),
            other=pl.col("provider_id").max(),
            provider_id=pl.col("provider_id").sort_by("row").last(),
        )
        .collect(engine="streaming")
    )
    torn = items.filter(pl.col("first") != pl.col("other")).sort("item_id")
    if len(torn) and on_conflict == "error":
        item, first, other = torn.row(0)[:3]
        raise DataError(
            f"{where}: item {item} has two providers, {first} and {other} ({len(torn)} such items in all), expected "
            "one; correct the file, or take the one that comes last with --on-provider-conflict last"
        )
    return items.lazy().select("item_id", "provider_id"), len(torn)
