"""Reads two facts of an ONNX file without the onnx package, which a scoring machine does not have.

The file may hold anything: every walk stays inside the message it was given and moves on with each step.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

# Field numbers of onnx.proto; wire types of the protobuf encoding.
_GRAPH, _OPSET_IMPORT = 7, 8  # of ModelProto
_DOMAIN, _VERSION = 1, 2  # of OperatorSetIdProto
_INITIALIZER = 5  # of GraphProto
_EXTERNAL_DATA = 13  # of TensorProto
_KEY, _VALUE = 1, 2  # of StringStringEntryProto
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5
_LONGEST_VARINT, _LONGEST_TEXT = 10, 4096  # bytes; a path is no longer

# A field number, and its integer or where its bytes lie in the file.
_Field = tuple[int, int | range]


def graph_opset(path: str | Path) -> int | None:
    """Version of the default operator set; None if the file does not say. Passes over the graph unread."""
    with Path(path).open("rb") as file:
        for operator_set in _messages(file, _whole(file), _OPSET_IMPORT):
            fields = dict(_fields(file, operator_set))
            domain, version = fields.get(_DOMAIN), fields.get(_VERSION)
            if not domain and isinstance(version, int):  # no domain, or the empty one
                return version
    return None


def external_data_files(path: str | Path) -> list[str]:
    """Locations of the files that hold the graph's weights beside it, sorted; none where the file holds its own."""
    found = set()
    with Path(path).open("rb") as file:
        for graph in _messages(file, _whole(file), _GRAPH):
            for tensor in _messages(file, graph, _INITIALIZER):
                for entry in _messages(file, tensor, _EXTERNAL_DATA):
                    texts = {field: _text(file, value) for field, value in _fields(file, entry)}
                    if texts.get(_KEY) == "location":
                        found.add(texts.get(_VALUE, ""))
    return sorted(found - {""})


def _whole(file: BinaryIO) -> range:
    return range(file.seek(0, io.SEEK_END))


def _messages(file: BinaryIO, inside: range, wanted: int) -> Iterator[range]:
    """Where the messages of one field lie."""
    for field, value in _fields(file, inside):
        if field == wanted and isinstance(value, range):
            yield value


def _fields(file: BinaryIO, inside: range) -> Iterator[_Field]:
    """Walk over the integers and messages of a message; ends early where the bytes are none."""
    place = inside.start
    while place < inside.stop:
        file.seek(place)
        field, wire = divmod(_varint(file), 8)
        if wire == _VARINT:
            number = _varint(file)
            place = file.tell()
            yield field, number
        elif wire == _BYTES:
            size = _varint(file)
            value = range(file.tell(), file.tell() + max(size, 0))
            place = value.stop
            if size >= 0 and place <= inside.stop:
                yield field, value
        elif wire in (_FIXED64, _FIXED32):
            place = file.tell() + (8 if wire == _FIXED64 else 4)
        else:
            return  # groups are not used by ONNX: this is something else


def _text(file: BinaryIO, value: int | range) -> str:
    if isinstance(value, int) or len(value) > _LONGEST_TEXT:
        return ""
    file.seek(value.start)
    return file.read(len(value)).decode("utf-8", errors="replace")


def _varint(file: BinaryIO) -> int:
    """Read a base-128 integer; -1 where there is none: at the end of the file, or past the longest one."""
    value = 0
    for shift in range(0, 7 * _LONGEST_VARINT, 7):
        byte = file.read(1)
        if not byte:
            return -1
        value |= (byte[0] & 0x7F) << shift
        if byte[0] < 0x80:
            return value
    return -1
