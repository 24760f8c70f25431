"""Makes the graph that ipsrec_onnx/onnx_search.py runs.

    python -m ipsrec_export.search_graph ipsrec_onnx/search_graph.onnx

The file is committed, because a scoring machine has no onnx package; a test compares it with what this gives. All sizes
are inputs or come with the shapes of inputs, so that one file serves every model.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper, numpy_helper

# The oldest that has all of this; reductions take their axes as attributes up to here, as kernels on GPUs always could.
OPSET, IR_VERSION = 17, 8
GROUP = 16  # neighbouring places whose best logit stands for all of them
BLOCK = 15  # neighbouring groups, likewise; two small windows are pooled faster than one large one
SMALLEST, LARGEST = -126, 126  # exponents of the powers of two that users are scaled by: their inverses are normal, too


def build_search_graph() -> onnx.ModelProto:
    """Make the graph, the same bytes each time.

    With B users of a run, of U, and N places, a multiple of GROUP * BLOCK:

    Inputs:
        users: (U, dim) float32.
        first, stop: (1,) int64, the users of this run.
        pads: (4,) int64, zeros to append to rows and dims, as Pad takes them.
        row_shape: (3,) int64: 0, -1, dims; dims being dim with zeros appended.
        scan_items: (N, dims) float16, the scaled items.
        exact_items: (N / GROUP, GROUP, dims) float32, the same.
        item_at: (N / GROUP, GROUP) int32, the item of each place; 0 where a place has none of its own.
        block_errors: (1, N / GROUP / BLOCK) float32, by what part of the user's norm a logit may be too low.
        kept_blocks, kept_groups, kept_items: (1,) int64, how many of each to go on with.

    Outputs:
        items: (B, kept_items) int32, by their scores in float32, best first.
        facts: (B, 4) float32: the upper bound of the last kept group, the score of the last kept item, the norm of the
            scaled user, and the power of two that the user was scaled by.
    """
    node = helper.make_node
    nodes = [
        node("Slice", ["users", "first", "stop", "axis_0"], ["sliced"]),
        node("Pad", ["sliced", "pads"], ["padded"]),
        # The largest element comes to lie in (1, 2]: counting thresholds is exact, and NaN finds a scale, too.
        node("Abs", ["padded"], ["sizes"]),
        node("ReduceMax", ["sizes"], ["largest"], axes=[1], keepdims=1),
        node("Greater", ["largest", "thresholds"], ["is_above"]),
        node("Cast", ["is_above"], ["above"], to=TensorProto.FLOAT),
        node("ReduceSum", ["above", "axis_1"], ["count"], keepdims=1),
        node("Cast", ["count"], ["step"], to=TensorProto.INT64),
        node("Gather", ["scales", "step"], ["scale_3"], axis=0),  # (B, 1)
        node("Reshape", ["scale_3", "column"], ["scale"]),
        node("Mul", ["padded", "scale"], ["scaled"]),
        node("Mul", ["scaled", "scaled"], ["squares"]),
        node("ReduceSum", ["squares", "axis_1"], ["square"], keepdims=1),
        node("Sqrt", ["square"], ["norm"]),  # (B, 1)
        node("Cast", ["scaled"], ["half"], to=TensorProto.FLOAT16),
        # The scan: the best logit of each group and block.
        node("Gemm", ["half", "scan_items"], ["logits"], transB=1),  # (B, N)
        node("Unsqueeze", ["logits", "axis_1"], ["logits_3"]),
        node("MaxPool", ["logits_3"], ["groups_3"], kernel_shape=[GROUP], strides=[GROUP]),
        node("MaxPool", ["groups_3"], ["blocks_3"], kernel_shape=[BLOCK], strides=[BLOCK]),
        node("Squeeze", ["blocks_3", "axis_1"], ["blocks_half"]),
        # Blocks by their upper bound.
        node("Cast", ["blocks_half"], ["blocks"], to=TensorProto.FLOAT),
        node("Mul", ["norm", "block_errors"], ["errors"]),
        node("Add", ["blocks", "errors"], ["block_bounds"]),
        node("TopK", ["block_bounds", "kept_blocks"], ["best_blocks", "block"], axis=1, sorted=0),  # (B, kept_blocks)
        # All groups of these blocks by theirs.
        node("Reshape", ["groups_3", "by_block"], ["groups"]),  # (B, blocks, BLOCK)
        node("Unsqueeze", ["block", "axis_2"], ["block_3"]),
        node("GatherND", ["groups", "block_3"], ["near_half"], batch_dims=1),  # (B, kept_blocks, BLOCK)
        node("Cast", ["near_half"], ["near"], to=TensorProto.FLOAT),
        node("GatherElements", ["errors", "block"], ["near_errors"], axis=1),
        node("Unsqueeze", ["near_errors", "axis_2"], ["near_errors_3"]),
        node("Add", ["near", "near_errors_3"], ["near_bounds_3"]),
        node("Reshape", ["near_bounds_3", "flat"], ["near_bounds"]),
        node("Mul", ["block_3", "block_size"], ["first_group"]),
        node("Add", ["first_group", "group_of_block"], ["near_groups_3"]),
        node("Reshape", ["near_groups_3", "flat"], ["near_groups"]),
        node("TopK", ["near_bounds", "kept_groups"], ["best_groups", "near_place"], axis=1, sorted=0),
        node("GatherElements", ["near_groups", "near_place"], ["group"], axis=1),  # (B, kept_groups)
        # All items of these groups by their scores in float32.
        node("Gather", ["exact_items", "group"], ["candidates_4"], axis=0),  # (B, kept_groups, GROUP, dims)
        node("Reshape", ["candidates_4", "row_shape"], ["candidates"]),
        node("Unsqueeze", ["scaled", "axis_2"], ["scaled_3"]),
        node("MatMul", ["candidates", "scaled_3"], ["scores_3"]),
        node("Squeeze", ["scores_3", "axis_2"], ["all_scores"]),
        node("Gather", ["item_at", "group"], ["candidate_items_3"], axis=0),
        node("Reshape", ["candidate_items_3", "flat"], ["candidate_items"]),
        node("Equal", ["candidate_items", "no_item"], ["is_none"]),
        node("Where", ["is_none", "lowest", "all_scores"], ["scores"]),
        node("TopK", ["scores", "kept_items"], ["best", "place"], axis=1, sorted=1),
        node("GatherElements", ["candidate_items", "place"], ["items"], axis=1),
        node("ReduceMin", ["best_groups"], ["last_group"], axes=[1], keepdims=1),
        node("ReduceMin", ["best"], ["last_item"], axes=[1], keepdims=1),
        node("Concat", ["last_group", "last_item", "norm", "scale"], ["facts"], axis=1),
    ]
    exponents = np.arange(SMALLEST, LARGEST + 1)
    constants: dict[str, npt.NDArray[np.generic]] = {
        "axis_0": np.array([0], np.int64),
        "axis_1": np.array([1], np.int64),
        "axis_2": np.array([2], np.int64),
        "thresholds": np.ldexp(np.float32(1), exponents).astype(np.float32)[None],
        "scales": np.ldexp(np.float32(1), -np.concatenate([exponents[:1], exponents])).astype(np.float32),
        "column": np.array([-1, 1], np.int64),
        "by_block": np.array([0, -1, BLOCK], np.int64),
        "flat": np.array([0, -1], np.int64),
        "block_size": np.array(BLOCK, np.int64),
        "group_of_block": np.arange(BLOCK, dtype=np.int64),
        "no_item": np.array(0, np.int32),
        "lowest": np.array(-np.inf, np.float32),
    }
    float32, float16, int32, int64 = TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.INT32, TensorProto.INT64
    inputs: list[tuple[str, int, list[str | int | None]]] = [
        ("users", float32, ["U", "dim"]),
        ("first", int64, [1]),
        ("stop", int64, [1]),
        ("pads", int64, [4]),
        ("row_shape", int64, [3]),
        ("scan_items", float16, ["N", "dims"]),
        ("exact_items", float32, ["groups", GROUP, "dims"]),
        ("item_at", int32, ["groups", GROUP]),
        ("block_errors", float32, [1, "blocks"]),
        ("kept_blocks", int64, [1]),
        ("kept_groups", int64, [1]),
        ("kept_items", int64, [1]),
    ]
    outputs: list[tuple[str, int, list[str | int | None]]] = [
        ("items", int32, ["B", "P"]),
        ("facts", float32, ["B", 4]),
    ]
    graph = helper.make_graph(
        nodes,
        "search",
        [helper.make_tensor_value_info(*one) for one in inputs],
        [helper.make_tensor_value_info(*one) for one in outputs],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR_VERSION)
    onnx.checker.check_model(model, full_check=True)
    return model


def main() -> None:
    """Write the graph to a file."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("path", type=Path)
    parser.parse_args().path.write_bytes(build_search_graph().SerializeToString(deterministic=True))


if __name__ == "__main__":
    main()
