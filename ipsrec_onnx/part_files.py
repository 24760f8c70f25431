"""The Parquet files of a job's parts: whole or not there, with what they count; read again by a job that goes on."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from ipsrec_onnx.atomic import make_folders, sync
from ipsrec_onnx.broken_work import describe_error
from ipsrec_onnx.errors import DataError, IpsrecError
from ipsrec_onnx.row_writer import RowWriter, open_row_writer
from ipsrec_onnx.score_counts import ScoreCounts

COUNTS_KEY = "ipsrec.counts"  # in the metadata of each part: what it counts


@contextlib.contextmanager
def broken_writing(path: Path) -> Iterator[None]:
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
def open_part(path: Path, schema: pa.Schema, *, group_rows: int) -> Iterator[RowWriter]:
    """Write a file that has its name once it is whole and on the disk; folders above it are made."""
    temporary = path.with_name(f"{path.name}.tmp")
    make_folders(path.parent)
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


def read_counts(path: Path) -> ScoreCounts:
    """What a part that is done counts.

    Raises:
        DataError: it cannot be read.
    """
    try:
        metadata = pq.read_metadata(path).metadata or {}
        return ScoreCounts.from_json(json.loads(metadata[COUNTS_KEY.encode()]))
    except (pa.ArrowException, OSError, KeyError, ValueError, TypeError) as error:
        raise _unreadable(path, error) from error


def _unreadable(path: Path, error: Exception) -> DataError:
    return DataError(f"{path}: this part of an unfinished job cannot be read ({error}); start over with --overwrite")


def stored_rows(path: Path, schema: pa.Schema) -> Iterator[pa.Table]:
    """The rows of a part that is done, a row group at a time, with the columns that the job writes.

    Raises:
        DataError: it cannot be read.
    """
    schema = schema.remove_metadata()
    try:
        with pq.ParquetFile(path, page_checksum_verification=True) as parquet:
            for row_group in range(parquet.num_row_groups):
                yield parquet.read_row_group(row_group, use_threads=False).cast(schema)
    except (pa.ArrowException, OSError, ValueError) as error:
        raise _unreadable(path, error) from error
