"""The innermost step of the scan: a panel of items times a panel of users, kept in registers.

A tile is two vectors of items by as many users as fill the registers: 24 sums of 16 lanes on AVX-512, 12 sums of 8
lanes elsewhere (AVX2 has 16 registers; LLVM makes 24 NEON registers of them). On AVX2 a tile of 32 x 12 spills and
runs at half speed. Sums are compared in registers, and written down only where one is large enough.
"""

from __future__ import annotations

from typing import Any, Final, NamedTuple

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from ipsrec_kernels.cpu import has_wide_vectors
from ipsrec_kernels.vectors import broadcast, constant, fma, load, load_one, pointer, store, vector_of

_INT8, _INT16, _INT32, _INT64, _FLOAT32 = ir.IntType(8), ir.IntType(16), ir.IntType(32), ir.IntType(64), ir.FloatType()
_VECTORS = 2  # of items in a tile


class TileShape(NamedTuple):
    """How much one call takes.

    Attributes:
        items: of a panel.
        users: of a panel; fewer than 32, for the answer is a mask.
    """

    items: int
    users: int


WIDE: Final = TileShape(items=32, users=12)
NARROW: Final = TileShape(items=16, users=6)
FLOAT32_TILE: Final = WIDE if has_wide_vectors() else NARROW
INT8_TILE: Final = WIDE

_ADDRESSES = (types.int64,) * 6


@intrinsic
def int8_tile(
    typing_context: Any, items: Any, users: Any, start: Any, steps: Any, masks: Any, sums: Any
) -> tuple[Any, Any]:
    """Kernel: which users have a sum of 0 or more? All arguments are int64.

    Sums are int32, exact: start[user] + sum over 4 * steps dims of (q + 128 of the item) * (q of the user).

    - items: address of (steps, 32, 4) uint8;
    - users: address of (steps, 12, 4) int8;
    - start: address of (12,) int32;
    - steps: a multiple of 2;
    - masks: address of (12,) int32; written if the answer is not 0: bit i says that item i is one;
    - sums: address of (12, 32) int32; likewise.

    Returns:
        int32, bit u says that user u has one.
    """

    def generate(context: Any, builder: ir.IRBuilder, signature: Any, arguments: Any) -> ir.Value:
        lanes = INT8_TILE.items // _VECTORS
        kind = vector_of(_INT32, lanes)
        name = "llvm.x86.avx512.vpdpbusd.512"
        multiply = builder.module.globals.get(name)
        if multiply is None:
            multiply = ir.Function(builder.module, ir.FunctionType(kind, [kind] * 3), name)

        def step(total: ir.Value, item: ir.Value, user: ir.Value) -> ir.Value:
            return builder.call(multiply, [total, item, user])

        def first(place: ir.Value, user: int) -> ir.Value:
            return broadcast(builder, load_one(builder, place, user), lanes)

        start = pointer(builder, arguments[2], _INT32)
        totals = _sums(builder, arguments, INT8_TILE, _INT32, step, [first(start, u) for u in range(INT8_TILE.users)])
        every = totals[0]
        for total in totals[1:]:  # the sign bit stays where all sums are negative
            every = builder.and_(every, total)
        zero = ir.Constant(kind, [0] * lanes)
        some = builder.icmp_signed(">=", every, zero)
        return _answer(
            builder, arguments, INT8_TILE, some, totals, lambda total, user: builder.icmp_signed(">=", total, zero)
        )

    return types.int32(*_ADDRESSES), generate


@intrinsic
def float32_tile(
    typing_context: Any, items: Any, users: Any, start: Any, steps: Any, masks: Any, sums: Any
) -> tuple[Any, Any]:
    """Kernel: which users have a sum that is not below start[user]? All arguments are int64.

    - items: address of (steps, FLOAT32_TILE.items) float32;
    - users: address of (steps, FLOAT32_TILE.users) float32;
    - start: address of (users,) float32; a sum of NaN is not below it;
    - steps: dims, a multiple of 2;
    - masks: address of (users,) int32; written if the answer is not 0: bit i says that item i is one;
    - sums: address of (users, items) float32; likewise.

    Returns:
        int32, bit u says that user u has one.
    """

    def generate(context: Any, builder: ir.IRBuilder, signature: Any, arguments: Any) -> ir.Value:
        lanes = FLOAT32_TILE.items // _VECTORS

        def step(total: ir.Value, item: ir.Value, user: ir.Value) -> ir.Value:
            return fma(builder, item, user, total)

        zero = constant(_FLOAT32, 0.0, lanes)
        totals = _sums(builder, arguments, FLOAT32_TILE, _FLOAT32, step, [zero] * FLOAT32_TILE.users)
        start = pointer(builder, arguments[2], _FLOAT32)

        def enough(total: ir.Value, user: int) -> ir.Value:
            return builder.fcmp_unordered(">=", total, broadcast(builder, load_one(builder, start, user), lanes))

        some = None
        for at, total in enumerate(totals):
            found = enough(total, at // _VECTORS)
            some = found if some is None else builder.or_(some, found)
        return _answer(builder, arguments, FLOAT32_TILE, some, totals, enough)

    return types.int32(*_ADDRESSES), generate


@intrinsic
def lowest_bit(typing_context: Any, mask: Any) -> tuple[Any, Any]:
    """Kernel: the place of the lowest bit that is set in an int64 other than 0."""

    def generate(context: Any, builder: ir.IRBuilder, signature: Any, arguments: Any) -> ir.Value:
        return builder.cttz(arguments[0], ir.Constant(ir.IntType(1), 1))

    return types.int64(types.int64), generate


def _sums(
    builder: ir.IRBuilder, arguments: Any, shape: TileShape, element: ir.Type, step: Any, first: Any
) -> list[Any]:
    """The loop over the steps, two at a time; sums[_VECTORS * user + vector]."""
    lanes = shape.items // _VECTORS
    items, users = pointer(builder, arguments[0], element), pointer(builder, arguments[1], element)
    before, loop = builder.block, builder.append_basic_block("steps")
    after = builder.append_basic_block("compared")
    builder.branch(loop)
    builder.position_at_end(loop)
    at = builder.phi(_INT64)
    at.add_incoming(ir.Constant(_INT64, 0), before)
    totals = []
    for user in range(shape.users):
        for _ in range(_VECTORS):
            total = builder.phi(vector_of(element, lanes))
            total.add_incoming(first[user], before)
            totals.append(total)
    last = list(totals)
    for unrolled in range(2):
        now = builder.add(at, ir.Constant(_INT64, unrolled))
        item_place = builder.mul(now, ir.Constant(_INT64, shape.items))
        user_place = builder.mul(now, ir.Constant(_INT64, shape.users))
        item_vectors = [
            load(builder, items, builder.add(item_place, ir.Constant(_INT64, lanes * v)), lanes)
            for v in range(_VECTORS)
        ]
        for user in range(shape.users):
            place = builder.add(user_place, ir.Constant(_INT64, user))
            value = broadcast(builder, load_one(builder, users, place), lanes)
            for v in range(_VECTORS):
                last[_VECTORS * user + v] = step(last[_VECTORS * user + v], item_vectors[v], value)
    following = builder.add(at, ir.Constant(_INT64, 2))
    at.add_incoming(following, loop)
    for total, new in zip(totals, last, strict=True):
        total.add_incoming(new, loop)
    builder.cbranch(builder.icmp_signed("<", following, arguments[3]), loop, after)
    builder.position_at_end(after)
    return last


def _answer(
    builder: ir.IRBuilder, arguments: Any, shape: TileShape, some: ir.Value, totals: list[Any], enough: Any
) -> ir.Value:
    """Write masks and sums if a lane of `some` is set; give the mask of users."""
    lanes = shape.items // _VECTORS
    bits = builder.bitcast(some, ir.IntType(lanes))
    none = ir.Constant(ir.IntType(lanes), 0)
    before, write = builder.block, builder.append_basic_block("write")
    end = builder.append_basic_block("tile_end")
    builder.cbranch(
        builder.icmp_unsigned("!=", bits, none),
        write,
        end,
    ).set_weights([1, 20])
    builder.position_at_end(write)
    masks = pointer(builder, arguments[4], _INT32)
    sums = pointer(builder, arguments[5], totals[0].type.element)
    found = ir.Constant(_INT32, 0)
    for user in range(shape.users):
        mask = ir.Constant(_INT32, 0)
        for v in range(_VECTORS):
            total = totals[_VECTORS * user + v]
            store(builder, total, sums, shape.items * user + lanes * v)
            part = builder.zext(builder.bitcast(enough(total, user), ir.IntType(lanes)), _INT32)
            mask = builder.or_(mask, builder.shl(part, ir.Constant(_INT32, lanes * v)))
        builder.store(mask, builder.gep(masks, [ir.Constant(_INT64, user)]))
        bit = builder.zext(builder.icmp_unsigned("!=", mask, ir.Constant(_INT32, 0)), _INT32)
        found = builder.or_(found, builder.shl(bit, ir.Constant(_INT32, user)))
    builder.branch(end)
    builder.position_at_end(end)
    answer = builder.phi(_INT32)
    answer.add_incoming(ir.Constant(_INT32, 0), before)
    answer.add_incoming(found, write)
    return answer
