"""Exports small attention models with weights as large as trained ones, and makes histories for them."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pyarrow as pa
import torch

from ipsrec_export.graph import build_graph, build_lean_graph
from ipsrec_export.metadata import add_metadata
from ipsrec_export.weight_names import weight_names
from ipsrec_onnx.catalog import Catalog
from ipsrec_onnx.histories import Histories
from ipsrec_onnx.model_file import Precision
from ipsrec_train.model import Model
from ipsrec_train.settings import settings_for


def drawn_model(
    name: str,
    *,
    variant: str | None = None,
    num_items: int = 300,
    num_providers: int = 20,
    seed: int = 0,
    **changes: Any,
) -> Model:
    """A model whose biases and LayerNorms are drawn, too, so that none of them can be forgotten."""
    torch.manual_seed(seed)
    item_provider = np.sort(np.arange(num_items + 1) % (num_providers + 1)).astype(np.int32)
    model = Model(
        name, settings_for(name, variant, changes), item_provider=item_provider, num_providers=num_providers
    ).eval()
    with torch.no_grad():
        for part, weight in model.encoder.named_parameters():
            if "norm" in part:
                weight.add_(torch.randn_like(weight) * 0.2)
            elif weight.ndim == 1:
                weight.normal_(std=0.1)
            else:
                weight.normal_(std=weight.shape[-1] ** -0.5)
        for table in (model.items, model.providers):
            table.weight.normal_(std=0.5)
    return model


def write_encoder_file(
    path: Path, model: Model, *, external_data: bool = False, weights: bool = True, precision: Precision = "fp32"
) -> Path:
    """Export a model without a run and without a gate; `weights` says whether the file tells which weight is which."""
    proto = build_graph(model) if precision == "fp32" else build_lean_graph(model)
    num_items, num_providers = len(model.items.weight) - 1, len(model.providers.weight) - 1
    add_metadata(
        proto,
        model=model.name,
        settings=dataclasses.asdict(model.settings),
        catalog=Catalog(
            item_ids=pa.array(np.arange(1, num_items + 1)),
            provider_ids=pa.array(np.arange(1, num_providers + 1)),
            item_provider=model.item_provider.numpy().astype(np.int32),
            popularity=np.zeros(num_items + 1, np.int64),
        ),
        history_terms=None,
        training={},
        gate={"passed": True},
        weights=weight_names(model.encoder, proto.graph) if precision == "fp32" else None,
        precision=precision,
    )
    if not weights:
        (entry,) = (entry for entry in proto.metadata_props if entry.key == "ipsrec.weights")
        proto.metadata_props.remove(entry)
    if external_data:
        onnx.save_model(proto, path, save_as_external_data=True, location=f"{path.name}.data")
    else:
        onnx.save_model(proto, path)
    return path


def random_histories(lengths: np.ndarray, model: Model, rng: np.random.Generator) -> Histories:
    """Histories of these lengths, of any items and providers; provider 0 among them."""
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    items = rng.integers(1, len(model.items.weight), offsets[-1]).astype(np.int32)
    providers = rng.integers(0, len(model.providers.weight), offsets[-1]).astype(np.int32)
    return Histories(items, providers, offsets)
