"""Finds malformed rows, and keeps them apart with a reason, so that every input row is accounted for."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from ipsrec_onnx.errors import DataError
from ipsrec_onnx.id_lists import IdLists
from ipsrec_onnx.user_chunks import UserChunk

FINE = 0


def find_bad_rows(
    chunk: UserChunk, lists: dict[str, IdLists], *, same_lengths: tuple[str, str] | None
) -> tuple[npt.NDArray[np.int8], list[str]]:
    """Find the rows that cannot be scored.

    Args:
        chunk: the rows; its first column is the user id.
        lists: the lists of each list column.
        same_lengths: two columns whose lists must be of equal length.

    Returns:
        reason: (n,) int8, FINE or 1 + the row of reasons.
        reasons: what can be wrong, in words.
    """
    reason, reasons = find_bad_lists(lists, same_lengths=same_lengths)
    no_user = chunk.rows.column(0).is_null().to_numpy(zero_copy_only=False)
    reason[no_user] = len(reasons) + 1
    return reason, [*reasons, f"{chunk.rows.schema.names[0]} is null"]


def find_bad_lists(
    lists: dict[str, IdLists], *, same_lengths: tuple[str, str] | None
) -> tuple[npt.NDArray[np.int8], list[str]]:
    """Find the users whose lists cannot be scored; as find_bad_rows, of one list column or more."""
    reason = np.full(len(next(iter(lists.values())).null_lists), FINE, np.int8)
    reasons: list[str] = []

    def add(bad: npt.NDArray[np.bool_], words: str) -> None:
        reasons.append(words)
        reason[bad & (reason == FINE)] = len(reasons)

    for column, column_lists in lists.items():
        add(column_lists.null_lists, f"{column} is null")
        add(column_lists.too_large, f"{column} holds an id beyond int64")
        add(column_lists.lists_with_null(), f"{column} holds a null")
    if same_lengths is not None:
        first, second = same_lengths
        add(lists[first].lengths != lists[second].lengths, f"{first} and {second} are of different lengths")
    return reason, reasons


def refuse_bad_rows(chunk: UserChunk, reason: npt.NDArray[np.int8], reasons: list[str]) -> None:
    """Raise for the first malformed row.

    Raises:
        DataError: there is one; names file, row group and row.
    """
    rows = np.flatnonzero(reason != FINE)
    if len(rows):
        row = int(rows[0])
        raise DataError(
            f"{chunk.where(row)}: {reasons[reason[row] - 1]}; mend the row, or set such rows aside with "
            "--bad-rows divert"
        )


def dead_letter_schema(schema: pa.Schema) -> pa.Schema:
    """Columns of the dead letters: where each row stood, what is wrong with it, and the row itself, of this schema."""
    place = [("file", pa.string()), ("row_group", pa.int64()), ("row", pa.int64()), ("reason", pa.string())]
    taken = {name for name, _ in place}
    own = [field.with_name(f"input_{field.name}" if field.name in taken else field.name) for field in schema]
    return pa.schema([*place, *own])


def dead_letters(chunk: UserChunk, reason: npt.NDArray[np.int8], reasons: list[str], *, schema: pa.Schema) -> pa.Table:
    """Lay out the malformed rows of a chunk.

    Args:
        chunk: the rows.
        reason: (n,) int8, as find_bad_rows gave it.
        reasons: likewise.
        schema: as dead_letter_schema made it.

    Returns:
        A row for each that is not FINE, in their order.
    """
    rows = np.flatnonzero(reason != FINE)
    words = pa.array(reasons, pa.string())
    columns = [
        pa.array([chunk.name] * len(rows), pa.string()),
        pa.array([chunk.row_group] * len(rows), pa.int64()),
        pa.array(rows + chunk.first_row, pa.int64()),
        words.take(pa.array(reason[rows].astype(np.int64) - 1)),
        *chunk.rows.take(pa.array(rows)).columns,
    ]
    return pa.Table.from_arrays(columns, schema=schema)
