"""Tmall: the logs of the IJCAI-16 and the IJCAI-15 contest, told apart by the first line.

IJCAI-16 (`ijcai2016_taobao.csv`) is what RecBole calls tmall-buy and tmall-click
(RUCAIBox/RecSysDatasets:conversion_tools/src/extended_dataset.py, TMALLDataset), and what the paper names. IJCAI-15
(`user_log_format1.csv`) is another log of the same shop. Both give the day of an action and no time of day: actions of
one day keep the order of the file.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import polars as pl

from ipsrec_onnx.errors import DataError
from ipsrec_train.interactions import Interactions, stage_interactions
from ipsrec_train.text_lines import (
    WRONG_FIELDS,
    choose_file,
    first_line,
    integer,
    integer_id_checks,
    scan_fields,
    why_left_out,
)

Action = Literal["buy", "click", "all"]


@dataclass(frozen=True)
class _Log:
    """How one of the two logs is written.

    Attributes:
        columns: as published; a file without its header has them in this order.
        user, item, provider, action, day: what the columns are called.
        actions: what each code means.
        day_start: put before a day to make it YYYYMMDD.
    """

    columns: tuple[str, ...]
    user: str
    item: str
    provider: str
    action: str
    day: str
    actions: dict[int, str]
    day_start: str


_IJCAI16 = _Log(
    columns=("use_ID", "sel_ID", "ite_ID", "cat_ID", "act_ID", "time"),
    user="use_ID",
    item="ite_ID",
    provider="sel_ID",
    action="act_ID",
    day="time",
    actions={0: "click", 1: "buy"},
    day_start="",
)
_IJCAI15 = _Log(
    columns=("user_id", "item_id", "cat_id", "seller_id", "brand_id", "time_stamp", "action_type"),
    user="user_id",
    item="item_id",
    provider="seller_id",
    action="action_type",
    day="time_stamp",
    actions={0: "click", 1: "cart", 2: "buy", 3: "favourite"},
    day_start="2014",  # the file gives month and day; the contest's log is of that year
)


def read_tmall(source: Path, folder: Path, *, action: Action = "buy") -> Interactions:
    """Read a Tmall log: item = item, provider = seller, timestamp = day as the integer YYYYMMDD.

    Args:
        source: `ijcai2016_taobao.csv` or `user_log_format1.csv`, under any name, or the folder that holds one of them.
            A file of the first kind may lack its header: six integers in its first line.
        folder: for files that are needed until the end.
        action: which actions are interactions; `all` takes those added to the cart and favourites as well.

    Raises:
        DataError: neither of the two logs, or no line is an interaction.
    """
    path = choose_file(source, "ijcai2016_taobao*", "user_log_format1.csv*", "data_format1/user_log_format1.csv*")
    names = first_line(path).split(",")
    header = not all(name.removeprefix("-").isdecimal() for name in names)
    if not header and len(names) == len(_IJCAI16.columns):
        names = list(_IJCAI16.columns)
    logs = [
        log
        for log in (_IJCAI16, _IJCAI15)
        if all(names.count(name) == 1 for name in (log.user, log.item, log.provider, log.action, log.day))
    ]
    if not logs:
        raise DataError(
            f"{path}: the first line is {','.join(names)[:200]!r}, expected {','.join(_IJCAI16.columns)} (IJCAI-16) "
            f"or {','.join(_IJCAI15.columns)} (IJCAI-15); name the right file"
        )
    log = logs[0]
    wanted = [code for code, meaning in log.actions.items() if action in (meaning, "all")]
    # Some copies of the log without a year have lost the leading zero of May to September.
    day = pl.lit(log.day_start) + pl.col("day").str.zfill(4) if log.day_start else pl.col("day")
    number = day.cast(pl.Int64, strict=False)
    ids = {"user_id": log.user, "item_id": log.item, "provider_id": log.provider}
    take = {**ids, "action": log.action, "day": log.day}
    lines = scan_fields(path, names, take, separator=",", header=header).select(
        "row",
        *(integer(name) for name in ids),
        timestamp=number,
        left_out=why_left_out(
            (WRONG_FIELDS, ~pl.col("fields_fit")),
            *integer_id_checks(*ids),
            # The number as well: to_date takes blanks for zeros.
            (
                "bad date",
                (day.str.len_bytes() != 8) | number.is_null() | day.str.to_date("%Y%m%d", strict=False).is_null(),
            ),
            ("unknown action", ~integer("action").is_in(list(log.actions))),
            ("other action", ~integer("action").is_in(wanted)),
        ),
    )
    return stage_interactions(lines, path, folder)
