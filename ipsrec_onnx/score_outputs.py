"""What a scoring job writes, part by part, so that one that is killed can go on."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from ipsrec_onnx.atomic import sync
from ipsrec_onnx.errors import DataError
from ipsrec_onnx.job_folder import JobFolder
from ipsrec_onnx.progress import JobLog
from ipsrec_onnx.row_writer import RowWriter, open_row_writer
from ipsrec_onnx.score_counts import ScoreCounts
from ipsrec_onnx.scored_chunk import ScoredChunk
from ipsrec_onnx.stage_times import StageTimes
from ipsrec_onnx.throughput import Throughput
from ipsrec_onnx.user_chunks import UserPart

COUNTS_KEY = "ipsrec.counts"  # in the metadata of each part: what it counts


class RowSchemas(NamedTuple):
    """Columns of what is written, and the rows of each row group but the last."""

    candidates: pa.Schema
    candidates_group_rows: int
    bad_rows: pa.Schema
    bad_rows_group_rows: int


class ScoreOutputs:
    """Writes parts as they are scored, and takes over those that are done.

    Attributes:
        done: what the parts that are done count, by number.
        times: where the time went, of the workers and of writing.
        throughput: how far it was at what time, without the parts that are done.
    """

    def __init__(self, folder: JobFolder, parts: list[UserPart], schemas: RowSchemas) -> None:
        self._folder, self._parts, self._schemas = folder, parts, schemas
        self.times, self.throughput = StageTimes(), Throughput()
        self.done: dict[int, ScoreCounts] = {}
        for number, part in enumerate(parts):
            path = folder.part(part_name(part))
            if path.exists():
                self.done[number] = _read_counts(path)

    def write(self, chunks: Iterator[ScoredChunk], *, log: JobLog) -> Iterator[ScoreCounts]:
        """Write everything, in the order of the parts.

        Args:
            chunks: of the parts that are not done, in order.
            log: hears of each part that is done.

        Yields:
            What a chunk counts, once it is written; nothing for the parts that were done.
        """
        with contextlib.ExitStack() as stack:
            whole = None if self._folder.targets.as_folder else stack.enter_context(self._open_whole())
            for number, part in enumerate(self._parts):
                if number in self.done:
                    with self.times.stage("write"):
                        stored = _stored_rows(self._folder.part(part_name(part)), self._schemas.candidates)
                        for rows in stored:  # of a folder, too: a damaged part is found here
                            if whole is not None:
                                whole.write(rows)
                else:
                    yield from self._write_part(part, chunks, whole)
                    log.event("part_done", part=part_name(part), users=part.num_rows)
            with self.times.stage("write"):
                stack.close()  # the last row group is written now
                if self._folder.targets.bad_rows is not None:
                    self._gather_bad_rows()

    def _write_part(
        self, part: UserPart, chunks: Iterator[ScoredChunk], whole: RowWriter | None
    ) -> Iterator[ScoreCounts]:
        """Write one part from the chunks that come next."""
        path, schemas = self._folder.part(part_name(part)), self._schemas
        bad_path = self._folder.bad_rows_part(part_name(part))
        counts = ScoreCounts()
        with contextlib.ExitStack() as stack:
            # The stack unwinds from below: the malformed rows have their name before the part counts as done.
            writer = stack.enter_context(_open_part(path, schemas.candidates, group_rows=schemas.candidates_group_rows))
            bad_rows = None
            if self._folder.targets.bad_rows is not None:
                bad_rows = stack.enter_context(
                    _open_part(bad_path, schemas.bad_rows, group_rows=schemas.bad_rows_group_rows)
                )
            while counts.rows_in < part.num_rows:
                chunk = next(chunks, None)
                if chunk is None:
                    raise DataError(f"{path.name}: the input has fewer rows than at first; did it change? run again")
                self.times.add(chunk.times)
                with self.times.stage("write"):
                    writer.write(chunk.rows)
                    if whole is not None:
                        whole.write(chunk.rows)
                    if bad_rows is not None:
                        bad_rows.write(chunk.dead_letters)
                counts += chunk.counts
                self.throughput.add(chunk.counts.rows_in)
                yield chunk.counts
            with self.times.stage("write"):
                writer.note(COUNTS_KEY, json.dumps(counts.to_json()))
                stack.close()

    def _open_whole(self) -> contextlib.AbstractContextManager[RowWriter]:
        schemas = self._schemas
        return _open_part(self._folder.whole, schemas.candidates, group_rows=schemas.candidates_group_rows)

    def _gather_bad_rows(self) -> None:
        schemas = self._schemas
        target = self._folder.whole_bad_rows
        with _open_part(target, schemas.bad_rows, group_rows=schemas.bad_rows_group_rows) as writer:
            for part in self._parts:
                for rows in _stored_rows(self._folder.bad_rows_part(part_name(part)), schemas.bad_rows):
                    writer.write(rows)


def part_name(part: UserPart) -> str:
    """The file of a part; names are in the order of the rows."""
    return f"part-{part.file:05d}-{part.first_row:012d}.parquet"


@contextlib.contextmanager
def _open_part(path: Path, schema: pa.Schema, *, group_rows: int) -> Iterator[RowWriter]:
    """Write a file that has its name once it is whole and on the disk."""
    temporary = path.with_name(f"{path.name}.tmp")
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


def _read_counts(path: Path) -> ScoreCounts:
    """What a part that is done counts."""
    try:
        metadata = pq.read_metadata(path).metadata or {}
        return ScoreCounts.from_json(json.loads(metadata[COUNTS_KEY.encode()]))
    except (pa.ArrowException, OSError, KeyError, ValueError, TypeError) as error:
        raise _unreadable(path, error) from error


def _unreadable(path: Path, error: Exception) -> DataError:
    return DataError(f"{path}: this part of an unfinished job cannot be read ({error}); start over with --overwrite")


def _stored_rows(path: Path, schema: pa.Schema) -> Iterator[pa.Table]:
    """The rows of a part that is done, a row group at a time, with the columns that the job writes."""
    schema = schema.remove_metadata()
    try:
        with pq.ParquetFile(path, page_checksum_verification=True) as parquet:
            for row_group in range(parquet.num_row_groups):
                yield parquet.read_row_group(row_group, use_threads=False).cast(schema)
    except (pa.ArrowException, OSError, ValueError) as error:
        raise _unreadable(path, error) from error
