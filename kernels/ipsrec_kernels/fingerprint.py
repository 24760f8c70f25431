"""Hashes lists of ids to one number each: what tells a changed history from one that stayed as it was.

The numbers are kept in files, so they are the same on every machine; whoever changes them raises FINGERPRINT_VERSION.
They find changes, not forgers: two lists of one fingerprint can be computed by anybody who wants to.

Kernels are serial and release the GIL: parallelism comes from worker threads that each own a chunk (Numba's workqueue
layer must not be entered from two threads).
"""

from __future__ import annotations

from typing import Final

import numpy as np
from numba import njit

from ipsrec_kernels.array_types import Int64Array, UInt8Array, UInt64Array
from ipsrec_kernels.check import check_array, check_offsets
from ipsrec_kernels.id_table import hash_string

FINGERPRINT_VERSION: Final = 1


def string_words(data: UInt8Array, offsets: Int64Array) -> UInt64Array:
    """Hash strings, by bytes and length.

    Args:
        data: (bytes,) uint8, all strings end to end.
        offsets: (n + 1,) int64 into data; the first need not be 0.

    Returns:
        (n,) uint64.

    Raises:
        ValueError: offsets do not fit data.
    """
    data = check_array("data", data, dtype=np.uint8)
    offsets = check_offsets("offsets", offsets, num_values=len(data))
    words = np.empty(len(offsets) - 1, np.uint64)
    _hash_strings(data, offsets, words)
    return words


def mix_words(states: UInt64Array, words: UInt64Array) -> UInt64Array:
    """Take one word more into each hash.

    Args:
        states: (n,) uint64, the hashes so far.
        words: (n,) uint64.

    Returns:
        (n,) uint64.

    Raises:
        ValueError: not as many words as hashes, or a wrong dtype.
    """
    states, words = check_array("states", states, dtype=np.uint64), check_array("words", words, dtype=np.uint64)
    if len(states) != len(words):
        raise ValueError(f"{len(words)} words, expected {len(states)}, one for each hash")
    mixed = np.empty(len(states), np.uint64)
    _mix_words(states, words, mixed)
    return mixed


def mix_lists(states: UInt64Array, words: UInt64Array, offsets: Int64Array) -> UInt64Array:
    """Take a list more into each hash: its length, then its words in their order.

    Args:
        states: (n,) uint64, the hashes so far.
        words: (N,) uint64, one for each id, lists end to end.
        offsets: (n + 1,) int64; list b is words[offsets[b]:offsets[b + 1]].

    Returns:
        (n,) uint64.

    Raises:
        ValueError: not as many lists as hashes, a wrong dtype, or offsets that do not fit.
    """
    states, words = check_array("states", states, dtype=np.uint64), check_array("words", words, dtype=np.uint64)
    offsets = check_offsets("offsets", offsets, num_values=len(words))
    if len(offsets) != len(states) + 1:
        raise ValueError(f"{len(offsets) - 1} lists, expected {len(states)}, one for each hash")
    mixed = np.empty(len(states), np.uint64)
    _mix_lists(states, words, offsets, mixed)
    return mixed


@njit(cache=True, nogil=True)
def _hash_strings(data, offsets, out):
    for row in range(len(out)):
        out[row] = np.uint64(hash_string(data, offsets[row], offsets[row + 1]))


@njit(cache=True, nogil=True)
def _mix_word(state, word):
    """One step of a hash: the finalizer of SplitMix64 (Steele, Lea and Flood 2014, figure 17) on state and word."""
    x = (state ^ word) + np.uint64(0x9E3779B97F4A7C15)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


@njit(cache=True, nogil=True)
def _mix_words(states, words, out):
    for row in range(len(out)):
        out[row] = _mix_word(states[row], words[row])


@njit(cache=True, nogil=True)
def _mix_lists(states, words, offsets, out):
    for row in range(len(out)):
        state = _mix_word(states[row], np.uint64(offsets[row + 1] - offsets[row]))
        for at in range(offsets[row], offsets[row + 1]):
            state = _mix_word(state, words[at])
        out[row] = state
