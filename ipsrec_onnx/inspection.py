"""Says what is in a model file, as plain data."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa

from ipsrec_kernels.history_items import HistoryTerms
from ipsrec_onnx.edge_file import EdgeFile, is_edge_file, open_edge_file
from ipsrec_onnx.model_file import ModelFile, model_file_sha256, open_model_file
from ipsrec_onnx.onnx_proto import graph_opset
from ipsrec_onnx.snippets import edge_snippets, server_snippets
from ipsrec_onnx.staging import staged


@staged(inputs=["model"])
def inspect(model: str | Path) -> dict[str, Any]:
    """Describe a model file: JSON values only.

    Raises:
        ModelFileError: the file cannot be used; the message says why.
    """
    profile = "edge" if is_edge_file(model) else "server"
    described = _describe_edge(open_edge_file(model)) if profile == "edge" else _describe_server(open_model_file(model))
    return {
        "path": str(model),
        "profile": profile,
        "file_bytes": Path(model).stat().st_size,
        "sha256": model_file_sha256(model),
        "opset": graph_opset(model),
        **described,
        "snippets": _snippets(str(model), profile, described),
    }


def _snippets(path: str, profile: str, described: dict[str, Any]) -> dict[str, str]:
    """Programs to copy; a file for `ipsrec score` has one in Python."""
    if profile == "edge":
        return edge_snippets(path, described["inputs"])
    return server_snippets(path, described["item_id_type"])


def _describe_server(opened: ModelFile) -> dict[str, Any]:
    """What a file for `ipsrec score` says."""
    catalog, session = opened.catalog, opened.session
    return {
        "format_version": opened.format_version,
        "model": opened.model,
        "variant": opened.settings.get("variant"),
        "precision": opened.precision,
        "settings": opened.settings,
        "num_items": catalog.num_items,
        "num_providers": catalog.num_providers,
        "item_id_type": _id_type(catalog.item_ids),
        "provider_id_type": _id_type(catalog.provider_ids),
        "items_without_provider": int((catalog.item_provider[1:] == 0).sum()),
        "training_interactions": int(catalog.popularity.sum()),
        "inputs": [_node(node) for node in session.get_inputs()],
        "outputs": [_node(node, opened) for node in session.get_outputs()],
        "history_terms": _history_terms(opened.history_terms),
        "training": opened.training,
        "gate": opened.gate,
        "candidates": opened.candidates,
    }


def _describe_edge(opened: EdgeFile) -> dict[str, Any]:
    """What an edge file says; ids, providers and history terms are constants of its graph."""
    return {
        "format_version": opened.format_version,
        "model": opened.model,
        "variant": opened.settings.get("variant"),
        "precision": opened.precision,
        "settings": opened.settings,
        **opened.edge,
        "inputs": [_node(node) for node in opened.session.get_inputs()],
        "outputs": [_node(node) for node in opened.session.get_outputs()],
        "training": opened.training,
        "gate": opened.gate,
        "candidates": opened.candidates,
    }


def _node(node: Any, opened: ModelFile | None = None) -> dict[str, Any]:
    """Name, type and shape of a graph input or output; the item table's real shape is known."""
    shape = list(node.shape)
    if opened is not None and node.name == "item_embeddings":
        shape = list(opened.item_embeddings.shape)
    return {"name": node.name, "type": node.type, "shape": shape}


def _id_type(ids: pa.Array) -> str:
    """int64 or string: how wide the offsets of strings are is no matter of the user's."""
    return str(ids.type).removeprefix("large_")


def _history_terms(terms: HistoryTerms | None) -> dict[str, Any] | None:
    """The newest ages and the sum of each term: enough to see what they do."""
    if terms is None:
        return None
    return {
        name: {"ages": len(weights), "newest": [float(weight) for weight in weights[:5]], "sum": float(weights.sum())}
        for name, weights in (("provider", terms.provider), ("item", terms.item))
    }
