"""Ways to touch memory that Numba has no words for: hints to fetch lines early, and eight bytes at once.

Both are generic LLVM, so that the same code runs on every CPU; where a CPU has no such hint, it does nothing.
"""

from __future__ import annotations

from llvmlite import ir
from numba import njit, types
from numba.extending import intrinsic

_BYTE, _INT32, _INT64 = ir.IntType(8), ir.IntType(32), ir.IntType(64)
_LINE = 64  # bytes that come at once, on all CPUs of today but few
_READ, _KEEP, _DATA = 0, 3, 1  # llvm.prefetch: to read, keep in all caches, data rather than code


@intrinsic
def prefetch(typing_context, array, row):
    """Kernel: begin to fetch array[row], so that it is near when it is read; a row outside does no harm."""

    def generate(context, builder, signature, arguments):
        _hint(builder, _row_address(context, builder, signature.args[0], arguments))
        return context.get_dummy_value()

    return types.void(array, types.int64), generate


@intrinsic
def _prefetch_address(typing_context, address):
    """Kernel: begin to fetch the line of this address; any address is allowed."""

    def generate(context, builder, signature, arguments):
        _hint(builder, builder.inttoptr(arguments[0], _BYTE.as_pointer()))
        return context.get_dummy_value()

    return types.void(types.int64), generate


@njit(cache=True, nogil=True)
def prefetch_row(vectors, row):
    """Kernel: begin to fetch all of a row of a (rows, D) float32 array without gaps."""
    size = vectors.shape[1] * 4
    for byte in range(0, size, _LINE):
        _prefetch_address(vectors.ctypes.data + row * size + byte)


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


def _hint(builder, place):
    kind = ir.FunctionType(ir.VoidType(), [place.type, _INT32, _INT32, _INT32])
    hint = builder.module.declare_intrinsic("llvm.prefetch", [place.type], kind)
    builder.call(hint, [place, *(ir.Constant(_INT32, number) for number in (_READ, _KEEP, _DATA))])
