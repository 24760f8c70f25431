"""Does the work of a scoring job: reads, scores and writes the parts that are not done."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator

from ipsrec_onnx.errors import DataError
from ipsrec_onnx.pipeline import map_in_order
from ipsrec_onnx.progress import show_progress
from ipsrec_onnx.score_counts import ScoreCounts
from ipsrec_onnx.score_outputs import ScoreOutputs
from ipsrec_onnx.scored_chunk import ScoreRules, score_chunk
from ipsrec_onnx.stage_times import StageTimes
from ipsrec_onnx.user_chunks import UserChunk, UserPart, read_chunks
from ipsrec_onnx.users import Users

CHUNK_ROWS = 8192  # users of a chunk, and of a row group of the output, at most
_CHUNKS_PER_THREAD = 8  # at least, so that no worker waits long for the last ones; in a job of fewer users,
_LEAST_CHUNK_ROWS = 256  # this many make a chunk: fewer would leave many batches half empty


def score_users(
    users: Users, rules: ScoreRules, parts: list[UserPart], outputs: ScoreOutputs, *, threads: int, progress: bool
) -> ScoreCounts:
    """Score and write all users; this thread reads and writes, the workers do the rest.

    Args:
        users: as open_users gave it.
        rules: what every chunk is scored by.
        parts: as plan_parts gave them.
        outputs: of these parts; its times say where the time went.
        threads: workers.
        progress: report it on stderr.

    Returns:
        The account, parts that were done before among it.

    Raises:
        DataError: a row that the rules refuse, a broken input, or rows that are not accounted for.
    """
    counts, times = ScoreCounts(), outputs.times
    missing = [part for number, part in enumerate(parts) if number not in outputs.done]
    chunk_rows = rules.ranker.users_at_once(_chunk_rows(sum(part.num_rows for part in missing), threads))
    chunks = _timed(read_chunks(users, missing, chunk_rows=chunk_rows), times)
    scored = map_in_order(functools.partial(score_chunk, rules=rules), chunks, threads=threads)
    with contextlib.closing(scored), show_progress(users.num_rows, what="users", show=progress) as advance:
        for written in outputs.write(scored):
            counts += written
            advance(written.rows_in)
    _check_account(users, counts)
    return counts


def _chunk_rows(num_rows: int, threads: int) -> int:
    """Users of a chunk: many, for full batches, but so few that all threads have work until the end."""
    return min(CHUNK_ROWS, max(_LEAST_CHUNK_ROWS, num_rows // (threads * _CHUNKS_PER_THREAD)))


def _timed(chunks: Iterator[UserChunk], times: StageTimes) -> Iterator[UserChunk]:
    """Count what reading takes."""
    while True:
        with times.stage("read"):
            chunk = next(chunks, None)
        if chunk is None:
            return
        yield chunk


def _check_account(users: Users, counts: ScoreCounts) -> None:
    """Refuse to finish an output that lacks a row."""
    if not users.num_rows == counts.rows_in == counts.rows_out + counts.rows_diverted:
        raise DataError(
            f"input {users.source}: {users.num_rows} rows, {counts.rows_in} read, {counts.rows_out} scored and "
            f"{counts.rows_diverted} diverted; did the input change meanwhile? run again"
        )
