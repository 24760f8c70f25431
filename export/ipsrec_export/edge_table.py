"""The item table of an edge graph: a scan of the whole catalog, and rows of some items, in float32 or int8."""

from __future__ import annotations

import numpy as np
from onnx import TensorProto

from ipsrec_export.edge_history import ENCODER
from ipsrec_export.graph import ITEM_EMBEDDINGS
from ipsrec_export.graph_nodes import GraphNodes
from ipsrec_export.weight_storage import SCALES
from ipsrec_onnx.onnx_rewrite import INT8

MARGIN = 32  # items beyond top_k that are scored again: rounding in float32 moves an item by a few places
# A scan in int8 sees a user in whole steps, each two digits of base 127: -63..63, so that products of two neighbours
# stay within the 16 bits that CPUs without VNNI add them up in.
BASE = 127
LARGEST_DIGIT = 63
LARGEST_STEPS = LARGEST_DIGIT * BASE + LARGEST_DIGIT
MARGIN_INT8 = 64


class FloatTable:
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


class Int8Table:
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
        """As FloatTable; of the user rounded to whole steps.

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
        """As FloatTable."""
        g = self.g
        values, scales = (
            g.add("Cast", g.add("Gather", part, items), to=TensorProto.FLOAT) for part in (self.values, self.scales)
        )
        return g.add("Mul", values, scales)
