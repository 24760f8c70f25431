"""Scores some parts of a job in a process that did not open it: a worker of an engine, perhaps on another machine.

It has its own session and its own laid out items, runs the code of a job in one process, and writes the parts itself;
what goes back is an account of each.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ipsrec_onnx.approximate_recall import Recall
from ipsrec_onnx.card_search import SearchCounts
from ipsrec_onnx.cards import CardOptions
from ipsrec_onnx.carried_lists import PreviousOutput
from ipsrec_onnx.errors import DataError, EngineError
from ipsrec_onnx.filters import AllowedItems
from ipsrec_onnx.item_shards import CatalogShards
from ipsrec_onnx.job_description import first_difference, machine_kind
from ipsrec_onnx.job_folder import open_worker_folder, refuse_other_job
from ipsrec_onnx.job_rules import open_rules
from ipsrec_onnx.machine_memory import held_memory
from ipsrec_onnx.manifest import part_entry
from ipsrec_onnx.memory_plan import memory_bound
from ipsrec_onnx.model_file import model_file_sha256, open_model_file
from ipsrec_onnx.output_paths import OutputPaths
from ipsrec_onnx.pipeline import ended
from ipsrec_onnx.progress import JobLog
from ipsrec_onnx.score_counts import ScoreCounts
from ipsrec_onnx.score_options import ScoreOptions
from ipsrec_onnx.score_outputs import RowSchemas, ScoreOutputs
from ipsrec_onnx.score_run import plan_run, score_parts
from ipsrec_onnx.staging import fetched
from ipsrec_onnx.user_parts import UserPart
from ipsrec_onnx.users import Users


@dataclass(frozen=True, eq=False)
class PartsJob:
    """What a worker has to know of a job; it can be pickled.

    Attributes:
        model: the model file.
        sha256: of it.
        description: of the job, as describe_job gave it.
        machine: the kind of machine that scores, as machine_kind gives it; workers of another kind refuse.
        options: of scoring.
        users: who is scored.
        items: that may be recommended.
        schemas: of what is written.
        folder: of the job, where it is on a disk; None where the output is in a store.
        targets: where its results go.
        cards: which GPUs of the worker, and what searches on them.
        shards: how the catalog is cut.
        threads: of a worker.
        max_memory: bytes that a worker may have; None for its share of what its machine has free.
        share: of a machine's memory that is a worker's.
        index_cache: folder in which the laid out items are kept from job to job; None lays them out anew.
        previous: an earlier output whose lists are carried over; None for none.
    """

    model: str
    sha256: str
    description: dict[str, Any]
    machine: dict[str, Any]
    options: ScoreOptions
    users: Users
    items: AllowedItems
    schemas: RowSchemas
    folder: Path | None
    targets: OutputPaths
    cards: CardOptions
    shards: CatalogShards
    threads: int
    max_memory: int | None
    share: float
    index_cache: str | Path | None
    previous: PreviousOutput | None = None


@dataclass(frozen=True)
class PartDone:
    """The account of a part whose files are there.

    Attributes:
        part: which one.
        counts: of its rows and ids.
        entry: of its file, as the manifest has it; None where the candidates become one file.
        cpu_s: processor seconds of each stage since the part before it was done, for parts are scored as one stream.
            What a worker has spent and not told of when it dies is not in it.
        searched: how often a GPU's search was enough, likewise; None where the CPU searched.
        recall: how good approximate lists are; None for exact ones.
        carried_users: of the part, whose lists were carried over; 0 where it was done before.
    """

    part: UserPart
    counts: ScoreCounts
    entry: dict[str, Any] | None
    cpu_s: dict[str, float]
    searched: SearchCounts | None
    recall: Recall | None
    carried_users: int = 0


class PartWorker:
    """Opens a job and scores the parts that it is given.

    Raises:
        EngineError: this machine is of another kind than the job's, and would round in ways of its own.
        DataError: the model file is another one than the job's.
        IpsrecError: as open_rules.
    """

    def __init__(self, job: PartsJob) -> None:
        gpus = job.cards.gpus if job.options.device == "cuda" else None
        found = machine_kind(gpus)
        if found != job.machine:
            raise EngineError(
                f"a worker's machine would round differently from the others: {first_difference(job.machine, found)}; "
                "take machines of one kind, with the same packages"
            )
        self._job, self._bound = job, memory_bound(job.max_memory, share=job.share)
        with fetched(job.model) as model:
            if model_file_sha256(model) != job.sha256:
                raise DataError(f"model {job.model}: a worker finds another file there; give all machines the same")
            self._rules, self._recall = open_rules(
                open_model_file(model, mapped_in=job.shards.mapped_in),
                job.sha256,
                job.options,
                job.items,
                job.users,
                cards=job.cards,
                shards=job.shards,
                index_cache=job.index_cache,
                bound=self._bound,
                previous=job.previous,
            )
        self._folder = open_worker_folder(job.folder, job.targets)
        self._held = held_memory(self._rules.ranker.mapped_bytes)
        self._searched = self._search_counts()

    def score(self, parts: Sequence[UserPart]) -> Iterator[PartDone]:
        """Score parts as one stream and write their files; those that are there are looked through.

        Args:
            parts: in their order.

        Yields:
            Each part when it is done, and those before it are.

        Raises:
            IpsrecError: as score_parts; the first one in the order of the parts, when those before it were yielded.
                That a file is broken which was there before is heard of at once.
            EngineError: the job is not there, or no longer.
        """
        refuse_other_job(self._folder, self._job.description)
        outputs = ScoreOutputs(self._folder, list(parts), self._job.schemas, parts_alone=True)
        plan = plan_run(
            self._job.users,
            self._rules,
            outputs.missing,
            threads=self._job.threads,
            bound=self._bound,
            held=self._held,
        )
        done = score_parts(self._job.users, self._rules, outputs, plan=plan, log=JobLog(show=False))
        whole, told, carried = set[UserPart](), 0, Counter[UserPart]()
        with ended(done):
            for written in done:
                if written.part is None:
                    continue
                carried[written.part] += written.carried_users
                if not written.whole:
                    continue
                refuse_other_job(self._folder, self._job.description)
                whole.add(written.part)
                while told < len(parts) and parts[told] in whole:
                    yield self._account(outputs, parts[told], carried_users=carried[parts[told]])
                    told += 1

    def _account(self, outputs: ScoreOutputs, part: UserPart, *, carried_users: int) -> PartDone:
        """Say what a part counts, and what was spent since the last one."""
        cpu_s = dict(outputs.times.cpu_s)
        outputs.times.cpu_s.clear()
        before, self._searched = self._searched, self._search_counts()
        return PartDone(
            part=part,
            counts=outputs.counts_of(part),
            entry=part_entry(self._folder, self._job.users, part) if self._job.targets.as_folder else None,
            cpu_s=cpu_s,
            searched=None if before is None or self._searched is None else self._searched - before,
            recall=self._recall,
            carried_users=carried_users,
        )

    def _search_counts(self) -> SearchCounts | None:
        search = self._rules.ranker.card_search
        return None if search is None else search.counts()
