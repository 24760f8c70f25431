"""The edge graph: raw item ids in, raw item ids out, for any ONNX Runtime and no code beside it.

What scoring does around the encoder is written in operators of the ONNX standard: ids are looked up, unknown ones
dropped, the last max_len kept, the whole catalog scored with the history terms, what was seen left out. A scan in
float32 chooses somewhat more items than are asked for, and those are scored again in float64, as `ipsrec score` does.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import onnx
import pyarrow as pa
from onnx import TensorProto, helper

from ipsrec_export.graph import INPUTS, ITEM_EMBEDDINGS, OPSET, USER_EMBEDDING
from ipsrec_export.graph_nodes import GraphNodes
from ipsrec_export.id_search import add_id_search
from ipsrec_export.weight_storage import SCALES
from ipsrec_kernels.history_items import HistoryTerms
from ipsrec_kernels.padding import PADDING
from ipsrec_kernels.popular import popular_items
from ipsrec_onnx.catalog import Catalog
from ipsrec_onnx.onnx_rewrite import INT8

# LabelEncoder has one type for its keys and another for its values since 2; ONNX Runtime has had 3 since 1.3.
OPSET_ML = 3
IR_VERSION = 9  # the newest that ONNX Runtime 1.17 reads, the oldest with opset 20
ENCODER = "encoder/"
MARGIN = 32  # items beyond top_k that are scored again: rounding in float32 moves an item by a few places
# A scan in int8 sees a user in whole steps, each two digits of base 127: -63..63, so that products of two neighbours
# stay within the 16 bits that CPUs without VNNI add them up in.
BASE = 127
LARGEST_DIGIT = 63
LARGEST_STEPS = LARGEST_DIGIT * BASE + LARGEST_DIGIT
MARGIN_INT8 = 64


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
    history = _History(g, catalog, max_len=max_len, provider_switch=rules.provider_switch)
    table = _take_encoder(g, encoder, largest_element)
    user = ENCODER + USER_EMBEDDING
    terms = None if history_terms is None else _Terms(g, history_terms, history)
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


class _History:
    """The first part of the graph: from raw ids to the encoder's inputs.

    Attributes:
        all_items: (B, 1 + L) int64, item_index of everything in the history; PADDING first, and for what is unknown.
        no_item: (B, 1) int64, PADDING.
        items: (B, W) int64, the last max_len known items, right padded; W is the longest of them, at least 1.
        providers: (B, W) int64, their providers.
        ages: (B, W) int64, 0 for the newest; -1 and less behind it.
        cold: (B,) bool.
    """

    def __init__(self, g: GraphNodes, catalog: Catalog, *, max_len: int, provider_switch: bool) -> None:
        found = _add_lookup(g, catalog)  # (B, L)
        places = g.add("Range", g.constant(0), _axis(g, found, 1), g.constant(1))
        real = g.add("Less", places, g.add("Unsqueeze", "lengths", g.constant([1])))
        found = g.add("Where", real, found, g.constant(PADDING))
        batch = g.add("Shape", found, start=0, end=1)
        self.no_item = g.add("Expand", g.constant([[PADDING]]), g.add("Concat", batch, g.constant([1]), axis=0))
        self.all_items = g.add("Concat", self.no_item, found, axis=1)
        # From the newest known item, which is 1: what lies within max_len moves to the left, without gaps.
        known = g.add("Greater", self.all_items, g.constant(PADDING))
        rank = g.add("CumSum", g.add("Cast", known, to=TensorProto.INT64), g.constant(1), reverse=1)
        kept = g.add("And", known, g.add("LessOrEqual", rank, g.constant(max_len)))
        num_known = g.add("ReduceMax", rank, g.constant([1]), keepdims=1)  # (B, 1)
        num_kept = g.add("Min", num_known, g.constant(max_len))
        width = g.add("Max", g.add("ReduceMax", num_kept, keepdims=0), g.constant(1))
        width = g.add("Reshape", width, g.constant([1]))
        # What is dropped goes to one more column, which is cut off.
        target = g.add("Where", kept, g.add("Sub", num_kept, rank), width)
        room = g.add("Concat", batch, g.add("Add", width, g.constant([1])), axis=0)
        packed = g.add("ScatterElements", g.add("Expand", g.constant(PADDING), room), target, self.all_items, axis=1)
        self.items = g.add("Slice", packed, g.constant([0]), width, g.constant([1]))
        self.providers = g.add("Cast", g.add("Gather", "item_provider", self.items), to=TensorProto.INT64)
        if provider_switch:
            self.providers = g.add("Where", "use_providers", self.providers, g.constant(0))
        newest = g.add("Sub", num_kept, g.constant(1))
        columns = g.add("Range", g.constant(0), g.add("Squeeze", width), g.constant(1))
        self.ages = g.add("Sub", newest, columns)
        num_kept = g.add("Squeeze", num_kept, g.constant([1]))
        self.cold = g.add("Equal", num_kept, g.constant(0))
        for name, value in zip(INPUTS, (self.items, self.providers, num_kept), strict=True):
            g.add("Cast", value, to=TensorProto.INT32, name=ENCODER + name)


class _Terms:
    """The history terms of every user, added to scores."""

    def __init__(self, g: GraphNodes, terms: HistoryTerms, history: _History) -> None:
        self.g, self.history = g, history
        real = g.add("GreaterOrEqual", history.ages, g.constant(0))
        ages = g.add("Max", history.ages, g.constant(0))
        of_provider = g.add("Greater", history.providers, g.constant(0))  # "no provider" is nobody's
        self.item, self.provider = (
            g.add("Where", counts, g.add("Gather", g.constant(weights, np.float64), ages), g.constant(0, np.float64))
            for weights, counts in ((terms.item, real), (terms.provider, g.add("And", real, of_provider)))
        )  # (B, W)

    def add_to_all(self, logits: str, *, num_providers: int) -> str:
        """Add to the float32 scores of the whole catalog."""
        g, history = self.g, self.history
        item, provider = (g.add("Cast", weights, to=TensorProto.FLOAT) for weights in (self.item, self.provider))
        room = g.add("Concat", g.add("Shape", provider, start=0, end=1), g.constant([num_providers + 1]), axis=0)
        none = g.add("Expand", g.constant(0, np.float32), room)
        of_provider = g.add("ScatterElements", none, history.providers, provider, axis=1, reduction="add")
        # Gather would copy each number with a call of its own, and take five times as long.
        providers = g.add("Cast", "item_provider", to=TensorProto.INT64)
        gains = g.add("ArrayFeatureExtractor", of_provider, providers, domain="ai.onnx.ml")
        logits = g.add("Add", logits, gains)
        return g.add("ScatterElements", logits, history.items, item, axis=1, reduction="add")

    def add_to_some(self, scores: str, items: str) -> str:
        """Add to the float64 scores of some items, (B, C) both."""
        g, history = self.g, self.history
        providers = g.add("Cast", g.add("Gather", "item_provider", items), to=TensorProto.INT64)
        for of_items, of_history, weights in (
            (providers, history.providers, self.provider),
            (items, history.items, self.item),
        ):
            same = g.add(
                "Equal",
                g.add("Unsqueeze", of_items, g.constant([2])),
                g.add("Unsqueeze", of_history, g.constant([1])),
            )  # (B, C, W)
            gains = g.add("Where", same, g.add("Unsqueeze", weights, g.constant([1])), g.constant(0, np.float64))
            scores = g.add("Add", scores, g.add("ReduceSum", gains, g.constant([2]), keepdims=0))
        return scores


class _Table:
    """The item table in float32."""

    margin = MARGIN

    def __init__(self, g: GraphNodes) -> None:
        self.g, self.name = g, ENCODER + ITEM_EMBEDDINGS

    def scan(self, user: str) -> str:
        """(B, num_items + 1) float32, scores of the whole catalog."""
        return self.g.add("Gemm", user, self.name, transB=1)

    def rows(self, items: str) -> str:
        """(..., D) float32, rows of some items."""
        return self.g.add("Gather", self.name, items)


class _Int8Table:
    """The item table in int8, with a scale a row; it is never expanded.

    Args:
        g: holds the values and the scales.
        largest_element: as build_edge_graph has it.
    """

    margin = MARGIN_INT8

    def __init__(self, g: GraphNodes, largest_element: float) -> None:
        name = ENCODER + ITEM_EMBEDDINGS
        self.g, self.values, self.scales = g, name + INT8, name + SCALES  # (num_items + 1, D), (num_items + 1, 1)
        self.step = largest_element / LARGEST_STEPS

    def scan(self, user: str) -> str:
        """As _Table; of the user rounded to whole steps.

        Both digits of a user are rows of one product, which reads the table once: the second is nearly free.
        """
        g, f32 = self.g, np.float32
        user = g.add("Unsqueeze", user, g.constant([1]))  # (B, 1, D)
        steps = g.add("Round", g.add("Mul", user, g.constant(1 / self.step, f32)))
        steps = g.add("Clip", steps, g.constant(-LARGEST_STEPS, f32), g.constant(LARGEST_STEPS, f32))
        high = g.add("Round", g.add("Mul", steps, g.constant(1 / BASE, f32)))
        low = g.add("Sub", steps, g.add("Mul", high, g.constant(BASE, f32)))
        digits = g.add("Concat", high, low, axis=1)  # (B, 2, D)
        # From 0 on: not all CPUs multiply two signed bytes.
        zero = LARGEST_DIGIT + 1
        digits = g.add("Cast", g.add("Add", digits, g.constant(zero, f32)), to=TensorProto.UINT8)
        columns = g.add("Transpose", self.values, perm=[1, 0])  # when the file is loaded
        sums = g.add("MatMulInteger", digits, columns, g.constant(zero, np.uint8))  # (B, 2, num_items + 1) int32
        # One product puts the digits together in a third of the time that a Split, a Mul and an Add take.
        sums = g.add("MatMul", g.constant([[BASE, 1]], f32), g.add("Cast", sums, to=TensorProto.FLOAT))
        sums = g.add("Squeeze", sums, g.constant([1]))
        scales = g.add("Cast", g.add("Squeeze", self.scales, g.constant([1])), to=TensorProto.FLOAT)
        scales = g.add("Mul", scales, g.constant(self.step, f32))  # when the file is loaded
        return g.add("Mul", sums, scales)

    def rows(self, items: str) -> str:
        """As _Table."""
        g = self.g
        values, scales = (
            g.add("Cast", g.add("Gather", part, items), to=TensorProto.FLOAT) for part in (self.values, self.scales)
        )
        return g.add("Mul", values, scales)


def _add_lookup(g: GraphNodes, catalog: Catalog) -> str:
    """(B, L) int64, item_index of each id; PADDING for an unknown one.

    Keeps the ids of items under "item_id", too, 0 or an empty string for PADDING.
    """
    if pa.types.is_int64(catalog.item_ids.type):
        return add_id_search(g, "item_history", catalog.item_ids.to_numpy(), table="item_id")
    texts = catalog.item_ids.to_pylist()
    g.table("item_id", np.array(["", *texts], object))
    return g.add(
        "LabelEncoder",
        "item_history",
        domain="ai.onnx.ml",
        keys_strings=texts,
        values_int64s=list(range(1, catalog.num_items + 1)),
        default_int64=PADDING,
    )


def _add_item_ids(g: GraphNodes, catalog: Catalog, items: str) -> None:
    """Give the ids of items; of PADDING, 0 or an empty string."""
    if pa.types.is_int64(catalog.item_ids.type):
        g.add("Cast", g.add("Gather", "item_id", items), to=TensorProto.INT64, name="item_ids")
    else:
        g.add("Gather", "item_id", items, name="item_ids")


def _take_encoder(g: GraphNodes, encoder: onnx.ModelProto, largest_element: float | None) -> _Table | _Int8Table:
    """Move the encoder's nodes and weights over, under names of their own.

    Returns:
        The item table among them.
    """
    graph = onnx.compose.add_prefix(encoder, ENCODER).graph
    g.nodes.extend(graph.node)
    g.initializers.extend(graph.initializer)
    if not any(tensor.name == ENCODER + ITEM_EMBEDDINGS + INT8 for tensor in graph.initializer):
        return _Table(g)
    if largest_element is None:
        raise ValueError("an item table in int8 needs the largest element of a user's embedding")
    return _Int8Table(g, largest_element)


def add_item_provider(g: GraphNodes, item_provider: npt.NDArray[np.int32]) -> None:
    """Give item_provider, (num_items + 1,) of whole numbers.

    Items are numbered by provider: the first of each one says it all. The rest is made when the file is loaded.
    """
    if (np.diff(item_provider) < 0).any():
        g.narrow_table("item_provider", item_provider)
        return
    firsts = np.searchsorted(item_provider, np.arange(1, item_provider[-1] + 1))
    none = g.add("Expand", g.constant(0, np.int32), g.constant([len(item_provider)]))
    ones = g.add("Expand", g.constant(1, np.int32), g.constant([len(firsts)]))
    steps = g.add("ScatterElements", none, g.constant(firsts), ones, axis=0, reduction="add")
    g.add("CumSum", steps, g.constant(0), name="item_provider")


def _axis(g: GraphNodes, values: str, axis: int) -> str:
    """Length of an axis, () int64."""
    return g.add("Squeeze", g.add("Shape", values, start=axis, end=axis + 1))


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
