"""What every input format is turned into: one lazy table of interactions, and a count of the rows that are none."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import polars as pl

from ipsrec_onnx.errors import DataError
from ipsrec_train.interaction_files import readable_errors

_STAGED_FILE = "rows.parquet"


@dataclass(frozen=True)
class LeftOut:
    """Rows that are left out for one reason.

    Attributes:
        reason: a few words; where it names a file, `rows` counts lines of that file and not interactions.
        rows: how many.
        first: file and line (from 1) of the first; None where no one line is to blame.
    """

    reason: str
    rows: int
    first: str | None


@dataclass(frozen=True)
class Interactions:
    """The interactions of an input.

    Attributes:
        source: where they come from, for messages.
        table: user_id, item_id, provider_id: Int64 or String; timestamp: a number that sorts by time; row: grows with
            the place in the input. No nulls.
        left_out: what the table lacks of the input.
        provider_conflicts: items that had several providers, settled already.
    """

    source: Path
    table: pl.LazyFrame
    left_out: tuple[LeftOut, ...] = ()
    provider_conflicts: int = 0


def unusable_lines(path: Path, rows: int, first: int | None) -> tuple[LeftOut, ...]:
    """What is said of a second file: how many of its lines are no use, and the number of the first."""
    return (LeftOut(f"unusable line of {path.name}", rows, f"{path.name}, line {first}"),) if rows else ()


def stage_interactions(
    lines: pl.LazyFrame, source: Path, folder: Path, *, side: tuple[LeftOut, ...] = (), conflicts: int = 0
) -> Interactions:
    """Read a raw file once, into a Parquet file that later passes read faster, and count what is no interaction.

    Args:
        lines: user_id, item_id, provider_id, timestamp; row: line of the file, from 1; left_out: String, why the line
            is no interaction, null for one that is.
        source: the file, for messages.
        folder: where the Parquet file goes.
        side: lines left out of a second file.
        conflicts: items that had several providers in a second file.

    Raises:
        DataError: the file cannot be read, there is no room for the copy, or no line of it is an interaction.
    """
    staged = folder / _STAGED_FILE
    columns = ("user_id", "item_id", "provider_id", "timestamp", "row", "left_out")
    with readable_errors(source, copied=True):
        # In the order of the file, so that ids of neighbours stay neighbours and compress.
        lines.select(columns).sink_parquet(staged, compression="lz4", row_group_size=1 << 20)
        reasons = (
            pl.scan_parquet(staged, glob=False)
            .group_by("left_out")
            .agg(pl.len().alias("rows"), pl.col("row").min().alias("first"))
            .collect(engine="streaming")
        )
    counts = {reason: (rows, first) for reason, rows, first in reasons.rows()}
    kept, _ = counts.pop(None, (0, 0))
    left_out = [LeftOut(why, n, f"{source.name}, line {first}") for why, (n, first) in sorted(counts.items())]
    left_out.extend(side)
    if not kept:
        found = "; ".join(f"{what.reason}: {what.rows} (first: {what.first})" for what in left_out)
        raise DataError(
            f"{source}: no line is an interaction ({found or 'no lines'}); is this the right file and format?"
        )
    table = pl.scan_parquet(staged, glob=False).filter(pl.col("left_out").is_null()).drop("left_out")
    return Interactions(source, table, tuple(left_out), conflicts)
