"""Progress on stderr: a bar in a terminal, plain lines in a log."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Callable, Iterator
from datetime import timedelta

Advance = Callable[[int], None]

_LINE_EVERY_S = 10.0


@contextlib.contextmanager
def show_progress(total: int, *, what: str, show: bool) -> Iterator[Advance]:
    """Report how far a job is.

    Args:
        total: how many there are to do.
        what: what they are, in the plural ("users").
        show: False stays silent.

    Yields:
        A function to call with how many more are done.
    """
    if not show:
        yield lambda done: None
    elif sys.stderr.isatty():
        with _bar(total, what) as advance:
            yield advance
    else:
        yield _Lines(total, what).advance


def show_note(note: str, *, show: bool) -> None:
    """Write one line about the job; False stays silent."""
    if show:
        sys.stderr.write(f"{note}\n")


@contextlib.contextmanager
def _bar(total: int, what: str) -> Iterator[Advance]:
    from rich.console import Console
    from rich.progress import BarColumn, Progress, ProgressColumn, Task, TextColumn, TimeRemainingColumn
    from rich.text import Text

    class Speed(ProgressColumn):
        """Done per second since the start: steady, unlike the speed of the last moment."""

        def render(self, task: Task) -> Text:
            return Text(f"{task.completed / max(task.elapsed or 0.0, 1e-9):,.0f} {what}/s")

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.completed:,.0f} of {task.total:,.0f}"),
        Speed(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True)) as progress:
        task = progress.add_task(what, total=total)
        yield lambda done: progress.advance(task, done)


class _Lines:
    """One line every few seconds, for a log file."""

    def __init__(self, total: int, what: str) -> None:
        self.total = total
        self.what = what
        self.done = 0
        self.started = self.last_line = time.monotonic()

    def advance(self, done: int) -> None:
        self.done += done
        now = time.monotonic()
        if now - self.last_line < _LINE_EVERY_S and self.done < self.total:
            return
        self.last_line = now
        per_s = self.done / max(now - self.started, 1e-9)
        left = timedelta(seconds=round((self.total - self.done) / max(per_s, 1e-9)))
        sys.stderr.write(f"{self.done:,} of {self.total:,} {self.what}, {per_s:,.0f} {self.what}/s, {left} left\n")
