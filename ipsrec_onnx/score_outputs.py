"""What a scoring job writes, part by part, so that one that is killed can go on."""

from __future__ import annotations

import contextlib
import itertools
import json
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass, field
from typing import Any, NamedTuple, TypeVar

import pyarrow as pa

from ipsrec_onnx.errors import DataError, IpsrecError
from ipsrec_onnx.job_folder import JobFolder
from ipsrec_onnx.lanes import Step, do_steps
from ipsrec_onnx.part_files import broken_writing, open_part, read_counts, stored_rows
from ipsrec_onnx.progress import JobLog
from ipsrec_onnx.score_counts import ScoreCounts
from ipsrec_onnx.scored_chunk import ScoredChunk
from ipsrec_onnx.stage_times import StageTimes
from ipsrec_onnx.stored_file import COUNTS_KEY
from ipsrec_onnx.throughput import Throughput
from ipsrec_onnx.user_parts import UserPart

Sent = TypeVar("Sent")


class RowSchemas(NamedTuple):
    """Columns of what is written, and the rows of each row group but the last."""

    candidates: pa.Schema
    candidates_group_rows: int
    bad_rows: pa.Schema
    bad_rows_group_rows: int


@dataclass(frozen=True, eq=False)
class Written:
    """What is written after a step.

    Attributes:
        counts: of a chunk; zeros where none was written.
        times: where its worker's time went.
        carried_users: of the chunk, whose lists were carried over.
        part: that the step is of; None for the whole file.
        whole: is the part whole now?
    """

    counts: ScoreCounts = field(default_factory=ScoreCounts)
    times: StageTimes = field(default_factory=StageTimes)
    carried_users: int = 0
    part: UserPart | None = None
    whole: bool = False


class ScoreOutputs:
    """Writes parts as they are scored, and takes over those that are done.

    Args:
        folder: of the job.
        parts: that are written, in the order of their rows.
        schemas: of what is written.
        parts_alone: write no whole file, even where the candidates become one: not all parts are here.

    Attributes:
        done: what the parts that are done count, by number.
        times: where the time went, of the workers and of writing.
        throughput: how far it was at what time, without the parts that are done.
        carried_users: whose lists were carried over, of those written by now.
    """

    def __init__(
        self, folder: JobFolder, parts: list[UserPart], schemas: RowSchemas, *, parts_alone: bool = False
    ) -> None:
        self._folder, self._parts, self._schemas = folder, parts, schemas
        self._with_whole = not (parts_alone or folder.targets.as_folder)
        self.times, self.throughput = StageTimes(), Throughput()
        self.carried_users = 0
        self.done: dict[int, ScoreCounts] = {}
        for number, part in enumerate(parts):
            path = folder.part(part_name(part))
            if path.exists():
                self.done[number] = read_counts(path)

    @property
    def missing(self) -> list[UserPart]:
        """The parts that were not done when this was made, in their order."""
        return [part for number, part in enumerate(self._parts) if number not in self.done]

    def counts_of(self, part: UserPart) -> ScoreCounts:
        """What a part counts that is done by now.

        Raises:
            DataError: it cannot be read.
        """
        return read_counts(self._folder.part(part_name(part)))

    def write(
        self, chunks: Iterator[ScoredChunk], *, writers: int, most: int, log: JobLog
    ) -> Generator[Written, None, None]:
        """Write everything: several parts at once, each by one thread, and the whole file by one beside them.

        Args:
            chunks: of the parts that are not done, in the order of the parts.
            writers: threads that write.
            most: chunks that are taken and not yet written.
            log: hears of each part that is done.

        Yields:
            Each chunk once it is written, and each part once it is whole; no chunks of parts that were done before.
        """
        taken_over = {self._parts[number] for number in self.done}
        with (
            contextlib.ExitStack() as files,  # left when the threads have ended
            contextlib.closing(
                do_steps(self._steps(chunks, files, writers=writers), lanes=writers, most=most)
            ) as steps,
        ):
            for written, times in steps:
                for spent in (written.times, *times):
                    self.times.add(spent)
                if written.counts.rows_in:
                    self.throughput.add(written.counts.rows_in)
                self.carried_users += written.carried_users
                if written.counts.rows_in or written.whole:
                    yield written
                if written.part is not None and written.whole and written.part not in taken_over:
                    log.event("part_done", part=part_name(written.part), users=written.part.num_rows)

    def _steps(
        self, chunks: Iterator[ScoredChunk], files: contextlib.ExitStack, *, writers: int
    ) -> Iterator[Step[Written, StageTimes]]:
        """Say what is to be written where: the whole file in lane 0, parts in turn in the others, if there are any."""
        whole = None
        if self._with_whole:
            whole = files.enter_context(_given_up(self._write_whole()))
            yield Step(Written(), [(0, _timed(next, whole, None))])
        first_lane = 0 if whole is None or writers == 1 else 1
        lanes = itertools.cycle(range(first_lane, writers))
        for number, part in enumerate(self._parts):
            lane = next(lanes)
            if number in self.done:
                task = _timed(self._take_over, part, whole)
                yield Step(Written(part=part, whole=True), [(lane if whole is None else 0, task)])
                continue
            writer = files.enter_context(_given_up(self._write_part(part)))
            yield Step(Written(part=part, whole=not part.num_rows), [(lane, _timed(next, writer, None))])
            left = part.num_rows
            while left > 0:
                chunk = next(chunks, None)
                if chunk is None:
                    raise DataError(
                        f"{part_name(part)}: the input has fewer rows than at first; did it change? run again"
                    )
                left -= chunk.counts.rows_in
                tasks = [(lane, _timed(_send, writer, chunk))]
                if whole is not None:
                    tasks.append((0, _timed(_send, whole, chunk.rows)))
                yield Step(Written(chunk.counts, chunk.times, chunk.carried_users, part, whole=left <= 0), tasks)
                del chunk, tasks  # written, perhaps: not to be held while the next one is waited for
        if whole is not None:
            yield Step(Written(), [(0, _timed(_send, whole, None))])

    def _write_part(self, part: UserPart) -> Generator[None, ScoredChunk, None]:
        """Write one part from the chunks that are sent; with its last row, it gets its name."""
        path, schemas = self._folder.part(part_name(part)), self._schemas
        bad_path = self._folder.bad_rows_part(part_name(part))
        counts = ScoreCounts()
        with broken_writing(path), contextlib.ExitStack() as stack:
            self._folder.make_partition(part.partition)
            # The stack unwinds from below: the malformed rows have their name before the part counts as done.
            writer = stack.enter_context(open_part(path, schemas.candidates, group_rows=schemas.candidates_group_rows))
            bad_rows = None
            if self._folder.targets.bad_rows is not None:
                bad_rows = stack.enter_context(
                    open_part(bad_path, schemas.bad_rows, group_rows=schemas.bad_rows_group_rows)
                )
            while counts.rows_in < part.num_rows:
                chunk = yield
                writer.write(chunk.rows)
                if bad_rows is not None:
                    bad_rows.write(chunk.dead_letters)
                counts += chunk.counts
                del chunk  # the next one may be long in coming
            writer.note(COUNTS_KEY, json.dumps(counts.to_json()))

    def _write_whole(self) -> Generator[None, pa.Table | None, None]:
        """Write the rows that are sent into one file; with None, it gets its name."""
        path, schemas = self._folder.whole, self._schemas
        with (
            broken_writing(path),
            open_part(path, schemas.candidates, group_rows=schemas.candidates_group_rows) as writer,
        ):
            while (rows := (yield)) is not None:
                writer.write(rows)
                del rows

    def _take_over(self, part: UserPart, whole: Generator[None, pa.Table | None, None] | None) -> None:
        """Read a part that is done into the whole file; of a folder, too: a damaged part is found here."""
        for rows in stored_rows(self._folder.part(part_name(part)), self._schemas.candidates):
            if whole is not None:
                _send(whole, rows)

    def gather_bad_rows(self) -> None:
        """Write the malformed rows of all parts, which are done, into one file, where they are set aside."""
        if self._folder.targets.bad_rows is None:
            return
        schemas, target = self._schemas, self._folder.whole_bad_rows
        with (
            self.times.stage("write"),
            open_part(target, schemas.bad_rows, group_rows=schemas.bad_rows_group_rows) as writer,
        ):
            for part in self._parts:
                for rows in stored_rows(self._folder.bad_rows_part(part_name(part)), schemas.bad_rows):
                    writer.write(rows)


def part_name(part: UserPart) -> str:
    """The file of a part, below the folders of its partition; names, without these, are in the order of the rows."""
    name = f"part-{part.file:05d}-{part.first_row:012d}.parquet"
    return f"{part.partition}/{name}" if part.partition else name


def _timed(function: Callable[..., object], *arguments: Any) -> Callable[[], StageTimes]:
    """A task of a lane that says what it took."""

    def task() -> StageTimes:
        times = StageTimes()
        with times.stage("write"):
            function(*arguments)
        return times

    return task


def _send(writer: Generator[None, Sent, None], rows: Sent) -> None:
    """Have a writer that has begun write more rows; one that has failed says so once, and takes no more."""
    with contextlib.suppress(StopIteration):
        writer.send(rows)


@contextlib.contextmanager
def _given_up(writer: Generator[None, Sent, None]) -> Iterator[Generator[None, Sent, None]]:
    """When the block is left, throw away what the writer has not finished."""
    try:
        yield writer
    finally:
        with contextlib.suppress(OSError, IpsrecError):  # the error that brought us here matters more
            writer.close()
