"""The main job: users' histories in Parquet to ranked candidates in Parquet.

    users.parquet --read--> Arrow lists --map ids, pack--> (B, L) --encode--> (B, D) --retrieve--> top-k
                                                                     top-k --write--> candidates.parquet

read is users.py and user_chunks.py; map is histories.py; pack and encode encoding.py; retrieve retrieval.py; write
candidates.py and score_outputs.py; score_chunk goes from read to write for one chunk of users, in a worker thread.
job_folder.py is what a killed job goes on from, manifest.py what a finished one says of itself.
"""

from __future__ import annotations

import json
import time
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from ipsrec_onnx.approximate_recall import SAMPLE_USERS, Recall, choose_recall
from ipsrec_onnx.candidates import Layout
from ipsrec_onnx.encoding import EncoderName
from ipsrec_onnx.filters import AllowedItems, allowed_items
from ipsrec_onnx.histories import Histories
from ipsrec_onnx.job_description import describe_job
from ipsrec_onnx.job_folder import JobFolder, open_job_folder, refuse_unfinished_job, remove_finished_job
from ipsrec_onnx.manifest import account, manifest_of, read_manifest
from ipsrec_onnx.memory_plan import MemoryBound, memory_bound, refuse_big_model
from ipsrec_onnx.model_file import ModelFile, model_file_bytes, model_file_sha256, open_model_file
from ipsrec_onnx.output_paths import OutputPaths, output_paths, refuse_inputs, refuse_outputs, refuse_report
from ipsrec_onnx.progress import JobLog
from ipsrec_onnx.retrieval import ColdUsers
from ipsrec_onnx.run_report import refuse_without_libraries, run_figures, write_run_report
from ipsrec_onnx.score_counts import ScoreCounts
from ipsrec_onnx.score_options import ScoreOptions, check_positive
from ipsrec_onnx.score_outputs import RowSchemas, ScoreOutputs
from ipsrec_onnx.score_report import ScoreReport
from ipsrec_onnx.score_rules import build_rules, open_ranker
from ipsrec_onnx.score_run import CHUNK_ROWS, group_rows, score_users
from ipsrec_onnx.scored_chunk import BadRows, ScoreRules, UnknownItems, known_histories
from ipsrec_onnx.session import Device
from ipsrec_onnx.user_chunks import plan_parts, read_chunks
from ipsrec_onnx.users import UserColumns, Users, check_id_kinds, open_users


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
    report: str | Path | None = None,
    max_memory: int | None = None,
    resume: bool = False,
    overwrite: bool = False,
    progress: bool = False,
    log_json: bool = False,
) -> ScoreReport:
    """Rank candidates for every user of a Parquet file, in the order of the input's rows; the lists are exact.

    The bytes of the output depend on the model file, the input's rows and the options, and on nothing else.

    Args:
        model: model file that `ipsrec export` wrote.
        source: users: a Parquet file, a folder of them, or a URI.
        output: what to write: a Parquet file, or, where the name ends in /, a folder of them. The account of the job
            goes to <output>.manifest.json.
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
        threads: worker threads; all usable cores by default, or fewer where memory is short.
        report: write a page about the job here (HTML); looks once more over the candidates. Needs the extra `report`.
        max_memory: bytes of memory that the job may have; most of what the machine has free by default. Chunks get
            smaller to fit; the output's bytes stay the same.
        resume: go on where a job of the same model, input and options was broken off, to the same bytes; begin where
            none was; do nothing where it is finished.
        overwrite: replace an existing output, and throw an unfinished job of it away, unless it may go on.
        progress: report progress on stderr.
        log_json: as JSON, one object a line.

    Raises:
        DataError: an input is not as the contract asks, the output cannot be written, or the job does not fit into its
            memory. Nothing is left behind but the parts that are done, for resume.
        ModelFileError: the model file cannot be used.
        ExecutionProviderError: the device is not there.
        ModuleNotFoundError: faiss, which approximate needs, is not installed.
        ValueError: an option has a value that it cannot have.
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
    )
    check_positive("threads", threads)
    check_positive("max_memory", max_memory)
    bound = memory_bound(max_memory)
    targets = output_paths(output, bad_rows=bad_rows == "divert")
    _refuse_early(targets, report, resume=resume, overwrite=overwrite)
    users = open_users(source, UserColumns(user_column, item_column, provider_column, candidates_column))
    refuse_inputs(targets, users, model=model, allow_items=allow_items, deny_items=deny_items, report=report)
    refuse_big_model(bound, path=str(model), num_bytes=model_file_bytes(model))
    model_file = open_model_file(model, device=device)
    check_id_kinds(users.schema, users.columns, model_file.catalog, where=users.files[0].path)
    items = allowed_items(model_file.catalog, allow_items=allow_items, deny_items=deny_items)
    sha256 = model_file_sha256(model)
    description = describe_job(
        users, model_sha256=sha256, options=asdict(options), allowed=items.allowed, as_folder=targets.as_folder
    )
    log = JobLog(show=progress, as_json=log_json)
    log.event(
        "job_begun",
        model=str(model),
        model_sha256=sha256,
        input=str(source),
        output=str(output),
        rows=users.num_rows,
        options=asdict(options),
        resume=resume,
    )
    job = _Job(
        options=options,
        targets=targets,
        users=users,
        model_file=model_file,
        sha256=sha256,
        items=items,
        description=description,
        bound=bound,
        threads=threads,
        overwrite=overwrite,
        log=log,
        started=started,
    )
    work = _finished_work(job) if resume else None
    if work is None:
        with open_job_folder(targets, description, resume=resume, overwrite=overwrite) as folder:
            work = _whole_work(folder, job)
            if work is None:
                work = _do_work(folder, job, index_cache=index_cache)
    done = _account_of(job, work, output=str(output))
    if report is not None:
        done = _with_report(done, report, job, work, overwrite=overwrite or resume)
    log.event("job_done", **done.to_json())
    return done


@dataclass(frozen=True, eq=False)
class _Job:
    """What is to be done, opened and checked.

    Attributes:
        sha256: of the model file.
        items: that may be recommended.
        description: of the job, as describe_job gave it.
        started: by time.perf_counter.
    """

    options: ScoreOptions
    targets: OutputPaths
    users: Users
    model_file: ModelFile
    sha256: str
    items: AllowedItems
    description: dict[str, Any]
    bound: MemoryBound
    threads: int | None
    overwrite: bool
    log: JobLog
    started: float


@dataclass(frozen=True)
class _Work:
    """What was done, now or before; as in ScoreReport, samples as in Throughput."""

    counts: ScoreCounts
    resumed_rows: int
    recall: Recall | None = None
    cpu_s: dict[str, float] = field(default_factory=dict)
    start_s: float = 0.0
    samples: list[tuple[float, int]] = field(default_factory=list)


def _refuse_early(targets: OutputPaths, report: str | Path | None, *, resume: bool, overwrite: bool) -> None:
    """Say before anything is opened that the results could not be written, or that another job is in the way.

    Raises:
        DataError: so it is.
    """
    refuse_outputs(targets, overwrite=overwrite or resume)
    if report is not None:
        refuse_report(report, targets, overwrite=overwrite or resume)
        refuse_without_libraries(report)
    if not (resume or overwrite):
        refuse_unfinished_job(targets)


def _finished_work(job: _Job) -> _Work | None:
    """What this job has done if its results are all there; None where they are not its."""
    manifest = read_manifest(job.targets)
    if manifest is None or manifest["job"] != job.description:
        return None
    remove_finished_job(job.targets, job.description)
    return _work_of(manifest, job.targets)


def _whole_work(folder: JobFolder, job: _Job) -> _Work | None:
    """Where all but the names of the files is done, give them their names; None where there is work to do."""
    manifest = folder.manifest()
    if manifest is None:
        return None
    work = _work_of(manifest, job.targets)
    folder.finish(overwrite=job.overwrite)
    return work


def _work_of(manifest: dict[str, Any], targets: OutputPaths) -> _Work:
    """What was done before this run, by the manifest of it."""
    counts, recall = account(manifest, targets)
    return _Work(counts, resumed_rows=counts.rows_in, recall=recall)


def _do_work(folder: JobFolder, job: _Job, *, index_cache: str | Path | None) -> _Work:
    """Lay out the items, score what is not done, and give the results their names."""
    refuse_outputs(job.targets, overwrite=job.overwrite)
    users = job.users
    rules, recall = _open_rules(job, index_cache=index_cache)
    start_s = time.perf_counter() - job.started
    parts = plan_parts(users)
    outputs = ScoreOutputs(
        folder, parts, RowSchemas(rules.schema, group_rows(rules), rules.dead_letter_schema, CHUNK_ROWS)
    )
    resumed_rows = sum(counts.rows_in for counts in outputs.done.values())
    counts = score_users(users, rules, parts, outputs, threads=job.threads, bound=job.bound, log=job.log)
    with outputs.times.stage("write"):
        manifest = manifest_of(folder, users, parts, job=job.description, counts=counts, recall=recall)
        folder.commit(manifest, overwrite=job.overwrite)
    return _Work(
        counts,
        resumed_rows,
        recall=recall,
        cpu_s=dict(outputs.times.cpu_s),
        start_s=start_s,
        samples=list(outputs.throughput.samples),
    )


def _open_rules(job: _Job, *, index_cache: str | Path | None) -> tuple[ScoreRules, Recall | None]:
    """What every chunk is scored by; and how good the lists are, where the search is approximate."""
    ranker = open_ranker(job.model_file, job.options, job.items, index_cache=index_cache)
    made_by = {
        "ipsrec.model_sha256": job.sha256,
        "ipsrec.options": json.dumps({**asdict(job.options), "allowed_items": job.items.num_allowed}),
    }
    rules = build_rules(ranker, job.options, columns=job.users.columns, schema=job.users.schema, metadata=made_by)
    if job.options.approximate is None:
        return rules, None
    index, recall = choose_recall(ranker, _first_histories(job.users, rules), target=job.options.approximate)
    job.log.note(recall.in_words())
    return replace(rules, ranker=replace(ranker, approximate=index)), recall


def _account_of(job: _Job, work: _Work, *, output: str) -> ScoreReport:
    """The account of a job whose results are all there."""
    wall_s = time.perf_counter() - job.started
    targets, items = job.targets, job.items
    return ScoreReport(
        output=output,
        manifest=str(targets.manifest),
        bad_rows=None if targets.bad_rows is None else str(targets.bad_rows),
        model_sha256=job.sha256,
        counts=work.counts,
        resumed_rows=work.resumed_rows,
        allowed_items=items.num_allowed,
        unknown_allow_items=items.unknown_allow_items,
        unknown_deny_items=items.unknown_deny_items,
        approximate=work.recall,
        cpu_s=work.cpu_s,
        start_s=work.start_s,
        wall_s=wall_s,
        users_per_s=(work.counts.rows_in - work.resumed_rows) / wall_s,
    )


def _with_report(done: ScoreReport, report: str | Path, job: _Job, work: _Work, *, overwrite: bool) -> ScoreReport:
    """Write the page about a job, and say so in its account."""
    started = time.perf_counter()
    figures = run_figures(
        done,
        model=job.model_file,
        users=job.users,
        targets=job.targets,
        allowed=job.items.allowed,
        options=asdict(job.options),
        versions=job.description["versions"],
        samples=work.samples,
    )
    write_run_report(report, figures, overwrite=overwrite)
    return replace(done, report=str(report), report_s=time.perf_counter() - started)


def _first_histories(users: Users, rules: ScoreRules) -> Histories:
    """Histories of the first SAMPLE_USERS users with a known item, on which recall is measured."""
    parts: list[Histories] = []
    lengths = np.zeros(0, np.int64)
    for chunk in read_chunks(users, plan_parts(users), chunk_rows=SAMPLE_USERS):
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
