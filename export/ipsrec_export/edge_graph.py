"""The edge graph: raw item ids in, raw item ids out, for any ONNX Runtime and no code beside it.

What scoring does around the encoder is written in operators of the ONNX standard: ids are looked up, unknown ones
dropped, the last max_len kept, the whole catalog scored with the history terms, what was seen left out. A scan in
float32 chooses somewhat more items than are asked for, and those are scored again in float64, as `ipsrec score` does.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx
import pyarrow as pa
from onnx import TensorProto, helper

from ipsrec_export.edge_history import ENCODER, EdgeHistory, EdgeTerms, add_item_provider
from ipsrec_export.edge_table import FloatTable, Int8Table
from ipsrec_export.graph import ITEM_EMBEDDINGS, OPSET, USER_EMBEDDING
from ipsrec_export.graph_nodes import GraphNodes
from ipsrec_kernels.history_items import HistoryTerms
from ipsrec_kernels.padding import PADDING
from ipsrec_kernels.popular import popular_items
from ipsrec_onnx.catalog import Catalog
from ipsrec_onnx.onnx_rewrite import INT8

# LabelEncoder has one type for its keys and another for its values since 2; ONNX Runtime has had 3 since 1.3.
OPSET_ML = 3
IR_VERSION = 9  # the newest that ONNX Runtime 1.17 reads, the oldest with opset 20


@dataclass(frozen=True)
class EdgeRules:
    """What an edge graph does with every user.

    Attributes:
        top_k: length of a list.
        keep_seen: recommend items of the history, too.
        provider_switch: one more input, use_providers, bool (1,): False takes all providers for unknown.
    """

    top_k: int = 100
    keep_seen: bool = False
    provider_switch: bool = False


def build_edge_graph(
    encoder: onnx.ModelProto,
    catalog: Catalog,
    history_terms: HistoryTerms | None,
    *,
    max_len: int,
    rules: EdgeRules,
    largest_element: float | None = None,
) -> onnx.ModelProto:
    """Put lookup, retrieval and the way back to ids around an encoder.

    Args:
        encoder: as build_graph gives it, its weights stored in any way; is used up.
        catalog: of the model.
        history_terms: of the model; None for one without.
        max_len: most recent known items that the encoder sees.
        rules: for every user.
        largest_element: of users' embeddings, positive; needed for an item table in int8, whose scan takes larger
            ones for this one. It is a constant of the graph: neighbours do not change a user's list.

    Returns:
        With B users, histories of L items at most, and K = min(top_k, num_items):

        Inputs item_history (B, L) int64 or string, oldest first, right padded with anything; lengths (B,) int64, how
        many of them are the user's. L and lengths may be 0.

        Outputs item_ids (B, K), of the history's type, best first; scores (B, K) float32; counts (B,) int64, how many
        of these are recommended: what is behind them means nothing; cold (B,) bool, True for a user without a known
        item, whose list is the popular items and whose scores are their training interactions.
    """
    top_k = min(rules.top_k, catalog.num_items)
    g = GraphNodes()
    add_item_provider(g, catalog.item_provider)
    history = EdgeHistory(g, catalog, max_len=max_len, provider_switch=rules.provider_switch)
    table = _take_encoder(g, encoder, largest_element)
    user = ENCODER + USER_EMBEDDING
    terms = None if history_terms is None else EdgeTerms(g, history_terms, history)
    # The scan.
    logits = table.scan(user)  # (B, num_items + 1)
    if terms is not None:
        logits = terms.add_to_all(logits, num_providers=catalog.num_providers)
    # PADDING, and where unknown ids were mapped to, is never recommended; nothing else is where seen items are kept.
    left_out = history.no_item if rules.keep_seen else history.all_items
    lowest = g.add("Expand", g.constant(-np.inf, np.float32), g.add("Shape", left_out))
    scan = g.add("ScatterElements", logits, left_out, lowest, axis=1)
    fetch = min(top_k + table.margin, catalog.num_items + 1)
    _, fetched = g.top(scan, g.constant([fetch]))
    _, order = g.top(fetched, g.constant([fetch]), largest=False)
    fetched = g.add("GatherElements", fetched, order, axis=1)  # by item_index: so that ties go to the smaller one
    # Again, in float64.
    rows = g.add("Cast", table.rows(fetched), to=TensorProto.DOUBLE)  # (B, fetch, D)
    column = g.add("Unsqueeze", g.add("Cast", user, to=TensorProto.DOUBLE), g.constant([2]))
    exact = g.add("Squeeze", g.add("MatMul", rows, column), g.constant([2]))
    if terms is not None:
        exact = terms.add_to_some(exact, fetched)
    out = g.add("Equal", g.add("GatherElements", scan, fetched, axis=1), g.constant(-np.inf, np.float32))
    # Sorted as float32, which is what a score is: those that it makes equal go by item_index.
    exact = g.add("Where", out, g.constant(-np.inf, np.float32), g.add("Cast", exact, to=TensorProto.FLOAT))
    best, place = g.top(exact, g.constant([top_k]))
    chosen = g.add("GatherElements", fetched, place, axis=1)
    real = g.add("Greater", best, g.constant(-np.inf, np.float32))
    chosen = g.add("Where", real, chosen, g.constant(PADDING))
    counts = g.add("ReduceSum", g.add("Cast", real, to=TensorProto.INT64), g.constant([1]), keepdims=0)
    # Cold users.
    popular = popular_items(catalog.popularity, catalog.item_provider, allowed=None)
    items = popular.order[:top_k]
    is_cold = g.add("Unsqueeze", history.cold, g.constant([1]))
    chosen = g.add("Where", is_cold, g.constant(items[None]), chosen)
    g.add("Where", is_cold, g.constant(popular.scores[items][None], np.float32), best, name="scores")
    g.add("Where", history.cold, g.constant(top_k), counts, name="counts")
    g.add("Identity", history.cold, name="cold")
    _add_item_ids(g, catalog, chosen)
    return _model(g, catalog, rules=rules, top_k=top_k)


def _add_item_ids(g: GraphNodes, catalog: Catalog, items: str) -> None:
    """Give the ids of items; of PADDING, 0 or an empty string."""
    if pa.types.is_int64(catalog.item_ids.type):
        g.add("Cast", g.add("Gather", "item_id", items), to=TensorProto.INT64, name="item_ids")
    else:
        g.add("Gather", "item_id", items, name="item_ids")


def _take_encoder(g: GraphNodes, encoder: onnx.ModelProto, largest_element: float | None) -> FloatTable | Int8Table:
    """Move the encoder's nodes and weights over, under names of their own.

    Returns:
        The item table among them.
    """
    graph = onnx.compose.add_prefix(encoder, ENCODER).graph
    g.nodes.extend(graph.node)
    g.initializers.extend(graph.initializer)
    if not any(tensor.name == ENCODER + ITEM_EMBEDDINGS + INT8 for tensor in graph.initializer):
        return FloatTable(g)
    if largest_element is None:
        raise ValueError("an item table in int8 needs the largest element of a user's embedding")
    return Int8Table(g, largest_element)


def _model(g: GraphNodes, catalog: Catalog, *, rules: EdgeRules, top_k: int) -> onnx.ModelProto:
    """Close the graph."""
    ids = TensorProto.INT64 if pa.types.is_int64(catalog.item_ids.type) else TensorProto.STRING
    value = helper.make_tensor_value_info
    inputs = [
        value("item_history", ids, ["users", "history"]),
        value("lengths", TensorProto.INT64, ["users"]),
    ]
    if rules.provider_switch:
        inputs.append(value("use_providers", TensorProto.BOOL, [1]))
    outputs = [
        value("item_ids", ids, ["users", top_k]),
        value("scores", TensorProto.FLOAT, ["users", top_k]),
        value("counts", TensorProto.INT64, ["users"]),
        value("cold", TensorProto.BOOL, ["users"]),
    ]
    graph = helper.make_graph(g.nodes, "edge", inputs, outputs, g.initializers)
    opsets = [helper.make_opsetid("", OPSET), helper.make_opsetid("ai.onnx.ml", OPSET_ML)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=IR_VERSION, producer_name="ipsrec-onnx")
