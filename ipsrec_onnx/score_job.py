"""The steps of a scoring job that is opened and checked: take over what is done, do the rest, give the account."""

from __future__ import annotations

import json
import time
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from ipsrec_onnx.approximate_recall import SAMPLE_USERS, Recall, choose_recall
from ipsrec_onnx.card_search import SearchCounts
from ipsrec_onnx.cards import CardOptions
from ipsrec_onnx.filters import AllowedItems
from ipsrec_onnx.histories import Histories
from ipsrec_onnx.job_folder import JobFolder, remove_finished_job
from ipsrec_onnx.manifest import account, manifest_of, read_manifest
from ipsrec_onnx.memory_plan import MemoryBound
from ipsrec_onnx.model_file import ModelFile
from ipsrec_onnx.output_paths import OutputPaths, refuse_outputs
from ipsrec_onnx.progress import JobLog
from ipsrec_onnx.run_report import run_figures, write_run_report
from ipsrec_onnx.score_counts import ScoreCounts
from ipsrec_onnx.score_options import ScoreOptions
from ipsrec_onnx.score_outputs import RowSchemas, ScoreOutputs
from ipsrec_onnx.score_report import ScoreReport
from ipsrec_onnx.score_rules import build_rules, open_ranker
from ipsrec_onnx.score_run import CHUNK_ROWS, group_rows, score_users
from ipsrec_onnx.scored_chunk import ScoreRules, known_histories
from ipsrec_onnx.user_chunks import plan_parts, read_chunks
from ipsrec_onnx.users import Users


@dataclass(frozen=True, eq=False)
class ScoreJob:
    """What is to be done, opened and checked.

    Attributes:
        options: of scoring.
        targets: where results go.
        users: who is scored.
        model_file: by which model.
        sha256: of the model file.
        items: that may be recommended.
        description: of the job, as describe_job gave it.
        bound: memory that the job may have.
        cards: which GPUs, and what searches on them.
        threads: workers; None for all usable cores, or fewer where memory is short.
        overwrite: replace existing results.
        log: says how far it is.
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
    cards: CardOptions
    threads: int | None
    overwrite: bool
    log: JobLog
    started: float


@dataclass(frozen=True)
class Work:
    """What was done, now or before; as in ScoreReport, samples as in Throughput: (seconds, users)."""

    counts: ScoreCounts
    resumed_rows: int
    recall: Recall | None = None
    searched: SearchCounts | None = None
    cpu_s: dict[str, float] = field(default_factory=dict)
    start_s: float = 0.0
    samples: list[tuple[float, int]] = field(default_factory=list)


def finished_work(job: ScoreJob) -> Work | None:
    """What this job has done if its results are all there; None where they are not its.

    Raises:
        DataError: the manifest or the results are broken.
    """
    manifest = read_manifest(job.targets)
    if manifest is None or manifest["job"] != job.description:
        return None
    remove_finished_job(job.targets, job.description)
    return _work_of(manifest, job.targets)


def whole_work(folder: JobFolder, job: ScoreJob) -> Work | None:
    """Where all but the names of the files is done, give them their names; None where there is work to do.

    Raises:
        DataError: the manifest is broken, or a result cannot take its place.
    """
    manifest = folder.manifest()
    if manifest is None:
        return None
    work = _work_of(manifest, job.targets)
    folder.finish(overwrite=job.overwrite)
    return work


def _work_of(manifest: dict[str, Any], targets: OutputPaths) -> Work:
    """What was done before this run, by the manifest of it."""
    counts, recall = account(manifest, targets)
    return Work(counts, resumed_rows=counts.rows_in, recall=recall)


def do_work(folder: JobFolder, job: ScoreJob, *, index_cache: str | Path | None) -> Work:
    """Lay out the items, score what is not done, and give the results their names.

    Args:
        folder: of the job, locked by this process.
        job: what is to be done.
        index_cache: folder in which the laid out items are kept from job to job; None lays them out anew.

    Raises:
        DataError, ModelFileError: as score().
        ModuleNotFoundError: faiss, for an approximate search, is not installed.
    """
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
    return Work(
        counts,
        resumed_rows,
        recall=recall,
        searched=None if rules.ranker.card_search is None else rules.ranker.card_search.counts(),
        cpu_s=dict(outputs.times.cpu_s),
        start_s=start_s,
        samples=list(outputs.throughput.samples),
    )


def _open_rules(job: ScoreJob, *, index_cache: str | Path | None) -> tuple[ScoreRules, Recall | None]:
    """What every chunk is scored by; and how good the lists are, where the search is approximate."""
    ranker = open_ranker(job.model_file, job.options, job.items, index_cache=index_cache, cards=job.cards)
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


def account_of(job: ScoreJob, work: Work, *, output: str) -> ScoreReport:
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
        gpu_search=work.searched,
        cpu_s=work.cpu_s,
        start_s=work.start_s,
        wall_s=wall_s,
        users_per_s=(work.counts.rows_in - work.resumed_rows) / wall_s,
    )


def with_report(done: ScoreReport, report: str | Path, job: ScoreJob, work: Work, *, overwrite: bool) -> ScoreReport:
    """Write the page about a job, and say so in its account.

    Raises:
        DataError: the page cannot be written.
    """
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
