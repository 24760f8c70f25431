"""Keeps the weights of a graph in fewer bytes, as float16 or int8; they are float32 again where they are used.

A node Cast, and for int8 a Mul with scales behind it, gives the float32 values. ONNX Runtime computes such a node once,
when it loads the file, for all its inputs are constants; DequantizeLinear, made for this, it would run at every call.
Rows that are only ever looked up stay int8 in memory, too: what was looked up is cast, and nothing else.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal, NamedTuple

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper, numpy_helper

from ipsrec_export.lean import LARGEST_HALF
from ipsrec_onnx.errors import DataError
from ipsrec_onnx.onnx_rewrite import INT8

Kind = Literal["fp32", "fp16", "int8"]

SCALES, FP16 = ".scales", ".fp16"  # what their names end in, and INT8
LARGEST_INT8: Final = 127
SMALLEST: Final = 256  # elements; below it the nodes take what the bytes give
# Added to every item of a history, they do more harm in int8 than any layer, and are 10 kB of a file.
_POSITIONS: Final = "position"
# Ten times GPTQ's: the table is the encoder's input, too, where each element counts for itself. Lists stay best with .1
# to .3 (benchmarks/bench_edge_rounding.py).
_DAMPING: Final = 0.1
_DAMPING_OF_FEW: Final = 0.3
_ROUNDED_AT_ONCE: Final = 1 << 15  # rows
_SMALLEST_NORMAL_HALF: Final = 2.0**-14  # below it float16 has fewer digits
_SCOPES: Final = "pkg.torch.onnx.name_scopes"
_LAYER: Final = re.compile(r"'encoder\.([a-z_]+(?:\.\d+)?)")


class QuantizedRows(NamedTuple):
    """A weight in int8.

    Attributes:
        values: int8 in the weight's shape, -127..127.
        scales: float16, or float32 where float16 has too few digits; the weight's shape with 1 for its inputs.
    """

    values: npt.NDArray[np.int8]
    scales: npt.NDArray[np.float16] | npt.NDArray[np.float32]

    def as_float32(self) -> npt.NDArray[np.float32]:
        """The weight again, to the last bit as the graph has it."""
        return self.values.astype(np.float32) * self.scales.astype(np.float32)


@dataclass(frozen=True)
class StoredWeight:
    """A float32 initializer that can be stored in fewer bytes.

    Attributes:
        name: of the initializer.
        group: the table or layer that it belongs to.
        inputs: axes that a sum runs over; the others are channels, with a scale each. Of a table, those of a row.
        rows_only: it is a table of which rows are looked up, and nothing else.
        elements: how many.
    """

    name: str
    group: str
    inputs: tuple[int, ...]
    rows_only: bool
    elements: int


def quantize(
    weight: npt.NDArray[np.float32],
    inputs: tuple[int, ...],
    *,
    name: str = "weight",
    met: npt.NDArray[np.float64] | None = None,
) -> QuantizedRows:
    """Round a weight to int8, symmetric about 0, with one scale a channel.

    Args:
        weight: finite float32.
        inputs: axes that share a scale.
        name: for the message.
        met: (D, D) of the vectors whose products with the rows of an (n, D) matrix matter, as second_moment gives it;
            rounding then keeps these products better, and each element worse. None, 0 or what is not finite rounds each
            element to the nearest.

    Raises:
        DataError: an element is not finite.
        ValueError: met is not of this matrix's rows.
    """
    if met is not None and (inputs != (1,) or met.shape != (weight.shape[1],) * 2):
        raise ValueError(
            f"met is {met.shape} of a weight {weight.shape} with inputs {inputs}, expected one of its rows"
        )
    if not np.isfinite(weight).all():
        raise DataError(f"export: weight {name} holds a value that is not finite; train the model again")
    scales = np.abs(weight).max(inputs, keepdims=True) / np.float32(LARGEST_INT8)
    some = scales[scales > 0]
    if some.size == 0 or (some.min() >= _SMALLEST_NORMAL_HALF and some.max() <= LARGEST_HALF):
        scales = scales.astype(np.float16)
    steps = np.divide(weight, np.where(scales > 0, scales, 1), dtype=np.float32)
    if met is not None and np.isfinite(met).all() and met.any():
        return QuantizedRows(_round_for_products(steps, met), scales)
    return QuantizedRows(_whole(steps), scales)


def second_moment(vectors: npt.NDArray[np.float32]) -> npt.NDArray[np.float64]:
    """Mean of v v^T over vectors (n, D), with a share of an element's mean square added to its diagonal; 0 for none.

    Few vectors say little of those to come: the share grows with D / n. Rounding for 32 vectors of 64 even elements, as
    they are, made products with others three times as wrong as rounding to the nearest, and so a quarter more.
    """
    wide = vectors.astype(np.float64)
    count, dim = wide.shape
    moment = wide.T @ wide / max(1, count)
    damping = _DAMPING + _DAMPING_OF_FEW * dim / max(1, count)
    return np.asarray(moment + damping * np.trace(moment) / dim * np.eye(dim))


def _round_for_products(steps: npt.NDArray[np.float32], met: npt.NDArray[np.float64]) -> npt.NDArray[np.int8]:
    """Round the columns of (n, D) one after another; columns that are left make good what a product has lost so far.

    The method is GPTQ's (Frantar et al., ICLR 2023, section 3), with the columns that weigh most first, as its later
    code may have them. What it gains depends on how unevenly the vectors are spread: benchmarks/bench_edge_rounding.py.
    """
    order = np.argsort(-np.diag(met), kind="stable")
    # Row d: how the loss of column d is shared out to those behind it.
    shares = np.linalg.cholesky(np.linalg.inv(met[np.ix_(order, order)])).T
    rounded = np.empty(steps.shape, np.int8)
    for start in range(0, len(steps), _ROUNDED_AT_ONCE):
        rows = slice(start, start + _ROUNDED_AT_ONCE)
        left = np.ascontiguousarray(steps[rows, order].T, np.float64)
        for column in range(len(met)):
            whole = _whole(left[column])
            rounded[rows, order[column]] = whole
            lost = (left[column] - whole) / shares[column, column]
            left[column + 1 :] -= shares[column, column + 1 :, None] * lost
    return rounded


def _whole(steps: npt.NDArray[Any]) -> npt.NDArray[np.int8]:
    whole: npt.NDArray[np.int8] = np.clip(np.rint(steps), -LARGEST_INT8, LARGEST_INT8).astype(np.int8)
    return whole


def storable_weights(graph: onnx.GraphProto) -> list[StoredWeight]:
    """Find what store_weights can take, in the graph's order.

    These are the float32 initializers of SMALLEST elements or more that are a matrix, a kernel or a table to all nodes
    that use them. Position embeddings are not among them.
    """
    uses: dict[str, list[tuple[onnx.NodeProto, int]]] = {}
    for node in graph.node:
        for place, name in enumerate(node.input):
            uses.setdefault(name, []).append((node, place))
    outputs = {output.name for output in graph.output}
    found = []
    for tensor in graph.initializer:
        elements = int(np.prod(tensor.dims))
        if tensor.data_type != TensorProto.FLOAT or len(tensor.dims) < 2 or elements < SMALLEST:
            continue
        if tensor.name.rpartition(".")[2] == _POSITIONS:
            continue
        used = uses.get(tensor.name, [])
        axes = {_input_axes(node, place, len(tensor.dims)) for node, place in used}
        if len(axes) != 1 or (inputs := axes.pop()) is None:
            continue
        rows_only = tensor.name not in outputs and all(_looks_up_rows(node) for node, _ in used)
        group = tensor.name if _looks_up_rows(used[0][0]) else _group(used[0][0], tensor.name)
        found.append(StoredWeight(tensor.name, group, inputs, rows_only, elements))
    return found


def store_weights(
    proto: onnx.ModelProto, kinds: Mapping[str, Kind], *, rounded: Mapping[str, QuantizedRows] | None = None
) -> None:
    """Store some of a graph's weights in fewer bytes, in place.

    Args:
        proto: its weights lie in memory.
        kinds: of weights by name, as storable_weights gives them; one that is not named stays float32.
        rounded: int8 weights by name, as quantize gave them; those that are not named are rounded to the nearest here.

    Raises:
        DataError: an element is not finite, or float16 does not hold it.
    """
    graph = proto.graph
    weights = {weight.name: weight for weight in storable_weights(graph) if kinds.get(weight.name, "fp32") != "fp32"}
    stored: dict[str, list[onnx.TensorProto]] = {}
    first: list[onnx.NodeProto] = []
    looked_up: dict[str, bool] = {}  # by name of a table that stays int8: are its scales float16?
    for tensor in graph.initializer:
        if tensor.name not in weights:
            continue
        weight, array = weights[tensor.name], numpy_helper.to_array(tensor)
        if kinds[weight.name] == "fp16":
            stored[weight.name] = [numpy_helper.from_array(as_half(array, name=weight.name), weight.name + FP16)]
            first.append(helper.make_node("Cast", [weight.name + FP16], [weight.name], to=TensorProto.FLOAT))
            continue
        rows = (rounded or {}).get(weight.name) or quantize(array, weight.inputs, name=weight.name)
        stored[weight.name] = [
            numpy_helper.from_array(rows.values, weight.name + INT8),
            numpy_helper.from_array(rows.scales, weight.name + SCALES),
        ]
        if weight.rows_only:
            looked_up[weight.name] = rows.scales.dtype == np.float16
        else:
            first += _product(
                weight.name + INT8, weight.name + SCALES, weight.name, half=rows.scales.dtype == np.float16
            )
    nodes = first
    for node in graph.node:
        if node.input and node.input[0] in looked_up and _looks_up_rows(node):
            nodes += _rows(node, half=looked_up[node.input[0]])
        else:
            nodes.append(node)
    initializers = [part for tensor in graph.initializer for part in stored.get(tensor.name, [tensor])]
    for field, parts in ((graph.node, nodes), (graph.initializer, initializers)):
        kept = list(parts)  # before the field that some of them live in is emptied
        del field[:]
        field.extend(kept)


def as_half(weight: npt.NDArray[np.float32], *, name: str) -> npt.NDArray[np.float16]:
    """Round a weight to float16.

    Raises:
        DataError: an element is not finite, or float16 does not hold it.
    """
    if not np.isfinite(weight).all():
        raise DataError(f"export: weight {name} holds a value that is not finite; train the model again")
    if not fits_half(weight):
        raise DataError(
            f"export: weight {name} reaches {np.abs(weight).max():.6g}, float16 ends at {LARGEST_HALF:.0f}; "
            "export with --precision fp32"
        )
    return weight.astype(np.float16)


def fits_half(weight: npt.NDArray[np.float32]) -> bool:
    """Does float16 hold all of it?"""
    return bool(np.abs(weight).max(initial=0) <= LARGEST_HALF)


def groups_of(weights: Iterable[StoredWeight]) -> dict[str, list[str]]:
    """Names of weights by the table or layer that they belong to, in order."""
    groups: dict[str, list[str]] = {}
    for weight in weights:
        groups.setdefault(weight.group, []).append(weight.name)
    return groups


def drop_node_notes(proto: onnx.ModelProto) -> None:
    """Take away what the exporter notes at each node for developers: 5 kB a node, and paths of this machine in it."""
    for node in proto.graph.node:
        del node.metadata_props[:]
        node.doc_string = ""
    for values in (proto.graph.input, proto.graph.output, proto.graph.value_info, proto.graph.initializer):
        for value in values:
            del value.metadata_props[:]
    del proto.graph.metadata_props[:]


def drop_output(proto: onnx.ModelProto, names: Collection[str]) -> None:
    """Take outputs away."""
    kept = [output for output in proto.graph.output if output.name not in names]
    del proto.graph.output[:]
    proto.graph.output.extend(kept)


def _input_axes(node: onnx.NodeProto, place: int, num_axes: int) -> tuple[int, ...] | None:
    """Axes of a weight that share a scale where a node uses it; None where the weight is something else to it."""
    attributes = {attribute.name: helper.get_attribute_value(attribute) for attribute in node.attribute}
    if _looks_up_rows(node) and place == 0:
        return tuple(range(1, num_axes))
    if node.op_type == "MatMul" and place == 1:
        return (num_axes - 2,)
    if node.op_type == "Gemm" and place == 1:
        return (1 if attributes.get("transB") else 0,)
    if node.op_type == "Conv" and place == 1:
        return tuple(range(1, num_axes))
    if node.op_type == "GRU" and place in (1, 2):
        return (num_axes - 1,)
    return None


def _looks_up_rows(node: onnx.NodeProto) -> bool:
    axis = next((attribute.i for attribute in node.attribute if attribute.name == "axis"), 0)
    return node.op_type == "Gather" and axis == 0


def _group(node: onnx.NodeProto, otherwise: str) -> str:
    """The layer that a node was made of, which the exporter notes."""
    scopes = next((entry.value for entry in node.metadata_props if entry.key == _SCOPES), "")
    layer = _LAYER.search(scopes)
    return layer[1] if layer else otherwise


def _rows(node: onnx.NodeProto, *, half: bool) -> list[onnx.NodeProto]:
    """Look up int8 rows and their scales in the place of float32 rows."""
    table, places = node.input
    output = node.output[0]
    rows, scales = output + INT8, output + SCALES
    return [
        helper.make_node("Gather", [table + INT8, places], [rows]),
        helper.make_node("Gather", [table + SCALES, places], [scales]),
        *_product(rows, scales, output, half=half),
    ]


def _product(values: str, scales: str, output: str, *, half: bool) -> list[onnx.NodeProto]:
    """int8 values times their scales, float32."""
    nodes = [helper.make_node("Cast", [values], [output + ".whole"], to=TensorProto.FLOAT)]
    if half:
        nodes.append(helper.make_node("Cast", [scales], [scales + ".float32"], to=TensorProto.FLOAT))
        scales += ".float32"
    return [*nodes, helper.make_node("Mul", [output + ".whole", scales], [output])]
