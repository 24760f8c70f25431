"""Writes rows to a Parquet file whose bytes do not depend on how the rows arrive."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

# Dictionary encoding pays where few values repeat; ids are spread over the catalog and scores hardly ever repeat.
_DICTIONARY_COLUMNS = ("status", "rank", "file", "reason")


class RowWriter:
    """Writes tables of any size as row groups of one size.

    Attributes:
        num_rows: rows taken so far.
    """

    def __init__(self, writer: pq.ParquetWriter, schema: pa.Schema, *, group_rows: int) -> None:
        self._writer = writer
        self._group_rows = group_rows
        self._waiting = schema.empty_table()
        self.num_rows = 0

    def write(self, rows: pa.Table) -> None:
        """Take more rows; they reach the file when a row group is full."""
        if not rows.num_rows:  # empty tables would pile up among the waiting ones
            return
        self.num_rows += rows.num_rows
        self._waiting = pa.concat_tables([self._waiting, rows])
        while self._waiting.num_rows >= self._group_rows:
            self._write_group(self._waiting.slice(0, self._group_rows))
            self._waiting = self._waiting.slice(self._group_rows)

    def note(self, key: str, value: str) -> None:
        """Write a word about the rows into the file's metadata."""
        self._writer.add_key_value_metadata({key: value})

    def finish(self) -> None:
        """Write the last row group."""
        if self._waiting.num_rows:
            self._write_group(self._waiting)

    def _write_group(self, rows: pa.Table) -> None:
        # One chunk a column: the writer ends a page where a chunk ends.
        self._writer.write_table(rows.combine_chunks(), row_group_size=self._group_rows)


@contextlib.contextmanager
def open_row_writer(path: Path, schema: pa.Schema, *, group_rows: int) -> Iterator[RowWriter]:
    """Open a Parquet file for writing; when the block ends without an error, the file is whole.

    Args:
        path: the file to make.
        schema: its columns.
        group_rows: rows of each row group but the last.
    """
    dictionary = [name for name in schema.names if name in _DICTIONARY_COLUMNS]
    with pq.ParquetWriter(
        path, schema, compression="zstd", use_dictionary=dictionary, write_page_checksum=True
    ) as parquet:
        writer = RowWriter(parquet, schema, group_rows=group_rows)
        yield writer
        writer.finish()
