"""Ids as the files have them: int64 or string, nothing else, and never a Python object each."""

from __future__ import annotations

from typing import cast

import numpy as np
import pyarrow as pa

from ipsrec_kernels.id_table import IdTable, Int64IdTable, StringIdTable
from ipsrec_onnx.arrow_check import refuse_broken
from ipsrec_onnx.errors import DataError


def plain_ids(column: pa.Array | pa.ChunkedArray, *, where: str) -> pa.Array:
    """Bring a column of ids to one contiguous int64 or large_string array without nulls.

    Args:
        column: (n,) ids of any integer or string type that int64 or large_string holds without loss.
        where: file and column, for the message.

    Raises:
        DataError: another type, a null, or a broken array.
    """
    refuse_broken(column, where=where)
    if isinstance(column, pa.ChunkedArray):
        column = column.combine_chunks()
        if isinstance(column, pa.ChunkedArray):  # pyarrow keeps zero or several chunks chunked
            column = pa.concat_arrays(column.chunks) if column.num_chunks else pa.array([], column.type)
    if column.null_count:
        raise DataError(f"{where}: {column.null_count} null ids, expected none; remove these rows")
    kind = id_type(column.type, where=where)
    try:
        return column if column.type == kind else column.cast(kind)
    except pa.ArrowInvalid as error:
        raise DataError(f"{where}: an id does not fit into {kind}: {error}") from error


def id_type(arrow_type: pa.DataType, *, where: str) -> pa.DataType:
    """The type that ids of this Arrow type are handled in: int64 or large_string.

    Raises:
        DataError: neither an integer nor a string type.
    """
    value_type = arrow_type.value_type if pa.types.is_dictionary(arrow_type) else arrow_type
    if pa.types.is_integer(value_type):
        return pa.int64()
    if pa.types.is_string(value_type) or pa.types.is_large_string(value_type) or pa.types.is_string_view(value_type):
        return pa.large_string()
    raise DataError(f"{where}: ids of type {arrow_type}, expected an integer or string type; cast the column")


def without_views(arrow_type: pa.DataType) -> pa.DataType:
    """The type with strings for string views, in lists and dictionaries, too: few Arrow functions take views."""
    if pa.types.is_string_view(arrow_type):
        return pa.large_string()
    if pa.types.is_binary_view(arrow_type):
        return pa.large_binary()
    if pa.types.is_dictionary(arrow_type) and pa.types.is_string_view(arrow_type.value_type):
        return pa.dictionary(arrow_type.index_type, pa.large_string(), arrow_type.ordered)
    if not hasattr(arrow_type, "value_field"):  # which lists of all kinds have
        return arrow_type
    inner = without_views(arrow_type.value_type)
    if inner == arrow_type.value_type:
        return arrow_type
    return pa.list_(inner, arrow_type.list_size) if pa.types.is_fixed_size_list(arrow_type) else pa.large_list(inner)


def id_table(ids: pa.Array, *, what: str) -> IdTable:
    """Build the table that finds the index (1..n) of each id.

    Args:
        ids: (n,) int64 or large_string, as plain_ids gives them.
        what: what they are ids of, for the message.

    Raises:
        DataError: an id is there twice.
    """
    try:
        if pa.types.is_int64(ids.type):
            return Int64IdTable.build(ids.to_numpy())
        data, offsets = string_buffers(ids)
        return StringIdTable.build(data, offsets)
    except ValueError as error:
        raise DataError(f"catalog: {what}: {error}") from error


def string_buffers(ids: pa.Array) -> tuple[np.ndarray, np.ndarray]:
    """Show the buffers of a large_string array without copying.

    Returns:
        data: (bytes,) uint8, all strings end to end in UTF-8.
        offsets: (n + 1,) int64 into data; the first need not be 0 for a sliced array.
    """
    _, offsets, data = ids.buffers()
    if offsets is None:
        return np.zeros(0, np.uint8), np.zeros(1, np.int64)
    first = ids.offset
    view = np.frombuffer(offsets, np.int64, count=first + len(ids) + 1)[first:]
    return np.frombuffer(data, np.uint8) if data is not None and data.size else np.zeros(0, np.uint8), view


def find_ids(table: IdTable, ids: pa.Array) -> np.ndarray:
    """Look ids up in bulk.

    Args:
        table: as id_table built it; its kind must be that of ids.
        ids: (n,) int64 or large_string, or a dictionary of these; no nulls.

    Returns:
        (n,) int32 index, 0 for an id that is not in the table.
    """
    if pa.types.is_dictionary(ids.type):  # each word is looked up once
        return np.asarray(find_ids(table, ids.dictionary)[ids.indices.to_numpy()], np.int32)
    if pa.types.is_int64(ids.type):
        return cast(Int64IdTable, table).find(ids.to_numpy())
    data, offsets = string_buffers(ids)
    return cast(StringIdTable, table).find(data, offsets)
