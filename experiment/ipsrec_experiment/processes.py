"""Runs the tasks of a schedule, a few processes at a time, and shows how far they are on stderr."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

from rich.console import Console, Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from ipsrec_experiment.cell import REFUSED
from ipsrec_experiment.schedule import Failure, Schedule, Task
from ipsrec_onnx.errors import DataError

_POLL_S = 0.2
_STOP_S = 20.0  # a process that is asked to stop and does not
_THREAD_LIMITS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMBA_NUM_THREADS")


def run_schedule(schedule: Schedule, *, at_once: int, quiet: bool) -> None:
    """Do all that a schedule hands out; a task that fails does not keep the others.

    Processes are stopped, and what they did is kept, when this is left by an exception.

    Args:
        schedule: what to do.
        at_once: processes at a time.
        quiet: nothing on stderr.
    """
    running: dict[subprocess.Popen[str], Task] = {}
    with _Display(schedule, at_once=at_once, quiet=quiet) as display, _stopping(running):
        while True:
            while len(running) < at_once and (task := schedule.next()) is not None:
                running[_start(task)] = task
                display.began(task)
            if not running:
                return
            time.sleep(_POLL_S)
            display.tick()
            for process in [process for process in running if process.poll() is not None]:
                task = running.pop(process)
                before = len(schedule.failures)
                _take_back(schedule, task, process)
                display.ended(task, schedule.failures[before:])


def _start(task: Task) -> subprocess.Popen[str]:
    """Start a process in a group of its own, so that Ctrl-C reaches it through us alone."""
    task.log.parent.mkdir(parents=True, exist_ok=True)
    environment = {**os.environ, **dict.fromkeys(_THREAD_LIMITS, str(task.job.threads))}
    with task.log.open("a", encoding="utf-8") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "ipsrec_experiment.cell"],
            stdin=subprocess.PIPE,
            stdout=log,
            stderr=log,
            env=environment,
            start_new_session=True,
            text=True,
        )
    if process.stdin is not None:
        with contextlib.suppress(BrokenPipeError):  # it died at once: its exit code says so
            process.stdin.write(task.job.to_json() + "\n")
            process.stdin.flush()  # stays open: its end would stop the process
    return process


def _take_back(schedule: Schedule, task: Task, process: subprocess.Popen[str]) -> None:
    """Tell the schedule how a process has ended."""
    if process.stdin is not None:
        with contextlib.suppress(BrokenPipeError):
            process.stdin.close()
    code = process.returncode
    reason = _last_line(task.log) if code > 0 else f"killed by signal {-code}"
    try:
        if code == 0:
            schedule.done(task)
        elif reason.startswith(REFUSED):
            schedule.refused(task, reason.removeprefix(REFUSED))
        else:
            schedule.failed(task, reason)
    except DataError as error:
        schedule.failed(task, str(error))


def _last_line(log: Path) -> str:
    lines = log.read_text(encoding="utf-8", errors="replace").split("\n")
    return next((line.strip() for line in reversed(lines) if line.strip()), "it said nothing")


@contextlib.contextmanager
def _stopping(running: dict[subprocess.Popen[str], Task]) -> Iterator[None]:
    """Stop what runs when the block is left; they end within the batch at hand."""
    try:
        yield
    finally:
        for process in running:
            process.terminate()
        until = time.monotonic() + _STOP_S
        for process in running:
            try:
                process.wait(max(0.1, until - time.monotonic()))
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


class _Display:
    """A table of what runs on a terminal; in a log, a line for each task that ends."""

    def __init__(self, schedule: Schedule, *, at_once: int, quiet: bool) -> None:
        self._schedule, self._at_once = schedule, at_once
        self._console = Console(stderr=True, quiet=quiet)
        self._live = Live(console=self._console, auto_refresh=False, transient=True)
        self._is_live = self._console.is_terminal and not quiet
        self._began: dict[str, float] = {}
        self._running: list[Task] = []
        self._seconds: dict[str, list[float]] = {}
        self._done = 0
        self._refreshed = 0.0

    def __enter__(self) -> _Display:
        if self._is_live:
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._is_live:
            self._live.stop()

    def began(self, task: Task) -> None:
        """A process was started."""
        self._began[task.title] = time.monotonic()
        self._running.append(task)

    def ended(self, task: Task, failures: list[Failure]) -> None:
        """A process has ended, with or without failures."""
        seconds = time.monotonic() - self._began.pop(task.title)
        self._running.remove(task)
        for failure in failures:
            self._say(f"failed: {failure.title}: {failure.reason} (log: {failure.log})")
        if not failures:
            self._done += 1
            self._seconds.setdefault(task.row.name, []).append(seconds)
            self._say(f"done: {task.title}, {_clock(seconds)}; {self._outlook()}")

    def _say(self, line: str) -> None:
        self._console.print(line, highlight=False, soft_wrap=True, markup=False)

    def tick(self) -> None:
        """Show what runs, about once a second."""
        if self._is_live and time.monotonic() - self._refreshed > 1:
            self._refreshed = time.monotonic()
            self._live.update(self._table(), refresh=True)

    def _table(self) -> Group:
        left = sum(self._schedule.left().values())
        table = Table.grid(padding=(0, 2))
        for task in self._running:
            table.add_row(task.title, _clock(time.monotonic() - self._began[task.title]), _last_epoch(task.log))
        bar = ProgressBar(total=max(1, self._done + left), completed=self._done, width=40)
        return Group(table, bar, Text(self._outlook()))

    def _outlook(self) -> str:
        """Done, running and left, and when it may all be done: a row's own mean time, else that of all rows."""
        left = self._schedule.left()
        waiting = sum(left.values()) - len(self._running)
        said = f"{self._done} done, {len(self._running)} running, {max(0, waiting)} waiting"
        known = [second for seconds in self._seconds.values() for second in seconds]
        if not known or not sum(left.values()):
            return said
        mean = sum(known) / len(known)
        total = 0.0
        for name, count in left.items():
            own = self._seconds.get(name)
            total += count * (sum(own) / len(own) if own else mean)
        total -= sum(min(mean, time.monotonic() - began) for began in self._began.values())
        return f"{said}, about {_clock(max(0.0, total) / self._at_once)} left"


def _last_epoch(log: Path) -> str:
    with contextlib.suppress(OSError):
        lines = [line for line in log.read_text(encoding="utf-8", errors="replace").splitlines() if "epoch" in line]
        return lines[-1] if lines else ""
    return ""


def _clock(seconds: float) -> str:
    return str(timedelta(seconds=round(seconds)))
