"""The register tile that every matrix product of the fused encoder is made of.

A tile is ROWS tokens by PANEL columns of a product X W, held in registers for the whole sum. Each element is one chain
of fused multiply-adds in ascending k from its start value: its bits depend on its own row and column alone, whatever
the tile, the neighbours or the CPU.

The vectorised operand is stored in panels of PANEL columns, so that a step of k reads neighbours; elements of X are
broadcast. 16 lanes everywhere: LLVM splits them where registers are narrower.
"""

from __future__ import annotations

from typing import Final

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from ipsrec_kernels.cpu import has_wide_vectors
from ipsrec_kernels.polynomials import gelu
from ipsrec_kernels.vectors import broadcast, fma, load, load_one, pointer, repeat, store

LANES: Final = 16
_FLOAT = ir.FloatType()
_INT64 = ir.IntType(64)


# One vector is as wide as a tile: each broadcast is then used once, and AVX-512 folds it into the multiply-add. Two
# vectors side by side (32 x 12) read less, but LLVM loads the broadcasts so early that sums leave the registers, which
# cost half the speed. 12 sums hide the latency of AVX-512; AVX2 splits each in two and has room for 6.
PANEL: Final = LANES
ROWS, FEW_ROWS = (12, 4) if has_wide_vectors() else (6, 2)


def _tile(rows: int, *, activation: bool):
    """Make the tile of some number of rows; with activation, GELU goes over the sums while they are in registers."""

    @intrinsic
    def tile(typing_context, out, out_stride, x, x_stride, panel, steps, start):
        """Write out[:rows, :PANEL] = start[:PANEL] + x[:rows, :steps] @ panel[:steps, :PANEL].

        out, x, panel and start are addresses of float32, the strides are in elements; panel is (steps, PANEL), steps 1
        or more.
        """

        def build(context, builder, signature, arguments):
            out, out_stride, x, x_stride, panel, steps, start = arguments
            out, x, panel, start = (pointer(builder, address, _FLOAT) for address in (out, x, panel, start))
            row_starts = [builder.mul(ir.Constant(_INT64, row), x_stride) for row in range(rows)]
            bias = load(builder, start, 0, PANEL)

            def add_products(k, sums):
                weights = load(builder, panel, builder.mul(k, ir.Constant(_INT64, PANEL)), PANEL)
                elements = (load_one(builder, x, builder.add(row_start, k)) for row_start in row_starts)
                return [
                    fma(builder, weights, broadcast(builder, element, PANEL), value)
                    for element, value in zip(elements, sums, strict=True)
                ]

            sums = repeat(builder, steps, [bias] * rows, add_products)
            for row, value in enumerate(sums):
                place = builder.mul(ir.Constant(_INT64, row), out_stride)
                store(builder, gelu(builder, value) if activation else value, out, place)
            return context.get_dummy_value()

        return types.void(*[types.int64] * 7), build

    return tile


tile_of_rows = _tile(ROWS, activation=False)
tile_of_few_rows = _tile(FEW_ROWS, activation=False)
gelu_tile_of_rows = _tile(ROWS, activation=True)
gelu_tile_of_few_rows = _tile(FEW_ROWS, activation=True)
