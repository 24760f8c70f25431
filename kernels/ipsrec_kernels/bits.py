"""Float32 as integers: their order, and their bits."""

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import ir
from numba import njit, types
from numba.extending import intrinsic


@intrinsic
def _as_float(typing_context: Any, bits: Any) -> tuple[Any, Any]:
    """The float32 with the bits of an int32."""

    def generate(context: Any, builder: ir.IRBuilder, signature: Any, arguments: Any) -> ir.Value:
        return builder.bitcast(arguments[0], ir.FloatType())

    return types.float32(types.int32), generate


@intrinsic
def _as_bits(typing_context: Any, number: Any) -> tuple[Any, Any]:
    """The bits of a float32 as an int32."""

    def generate(context: Any, builder: ir.IRBuilder, signature: Any, arguments: Any) -> ir.Value:
        return builder.bitcast(arguments[0], ir.IntType(32))

    return types.int32(types.float32), generate


@njit(cache=True, nogil=True)
def to_order(number):
    """Kernel: an int32 for a float32 that is not NaN, in the order of the numbers; -0.0 is 0.0."""
    bits = _as_bits(number if number != np.float32(0.0) else np.float32(0.0))
    return np.int32(bits ^ ((bits >> np.int32(31)) & np.int32(0x7FFFFFFF)))


@njit(cache=True, nogil=True)
def from_order(order):
    """Kernel: the float32 that to_order made this int32 of."""
    return _as_float(np.int32(order ^ ((order >> np.int32(31)) & np.int32(0x7FFFFFFF))))
