"""Finds the files that hold interactions, and makes sure that they agree on columns and types."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import polars as pl

from ipsrec_onnx.errors import DataError

ID_NAMES = ("user_id", "item_id", "provider_id")
SUFFIXES = {".parquet": "parquet", ".pq": "parquet", ".csv": "csv", ".csv.gz": "csv"}

# Never a name that people give: the place of a row in the input, before the columns get our names.
_ROW = "\0row"


@dataclass(frozen=True)
class Columns:
    """What the four columns are called in the files."""

    user: str = "user_id"
    item: str = "item_id"
    provider: str = "provider_id"
    timestamp: str = "timestamp"

    @property
    def names(self) -> dict[str, str]:
        """Our name -> the name in the files."""
        return {
            "user_id": self.user,
            "item_id": self.item,
            "provider_id": self.provider,
            "timestamp": self.timestamp,
        }


@dataclass(frozen=True)
class InteractionFiles:
    """Files of one kind that agree on the types of the four columns.

    Attributes:
        source: the file or folder they were found in.
        files: in the order in which their rows count.
        kind: what the files are.
        columns: what the columns are called.
        types: the type of each column under our names; String throughout for CSV.
    """

    source: Path
    files: tuple[Path, ...]
    kind: Literal["parquet", "csv"]
    columns: Columns
    types: dict[str, pl.DataType]

    def scan(self, only: Path | None = None) -> pl.LazyFrame:
        """The four columns under our names, as the files have them, and `row`: the place of the row, from 0.

        Args:
            only: scan this file alone; `row` then counts in it.
        """
        files = [only] if only is not None else list(self.files)
        ours = [pl.col(column).alias(name) for name, column in self.columns.names.items()]
        if self.kind == "csv":  # a scan each: one of several CSV files takes columns by their place
            tables = [pl.scan_csv(file, infer_schema=False, glob=False).select(ours) for file in files]
            return pl.concat(tables).with_row_index("row")
        table = pl.scan_parquet(files, glob=False, hive_partitioning=False, extra_columns="ignore", row_index_name=_ROW)
        return table.select(*ours, row=_ROW)


def find_interactions(source: str | Path, columns: Columns) -> InteractionFiles:
    """Find the files of a source and check their columns.

    Args:
        source: a Parquet or CSV file, or a folder of files of one of the two kinds, in sub-folders too, taken in the
            order of their names. Names that start with "." or "_" are left out: there Spark and others keep notes.
        columns: what the columns are called in the files.

    Raises:
        DataError: nothing is there, nothing of these kinds, both kinds in one folder, or an unreadable file; a column
            is missing, of a wrong type, or of different types in different files.
    """
    path = Path(source)
    names = columns.names
    if len(set(names.values())) < len(names):
        raise DataError(f"columns {list(names.values())}: one column is named for two uses; name four columns")
    files = _list_files(path)
    kind: Literal["parquet", "csv"] = "csv" if _kind(files[0]) == "csv" else "parquet"
    types: dict[str, pl.DataType] = {}
    for file in files:
        for name, found in _column_types(file, kind, columns).items():
            expected = types.setdefault(name, found)
            if found != expected:
                raise DataError(
                    f"{file}: column {names[name]} is {found}, but {expected} in {files[0]}; "
                    "write all files with the same types"
                )
    return InteractionFiles(path, tuple(files), kind, columns, types)


def _list_files(path: Path) -> list[Path]:
    """The files of a source, sorted by name."""
    if path.is_dir():
        inside = sorted(file.relative_to(path) for file in path.rglob("*") if file.is_file())
        shown = [file for file in inside if not any(part.startswith((".", "_")) for part in file.parts)]
        kinds = {_kind(file) for file in shown} - {None}
        if not kinds:
            raise DataError(f"{path}: no .parquet or .csv file in this folder; name the folder that holds them")
        if len(kinds) > 1:
            raise DataError(f"{path}: both Parquet and CSV files in one folder; keep one kind, or name one file")
        return [path / file for file in shown if _kind(file) is not None]
    if not path.exists():
        raise DataError(f"input {path} is not there; name a Parquet or CSV file, or a folder of them")
    if _kind(path) is None:
        raise DataError(f"input {path} ends in none of {', '.join(SUFFIXES)}; name a Parquet or CSV file")
    return [path]


def _kind(path: Path) -> str | None:
    name = path.name.lower()
    return next((kind for suffix, kind in SUFFIXES.items() if name.endswith(suffix)), None)


def _column_types(file: Path, kind: str, columns: Columns) -> dict[str, pl.DataType]:
    """The types of one file's four columns under our names."""
    if file.stat().st_size == 0:
        raise DataError(f"{file} is empty (0 bytes); expected a {kind} file of interactions")
    with readable_errors(file):
        schema = (
            pl.scan_csv(file, infer_schema=False, glob=False).collect_schema()
            if kind == "csv"
            else pl.scan_parquet(file, glob=False, hive_partitioning=False).collect_schema()
        )
    types = {}
    for name, column in columns.names.items():
        if column not in schema:
            flag = f"--{name.removesuffix('_id')}-column"
            raise DataError(f"{file}: column {column} is missing, found {list(schema)}; name the right one with {flag}")
        types[name] = schema[column]
        if kind == "parquet":
            _refuse_type(schema[column], name, where=f"{file}: column {column}")
    return types


def _refuse_type(found: pl.DataType, name: str, *, where: str) -> None:
    """Ids are integers or strings; timestamps anything that sorts by time without guessing."""
    if name in ID_NAMES:
        if not (found.is_integer() or isinstance(found, pl.String | pl.Categorical | pl.Enum)):
            raise DataError(f"{where} is {found}, expected an integer or string type for ids; cast the column")
    elif not (found.is_integer() or found.is_float() or found.is_temporal()):
        raise DataError(f"{where} is {found}, expected an integer, float or date type; convert the column")


@contextlib.contextmanager
def readable_errors(where: Path, *, copied: bool = False) -> Iterator[None]:
    """Turn what polars says about an unreadable file into one DataError line.

    Args:
        where: the file.
        copied: what is read is written at the same time: polars does not say which of the two failed.
    """
    try:
        yield
    except (pl.exceptions.PolarsError, OSError) as error:
        said = " ".join(str(error).split())[:300]
        if copied:
            what = (
                f"{where} cannot be read, or not be copied beside the output ({said}); is it whole, and is there room?"
            )
            raise DataError(what) from error
        raise DataError(f"{where} cannot be read ({said}); is it whole, and what its name says?") from error
