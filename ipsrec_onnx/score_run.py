"""Does the work of a scoring job: reads, scores and writes the parts that are not done."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Generator, Iterator

import pyarrow as pa

from ipsrec_onnx.broken_work import broken_work
from ipsrec_onnx.card_search import BYTES_PER_FETCHED, MOST_FETCHED
from ipsrec_onnx.carried_lists import KEPT_GROUPS
from ipsrec_onnx.cores import usable_cores
from ipsrec_onnx.errors import DataError
from ipsrec_onnx.machine_memory import held_memory
from ipsrec_onnx.memory_plan import ChunkPlan, MemoryBound, RowSizes, id_bytes, plan_chunks
from ipsrec_onnx.pipeline import ended, map_in_order
from ipsrec_onnx.progress import JobLog
from ipsrec_onnx.retrieval import users_at_once
from ipsrec_onnx.score_counts import ScoreCounts
from ipsrec_onnx.score_outputs import RowSchemas, ScoreOutputs, Written
from ipsrec_onnx.scored_chunk import ScoredChunk, ScoreRules, score_chunk
from ipsrec_onnx.stage_times import StageTimes
from ipsrec_onnx.user_chunks import UserChunk, read_chunks
from ipsrec_onnx.user_parts import PART_ROWS, UserPart
from ipsrec_onnx.users import Users

CHUNK_ROWS = 8192  # users of a chunk, and of a row group of the output, at most
_CHUNKS_PER_THREAD = 8  # at least, so that no worker waits long for the last ones; in a job of fewer users,
_LEAST_CHUNK_ROWS = 256  # this many make a chunk: fewer would leave many batches half empty
# A row of the long layout is one candidate: groups as small as chunks would swell the footer.
_LONG_GROUP_ROWS = 1 << 16


def score_users(
    users: Users,
    rules: ScoreRules,
    outputs: ScoreOutputs,
    *,
    threads: int | None,
    bound: MemoryBound,
    log: JobLog,
) -> ScoreCounts:
    """Score and write all users; this thread reads and counts, workers score, and writers write.

    Args:
        users: as open_users gave it.
        rules: what every chunk is scored by.
        outputs: of all parts; its times say where the time went.
        threads: workers; None for all usable cores, or fewer where memory is short.
        bound: memory that the job may have.
        log: says how far it is.

    Returns:
        The account, parts that were done before among it.

    Raises:
        DataError: as plan_run and score_parts.
    """
    counts = sum(outputs.done.values(), ScoreCounts())
    plan = plan_run(users, rules, outputs.missing, threads=threads, bound=bound)
    log.event(
        "job_planned",
        threads=plan.threads,
        writers=plan.writers,
        chunk_rows=plan.rows,
        search=rules.ranker.search,
        memory_bytes=plan.peak,
        memory_limit_bytes=bound.limit,
        parts=len(outputs.done) + len(outputs.missing),
        parts_done=len(outputs.done),
        users_done=counts.rows_in,
    )
    done = score_parts(users, rules, outputs, plan=plan, log=log)
    with (
        ended(done),
        log.progress(users.num_rows, what="users", already=counts.rows_in, times=outputs.times) as advance,
    ):
        for written in done:
            counts += written.counts
            advance(written.counts.rows_in)
    return counts


def score_parts(
    users: Users, rules: ScoreRules, outputs: ScoreOutputs, *, plan: ChunkPlan, log: JobLog
) -> Generator[Written, None, None]:
    """Score and write the parts that are not done.

    Args:
        users: as open_users gave it.
        rules: what every chunk is scored by.
        outputs: of the parts; its times say where the time went.
        plan: as plan_run gave it.
        log: hears of each part that is done.

    Yields:
        As ScoreOutputs.write.

    Raises:
        DataError: a row that the rules refuse, or a broken input.
    """
    chunks = _timed(read_chunks(users, outputs.missing, chunk_rows=plan.rows, chunk_ids=plan.ids), outputs.times)
    work = functools.partial(score_named_chunk, rules=rules)
    scored = map_in_order(work, chunks, threads=plan.threads, waiting=plan.waiting)
    with (
        ended(scored),
        contextlib.closing(outputs.write(scored, writers=plan.writers, most=plan.writing, log=log)) as done,
    ):
        yield from done


def score_named_chunk(chunk: UserChunk, rules: ScoreRules) -> ScoredChunk:
    """Score one chunk; an exception that nobody raised on purpose names it.

    Raises:
        IpsrecError: as score_chunk, or as broken_work.
    """
    with broken_work(f"{chunk.where()}, rows {chunk.first_row} to {chunk.first_row + chunk.rows.num_rows - 1}"):
        return score_chunk(chunk, rules)


def row_schemas(candidates: pa.Schema, bad_rows: pa.Schema, *, top_k: int) -> RowSchemas:
    """Add the rows of row groups to the columns: no matter how big chunks are, for the bytes depend on them.

    Args:
        candidates: of the output.
        bad_rows: of the rows set aside.
        top_k: length of the lists, never above the number of items.
    """
    rows = _LONG_GROUP_ROWS if "rank" in candidates.names else users_at_once(CHUNK_ROWS, top_k=top_k)
    return RowSchemas(candidates, rows, bad_rows, CHUNK_ROWS)


def plan_run(
    users: Users,
    rules: ScoreRules,
    missing: list[UserPart],
    *,
    threads: int | None,
    bound: MemoryBound,
    held: int | None = None,
) -> ChunkPlan:
    """Cut the parts that are not done so that the job stays within its memory.

    Args:
        users: as open_users gave it.
        rules: what every chunk is scored by.
        missing: the parts.
        threads: workers; None for all usable cores, or fewer where memory is short.
        bound: memory that the job may have.
        held: bytes that the process has without chunks; None for what it has now.

    Raises:
        DataError: not even the smallest chunks fit.
    """
    workers, model, top_k = threads or usable_cores(), rules.ranker.model, rules.ranker.top_k
    sizes = RowSizes(
        user_id=id_bytes(users.schema.field(users.columns.user_id).type),
        item_id=id_bytes(model.catalog.item_ids.type, model.catalog.item_ids),
        ids=users.most_ids_of_a_row,
        top_k=top_k,
        group_rows=rules.ranker.users_at_once(CHUNK_ROWS),
        # Of bigger parts no more users wait for their writer: memory matters more there than a second busy writer.
        part_rows=min(PART_ROWS, max((part.num_rows for part in missing), default=0)),
        max_len=model.max_len,
        dim=model.dim,
        proposals=0 if rules.ranker.card_search is None else MOST_FETCHED * BYTES_PER_FETCHED,
        kept_lists=0 if rules.carried is None else KEPT_GROUPS * rules.ranker.users_at_once(CHUNK_ROWS),
    )
    num_rows = sum(part.num_rows for part in missing)
    most_rows = rules.ranker.chunk_users(_chunk_rows(num_rows, workers))
    if held is None:
        held = held_memory(rules.ranker.mapped_bytes)
    return plan_chunks(bound, sizes, held=held, most_rows=most_rows, threads=workers, fewer_threads=threads is None)


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


def check_account(users: Users, counts: ScoreCounts) -> None:
    """Refuse to finish an output that lacks a row.

    Raises:
        DataError: rows are not accounted for.
    """
    if not users.num_rows == counts.rows_in == counts.rows_out + counts.rows_diverted:
        raise DataError(
            f"input {users.source}: {users.num_rows} rows, {counts.rows_in} read, {counts.rows_out} scored and "
            f"{counts.rows_diverted} diverted; did the input change meanwhile? run again"
        )
