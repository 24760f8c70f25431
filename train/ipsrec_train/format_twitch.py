"""Twitch: who watched which broadcast (JRappaz/liverec:README.md and :data.py).

No header; user, stream, streamer, start, stop. `start` and `stop` count steps of ten minutes.
"""

from __future__ import annotations

from pathlib import Path

import polars as pl

from ipsrec_train.interactions import Interactions, stage_interactions
from ipsrec_train.text_lines import (
    BAD_TIME,
    WRONG_FIELDS,
    choose_file,
    integer,
    integer_id_checks,
    scan_fields,
    text_id_checks,
    why_left_out,
)

_COLUMNS = ("user", "stream", "streamer", "start", "stop")
_TAKE = {"user_id": "user", "item_id": "stream", "provider_id": "streamer", "timestamp": "start"}


def read_twitch(source: Path, folder: Path) -> Interactions:
    """Read a Twitch log: item = stream, provider = streamer, timestamp = start.

    The name of a streamer is text even where all of them look like numbers.

    Args:
        source: `100k.csv` or `full_a.csv.gz`, under any name, or the folder that holds one of them.
        folder: for files that are needed until the end.

    Raises:
        DataError: no line is an interaction.
    """
    path = choose_file(source, "100k*.csv", "100k*.csv.gz", "full*.csv", "full*.csv.gz")
    lines = scan_fields(path, _COLUMNS, _TAKE, separator=",", header=False).select(
        "row",
        integer("user_id"),
        integer("item_id"),
        "provider_id",
        integer("timestamp"),
        left_out=why_left_out(
            (WRONG_FIELDS, ~pl.col("fields_fit")),
            *integer_id_checks("user_id", "item_id"),
            *text_id_checks("provider_id"),
            (BAD_TIME, integer("timestamp").is_null()),
        ),
    )
    return stage_interactions(lines, path, folder)
