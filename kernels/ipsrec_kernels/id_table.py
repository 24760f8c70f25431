"""Finds the index (1..n) of the caller's ids in bulk: open addressing over int64 or string ids.

A table of a million ids is larger than the caches, and a look-up waits for memory: each slot is asked for _AHEAD ids
early. Measured and dropped, for they were no faster: a perfect hash (one slot to look at), lines of four slots compared
at once, and items and providers looked up in one loop.

Kernels are serial and release the GIL: parallelism comes from worker threads that each own a chunk (Numba's workqueue
layer must not be entered from two threads).
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numba import njit

from ipsrec_kernels.array_types import Int32Array, Int64Array, UInt8Array
from ipsrec_kernels.check import check_array, check_offsets
from ipsrec_kernels.memory import load_word, prefetch
from ipsrec_kernels.padding import PADDING

_MAX_IDS = 1_000_000_000  # a table of 64 GB; an index is an int32, and _home spreads over less than 2**32 slots
_SLOTS_PER_ID = 4  # a search ends at its first slot for 7 of 8 ids; with 2.5, for 4 of 5, which is a third slower
_NEAR_SLOTS = 1 << 15  # a table of half a megabyte stays in a core's own cache: hints would only cost time
_AHEAD = 64  # ids between the hint and the look-up; 16 are too few to hide the latency, 96 gain nothing
_STEP = 32  # strings between the steps of a look-up
_RING = 4 * _STEP  # strings on their way; a power of two


@dataclass(frozen=True, eq=False)
class Int64IdTable:
    """Finds int64 ids.

    Attributes:
        slots: (capacity, 2) int64, id and index side by side so that a hit costs one cache line; index 0 is an empty
            slot. There are 4 slots an id, 64 bytes.
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
    """Slots of a table; one is always empty, which ends every search."""
    if num_ids > _MAX_IDS:
        raise ValueError(f"{num_ids} ids, expected at most {_MAX_IDS}: more make a table of over 64 GB")
    return num_ids * _SLOTS_PER_ID + 1


# Inlined: a call passes an array as seven arguments, which took half of the time of a look-up.
_inlined = functools.partial(njit, cache=True, nogil=True, inline="always")


@njit(cache=True, nogil=True)
def _mix(x):
    """Spread every bit over the upper half: ids are often consecutive or share low bits."""
    x *= np.uint64(0x9E3779B97F4A7C15)
    x ^= x >> np.uint64(32)
    return x * np.uint64(0xD6E8FEB86659FD93)


@njit(cache=True, nogil=True)
def _home(key, capacity):
    """Where the search for a key begins: the upper half of its mix, scaled to 0..capacity - 1."""
    return ((_mix(np.uint64(key)) >> np.uint64(32)) * np.uint64(capacity)) >> np.uint64(32)


@njit(cache=True, nogil=True)
def _next(slot, capacity):
    slot += np.uint64(1)
    return slot if slot < np.uint64(capacity) else np.uint64(0)


@njit(cache=True, nogil=True)
def _insert_int64(ids, slots):
    """Fill slots; returns (-1, -1), or the rows of the first id that is there twice."""
    hints = len(ids) - _AHEAD if len(slots) > _NEAR_SLOTS else 0
    for row in range(len(ids)):
        if row < hints:
            prefetch(slots, _home(ids[row + _AHEAD], len(slots)))
        slot = _home(ids[row], len(slots))
        while slots[slot, 1] != PADDING:
            if slots[slot, 0] == ids[row]:
                return slots[slot, 1] - 1, row
            slot = _next(slot, len(slots))
        slots[slot, 0] = ids[row]
        slots[slot, 1] = row + 1
    return -1, -1


@njit(cache=True, nogil=True)
def _find_int64(ids, slots, out):
    hints = len(ids) - _AHEAD if len(slots) > _NEAR_SLOTS else 0
    for row in range(len(ids)):
        if row < hints:
            prefetch(slots, _home(ids[row + _AHEAD], len(slots)))
        slot = _home(ids[row], len(slots))
        while slots[slot, 0] != ids[row] and slots[slot, 1] != PADDING:
            slot = _next(slot, len(slots))
        out[row] = slots[slot, 1]


@_inlined()
def _end_word(data, start, stop):
    """The last eight bytes of data[start:stop] as one number, or all of them where they are fewer."""
    if stop - start >= 8:
        return load_word(data, stop - 8)
    if start + 8 <= len(data) and stop > start:
        beyond = np.uint64(8 * (8 - (stop - start)))
        return load_word(data, start) << beyond >> beyond
    word = np.uint64(0)
    for byte in range(stop - start):
        word |= np.uint64(data[start + byte]) << np.uint64(8 * byte)
    return word


@_inlined()
def hash_string(data, start, stop):
    """Hash of data[start:stop], 8 bytes at a time; the length counts, so that a NUL at the end does."""
    state = _mix(np.uint64(stop - start) + np.uint64(1))
    for at in range(start, stop - 8, 8):
        state = _mix(state ^ load_word(data, at))
        state ^= state >> np.uint64(32)
    return np.int64(_mix(state ^ _end_word(data, start, stop)))


@_inlined()
def _same_bytes(data, start, stop, other, other_start, other_stop):
    if stop - start != other_stop - other_start:
        return False
    for at in range(0, stop - start - 8, 8):
        if load_word(data, start + at) != load_word(other, other_start + at):
            return False
    return _end_word(data, start, stop) == _end_word(other, other_start, other_stop)


@njit(cache=True, nogil=True)
def _insert_strings(data, offsets, slots):
    """Fill slots; returns (-1, -1), or the rows of the first id that is there twice."""
    for row in range(len(offsets) - 1):
        start, stop = offsets[row], offsets[row + 1]
        key = hash_string(data, start, stop)
        slot = _home(key, len(slots))
        while slots[slot, 1] != PADDING:
            if slots[slot, 0] == key:
                there = slots[slot, 1] - 1
                if _same_bytes(data, start, stop, data, offsets[there], offsets[there + 1]):
                    return there, row
            slot = _next(slot, len(slots))
        slots[slot, 0] = key
        slots[slot, 1] = row + 1
    return -1, -1


@_inlined()
def _search_hash(slots, slot, key):
    """The first slot, from `slot` on, that holds this hash or is empty."""
    while slots[slot, 0] != key and slots[slot, 1] != PADDING:
        slot = _next(slot, len(slots))
    return slot


@njit(cache=True, nogil=True)
def _find_strings(data, offsets, slots, table_data, table_offsets, out):
    """A look-up waits for memory three times: slot, offset, bytes. Each is asked for _STEP strings before it is read.

    So every turn takes four strings one step further each; what is known of a string waits in a ring.
    """
    num_strings = len(offsets) - 1
    hashes, places = np.empty(_RING, np.int64), np.empty(_RING, np.uint64)
    for turn in range(num_strings + 3 * _STEP):
        row = turn
        if row < num_strings:
            key = hash_string(data, offsets[row], offsets[row + 1])
            slot = _home(key, len(slots))
            hashes[row & (_RING - 1)] = key
            places[row & (_RING - 1)] = slot
            prefetch(slots, slot)
        row = turn - _STEP
        if 0 <= row < num_strings:
            slot = _search_hash(slots, places[row & (_RING - 1)], hashes[row & (_RING - 1)])
            places[row & (_RING - 1)] = slot
            prefetch(table_offsets, slots[slot, 1] - 1)
        row = turn - 2 * _STEP
        if 0 <= row < num_strings:
            index = slots[places[row & (_RING - 1)], 1]
            if index != PADDING:
                prefetch(table_data, table_offsets[index - 1])
                prefetch(table_data, table_offsets[index] - 1)  # its end may lie in another line
        row = turn - 3 * _STEP
        if 0 <= row < num_strings:
            start, stop, slot = offsets[row], offsets[row + 1], places[row & (_RING - 1)]
            while slots[slot, 1] != PADDING:
                there = slots[slot, 1] - 1
                if _same_bytes(data, start, stop, table_data, table_offsets[there], table_offsets[there + 1]):
                    break
                slot = _search_hash(slots, _next(slot, len(slots)), hashes[row & (_RING - 1)])  # an equal hash, no more
            out[row] = slots[slot, 1]
