"""Copies runs of int32 in whole vectors: no branch on a run's length, which the CPU would mispredict.

Kernels only; a copy may run over the end of what it was asked for, so callers fill from first to last.
"""

from __future__ import annotations

from typing import Final

from llvmlite import ir
from numba import njit, types
from numba.extending import intrinsic

from ipsrec_kernels import vectors
from ipsrec_kernels.padding import PADDING

LANES: Final = 16  # entries that a step copies


@intrinsic
def copy_lanes(typing_context, values, start, out, at):
    """Kernel: copy values[start:start + LANES] to out.flat[at:at + LANES]; both int32, C-contiguous."""

    def generate(context, builder, signature, arguments):
        source, start, target, at = arguments
        source, target = (
            context.make_array(kind)(context, builder, value=value).data
            for kind, value in ((signature.args[0], source), (signature.args[2], target))
        )
        vectors.store(builder, vectors.load(builder, source, start, LANES), target, at)
        return context.get_dummy_value()

    return types.void(values, types.int64, out, types.int64), generate


@intrinsic
def clear_lanes(typing_context, out, at):
    """Kernel: out.flat[at:at + LANES] = PADDING; int32, C-contiguous."""

    def generate(context, builder, signature, arguments):
        target = context.make_array(signature.args[0])(context, builder, value=arguments[0]).data
        vectors.store(builder, vectors.constant(ir.IntType(32), PADDING, LANES), target, arguments[1])
        return context.get_dummy_value()

    return types.void(out, types.int64), generate


@njit(cache=True, nogil=True)
def copy_run(values, start, stop, out, at):
    """Copy values[start:stop] to out[at:], in whole vectors that run over the end: out has room for one more."""
    if stop + LANES <= len(values):
        for lane in range(0, stop - start, LANES):
            copy_lanes(values, start + lane, out, at + lane)
    else:
        for entry in range(stop - start):
            out[at + entry] = values[start + entry]
