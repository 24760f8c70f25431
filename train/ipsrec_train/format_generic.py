"""The generic format: Parquet or CSV files of interactions, columns by name, every value checked once."""

from __future__ import annotations

from pathlib import Path

import polars as pl

from ipsrec_onnx.errors import DataError
from ipsrec_train.interaction_files import ID_NAMES, Columns, InteractionFiles, find_interactions, readable_errors
from ipsrec_train.interactions import Interactions
from ipsrec_train.plain_columns import plain_columns


def read_generic(source: Path, columns: Columns) -> Interactions:
    """Find the files of a source, bring their columns to plain types, and check every value. No row is left out.

    A Parquet file says its types. In CSV an id column is int64 if each value is a plain decimal number without leading
    zeros, otherwise string; a timestamp is an integer, a float, a date, or an ISO 8601 date and time, kept to the
    microsecond.

    A null provider_id is refused like any other null: a provider_history must have no nulls to be scored, and an item
    without a provider is better told apart by the person who knows the data (often: it is its own provider).

    Args:
        source: a Parquet or CSV file, or a folder of them (find_interactions).
        columns: what the columns are called in the files.

    Raises:
        DataError: no such files; a value cannot be read, is null, or is a timestamp that is not a number (NaN); or
            there are no rows.
    """
    found = find_interactions(source, columns)
    plain = (
        plain_columns(found.scan(), where=found.source, time_column=columns.timestamp)
        if found.kind == "csv"
        else _parquet_columns(found)
    )
    table = found.scan().select(*(expression.alias(name) for name, expression in plain.items()), "row")
    _check_values(table, found, plain)
    return Interactions(found.source, table)


def _parquet_columns(found: InteractionFiles) -> dict[str, pl.Expr]:
    """How each column of a Parquet file becomes a plain one."""
    plain = {name: pl.col(name).cast(pl.Int64 if found.types[name].is_integer() else pl.String) for name in ID_NAMES}
    time = pl.col("timestamp")
    return plain | {"timestamp": time.to_physical() if found.types["timestamp"].is_temporal() else time}


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
