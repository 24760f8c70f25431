"""The steps of a scoring job that is opened and checked: take over what is done, do the rest, give the account."""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from ipsrec_onnx.approximate_recall import Recall
from ipsrec_onnx.card_search import SearchCounts
from ipsrec_onnx.cards import CardOptions
from ipsrec_onnx.carried_lists import PreviousOutput
from ipsrec_onnx.filters import AllowedItems
from ipsrec_onnx.item_shards import CatalogShards
from ipsrec_onnx.job_folder import JobFolder, remove_finished_job
from ipsrec_onnx.job_rules import job_schemas, open_rules
from ipsrec_onnx.machine_memory import peak_memory
from ipsrec_onnx.manifest import account, candidate_bytes, manifest_of, read_manifest
from ipsrec_onnx.memory_plan import MemoryBound
from ipsrec_onnx.model_file import ModelFile
from ipsrec_onnx.output_paths import LocalPaths, OutputPaths, refuse_outputs
from ipsrec_onnx.part_worker import PartsJob
from ipsrec_onnx.progress import JobLog
from ipsrec_onnx.ray_engine import RayCluster
from ipsrec_onnx.run_report import run_figures, write_run_report
from ipsrec_onnx.score_counts import ScoreCounts
from ipsrec_onnx.score_options import ScoreOptions
from ipsrec_onnx.score_outputs import RowSchemas, ScoreOutputs, part_name
from ipsrec_onnx.score_report import ScoreReport
from ipsrec_onnx.score_run import check_account, score_users
from ipsrec_onnx.stage_times import StageTimes
from ipsrec_onnx.staging import given
from ipsrec_onnx.user_parts import UserPart, plan_parts
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
        shards: how the catalog is cut.
        threads: workers; None for all usable cores, or fewer where memory is short.
        part_rows: users of a part at most; None for what parts have by default.
        overwrite: replace existing results.
        log: says how far it is.
        started: by time.perf_counter.
        previous: an earlier output whose lists are carried over; None for none.
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
    shards: CatalogShards
    threads: int | None
    part_rows: int | None
    overwrite: bool
    log: JobLog
    started: float
    previous: PreviousOutput | None = None


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
    output_bytes: int = 0
    carried_users: int = 0


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
    return Work(counts, resumed_rows=counts.rows_in, recall=recall, output_bytes=candidate_bytes(manifest))


def do_work(
    folder: JobFolder, job: ScoreJob, *, index_cache: str | Path | None, cluster: RayCluster | None = None
) -> Work:
    """Score what is not done, and give the results their names.

    Args:
        folder: of the job, locked by this process.
        job: what is to be done.
        index_cache: folder in which the laid out items are kept from job to job; None lays them out anew.
        cluster: where the parts are scored; None for this process.

    Raises:
        DataError, ModelFileError: as score().
        ModuleNotFoundError: faiss, for an approximate search, is not installed.
    """
    if isinstance(job.targets, LocalPaths):  # in a store, parts of a job that goes on are in their places
        refuse_outputs(job.targets, overwrite=job.overwrite)
    parts = plan_parts(job.users, job.part_rows)
    schemas = job_schemas(job.model_file, job.sha256, job.options, job.items, job.users)
    if cluster is None:
        work, outputs = _work_here(folder, job, parts, schemas, index_cache=index_cache)
        entries: dict[UserPart, dict[str, Any]] = {}
    else:
        work, outputs, entries = _work_on_cluster(cluster, folder, job, parts, schemas, index_cache=index_cache)
    check_account(job.users, work.counts)
    outputs.gather_bad_rows()
    with outputs.times.stage("write"):
        manifest = manifest_of(
            folder, job.users, parts, job=job.description, counts=work.counts, recall=work.recall, entries=entries
        )
        folder.commit(manifest, overwrite=job.overwrite)
    return replace(work, cpu_s=dict(outputs.times.cpu_s), output_bytes=candidate_bytes(manifest))


def _work_here(
    folder: JobFolder, job: ScoreJob, parts: list[UserPart], schemas: RowSchemas, *, index_cache: str | Path | None
) -> tuple[Work, ScoreOutputs]:
    """Lay out the items and score in this process."""
    rules, recall = open_rules(
        job.model_file,
        job.sha256,
        job.options,
        job.items,
        job.users,
        cards=job.cards,
        shards=job.shards,
        index_cache=index_cache,
        bound=job.bound,
        previous=job.previous,
    )
    if recall is not None:
        job.log.note(recall.in_words())
    start_s = time.perf_counter() - job.started
    outputs = ScoreOutputs(folder, parts, schemas)
    resumed_rows = sum(counts.rows_in for counts in outputs.done.values())
    counts = score_users(job.users, rules, outputs, threads=job.threads, bound=job.bound, log=job.log)
    search = rules.ranker.card_search
    work = Work(
        counts,
        resumed_rows,
        recall=recall,
        searched=None if search is None else search.counts(),
        start_s=start_s,
        samples=list(outputs.throughput.samples),
        carried_users=outputs.carried_users,
    )
    return work, outputs


def _work_on_cluster(
    cluster: RayCluster,
    folder: JobFolder,
    job: ScoreJob,
    parts: list[UserPart],
    schemas: RowSchemas,
    *,
    index_cache: str | Path | None,
) -> tuple[Work, ScoreOutputs, dict[UserPart, dict[str, Any]]]:
    """Have the workers of a cluster score the parts; those that are done are looked through there, too."""
    begun = ScoreOutputs(folder, parts, schemas)
    resumed_rows = sum(counts.rows_in for counts in begun.done.values())
    to_do = PartsJob(
        model=given(Path(job.model_file.path).absolute()),
        sha256=job.sha256,
        machine=cluster.machine,
        description=job.description,
        options=job.options,
        users=job.users.for_others(),
        items=job.items,
        schemas=schemas,
        folder=folder.path.absolute() if isinstance(folder.path, Path) else None,
        targets=job.targets,
        cards=job.cards,
        shards=job.shards,
        threads=cluster.threads,
        max_memory=job.bound.limit if job.bound.asked else None,
        share=cluster.share,
        index_cache=None if index_cache is None else Path(index_cache).absolute(),
        previous=job.previous,
    )
    job.log.event(
        "job_planned",
        workers=cluster.workers,
        threads=cluster.threads,
        parts=len(parts),
        parts_done=len(begun.done),
        users_done=resumed_rows,
    )
    start_s = time.perf_counter() - job.started
    throughput, times, missing = begun.throughput, StageTimes(), set(begun.missing)
    entries: dict[UserPart, dict[str, Any]] = {}
    searched: SearchCounts | None = None
    recall: Recall | None = None
    carried_users = 0
    with job.log.progress(job.users.num_rows, what="users", already=resumed_rows, times=times) as advance:
        for done in cluster.score(to_do, parts):
            if done.entry is not None:
                entries[done.part] = done.entry
            recall = done.recall
            carried_users += done.carried_users
            if done.searched is not None:
                searched = done.searched if searched is None else searched + done.searched
            for stage, seconds in done.cpu_s.items():
                times.cpu_s[stage] += seconds
            if done.part in missing:
                throughput.add(done.counts.rows_in)
                advance(done.counts.rows_in)
                job.log.event("part_done", part=part_name(done.part), users=done.part.num_rows)
    folder.look()
    outputs = ScoreOutputs(folder, parts, schemas)  # now all are done
    outputs.times.add(times)
    if not job.targets.as_folder:
        for _ in outputs.write(iter(()), writers=1, most=1, log=job.log):
            pass
    work = Work(
        sum(outputs.done.values(), ScoreCounts()),
        resumed_rows,
        recall=recall,
        searched=searched,
        start_s=start_s,
        samples=list(throughput.samples),
        carried_users=carried_users,
    )
    return work, outputs, entries


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
        carried_users=work.carried_users,
        allowed_items=items.num_allowed,
        unknown_allow_items=items.unknown_allow_items,
        unknown_deny_items=items.unknown_deny_items,
        approximate=work.recall,
        gpu_search=work.searched,
        cpu_s=work.cpu_s,
        start_s=work.start_s,
        wall_s=wall_s,
        users_per_s=(work.counts.rows_in - work.resumed_rows) / wall_s,
        peak_memory_bytes=peak_memory(),
        output_bytes=work.output_bytes,
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
