"""Small words for LLVM vectors, for the intrinsics that Numba's own loops are too slow for.

Each takes the llvmlite IRBuilder that Numba gives to an intrinsic. Everything is a generic LLVM vector: LLVM splits it
into the registers that the CPU has, so that the same code runs on AVX-512, AVX2 and NEON.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

BYTES: Final = 4  # of a float32

_INDEX = ir.IntType(32)
_OFFSET = ir.IntType(64)
_NAMES = {ir.FloatType(): "f32", ir.DoubleType(): "f64"}


@intrinsic
def never_inline(typing_context):
    """Keep the function that calls this out of its callers: Numba compiles a callee again with each of them."""

    def build(context, builder, signature, arguments):
        builder.function.attributes.add("noinline")
        return context.get_dummy_value()

    return types.void(), build


def vector_of(element: ir.Type, lanes: int) -> ir.VectorType:
    """A vector type, as ir.FloatType() and 16 lanes."""
    return ir.VectorType(element, lanes)


def pointer(builder: ir.IRBuilder, address: ir.Value, element: ir.Type) -> ir.Value:
    """An int64 address, as `array.ctypes.data` gives it, becomes a pointer to elements."""
    return builder.inttoptr(address, element.as_pointer())


def load(builder: ir.IRBuilder, pointer: ir.Value, offset: ir.Value | int, lanes: int) -> ir.Value:
    """Read `lanes` neighbours, the first at pointer[offset] (offset in elements); 4-byte alignment is enough."""
    place = _place(builder, pointer, offset)
    value = builder.load(builder.bitcast(place, vector_of(place.type.pointee, lanes).as_pointer()))
    value.align = 4
    return value


def load_one(builder: ir.IRBuilder, pointer: ir.Value, offset: ir.Value | int) -> ir.Value:
    """Read the element pointer[offset]."""
    return builder.load(_place(builder, pointer, offset))


def store(builder: ir.IRBuilder, value: ir.Value, pointer: ir.Value, offset: ir.Value | int) -> None:
    """Write a vector, its first element to pointer[offset]; alignment as in load."""
    place = _place(builder, pointer, offset)
    builder.store(value, builder.bitcast(place, value.type.as_pointer())).align = 4


def broadcast(builder: ir.IRBuilder, scalar: ir.Value, lanes: int) -> ir.Value:
    """A vector that holds the scalar in every lane."""
    nothing = ir.Constant(vector_of(scalar.type, lanes), ir.Undefined)
    first = builder.insert_element(nothing, scalar, ir.Constant(_INDEX, 0))
    return builder.shuffle_vector(first, nothing, ir.Constant(vector_of(_INDEX, lanes), [0] * lanes))


def constant(element: ir.Type, number: float, lanes: int) -> ir.Constant:
    """A vector of one number; a float32 constant must be a number that float32 has."""
    return ir.Constant(vector_of(element, lanes), [number] * lanes)


def fma(builder: ir.IRBuilder, a: ir.Value, b: ir.Value, c: ir.Value) -> ir.Value:
    """Compute a * b + c, rounded once, lane by lane; all three of one type."""
    kind = a.type
    name = f"llvm.fma.v{kind.count}{_NAMES[kind.element]}"
    function = builder.module.globals.get(name)
    if function is None:
        function = ir.Function(builder.module, ir.FunctionType(kind, [kind] * 3), name)
    return builder.call(function, [a, b, c])


def loop(
    builder: ir.IRBuilder,
    start: ir.Value,
    stop: ir.Value,
    step: int,
    carried: list[ir.Value],
    body: Callable[[ir.Value, list[ir.Value]], list[ir.Value]],
) -> tuple[ir.Value, list[ir.Value]]:
    """Run `body` while `step` more fit: for start, start + step, ... as long as index + step <= stop.

    Args:
        builder: stands behind the loop afterwards.
        start: int64, as stop.
        stop: may lie below start: then nothing runs.
        step: 1 or more.
        carried: values that go from one turn to the next.
        body: (index, values) -> the values of the next turn; builds one block.

    Returns:
        The first index that was not run, and the last values.
    """
    before = builder.block
    head, inside, after = (builder.append_basic_block(name) for name in ("head", "inside", "after"))
    builder.branch(head)
    builder.position_at_end(head)
    index = builder.phi(_OFFSET)
    index.add_incoming(start, before)
    values = [builder.phi(value.type) for value in carried]
    for phi, value in zip(values, carried, strict=True):
        phi.add_incoming(value, before)
    after_turn = builder.add(index, ir.Constant(_OFFSET, step))
    builder.cbranch(builder.icmp_signed("<=", after_turn, stop), inside, after)
    builder.position_at_end(inside)
    changed = body(index, list(values))
    builder.branch(head)
    index.add_incoming(after_turn, builder.block)
    for phi, value in zip(values, changed, strict=True):
        phi.add_incoming(value, builder.block)
    builder.position_at_end(after)
    return index, list(values)


def repeat(
    builder: ir.IRBuilder,
    count: ir.Value,
    carried: list[ir.Value],
    body: Callable[[ir.Value, list[ir.Value]], list[ir.Value]],
) -> list[ir.Value]:
    """Run `body` for 0..count - 1, as `loop` does, but once at least.

    Asking at the end alone keeps many carried values in the registers that they are in.
    """
    before = builder.block
    inside, after = (builder.append_basic_block(name) for name in ("inside", "after"))
    builder.branch(inside)
    builder.position_at_end(inside)
    index = builder.phi(_OFFSET)
    index.add_incoming(ir.Constant(_OFFSET, 0), before)
    values = [builder.phi(value.type) for value in carried]
    for phi, value in zip(values, carried, strict=True):
        phi.add_incoming(value, before)
    changed = body(index, list(values))
    after_turn = builder.add(index, ir.Constant(_OFFSET, 1))
    builder.cbranch(builder.icmp_signed("<", after_turn, count), inside, after)
    index.add_incoming(after_turn, builder.block)
    for phi, value in zip(values, changed, strict=True):
        phi.add_incoming(value, builder.block)
    builder.position_at_end(after)
    return changed


def _place(builder: ir.IRBuilder, pointer: ir.Value, offset: ir.Value | int) -> ir.Value:
    index = ir.Constant(_OFFSET, offset) if isinstance(offset, int) else offset
    return builder.gep(pointer, [index])
