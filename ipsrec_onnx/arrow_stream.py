"""How many bytes an Arrow IPC stream unpacks to, found out before it does.

A compressed buffer says its length itself, and Arrow allocates what it says. So the lengths are summed up first. They
lie where the record batch's metadata say, a flatbuffer: tables of fields that are found through a table of places.
"""

from __future__ import annotations

import struct

import pyarrow as pa

# Numbers of the fields that are read, as in the Arrow format's Message.fbs.
_HEADER = 2  # of Message
_BUFFERS, _COMPRESSION = 2, 3  # of RecordBatch
_NOT_COMPRESSED = -1  # instead of a length: this one buffer is stored as it is
_LENGTH_BYTES = 8


def unpacked_bytes(stream: pa.Buffer) -> int:
    """Sum up the buffers of all record batches.

    Raises:
        ValueError: the stream is broken, or has dictionaries.
        pa.ArrowException: likewise.
    """
    total = 0
    for message in pa.ipc.MessageReader.open_stream(stream):
        if message.type == "dictionary":
            raise ValueError("an Arrow stream has dictionaries, expected plain columns")
        if message.type == "record batch":
            try:
                total += _batch_bytes(message.metadata.to_pybytes(), message.body)
            except struct.error as error:
                raise ValueError(f"no whole Arrow stream: a record batch's metadata is broken: {error}") from error
    return total


def _batch_bytes(metadata: bytes, body: pa.Buffer | None) -> int:
    message = _follow(metadata, 0)
    header = _field(metadata, message, _HEADER)
    if header is None:
        return 0
    batch = _follow(metadata, header)
    is_compressed = _field(metadata, batch, _COMPRESSION) is not None
    place = _field(metadata, batch, _BUFFERS)
    if place is None:
        return 0
    vector = _follow(metadata, place)
    (count,) = _unpack("<I", metadata, vector)
    view = memoryview(b"" if body is None else body)
    total = 0
    for number in range(count):
        offset, length = _unpack("<qq", metadata, vector + 4 + 16 * number)
        if not 0 <= offset <= offset + max(length, 0) <= len(view) or length < 0:
            raise ValueError("no whole Arrow stream: a buffer leaves its record batch")
        if is_compressed and length:
            (unpacked,) = _unpack("<q", view, offset)
            length = length - _LENGTH_BYTES if unpacked == _NOT_COMPRESSED else unpacked
            if length < 0:
                raise ValueError("no whole Arrow stream: a buffer's length is negative")
        total += length
    return total


def _field(metadata: bytes, table: int, number: int) -> int | None:
    """Place of a table's field; None where the table has none."""
    places = table - _unpack("<i", metadata, table)[0]
    (size,) = _unpack("<H", metadata, places)
    if 4 + 2 * number + 2 > size:
        return None
    (offset,) = _unpack("<H", metadata, places + 4 + 2 * number)
    return table + offset if offset else None


def _follow(metadata: bytes, place: int) -> int:
    """Where the offset at a place leads to."""
    return place + int(_unpack("<I", metadata, place)[0])


def _unpack(form: str, data: bytes | memoryview, place: int) -> tuple[int, ...]:
    """As struct.unpack_from, which would count a negative place from the end."""
    if place < 0:
        raise struct.error(f"place {place}")
    return struct.unpack_from(form, data, place)
