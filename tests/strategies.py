"""Hypothesis strategies for users: every Arrow type that may hold ids or lists, good rows and malformed ones.

The rows are drawn as plain Python first, and then laid out in a type: what the naive twin computes from does not go
through Arrow.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pyarrow as pa
from hypothesis import strategies as st

INTEGERS = [pa.int8(), pa.int16(), pa.int32(), pa.int64(), pa.uint8(), pa.uint16(), pa.uint32(), pa.uint64()]
STRINGS = [pa.string(), pa.large_string(), pa.string_view()]
# What no id can be: the job is refused, whatever the rows hold.
OTHERS = [pa.float64(), pa.bool_(), pa.binary(), pa.binary_view(), pa.date32(), pa.list_(pa.int64())]
FIXED = 3  # ids of a list of fixed size

Ids = list[Any] | None


@dataclass(frozen=True)
class DrawnUsers:
    """Users, as a table and as Python.

    Attributes:
        table: columns user_id, item_history and perhaps provider_history.
        items: the ids of each user; None for a null list.
        providers: likewise; None where the table has no such column.
        refused: can no row be scored, because of a type?
    """

    table: pa.Table
    items: list[Ids]
    providers: list[Ids] | None
    refused: bool

    def bad_rows(self) -> list[bool]:
        """Which rows are malformed."""
        ids = self.table["user_id"].to_pylist()
        bad = []
        for row, items in enumerate(self.items):
            providers = self.providers[row] if self.providers is not None else items
            lists = (items, providers)
            bad.append(
                ids[row] is None
                or any(one is None or None in one or any(_beyond_int64(value) for value in one) for one in lists)
                or len(items or []) != len(providers or [])
            )
        return bad


def _beyond_int64(value: Any) -> bool:
    return isinstance(value, int) and value > 2**63 - 1


def _fits(value: Any, arrow_type: pa.DataType) -> bool:
    try:
        pa.scalar(value, arrow_type)
    except (pa.ArrowInvalid, OverflowError):
        return False
    return True


@st.composite
def drawn_users(draw: st.DrawFn, *, item_ids: list[Any], provider_ids: list[Any]) -> DrawnUsers:
    """Draw users for a catalog of these ids, integers or strings."""
    strings = isinstance(item_ids[0], str)
    other = draw(st.integers(0, 9)) == 0
    id_type = draw(st.sampled_from(OTHERS if other else STRINGS if strings else INTEGERS))
    num_users = draw(st.integers(0, 8))
    fixed = not other and draw(st.integers(0, 5)) == 0
    nulls = draw(st.booleans())
    if other:
        items: list[Ids] = [[] if draw(st.booleans()) else None for _ in range(num_users)]
        table = pa.table({"user_id": list(range(num_users)), "item_history": pa.array(items, pa.list_(id_type))})
        return DrawnUsers(table, items, None, refused=True)
    items = _draw_lists(draw, _pool(item_ids, id_type), num_users, fixed=fixed, nulls=nulls)
    columns = {"user_id": draw(_user_ids(num_users, nulls)), "item_history": draw(_layout(items, id_type, fixed=fixed))}
    providers: list[Ids] | None = None
    if draw(st.booleans()):
        providers = _draw_lists(draw, _pool(provider_ids, id_type), num_users, fixed=fixed, nulls=nulls)
        if not fixed and draw(st.integers(0, 3)):  # lists of the same lengths, most of the time
            pool = _pool(provider_ids, id_type)
            providers = [None if one is None else [pool[len(str(id_)) % len(pool)] for id_ in one] for one in items]
        columns["provider_history"] = draw(_layout(providers, id_type, fixed=fixed))
    return DrawnUsers(pa.table(columns), items, providers, refused=False)


def _pool(ids: list[Any], id_type: pa.DataType) -> list[Any]:
    """Known ids, unknown ones and the ends of the type."""
    if isinstance(ids[0], str):
        return [*ids, "", "no such id", "é" * 40, "\0"]
    ends = (0, -1, 5, 127, -128, 2**31 - 1, -(2**63), 2**63 - 1, 2**63, 2**64 - 1)
    return [value for value in (*ids, *ends) if _fits(value, id_type)]


def _draw_lists(draw: st.DrawFn, pool: list[Any], count: int, *, fixed: bool, nulls: bool) -> list[Ids]:
    one = st.sampled_from([*pool, None] if nulls else pool)
    longest = FIXED if fixed else draw(st.sampled_from([0, 3, 9, 40]))
    some = st.lists(one, min_size=FIXED if fixed else 0, max_size=longest)
    lists: list[Ids] = draw(st.lists(some | st.none() if nulls else some, min_size=count, max_size=count))
    if count and not fixed and draw(st.integers(0, 9)) == 0:
        lists[0] = [pool[0], *[pool[-1]] * 3_000]  # a history much longer than any model looks at
    return lists


@st.composite
def _user_ids(draw: st.DrawFn, count: int, nulls: bool) -> pa.Array:
    kinds = [
        st.integers(-(2**63), 2**63 - 1).map(lambda value: (value, pa.int64())),
        st.integers(0, 255).map(lambda value: (value, pa.uint8())),
        st.text(max_size=5).map(lambda value: (value, pa.string())),
        st.binary(max_size=5).map(lambda value: (value, pa.binary())),
        st.floats(allow_nan=False).map(lambda value: (value, pa.float64())),
    ]
    pairs = draw(st.lists(draw(st.sampled_from(kinds)), min_size=1 + count, max_size=1 + count))
    values = [value for value, _ in pairs[1:]]
    if nulls and values and draw(st.booleans()):
        values[draw(st.integers(0, len(values) - 1))] = None
    return pa.array(values, pairs[0][1])


@st.composite
def _layout(draw: st.DrawFn, lists: list[Ids], id_type: pa.DataType, *, fixed: bool) -> pa.ChunkedArray:
    """Lay lists out in one of Arrow's ways: list types, dictionaries, slices and chunks."""
    if id_type in INTEGERS + STRINGS[:2] and draw(st.integers(0, 3)) == 0:
        id_type = pa.dictionary(pa.int32(), id_type)
    kinds = [pa.list_, pa.large_list, pa.list_view, pa.large_list_view]
    list_type = pa.list_(id_type, FIXED) if fixed else draw(st.sampled_from(kinds))(id_type)
    spare = [[None] * FIXED] if fixed else [None]  # cut away again: a slice that does not begin at 0
    array = pa.array([*spare, *lists, *spare], list_type).slice(1, len(lists))
    cut = draw(st.integers(0, len(lists)))
    return pa.chunked_array([array.slice(0, cut), array.slice(cut)], list_type)
