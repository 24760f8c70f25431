"""WeChat Big Data Challenge 2021: videos shown to users, and who made them.

Columns are taken by name (WeChat-Big-Data-Challenge-2021/WeChat_Big_Data_Challenge:comm.py reads the same two files).
The log gives the day and no time of day: rows of one day keep the order of the file.
"""

from __future__ import annotations

import csv
from pathlib import Path

import polars as pl

from ipsrec_onnx.errors import DataError
from ipsrec_train.interactions import Interactions, LeftOut, stage_interactions, unusable_lines
from ipsrec_train.item_providers import OnProviderConflict, one_provider_each
from ipsrec_train.text_lines import (
    WRONG_FIELDS,
    choose_file,
    first_line,
    integer,
    integer_id_checks,
    open_lines,
    scan_fields,
    why_left_out,
)

_ACTIONS_FILE, _FEEDS_FILE = "user_action.csv", "feed_info.csv"
_TAKE = {"user_id": "userid", "feed": "feedid", "timestamp": "date_"}


def read_wechat(source: Path, folder: Path, *, on_conflict: OnProviderConflict) -> Interactions:
    """Read the two files: item = feedid, provider = authorid, timestamp = date_ (the day's number).

    Every row is an interaction, watched or not; one whose feed has no author is left out.

    Args:
        source: the folder that holds `user_action.csv` and `feed_info.csv`; both may be packed by gzip.
        folder: for files that are needed until the end.
        on_conflict: what to do with a feed that `feed_info.csv` gives several authors.

    Raises:
        DataError: a file or column is missing, a feed has several authors, or no line is an interaction.
    """
    if not source.is_dir():
        raise DataError(f"input {source} is no folder; name the folder that holds {_ACTIONS_FILE} and {_FEEDS_FILE}")
    actions, feeds = (choose_file(source, name, f"{name}.gz") for name in (_ACTIONS_FILE, _FEEDS_FILE))
    names = _header(actions, *_TAKE.values())
    authors, unusable, conflicts = _authors(feeds, on_conflict)
    lines = (
        scan_fields(actions, names, _TAKE, separator=",", header=True)
        .with_columns(item_id=integer("feed"))
        .join(authors, on="item_id", how="left")
        .select(
            "row",
            integer("user_id"),
            "item_id",
            "provider_id",
            integer("timestamp"),
            left_out=why_left_out(
                (WRONG_FIELDS, ~pl.col("fields_fit")),
                *integer_id_checks("user_id", "feed"),
                ("bad date", integer("timestamp").is_null()),
                ("no author", pl.col("provider_id").is_null()),
            ),
        )
    )
    return stage_interactions(lines, actions, folder, side=unusable, conflicts=conflicts)


def _header(path: Path, *needed: str) -> list[str]:
    """The column names of a file, made sure of those that are needed."""
    names = [name.strip('"') for name in first_line(path).split(",")]
    missing = [name for name in needed if names.count(name) != 1]
    if missing:
        raise DataError(f"{path}: column {missing[0]} expected once, found {names}; is this the file of the challenge?")
    return names


def _authors(path: Path, on_conflict: OnProviderConflict) -> tuple[pl.LazyFrame, tuple[LeftOut, ...], int]:
    """item_id and provider_id of each feed that has an author; lines that are no use; feeds with several authors."""
    lines = pl.LazyFrame(
        _feed_lines(path), schema={"row": pl.UInt32, "feed": pl.String, "author": pl.String}, orient="row"
    )
    feeds = lines.select("row", "author", item_id=integer("feed"), provider_id=integer("author"))
    bad = pl.col("item_id").is_null() | ((pl.col("author") != "") & pl.col("provider_id").is_null())
    rows, first = feeds.filter(bad).select(pl.len(), pl.col("row").min()).collect().row(0)
    pairs = feeds.select("item_id", "provider_id", "row").drop_nulls()
    authors, conflicts = one_provider_each(pairs, on_conflict=on_conflict, where=path)
    return authors, unusable_lines(path, rows, first), conflicts


def _feed_lines(path: Path) -> list[tuple[int, str, str]]:
    """Line, feedid and authorid of each record; both empty where the number of fields is wrong.

    Unlike the log this file has columns of text, in which quotes may hold commas and line breaks: the csv module knows
    in which line a record begins, and takes a quote inside a word as it is.
    """
    names = _header(path, "feedid", "authorid")
    feed, author = names.index("feedid"), names.index("authorid")
    found: list[tuple[int, str, str]] = []
    with open_lines(path) as lines:
        records = csv.reader(line.decode("utf-8", "replace") for line in lines)
        try:
            next(records)  # the header
            line = records.line_num + 1
            for record in records:
                fits = len(record) == len(names)
                found.append((line, record[feed], record[author]) if fits else (line, "", ""))
                line = records.line_num + 1
        except csv.Error as error:
            raise DataError(
                f"{path}, near line {records.line_num}: {error}; expected CSV whose quoted fields end; correct the line"
            ) from error
    return found
