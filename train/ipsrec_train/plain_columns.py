"""The narrowest plain type for columns of text: decided by every value, so that the same data reads the same."""

from __future__ import annotations

from pathlib import Path

import polars as pl

from ipsrec_onnx.errors import DataError
from ipsrec_train.interaction_files import ID_NAMES, readable_errors

# Tried in this order on timestamps of text; the first that reads every value is taken.
DATE_FORMATS = (
    "%Y-%m-%d",
    "%Y-%m-%d %H:%M:%S%.f",
    "%Y-%m-%dT%H:%M:%S%.f",
    "%Y-%m-%d %H:%M:%S%.f%#z",
    "%Y-%m-%dT%H:%M:%S%.f%#z",
)


def plain_columns(table: pl.LazyFrame, *, where: Path, time_column: str) -> dict[str, pl.Expr]:
    """How each column of text becomes a plain one: the narrowest type that keeps every value.

    An id column is int64 if each value is a plain decimal number without leading zeros, otherwise string; a timestamp
    is an integer, a float, a date, or an ISO 8601 date and time, kept to the microsecond.

    Args:
        table: user_id, item_id, provider_id and timestamp, all String; nulls fit every type.
        where: the input, for messages.
        time_column: what timestamp is called in the input, for messages.

    Returns:
        an expression for each of the four names.

    Raises:
        DataError: the input cannot be read, or no type fits all timestamps.
    """
    readings: dict[tuple[str, str], pl.Expr] = {}
    for name in ID_NAMES:
        readings[name, "integer"] = pl.col(name).cast(pl.Int64, strict=False)
    time = pl.col("timestamp")
    readings["timestamp", "integer"] = time.cast(pl.Int64, strict=False)
    readings["timestamp", "float"] = time.cast(pl.Float64, strict=False)
    for pattern in DATE_FORMATS:
        readings["timestamp", pattern] = time.str.to_datetime(pattern, time_unit="us", strict=False).to_physical()

    fits: list[pl.Expr] = []
    for (name, how), reading in readings.items():
        same = reading.cast(pl.String) == pl.col(name) if how == "integer" else reading.is_not_null()
        fits.append((pl.col(name).is_null() | same.fill_null(False)).all().alias(f"{name} {how}"))
    with readable_errors(where):
        kept = table.select(fits).collect(engine="streaming").row(0, named=True)

    plain: dict[str, pl.Expr] = {name: pl.col(name) for name in ID_NAMES}
    for (name, how), reading in reversed(readings.items()):  # so that the first that fits is the one that stays
        if kept[f"{name} {how}"]:
            plain[name] = reading
    if "timestamp" not in plain:
        raise DataError(
            f"{where}: column {time_column} has values that are neither all numbers nor all "
            "ISO 8601 dates of one form (2017-01-31, or 2017-01-31 12:00:00); convert the column"
        )
    return plain
