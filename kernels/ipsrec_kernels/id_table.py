"""Finds the index (1..n) of the caller's ids in bulk: open addressing over int64 or string ids.

Kernels are serial and release the GIL: parallelism comes from worker threads that each own a chunk (Numba's workqueue
layer must not be entered from two threads).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numba import njit

from ipsrec_kernels.array_types import Int32Array, Int64Array, UInt8Array
from ipsrec_kernels.check import check_array, check_offsets
from ipsrec_kernels.padding import PADDING

_MAX_IDS = np.iinfo(np.int32).max - 1


@dataclass(frozen=True, eq=False)
class Int64IdTable:
    """Finds int64 ids.

    Attributes:
        slots: (capacity, 2) int64, id and index side by side so that a hit costs one cache line; index 0 is an empty
            slot. The capacity is a power of two, at least twice the number of ids.
    """

    slots: Int64Array

    @classmethod
    def build(cls, ids: Int64Array) -> Int64IdTable:
        """Number ids 1..n in the order given.

        Args:
            ids: (n,) int64, all different.

        Raises:
            ValueError: an id is there twice (the message counts rows from 0), or ids are no int64.
        """
        ids = check_array("ids", ids, dtype=np.int64)
        slots = np.zeros((_capacity(len(ids)), 2), np.int64)
        first, second = _insert_int64(ids, slots)
        if second >= 0:
            raise ValueError(f"id {ids[second]} is there twice (rows {first} and {second})")
        return cls(slots)

    def find(self, ids: Int64Array) -> Int32Array:
        """Look ids up.

        Args:
            ids: (m,) int64.

        Returns:
            (m,) int32, 1..n, or PADDING for an id that is not here.
        """
        ids = check_array("ids", ids, dtype=np.int64)
        index = np.empty(len(ids), np.int32)
        _find_int64(ids, self.slots, index)
        return index


@dataclass(frozen=True, eq=False)
class StringIdTable:
    """Finds ids given as UTF-8 bytes.

    Attributes:
        slots: (capacity, 2) int64, hash and index side by side; index 0 is an empty slot.
        data: (bytes,) uint8, the ids end to end; the caller's buffer, not copied.
        offsets: (n + 1,) int64 into data.
    """

    slots: Int64Array
    data: UInt8Array
    offsets: Int64Array

    @classmethod
    def build(cls, data: UInt8Array, offsets: Int64Array) -> StringIdTable:
        """Number strings 1..n in the order given.

        Args:
            data: (bytes,) uint8, all strings end to end; kept, so it must not change afterwards.
            offsets: (n + 1,) int64 into data; the first need not be 0.

        Raises:
            ValueError: an id is there twice (the message counts rows from 0), or offsets do not fit data.
        """
        data, offsets = _check_strings(data, offsets)
        slots = np.zeros((_capacity(len(offsets) - 1), 2), np.int64)
        first, second = _insert_strings(data, offsets, slots)
        if second >= 0:
            text = data[offsets[second] : offsets[second + 1]].tobytes().decode("utf-8", errors="replace")
            raise ValueError(f"id {text!r} is there twice (rows {first} and {second})")
        return cls(slots, data, offsets)

    def find(self, data: UInt8Array, offsets: Int64Array) -> Int32Array:
        """Look strings up.

        Args:
            data: (bytes,) uint8, all strings end to end.
            offsets: (m + 1,) int64 into data; the first need not be 0.

        Returns:
            (m,) int32, 1..n, or PADDING for an id that is not here.

        Raises:
            ValueError: offsets do not fit data.
        """
        data, offsets = _check_strings(data, offsets)
        index = np.empty(len(offsets) - 1, np.int32)
        _find_strings(data, offsets, self.slots, self.data, self.offsets, index)
        return index


IdTable: TypeAlias = Int64IdTable | StringIdTable


def _check_strings(data: UInt8Array, offsets: Int64Array) -> tuple[UInt8Array, Int64Array]:
    data = check_array("data", data, dtype=np.uint8)
    return data, check_offsets("offsets", offsets, num_values=len(data))


def _capacity(num_ids: int) -> int:
    """A power of two that keeps the load at 0.5 or below: linear probing stays short."""
    if num_ids > _MAX_IDS:
        raise ValueError(f"{num_ids} ids, expected at most {_MAX_IDS}: an index is an int32")
    return 1 << max(1, (2 * num_ids - 1).bit_length())


@njit(cache=True, nogil=True)
def _mix(x):
    """Spread every bit over all 64 (the finaliser of MurmurHash3): ids are often consecutive or share low bits."""
    x ^= x >> np.uint64(33)
    x *= np.uint64(0xFF51AFD7ED558CCD)
    x ^= x >> np.uint64(33)
    x *= np.uint64(0xC4CEB9FE1A85EC53)
    return x ^ (x >> np.uint64(33))


@njit(cache=True, nogil=True)
def _insert_int64(ids, slots):
    """Fill slots; returns (-1, -1), or the rows of the first id that is there twice."""
    mask = np.uint64(len(slots) - 1)
    for row in range(len(ids)):
        slot = _mix(np.uint64(ids[row])) & mask
        while slots[slot, 1] != PADDING:
            if slots[slot, 0] == ids[row]:
                return slots[slot, 1] - 1, row
            slot = (slot + np.uint64(1)) & mask
        slots[slot, 0] = ids[row]
        slots[slot, 1] = row + 1
    return -1, -1


@njit(cache=True, nogil=True)
def _find_int64(ids, slots, out):
    mask = np.uint64(len(slots) - 1)
    for row in range(len(ids)):
        slot = _mix(np.uint64(ids[row])) & mask
        while slots[slot, 1] != PADDING and slots[slot, 0] != ids[row]:
            slot = (slot + np.uint64(1)) & mask
        out[row] = slots[slot, 1]


@njit(cache=True, nogil=True)
def _hash_string(data, start, stop):
    """Hash of data[start:stop], 8 bytes at a time (LLVM makes one load of the inner loop)."""
    state = _mix(np.uint64(stop - start) + np.uint64(0x9E3779B97F4A7C15))
    at = start
    while at + 8 <= stop:
        word = np.uint64(0)
        for byte in range(8):
            word |= np.uint64(data[at + byte]) << np.uint64(8 * byte)
        state = _mix(state ^ word)
        at += 8
    word = np.uint64(0)
    for byte in range(stop - at):
        word |= np.uint64(data[at + byte]) << np.uint64(8 * byte)
    return np.int64(_mix(state ^ word))


@njit(cache=True, nogil=True)
def _same_bytes(data, start, stop, other, other_start, other_stop):
    if stop - start != other_stop - other_start:
        return False
    for byte in range(stop - start):  # noqa: SIM110, Numba has no all() over a generator
        if data[start + byte] != other[other_start + byte]:
            return False
    return True


@njit(cache=True, nogil=True)
def _insert_strings(data, offsets, slots):
    """Fill slots; returns (-1, -1), or the rows of the first id that is there twice."""
    mask = np.uint64(len(slots) - 1)
    for row in range(len(offsets) - 1):
        start, stop = offsets[row], offsets[row + 1]
        key = _hash_string(data, start, stop)
        slot = np.uint64(key) & mask
        while slots[slot, 1] != PADDING:
            if slots[slot, 0] == key:
                there = slots[slot, 1] - 1
                if _same_bytes(data, start, stop, data, offsets[there], offsets[there + 1]):
                    return there, row
            slot = (slot + np.uint64(1)) & mask
        slots[slot, 0] = key
        slots[slot, 1] = row + 1
    return -1, -1


@njit(cache=True, nogil=True)
def _find_strings(data, offsets, slots, table_data, table_offsets, out):
    mask = np.uint64(len(slots) - 1)
    for row in range(len(offsets) - 1):
        start, stop = offsets[row], offsets[row + 1]
        key = _hash_string(data, start, stop)
        slot = np.uint64(key) & mask
        index = PADDING
        while slots[slot, 1] != PADDING:
            if slots[slot, 0] == key:
                there = slots[slot, 1] - 1
                if _same_bytes(data, start, stop, table_data, table_offsets[there], table_offsets[there + 1]):
                    index = there + 1
                    break
            slot = (slot + np.uint64(1)) & mask
        out[row] = index
