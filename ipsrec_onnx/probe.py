"""Scores some of a job's own users, spread over its input, to see how fast it will be and how much it will take.

What runs is the code of the job: its chunks, its threads, its writers, in a scratch folder. What a job does once (the
kernels are loaded with the first chunk, threads begin one after another) is kept apart from what it does again and
again.
"""

from __future__ import annotations

import collections
import hashlib
import itertools
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

from ipsrec_kernels.compiling import compiling
from ipsrec_onnx.job_folder import LocalJobFolder
from ipsrec_onnx.machine_memory import peak_memory, resident_memory
from ipsrec_onnx.memory_plan import ChunkPlan, MemoryBound
from ipsrec_onnx.output_paths import LocalPaths
from ipsrec_onnx.pipeline import ended
from ipsrec_onnx.progress import JobLog
from ipsrec_onnx.score_outputs import RowSchemas, ScoreOutputs
from ipsrec_onnx.score_run import plan_run, score_named_chunk, score_parts
from ipsrec_onnx.scored_chunk import ScoreRules
from ipsrec_onnx.throughput import steady_span
from ipsrec_onnx.user_chunks import batch_rows, read_chunks
from ipsrec_onnx.user_parts import UserPart
from ipsrec_onnx.users import RowGroup, Users

Thing = TypeVar("Thing")

_SECONDS = 2.0  # of measuring, about
_MOST_ROUNDS, _LEAST_ROUNDS = 4, 2  # chunks of each thread that are measured, after one that is not
_FIRST_ROWS = 256  # of the chunk that loads the kernels
_LEAST_ROWS = 512  # of the chunks that are measured, if the job's are larger: fewer leave batches half empty
_MOST_READ_ROWS = 1 << 21  # a row group is read from its first row on, wherever a chunk lies in it
_HASHED = 1 << 25  # bytes


@dataclass(frozen=True)
class Probe:
    """What some users took.

    Attributes:
        users: that were measured, as steady_span counts them.
        seconds: that they took, all threads at work.
        chunk_rows: users of their chunks at most.
        chunks: how the whole job is cut.
        part_chunk_rows: users of a chunk where a worker of a cluster has one part of it.
        first_s: seconds that the first chunk takes longer than another: kernels are loaded.
        held: bytes of memory that the process had before the first chunk.
        peak: bytes that it had at most, from its beginning to the last chunk.
        memory: bytes that the job will have at most: the same, and what its chunks are larger than those of the probe.
        row_bytes: of the output, each user.
        part_bytes: of the output, each file, beside its users.
        gather_s: seconds to read a user's candidates again and write them into another file.
        hash_s: seconds a byte of the output, for the manifest.
    """

    users: int
    seconds: float
    chunk_rows: int
    chunks: ChunkPlan
    part_chunk_rows: int
    first_s: float
    held: int
    peak: int
    memory: int
    row_bytes: float
    part_bytes: float
    gather_s: float
    hash_s: float

    @property
    def users_per_s(self) -> float:
        """Speed with all threads at work."""
        return self.users / max(self.seconds, 1e-9)


def probe_users(
    users: Users,
    rules: ScoreRules,
    parts: list[UserPart],
    schemas: RowSchemas,
    targets: LocalPaths,
    *,
    threads: int | None,
    bound: MemoryBound,
) -> Probe:
    """Score some users of a job.

    Args:
        users: as open_users gave it.
        rules: what every chunk is scored by.
        parts: of the job; with a user, or more.
        schemas: of what it writes.
        targets: in a folder of their own, of the same kind as the job's.
        threads: of the job; None for all usable cores, or fewer where memory is short.
        bound: memory that it may have.

    Raises:
        DataError: as plan_run and score_parts.
    """
    held = resident_memory()
    chunks = plan_run(users, rules, parts, threads=threads, bound=bound)
    first_s, per_s, user_bytes = _score_first(users, rules, parts)
    rows = min(chunks.rows, max(_LEAST_ROWS, int(per_s * _SECONDS / _MOST_ROUNDS)))
    cut = replace(chunks, rows=rows, ids=max(1, chunks.ids * rows // chunks.rows))
    most_rows = chunks.threads * (rows + int(per_s * _SECONDS))
    chosen = _choose(users, parts, cut, most_rows=most_rows, least=chunks.threads * (1 + _LEAST_ROUNDS))
    folder = LocalJobFolder(targets.candidates.with_name("job"), targets)
    folder.make()
    outputs = ScoreOutputs(folder, chosen, schemas)
    done = score_parts(users, rules, outputs, plan=cut, log=JobLog(show=False))
    with ended(done):
        collections.deque(done, maxlen=0)
    peak = peak_memory()
    steady_users, steady_s = steady_span(outputs.throughput.samples, at_once=chunks.threads)
    row_bytes, part_bytes, gather_s = _write_again(folder, chosen, schemas)
    return Probe(
        users=round(steady_users),
        seconds=steady_s,
        chunk_rows=rows,
        chunks=chunks,
        part_chunk_rows=plan_run(users, rules, [max(parts, key=_rows)], threads=threads, bound=bound).rows,
        first_s=first_s,
        held=held,
        peak=peak,
        memory=peak + int(user_bytes * (chunks.rows - rows) * (chunks.waiting + chunks.writing)),
        row_bytes=row_bytes,
        part_bytes=part_bytes,
        gather_s=gather_s,
        hash_s=_hash_s(),
    )


def _rows(part: UserPart) -> int:
    return part.num_rows


def _score_first(users: Users, rules: ScoreRules, parts: list[UserPart]) -> tuple[float, float, float]:
    """Score a small chunk twice.

    Returns:
        first_s: how much longer it took the first time, without compiling, which the job need not do again.
        per_s: users a second of one thread alone, the second time.
        user_bytes: of a chunk that waits, each user: as it was read, or scored, whichever is more.
    """
    chunk = next(read_chunks(users, [parts[0]._replace(num_rows=_FIRST_ROWS)], chunk_rows=_FIRST_ROWS))
    spent = []
    with compiling() as compile_s:
        for _ in range(2):
            started = time.perf_counter()
            scored = score_named_chunk(chunk, rules)
            spent.append(time.perf_counter() - started)
    users_of_it = chunk.rows.num_rows
    user_bytes = max(chunk.rows.nbytes, scored.rows.nbytes) / users_of_it
    return max(0.0, spent[0] - spent[1] - compile_s()), users_of_it / spent[1], user_bytes


def _choose(users: Users, parts: list[UserPart], cut: ChunkPlan, *, most_rows: int, least: int) -> list[UserPart]:
    """Choose chunks, spread evenly over the parts; each becomes a part of its own.

    Of large row groups few are looked at, because each is read from its first row on.

    Args:
        users: as open_users gave it.
        parts: of the job.
        cut: how they are cut into chunks.
        most_rows: users of all chunks together, about; or more, for as many chunks as are wanted at least.
        least: chunks.
    """
    groups = list(_row_groups(users, parts))
    num_groups = max(1, _MOST_READ_ROWS * len(groups) // max(1, sum(map(_rows, parts))))
    chunks = [chunk for group in _spread(groups, num_groups) for chunk in _chunks(*group, cut)]
    return _spread(chunks, max(least, most_rows * len(chunks) // sum(map(_rows, chunks))))


def _row_groups(users: Users, parts: list[UserPart]) -> Iterator[tuple[UserPart, int, RowGroup]]:
    """Each row group that a part has users of: the part, the group's first row in the file, the group."""
    for number, of_file in itertools.groupby(parts, key=lambda part: part.file):
        wanted, start = list(of_file), 0
        for group in users.files[number].row_groups:
            yield from ((part, start, group) for part in wanted if _shared(part, start, start + group.num_rows))
            start += group.num_rows


def _shared(part: UserPart, start: int, stop: int) -> range:
    """The rows start .. stop - 1 of a file that are a part's."""
    return range(max(start, part.first_row), min(stop, part.first_row + part.num_rows))


def _chunks(part: UserPart, start: int, group: RowGroup, cut: ChunkPlan) -> Iterator[UserPart]:
    """Cut what a part has of a row group as read_chunks does."""
    rows = batch_rows(group, chunk_rows=cut.rows, chunk_ids=cut.ids)
    for first in range(start, start + group.num_rows, rows):
        if shared := _shared(part, first, min(first + rows, start + group.num_rows)):
            yield part._replace(first_row=shared.start, num_rows=len(shared))


def _spread(things: Sequence[Thing], count: int) -> list[Thing]:
    """So many of these, at equal distances; all where there are not more."""
    if len(things) <= count:
        return list(things)
    return [things[(2 * number + 1) * len(things) // (2 * count)] for number in range(count)]


def _write_again(folder: LocalJobFolder, parts: list[UserPart], schemas: RowSchemas) -> tuple[float, float, float]:
    """Write what was scored into one file, as a job of many parts does.

    Returns:
        row_bytes: of the file, each user.
        part_bytes: of a file without users.
        gather_s: seconds that this took, each user.
    """
    sizes = []
    seconds = 0.0
    targets = replace(folder.targets, as_folder=False)
    for wanted in ([], parts):
        whole = LocalJobFolder(folder.path, targets)
        started = time.perf_counter()
        for _ in ScoreOutputs(whole, wanted, schemas).write(iter(()), writers=1, most=1, log=JobLog(show=False)):
            pass
        seconds = time.perf_counter() - started
        sizes.append(whole.whole.stat().st_size)
    num_rows = max(1, sum(part.num_rows for part in parts))
    return (sizes[1] - sizes[0]) / num_rows, float(sizes[0]), seconds / num_rows


def _hash_s() -> float:
    """Seconds to hash a byte."""
    content = bytes(_HASHED)
    started = time.perf_counter()
    hashlib.sha256(content).hexdigest()
    return (time.perf_counter() - started) / _HASHED
