"""Ask for memory before it is needed: rows at random places of a large table cost a cache miss each."""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import njit, types
from numba.extending import intrinsic

_INT32 = ir.IntType(32)
_BYTE_POINTER = ir.IntType(8).as_pointer()
_NAME = "llvm.prefetch.p0i8"


@intrinsic
def _prefetch(typing_context: Any, address: Any) -> tuple[Any, Any]:
    """Have the cache line of this int64 address brought near; any address is allowed."""

    def generate(context: Any, builder: ir.IRBuilder, signature: Any, arguments: Any) -> ir.Value:
        kind = ir.FunctionType(ir.VoidType(), [_BYTE_POINTER, _INT32, _INT32, _INT32])
        function = builder.module.globals.get(_NAME) or ir.Function(builder.module, kind, _NAME)
        read, keep, data = ir.Constant(_INT32, 0), ir.Constant(_INT32, 3), ir.Constant(_INT32, 1)
        builder.call(function, [builder.inttoptr(arguments[0], _BYTE_POINTER), read, keep, data])
        return context.get_dummy_value()

    return types.none(types.int64), generate


@njit(cache=True, nogil=True)
def prefetch_row(vectors, row):
    """Kernel: have a row of a (rows, D) float32 array without gaps brought near."""
    size = vectors.shape[1] * 4
    for byte in range(0, size, 64):
        _prefetch(vectors.ctypes.data + row * size + byte)
