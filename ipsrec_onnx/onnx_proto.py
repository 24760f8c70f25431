"""Reads a few facts of an ONNX file without the onnx package, which a scoring machine does not have.

The file may hold anything: every walk stays inside the message it was given and moves on with each step.
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

# Field numbers of onnx.proto; wire types of the protobuf encoding.
_GRAPH, _OPSET_IMPORT, _METADATA_PROPS = 7, 8, 14  # of ModelProto
_DOMAIN, _VERSION = 1, 2  # of OperatorSetIdProto
_INITIALIZER = 5  # of GraphProto
_DIMS, _DATA_TYPE, _NAME, _RAW_DATA, _EXTERNAL_DATA = 1, 2, 8, 9, 13  # of TensorProto
_KEY, _VALUE = 1, 2  # of StringStringEntryProto
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5
_LONGEST_VARINT, _LONGEST_TEXT = 10, 4096  # bytes; a path is no longer


class BrokenMessageError(ValueError):
    """Bytes that are no protobuf message."""


# A field number, and its integer or where its bytes lie in the file.
_Field = tuple[int, int | range]


def graph_opset(path: str | Path) -> int | None:
    """Version of the default operator set; None if the file does not say. Passes over the graph unread."""
    with Path(path).open("rb") as file:
        for operator_set in _messages(file, whole_file(file), _OPSET_IMPORT):
            fields = dict(_fields(file, operator_set))
            domain, version = fields.get(_DOMAIN), fields.get(_VERSION)
            if not domain and isinstance(version, int):  # no domain, or the empty one
                return version
    return None


def metadata_text(path: str | Path, key: str) -> str | None:
    """A short text of metadata_props; None if the file has no such key."""
    with Path(path).open("rb") as file:
        for entry in _messages(file, whole_file(file), _METADATA_PROPS):
            texts = {field: _text(file, value) for field, value in _fields(file, entry)}
            if texts.get(_KEY) == key:
                return texts.get(_VALUE, "")
    return None


def external_data_files(path: str | Path) -> list[str]:
    """Locations of the files that hold the graph's weights beside it, sorted; none where the file holds its own."""
    found = set()
    with Path(path).open("rb") as file:
        for graph in _messages(file, whole_file(file), _GRAPH):
            for tensor in _messages(file, graph, _INITIALIZER):
                for entry in _messages(file, tensor, _EXTERNAL_DATA):
                    texts = {field: _text(file, value) for field, value in _fields(file, entry)}
                    if texts.get(_KEY) == "location":
                        found.add(texts.get(_VALUE, ""))
    return sorted(found - {""})


@dataclass(frozen=True)
class Initializer:
    """Where a graph keeps a weight.

    Attributes:
        name: of the tensor.
        dims: its shape.
        data_type: TensorProto.DataType.
        raw: where its bytes lie in the file of the graph; empty where they are elsewhere.
        location: of the file that holds them; None where that is the graph's.
        offset: where they start in that file.
        length: how many; None where the file does not say.
    """

    name: str
    dims: tuple[int, ...]
    data_type: int
    raw: range
    location: str | None
    offset: int
    length: int | None


def initializers(path: str | Path) -> Iterator[Initializer]:
    """The weights of a graph, in the order of the file."""
    with Path(path).open("rb") as file:
        for graph in _messages(file, whole_file(file), _GRAPH):
            for tensor in _messages(file, graph, _INITIALIZER):
                yield _initializer(file, tensor)


def _initializer(file: BinaryIO, tensor: range) -> Initializer:
    name, data_type, raw = "", 0, range(0)
    dims: list[int] = []
    outside: dict[str, str] = {}
    for field, value in _fields(file, tensor):
        if field == _NAME:
            name = _text(file, value)
        elif field == _DIMS:
            dims += [value] if isinstance(value, int) else _varints(file, value)
        elif field == _DATA_TYPE and isinstance(value, int):
            data_type = value
        elif field == _RAW_DATA and isinstance(value, range):
            raw = value
        elif field == _EXTERNAL_DATA and isinstance(value, range):
            texts = {part: _text(file, where) for part, where in _fields(file, value)}
            outside[texts.get(_KEY, "")] = texts.get(_VALUE, "")
    offset, length = (outside.get(key, "") for key in ("offset", "length"))
    return Initializer(
        name=name,
        dims=tuple(dims),
        data_type=data_type,
        raw=raw,
        location=outside.get("location"),
        offset=int(offset) if offset.isdecimal() else 0,
        length=int(length) if length.isdecimal() else None,
    )


def whole_file(file: BinaryIO) -> range:
    """The message that a file is."""
    return range(file.seek(0, io.SEEK_END))


def _messages(file: BinaryIO, inside: range, wanted: int) -> Iterator[range]:
    """Where the messages of one field lie."""
    for field, value in _fields(file, inside):
        if field == wanted and isinstance(value, range):
            yield value


def _fields(file: BinaryIO, inside: range) -> Iterator[_Field]:
    """Walk over a message as strict_fields does; ends early where the bytes are none."""
    with contextlib.suppress(BrokenMessageError):
        yield from strict_fields(file, inside)


def strict_fields(file: BinaryIO, inside: range) -> Iterator[_Field]:
    """Walk over the integers (unsigned, 64 bits) and the strings and messages of a message.

    Raises:
        BrokenMessageError: the bytes are no message, or one that a reader of protobuf could understand in another way.
    """
    place = inside.start
    while place < inside.stop:
        file.seek(place)
        tag = _varint(file)
        field, wire = divmod(tag, 8)
        if not 8 <= tag < 1 << 32:
            raise BrokenMessageError(f"no field begins at byte {place}")
        if wire == _VARINT:
            number = _varint(file)
            place = file.tell()
            if number < 0 or place > inside.stop:
                raise BrokenMessageError(f"field {field} is cut at byte {place}")
            yield field, number & 0xFFFFFFFFFFFFFFFF
        elif wire == _BYTES:
            size = _varint(file)
            value = range(file.tell(), file.tell() + max(size, 0))
            place = value.stop
            if size < 0 or place > inside.stop:
                raise BrokenMessageError(f"field {field} at byte {value.start} leaves its message")
            yield field, value
        elif wire in (_FIXED64, _FIXED32):
            place = file.tell() + (8 if wire == _FIXED64 else 4)
            if place > inside.stop:
                raise BrokenMessageError(f"field {field} is cut at byte {inside.stop}")
        else:  # groups, which ONNX does not use
            raise BrokenMessageError(f"field {field} at byte {place} has wire type {wire}")


def strict_text(file: BinaryIO, value: int | range) -> str:
    """A name, or another short text, in UTF-8.

    Raises:
        BrokenMessageError: it is an integer, no UTF-8, too long, or has characters that cannot be printed.
    """
    if isinstance(value, int) or len(value) > _LONGEST_TEXT:
        raise BrokenMessageError("a name is a number, or too long")
    file.seek(value.start)
    text = file.read(len(value)).decode("utf-8", errors="replace")
    if not text.isprintable() or "\ufffd" in text:
        raise BrokenMessageError(f"a name at byte {value.start} cannot be printed")
    return text


def strict_varints(file: BinaryIO, inside: range) -> list[int]:
    """Integers of a packed field.

    Raises:
        BrokenMessageError: the bytes are none.
    """
    numbers = _varints(file, inside)
    if file.tell() != inside.stop:
        raise BrokenMessageError(f"the integers at byte {inside.start} leave their field")
    return [number & 0xFFFFFFFFFFFFFFFF for number in numbers]


def _text(file: BinaryIO, value: int | range) -> str:
    if isinstance(value, int) or len(value) > _LONGEST_TEXT:
        return ""
    file.seek(value.start)
    return file.read(len(value)).decode("utf-8", errors="replace")


def _varints(file: BinaryIO, inside: range) -> list[int]:
    """Integers of a packed field; ends early where the bytes are none."""
    numbers = []
    file.seek(inside.start)
    while file.tell() < inside.stop:
        number = _varint(file)
        if number < 0:
            break
        numbers.append(number)
    return numbers


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
