"""Which process comes next: seed 0 of every row first, so that a partial report is already whole, then seed 1, ..."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from ipsrec_experiment.cell import CELL_FILE, Job
from ipsrec_experiment.plan import Row
from ipsrec_experiment.tuning import Search, Trial, read_choice
from ipsrec_onnx.errors import DataError

CELLS, RUNS, TUNING, LOGS = "cells", "runs", "tuning", "logs"


@dataclass(frozen=True)
class Task:
    """A job with its place in the experiment.

    Attributes:
        row: whose.
        seed: of the training.
        trial: of tuning; None for a cell of the tables.
        job: what the process does.
        log: where its stderr goes.
    """

    row: Row
    seed: int
    trial: Trial | None
    job: Job
    log: Path

    @property
    def title(self) -> str:
        """For messages."""
        if self.trial is None:
            return f"{self.row.name}, seed {self.seed}"
        tried = ", ".join(f"{name} {value}" for name, value in self.trial.changes.items())
        return f"{self.row.name}, trial {self.trial.number} ({tried})"


@dataclass(frozen=True)
class Failure:
    """What could not be done.

    Attributes:
        title: which task, or which row.
        reason: one line.
        log: where the rest is.
    """

    title: str
    reason: str
    log: Path


def cell_folder(folder: Path, row: Row, seed: int) -> Path:
    """Where the results of a cell lie."""
    return folder / CELLS / row.slug / f"seed-{seed}"


@dataclass
class Schedule:
    """Hands out tasks, and takes back how they ended.

    Attributes:
        folder: of the experiment.
        dataset: folder made by `ipsrec prepare`.
        rows: to be done, in order.
        seeds: how many, from 0.
        tune: trials of a row; 0 for none.
        device: for training.
        threads: of one process.
        failures: what could not be done, so far.
    """

    folder: Path
    dataset: str
    rows: Sequence[Row]
    seeds: int
    tune: int
    device: Literal["cpu", "cuda"]
    threads: int
    failures: list[Failure] = field(default_factory=list)
    _running: dict[tuple[str, int], Task] = field(default_factory=dict)
    _tuning_now: set[str] = field(default_factory=set)
    _failed: set[tuple[str, int]] = field(default_factory=set)
    _searches: dict[str, Search] = field(default_factory=dict)

    def next(self) -> Task | None:
        """A task that can run now beside those that are running; None where there is none."""
        for seed in range(self.seeds):
            for row in self.rows:
                task = self._task(row, seed)
                if task is not None:
                    return task
        return None

    def done(self, task: Task) -> None:
        """Take back a task that is whole; a trial is worth the best validation metric of its training.

        Raises:
            DataError: a cell or a trial's run is not whole, or it was the last trial and none could be trained.
        """
        if task.trial is not None:
            self._search(task.row).tell(task.trial, _validation_metric(task))
        elif not self._is_done(task.row, task.seed):
            raise DataError(f"it left no {CELL_FILE} in {cell_folder(self.folder, task.row, task.seed)}")
        self._tuning_now.discard(task.row.name)
        self._running.pop((task.row.name, task.seed), None)

    def refused(self, task: Task, reason: str) -> None:
        """Take back a task whose settings cannot be trained: a trial like that is one that lost.

        Raises:
            DataError: it was the last trial and none of them could be trained.
        """
        if task.trial is None:
            self.failed(task, reason)
            return
        self.failures.append(Failure(task.title, reason, task.log))
        self._search(task.row).tell(task.trial, None)
        self._tuning_now.discard(task.row.name)

    def failed(self, task: Task, reason: str) -> None:
        """Take back a task that cannot be done; without its trials a row cannot go on."""
        self._tuning_now.discard(task.row.name)
        self._running.pop((task.row.name, task.seed), None)
        seeds = range(self.seeds) if task.trial is not None else (task.seed,)
        self._failed |= {(task.row.name, seed) for seed in seeds}
        self.failures.append(Failure(task.title, reason, task.log))

    def left(self) -> dict[str, int]:
        """Processes that are still to end, by the row's name, running ones included."""
        left = {}
        for row in self.rows:
            cells = sum(
                not self._is_done(row, seed) and (row.name, seed) not in self._failed for seed in range(self.seeds)
            )
            trials = self._search(row).left if cells and self._must_tune(row) else 0
            left[row.name] = cells + max(0, trials)
        return left

    def _task(self, row: Row, seed: int) -> Task | None:
        if (row.name, seed) in self._running or (row.name, seed) in self._failed or self._is_done(row, seed):
            return None
        if self._must_tune(row):
            return self._trial(row)
        choice = read_choice(self.folder / TUNING, row) if self.tune else None
        changes = {**row.changes, **(choice["chosen"] if choice else {}), "seed": seed}
        job = self._job(row, changes, cell=str(cell_folder(self.folder, row, seed)))
        task = Task(row, seed, None, job, self.folder / LOGS / f"{row.slug}-seed-{seed}.log")
        self._running[row.name, seed] = task
        return task

    def _trial(self, row: Row) -> Task | None:
        if row.name in self._tuning_now:  # what to try next depends on what the trials before gave
            return None
        search = self._search(row)
        trial = search.next()
        if trial is None:  # a kill between the last trial and the choice
            try:
                search.write_choice()
            except DataError as error:
                self._failed |= {(row.name, seed) for seed in range(self.seeds)}
                self.failures.append(Failure(row.name, str(error), self.folder / LOGS))
                return None
            return self._task(row, 0)
        self._tuning_now.add(row.name)
        job = self._job(row, {**row.changes, **trial.changes, "seed": 0}, cell=None)
        return Task(row, 0, trial, job, self.folder / LOGS / f"{row.slug}-trial-{trial.number}.log")

    def _job(self, row: Row, changes: dict[str, Any], *, cell: str | None) -> Job:
        """A run is named by its settings, so that the chosen trial is the training of seed 0, done already."""
        settings = json.dumps({name: value for name, value in changes.items() if name != "seed"}, sort_keys=True)
        key = hashlib.sha256(settings.encode()).hexdigest()[:8]
        return Job(
            row=row.name,
            model=row.model,
            variant=row.variant,
            changes=changes,
            dataset=self.dataset,
            run=str(self.folder / RUNS / row.slug / f"{key}-seed-{changes['seed']}"),
            cell=cell,
            device=self.device,
            threads=self.threads,
        )

    def _must_tune(self, row: Row) -> bool:
        return bool(self.tune and row.search) and read_choice(self.folder / TUNING, row) is None

    def _search(self, row: Row) -> Search:
        if row.name not in self._searches:
            self._searches[row.name] = Search(self.folder / TUNING, row, trials=self.tune)
        return self._searches[row.name]

    def _is_done(self, row: Row, seed: int) -> bool:
        return (cell_folder(self.folder, row, seed) / CELL_FILE).is_file()


def _validation_metric(task: Task) -> float:
    """The validation metric of the best epoch of a training."""
    from ipsrec_train.run import open_run

    run = open_run(task.job.run)
    return float(run.best[run.info["training"]["stop_metric"]])
