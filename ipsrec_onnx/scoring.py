"""The main job: users' histories in Parquet to ranked candidates in Parquet.

    users.parquet --read--> Arrow lists --map ids, pack--> (B, L) --encode--> (B, D) --retrieve--> top-k
                                                                     top-k --write--> candidates.parquet

read is users.py; map is histories.py; pack and encode encoding.py; retrieve retrieval.py; write candidates.py and
row_writer.py; score_chunk goes from read to write for one chunk of users, in a worker thread.
"""

from __future__ import annotations

import contextlib
import functools
import json
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import numpy as np

from ipsrec_onnx.approximate_recall import SAMPLE_USERS, choose_recall
from ipsrec_onnx.atomic import refuse_existing
from ipsrec_onnx.bad_rows import dead_letter_schema
from ipsrec_onnx.candidates import Layout, candidates_schema
from ipsrec_onnx.cores import usable_cores
from ipsrec_onnx.encoding import EncoderName, check_encoder
from ipsrec_onnx.errors import DataError
from ipsrec_onnx.filters import allowed_items
from ipsrec_onnx.histories import Histories
from ipsrec_onnx.model_file import model_file_sha256, open_model_file
from ipsrec_onnx.pipeline import map_in_order
from ipsrec_onnx.progress import show_note, show_progress
from ipsrec_onnx.retrieval import ColdUsers, build_ranker
from ipsrec_onnx.score_outputs import OutputFile, open_outputs, refuse_inputs
from ipsrec_onnx.score_report import ScoreReport
from ipsrec_onnx.scored_chunk import BadRows, ScoreCounts, ScoreRules, UnknownItems, known_histories, score_chunk
from ipsrec_onnx.session import Device
from ipsrec_onnx.stage_times import StageTimes
from ipsrec_onnx.users import UserChunk, UserColumns, Users, check_id_kinds, open_users, read_chunks

CHUNK_ROWS = 8192  # users of a chunk, and of a row group of the output, at most
_CHUNKS_PER_THREAD = 8  # at least, so that no worker waits long for the last ones; in a job of fewer users,
_LEAST_CHUNK_ROWS = 256  # this many make a chunk: fewer would leave many batches half empty
# A row of the long layout is one candidate: groups as small as chunks would swell the footer.
_LONG_GROUP_ROWS = 1 << 16


def score(
    model: str | Path,
    source: str | Path,
    output: str | Path,
    *,
    top_k: int = 100,
    layout: Layout = "list",
    keep_seen: bool = False,
    unknown_items: UnknownItems = "drop",
    cold_users: ColdUsers = "popular",
    bad_rows: BadRows = "error",
    allow_items: str | Path | None = None,
    deny_items: str | Path | None = None,
    max_per_provider: int | None = None,
    candidates_column: str | None = None,
    user_column: str = "user_id",
    item_column: str = "item_history",
    provider_column: str | None = None,
    approximate: float | None = None,
    encoder: EncoderName = "onnxruntime",
    index_cache: str | Path | None = None,
    device: Device = "cpu",
    threads: int | None = None,
    overwrite: bool = False,
    progress: bool = False,
) -> ScoreReport:
    """Rank candidates for every user of a Parquet file, in the order of the input's rows; the lists are exact.

    The bytes of the output depend on the model file, the input's rows and the options, and on nothing else.

    Args:
        model: model file that `ipsrec export` wrote.
        source: users: a Parquet file, a folder of them, or a URI.
        output: Parquet file to write.
        top_k: length of the lists; shorter where nothing more is allowed.
        layout: "list" gives one row per user, "long" one per candidate.
        keep_seen: may an item of the user's history be recommended?
        unknown_items: "drop" item ids that the catalog does not know from histories, or "error" to refuse them.
        cold_users: what a user without a known item gets: "popular" items, an "empty" list, or "error" to refuse.
        bad_rows: "error" refuses a malformed row; "divert" writes it to <output>.bad_rows.parquet with the reason.
        allow_items: Parquet or text file of the only items to recommend.
        deny_items: Parquet or text file of items never to recommend.
        max_per_provider: at most so many items of one provider in a list.
        candidates_column: column of lists, the only items to choose from for each user.
        user_column: column of the user ids, of any type.
        item_column: column of the item histories, oldest first.
        provider_column: column of the provider histories. None takes provider_history, or, where the input has no such
            column, the catalog's provider of each item.
        approximate: search approximately, with this recall of the exact lists (above 0, at most 1), measured on the
            first users of the input with a known item; scores and rules stay exact. A list that comes out shorter than
            top_k is searched exactly. None searches exactly.
        encoder: what computes the user embeddings: "onnxruntime" runs the file's graph, "fused" our own kernels on the
            file's weights, on the CPU.
        index_cache: folder in which the laid out items are kept from job to job; None lays them out anew.
        device: where the model runs.
        threads: worker threads; all usable cores by default.
        overwrite: replace an existing output.
        progress: report progress on stderr.

    Raises:
        DataError: an input is not as the contract asks, or the output cannot be written; nothing is left behind.
        ModelFileError: the model file cannot be used.
        ExecutionProviderError: the device is not there.
        ModuleNotFoundError: faiss, which approximate needs, is not installed.
        ValueError: an option has a value that it cannot have.
    """
    started = time.perf_counter()
    _check_choice("layout", layout, Layout)
    _check_choice("unknown_items", unknown_items, UnknownItems)
    _check_choice("cold_users", cold_users, ColdUsers)
    _check_choice("bad_rows", bad_rows, BadRows)
    check_encoder(encoder, device)
    if approximate is not None and not 0.0 < approximate <= 1.0:
        raise ValueError(f"approximate is {approximate}, expected a recall above 0, at most 1")
    if approximate is not None and candidates_column is not None:
        raise DataError(
            f"--approximate: the candidates of --candidates-column {candidates_column} are always scored exactly; "
            "leave one of the two out"
        )
    _check_numbers({"top_k": top_k, "max_per_provider": max_per_provider, "threads": threads})
    bad_rows_output = Path(f"{output}.bad_rows.parquet") if bad_rows == "divert" else None
    outputs = [Path(output)] if bad_rows_output is None else [Path(output), bad_rows_output]
    for path in outputs:
        refuse_existing(path, overwrite=overwrite)
    users = open_users(source, UserColumns(user_column, item_column, provider_column, candidates_column))
    refuse_inputs(outputs, users, model=model, allow_items=allow_items, deny_items=deny_items)
    model_file = open_model_file(model, device=device)
    catalog = model_file.catalog
    check_id_kinds(users, item_kind=catalog.item_ids.type, provider_kind=catalog.provider_ids.type)
    items = allowed_items(catalog, allow_items=allow_items, deny_items=deny_items)
    sha256 = model_file_sha256(model)
    options = {
        "top_k": top_k,
        "layout": layout,
        "keep_seen": keep_seen,
        "unknown_items": unknown_items,
        "cold_users": cold_users,
        "bad_rows": bad_rows,
        "allowed_items": items.num_allowed,
        "max_per_provider": max_per_provider,
        "candidates_column": candidates_column,
        "approximate": approximate,
        "encoder": encoder,
    }
    rules = ScoreRules(
        ranker=build_ranker(
            model_file,
            items.allowed,
            top_k=top_k,
            keep_seen=keep_seen,
            max_per_provider=max_per_provider,
            encoder=encoder,
            index_cache=index_cache,
        ),
        columns=users.columns,
        top_k=top_k,
        unknown_items=unknown_items,
        cold_users=cold_users,
        bad_rows=bad_rows,
        schema=candidates_schema(
            users.schema.field(user_column).type,
            catalog.item_ids.type,
            layout=layout,
            metadata={"ipsrec.model_sha256": sha256, "ipsrec.options": json.dumps(options)},
        ),
        dead_letter_schema=dead_letter_schema(users),
    )
    recall = None
    if approximate is not None:
        index, recall = choose_recall(rules.ranker, _first_histories(users, rules), target=approximate)
        rules = replace(rules, ranker=replace(rules.ranker, approximate=index))
        show_note(
            f"approximate search: recall {recall.measured:.4f} of the exact lists on {recall.users} users; looks "
            f"through {recall.probes:,} of {recall.lists:,} lists, proposes {recall.fetch:,} items",
            show=progress,
        )
    group_rows = rules.ranker.users_at_once(CHUNK_ROWS) if layout == "list" else _LONG_GROUP_ROWS
    files = [OutputFile(Path(output), rules.schema, group_rows)]
    if bad_rows_output is not None:
        files.append(OutputFile(bad_rows_output, rules.dead_letter_schema, CHUNK_ROWS))
    start_s = time.perf_counter() - started
    counts, times = _score_users(
        users, rules, files, threads=threads or usable_cores(), overwrite=overwrite, progress=progress
    )
    return ScoreReport(
        output=str(output),
        bad_rows=None if bad_rows_output is None else str(bad_rows_output),
        model_sha256=sha256,
        counts=counts,
        allowed_items=items.num_allowed,
        unknown_allow_items=items.unknown_allow_items,
        unknown_deny_items=items.unknown_deny_items,
        approximate=recall,
        cpu_s=dict(times.cpu_s),
        start_s=start_s,
        wall_s=(wall_s := time.perf_counter() - started),
        users_per_s=counts.rows_in / wall_s,
    )


def _first_histories(users: Users, rules: ScoreRules) -> Histories:
    """Histories of the first SAMPLE_USERS users with a known item, on which recall is measured."""
    parts: list[Histories] = []
    lengths = np.zeros(0, np.int64)
    for chunk in read_chunks(users, chunk_rows=SAMPLE_USERS):
        parts.append(known_histories(chunk, rules).without_empty())
        lengths = np.concatenate([lengths, parts[-1].lengths])
        if len(lengths) >= SAMPLE_USERS:
            break
    nothing = np.zeros(0, np.int32)
    return Histories(
        np.concatenate([nothing, *(part.items for part in parts)]),
        np.concatenate([nothing, *(part.providers for part in parts)]),
        np.concatenate([[0], np.cumsum(lengths[:SAMPLE_USERS])]),
    )


def _score_users(
    users: Users, rules: ScoreRules, files: list[OutputFile], *, threads: int, overwrite: bool, progress: bool
) -> tuple[ScoreCounts, StageTimes]:
    """Read, score and write all users; this thread reads and writes, the workers do the rest."""
    counts, times = ScoreCounts(), StageTimes()
    with contextlib.ExitStack() as stack:
        write = stack.enter_context(open_outputs(files, overwrite=overwrite))
        advance = stack.enter_context(show_progress(users.num_rows, what="users", show=progress))
        chunk_rows = rules.ranker.users_at_once(_chunk_rows(users.num_rows, threads))
        chunks = _timed(read_chunks(users, chunk_rows=chunk_rows), times)
        scored = map_in_order(functools.partial(score_chunk, rules=rules), chunks, threads=threads)
        with contextlib.closing(scored):
            for chunk in scored:
                with times.stage("write"):
                    write(chunk)
                counts += chunk.counts
                times.add(chunk.times)
                advance(chunk.counts.rows_in)
        _check_account(users, counts)
        with times.stage("write"):
            stack.close()  # the last row groups are written now
    return counts, times


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


def _check_choice(name: str, value: str, choices: Any) -> None:
    """Refuse a value that the Literal does not list."""
    if value not in get_args(choices):
        raise ValueError(f"{name} is {value!r}, expected one of {get_args(choices)}")


def _check_numbers(numbers: dict[str, int | None]) -> None:
    for name, number in numbers.items():
        if number is not None and number < 1:
            raise ValueError(f"{name} is {number}, expected 1 or more")
