"""Builds tiny real model files: an ONNX graph with the contract's inputs, outputs and metadata.

The encoder is simple enough to be written again in NumPy, and exact to the last bit there: it adds the embeddings of
the newest item, of its provider and of the oldest item that the model sees. So max_len, order and providers all count.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pyarrow as pa
from onnx import TensorProto, helper, numpy_helper

from ipsrec_export.metadata import add_metadata
from ipsrec_onnx.catalog import Catalog


@dataclass(frozen=True)
class TinyModel:
    """What went into a model file, for a test to compute with."""

    path: Path
    catalog: Catalog
    item_embeddings: np.ndarray  # (num_items + 1, dim) float32
    provider_embeddings: np.ndarray  # (num_providers + 1, dim) float32
    history_terms: dict[str, list[float]] | None
    max_len: int


def write_model_file(
    path: Path,
    *,
    num_items: int = 40,
    num_providers: int = 7,
    max_len: int = 6,
    dim: int = 8,
    string_ids: bool = False,
    with_history_terms: bool = True,
    seed: int = 0,
    gate: dict[str, Any] | None = None,
    changed_properties: dict[str, str | None] | None = None,
) -> TinyModel:
    """Write a model file whose items have duplicates (so that scores tie) and some no provider.

    Args:
        path: the file to write.
        gate: result of the gate; passed by default.
        changed_properties: metadata to set after the rest, or to take away (None).
    """
    rng = np.random.default_rng(seed)
    item_embeddings = rng.normal(size=(num_items + 1, dim)).astype(np.float32)
    item_embeddings[rng.integers(1, num_items + 1, num_items // 3)] = item_embeddings[1]
    item_embeddings[0] = 0
    provider_embeddings = rng.normal(size=(num_providers + 1, dim)).astype(np.float32)
    item_provider = np.sort(rng.integers(0, num_providers + 1, num_items + 1)).astype(np.int32)
    item_provider[0] = 0
    popularity = rng.integers(0, 9, num_items + 1).astype(np.int64)
    popularity[0] = 0
    item_ids = 1_000 + rng.permutation(10 * num_items)[:num_items]
    provider_ids = 50 + np.arange(num_providers)
    catalog = Catalog(
        item_ids=_ids(item_ids, "item", string_ids),
        provider_ids=_ids(provider_ids, "provider", string_ids),
        item_provider=item_provider,
        popularity=popularity,
    )
    terms = None
    if with_history_terms:
        terms = {name: rng.normal(size=max_len).round(3).tolist() for name in ("provider", "item")}
    proto = _graph(item_embeddings, provider_embeddings)
    add_metadata(
        proto,
        model="ipsrec-c",
        settings={"max_len": max_len, "dim": dim, "variant": "recommended"},
        catalog=catalog,
        history_terms=terms,
        training={"fingerprint": "0" * 64, "seed": seed, "valid": {"ndcg@10": 0.5}},
        gate={"passed": True} if gate is None else gate,
    )
    properties = {entry.key: entry.value for entry in proto.metadata_props} | (changed_properties or {})
    del proto.metadata_props[:]
    helper.set_model_props(proto, {key: value for key, value in properties.items() if value is not None})
    onnx.save(proto, path)
    return TinyModel(path, catalog, item_embeddings, provider_embeddings, terms, max_len)


def _ids(numbers: np.ndarray, word: str, string_ids: bool) -> pa.Array:
    if string_ids:
        return pa.array([f"{word} {number} é" for number in numbers], pa.large_string())
    return pa.array(numbers.astype(np.int64))


def _graph(item_embeddings: np.ndarray, provider_embeddings: np.ndarray) -> onnx.ModelProto:
    dim = item_embeddings.shape[1]
    axes = ["batch", "sequence"]
    constants = {
        "item_embeddings": item_embeddings,
        "provider_embeddings": provider_embeddings,
        "one": np.array(1, np.int32),
        "zero": np.array(0, np.int32),
        "axis": np.array([1], np.int64),
    }
    nodes = [
        helper.make_node("Sub", ["lengths", "one"], ["length_less_one"]),
        helper.make_node("Max", ["length_less_one", "zero"], ["last"]),
        helper.make_node("Unsqueeze", ["last", "axis"], ["last_column"]),
        helper.make_node("GatherElements", ["item_history", "last_column"], ["newest_item"], axis=1),
        helper.make_node("GatherElements", ["provider_history", "last_column"], ["newest_provider"], axis=1),
        helper.make_node("Gather", ["item_history", "zero"], ["oldest_item"], axis=1),
        helper.make_node("Gather", ["item_embeddings", "newest_item"], ["newest_item_embedding"]),
        helper.make_node("Gather", ["provider_embeddings", "newest_provider"], ["newest_provider_embedding"]),
        helper.make_node("Gather", ["item_embeddings", "oldest_item"], ["oldest_item_embedding"]),
        helper.make_node("Add", ["newest_item_embedding", "newest_provider_embedding"], ["newest"]),
        helper.make_node("Squeeze", ["newest", "axis"], ["newest_embedding"]),
        helper.make_node("Add", ["newest_embedding", "oldest_item_embedding"], ["user_embedding"]),
    ]
    graph = helper.make_graph(
        nodes,
        "tiny",
        inputs=[
            helper.make_tensor_value_info("item_history", TensorProto.INT32, axes),
            helper.make_tensor_value_info("provider_history", TensorProto.INT32, axes),
            helper.make_tensor_value_info("lengths", TensorProto.INT32, axes[:1]),
        ],
        outputs=[
            helper.make_tensor_value_info("user_embedding", TensorProto.FLOAT, ["batch", dim]),
            helper.make_tensor_value_info("item_embeddings", TensorProto.FLOAT, list(item_embeddings.shape)),
        ],
        initializer=[numpy_helper.from_array(array, name) for name, array in constants.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
