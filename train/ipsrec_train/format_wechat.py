"""WeChat Big Data Challenge 2021: videos shown to users, and who made them.

Columns are taken by name (WeChat-Big-Data-Challenge-2021/WeChat_Big_Data_Challenge:comm.py reads the same two files).
The log gives the day and no time of day: rows of one day keep the order of the file.
"""

from __future__ import annotations

from pathlib import Path

import polars as pl

from ipsrec_onnx.errors import DataError
from ipsrec_train.interaction_files import readable_errors
from ipsrec_train.interactions import Interactions, LeftOut, stage_interactions
from ipsrec_train.item_providers import OnProviderConflict, one_provider_each
from ipsrec_train.text_lines import (
    WRONG_FIELDS,
    choose_file,
    first_line,
    integer,
    integer_id_checks,
    scan_fields,
    why_left_out,
)

_ACTIONS_FILE, _FEEDS_FILE = "user_action.csv", "feed_info.csv"
_TAKE = {"user_id": "userid", "feed": "feedid", "timestamp": "date_"}


def read_wechat(source: Path, folder: Path, *, on_conflict: OnProviderConflict) -> Interactions:
    """Read the two files: item = feedid, provider = authorid, timestamp = date_ (the day's number).

    Every row is an interaction, watched or not; one whose feed has no author is left out.

    Args:
        source: the folder that holds `user_action.csv` and `feed_info.csv`.
        folder: for files that are needed until the end.
        on_conflict: what to do with a feed that `feed_info.csv` gives several authors.

    Raises:
        DataError: a file or column is missing, a feed has several authors, or no line is an interaction.
    """
    if not source.is_dir():
        raise DataError(f"input {source} is no folder; name the folder that holds {_ACTIONS_FILE} and {_FEEDS_FILE}")
    actions, feeds = choose_file(source, _ACTIONS_FILE), choose_file(source, _FEEDS_FILE)
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
    names = first_line(path).split(",")
    missing = [name for name in needed if names.count(name) != 1]
    if missing:
        raise DataError(f"{path}: column {missing[0]} expected once, found {names}; is this the file of the challenge?")
    return names


def _authors(path: Path, on_conflict: OnProviderConflict) -> tuple[pl.LazyFrame, tuple[LeftOut, ...], int]:
    """item_id and provider_id of each feed; lines without a usable feedid; feeds with several authors."""
    _header(path, "feedid", "authorid")
    with readable_errors(path):
        # Unlike the log this file has columns of text, which a tool may have put in quotes when it wrote them again.
        feeds = pl.scan_csv(
            path,
            infer_schema=False,
            encoding="utf8-lossy",
            glob=False,
            truncate_ragged_lines=True,
            row_index_name="row",
            row_index_offset=2,
        ).select("row", item_id=integer("feedid"), provider_id=integer("authorid"), given=pl.col("authorid"))
        feeds = feeds.collect(engine="streaming").lazy()
        bad = pl.col("item_id").is_null() | (pl.col("given").is_not_null() & pl.col("provider_id").is_null())
        rows, first = feeds.filter(bad).select(pl.len(), pl.col("row").min()).collect().row(0)
        unusable = (LeftOut(f"unusable line of {path.name}", rows, f"{path.name}, line {first}"),) if rows else ()
        pairs = feeds.select("item_id", "provider_id", "row").drop_nulls()
        authors, conflicts = one_provider_each(pairs, on_conflict=on_conflict, where=path)
    return authors, unusable, conflicts
