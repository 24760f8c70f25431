"""How big the chunks of a scoring job may be, so that it stays within its memory.

What is there when scoring begins (the interpreter, the model, its item table) is measured by the caller. What chunks
take is computed from how many rows, ids and candidates they have; docs/memory.md compares it with what jobs took.
"""

from __future__ import annotations

from dataclasses import dataclass

import pyarrow as pa

from ipsrec_onnx.errors import DataError
from ipsrec_onnx.machine_memory import available_memory, resident_memory

MOST_IDS = 1 << 20  # ids of a chunk, so that long histories do not multiply memory
_LEAST_ROWS = 32  # one batch of the encoder
_SMALL_ROWS = 256  # chunks get no smaller than this while there are threads that may go

_SHARE = 0.9  # of what the machine has free: others want to live, too
_OPENED_PER_BYTE = 3.0  # of a model file: ONNX Runtime's copy of the weights, the file as it is read, the output table
_TABLE_PER_BYTE = 0.5  # laid out for retrieval
_LIBRARIES = 120 << 20  # onnxruntime and Numba, loaded
_KERNELS = 170 << 20  # kernels, loaded, or compiled by the first job after an install; small things of all kinds

# Bytes while a chunk is worked on, beyond what it is read from and what it gives; rounded up from what was measured.
_ROW_WORK, _ID_WORK, _CANDIDATE_WORK = 256, 40, 20
_ENCODER_BATCH = 32
_ENCODER_ARRAYS = 24  # (batch, length, dim) float32 that the graph holds at a time, its feed-forward layer among them
# Of a row group of the output, in each writer: gathered, made one piece, encoded, compressed, once more in a part.
_WRITTEN_COPIES = 5
_MOST_WRITERS = 4


@dataclass(frozen=True)
class MemoryBound:
    """What a job may have.

    Attributes:
        limit: bytes.
        asked: did the caller name it? Else it is what the machine has.
    """

    limit: int
    asked: bool


@dataclass(frozen=True)
class RowSizes:
    """What the rows of a job hold, on its average.

    Attributes:
        user_id: bytes of a user's id.
        item_id: bytes of an item's id.
        ids: ids of a row in all its lists, those of the longest row group on average.
        top_k: candidates of a row.
        group_rows: users of a row group of the output.
        part_rows: users of the largest part, up to the default size of parts.
        max_len: items that the model looks at.
        dim: width of an embedding.
        kept_lists: rows of an earlier output, with their lists, that are kept; 0 where nothing is carried over.
        proposals: bytes of what a GPU proposes for a chunk at a time; 0 where the CPU searches.
    """

    user_id: int
    item_id: int
    ids: float
    top_k: int
    group_rows: int
    part_rows: int
    max_len: int
    dim: int
    proposals: int = 0
    kept_lists: int = 0


@dataclass(frozen=True)
class ChunkPlan:
    """How a job is cut.

    Attributes:
        threads: workers.
        rows: users of a chunk at most.
        ids: ids of a chunk, on the average of its row group.
        waiting: chunks that are read or scored and not yet with the writers.
        writers: threads that write.
        writing: chunks that the writers have.
        peak: bytes that the job will take at most, by this computation.
    """

    threads: int
    rows: int
    ids: int
    waiting: int
    writers: int
    writing: int
    peak: int


def memory_bound(max_memory: int | None, *, share: float = 1.0) -> MemoryBound:
    """What a job may have: what was asked for, or most of its share of what the machine has free."""
    if max_memory is not None:
        return MemoryBound(max_memory, asked=True)
    return MemoryBound(int(_SHARE * share * available_memory()), asked=False)


def refuse_big_model(bound: MemoryBound, *, path: str, num_bytes: int) -> None:
    """Refuse a model before it is opened, by the size of its files.

    Raises:
        DataError: with it, a job would not fit.
    """
    needed = resident_memory() + _LIBRARIES + int((_OPENED_PER_BYTE + _TABLE_PER_BYTE) * num_bytes)
    if needed > bound.limit:
        raise DataError(_too_small(bound, needed, f"with model {path} of {size_in_words(num_bytes)}", ""))


def refuse_big_previous(bound: MemoryBound, *, name: str, num_bytes: int) -> None:
    """Refuse to carry over from an output whose keys would not fit, before they are read.

    Raises:
        DataError: with them, a job would not fit.
    """
    needed = resident_memory() + num_bytes
    if needed > bound.limit:
        what = f"with the keys of --since {name}, {size_in_words(num_bytes)}"
        raise DataError(_too_small(bound, needed, what, "no --since, "))


def num_writers(threads: int) -> int:
    """Threads that write, beside so many workers: half as many, four at most.

    One writes some 400,000 lists of 100 a second. Workers on two or three cores stay far below that, and a second
    writer would only take memory from them. A GPU gives over a million, which takes three or four; eight were not
    faster than four.
    """
    return max(1, min(_MOST_WRITERS, threads // 2))


def plan_chunks(
    bound: MemoryBound, sizes: RowSizes, *, held: int, most_rows: int, threads: int, fewer_threads: bool
) -> ChunkPlan:
    """Choose the biggest chunks that fit, beside what the process holds already.

    Args:
        bound: what the job may have.
        sizes: of its rows.
        held: bytes that the process has before the first chunk.
        most_rows: users of a chunk at most, 1 or more.
        threads: workers at most.
        fewer_threads: may there be fewer?

    Raises:
        DataError: not even the smallest chunks fit.
    """
    for workers in range(threads, 0, -1) if fewer_threads else [threads]:
        rows, least = most_rows, _LEAST_ROWS if workers == 1 or not fewer_threads else _SMALL_ROWS
        most_writers = num_writers(workers)
        while True:
            # Chunks come part after part, and all writers have work only if half a part waits for each but the first.
            spread = -(-sizes.part_rows * (most_writers - 1) // (2 * rows))
            for waiting, writers, writing in (
                (2 * workers, most_writers, most_writers + spread),
                (workers, most_writers, most_writers),
                (workers, 1, 1),
            ):
                ids = max(1, MOST_IDS * rows // max(most_rows, _SMALL_ROWS))
                in_flight = waiting + writing
                peak = held + _chunks_bytes(sizes, rows, ids, threads=workers, writers=writers, in_flight=in_flight)
                if peak <= bound.limit:
                    return ChunkPlan(workers, rows, ids, waiting, writers, writing, peak)
            if rows <= least:
                break
            rows = max(least, rows // 2)
    asked = f"{threads} threads" if not fewer_threads else "one thread"
    advice = "fewer --threads, " if not fewer_threads and threads > 1 else ""
    smaller = "a smaller --top-k, " if sizes.top_k > 10 else ""
    raise DataError(_too_small(bound, peak, f"with {asked} and --top-k {sizes.top_k}", advice + smaller))


def _chunks_bytes(sizes: RowSizes, rows: int, ids: int, *, threads: int, writers: int, in_flight: int) -> int:
    """Bytes of all chunks in flight, of the encoder's workspace and of what is being written."""
    num_ids = min(rows * sizes.ids, float(ids)) if rows > 1 else sizes.ids
    candidates, written = rows * sizes.top_k, sizes.group_rows * sizes.top_k
    raw = rows * (sizes.user_id + 8) + num_ids * sizes.item_id
    result = rows * (sizes.user_id + 16) + candidates * (sizes.item_id + 4)
    work = rows * (_ROW_WORK + 8 * sizes.dim) + num_ids * _ID_WORK + candidates * _CANDIDATE_WORK
    if sizes.proposals:  # what comes from the GPU, and the batches that go there, once more in memory that it reads
        work += sizes.proposals + rows * 16 * sizes.max_len
    encoder = _ENCODER_BATCH * sizes.max_len * (_ENCODER_ARRAYS * sizes.dim + 4 * sizes.max_len) * 4
    in_work = threads * (raw + result + work + encoder)
    kept = writers - 1  # each but one may keep the rest of a chunk, and so all of it, until its row group is full
    idle = (in_flight + kept - threads) * max(raw, result)
    # Of rows that are kept: index and score, both fingerprints; one group a thread is on its way with its ids besides.
    carried = sizes.kept_lists * (8 * sizes.top_k + 24)
    if carried:
        in_work += threads * sizes.group_rows * (sizes.top_k * (2 * sizes.item_id + 16) + sizes.user_id + 24)
    return int(_KERNELS + in_work + carried + idle + writers * _WRITTEN_COPIES * written * (sizes.item_id + 4))


def id_bytes(ids: pa.DataType, values: pa.Array | None = None) -> int:
    """Bytes of an id of a type; of a string as long as `values` are on average, or 32 where nothing is known."""
    if pa.types.is_primitive(ids):
        return max(8, int(ids.bit_width) // 8)
    return 8 + (32 if values is None or not len(values) else int(values.nbytes) // len(values) + 1)


def size_in_words(num_bytes: int) -> str:
    """A size for people: 1.2 GB, 800 MB."""
    return f"{num_bytes / 1e9:.2f} GB" if num_bytes >= 1e9 else f"{num_bytes / 1e6:.0f} MB"


def _too_small(bound: MemoryBound, needed: int, what: str, advice: str) -> str:
    limit = size_in_words(bound.limit)
    found = f"--max-memory is {limit}" if bound.asked else f"this machine has {limit} left for it"
    more = "more --max-memory" if bound.asked else "a machine with more (--max-memory overrules what this one says)"
    give = f"{advice}or {more}" if advice else more
    return f"memory: the job needs at least {size_in_words(needed)} {what}, but {found}; give {give}"
