"""Run a plan: train, export and evaluate every row with every seed, and write the report."""

from __future__ import annotations

import contextlib
import fcntl
import json
import shlex
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from ipsrec_experiment.cell import CELL_FILE
from ipsrec_experiment.paper_figures import DATA_SETS
from ipsrec_experiment.plan import Plan, Row, pick_rows, read_plan
from ipsrec_experiment.processes import run_schedule
from ipsrec_experiment.report import REPORT_FILES, write_report
from ipsrec_experiment.schedule import CELLS, LOGS, RUNS, TUNING, Failure, Schedule, cell_folder
from ipsrec_onnx.atomic import atomic_file, refuse_existing
from ipsrec_onnx.dataset import open_dataset
from ipsrec_onnx.errors import DataError
from ipsrec_onnx.readable import why_unreadable
from ipsrec_onnx.staging import staged

EXPERIMENT_FILE, LOCK_FILE = "experiment.json", "lock"
FORMAT_VERSION = 1


@dataclass(frozen=True)
class ExperimentResult:
    """What an experiment left.

    Attributes:
        output: its folder; report.md, report.json and report.html are in it.
        cells: finished cells of the rows that were picked.
        missing: cells that are not there yet.
        failures: what could not be done this time.
    """

    output: Path
    cells: int
    missing: int
    failures: list[Failure]


@staged(inputs=["dataset", "plan"], runs=["output"])
def experiment(
    dataset: str | Path,
    output: str | Path,
    *,
    plan: Path | None = None,
    models: Sequence[str] = ("all",),
    seeds: int = 5,
    tune: int = 0,
    jobs: int = 1,
    threads: int = 1,
    device: Literal["cpu", "cuda"] = "cpu",
    paper_figures: str | None = None,
    report_only: bool = False,
    overwrite: bool = False,
    quiet: bool = False,
) -> ExperimentResult:
    """Run what is missing of an experiment, and write its report.

    A folder that holds the same plan on the same dataset goes on where it stopped. More seeds, more rows and rows
    picked later may be added; a row that has changed is refused.

    Args:
        dataset: folder made by `ipsrec prepare`.
        output: folder of the experiment; its parent must be there.
        plan: TOML file; None for the paper's tables.
        models: "all", names of rows, or names of models.
        seeds: trainings of each row, with the seeds 0, 1, ...
        tune: trials of each row by which validation chooses its settings; 0 takes them from the plan.
        jobs: processes at once.
        threads: of the CPU, of each of them.
        device: where training runs.
        paper_figures: a data set of the paper whose printed figures stand beside ours; None for none.
        report_only: write the report of what is there, and run nothing.
        overwrite: start anew.
        quiet: nothing on stderr.

    Returns:
        What was done, and what was not.

    Raises:
        DataError: the plan or the dataset cannot be used, the folder holds another experiment, or another process is
            at work in it.
    """
    read = read_plan(plan)
    rows = pick_rows(read, models)
    for name, value, least in (("seeds", seeds, 1), ("tune", tune, 0), ("jobs", jobs, 1), ("threads", threads, 1)):
        if value < least:
            raise DataError(f"--{name} is {value}, expected {least} or more")
    if paper_figures is not None and paper_figures not in DATA_SETS:
        raise DataError(f"--paper-figures is {paper_figures!r}, expected one of {', '.join(DATA_SETS)}")
    opened = open_dataset(dataset)
    command = _command(
        dataset,
        plan,
        models,
        seeds=seeds,
        tune=tune,
        jobs=jobs,
        threads=threads,
        device=device,
        paper_figures=paper_figures,
    )
    folder = refuse_existing(output, overwrite=True)
    if report_only:
        before = _refuse_other_experiment(folder, read, opened.fingerprint, tune=None)
        write_report(folder, read, rows, opened, command=before.get("command", command), paper_data_set=paper_figures)
        return _result(folder, rows, seeds, [])
    _open_folder(folder)
    with _alone(folder):
        if overwrite:
            _empty(folder)
        _refuse_other_experiment(folder, read, opened.fingerprint, tune=tune)
        _write_identity(folder, {**_identity(read, opened.fingerprint, tune=tune), "command": command})
        schedule = Schedule(
            folder=folder, dataset=str(dataset), rows=rows, seeds=seeds, tune=tune, device=device, threads=threads
        )
        run_schedule(schedule, at_once=jobs, quiet=quiet)
        result = _result(folder, rows, seeds, schedule.failures)
        if _any_cell(folder, rows):
            write_report(folder, read, rows, opened, command=command, paper_data_set=paper_figures)
    return result


def _command(dataset: str | Path, plan: Path | None, models: Sequence[str], **options: Any) -> str:
    """The command for the report, with the last names of folders alone: where they lie is nobody's business."""
    parts = ["ipsrec experiment", f"--dataset {shlex.quote(Path(dataset).resolve().name)}"]
    if plan is not None:
        outside = plan.is_absolute() or ".." in plan.parts
        parts.append(f"--plan {shlex.quote(plan.name if outside else str(plan))}")
    if "all" not in models:
        parts.append(f"--models {shlex.quote(','.join(models))}")
    parts += [f"--{name.replace('_', '-')} {value}" for name, value in options.items() if value]
    return " ".join([*parts, "--output REPORT"])


def _result(folder: Path, rows: Sequence[Row], seeds: int, failures: list[Failure]) -> ExperimentResult:
    done = sum((cell_folder(folder, row, seed) / CELL_FILE).is_file() for row in rows for seed in range(seeds))
    return ExperimentResult(folder, done, len(rows) * seeds - done, failures)


def _any_cell(folder: Path, rows: Sequence[Row]) -> bool:
    """Is there a cell to report, be it of a seed that was not asked for this time?"""
    return any(True for row in rows for _ in (folder / CELLS / row.slug).glob(f"seed-*/{CELL_FILE}"))


def _open_folder(folder: Path) -> None:
    """Make the folder, or see that it is one of ours."""
    if folder.exists() and not folder.is_dir():
        raise DataError(f"output {folder} is a file, expected the name of a folder; choose another")
    inside = {part.name for part in folder.iterdir()} if folder.is_dir() else set()
    if inside - {LOCK_FILE} and EXPERIMENT_FILE not in inside:
        raise DataError(
            f"output {folder}: the folder there has no {EXPERIMENT_FILE}, so it is no experiment; choose another"
        )
    folder.mkdir(exist_ok=True)


def _empty(folder: Path) -> None:
    """Remove what an experiment wrote; experiment.json goes last, which says that it is ours to remove."""
    for name in (CELLS, RUNS, TUNING, LOGS):
        with contextlib.suppress(FileNotFoundError):
            shutil.rmtree(folder / name)
    for name in (*REPORT_FILES, EXPERIMENT_FILE):
        (folder / name).unlink(missing_ok=True)


@contextlib.contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Hold the folder's lock, which ends with the process."""
    with (folder / LOCK_FILE).open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise DataError(f"{folder}: another `ipsrec experiment` is at work in it; wait for its end") from error
        yield


def _identity(plan: Plan, fingerprint: str, *, tune: int) -> dict[str, Any]:
    return {"format_version": FORMAT_VERSION, "dataset_fingerprint": fingerprint, "tune": tune, **plan.to_json()}


def _write_identity(folder: Path, identity: dict[str, Any]) -> None:
    with atomic_file(folder / EXPERIMENT_FILE, overwrite=True) as temporary:
        temporary.write_text(json.dumps(identity, indent=1) + "\n", encoding="utf-8")


def _refuse_other_experiment(folder: Path, plan: Plan, fingerprint: str, *, tune: int | None) -> dict[str, Any]:
    """A folder goes on with the same dataset, the same tuning and the same rows, and may get new rows.

    Args:
        folder: of the experiment.
        plan: what is asked for now.
        fingerprint: of the dataset.
        tune: trials of a row; None where it does not matter.

    Returns:
        What experiment.json held; nothing for a new folder.
    """
    path = folder / EXPERIMENT_FILE
    if not path.is_file() and tune is not None:
        return {}
    reason = why_unreadable(path)
    if reason is not None:
        raise DataError(f"{path}: {reason}, so there is no experiment to report; run it without --report-only first")
    try:
        before = json.loads(path.read_text(encoding="utf-8"))
        rows = {row["name"]: row for row in before["rows"]}
        found = {name: before[name] for name in ("format_version", "dataset_fingerprint", "tune")}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"{path} is broken ({error!r}); start anew with --overwrite") from error
    now = _identity(plan, fingerprint, tune=found["tune"] if tune is None else tune)
    mend = "give the same, choose another --output, or start anew with --overwrite"
    for name in found:
        if found[name] != now[name]:
            raise DataError(f"{path}: {name} was {found[name]}, now it is {now[name]}; {mend}")
    harmless = _HARMLESS if found["tune"] else _HARMLESS | {"search"}
    for row in now["rows"]:
        old = rows.pop(row["name"], row)
        changed = [name for name in row if name not in harmless and old.get(name) != row[name]]
        if changed:
            was, is_now = _differing(old.get(changed[0]), row[changed[0]])
            raise DataError(f"{path}: row {row['name']!r}: {changed[0]} was {was}, now it is {is_now}; {mend}")
    if rows:
        raise DataError(f"{path}: row {next(iter(rows))!r} is no longer in the plan; {mend}")
    return dict(before)


def _differing(old: Any, new: Any) -> tuple[Any, Any]:
    """Of two tables, what one has and the other has not; anything else as it is."""
    if not isinstance(old, dict) or not isinstance(new, dict):
        return old, new
    names = [name for name in {**old, **new} if old.get(name) != new.get(name)]
    return {name: old[name] for name in names if name in old}, {name: new[name] for name in names if name in new}


_HARMLESS = {"tables", "baseline", "against"}  # how the report shows a row, not what was trained
