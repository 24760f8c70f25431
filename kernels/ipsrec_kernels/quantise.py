"""Items and users in int8, and how far that is from the numbers they had.

A block of items has one scale, a user one of its own: v ~ unit * q with q in -127..127. The instruction that multiplies
(vpdpbusd) wants one side unsigned: items are stored as q + 128, and each user knows 128 * sum(q) to take off again.
Kernels only; serial, GIL released (Numba's workqueue layer must not be entered from two threads).
"""

from __future__ import annotations

from typing import Final

import numpy as np
from numba import njit

from ipsrec_kernels.padding import PADDING

BLOCK_ITEMS: Final = 256  # items that share a scale and a bound; sorted by norm, they are of one size
OFFSET: Final = 128  # what is added to an item's q
LONGEST_INT8: Final = 1 << 14  # dims up to which no int32 sum of the scan can overflow: 4 * 128 * 128 * 2^14 = 2^30
_LEVELS = 127.0  # largest |q|


@njit(cache=True, nogil=True)
def quantise_items(embeddings, item_at, panels, units, errors, sizes):
    """Fill the panels block by block.

    Args:
        embeddings: (rows, D) float32, D a multiple of 4.
        item_at: (blocks * BLOCK_ITEMS,) int32, the row of each place; PADDING after the last of a block.
        panels: (P, D / 4, W, 4) uint8 out, filled with OFFSET: a place without an item is a vector of zeros.
        units: (blocks,) float64 out, the scale of the block.
        errors: (blocks,) float64 out, the largest Euclidean norm of v - unit * q.
        sizes: (blocks,) float64 out, the largest Euclidean norm of unit * q.
    """
    dims, width = embeddings.shape[1], panels.shape[2]
    for block in range(len(units)):
        first, stop = block * BLOCK_ITEMS, (block + 1) * BLOCK_ITEMS
        while item_at[stop - 1] == PADDING:
            stop -= 1
        largest = np.float32(0.0)
        for place in range(first, stop):
            item = item_at[place]
            for d in range(dims):
                value = abs(embeddings[item, d])
                largest = value if value > largest else largest
        unit = np.float64(largest) / _LEVELS if largest > 0.0 else 1.0
        factor = 1.0 / unit
        worst_error, worst_size = 0.0, 0.0
        for place in range(first, stop):
            item, panel, lane = item_at[place], place // width, place % width
            error, size = 0.0, 0.0
            for step in range(dims >> 2):
                for byte in range(4):
                    value = np.float64(embeddings[item, 4 * step + byte])
                    level = np.rint(value * factor)
                    rest = value - unit * level
                    error += rest * rest
                    size += level * level
                    panels[panel, step, lane, byte] = np.uint8(np.int32(level) + OFFSET)
            worst_error = error if error > worst_error else worst_error
            worst_size = size if size > worst_size else worst_size
        units[block], errors[block], sizes[block] = unit, np.sqrt(worst_error), unit * np.sqrt(worst_size)


@njit(cache=True, nogil=True)
def quantise_users(users, levels, units, errors, offsets):
    """Quantise each user.

    Args:
        users: (B, D) float32, D a multiple of 4.
        levels: (B, D) int8 out, q.
        units: (B,) float64 out, the scale of the user.
        errors: (B,) float64 out, the Euclidean norm of u - unit * q.
        offsets: (B,) int32 out, OFFSET * sum(q).
    """
    dims = users.shape[1]
    for u in range(len(users)):
        largest = np.float32(0.0)
        for d in range(dims):
            value = abs(users[u, d])
            largest = value if value > largest else largest
        unit = np.float64(largest) / _LEVELS if largest > 0.0 else 1.0
        factor = 1.0 / unit
        error, total = 0.0, np.int32(0)
        for d in range(dims):
            value = np.float64(users[u, d])
            level = np.rint(value * factor)
            rest = value - unit * level
            error += rest * rest
            total += np.int32(level)
            levels[u, d] = np.int8(level)
        units[u], errors[u], offsets[u] = unit, np.sqrt(error), OFFSET * total
