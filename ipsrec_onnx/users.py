"""Opens users files, which input_files.py finds; user_chunks.py reads their rows."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Generator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import pyarrow as pa
import pyarrow.fs as pafs
import pyarrow.parquet as pq

from ipsrec_onnx.catalog import Catalog
from ipsrec_onnx.errors import DataError
from ipsrec_onnx.id_lists import list_id_type
from ipsrec_onnx.ids import without_views
from ipsrec_onnx.input_files import FoundFile, find_files
from ipsrec_onnx.uris import shown

PROVIDER_COLUMN = "provider_history"  # read where the files have it and no other name is asked for
_MOST_ROWS_PER_BYTE = 1 << 16  # 20 million rows of nothing but nulls take a byte for 250
_READ_BUFFER = 1 << 20  # bytes held of each column chunk, however big its row group
_FOOTERS_AT_ONCE = 16  # over a network; on a disk, 500 small files took 0.18 s one by one, and longer with threads


@dataclass(frozen=True)
class UserColumns:
    """Names of the columns to read.

    Attributes:
        user_id: ids of the users.
        item_history: lists of item ids.
        provider_history: lists of provider ids. None asks open_users for PROVIDER_COLUMN where there is one; among the
            columns of Users, None says that there is none.
        candidates: lists of item ids to choose from; None where the choice is free.
    """

    user_id: str
    item_history: str
    provider_history: str | None
    candidates: str | None

    @property
    def names(self) -> list[str]:
        """The columns that are there, in a fixed order."""
        names = (self.user_id, self.item_history, self.provider_history, self.candidates)
        return [name for name in names if name is not None]


class RowGroup(NamedTuple):
    """What a row group of a users file holds.

    Attributes:
        num_rows: users in it.
        num_ids: ids in all their lists that are read; a null or empty list counts as one.
    """

    num_rows: int
    num_ids: int


@dataclass(frozen=True)
class UsersFile:
    """One Parquet file of users.

    Attributes:
        path: in its file system.
        name: for people and for the dead letters: path below the input's root.
        partition: the key=value folders of the name, joined by slashes; "" without any.
        num_rows: users in it.
        row_groups: in their order.
        size: in bytes.
        mtime_ns: when it was last written, nanoseconds since 1970; None where the file system does not know.
        footer_sha256: of its Parquet metadata: sizes, offsets and statistics of every column chunk.
    """

    path: str
    name: str
    partition: str
    num_rows: int
    row_groups: tuple[RowGroup, ...]
    size: int
    mtime_ns: int | None
    footer_sha256: str


@dataclass(frozen=True, eq=False)
class Users:
    """Opened users files; their rows are read later, by user_chunks.read_chunks.

    Attributes:
        source: what was asked for, for messages.
        file_system: where the files lie.
        files: in the order of their rows.
        columns: what to read.
        schema: of the columns that are read, without string views; the same in every file.
    """

    source: str
    file_system: pafs.FileSystem
    files: list[UsersFile]
    columns: UserColumns
    schema: pa.Schema

    @property
    def num_rows(self) -> int:
        """Users in all files."""
        return sum(file.num_rows for file in self.files)

    def for_others(self) -> Users:
        """The same files by names that a process in another folder finds, too."""
        if not isinstance(self.file_system, pafs.LocalFileSystem):
            return self
        return replace(self, files=[replace(file, path=str(Path(file.path).absolute())) for file in self.files])

    @property
    def most_ids_of_a_row(self) -> float:
        """Ids of a row in all its lists, on the average of the row group where it is highest."""
        groups = (group for file in self.files for group in file.row_groups)
        return max((group.num_ids / max(group.num_rows, 1) for group in groups), default=0.0)


def open_users(source: str | Path, columns: UserColumns) -> Users:
    """Find the files of a source and check their columns; reads no more than their footers.

    Args:
        source: as find_files takes it; files are read in the order of their paths.
        columns: what to read. A column that is named must be in every file.

    Raises:
        DataError: nothing is there, or a pipe or device; a file is no whole Parquet file, lacks a column, or has other
            columns or types than the first file.
    """
    file_system, found = find_files(source)
    with contextlib.closing(_opened(file_system, found, columns)) as opened:
        first, present, schema = next(opened)
        files = [first]
        for file, _, other in opened:
            if other != schema:
                raise DataError(
                    f"{file.path}: columns {_types(other)}, but {first.path} has {_types(schema)}; "
                    "write all files of a folder with the same columns and types"
                )
            files.append(file)
    return Users(source=shown(source), file_system=file_system, files=files, columns=present, schema=schema)


def _opened(
    file_system: pafs.FileSystem, found: list[FoundFile], columns: UserColumns
) -> Generator[tuple[UsersFile, UserColumns, pa.Schema], None, None]:
    """Read the footers of files, several at a time where each has to come from afar, and give them in order."""
    if isinstance(file_system, pafs.LocalFileSystem):
        yield from (_open_file(file_system, file, columns) for file in found)
        return
    with ThreadPoolExecutor(min(_FOOTERS_AT_ONCE, len(found)), thread_name_prefix="ipsrec-footer") as pool:
        try:
            yield from pool.map(lambda file: _open_file(file_system, file, columns), found)
        finally:
            pool.shutdown(cancel_futures=True)  # the first file that is refused is the last to be looked at


def _open_file(
    file_system: pafs.FileSystem, found: FoundFile, columns: UserColumns
) -> tuple[UsersFile, UserColumns, pa.Schema]:
    """Check one file by its footer.

    Returns:
        The file; its columns that will be read; their types, without string views.

    Raises:
        DataError: as open_users.
    """
    path = found.path
    with open_parquet(file_system, path) as parquet:
        schema = parquet.schema_arrow
        present = present_columns(columns, schema, where=path)
        row_groups = _row_groups(parquet, path, names=present.names, size=found.size)
        num_rows = parquet.metadata.num_rows
    footer = footer_sha256(file_system, path)
    file = UsersFile(path, found.name, found.partition, num_rows, row_groups, found.size, found.mtime_ns, footer)
    return file, present, selected_schema(schema, present, where=path)


def check_id_kinds(schema: pa.Schema, columns: UserColumns, catalog: Catalog, *, where: str) -> None:
    """Check, before any work, that the ids of the histories are of the catalog's kinds.

    Args:
        schema: of the columns.
        columns: which of them are what.
        catalog: of the model.
        where: what has this schema, for the message.

    Raises:
        DataError: a column is no list, or its ids are of another kind.
    """
    item_kind, provider_kind = catalog.item_ids.type, catalog.provider_ids.type
    for column, kind in (
        (columns.item_history, item_kind),
        (columns.provider_history, provider_kind),
        (columns.candidates, item_kind),
    ):
        if column is not None:
            list_id_type(schema.field(column).type, kind=kind, where=f"{where}, column {column}")


def open_parquet(file_system: pafs.FileSystem, path: str) -> pq.ParquetFile:
    """Open a Parquet file without reading ahead: a row group may be larger than memory allows for."""
    try:
        parquet = pq.ParquetFile(path, filesystem=file_system, pre_buffer=False, buffer_size=_READ_BUFFER)
        _ = parquet.schema_arrow.names  # where a name is no UTF-8, Python says so only when it is asked for
    except FileNotFoundError as error:
        raise DataError(f"{path}: is not there any more; put it back, and run again") from error
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: cannot be read as Parquet ({error}); write the file again") from error
    return parquet


def footer_sha256(file_system: pafs.FileSystem, path: str) -> str:
    """SHA-256 of the Parquet metadata of a file that open_parquet could open, as UsersFile has it.

    Of the bytes as they lie there: pyarrow 26 ends the process where it is to write some broken metadata again.

    Raises:
        DataError: the file has gone, or cannot be read.
    """
    try:
        with file_system.open_input_file(path) as file:
            size = file.size()
            file.seek(max(size - 8, 0))
            length = int.from_bytes(file.read(4), "little")
            file.seek(max(size - 8 - length, 0))
            return hashlib.sha256(file.read()).hexdigest()
    except FileNotFoundError as error:
        raise DataError(f"{path}: is not there any more; put it back, and run again") from error
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"{path}: cannot be read as Parquet ({error}); write the file again") from error


def _row_groups(parquet: pq.ParquetFile, path: str, *, names: list[str], size: int) -> tuple[RowGroup, ...]:
    """What the footer says of each row group; it may say anything, and work is planned by it before a row is read.

    Args:
        parquet: the file.
        path: of it, for messages.
        names: columns that will be read.
        size: of the file in bytes.

    Raises:
        DataError: the footer contradicts itself, or the file's size; or a row group cannot be read.
    """
    schema, metadata = parquet.schema, parquet.metadata
    leaves = [schema.column(number) for number in range(len(schema))]
    read = [n for n, leaf in enumerate(leaves) if any(f"{leaf.path}.".startswith(f"{name}.") for name in names)]
    total, found = 0, []
    for number in range(metadata.num_row_groups):
        place = f"{path}, row group {number}"
        try:
            # pyarrow 26 ends the whole process where a column's metadata is broken and is asked for from Python;
            # reading a row first meets the same defect as an error.
            next(parquet.iter_batches(1, row_groups=[number], columns=names, use_threads=False), None)
        except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
            raise DataError(f"{place}: cannot be read ({error}); the file is broken, write it again") from error
        group = metadata.row_group(number)
        rows, ids = int(group.num_rows), 0
        total += rows
        for column in read:
            values, is_list = int(group.column(column).num_values), leaves[column].max_repetition_level > 0
            if rows < 0 or values < rows or (values > rows and not is_list):
                raise DataError(
                    f"{place}: its footer says {rows} rows, and {values} values of {leaves[column].path}; the file is "
                    "broken, write it again"
                )
            ids += values if is_list else 0
        found.append(RowGroup(rows, ids))
    if total != metadata.num_rows or total > _MOST_ROWS_PER_BYTE * size:
        raise DataError(
            f"{path}: its footer says {metadata.num_rows} rows, {total} in all row groups, in {size} bytes; the file "
            "is broken, write it again"
        )
    return tuple(found)


def present_columns(columns: UserColumns, schema: pa.Schema, *, where: str) -> UserColumns:
    """Add PROVIDER_COLUMN where the schema has it and no name is asked for.

    Raises:
        DataError: a column is not there, or more than once.
    """
    if columns.provider_history is None and PROVIDER_COLUMN in schema.names:
        columns = replace(columns, provider_history=PROVIDER_COLUMN)
    for name in columns.names:
        if schema.names.count(name) != 1:
            found = f"is there {schema.names.count(name)} times" if name in schema.names else "is missing"
            raise DataError(f"{where}: column {name} {found}, found {schema.names}; name another column by its option")
    return columns


def selected_schema(schema: pa.Schema, columns: UserColumns, *, where: str) -> pa.Schema:
    """Types of the columns that are read, without string views.

    Raises:
        DataError: one column is named for two purposes.
    """
    names = columns.names
    if len(set(names)) != len(names):
        raise DataError(f"{where}: one column is named for two purposes: {names}; name each its own")
    return pa.schema([(name, without_views(schema.field(name).type)) for name in names])


def _types(schema: pa.Schema) -> str:
    return ", ".join(f"{field.name} {field.type}" for field in schema)
