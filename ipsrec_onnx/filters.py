"""Allow and deny lists: which items of the catalog may be recommended to anybody."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from ipsrec_kernels.padding import PADDING
from ipsrec_onnx.catalog import Catalog
from ipsrec_onnx.errors import DataError
from ipsrec_onnx.ids import find_ids, id_type, plain_ids
from ipsrec_onnx.in_memory import Ids, arrow_ids

_PARQUET_MAGIC = b"PAR1"


@dataclass(frozen=True, eq=False)
class AllowedItems:
    """What the lists leave.

    Attributes:
        allowed: (num_items + 1,) bool, by item_index; None where no list was given.
        num_allowed: items that may be recommended.
        unknown_allow_items: ids of the allow list that the catalog does not know.
        unknown_deny_items: likewise of the deny list.
    """

    allowed: npt.NDArray[np.bool_] | None
    num_allowed: int
    unknown_allow_items: int
    unknown_deny_items: int


def allowed_items(
    catalog: Catalog, *, allow_items: str | Path | Ids | None, deny_items: str | Path | Ids | None
) -> AllowedItems:
    """Read an allow list and a deny list; an item on both is denied.

    Args:
        catalog: of the model.
        allow_items: Parquet or text file of the only items to recommend, or a pipe, or the ids; None allows all.
        deny_items: Parquet or text file of items never to recommend, or a pipe, or the ids; None denies none.

    Raises:
        DataError: a file is not there or cannot be read; its ids are of another kind than the catalog's; or no item is
            left to recommend, which would leave every list empty.
    """
    if allow_items is None and deny_items is None:
        return AllowedItems(None, catalog.num_items, 0, 0)
    allowed = np.full(catalog.num_items + 1, allow_items is None)
    unknown_allow = unknown_deny = 0
    if allow_items is not None:
        items = _item_list(catalog, allow_items)
        unknown_allow = int(np.count_nonzero(items == PADDING))
        if not len(items):
            raise DataError(
                f"allow list {_called(allow_items)}: it holds no id, expected one or more; leave the option out"
            )
        if unknown_allow == len(items):
            raise DataError(
                f"allow list {_called(allow_items)}: none of its {len(items)} ids is in the model's catalog; "
                "check its ids"
            )
        allowed[items] = True
    if deny_items is not None:
        items = _item_list(catalog, deny_items)
        unknown_deny = int(np.count_nonzero(items == PADDING))
        allowed[items] = False
    allowed[PADDING] = False
    if not allowed.any():
        only = "" if allow_items is None else f" of the allow list {_called(allow_items)}"
        raise DataError(
            f"deny list {_called(deny_items)}: it holds every item{only}, so none is left to recommend; shorten it"
        )
    return AllowedItems(allowed, int(allowed.sum()), unknown_allow, unknown_deny)


def _called(items: str | Path | Ids | None) -> str:
    """What a message calls a list."""
    return str(items) if isinstance(items, str | Path) else "in memory"


def _item_list(catalog: Catalog, items: str | Path | Ids) -> npt.NDArray[np.int32]:
    """Read a list of item ids as item_index, PADDING for an id that the catalog does not know."""
    where = f"item list {_called(items)}"
    if not isinstance(items, str | Path):
        given = arrow_ids(items, where=where)
        if not len(given):  # without an element, it says nothing of its type
            return np.zeros(0, np.int32)
        return np.asarray(find_ids(catalog.item_table, _plain_of_kind(given, catalog, where=where)), np.int32)
    try:
        data = Path(items).read_bytes()  # once: a pipe is empty the second time
        ids = (_from_parquet if data.startswith(_PARQUET_MAGIC) else _from_text)(data, catalog, where=where)
    except (OSError, UnicodeDecodeError, pa.ArrowException) as error:
        raise DataError(f"{where}: cannot be read ({error}); give a Parquet or UTF-8 text file") from error
    return np.asarray(find_ids(catalog.item_table, ids), np.int32)


def _from_parquet(data: bytes, catalog: Catalog, *, where: str) -> pa.Array:
    """The column item_id, or else the only one: a guess among several could pick the ids of users."""
    with pq.ParquetFile(pa.BufferReader(data)) as parquet:
        names = parquet.schema_arrow.names
        if len(names) != 1 and names.count("item_id") != 1:
            raise DataError(f"{where}: columns {names}, expected one of them named item_id; name the column of ids so")
        column = "item_id" if "item_id" in names else names[0]
        return _plain_of_kind(parquet.read(columns=[column])[column], catalog, where=f"{where}, column {column}")


def _plain_of_kind(ids: pa.Array | pa.ChunkedArray, catalog: Catalog, *, where: str) -> pa.Array:
    """Bring ids to the catalog's type."""
    if id_type(ids.type, where=where) != catalog.item_ids.type:
        raise DataError(f"{where}: ids of type {ids.type}, the catalog has {catalog.item_ids.type}; cast the column")
    return plain_ids(ids, where=where)


def _from_text(data: bytes, catalog: Catalog, *, where: str) -> pa.Array:
    """One id a line; blank lines and blanks around an id do not count."""
    lines = [line.strip() for line in data.decode("utf-8-sig").split("\n")]
    if not pa.types.is_int64(catalog.item_ids.type):
        return pa.array([line for line in lines if line], pa.large_string())
    ids: list[int] = []
    for number, line in enumerate(lines, start=1):
        if line:
            try:
                ids.append(int(np.int64(line)))
            except (ValueError, OverflowError) as error:
                raise DataError(
                    f"{where}, line {number}: {line[:40]!r} is no int64, as the catalog's ids are; mend it"
                ) from error
    return pa.array(ids, pa.int64())
