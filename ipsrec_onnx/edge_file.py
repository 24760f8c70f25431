"""The edge file: one .onnx that takes raw ids and gives raw ids; what it says of itself."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnxruntime

from ipsrec_onnx.errors import ModelFileError
from ipsrec_onnx.graph_check import check_graph
from ipsrec_onnx.metadata_texts import (
    PREFIX,
    read_candidates,
    read_format_version,
    read_json_object,
    read_typed_object,
)
from ipsrec_onnx.onnx_proto import metadata_text
from ipsrec_onnx.readable import why_unreadable
from ipsrec_onnx.session import open_session

_EDGE = {
    "top_k": int,
    "keep_seen": bool,
    "provider_switch": bool,
    "num_items": int,
    "num_providers": int,
    "item_id_type": str,
}


@dataclass(frozen=True, eq=False)
class EdgeFile:
    """An opened edge file.

    Attributes:
        path: where it lies.
        format_version: of the metadata.
        model: name of the model, as `ipsrec train --model` has it.
        settings: the model's settings.
        training: where the weights come from.
        gate: how its lists compare with those of `ipsrec score`.
        precision: of its weights.
        edge: top_k, keep_seen, provider_switch, num_items, num_providers, item_id_type.
        candidates: the precisions that were tried, a row each; none where one was asked for.
        session: from raw ids to raw ids, on the CPU.
    """

    path: Path
    format_version: int
    model: str
    settings: dict[str, Any]
    training: dict[str, Any]
    gate: dict[str, Any]
    precision: str
    edge: dict[str, Any]
    candidates: list[dict[str, Any]]
    session: onnxruntime.InferenceSession


def is_edge_file(path: str | Path) -> bool:
    """Does a file say that it is of profile edge? False for one that cannot be read."""
    return why_unreadable(Path(path)) is None and metadata_text(path, PREFIX + "profile") == "edge"


def open_edge_file(path: str | Path) -> EdgeFile:
    """Open an edge file and check it.

    Raises:
        ModelFileError: it is none, it is newer than this version, its gate was not passed, or its metadata is broken.
        ExecutionProviderError: onnxruntime is broken.
    """
    file = Path(path)
    reason = why_unreadable(file)
    if reason is not None:
        raise ModelFileError(f"model {path}: {reason}; give the .onnx file that `ipsrec export` wrote")
    check_graph(file)
    session = open_session(file, device="cpu")
    texts = session.get_modelmeta().custom_metadata_map
    if texts.get(PREFIX + "profile") != "edge":
        raise ModelFileError(f"model {path}: it is not of profile edge; export it with --profile edge")
    try:
        opened = _read(file, session, texts)
    except (KeyError, ValueError, RecursionError) as error:
        named = f"{error.args[0]} is missing" if isinstance(error, KeyError) else str(error)
        raise ModelFileError(f"model {path}: its metadata is broken: {named}; export it again") from error
    except ModelFileError as error:
        raise ModelFileError(f"model {path}: {error}") from error
    if opened.gate.get("passed") is not True:
        raise ModelFileError(f"model {path}: it did not pass the gate of `ipsrec export`; export it again")
    return opened


def _read(file: Path, session: onnxruntime.InferenceSession, texts: Mapping[str, str]) -> EdgeFile:
    return EdgeFile(
        path=file,
        format_version=read_format_version(texts),
        model=texts[PREFIX + "model"],
        precision=texts[PREFIX + "precision"],
        candidates=read_candidates(texts),
        edge=read_typed_object(texts, "edge", _EDGE),
        session=session,
        **{name: read_json_object(texts, name) for name in ("settings", "training", "gate")},
    )
