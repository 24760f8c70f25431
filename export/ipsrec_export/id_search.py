"""Looks int64 ids up with operators of the ONNX standard: a search in the table of ids that a graph has anyway.

LabelEncoder would be one node. It keeps every id once more and its place beside it, makes a hash table while the file
is opened, and takes several times the memory; a search takes 4 bytes for an item, and a fraction of a millisecond
(benchmarks/bench_edge_lookup.py). Operators know strings to be equal or not, never which comes first: no search there.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from onnx import TensorProto

from ipsrec_export.graph_nodes import GraphNodes
from ipsrec_kernels.padding import PADDING

_BRANCHES = 16  # fewer make more nodes, more make larger intermediates


def add_id_search(g: GraphNodes, wanted: str, ids: npt.NDArray[np.int64], *, table: str) -> str:
    """Look ids up.

    Args:
        g: the graph.
        wanted: name of (B, L) int64 ids.
        ids: (num_items,) of the items from 1 on, each once; in any order.
        table: name under which they are kept, (num_items + 1,) of any integer type, 0 for PADDING.

    Returns:
        Name of (B, L) int64, item_index of each id; PADDING for an unknown one.
    """
    g.narrow_table(table, np.concatenate([[0], ids]))
    order = g.table(f"{table}_order", (np.argsort(ids) + 1).astype(np.int32))
    last = g.constant(len(ids) - 1)
    wanted = g.add("Unsqueeze", wanted, g.constant([2]))  # (B, L, 1)

    def item_at(place: str) -> tuple[str, str]:
        """The item at a place of the order, and its id."""
        item = g.add("Gather", order, g.add("Min", place, last))
        return item, g.add("Cast", g.add("Gather", table, item), to=TensorProto.INT64)

    # How many ids are smaller than the one wanted: `smaller` or more, but less than `smaller + stride`.
    stride = _BRANCHES
    while stride <= len(ids):
        stride *= _BRANCHES
    smaller = g.constant([[[0]]])
    while stride > 1:
        stride //= _BRANCHES
        steps = g.constant(np.arange(1, _BRANCHES) * stride - 1)
        _, probed = item_at(g.add("Add", smaller, steps))  # (B, L, _BRANCHES - 1)
        passed = g.add("Cast", g.add("Less", probed, wanted), to=TensorProto.INT64)
        passed = g.add("ReduceSum", passed, g.constant([2]), keepdims=1)
        smaller = g.add("Add", smaller, g.add("Mul", passed, g.constant(stride)))
    item, found = item_at(smaller)
    item = g.add("Where", g.add("Equal", found, wanted), g.add("Cast", item, to=TensorProto.INT64), g.constant(PADDING))
    return g.add("Squeeze", item, g.constant([2]))
