"""The edge file: one .onnx that takes raw ids and gives raw ids; what it says of itself."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnxruntime

from ipsrec_onnx.errors import ModelFileError
from ipsrec_onnx.graph_check import check_graph
from ipsrec_onnx.model_file import FORMAT_VERSION, PREFIX
from ipsrec_onnx.onnx_proto import metadata_text
from ipsrec_onnx.readable import why_unreadable
from ipsrec_onnx.session import open_session

_PARTS = ("settings", "training", "gate", "edge")


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
    version = texts.get(PREFIX + "format_version", "")
    if not version.isdecimal() or int(version) > FORMAT_VERSION:
        raise ModelFileError(
            f"model {path}: format version {version[:20]!r}, this ipsrec-onnx reads up to {FORMAT_VERSION}; upgrade it"
        )
    try:
        parts = {name: _json(texts, name, dict) for name in _PARTS}
        candidates = _json(texts, "candidates", list) if PREFIX + "candidates" in texts else []
        opened = EdgeFile(
            path=file,
            format_version=int(version),
            model=texts[PREFIX + "model"],
            precision=texts.get(PREFIX + "precision", "fp32"),
            candidates=candidates,
            session=session,
            **parts,
        )
    except (KeyError, ValueError, RecursionError) as error:
        named = f"{error.args[0]} is missing" if isinstance(error, KeyError) else str(error)
        raise ModelFileError(f"model {path}: its metadata is broken: {named}; export it again") from error
    if opened.gate.get("passed") is not True:
        raise ModelFileError(f"model {path}: it did not pass the gate of `ipsrec export`; export it again")
    return opened


def _json(texts: dict[str, str], name: str, kind: type) -> Any:
    value = json.loads(texts[PREFIX + name])
    if not isinstance(value, kind):
        raise ValueError(f"{PREFIX}{name} is no JSON {'object' if kind is dict else 'array'}")
    return value
