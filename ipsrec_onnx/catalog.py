"""The items that can be recommended: converts between the caller's ids and rows of the embedding tables, in bulk."""

from __future__ import annotations

import base64
import functools
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from ipsrec_kernels.id_table import IdTable
from ipsrec_onnx.arrow_stream import unpacked_bytes
from ipsrec_onnx.errors import DataError
from ipsrec_onnx.ids import id_table, plain_ids


@dataclass(frozen=True, eq=False)
class Catalog:
    """Every item and provider that a model knows, in the order of its embedding tables.

    Items are numbered by provider, so that each provider's items are one contiguous range of item_index.

    Attributes:
        item_ids: (num_items,) Arrow int64 or large_string; row r is item_index r + 1.
        provider_ids: (num_providers,) Arrow int64 or large_string; row r is provider_index r + 1.
        item_provider: (num_items + 1,) int32, provider_index of each item_index; 0 is "no provider".
        popularity: (num_items + 1,) int64, training interactions of each item_index; 0 for PADDING.
    """

    item_ids: pa.Array
    provider_ids: pa.Array
    item_provider: npt.NDArray[np.int32]
    popularity: npt.NDArray[np.int64]

    def __post_init__(self) -> None:
        _check(self)

    @property
    def num_items(self) -> int:
        """Items, without the padding row."""
        return len(self.item_ids)

    @property
    def num_providers(self) -> int:
        """Providers, without the padding row."""
        return len(self.provider_ids)

    @functools.cached_property
    def item_table(self) -> IdTable:
        """Finds the item_index of an item id; 0 for an id that is not here."""
        return id_table(self.item_ids, what="item id")

    @functools.cached_property
    def provider_table(self) -> IdTable:
        """Finds the provider_index of a provider id; 0 for an id that is not here."""
        return id_table(self.provider_ids, what="provider id")

    def build_tables(self) -> None:
        """Build both tables now: before threads share them, and while the caller knows which file is at fault.

        Raises:
            DataError: an id is there twice.
        """
        _ = self.item_table, self.provider_table


def _check(catalog: Catalog) -> None:
    """Refuse a catalog whose parts do not fit each other."""
    rows = catalog.num_items + 1
    for name, array in (("item_provider", catalog.item_provider), ("popularity", catalog.popularity)):
        if array.shape != (rows,):
            raise DataError(f"catalog: {name} has shape {array.shape}, expected ({rows},) for {rows - 1} items")
    if rows > 1 and not 0 <= int(catalog.item_provider.min()) <= int(catalog.item_provider.max()) <= len(
        catalog.provider_ids
    ):
        raise DataError(f"catalog: a provider_index lies outside 0..{len(catalog.provider_ids)}")
    if int(catalog.popularity.min()) < 0:
        raise DataError(f"catalog: popularity {int(catalog.popularity.min())}, expected 0 or more")


def catalog_to_table(catalog: Catalog) -> tuple[pa.Table, pa.Table]:
    """Give a catalog as two Arrow tables: items (item_id, provider_index, popularity) and providers (provider_id)."""
    items = pa.table(
        {
            "item_id": catalog.item_ids,
            "provider_index": pa.array(catalog.item_provider[1:], pa.int32()),
            "popularity": pa.array(catalog.popularity[1:], pa.int64()),
        }
    )
    return items, pa.table({"provider_id": catalog.provider_ids})


def catalog_from_tables(items: pa.Table, providers: pa.Table) -> Catalog:
    """Read back what catalog_to_table gave.

    Raises:
        DataError: a column is missing, of another type, or has a null or a number that does not fit.
    """
    for table, columns in ((items, ("item_id", "provider_index", "popularity")), (providers, ("provider_id",))):
        missing = [column for column in columns if column not in table.column_names]
        if missing:
            raise DataError(f"catalog: column {missing[0]} is missing, found {table.column_names}")
    return Catalog(
        item_ids=plain_ids(items["item_id"], where="catalog, column item_id"),
        provider_ids=plain_ids(providers["provider_id"], where="catalog, column provider_id"),
        item_provider=_after_padding(items, "provider_index", np.int32),
        popularity=_after_padding(items, "popularity", np.int64),
    )


def _after_padding(items: pa.Table, name: str, dtype: type[np.signedinteger]) -> npt.NDArray[np.signedinteger]:
    """(n,) column -> (n + 1,) array whose row 0 belongs to PADDING."""
    column, arrow_type = items[name], pa.from_numpy_dtype(dtype)
    if column.null_count or not pa.types.is_integer(column.type):
        raise DataError(
            f"catalog, column {name}: found {column.type} with {column.null_count} nulls, expected integers without"
        )
    try:
        numbers = column.cast(arrow_type)
    except pa.ArrowInvalid as error:
        raise DataError(f"catalog, column {name}: a number does not fit into {arrow_type}: {error}") from error
    return np.concatenate([np.zeros(1, dtype), numbers.to_numpy()])


def table_to_text(table: pa.Table) -> str:
    """Write a table as base64 of a zstd-compressed Arrow IPC stream: text that fits into metadata_props."""
    sink = pa.BufferOutputStream()
    options = pa.ipc.IpcWriteOptions(compression="zstd")
    with pa.ipc.new_stream(sink, table.schema, options=options) as writer:
        writer.write_table(table)
    return base64.b64encode(sink.getvalue()).decode("ascii")


def table_from_text(text: str, *, most_bytes: int) -> pa.Table:
    """Read what table_to_text wrote.

    Args:
        text: from a file that may come from anybody.
        most_bytes: that the table may take; more is refused before it is unpacked.

    Raises:
        ValueError: the text is no base64 or no whole Arrow stream; or it holds more, or other types than numbers and
            strings: one string of a dictionary could stand in a million rows.
    """
    try:
        data = pa.py_buffer(base64.b64decode(text, validate=True))
        with pa.ipc.open_stream(data) as reader:
            for field in reader.schema:
                if not (pa.types.is_primitive(field.type) or field.type in (pa.string(), pa.large_string())):
                    raise ValueError(f"column {field.name!r} is {field.type}, expected numbers or strings")
            unpacked = unpacked_bytes(data)
            if unpacked > most_bytes:
                raise ValueError(f"an Arrow stream unpacks to {unpacked} bytes, expected {most_bytes} at most")
            table = reader.read_all()
        table.validate(full=True)  # else an offset that points outside its buffer would be followed
    except (pa.ArrowException, OSError, MemoryError) as error:  # what Arrow raises depends on where the stream breaks
        raise ValueError(f"no whole Arrow stream: {error}") from error
    return table
