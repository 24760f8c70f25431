"""One hash of what a dataset holds, whatever files it came from."""

from __future__ import annotations

import hashlib

import numpy as np
import pyarrow as pa

from ipsrec_onnx.ids import string_buffers


class Fingerprint:
    """SHA-256 over the ids, the order of every history, and the provider of every item.

    Bytes are hashed in a fixed form (little-endian, in the order of the ids), and each part by a hash of its own, so
    the result depends neither on how the rows were cut into pieces nor on any library's file format.
    """

    def __init__(self) -> None:
        self._parts: dict[str, hashlib._Hash] = {}

    def add_numbers(self, part: str, numbers: np.ndarray) -> None:
        """Continue a part with (n,) integers; hashed as int64."""
        self._part(part).update(np.ascontiguousarray(numbers, dtype="<i8").data)

    def add_ids(self, part: str, ids: pa.Array) -> None:
        """Continue a part with (n,) int64 or large_string ids; the integer 17 and the string "17" differ."""
        if pa.types.is_int64(ids.type):
            self.add_numbers(f"{part} int64", ids.to_numpy())
            return
        data, offsets = string_buffers(ids)
        self.add_numbers(f"{part} string lengths", np.diff(offsets))
        self._part(f"{part} string").update(np.ascontiguousarray(data[offsets[0] : offsets[-1]]).data)

    def hexdigest(self) -> str:
        """The fingerprint: 64 hexadecimal digits."""
        whole = hashlib.sha256()
        for name in sorted(self._parts):
            whole.update(f"{name}={self._parts[name].hexdigest()}\n".encode())
        return whole.hexdigest()

    def _part(self, name: str) -> hashlib._Hash:
        return self._parts.setdefault(name, hashlib.sha256())
