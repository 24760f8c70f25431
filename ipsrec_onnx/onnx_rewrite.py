"""A model's graph with the item table as an input in the place of an initializer, made without the onnx package.

On a GPU the table is laid on the device once, where the graph reads it and a search may; on a CPU it may be mapped from
a file. A graph without it is read in a moment, however many items there are.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from ipsrec_onnx.onnx_proto import strict_fields, strict_text, whole_file

TABLE = "item_embeddings"
INT8 = ".int8"  # what the name of a weight ends in that is stored in int8

_GRAPH, _METADATA = 7, 14  # of ModelProto
_INITIALIZER, _INPUT, _OUTPUT = 5, 11, 12  # of GraphProto
_TENSOR_NAME, _VALUE_NAME = 8, 1  # of TensorProto and ValueInfoProto
_TYPE, _TENSOR_TYPE, _ELEMENT, _SHAPE, _DIM, _DIM_VALUE = 2, 1, 1, 2, 1, 1
_FLOAT32 = 1


def graph_with_table_input(path: Path, shape: tuple[int, int], *, with_metadata: bool = False) -> bytes:
    """Give the model of a file with item_embeddings as a graph input, and no more an output.

    Args:
        path: of a model file that check_graph has looked through.
        shape: of its item_embeddings, float32.
        with_metadata: keep what the file says beside its graph; a session that only runs does not need it.

    Raises:
        BrokenMessageError: the file has changed since, and is no ONNX model any more.
    """
    with path.open("rb") as file:
        parts = []
        for field, value in strict_fields(file, whole_file(file)):
            if field == _GRAPH and isinstance(value, range):
                parts.append(_message(_GRAPH, b"".join(_graph_fields(file, value, shape))))
            elif with_metadata or field != _METADATA:
                parts.append(_copied(file, field, value))
    return b"".join(parts)


def _graph_fields(file: BinaryIO, graph: range, shape: tuple[int, int]) -> Iterator[bytes]:
    """The fields of the graph that stay, and the input that takes the table's place."""
    names = {_INITIALIZER: _TENSOR_NAME, _OUTPUT: _VALUE_NAME}
    for field, value in strict_fields(file, graph):
        if field in names and isinstance(value, range) and _name(file, value, names[field]) == TABLE:
            continue
        yield _copied(file, field, value)
    dims = b"".join(_message(_DIM, _number(_DIM_VALUE, dim)) for dim in shape)
    tensor = _number(_ELEMENT, _FLOAT32) + _message(_SHAPE, dims)
    yield _message(_INPUT, _message(_VALUE_NAME, TABLE.encode()) + _message(_TYPE, _message(_TENSOR_TYPE, tensor)))


def _name(file: BinaryIO, message: range, wanted: int) -> str:
    """The name in a message, in the field of this number."""
    return next((strict_text(file, value) for field, value in strict_fields(file, message) if field == wanted), "")


def _copied(file: BinaryIO, field: int, value: int | range) -> bytes:
    if isinstance(value, int):
        return _number(field, value)
    file.seek(value.start)
    return _message(field, file.read(len(value)))


def _message(field: int, content: bytes) -> bytes:
    """A field of bytes: a text, or a message."""
    return _varint(8 * field + 2) + _varint(len(content)) + content


def _number(field: int, value: int) -> bytes:
    return _varint(8 * field) + _varint(value)


def _varint(value: int) -> bytes:
    """An unsigned integer in base 128, the lowest seven bits first."""
    encoded = bytearray()
    while value > 0x7F:
        encoded.append(0x80 | value & 0x7F)
        value >>= 7
    encoded.append(value)
    return bytes(encoded)
