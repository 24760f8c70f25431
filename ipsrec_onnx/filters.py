"""Allow and deny lists: which items of the catalog may be recommended to anybody."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from ipsrec_onnx.catalog import Catalog
from ipsrec_onnx.errors import DataError
from ipsrec_onnx.ids import find_ids, id_type, plain_ids

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


def allowed_items(catalog: Catalog, *, allow_items: str | Path | None, deny_items: str | Path | None) -> AllowedItems:
    """Read an allow list and a deny list; an item on both is denied.

    Args:
        catalog: of the model.
        allow_items: Parquet or text file of the only items to recommend; None allows all.
        deny_items: Parquet or text file of items never to recommend; None denies none.

    Raises:
        DataError: a file is not there or cannot be read; its ids are of another kind than the catalog's; or no id of
            the allow list is in the catalog, which would leave every list empty.
    """
    if allow_items is None and deny_items is None:
        return AllowedItems(None, catalog.num_items, 0, 0)
    allowed = np.full(catalog.num_items + 1, allow_items is None)
    unknown_allow = unknown_deny = 0
    if allow_items is not None:
        items = _item_list(catalog, allow_items)
        unknown_allow = int(np.count_nonzero(items == 0))
        if unknown_allow == len(items):
            raise DataError(
                f"allow list {allow_items}: none of its {len(items)} ids is in the model's catalog; check its ids"
            )
        allowed[items] = True
    if deny_items is not None:
        items = _item_list(catalog, deny_items)
        unknown_deny = int(np.count_nonzero(items == 0))
        allowed[items] = False
    allowed[0] = False
    return AllowedItems(allowed, int(allowed.sum()), unknown_allow, unknown_deny)


def _item_list(catalog: Catalog, path: str | Path) -> npt.NDArray[np.int32]:
    """Read a list of item ids as item_index, 0 for an id that the catalog does not know."""
    file = Path(path)
    try:
        with file.open("rb") as opened:
            is_parquet = opened.read(len(_PARQUET_MAGIC)) == _PARQUET_MAGIC
        ids = _from_parquet(file, catalog) if is_parquet else _from_text(file, catalog)
    except (OSError, UnicodeDecodeError, pa.ArrowException) as error:
        raise DataError(f"item list {path}: cannot be read ({error}); give a Parquet or UTF-8 text file") from error
    return np.asarray(find_ids(catalog.item_table, ids), np.int32)


def _from_parquet(path: Path, catalog: Catalog) -> pa.Array:
    """The column item_id, or else the first."""
    with pq.ParquetFile(path) as parquet:
        names = parquet.schema_arrow.names
        if not names:
            raise DataError(f"item list {path}: it has no column; give one with a column item_id")
        column = "item_id" if "item_id" in names else names[0]
        found = parquet.schema_arrow.field(column).type
        where = f"item list {path}, column {column}"
        if id_type(found, where=where) != catalog.item_ids.type:
            raise DataError(f"{where}: ids of type {found}, the catalog has {catalog.item_ids.type}; cast the column")
        return plain_ids(parquet.read(columns=[column])[column], where=where)


def _from_text(path: Path, catalog: Catalog) -> pa.Array:
    """One id a line; blank lines and blanks around an id do not count."""
    lines = [line.strip() for line in path.read_text(encoding="utf-8-sig").split("\n")]
    if not pa.types.is_int64(catalog.item_ids.type):
        return pa.array([line for line in lines if line], pa.large_string())
    ids: list[int] = []
    for number, line in enumerate(lines, start=1):
        if line:
            try:
                ids.append(int(np.int64(line)))
            except (ValueError, OverflowError) as error:
                raise DataError(
                    f"item list {path}, line {number}: {line[:40]!r} is no int64, as the catalog's ids are; mend it"
                ) from error
    return pa.array(ids, pa.int64())
