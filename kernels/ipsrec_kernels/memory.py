"""Two ways to touch memory that Numba has no words for: a hint to fetch a line early, and eight bytes at once.

Both are generic LLVM, so that the same code runs on every CPU; where a CPU has no such hint, it does nothing.
"""

from __future__ import annotations

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

_BYTE, _INT32, _INT64 = ir.IntType(8), ir.IntType(32), ir.IntType(64)
_READ, _KEEP, _DATA = 0, 3, 1  # llvm.prefetch: to read, keep in all caches, data rather than code


@intrinsic
def prefetch(typing_context, array, row):
    """Kernel: begin to fetch array[row], so that it is near when it is read; a row outside does no harm."""

    def generate(context, builder, signature, arguments):
        place = _row_address(context, builder, signature.args[0], arguments)
        hint = builder.module.declare_intrinsic("llvm.prefetch", [place.type], _hint_type(place.type))
        builder.call(hint, [place, *(ir.Constant(_INT32, number) for number in (_READ, _KEEP, _DATA))])
        return context.get_dummy_value()

    return types.void(array, types.int64), generate


@intrinsic
def load_word(typing_context, data, at):
    """Kernel: the eight bytes data[at:at + 8] as one uint64; all eight must be there, their alignment is free."""

    def generate(context, builder, signature, arguments):
        place = _row_address(context, builder, signature.args[0], arguments)
        word = builder.load(builder.bitcast(place, _INT64.as_pointer()))
        word.align = 1
        return word

    return types.uint64(data, types.int64), generate


def _row_address(context, builder, array_type, arguments):
    """Address of array[row], a pointer to bytes."""
    array = context.make_array(array_type)(context, builder, value=arguments[0])
    stride = builder.extract_value(array.strides, 0)  # bytes
    start = builder.ptrtoint(array.data, _INT64)
    return builder.inttoptr(builder.add(start, builder.mul(arguments[1], stride)), _BYTE.as_pointer())


def _hint_type(place_type):
    return ir.FunctionType(ir.VoidType(), [place_type, _INT32, _INT32, _INT32])
