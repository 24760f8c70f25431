"""Reads the operator set version of an ONNX file without the onnx package, which a scoring machine does not have."""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

# Field numbers of onnx.proto; wire types of the protobuf encoding.
_OPSET_IMPORT, _DOMAIN, _VERSION = 8, 1, 2
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5


def graph_opset(path: str | Path) -> int | None:
    """Version of the default operator set; None if the file does not say. Passes over the graph unread."""
    with Path(path).open("rb") as file:
        for field, value in _fields(file, wanted=_OPSET_IMPORT):
            if field == _OPSET_IMPORT and isinstance(value, bytes):
                operator_set = dict(_fields(io.BytesIO(value), wanted=_DOMAIN))
                version = operator_set.get(_VERSION)
                if not operator_set.get(_DOMAIN) and isinstance(version, int):
                    return version
    return None


def _fields(file: BinaryIO, *, wanted: int) -> Iterator[tuple[int, int | bytes]]:
    """Walk over the fields of a message; bytes are read for the wanted field alone, and empty for others."""
    while (tag := _varint(file)) is not None:
        field, wire = divmod(tag, 8)
        if wire == _VARINT:
            yield field, _varint(file) or 0
        elif wire == _BYTES:
            size = _varint(file) or 0
            if field == wanted:
                yield field, file.read(size)
            else:
                file.seek(size, io.SEEK_CUR)
        elif wire in (_FIXED64, _FIXED32):
            file.seek(8 if wire == _FIXED64 else 4, io.SEEK_CUR)
        else:
            return  # groups are not used by ONNX: this is something else


def _varint(file: BinaryIO) -> int | None:
    """Read a base-128 integer; None at the end of the file."""
    value = shift = 0
    while byte := file.read(1):
        value |= (byte[0] & 0x7F) << shift
        shift += 7
        if byte[0] < 0x80:
            return value
    return None
