"""The Parquet files of a job's parts: whole or not there, with what they count; read again by a job that goes on."""

from __future__ import annotations

import contextlib
import json
import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from ipsrec_onnx.atomic import sync
from ipsrec_onnx.broken_work import describe_error
from ipsrec_onnx.errors import DataError, IpsrecError
from ipsrec_onnx.object_store import open_whole, scratch_of_this_user
from ipsrec_onnx.row_writer import RowWriter, open_row_writer
from ipsrec_onnx.score_counts import ScoreCounts
from ipsrec_onnx.stored_file import COUNTS_KEY, StoredFile, file_entry


@contextlib.contextmanager
def broken_writing(path: Path | StoredFile) -> Iterator[None]:
    """Name the file where writing it breaks down for another reason than the disk.

    Raises:
        OutOfMemoryError: memory ran out.
        DefectError: any other exception that is neither an OSError nor an IpsrecError.
    """
    try:
        yield
    except (OSError, IpsrecError):
        raise
    except Exception as error:
        raise describe_error(error, where=f"output {path}") from error


@contextlib.contextmanager
def open_part(path: Path | StoredFile, schema: pa.Schema, *, group_rows: int) -> Iterator[RowWriter]:
    """Write a file that has its name once it is whole and on the disk, or in the store; its folder is there."""
    if isinstance(path, StoredFile):
        with scratch_of_this_user() as scratch:
            with open_row_writer(scratch / "part.parquet", schema, group_rows=group_rows) as writer:
                yield writer
            path.send(scratch / "part.parquet")
        return
    # Its own, for the worker of a job that was killed may still be at the same part.
    temporary = path.with_name(f"{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        temporary.touch()  # where this is not allowed, Python says which file it is, and Arrow does not
        with open_row_writer(temporary, schema, group_rows=group_rows) as writer:
            yield writer
        sync(temporary)
    except BaseException:
        with contextlib.suppress(OSError):  # the error that brought us here matters more
            temporary.unlink(missing_ok=True)
        raise
    temporary.replace(path)
    sync(path.parent)


def read_counts(path: Path | StoredFile) -> ScoreCounts:
    """What a part that is done counts.

    Raises:
        DataError: it cannot be read.
    """
    try:
        if isinstance(path, StoredFile):
            return ScoreCounts.from_json(path.read_record()["counts"])
        metadata = pq.read_metadata(path).metadata or {}
        return ScoreCounts.from_json(json.loads(metadata[COUNTS_KEY.encode()]))
    except (pa.ArrowException, OSError, KeyError, ValueError, TypeError) as error:
        raise _unreadable(path, error) from error


def entry_of(path: Path | StoredFile, *, name: str) -> dict[str, Any]:
    """What the manifest says of a file of the job that is whole, as file_entry has it.

    Raises:
        DataError: it is kept in a store, and its record cannot be read.
    """
    if isinstance(path, StoredFile):
        record = path.read_record()
        return {"file": name, **{key: record[key] for key in ("rows", "bytes", "sha256")}}
    return file_entry(path, name=name)


def _unreadable(path: Path | StoredFile, error: Exception) -> DataError:
    return DataError(f"{path}: this part of an unfinished job cannot be read ({error}); start over with --overwrite")


def stored_rows(path: Path | StoredFile, schema: pa.Schema) -> Iterator[pa.Table]:
    """The rows of a part that is done, a row group at a time, with the columns that the job writes.

    Raises:
        DataError: it cannot be read.
    """
    schema = schema.remove_metadata()
    try:
        with open_whole(path.place if isinstance(path, StoredFile) else path) as parquet:
            for row_group in range(parquet.num_row_groups):
                yield parquet.read_row_group(row_group, use_threads=False).cast(schema)
    except (pa.ArrowException, OSError, ValueError) as error:
        raise _unreadable(path, error) from error
