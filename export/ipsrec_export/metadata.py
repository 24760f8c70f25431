"""What a model file carries beside its graph, as metadata_props: settings, catalog, history terms, training, gate."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Any

import onnx
import pyarrow as pa

from ipsrec_export.edge_graph import EdgeRules
from ipsrec_export.precision import PrecisionReport
from ipsrec_onnx.catalog import Catalog, catalog_to_table, table_to_text
from ipsrec_onnx.metadata_texts import FORMAT_VERSION
from ipsrec_onnx.model_file import ModelFile, Precision

# What a draft says until the gate has seen it, so that none is ever scored with.
NOT_GATED: dict[str, Any] = {"passed": False}


def add_metadata(
    proto: onnx.ModelProto,
    *,
    model: str,
    settings: dict[str, Any],
    catalog: Catalog,
    history_terms: dict[str, list[float]] | None,
    training: dict[str, Any],
    gate: dict[str, Any],
    weights: dict[str, str] | None = None,
    precision: Precision = "fp32",
    tried: PrecisionReport | None = None,
) -> None:
    """Write everything that scoring needs into a graph's metadata_props, under the prefix `ipsrec.`.

    Args:
        proto: the graph; its metadata_props are replaced.
        model: name of the model, as `ipsrec train --model` has it.
        settings: the model's settings, JSON values only; holds max_len and dim.
        catalog: items and providers in the order of the embedding tables.
        history_terms: "provider" and "item", each max_len weights by age, newest first; None for a model without.
        training: where the weights come from: dataset fingerprint, seed, epochs, metrics, versions.
        gate: what the comparison of PyTorch with ONNX Runtime found; NOT_GATED before it.
        weights: names of the encoder's weights -> names of initializers, as weight_names gives them; None for none.
        precision: of these weights; only another one than float32 is written.
        tried: how they are stored, where that was chosen among candidates.
    """
    items, providers = catalog_to_table(catalog)
    onnx.helper.set_model_props(
        proto,
        {
            "ipsrec.format_version": str(FORMAT_VERSION),
            "ipsrec.model": model,
            "ipsrec.settings": json.dumps(settings),
            "ipsrec.catalog": table_to_text(items),
            "ipsrec.providers": table_to_text(providers),
            "ipsrec.history_terms": json.dumps(history_terms),
            "ipsrec.training": json.dumps(training),
            "ipsrec.gate": json.dumps(gate),
            "ipsrec.weights": json.dumps(weights or {}),
            **({} if precision == "fp32" else {"ipsrec.precision": precision}),
            **({} if tried is None else {"ipsrec.candidates": json.dumps(tried.as_metadata())}),
        },
    )


def add_edge_metadata(
    proto: onnx.ModelProto,
    model_file: ModelFile,
    *,
    rules: EdgeRules,
    tried: PrecisionReport,
    gate: dict[str, Any],
) -> None:
    """Write what an edge file says of itself; ids and providers are in its graph.

    Args:
        proto: the graph; its metadata_props are replaced.
        model_file: the model's file for `ipsrec score`.
        rules: of the graph.
        tried: how its weights are stored.
        gate: as for add_metadata.
    """
    catalog = model_file.catalog
    edge = {
        **asdict(rules),
        "top_k": min(rules.top_k, catalog.num_items),
        "num_items": catalog.num_items,
        "num_providers": catalog.num_providers,
        "item_id_type": "int64" if pa.types.is_int64(catalog.item_ids.type) else "string",
    }
    onnx.helper.set_model_props(
        proto,
        {
            "ipsrec.format_version": str(FORMAT_VERSION),
            "ipsrec.profile": "edge",
            "ipsrec.model": model_file.model,
            "ipsrec.settings": json.dumps(model_file.settings),
            "ipsrec.training": json.dumps(model_file.training),
            "ipsrec.precision": tried.chosen.precision,
            "ipsrec.edge": json.dumps(edge),
            "ipsrec.candidates": json.dumps(tried.as_metadata()),
            "ipsrec.gate": json.dumps(gate),
        },
    )


def set_gate(proto: onnx.ModelProto, gate: dict[str, Any]) -> None:
    """Put the verdict in the place of NOT_GATED; everything else stays as the gate saw it."""
    (entry,) = (entry for entry in proto.metadata_props if entry.key == "ipsrec.gate")
    entry.value = json.dumps(gate)


def metadata_bytes(proto: onnx.ModelProto) -> int:
    """How much of a file the metadata take: tens of bytes an item, for the catalog."""
    return sum(len(entry.value.encode()) for entry in proto.metadata_props)
