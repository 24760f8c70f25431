"""The first part of an edge graph: from raw ids to what the encoder takes, and what a history adds to scores."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from onnx import TensorProto

from ipsrec_export.graph import INPUTS
from ipsrec_export.graph_nodes import GraphNodes
from ipsrec_export.id_search import add_id_search
from ipsrec_kernels.history_items import HistoryTerms
from ipsrec_kernels.padding import PADDING
from ipsrec_onnx.catalog import Catalog

ENCODER = "encoder/"  # before the names of the encoder's inputs, nodes and weights


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


class EdgeHistory:
    """Nodes from raw ids to the encoder's inputs; item_provider must be there.

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


class EdgeTerms:
    """The history terms of every user, added to scores."""

    def __init__(self, g: GraphNodes, terms: HistoryTerms, history: EdgeHistory) -> None:
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


def _axis(g: GraphNodes, values: str, axis: int) -> str:
    """Length of an axis, () int64."""
    return g.add("Squeeze", g.add("Shape", values, start=axis, end=axis + 1))
