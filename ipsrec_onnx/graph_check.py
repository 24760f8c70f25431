"""Looks through a model file's graph before ONNX Runtime does, for a model file may come from anybody.

Refused is what could run foreign code, read files elsewhere, or ask for more memory than there are bytes in the files:
operators outside the ONNX standard, but for one that export writes; functions, external data outside the model's
folder, tensors whose shape is larger than their bytes. What a graph computes is not looked at; sessions and shapes are
checked where they are used.

The walk is strict: bytes that another reader of protobuf might understand in another way are refused as well.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO, Final

from ipsrec_onnx.errors import ModelFileError
from ipsrec_onnx.onnx_proto import BrokenMessageError, strict_fields, strict_text, strict_varints, whole_file
from ipsrec_onnx.readable import why_unreadable

_DOMAINS: Final = ("", "ai.onnx", "ai.onnx.ml")
# The one operator of ONNX Runtime's own that export writes, for `--precision fp16`.
_ATTENTION: Final = ("com.microsoft", "MultiHeadAttention")
_ATTENTION_INPUTS: Final = 6  # query, key, value, bias, key_padding_mask, attention_bias; then come those of a cache
_ATTENTION_LENGTHS: Final = 4  # key_padding_mask: how many keys a row has
_COUNTING: Final = (("ReduceSum",), ("Cast",), ("Equal", "Less"))  # what makes lengths, backwards
_REPEATING: Final = ("Loop", "Scan", "SequenceMap")  # no export has them, and they could run for ever
# Operators of any number of inputs, each needed: ONNX Runtime 1.32 follows the null pointer of one without a name.
_ALL_NEEDED: Final = ("Concat", "Einsum", "FeatureVectorizer", "Max", "Mean", "Min", "SequenceConstruct", "Sum")
_DEEPEST: Final = 8  # graphs in attributes of graphs
_MOST_FIELDS: Final = 1 << 19  # looked at in a file, some seconds; exports have ten thousand
_MOST_ENTRIES: Final = 1 << 23  # ids and their rows in an edge file, one by one: ten seconds
_MOST_DIMS: Final = 32  # axes of a tensor
_SHOWN: Final = 80  # characters of a name in a message

_GRAPH, _TRAINING, _FUNCTION = 7, 20, 25  # of ModelProto
_NODE, _INITIALIZER, _SPARSE_INITIALIZER = 1, 5, 15  # of GraphProto
_INPUT, _OUTPUT, _OP_TYPE, _ATTRIBUTE, _DOMAIN = 1, 2, 4, 5, 7  # of NodeProto
_TENSOR, _SUBGRAPH, _TENSORS, _SUBGRAPHS, _SPARSE, _SPARSES = 5, 6, 10, 11, 22, 23  # of AttributeProto
_INTS, _STRINGS = 8, 9  # likewise
_DIMS, _DATA_TYPE, _SEGMENT, _NAME, _RAW_DATA, _EXTERNAL, _LOCATION = 1, 2, 3, 8, 9, 13, 14  # of TensorProto
_STRING_DATA = 6  # likewise
_KEY, _VALUE = 1, 2  # of StringStringEntryProto

_STRING: Final = 8  # TensorProto.DataType
_BITS: Final = {
    **dict.fromkeys((25, 26), 2),
    **dict.fromkeys((21, 22, 23), 4),
    **dict.fromkeys((2, 3, 9, 17, 18, 19, 20, 24), 8),
    **dict.fromkeys((4, 5, 10, 16), 16),
    **dict.fromkeys((1, 6, 12), 32),
    **dict.fromkeys((7, 11, 13, 14), 64),
    15: 128,
}


def check_graph(path: Path) -> dict[str, tuple[int, ...]]:
    """Look through a model file.

    Args:
        path: of a file that can be read.

    Returns:
        Shape of each initializer of the main graph, by name.

    Raises:
        ModelFileError: it is no ONNX model, or its graph has something that is refused.
    """
    try:
        with path.open("rb") as file:
            return _walk(_Reader(file, path.parent))
    except BrokenMessageError as error:
        raise ModelFileError(f"{path} is no ONNX model: {error}; give the file that `ipsrec export` wrote") from error
    except ModelFileError as error:
        raise ModelFileError(f"model {path}: {error}") from error


class _Reader:
    """Reads the messages of one file, and no more of them than a model has.

    Attributes:
        folder: where the file lies.
    """

    def __init__(self, file: BinaryIO, folder: Path) -> None:
        self.folder = folder
        self._file = file
        self._seen = self._seen_entries = 0

    def whole(self) -> range:
        """The message that the file is."""
        return whole_file(self._file)

    def fields(self, inside: range, *, entries: Collection[int] = ()) -> Iterator[tuple[int, int | range]]:
        """As strict_fields, without fields that are entries of a list, which there may be more of."""
        for found in strict_fields(self._file, inside):
            if found[0] in entries:
                self._seen_entries += 1
            else:
                self._seen += 1
            if self._seen > _MOST_FIELDS or self._seen_entries > _MOST_ENTRIES:
                raise ModelFileError(
                    f"its graph has more than {_MOST_FIELDS} parts, or {_MOST_ENTRIES} ids; export it again"
                )
            if found[0] not in entries:
                yield found

    def text(self, value: int | range) -> str:
        """As strict_text."""
        return strict_text(self._file, value)

    def dims(self, value: int | range) -> list[int]:
        """Some of a tensor's dims."""
        if not isinstance(value, int) and len(value) > 10 * _MOST_DIMS:
            raise _too_many_axes()
        dims = [value] if isinstance(value, int) else strict_varints(self._file, value)
        return [dim - (1 << 64) if dim >> 63 else dim for dim in dims]


def _walk(reader: _Reader) -> dict[str, tuple[int, ...]]:
    """Visit all graphs, nodes and tensors; a list of what is left takes the place of recursion."""
    initializers: dict[str, tuple[int, ...]] = {}
    graphs: list[tuple[range, int]] = []
    for number, value in reader.fields(reader.whole()):
        if number in (_FUNCTION, _TRAINING):
            what = "functions of its own" if number == _FUNCTION else "a graph for training"
            raise ModelFileError(f"it has {what}, which no export writes and nobody needs to score; export it again")
        if number == _GRAPH:
            graphs.append((_message(value), 0))
    if not graphs:
        raise BrokenMessageError("it holds no graph")
    while graphs:
        graph, depth = graphs.pop()
        if depth > _DEEPEST:
            raise ModelFileError(f"graphs lie more than {_DEEPEST} deep inside its graph; export it again")
        nodes: list[_Node] = []
        own: dict[str, tuple[int, ...]] = {}
        for number, value in reader.fields(graph):
            if number == _NODE:
                nodes.append(_check_node(reader, _message(value)))
                graphs += [(subgraph, depth + 1) for subgraph in nodes[-1].subgraphs]
            elif number == _INITIALIZER:
                tensor = _check_tensor(reader, _message(value), may_be_outside=depth == 0)
                own[tensor.name] = tuple(tensor.dims)
                if depth == 0:
                    if tensor.name in initializers:
                        raise ModelFileError(f"two of its weights are named {tensor.name[:_SHOWN]!r}; export it again")
                    initializers[tensor.name] = tuple(tensor.dims)
            elif number == _SPARSE_INITIALIZER:
                raise _sparse()
        _check_attention(nodes, own)
    return initializers


@dataclass(frozen=True)
class _Node:
    """A node that was looked at."""

    domain: str
    operator: str
    inputs: list[str]
    outputs: list[str]
    subgraphs: list[range]


def _check_node(reader: _Reader, node: range) -> _Node:
    """Check a node and the tensors in its attributes; gives the graphs in them, too."""
    domain, operator = "", ""
    inputs: list[str] = []
    outputs: list[str] = []
    attributes: list[range] = []
    for number, value in reader.fields(node):
        if number == _DOMAIN:
            domain = reader.text(value)
        elif number == _OP_TYPE:
            operator = reader.text(value)
        elif number == _INPUT:
            inputs.append(reader.text(value))
        elif number == _OUTPUT:
            outputs.append(reader.text(value))
        elif number == _ATTRIBUTE:
            attributes.append(_message(value))
    shown = operator[:_SHOWN]
    if domain not in _DOMAINS and (domain, operator) != _ATTENTION:
        raise ModelFileError(
            f"its graph has the operator {shown!r} of domain {domain[:_SHOWN]!r}; only those of the ONNX standard are "
            "run, so export it again, without an optimizer behind"
        )
    if operator in _REPEATING:
        raise ModelFileError(f"its graph has the operator {shown!r}, which could run for ever; export it again")
    if operator in _ALL_NEEDED and "" in inputs:
        raise ModelFileError(f"its graph has the operator {shown!r} with an input that has no name; export it again")
    subgraphs = [subgraph for attribute in attributes for subgraph in _check_attribute(reader, attribute)]
    return _Node(domain, operator, inputs, outputs, subgraphs)


def _check_attention(nodes: list[_Node], weights: dict[str, tuple[int, ...]]) -> None:
    """Refuse attention with a cache, lengths that could be negative, and keys or values without a width.

    Older versions of ONNX Runtime write at negative lengths, and 1.32 divides by a width of 0, which ends the process.
    Lengths have to be counted, and keys and values multiplied by a weight, in the same graph, as export does it.
    """
    made_by = {name: node for node in nodes for name in node.outputs}
    for node in nodes:
        if (node.domain, node.operator) != _ATTENTION:
            continue
        if not 3 <= len(node.inputs) <= _ATTENTION_INPUTS or len(node.outputs) != 1:
            raise ModelFileError(
                f"its graph has {node.operator} with a cache, or without keys and values, which no export writes; "
                "export it again"
            )
        lengths = node.inputs[_ATTENTION_LENGTHS] if len(node.inputs) > _ATTENTION_LENGTHS else ""
        if lengths and not _is_counted(lengths, made_by):
            raise ModelFileError(
                f"its graph has {node.operator} with lengths {lengths[:_SHOWN]!r} that are not counted, which no "
                "export writes; export it again"
            )
        for what, name in zip(("keys", "values"), node.inputs[1:3], strict=True):
            if not _has_width(made_by.get(name), weights):
                raise ModelFileError(
                    f"its graph has {node.operator} with {what} {name[:_SHOWN]!r} that no weight makes, which no "
                    "export writes; export it again"
                )


def _has_width(node: _Node | None, weights: dict[str, tuple[int, ...]]) -> bool:
    """Is it a product with a weight that has columns?"""
    if node is None or node.domain not in ("", "ai.onnx") or node.operator != "MatMul" or len(node.inputs) != 2:
        return False
    return min(weights.get(node.inputs[1], (0,))) > 0


def _is_counted(name: str, made_by: dict[str, _Node]) -> bool:
    """Is it a sum of answers, yes or no, and so 0 or more?"""
    for operators in _COUNTING:
        node = made_by.get(name)
        if node is None or node.domain not in ("", "ai.onnx") or node.operator not in operators:
            return False
        name = next(iter(node.inputs), "")
    return True


def _check_attribute(reader: _Reader, attribute: range) -> list[range]:
    """Check the tensors in an attribute of a node; gives the graphs in it."""
    subgraphs: list[range] = []
    has_tensor = False
    for number, value in reader.fields(attribute, entries=(_INTS, _STRINGS)):
        if number == _TENSOR and has_tensor:  # protobuf joins the two: to a shape larger than their bytes
            raise BrokenMessageError("an attribute has two tensors in the place of one")
        if number in (_TENSOR, _TENSORS):
            _check_tensor(reader, _message(value), may_be_outside=False)
            has_tensor |= number == _TENSOR
        elif number in (_SUBGRAPH, _SUBGRAPHS):
            subgraphs.append(_message(value))
        elif number in (_SPARSE, _SPARSES):
            raise _sparse()
    return subgraphs


@dataclass
class _Tensor:
    """What a tensor says of itself."""

    name: str = ""
    dims: list[int] = field(default_factory=list)
    data_type: int = 0
    raw_bytes: int = 0
    is_outside: bool = False
    outside: dict[str, str] = field(default_factory=dict)


def _check_tensor(reader: _Reader, inside: range, *, may_be_outside: bool) -> _Tensor:
    """Check that a tensor's shape is no larger than its bytes, which are where they may be."""
    tensor = _read_tensor(reader, inside)
    where = f"weight {tensor.name[:_SHOWN]!r}"
    if min(tensor.dims, default=0) < 0:
        raise ModelFileError(f"{where} has shape {tuple(tensor.dims)}; export it again")
    count = math.prod(tensor.dims)
    bits = _BITS.get(tensor.data_type)
    if bits is None and tensor.data_type != _STRING:
        raise ModelFileError(f"{where} has ONNX's data type {tensor.data_type}, which is none; export it again")
    expected = None if bits is None else -(-count * bits // 8)
    if tensor.is_outside or tensor.outside:
        if not may_be_outside:  # what is outside is part of the file's SHA-256, which knows the main graph's weights
            raise ModelFileError(f"{where} of a node or an inner graph has external data; export it again")
        _check_outside(tensor, expected, reader.folder, where)
    elif tensor.raw_bytes:
        _refuse_other_size(tensor.raw_bytes, expected, tensor, where)
    elif count > len(inside):  # a number that is not raw takes a byte or more
        raise ModelFileError(
            f"{where} has shape {tuple(tensor.dims)}, but its {count} numbers lie in {len(inside)} bytes; "
            "export it again"
        )
    return tensor


def _read_tensor(reader: _Reader, inside: range) -> _Tensor:
    tensor = _Tensor()
    for number, value in reader.fields(inside, entries=(_STRING_DATA,)):
        if number == _DIMS:
            tensor.dims += reader.dims(value)
            if len(tensor.dims) > _MOST_DIMS:
                raise _too_many_axes()
        elif number == _DATA_TYPE and isinstance(value, int):
            tensor.data_type = value
        elif number == _NAME:
            tensor.name = reader.text(value)
        elif number == _RAW_DATA:
            tensor.raw_bytes = len(_message(value))
        elif number == _LOCATION:
            tensor.is_outside = value != 0
        elif number == _EXTERNAL:
            entry = {part: reader.text(text) for part, text in reader.fields(_message(value))}
            if entry.get(_KEY, "") in tensor.outside:
                raise BrokenMessageError(f"external data say {entry.get(_KEY, '')[:_SHOWN]!r} twice")
            tensor.outside[entry.get(_KEY, "")] = entry.get(_VALUE, "")
        elif number == _SEGMENT:
            raise ModelFileError("a weight is cut into segments; export it again")
    return tensor


def _check_outside(tensor: _Tensor, expected: int | None, folder: Path, where: str) -> None:
    """Check that a tensor's external data lie in a file of the model's folder, as many as its shape asks for."""
    location = tensor.outside.get("location", "")
    shown = location[:_SHOWN]
    if not tensor.is_outside or not location or tensor.raw_bytes or expected is None:
        raise ModelFileError(f"{where} has external data that are none; export it again")
    path = folder / location
    leaves = Path(location).is_absolute() or ".." in Path(location).parts
    if leaves or not Path(os.path.realpath(path)).is_relative_to(os.path.realpath(folder)):  # resolve() fails on loops
        raise ModelFileError(
            f"{where} lies in {shown!r}, which is not in the model's folder; copy that file beside the model, as "
            "`ipsrec export` writes it, if you trust it"
        )
    reason = why_unreadable(path)
    if reason is not None:
        raise ModelFileError(f"{where} lies in {shown!r}: {reason}; keep its external data beside it")
    start, size = (tensor.outside.get(key, default) for key, default in (("offset", "0"), ("length", str(expected))))
    if not re.fullmatch("[0-9]{1,19}", start) or not re.fullmatch("[0-9]{1,19}", size):
        raise ModelFileError(f"{where} has external data at {start[:30]!r}, {size[:30]!r} bytes; export it again")
    _refuse_other_size(int(size), expected, tensor, where)
    there = path.stat().st_size
    if int(start) + int(size) > there:
        raise ModelFileError(
            f"{where} needs the bytes {start} to {int(start) + int(size)} of {shown!r}, which has {there}; "
            "copy that file whole"
        )


def _refuse_other_size(found: int, expected: int | None, tensor: _Tensor, where: str) -> None:
    if found != expected:
        raise ModelFileError(
            f"{where} has {found} bytes, expected {expected} for shape {tuple(tensor.dims)}; export it again"
        )


def _message(value: int | range) -> range:
    if isinstance(value, int):
        raise BrokenMessageError("there is a number in the place of a message")
    return value


def _sparse() -> ModelFileError:
    return ModelFileError("its graph has a sparse weight, which no export writes; export it again")


def _too_many_axes() -> ModelFileError:
    return ModelFileError(f"a weight has more than {_MOST_DIMS} axes; export it again")
