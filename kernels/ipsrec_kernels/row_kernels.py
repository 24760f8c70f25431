"""What happens to rows between two matrix products: softmax, LayerNorm over a residual sum, and turning a block."""

from __future__ import annotations

import numpy as np
from llvmlite import ir
from numba import njit, types
from numba.extending import intrinsic

from ipsrec_kernels.gemm_tile import FEW_ROWS, LANES
from ipsrec_kernels.polynomials import exp_of_negative
from ipsrec_kernels.vectors import (
    BYTES,
    broadcast,
    constant,
    fma,
    load,
    load_one,
    loop,
    never_inline,
    pointer,
    store,
    vector_of,
)

_FLOAT = ir.FloatType()
_INT32, _INT64 = ir.IntType(32), ir.IntType(64)
_LOWEST = float(np.finfo(np.float32).min)


def _across(builder: ir.IRBuilder, vector: ir.Value, combine) -> ir.Value:
    """Combine the lanes of a vector into one number, halves first: the same order on every CPU."""
    lanes = vector.type.count
    while lanes > 1:
        lanes //= 2
        low, high = (
            builder.shuffle_vector(vector, vector, ir.Constant(vector_of(_INT32, lanes), list(range(at, at + lanes))))
            for at in (0, lanes)
        )
        vector = combine(low, high)
    return builder.extract_element(vector, ir.Constant(_INT32, 0))


def _before(builder: ir.IRBuilder, index: ir.Value, count: ir.Value) -> ir.Value:
    """Which lanes of the vector at `index` (int64) lie before element `count` (int32)."""
    left = builder.sub(count, builder.trunc(index, _INT32))
    lane_numbers = ir.Constant(vector_of(_INT32, LANES), list(range(LANES)))
    return builder.icmp_signed("<", lane_numbers, broadcast(builder, left, LANES))


def _softmax(rows: int):
    """Make the softmax of some number of rows, side by side: one row alone waits for its own sums."""

    @intrinsic
    def softmax(typing_context, scores, stride, counts, width):
        """Turn each row[:count] into its softmax and row[count:width] into 0.

        scores is the address of float32 and counts that of int64, one a row, 1..width; the stride is in elements; width
        is a multiple of LANES. The maximum is subtracted first.
        """

        def build(context, builder, signature, arguments):
            scores, stride, counts, width = arguments
            scores, counts = pointer(builder, scores, _FLOAT), pointer(builder, counts, _INT64)
            start = [builder.mul(ir.Constant(_INT64, row), stride) for row in range(rows)]
            count = [builder.trunc(load_one(builder, counts, row), _INT32) for row in range(rows)]
            zero = ir.Constant(_INT64, 0)

            def inside(row, index):
                return _before(builder, index, count[row])

            def read(row, index):
                return load(builder, scores, builder.add(start[row], index), LANES)

            def write(value, row, index):
                store(builder, value, scores, builder.add(start[row], index))

            def larger(a, b):
                return builder.select(builder.fcmp_ordered(">", a, b), a, b)

            def find_maxima(index, maxima):
                lowest = constant(_FLOAT, _LOWEST, LANES)
                return [
                    larger(builder.select(inside(row, index), read(row, index), lowest), maxima[row])
                    for row in range(rows)
                ]

            _, maxima = loop(builder, zero, width, LANES, [constant(_FLOAT, _LOWEST, LANES)] * rows, find_maxima)
            maximum = [broadcast(builder, _across(builder, value, larger), LANES) for value in maxima]

            def exponentiate(index, sums):
                powers = [exp_of_negative(builder, builder.fsub(read(row, index), maximum[row])) for row in range(rows)]
                nothing = constant(_FLOAT, 0.0, LANES)
                powers = [builder.select(inside(row, index), powers[row], nothing) for row in range(rows)]
                for row in range(rows):
                    write(powers[row], row, index)
                return [builder.fadd(sums[row], powers[row]) for row in range(rows)]

            _, sums = loop(builder, zero, width, LANES, [constant(_FLOAT, 0.0, LANES)] * rows, exponentiate)
            one = ir.Constant(_FLOAT, 1.0)
            share = [
                broadcast(builder, builder.fdiv(one, _across(builder, value, builder.fadd)), LANES) for value in sums
            ]

            def scale(index, nothing):
                for row in range(rows):
                    write(builder.fmul(read(row, index), share[row]), row, index)
                return nothing

            loop(builder, zero, width, LANES, [], scale)
            return context.get_dummy_value()

        return types.void(*[types.int64] * 4), build

    return softmax


softmax_row = _softmax(1)
softmax_rows = _softmax(FEW_ROWS)


@intrinsic
def turn_block(typing_context, block, stride, turned, turned_stride):
    """Write turned[k, t] = block[t, k] for LANES x LANES float32 at addresses; strides in elements."""

    def build(context, builder, signature, arguments):
        block, stride, turned, turned_stride = arguments
        block, turned = pointer(builder, block, _FLOAT), pointer(builder, turned, _FLOAT)
        numbers = [ir.Constant(_INT64, row) for row in range(LANES)]
        rows = [load(builder, block, builder.mul(number, stride), LANES) for number in numbers]
        distance = LANES // 2
        while distance:
            for row in range(LANES):
                if not row & distance:
                    pair = rows[row], rows[row + distance]
                    for half in (0, distance):
                        # From each two neighbouring stretches of lanes take the first (second) of either row.
                        lanes = [
                            lane - (lane & distance) + half + (LANES if lane & distance else 0) for lane in range(LANES)
                        ]
                        mask = ir.Constant(vector_of(_INT32, LANES), lanes)
                        rows[row + half] = builder.shuffle_vector(*pair, mask)
            distance //= 2
        for number, row in zip(numbers, rows, strict=True):
            store(builder, row, turned, builder.mul(number, turned_stride))
        return context.get_dummy_value()

    return types.void(*[types.int64] * 4), build


@intrinsic
def norm_rows(typing_context, out, residual, added, stride, width, dim, eps, scale, shift):
    """Write out = LayerNorm(residual + added) for FEW_ROWS rows at addresses of float32; out may be residual.

    stride and width are in elements, the width a multiple of LANES; dim of it count, and behind these all is 0: scale
    and shift, too. eps is a float32.
    """

    def build(context, builder, signature, arguments):
        out, residual, added, stride, width, dim, eps, scale, shift = arguments
        out, residual, added, scale, shift = (
            pointer(builder, address, _FLOAT) for address in (out, residual, added, scale, shift)
        )
        rows = range(FEW_ROWS)
        start = [builder.mul(ir.Constant(_INT64, row), stride) for row in rows]
        zero, nothing = ir.Constant(_INT64, 0), constant(_FLOAT, 0.0, LANES)
        last = builder.trunc(dim, _INT32)
        size = builder.uitofp(last, _FLOAT)

        def add(index, sums):
            for row in rows:
                at = builder.add(start[row], index)
                value = builder.fadd(load(builder, residual, at, LANES), load(builder, added, at, LANES))
                store(builder, value, out, at)
                sums[row] = builder.fadd(sums[row], value)
            return sums

        _, sums = loop(builder, zero, width, LANES, [nothing] * FEW_ROWS, add)
        mean = [broadcast(builder, builder.fdiv(_across(builder, value, builder.fadd), size), LANES) for value in sums]

        def square(index, sums):
            inside = _before(builder, index, last)
            for row in rows:
                value = load(builder, out, builder.add(start[row], index), LANES)
                away = builder.select(inside, builder.fsub(value, mean[row]), nothing)
                sums[row] = fma(builder, away, away, sums[row])
            return sums

        _, sums = loop(builder, zero, width, LANES, [nothing] * FEW_ROWS, square)
        ratio = []
        for value in sums:
            variance = builder.fadd(builder.fdiv(_across(builder, value, builder.fadd), size), eps)
            root = builder.call(builder.module.declare_intrinsic("llvm.sqrt", [_FLOAT]), [variance])
            ratio.append(broadcast(builder, builder.fdiv(ir.Constant(_FLOAT, 1.0), root), LANES))

        def close(index, carried):
            slope, offset = load(builder, scale, index, LANES), load(builder, shift, index, LANES)
            for row in rows:
                at = builder.add(start[row], index)
                away = builder.fsub(load(builder, out, at, LANES), mean[row])
                store(builder, fma(builder, builder.fmul(away, ratio[row]), slope, offset), out, at)
            return carried

        loop(builder, zero, width, LANES, [], close)
        return context.get_dummy_value()

    return types.void(*[types.int64] * 6, types.float32, types.int64, types.int64), build


@njit(cache=True, nogil=True)
def add_norm(residual, added, scale, shift, first, count, norm, out):
    """Write LayerNorm(residual + added) for some rows; up to FEW_ROWS - 1 more are worked on.

    Args:
        residual: (rows, width) float32, whole LANES; may be out.
        added: (rows, width) float32, its first row belongs to row `first` of the others.
        scale: (width,) float32, 0 behind the model's dim.
        shift: (width,) float32, so too.
        first: the first row.
        count: rows to do.
        norm: Norm.
        out: (rows, width) float32.
    """
    never_inline()
    width = out.shape[1]
    for row in range(0, count, FEW_ROWS):
        at = (first + row) * width * BYTES
        norm_rows(
            out.ctypes.data + at,
            residual.ctypes.data + at,
            added.ctypes.data + row * width * BYTES,
            width,
            width,
            norm.dim,
            norm.eps,
            scale.ctypes.data,
            shift.ctypes.data,
        )
