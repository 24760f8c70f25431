"""Reads files of one JSON object a line, where some lines may be none."""

from __future__ import annotations

import ast
import codecs
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ipsrec_train.text_lines import open_lines


def read_objects(path: Path) -> Iterator[tuple[int, dict[str, Any] | None]]:
    """Number (from 1) and object of each line of a file, plain or gzip; None for a line that holds no object.

    Old Amazon metadata has lines that are Python dictionaries and no JSON; they are read as literals, which runs no
    code.

    Raises:
        DataError: the file cannot be read.
    """
    with open_lines(path) as lines:
        for number, line in enumerate(lines, 1):
            yield number, _object(line)


def _object(line: bytes) -> dict[str, Any] | None:
    try:
        text = line.removeprefix(codecs.BOM_UTF8).decode("utf-8").strip()
        try:
            found = json.loads(text)
        except ValueError:
            found = ast.literal_eval(text)
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        return None
    return found if isinstance(found, dict) else None


def text_of(value: Any) -> str:
    """A value as an id: the text without blanks around it; empty for what is no text, or cannot be stored as UTF-8."""
    if not isinstance(value, str):
        return ""
    try:
        value.encode("utf-8")
    except UnicodeEncodeError:  # half of a pair of surrogates
        return ""
    return value.strip()
