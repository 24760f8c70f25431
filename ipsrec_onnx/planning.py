"""Says before a job how long it will take, with how much memory, and how big its output will be, by a short probe."""

from __future__ import annotations

import functools
import heapq
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Final

from ipsrec_kernels.compiling import compiling
from ipsrec_onnx.approximate_recall import Recall
from ipsrec_onnx.candidates import Layout, candidate_columns
from ipsrec_onnx.cards import CardOptions, SearchName
from ipsrec_onnx.encoding import EncoderName
from ipsrec_onnx.item_shards import CatalogShards
from ipsrec_onnx.job_description import describe_job, machine_kind
from ipsrec_onnx.job_plan import JobPlan, Prediction, planned_job
from ipsrec_onnx.job_rules import job_schemas, open_rules
from ipsrec_onnx.machine_memory import peak_memory
from ipsrec_onnx.memory_plan import memory_bound
from ipsrec_onnx.output_paths import paths_on_disk, refuse_partitions
from ipsrec_onnx.probe import Probe, probe_users
from ipsrec_onnx.retrieval import ColdUsers
from ipsrec_onnx.score_options import ScoreOptions, check_cards, check_positive, check_shards
from ipsrec_onnx.scored_chunk import BadRows, ScoreRules, UnknownItems
from ipsrec_onnx.scoring import open_model
from ipsrec_onnx.session import Device
from ipsrec_onnx.staging import staged
from ipsrec_onnx.user_parts import UserPart, cut_into_batches, plan_parts
from ipsrec_onnx.users import UserColumns, open_users

# Ray is not there in a probe. So long it took on two idle cores to start, while the model is opened, and so long to
# start its workers (2.8 s) and to end (1.5); a cluster that runs already spares the first and the last.
_RAY_START_S: Final = 3.2
_RAY_S: Final = 4.3


@staged(inputs=["model", "allow_items", "deny_items"], mapped=["index_cache"])
def plan(  # noqa: D417 - what score() has is told there, once
    model: str | Path,
    source: str | Path,
    *,
    as_folder: bool = False,
    workers: int | None = None,
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
    gpus: Sequence[int] = (0,),
    search: SearchName = "auto",
    catalog_shards: int = 1,
    threads: int | None = None,
    max_memory: int | None = None,
    fingerprints: bool = False,
    part_rows: int | None = None,
) -> JobPlan:
    """Predict what score() will take with these arguments, on this machine as it is now.

    Opens the job as score() does, with the same refusals, and scores about two seconds' worth of its users, spread over
    the input, into a scratch folder.

    Args:
        model: as in score(), and so all that is not named here.
        source: likewise.
        as_folder: will the output be a folder of parts? Else it will be one file.
        workers: predict what a Ray cluster of so many workers will take, too, each like this machine.

    Raises:
        DataError, ModelFileError, ExecutionProviderError, ModuleNotFoundError, ValueError: as score().
    """
    started = time.perf_counter()
    options = ScoreOptions(
        top_k=top_k,
        layout=layout,
        keep_seen=keep_seen,
        unknown_items=unknown_items,
        cold_users=cold_users,
        bad_rows=bad_rows,
        max_per_provider=max_per_provider,
        candidates_column=candidates_column,
        approximate=approximate,
        encoder=encoder,
        device=device,
        fingerprints=fingerprints,
    )
    cards = check_cards(options, CardOptions(tuple(gpus), search))
    for name, value in (("threads", threads), ("max_memory", max_memory), ("part_rows", part_rows)):
        check_positive(name, value)
    check_positive("workers", workers)
    check_shards(catalog_shards, options, cards)
    bound = memory_bound(max_memory)
    users = open_users(source, UserColumns(user_column, item_column, provider_column, candidates_column))
    with tempfile.TemporaryDirectory(prefix="ipsrec-plan-") as scratch, compiling() as compile_s:
        targets = paths_on_disk(f"{scratch}/candidates" + ("/" if as_folder else ""), bad_rows=bad_rows == "divert")
        refuse_partitions(targets, users, candidate_columns(layout, fingerprints=fingerprints))
        shards = CatalogShards(catalog_shards, Path.cwd())
        model_file, sha256, items = open_model(
            model, users, bound=bound, shards=shards, allow_items=allow_items, deny_items=deny_items
        )
        open_s = time.perf_counter() - started - compile_s()
        lay_out = functools.partial(
            open_rules,
            model_file,
            sha256,
            options,
            items,
            users,
            cards=cards,
            shards=shards,
            index_cache=index_cache,
            bound=bound,
        )
        parts, probe = plan_parts(users, part_rows), None
        rules, layout_s = _timed(lay_out)
        if index_cache is not None:  # the job will find the items laid out
            del rules
            rules, layout_s = _timed(lay_out)
        if users.num_rows:
            schemas = job_schemas(model_file, sha256, options, items, users)
            probe = probe_users(users, rules, parts, schemas, targets, threads=threads, bound=bound)
        compiled = compile_s() > 0.0
    description = describe_job(
        users,
        model_sha256=sha256,
        options=asdict(options),
        allowed=items.allowed,
        as_folder=as_folder,
        part_rows=part_rows,
        machine=machine_kind(cards.gpus if device == "cuda" else None),
    )
    return JobPlan(
        job=planned_job(
            description,
            threads=threads,
            max_memory=max_memory,
            cards=cards,
            catalog_shards=catalog_shards,
            index_cache=index_cache,
        ),
        rows=users.num_rows,
        threads=threads or 1 if probe is None else probe.chunks.threads,
        probe=probe,
        here=_here(probe, parts, open_s + layout_s, as_folder=as_folder),
        cluster=None
        if workers is None
        else _cluster(probe, parts, open_s, layout_s, as_folder=as_folder, workers=workers),
        compiled=compiled,
    )


def _timed(lay_out: Callable[[], tuple[ScoreRules, Recall | None]]) -> tuple[ScoreRules, float]:
    """Lay out the items, and say how many seconds that took without compiling."""
    started = time.perf_counter()
    with compiling() as compile_s:
        rules, _ = lay_out()
    return rules, time.perf_counter() - started - compile_s()


def _here(probe: Probe | None, parts: list[UserPart], start_s: float, *, as_folder: bool) -> Prediction:
    """What one process will take that does everything."""
    if probe is None:
        return Prediction(None, start_s, 0.0, 0.0, 0.0, peak_memory(), 0)
    rows = sum(part.num_rows for part in parts)
    output_bytes = _output_bytes(probe, parts, as_folder=as_folder)
    return Prediction(
        workers=None,
        start_s=start_s + probe.first_s,
        loop_s=_loop_s(probe, rows, probe.chunks.rows),
        finish_s=output_bytes * probe.hash_s,
        users_per_s=probe.users_per_s,
        memory_bytes=probe.memory,
        output_bytes=output_bytes,
    )


def _cluster(
    probe: Probe | None, parts: list[UserPart], open_s: float, layout_s: float, *, as_folder: bool, workers: int
) -> Prediction:
    """What a cluster of workers like this machine will take.

    The driver opens the job while Ray starts, then each worker does.
    Ray gives the next batch of parts to whichever worker is free.
    """
    start_s = max(_RAY_START_S, open_s) + _RAY_S + open_s + layout_s
    if probe is None:
        return Prediction(workers, start_s, 0.0, 0.0, 0.0, peak_memory(), 0)
    rows, output_bytes = sum(part.num_rows for part in parts), _output_bytes(probe, parts, as_folder=as_folder)
    busy = [0.0] * min(workers, len(parts))
    for batch in cut_into_batches(len(parts), workers):
        of_batch = sum(parts[place].num_rows for place in batch)
        batch_s = _loop_s(probe, of_batch, min(probe.chunks.rows, len(batch) * probe.part_chunk_rows))
        if as_folder:
            batch_s += of_batch * probe.row_bytes * probe.hash_s
        heapq.heapreplace(busy, busy[0] + batch_s)
    return Prediction(
        workers=workers,
        start_s=start_s + probe.first_s,
        loop_s=max(busy),
        finish_s=0.0 if as_folder else rows * probe.gather_s + output_bytes * probe.hash_s,
        users_per_s=rows / max(*busy, 1e-9),
        memory_bytes=probe.memory,
        output_bytes=output_bytes,
    )


def _loop_s(probe: Probe, rows: int, chunk_rows: int) -> float:
    """Seconds for so many users: at the end, threads wait for the last chunk, half of one on average."""
    threads = probe.chunks.threads
    chunk_s = min(rows, chunk_rows) * threads / probe.users_per_s
    return rows / probe.users_per_s + chunk_s * (threads - 1) / (2 * threads)


def _output_bytes(probe: Probe, parts: list[UserPart], *, as_folder: bool) -> int:
    rows, files = sum(part.num_rows for part in parts), len(parts) if as_folder else 1
    return int(rows * probe.row_bytes + files * probe.part_bytes)
