"""Takes tables and lists of ids as notebooks and services hold them, and gives them as Arrow."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import pyarrow as pa

from ipsrec_onnx.arrow_check import refuse_broken
from ipsrec_onnx.errors import DataError
from ipsrec_onnx.ids import without_views
from ipsrec_onnx.user_chunks import UserChunk

PLACE = "table"  # what messages call it
Ids = Iterable[Any]  # Python ints or strings, a NumPy or Arrow array, a column of polars or pandas

_CHUNK_BYTES = 1 << 23  # of a table in a chunk, so that long histories do not multiply memory


def arrow_table(table: Any) -> pa.Table:
    """Give a table as Arrow: one of pyarrow's, or anything with Arrow's PyCapsule interface, as polars and pandas have.

    Raises:
        DataError: it is none of these, or Arrow cannot take it.
    """
    if isinstance(table, pa.Table):
        return table
    if isinstance(table, pa.RecordBatch):
        return pa.Table.from_batches([table])
    if not (hasattr(table, "__arrow_c_stream__") or hasattr(table, "__arrow_c_array__")):
        raise DataError(
            f"{PLACE}: found a {type(table).__name__}, expected a pyarrow Table or RecordBatch, or a frame of polars "
            "or pandas; make one of it with pyarrow.table()"
        )
    try:
        return pa.table(table)
    except (pa.ArrowException, TypeError, ValueError, OverflowError) as error:
        raise DataError(f"{PLACE}: Arrow cannot take it ({_one_line(error)}); give a pyarrow Table") from error


def arrow_ids(ids: Ids, *, where: str) -> pa.Array:
    """Give some ids as one Arrow array of the type that they have; nulls stay, views go, and [] has type null.

    Raises:
        DataError: they are one string, a broken array, or Arrow has no type for them all.
    """
    if isinstance(ids, str | bytes):
        raise DataError(f"{where}: found one {type(ids).__name__}, expected a list of ids; put it into a list")
    try:
        if isinstance(ids, pa.Array | pa.ChunkedArray):
            array = ids  # as it is, for Arrow's C interface does not say how long buffers are
        else:
            array = pa.chunked_array(ids) if hasattr(ids, "__arrow_c_stream__") else pa.array(ids)
        if hasattr(ids, "__arrow_c_stream__") or hasattr(ids, "__arrow_c_array__"):  # else it is Arrow's own work
            refuse_broken(array, where=where)
        if isinstance(array, pa.ChunkedArray):
            array = array.combine_chunks()
        plain = without_views(array.type)
        return array if plain == array.type else array.cast(plain)
    except (pa.ArrowException, TypeError, ValueError, OverflowError) as error:
        raise DataError(
            f"{where}: Arrow cannot take the ids ({_one_line(error)}); give int64 ids or strings, as the model's "
            "catalog has them"
        ) from error


def table_chunks(table: pa.Table, *, most_rows: int) -> Iterator[UserChunk]:
    """Cut a table into chunks of users, without copying.

    Args:
        table: the columns that are read.
        most_rows: users in a chunk at most; fewer where lists are long on average.
    """
    fitting = _CHUNK_BYTES * table.num_rows // max(table.nbytes, 1)
    first_row = 0
    for rows in table.to_batches(max_chunksize=max(1, min(most_rows, fitting))):
        yield UserChunk(PLACE, PLACE, None, first_row, rows)
        first_row += rows.num_rows


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())
