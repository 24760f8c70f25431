"""Reads the rows of users files: chunk by chunk, in order, in bounded memory; all of them, or some parts."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby

import pyarrow as pa
import pyarrow.parquet as pq

from ipsrec_onnx.broken_work import describe_error
from ipsrec_onnx.errors import DataError
from ipsrec_onnx.id_lists import cast_views
from ipsrec_onnx.memory_plan import MOST_IDS
from ipsrec_onnx.user_parts import UserPart
from ipsrec_onnx.users import RowGroup, Users, UsersFile, footer_sha256, open_parquet


@dataclass(frozen=True, eq=False)
class UserChunk:
    """Some users that stand together in one row group of a file, or in a table that the caller has.

    Attributes:
        path: of the file, or what else a message calls the place.
        name: of the file, for the dead letters.
        row_group: number of the row group in the file, from 0; None for a table.
        first_row: number of the chunk's first row in the row group or the table, from 0.
        rows: (n,) record batch of the columns that are read.
    """

    path: str
    name: str
    row_group: int | None
    first_row: int
    rows: pa.RecordBatch

    def where(self, row: int | None = None) -> str:
        """Say where the chunk, or one row of it, stands."""
        place = self.path if self.row_group is None else f"{self.path}, row group {self.row_group}"
        return place if row is None else f"{place}, row {self.first_row + row}"


def read_chunks(
    users: Users, parts: Sequence[UserPart], *, chunk_rows: int, chunk_ids: int = MOST_IDS
) -> Iterator[UserChunk]:
    """Read the users of some parts in order.

    No chunk spans two row groups or two parts, nor holds many more ids than memory is meant for. A row group is read
    from its first row to the last one that is wanted, wherever the part begins in it.

    Args:
        users: as open_users gave it.
        parts: of plan_parts, in their order.
        chunk_rows: users in a chunk at most; fewer where a row group's lists are long on average.
        chunk_ids: ids in a chunk, on the average of its row group.

    Raises:
        DataError: a file has changed since it was opened, or a row group cannot be read, or it has another number of
            rows than the file says.
    """
    for number, of_file in groupby(parts, key=lambda part: part.file):
        file, wanted = users.files[number], list(of_file)
        with open_parquet(users.file_system, file.path) as parquet:
            if footer_sha256(users.file_system, file.path) != file.footer_sha256:
                raise DataError(f"{file.path}: changed while the job ran; begin again when it stays as it is")
            group_start = 0
            for row_group, group in enumerate(file.row_groups):
                group_stop = group_start + group.num_rows
                if here := list(_shared(wanted, group_start, group_stop)):
                    start, last = group_start, here[-1][1]
                    rows = batch_rows(group, chunk_rows=chunk_rows, chunk_ids=chunk_ids)
                    for batch in _read_row_group(parquet, users, file, row_group=row_group, batch_rows=rows):
                        for first, stop in _shared(wanted, start, start + batch.num_rows):
                            shared = batch.slice(first - start, stop - first)
                            yield UserChunk(file.path, file.name, row_group, first - group_start, shared)
                        start += batch.num_rows
                        if last <= start and last < group_stop:
                            break  # whoever has the group's last rows counts them
                    else:
                        _check_rows(file, row_group, found=start - group_start, expected=group_stop - group_start)
                group_start = group_stop


def batch_rows(group: RowGroup, *, chunk_rows: int, chunk_ids: int) -> int:
    """Rows that are read of a row group at a time: chunk_rows, or fewer where its lists are long on average."""
    return max(1, min(chunk_rows, chunk_ids * group.num_rows // max(group.num_ids, 1)))


def _shared(parts: Sequence[UserPart], start: int, stop: int) -> Iterator[tuple[int, int]]:
    """What each part has of the rows start .. stop - 1 of their file, as (first, one past the last); not if nothing."""
    for part in parts:
        first, last = max(part.first_row, start), min(part.first_row + part.num_rows, stop)
        if first < last:
            yield first, last


def _check_rows(file: UsersFile, row_group: int, *, found: int, expected: int) -> None:
    if found != expected:
        raise DataError(
            f"{file.path}, row group {row_group}: {found} rows, its footer says {expected}; the file is broken, write "
            "it again"
        )


def _read_row_group(
    parquet: pq.ParquetFile, users: Users, file: UsersFile, *, row_group: int, batch_rows: int
) -> Iterator[pa.RecordBatch]:
    """Read one row group in batches; memory holds one batch and the read buffers."""
    names, place = users.columns.names, f"{file.path}, row group {row_group}"
    with _readable(place):
        for batch in parquet.iter_batches(batch_rows, row_groups=[row_group], columns=names, use_threads=False):
            columns = [
                cast_views(batch[name], users.schema.field(name).type, where=f"{place}, column {name}")
                for name in names
            ]
            yield pa.RecordBatch.from_arrays(columns, schema=users.schema)


@contextlib.contextmanager
def _readable(place: str) -> Iterator[None]:
    """Name what is read.

    Raises:
        DataError: it cannot be read.
        OutOfMemoryError: there is no memory for it.
    """
    try:
        yield
    except MemoryError as error:  # Arrow's, too
        raise describe_error(error, where=place) from error
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        raise DataError(f"{place}: cannot be read ({error}); the file is broken, write it again") from error
