"""Ways to spoil bytes: anywhere in a file, and where a format's own reader would not stop at once.

Every function takes a seeded generator, so that the same seed gives the same bytes.
"""

from __future__ import annotations

import base64
import random
from collections.abc import Callable, Sequence
from typing import Any

import onnx

# Numbers at which arithmetic and allocations go wrong.
NUMBERS = (
    0,
    1,
    -1,
    2,
    7,
    127,
    128,
    255,
    256,
    65_535,
    2**31 - 1,
    2**31,
    -(2**31),
    2**32 - 1,
    2**40,
    2**63 - 1,
    -(2**63),
)
_WORDS = (
    b"",
    b"\0",
    b"\xff\xfe",
    b"NaN",
    b"1e400",
    b"-1",
    b"null",
    b"[]",
    b"{}",
    b'"',
    b"0x10",
    b"\xed\xa0\x80",
    b"../",
)

Mutate = Callable[[bytes, random.Random], bytes]


def mutate_bytes(data: bytes, rng: random.Random, *, others: Sequence[bytes] = ()) -> bytes:
    """Change one to four things anywhere; `others` are files to splice with."""
    changed = bytearray(data)
    for _ in range(rng.choice((1, 1, 1, 2, 4))):
        place = rng.randrange(len(changed) + 1)
        size = min(rng.choice((1, 2, 4, 8, 16, 100)), len(changed) - place)
        way = rng.randrange(9)
        if way in (0, 1) and size:
            changed[place] ^= 1 << rng.randrange(8)
        elif way == 2 and size:
            changed[place] = rng.randrange(256)
        elif way == 3:
            width = rng.choice((1, 2, 4, 8))
            number = rng.choice(NUMBERS) & (256**width - 1)
            changed[place : place + width] = number.to_bytes(width, rng.choice(("little", "big")))
        elif way == 4:
            del changed[place : place + size]
        elif way == 5:
            changed[place:place] = changed[place : place + size]
        elif way == 6:
            changed[place : place + size] = bytes(size)
        elif way == 7:
            changed[place:place] = rng.choice(_WORDS)
        elif others and rng.random() < 0.5:
            other = rng.choice(others)
            changed[place:] = other[rng.randrange(len(other) + 1) :]
        else:
            del changed[place:]
    return bytes(changed)


def mutate_parquet(data: bytes, rng: random.Random) -> bytes:
    """Spoil the footer but keep its length true and the magic in place, or spoil the pages and keep the footer."""
    size = int.from_bytes(data[-8:-4], "little") if len(data) > 12 else 0
    if not 0 < size <= len(data) - 12:
        return mutate_bytes(data, rng)
    pages, footer = data[: -8 - size], data[-8 - size : -8]
    if rng.random() < 0.6:
        footer = _mutate_thrift(footer, rng)
    else:
        at = rng.randrange(4, len(pages)) if len(pages) > 4 else 0
        pages = pages[:at] + _mutate_thrift(pages[at : at + 40], rng) + pages[at + 40 :]
    return pages + footer + len(footer).to_bytes(4, "little") + data[-4:]


def _mutate_thrift(data: bytes, rng: random.Random) -> bytes:
    """Compact thrift is varints and strings: put another varint in a varint's place, most of the time."""
    if not data or rng.random() < 0.4:
        return mutate_bytes(data, rng)
    start = rng.randrange(len(data))
    stop = start
    while stop < len(data) - 1 and data[stop] >= 0x80:
        stop += 1
    number = rng.choice(NUMBERS)
    zigzag = ((number << 1) ^ (number >> 63)) & (2**64 - 1)
    return data[:start] + _varint(zigzag) + data[stop + 1 :]


def _varint(number: int) -> bytes:
    out = bytearray()
    while number >= 0x80:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    return bytes(out + bytes([number]))


def mutate_model(data: bytes, rng: random.Random) -> bytes:
    """Change fields of the protobuf: the bytes stay a message, which ONNX Runtime and the metadata's readers see."""
    try:
        proto = onnx.load_from_string(data)
    except Exception:  # spoilt already: the protobuf library has several kinds of errors for that
        return mutate_bytes(data, rng)
    for _ in range(rng.choice((1, 1, 2, 3))):
        if rng.random() < 0.35 and proto.metadata_props:
            entry = rng.choice(proto.metadata_props)
            entry.value = _mutate_text(entry.value, rng)
        else:
            message = rng.choice(_messages(proto))
            _mutate_field(message, rng)
    return proto.SerializeToString()


def _messages(message: Any) -> list[Any]:
    """A message and all below it."""
    found = [message]
    for field, value in message.ListFields():
        if field.message_type is not None and field.name != "metadata_props":
            for part in value if _is_repeated(field) else [value]:
                found += _messages(part)
    return found


def _is_repeated(field: Any) -> bool:
    return bool(field.is_repeated if hasattr(field, "is_repeated") else field.label == field.LABEL_REPEATED)


def _mutate_field(message: Any, rng: random.Random) -> None:
    """Change one field: a number, some bytes, or what a list holds. A value that the field does not take is left."""
    fields = list(message.DESCRIPTOR.fields) if rng.random() < 0.2 else [field for field, _ in message.ListFields()]
    if not fields:
        return
    field = rng.choice(fields)
    value = getattr(message, field.name)
    if _is_repeated(field):
        way = rng.randrange(4)
        if way == 0 and len(value):
            del value[rng.randrange(len(value))]
        elif way == 1 and len(value):
            value.extend([value[rng.randrange(len(value))]])
        elif field.message_type is None:
            if len(value):
                at = rng.randrange(len(value))
                _try(lambda: value.__setitem__(at, _other(value[at], rng)))
            else:
                _try(lambda: value.append(rng.choice(NUMBERS)))
    elif field.message_type is None:
        _try(lambda: setattr(message, field.name, _other(value, rng)))


def _try(change: Callable[[], None]) -> None:
    try:
        change()
    except (TypeError, ValueError, OverflowError):
        return


def _other(value: Any, rng: random.Random) -> Any:
    if isinstance(value, bytes):
        return mutate_bytes(value, rng)
    if isinstance(value, str):
        return _mutate_text(value, rng)
    if isinstance(value, float):
        return rng.choice((float("nan"), float("inf"), -1.0, 3e38))
    return rng.choice((value + 1, value - 1, *NUMBERS))


def _mutate_text(text: str, rng: random.Random) -> str:
    """Change text; the bytes below it, where it is base64 (the catalog)."""
    if len(text) > 100 and rng.random() < 0.7:
        try:
            inside = base64.b64decode(text, validate=True)
        except ValueError:
            pass
        else:
            return base64.b64encode(mutate_bytes(inside, rng)).decode("ascii")
    return mutate_bytes(text.encode(), rng).decode("utf-8", errors="ignore")
