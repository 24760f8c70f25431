"""What a person sees while a model trains: a bar on a terminal, a line an epoch in a log; on stderr."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn


class TrainingBar:
    """Bar over the batches of an epoch, with the running loss and the best metric so far."""

    def __init__(self, *, quiet: bool) -> None:
        self._console = Console(stderr=True, quiet=quiet, markup=False)
        self._live = self._console.is_terminal and not quiet
        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[note]}"),
            TimeRemainingColumn(),
            console=self._console,
            transient=True,
        )

    @contextlib.contextmanager
    def epoch(self, number: int, batches: int, note: str) -> Iterator[TrainingBar]:
        """Show one epoch."""
        if not self._live:
            yield self
            return
        self._task = self._bar.add_task(f"epoch {number}", total=batches, note=note)
        with self._bar:
            yield self
        self._bar.remove_task(self._task)

    def batches_done(self, count: int, loss: float, note: str) -> None:
        """Move on by some batches."""
        if self._live:
            self._bar.update(self._task, advance=count, note=f"loss {loss:.4f}  {note}")

    def say(self, line: str) -> None:
        """Print one line above the bar."""
        self._console.print(line, highlight=False, soft_wrap=True)
