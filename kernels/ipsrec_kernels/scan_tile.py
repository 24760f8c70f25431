"""One tile of the scan for either dtype: run it, set its thresholds, and what its sums stand for.

Kernels only; serial, GIL released (Numba's workqueue layer must not be entered from two threads).
"""

from __future__ import annotations

from typing import Any, Final, NamedTuple

import numpy as np
from numba import types
from numba.extending import overload

from ipsrec_kernels.array_types import Float32Array, Int32Array
from ipsrec_kernels.score_tile import FLOAT32_TILE, INT8_TILE, float32_tile, int8_tile

# With Python's error model each division is checked, and no loop with one is vectorised.
_OPTIONS: Final[Any] = {"cache": True, "nogil": True, "error_model": "numpy"}


class TileScratch(NamedTuple):
    """What a tile reads and writes: thresholds, and on success which sums reach them, and all sums.

    Attributes:
        start: (W,) int32 or float32.
        masks: (W,) int32.
        sums: (W, items) int32 or float32.
    """

    start: Int32Array | Float32Array
    masks: Int32Array
    sums: Int32Array | Float32Array


def run_tile(items, panel, users, group, scratch):
    """Kernel: the tile of a panel of items and users[group]: a bit for each user with a sum that is large enough."""


@overload(run_tile, jit_options=_OPTIONS)
def _compile_tile(items, panel, users, group, scratch):
    """Choose by dtype, so that the int8 instruction is compiled only where there are int8 panels."""
    tile, shape = (int8_tile, INT8_TILE) if items.dtype == types.uint8 else (float32_tile, FLOAT32_TILE)
    stride = shape.items * 4  # bytes of a step: four int8 dims or one of float32

    def run(items, panel, users, group, scratch):
        steps = items.shape[1]
        return tile(
            items.ctypes.data + panel * steps * stride,
            users[group].ctypes.data,
            scratch.start.ctypes.data,
            steps,
            scratch.masks.ctypes.data,
            scratch.sums.ctypes.data,
        )

    return run


def aim(start, limits, offsets, slot):
    """Kernel: set the tile's thresholds for sums that stand for `limits` units or more; user j is in slot + j."""


@overload(aim, jit_options=_OPTIONS)
def _compile_aim(start, limits, offsets, slot):
    if start.dtype == types.int32:

        def aim_int8(start, limits, offsets, slot):
            for j in range(len(start)):
                # The quotient may be off by less than 1. q_u.q_v stays below 2^28.
                whole = np.floor(limits[j]) - 1.0
                whole = whole if whole < 2.0**29 else 2.0**29
                whole = whole if whole > -(2.0**29) else -(2.0**29)
                start[j] = -np.int32(whole) - offsets[slot + j]

        return aim_int8

    def aim_float32(start, limits, offsets, slot):
        for j in range(len(start)):
            start[j] = np.float32(limits[j])

    return aim_float32


def value_of(total, start, offset):
    """Kernel: the inner product, in units, that a tile's sum stands for."""


@overload(value_of, jit_options=_OPTIONS)
def _compile_value(total, start, offset):
    if total == types.int32:
        return lambda total, start, offset: np.float64(np.int64(total) - start - offset)
    return lambda total, start, offset: np.float64(total)
