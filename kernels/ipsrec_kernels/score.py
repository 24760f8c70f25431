"""The score of one user and one item, in float64, rounded once to float32.

score = float32(dot + P + I), as retrieve() documents it. Kernels only; serial, GIL released (Numba's workqueue layer
must not be entered from two threads).
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np
from llvmlite import ir
from numba import njit, types
from numba.extending import intrinsic

from ipsrec_kernels.vectors import constant, fma, load, pointer, vector_of

_LANES: Final = 8
_INT64 = ir.IntType(64)


@intrinsic
def dot_at(typing_context: Any, left: Any, right: Any, dims: Any) -> tuple[Any, Any]:
    """Kernel: the sum that dot64 describes, of two rows of float32 at int64 addresses.

    Numba's own loop over 8 sums is not vectorised: its rows were scored at a fifth of the speed.
    """

    def generate(context: Any, builder: ir.IRBuilder, signature: Any, arguments: Any) -> ir.Value:
        rows = [pointer(builder, address, ir.FloatType()) for address in arguments[:2]]
        kind = vector_of(ir.DoubleType(), _LANES)
        before, loop = builder.block, builder.append_basic_block("eight_dims")
        after = builder.append_basic_block("lanes")
        builder.branch(loop)
        builder.position_at_end(loop)
        at, sums = builder.phi(_INT64), builder.phi(kind)
        left, right = (builder.fpext(load(builder, row, at, _LANES), kind) for row in rows)
        added = fma(builder, left, right, sums)
        following = builder.add(at, ir.Constant(_INT64, _LANES))
        at.add_incoming(ir.Constant(_INT64, 0), before)
        at.add_incoming(following, loop)
        sums.add_incoming(constant(ir.DoubleType(), 0.0, _LANES), before)
        sums.add_incoming(added, loop)
        builder.cbranch(builder.icmp_signed("<", following, arguments[2]), loop, after)
        builder.position_at_end(after)
        total = builder.extract_element(added, ir.Constant(ir.IntType(32), 0))
        for lane in range(1, _LANES):
            total = builder.fadd(total, builder.extract_element(added, ir.Constant(ir.IntType(32), lane)))
        return total

    return types.float64(types.int64, types.int64, types.int64), generate


@njit(cache=True, nogil=True)
def dot64(users, u, items, i):
    """Inner product of two float32 rows in float64, in one fixed order.

    Lane j of 8 sums dims j, j + 8, ... from 0; then the lanes are added in order. The product of two float32 is exact
    in float64, so that the order of the additions alone decides the result, fused or not. The number of dims must be a
    multiple of 8 (pad_dims), the rows without gaps.
    """
    dims = users.shape[1]
    return dot_at(users.ctypes.data + u * dims * 4, items.ctypes.data + i * dims * 4, dims)


@njit(cache=True, nogil=True)
def age_sum(entries, start, stop, weights, wanted):
    """Sum weights[age] over the entries start..stop - 1 that equal `wanted`, oldest to newest; age 0 is the newest."""
    total = 0.0
    for at in range(start, stop):
        if entries[at] == wanted:
            total += weights[stop - 1 - at]
    return total


@njit(cache=True, nogil=True)
def rounded(dot, provider_term, item_term):
    """The score: one rounding to float32; beyond its range +-inf."""
    return np.float32((dot + provider_term) + item_term)
