"""Slow, obvious twins of the readers of raw files: one line after the other, with the csv module and plain Python."""

from __future__ import annotations

import csv
import datetime
from collections import Counter

Row = tuple[object, object, object, int]  # user, item, provider, time


def is_integer(text: str) -> bool:
    try:
        return -(2**63) <= int(text) < 2**63 and text.strip() == text and "_" not in text
    except ValueError:
        return False


def is_day(text: str) -> bool:
    try:
        return len(text) == 8 and text.isdigit() and bool(datetime.datetime.strptime(text, "%Y%m%d"))
    except ValueError:
        return False


def fields(text: str) -> list[list[str]]:
    """The fields of each line; a quote is a character like any other."""
    return [next(csv.reader([line], quoting=csv.QUOTE_NONE), [""]) for line in text.split("\n")[:-1]]


def tmall(text: str, wanted: set[int]) -> tuple[list[Row], Counter[str]]:
    """IJCAI-16 with its header."""
    rows, left_out = [], Counter()
    for line in fields(text)[1:]:
        if len(line) != 6:
            left_out["wrong number of fields"] += 1
            continue
        user, seller, item, _, action, day = line
        if "" in (user, seller, item):
            left_out["empty id"] += 1
        elif not (is_integer(user) and is_integer(seller) and is_integer(item)):
            left_out["id is not an integer"] += 1
        elif not is_day(day):
            left_out["bad date"] += 1
        elif not is_integer(action) or int(action) not in (0, 1):
            left_out["unknown action"] += 1
        elif int(action) not in wanted:
            left_out["other action"] += 1
        else:
            rows.append((int(user), int(item), int(seller), int(day)))
    return rows, left_out


def twitch(text: str) -> tuple[list[Row], Counter[str]]:
    rows, left_out = [], Counter()
    for line in fields(text):
        if len(line) != 5:
            left_out["wrong number of fields"] += 1
            continue
        user, stream, streamer, start, _ = line
        if user == "" or stream == "":
            left_out["empty id"] += 1
        elif not (is_integer(user) and is_integer(stream)):
            left_out["id is not an integer"] += 1
        elif streamer == "":
            left_out["empty id"] += 1
        elif not is_integer(start):
            left_out["bad time"] += 1
        else:
            rows.append((int(user), int(stream), streamer, int(start)))
    return rows, left_out
