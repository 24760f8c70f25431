"""The main job: users' histories in Parquet to ranked candidates in Parquet.

    users.parquet --read--> Arrow lists --map ids, pack--> (B, L) --encode--> (B, D) --retrieve--> top-k
                                                                     top-k --write--> candidates.parquet

read is users.py and user_chunks.py; map is histories.py; pack and encode encoding.py; retrieve retrieval.py; write
candidates.py and score_outputs.py; score_chunk goes from read to write for one chunk of users, in a worker thread, and
the threads of lanes.py write several parts at once.
score_job.py has the steps of a job; job_folder.py is what a killed one goes on from, manifest.py what a finished one
says of itself.
"""

from __future__ import annotations

import contextlib
import functools
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path

from ipsrec_onnx.candidates import Layout, candidate_columns
from ipsrec_onnx.cards import CardOptions, SearchName
from ipsrec_onnx.encoding import EncoderName
from ipsrec_onnx.engine_options import EngineName, RayOptions, check_engine
from ipsrec_onnx.errors import DataError
from ipsrec_onnx.filters import AllowedItems, allowed_items
from ipsrec_onnx.fingerprints import check_user_type
from ipsrec_onnx.item_shards import CatalogShards
from ipsrec_onnx.job_description import describe_job, machine_kind
from ipsrec_onnx.job_folder import open_job_folder, refuse_unfinished_job
from ipsrec_onnx.job_plan import check_plan, planned_job, prediction_for, read_plan
from ipsrec_onnx.memory_plan import MemoryBound, memory_bound, refuse_big_model
from ipsrec_onnx.model_file import ModelFile, bytes_to_open, model_file_sha256, open_model_file
from ipsrec_onnx.output_paths import (
    OutputPaths,
    StorePaths,
    folder_on_disk,
    output_paths,
    refuse_inputs,
    refuse_outputs,
    refuse_partitions,
    refuse_report,
)
from ipsrec_onnx.previous_output import manifest_path, open_previous
from ipsrec_onnx.progress import JobLog
from ipsrec_onnx.ray_engine import connect
from ipsrec_onnx.retrieval import ColdUsers
from ipsrec_onnx.run_report import refuse_without_libraries
from ipsrec_onnx.score_job import ScoreJob, account_of, do_work, finished_work, whole_work, with_report
from ipsrec_onnx.score_options import ScoreOptions, check_cards, check_positive, check_shards
from ipsrec_onnx.score_report import ScoreReport
from ipsrec_onnx.scored_chunk import BadRows, UnknownItems
from ipsrec_onnx.session import Device
from ipsrec_onnx.staging import origin, staged
from ipsrec_onnx.uris import is_uri, shown
from ipsrec_onnx.users import UserColumns, Users, check_id_kinds, open_users
from ipsrec_onnx.worker_threads import in_background


@staged(
    inputs=["model", "allow_items", "deny_items", "since", "plan"], outputs={"report": None}, mapped=["index_cache"]
)
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
    gpus: Sequence[int] = (0,),
    search: SearchName = "auto",
    catalog_shards: int = 1,
    threads: int | None = None,
    engine: EngineName = "local",
    address: str | None = None,
    workers: int | None = None,
    gpus_per_worker: int = 1,
    fingerprints: bool = False,
    since: str | Path | None = None,
    report: str | Path | None = None,
    max_memory: int | None = None,
    part_rows: int | None = None,
    plan: str | Path | None = None,
    resume: bool = False,
    overwrite: bool = False,
    progress: bool = False,
    log_json: bool = False,
) -> ScoreReport:
    """Rank candidates for every user of a Parquet file, in the order of the input's rows; the lists are exact.

    The bytes of the output depend on the model file, the input's rows, the options and, of a machine, on nothing but
    the kinds of CPU and GPU, which may round user vectors in ways of their own.

    Args:
        model: model file that `ipsrec export` wrote.
        source: users: a Parquet file, a folder of them, a pattern such as "data/dt=*/part-*.parquet", or a URI.
        output: what to write: a Parquet file, or, where the name ends in /, a folder of them, below the same key=value
            folders as the input's files. The account of the job goes to <output>.manifest.json.
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
        device: where users are encoded and items searched.
        gpus: numbers of the GPUs, with device "cuda": chunks of users are shared out to them.
        search: what searches on them: "triton" (needs the extra `triton`), "onnx" (ONNX Runtime alone) or "cpu";
            "auto" takes the first that the machine can. The lists are the same with each.
        catalog_shards: cut the catalog into so many shards, for more items than memory or one GPU holds: tables and
            embeddings are then mapped from files, users go through the shards one after another, and each GPU has its
            own shards alone. The lists, and the output's bytes, stay the same. 1 keeps the catalog whole, in memory.
        threads: worker threads; all usable cores by default, or fewer where memory is short. With engine "ray", those
            of a worker; by default its share of the cluster's CPUs.
        engine: "local" scores in this process; "ray" has the workers of a Ray cluster score, to the same bytes. All of
            them must reach the model, the input and the output by the same names.
        address: of the cluster, "auto" for the one that this machine is part of; None starts Ray on this machine alone.
        workers: of the cluster, side by side; one a machine by default, or one for each gpus_per_worker GPUs.
        gpus_per_worker: GPUs of a worker, with device "cuda".
        fingerprints: add the column history_fingerprint, by which a later job finds out whose history has changed.
        since: the output of an earlier job with fingerprints, of the same model and options: users whose history has
            stayed as it was get their lists from it, and are not scored again. The bytes are those of a job without it
            that has fingerprints.
        report: write a page about the job here (HTML); looks once more over the candidates. Needs the extra `report`.
        max_memory: bytes of memory that the job may have; most of what the machine has free by default. Chunks get
            smaller to fit; the output's bytes stay the same.
        part_rows: users of a part at most; by default 65,536, or a 64th of all users where that is less, and 8,192 at
            least. A part is what a killed job loses at most, and one file of an output folder.
        plan: file that `ipsrec plan` wrote for this very job: the account says how wrong it was.
        resume: go on where a job of the same model, input and options was broken off, to the same bytes; begin where
            none was; do nothing where it is finished.
        overwrite: replace an existing output, and throw an unfinished job of it away, unless it may go on.
        progress: report progress on stderr.
        log_json: as JSON, one object a line.

    Raises:
        DataError: an input is not as the contract asks, the output cannot be written, or the job does not fit into its
            memory. Nothing is left behind but the parts that are done, for resume.
        ModelFileError: the model file cannot be used.
        ExecutionProviderError: the device, or what its search needs, is not there.
        EngineError: there is no such cluster, it has no room for the workers, or it lost them.
        ModuleNotFoundError: faiss, which approximate needs, or ray is not installed.
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
        fingerprints=fingerprints or since is not None,
    )
    if since is not None and approximate is not None:
        raise DataError(
            "--approximate chooses how far it searches by the input's first users, so that lists of --since may be "
            "others; leave one of the two out"
        )
    on_ray = check_engine(engine, RayOptions(address, workers, gpus_per_worker), gpus)
    of_worker = tuple(gpus) if on_ray is None or device == "cpu" else on_ray.gpus(device)
    cards = check_cards(options, CardOptions(of_worker, search), here=on_ray is None)
    check_shards(catalog_shards, options, cards)
    check_positive("threads", threads)
    check_positive("max_memory", max_memory)
    check_positive("part_rows", part_rows)
    bound = memory_bound(max_memory)
    if on_ray is not None and since is not None and is_uri(origin(since)):
        raise DataError(
            f"--since {origin(since)}: workers of a cluster read the earlier output from a disk that they share; copy "
            "it there, or leave --engine ray out"
        )
    targets = output_paths(output, bad_rows=bad_rows == "divert")
    shards = CatalogShards(catalog_shards, folder_on_disk(targets))
    planned = None if plan is None else read_plan(plan)
    _refuse_early(targets, report, resume=resume, overwrite=overwrite)
    users = open_users(source, UserColumns(user_column, item_column, provider_column, candidates_column))
    refuse_inputs(
        targets,
        users,
        model=model,
        allow_items=allow_items,
        deny_items=deny_items,
        report=report,
        previous=[] if since is None else [Path(since), manifest_path(since)],
    )
    refuse_partitions(targets, users, candidate_columns(layout, fingerprints=options.fingerprints))
    opened: Callable[[], tuple[ModelFile, str, AllowedItems]] = functools.partial(
        open_model, model, users, bound=bound, shards=shards, allow_items=allow_items, deny_items=deny_items
    )
    log = JobLog(show=progress, as_json=log_json)
    with contextlib.ExitStack() as joined:
        cluster = None
        if on_ray is not None:  # Ray takes seconds to start, in processes of its own
            opened = in_background(opened, name="ipsrec-worker-opens")
            cluster = joined.enter_context(connect(on_ray, device=device, threads=threads, note=log.note))
        model_file, sha256, items = opened()
        job = ScoreJob(
            options=options,
            targets=targets,
            users=users,
            model_file=model_file,
            sha256=sha256,
            items=items,
            description=describe_job(
                users,
                model_sha256=sha256,
                options=asdict(options),
                allowed=items.allowed,
                as_folder=targets.as_folder,
                part_rows=part_rows,
                machine=machine_kind(cards.gpus if device == "cuda" else None) if cluster is None else cluster.machine,
            ),
            bound=bound,
            cards=cards,
            shards=shards,
            threads=threads,
            part_rows=part_rows,
            overwrite=overwrite,
            log=log,
            started=started,
        )
        if since is not None:
            check_user_type(users.schema.field(user_column).type, where=users.files[0].path)
            job = replace(job, previous=open_previous(since, job.description))
        prediction = None
        if planned is not None:
            prediction = prediction_for(
                planned,
                planned_job(
                    job.description,
                    threads=threads,
                    max_memory=max_memory,
                    cards=cards,
                    catalog_shards=catalog_shards,
                    index_cache=index_cache,
                ),
                workers=None if cluster is None else cluster.workers,
                path=str(plan),
            )
        log.event(
            "job_begun",
            model=origin(model),
            model_sha256=sha256,
            input=shown(source),
            output=shown(output),
            rows=users.num_rows,
            options=asdict(options),
            engine=engine,
            since=None if since is None else origin(since),
            resume=resume,
        )
        work = finished_work(job) if resume else None
        if work is None:
            with open_job_folder(targets, job.description, resume=resume, overwrite=overwrite) as folder:
                work = whole_work(folder, job)
                if work is None:
                    work = do_work(folder, job, index_cache=index_cache, cluster=cluster)
    done = account_of(job, work, output=shown(output))
    if prediction is not None and not work.resumed_rows:
        done = replace(
            done,
            plan=check_plan(
                prediction,
                wall_s=done.wall_s,
                memory_bytes=done.peak_memory_bytes if cluster is None else None,
                output_bytes=done.output_bytes,
            ),
        )
    if report is not None:
        done = with_report(done, report, job, work, overwrite=overwrite or resume)
    log.event("job_done", **done.to_json())
    return done


def open_model(
    model: str | Path,
    users: Users,
    *,
    bound: MemoryBound,
    shards: CatalogShards,
    allow_items: str | Path | None,
    deny_items: str | Path | None,
) -> tuple[ModelFile, str, AllowedItems]:
    """Open a model file for these users, and the lists of items.

    Returns:
        The model file; its SHA-256; the items that may be recommended.

    Raises:
        DataError: it does not fit into memory, the ids of the users are of another kind than its own, or a list cannot
            be read.
        ModelFileError: it cannot be used.
    """
    refuse_big_model(bound, path=str(model), num_bytes=bytes_to_open(model, mapped=shards.mapped_in is not None))
    model_file = open_model_file(model, mapped_in=shards.mapped_in)
    check_id_kinds(users.schema, users.columns, model_file.catalog, where=users.files[0].path)
    items = allowed_items(model_file.catalog, allow_items=allow_items, deny_items=deny_items)
    return model_file, model_file_sha256(model), items


def _refuse_early(targets: OutputPaths, report: str | Path | None, *, resume: bool, overwrite: bool) -> None:
    """Say before anything is opened that the results could not be written, or that another job is in the way.

    Raises:
        DataError: so it is.
    """
    in_store = isinstance(targets, StorePaths)
    if in_store and not (resume or overwrite):  # its parts are in their places: they would be taken for an output
        refuse_unfinished_job(targets)
    refuse_outputs(targets, overwrite=overwrite or resume)
    if report is not None:
        refuse_report(report, targets, overwrite=overwrite or resume)
        refuse_without_libraries(report)
    if not (in_store or resume or overwrite):
        refuse_unfinished_job(targets)
