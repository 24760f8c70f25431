"""Progress on stderr: a bar in a terminal, plain lines in a log, or JSON lines for machines."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import Any

from ipsrec_onnx.json_lines import write_json_line
from ipsrec_onnx.stage_times import StageTimes

Advance = Callable[[int], None]

_LINE_EVERY_S = 10.0


class JobLog:
    """Where a job says what it does: in words, in JSON lines, or nowhere.

    Args:
        show: False is silent.
        as_json: JSON lines rather than words.
    """

    def __init__(self, *, show: bool, as_json: bool = False) -> None:
        self._show, self._as_json = show, as_json

    def event(self, event: str, **fields: Any) -> None:
        """Write an event with its fields, as JSON alone: in words, the summary at the end says the same."""
        if self._show and self._as_json:
            write_json_line(event, **fields)

    def note(self, note: str) -> None:
        """Write one line about the job."""
        if self._show and self._as_json:
            write_json_line("note", message=note)
        elif self._show:
            sys.stderr.write(f"{note}\n")

    @contextlib.contextmanager
    def progress(
        self, total: int, *, what: str, already: int = 0, times: StageTimes | None = None
    ) -> Iterator[Advance]:
        """Report how far a job is.

        Args:
            total: how many there are to do.
            what: what they are, in the plural ("users").
            already: how many were done before; speed and time left do not count them.
            times: where the time went so far, if that is to be said.

        Yields:
            A function to call with how many more are done.
        """
        if not self._show:
            yield lambda done: None
        elif sys.stderr.isatty() and not self._as_json:
            with _bar(_Pace(total, what, already, times)) as advance:
                yield advance
        else:
            pace = _Pace(total, what, already, times)
            yield _Lines(pace, _write_json if self._as_json else _write_words).advance


class _Pace:
    """How far something is, and how fast."""

    def __init__(self, total: int, what: str, already: int, times: StageTimes | None) -> None:
        self.total, self.what, self.already, self.done, self.times = total, what, already, already, times
        self.started = time.monotonic()

    @property
    def per_s(self) -> float:
        """Done per second since the start, without what was done before: steady, unlike the speed of a moment."""
        return (self.done - self.already) / max(time.monotonic() - self.started, 1e-9)

    @property
    def left_s(self) -> float:
        """Seconds until all is done, at this pace."""
        return (self.total - self.done) / max(self.per_s, 1e-9)

    @property
    def shares(self) -> dict[str, float]:
        """Share of each stage in the processor time so far, the largest first; empty where nobody counts."""
        cpu_s = {} if self.times is None else dict(self.times.cpu_s)
        whole = sum(cpu_s.values())
        return {name: seconds / whole for name, seconds in sorted(cpu_s.items(), key=lambda of: -of[1]) if whole}


@contextlib.contextmanager
def _bar(pace: _Pace) -> Iterator[Advance]:
    from rich.console import Console
    from rich.progress import BarColumn, Progress, ProgressColumn, Task, TextColumn, TimeRemainingColumn
    from rich.text import Text

    class Speed(ProgressColumn):
        """Done per second."""

        def render(self, task: Task) -> Text:
            return Text(f"{pace.per_s:,.0f} {pace.what}/s")

    class Stages(ProgressColumn):
        """Where the time goes, the stages that matter."""

        def render(self, task: Task) -> Text:
            return Text(" ".join(f"{name} {share:.0%}" for name, share in pace.shares.items() if share >= 0.05))

    columns = (
        TextColumn("{task.description}"),
        BarColumn(bar_width=None),
        TextColumn("{task.completed:,.0f} of {task.total:,.0f}"),
        Speed(),
        TimeRemainingColumn(),
        Stages(),
    )
    with Progress(*columns, console=Console(stderr=True), expand=True) as progress:
        task = progress.add_task(pace.what, total=pace.total, completed=pace.done)

        def advance(done: int) -> None:
            pace.done += done
            progress.advance(task, done)

        yield advance


class _Lines:
    """One line every few seconds, for a log file, and one at the end."""

    def __init__(self, pace: _Pace, write: Callable[[_Pace], None]) -> None:
        self.pace, self.write = pace, write
        self.last_line = pace.started

    def advance(self, done: int) -> None:
        self.pace.done += done
        now = time.monotonic()
        if now - self.last_line < _LINE_EVERY_S and self.pace.done < self.pace.total:
            return
        self.last_line = now
        self.write(self.pace)


def _write_words(pace: _Pace) -> None:
    left = timedelta(seconds=round(pace.left_s)) if pace.left_s < 1e9 else "unknown time"
    most = "".join(f", most time in {name} ({share:.0%})" for name, share in list(pace.shares.items())[:1])
    sys.stderr.write(
        f"{pace.done:,} of {pace.total:,} {pace.what}, {pace.per_s:,.0f} {pace.what}/s, {left} left{most}\n"
    )


def _write_json(pace: _Pace) -> None:
    write_json_line(
        "progress",
        done=pace.done,
        total=pace.total,
        what=pace.what,
        per_s=round(pace.per_s, 1),
        left_s=round(pace.left_s, 1) if pace.left_s < 1e9 else None,
        stage_shares={name: round(share, 3) for name, share in pace.shares.items()},
    )
