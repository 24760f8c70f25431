"""Interactions as one lazy table of plain columns, every value checked once."""

from __future__ import annotations

import polars as pl

from ipsrec_onnx.errors import DataError
from ipsrec_train.interaction_files import ID_NAMES, InteractionFiles, readable_errors

# Tried in this order on the timestamps of a CSV file; the first that reads every value is taken.
DATE_FORMATS = (
    "%Y-%m-%d",
    "%Y-%m-%d %H:%M:%S%.f",
    "%Y-%m-%dT%H:%M:%S%.f",
    "%Y-%m-%d %H:%M:%S%.f%#z",
    "%Y-%m-%dT%H:%M:%S%.f%#z",
)


def scan_interactions(found: InteractionFiles) -> pl.LazyFrame:
    """Bring the columns to plain types and check every value.

    A Parquet file says its types. In CSV an id column is int64 if each value is a plain decimal number without leading
    zeros, otherwise string; a timestamp is an integer, a float, a date, or an ISO 8601 date and time, kept to the
    microsecond.

    A null provider_id is refused like any other null: a provider_history must have no nulls to be scored, and an item
    without a provider is better told apart by the person who knows the data (often: it is its own provider).

    Args:
        found: as find_interactions gave it.

    Returns:
        user_id, item_id, provider_id: Int64 or String; timestamp: a number that sorts by time; row: the place of the
        row in the input, counted over all files.

    Raises:
        DataError: a value cannot be read, is null, or is a timestamp that is not a number (NaN); or there are no rows.
    """
    plain = _csv_columns(found) if found.kind == "csv" else _parquet_columns(found)
    table = found.scan().select(*(expression.alias(name) for name, expression in plain.items()), "row")
    _check_values(table, found, plain)
    return table


def _parquet_columns(found: InteractionFiles) -> dict[str, pl.Expr]:
    """How each column of a Parquet file becomes a plain one."""
    plain = {name: pl.col(name).cast(pl.Int64 if found.types[name].is_integer() else pl.String) for name in ID_NAMES}
    time = pl.col("timestamp")
    return plain | {"timestamp": time.to_physical() if found.types["timestamp"].is_temporal() else time}


def _csv_columns(found: InteractionFiles) -> dict[str, pl.Expr]:
    """How each column of text becomes a plain one: the narrowest type that keeps every value of every file."""
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
    with readable_errors(found.source):
        kept = found.scan().select(fits).collect(engine="streaming").row(0, named=True)

    plain: dict[str, pl.Expr] = {name: pl.col(name) for name in ID_NAMES}
    for (name, how), reading in reversed(readings.items()):  # so that the first that fits is the one that stays
        if kept[f"{name} {how}"]:
            plain[name] = reading
    if "timestamp" not in plain:
        raise DataError(
            f"{found.source}: column {found.columns.timestamp} has values that are neither all numbers nor all "
            "ISO 8601 dates of one form (2017-01-31, or 2017-01-31 12:00:00); convert the column"
        )
    return plain


def _check_values(table: pl.LazyFrame, found: InteractionFiles, plain: dict[str, pl.Expr]) -> None:
    """One streaming pass over every value."""
    nulls = [pl.col(name).null_count().alias(name) for name in plain]
    with readable_errors(found.source):
        is_float = table.collect_schema()["timestamp"].is_float()
        nan = pl.col("timestamp").is_nan().sum() if is_float else pl.lit(0)
        row = table.select(pl.len().alias("rows"), *nulls, nan.alias("nan")).collect(engine="streaming")
    counts = row.row(0, named=True)
    if counts["rows"] == 0:
        raise DataError(f"{found.source}: no rows, expected one row per interaction; is this the right input?")
    for name in plain:
        if counts[name]:
            where = _first_row(found, pl.col(name).is_null(), name)
            mend = "remove these rows" if name != "provider_id" else "remove these rows, or give the items a provider"
            raise DataError(f"{where}: null, expected none ({counts[name]} null in all); {mend}")
    if counts["nan"]:
        where = _first_row(found, plain["timestamp"].is_nan(), "timestamp")
        raise DataError(f"{where}: not a number (NaN), expected a time ({counts['nan']} in all); remove these rows")


def _first_row(found: InteractionFiles, bad: pl.Expr, name: str) -> str:
    """File, column and row (from 0, in that file) of the first bad value."""
    for file in found.files:
        rows = found.scan(only=file).filter(bad).select(pl.col("row").min()).collect(engine="streaming")
        if rows["row"][0] is not None:
            return f"{file}, column {found.columns.names[name]}, row {rows['row'][0]}"
    return f"{found.source}, column {found.columns.names[name]}"
