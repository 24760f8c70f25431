"""Reads the texts of a model file's metadata_props, which may come from anybody; errors do not name the file."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

from ipsrec_onnx.errors import ModelFileError

FORMAT_VERSION = 1
PREFIX = "ipsrec."
# What a candidate of export's precisions says, and of which type.
_CANDIDATE: dict[str, type | tuple[type, ...]] = {
    "precision": str,
    "kept": str,
    "bytes": int,
    "latency_ms": (int, float),
    "overlap_at_10": (int, float),
    "overlap_at_100": (int, float),
    "ndcg_at_10": (int, float),
    "ndcg_change": (int, float),
    "ndcg_change_error": (int, float, type(None)),
    "passed": bool,
    "chosen": bool,
}


def read_format_version(texts: Mapping[str, str]) -> int:
    """Read the version before anything else: nothing more can be said of a newer file.

    Raises:
        ModelFileError: there is none, or it is newer than this version of the package.
    """
    text = texts.get(PREFIX + "format_version")
    if text is None:
        raise ModelFileError(
            f"an ONNX model without {PREFIX}* metadata, so it is none of ours; give the file that `ipsrec export` wrote"
        )
    if not re.fullmatch("[1-9][0-9]{0,8}", text):
        raise ModelFileError(f"format version {text[:20]!r}, expected a number, 1 or more; export it again")
    if int(text) > FORMAT_VERSION:
        raise ModelFileError(
            f"format version {text}, this ipsrec-onnx reads up to {FORMAT_VERSION}; upgrade ipsrec-onnx"
        )
    return int(text)


def read_json(texts: Mapping[str, str], name: str) -> Any:
    """Read a value.

    Raises:
        KeyError: there is none.
        ValueError: it is no JSON.
    """
    text = texts[PREFIX + name]
    try:
        value = json.loads(text)
        json.dumps(value, allow_nan=False)  # Python reads NaN and 1e400, which no JSON of ours could say again
    except ValueError as error:
        raise ValueError(f"{PREFIX}{name}: {error}") from error
    return value


def read_json_object(texts: Mapping[str, str], name: str) -> dict[str, Any]:
    """Read an object; errors as read_json."""
    value = read_json(texts, name)
    if not isinstance(value, dict):
        raise ValueError(f"{PREFIX}{name} is no JSON object")
    return value


def read_candidates(texts: Mapping[str, str]) -> list[dict[str, Any]]:
    """Read the precisions that were tried; none where the file does not say.

    Raises:
        ValueError: a row is not as export writes it.
    """
    rows = read_json(texts, "candidates") if PREFIX + "candidates" in texts else []
    if not isinstance(rows, list) or not all(_is_like(row, _CANDIDATE) for row in rows):
        raise ValueError(f"{PREFIX}candidates is no JSON array of candidates")
    return rows


def read_typed_object(texts: Mapping[str, str], name: str, kinds: Mapping[str, type]) -> dict[str, Any]:
    """Read an object of exactly these keys and types; errors as read_json."""
    value = read_json_object(texts, name)
    if not _is_like(value, kinds):
        raise ValueError(f"{PREFIX}{name} has other keys or types than {', '.join(kinds)}")
    return value


def _is_like(value: Any, kinds: Mapping[str, type | tuple[type, ...]]) -> bool:
    return (
        isinstance(value, dict)
        and value.keys() == kinds.keys()
        and all(
            isinstance(value[name], kind) and (kind is bool or not isinstance(value[name], bool))
            for name, kind in kinds.items()
        )
    )
