"""Reads public raw files line by line: a damaged line costs one row, and every row keeps its line number."""

from __future__ import annotations

import contextlib
import gzip
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path

import polars as pl

from ipsrec_onnx.errors import DataError

WRONG_FIELDS = "wrong number of fields"
EMPTY_ID = "empty id"
NO_INTEGER = "id is not an integer"
NOT_UTF8 = "not UTF-8"
BAD_TIME = "bad time"

_LONGEST_FIRST_LINE = 1 << 14  # bytes; a longer one is no header, and would fill a screen as part of a message

# Splits nothing: a line is one value, and is split later, where a wrong number of fields is no error of the whole file.
_NO_SEPARATOR = "\x01"


def choose_file(source: Path, *names: str) -> Path:
    """The input itself if it is a file, else the one file in that folder that has one of the names.

    Args:
        source: file or folder.
        names: patterns of file names as Path.glob takes them.

    Raises:
        DataError: there is no such file, or several, or it is empty.
    """
    if not source.exists():
        raise DataError(f"input {source} is not there; name a file, or the folder that holds {' or '.join(names)}")
    if source.is_dir():
        found = sorted({path for name in names for path in source.glob(name) if path.is_file()})
        if len(found) != 1:
            what = f"{len(found)} such files ({', '.join(path.name for path in found)})" if found else "none"
            raise DataError(
                f"{source}: looked for {' or '.join(names)} in this folder, found {what}; name the folder that "
                "holds it, or the file"
            )
        source = found[0]
    if source.stat().st_size == 0:
        raise DataError(f"{source} is empty (0 bytes); expected lines of interactions")
    return source


@contextlib.contextmanager
def open_lines(path: Path) -> Iterator[Iterator[bytes]]:
    """The lines of a file, plain or gzip by its content, with their ends.

    Raises:
        DataError: the file cannot be read, or the gzip file is damaged.
    """
    try:
        with path.open("rb") as file:
            packed = file.read(2) == b"\x1f\x8b"
        with gzip.open(path) if packed else path.open("rb") as lines:
            yield iter(lines)
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{path} cannot be read ({error}); is it whole, and what its name says?") from error


def first_line(path: Path) -> str:
    """The first line of a file without its end and without a byte order mark.

    Raises:
        DataError: the file cannot be read, has no line, or one that is too long for a header.
    """
    with open_lines(path) as lines:
        for line in lines:
            if len(line) > _LONGEST_FIRST_LINE:
                raise DataError(
                    f"{path}: the first line has {len(line)} bytes, expected at most {_LONGEST_FIRST_LINE}; is this "
                    "text with line ends, unpacked or packed by gzip?"
                )
            return line.decode("utf-8", "replace").rstrip("\r\n").removeprefix("\ufeff")
    raise DataError(f"{path} has no line; expected lines of interactions")


def scan_lines(path: Path, *, skip: int = 0) -> pl.LazyFrame:
    """The lines of a file, plain or gzip, lazily.

    Args:
        path: the file.
        skip: how many lines at the start to leave out.

    Returns:
        line: String without its end, null if empty; bytes that are not UTF-8 become U+FFFD. row: its number, from 1.
    """
    return pl.scan_csv(
        path,
        has_header=False,
        separator=_NO_SEPARATOR,
        quote_char=None,
        schema={"line": pl.String},
        encoding="utf8-lossy",
        glob=False,
        skip_rows=skip,
        row_index_name="row",
        row_index_offset=skip + 1,
    )


def scan_fields(
    path: Path, names: Sequence[str], take: dict[str, str], *, separator: str, header: bool
) -> pl.LazyFrame:
    """Some fields of each line, as text. Quotes are characters like any other: none of the formats has quoted fields.

    Args:
        path: the file.
        names: of all fields, in the order of the file.
        take: our name -> the name in the file, of the fields that are wanted.
        separator: one character.
        header: the first line holds no values.

    Returns:
        a String column for each of our names, null where the line ends before it; row: the line, from 1; fields_fit:
        Boolean, the line has as many fields as there are names.
    """
    parts = [f"field_{place}" for place in range(len(names) + 1)]  # the last one is what no line should have
    split = pl.col("line").fill_null("").str.split_exact(separator, len(names)).struct.rename_fields(parts)
    fields = scan_lines(path, skip=int(header)).select("row", split.alias("fields")).unnest("fields")
    return fields.select(
        "row",
        *(pl.col(parts[names.index(name)]).alias(ours) for ours, name in take.items()),
        fields_fit=pl.col(parts[-2]).is_not_null() & pl.col(parts[-1]).is_null(),
    )


def integer(name: str) -> pl.Expr:
    """A column of text as Int64, null where it is not a plain integer."""
    return pl.col(name).cast(pl.Int64, strict=False)


def why_left_out(*checks: tuple[str, pl.Expr]) -> pl.Expr:
    """The first reason whose test is true, else null; a test that is null counts as true: nothing is kept unchecked."""
    reason: pl.Expr = pl.lit(None, pl.String)
    for why, test in reversed(checks):
        reason = pl.when(test.fill_null(True)).then(pl.lit(why)).otherwise(reason)
    return reason


def text_id_checks(*names: str) -> list[tuple[str, pl.Expr]]:
    """What is wrong with ids that are text."""
    return [
        (EMPTY_ID, pl.any_horizontal(pl.col(name) == "" for name in names)),
        (NOT_UTF8, pl.any_horizontal(pl.col(name).str.contains("\ufffd", literal=True) for name in names)),
    ]


def integer_id_checks(*names: str) -> list[tuple[str, pl.Expr]]:
    """What is wrong with ids that must be integers."""
    return [
        (EMPTY_ID, pl.any_horizontal(pl.col(name) == "" for name in names)),
        (NO_INTEGER, pl.any_horizontal(integer(name).is_null() for name in names)),
    ]
