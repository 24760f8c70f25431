"""Runs scoring jobs in processes that are killed: at a moment, or at a step that changes names on the disk.

A server process imports once and forks for each job, so that fifty kills take seconds.
"""

from __future__ import annotations

import builtins
import io
import itertools
import multiprocessing
import os
import pathlib
import signal
import sys
import threading
import time
from collections.abc import Callable
from multiprocessing import forkserver
from multiprocessing.context import ForkServerContext
from pathlib import Path
from typing import Any
from unittest import mock

PART_ROWS, CHUNK_ROWS = 500, 128


def server() -> ForkServerContext:
    """The server, which has imported and loaded what jobs need."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["crashes_preload", "crashes"])
    with mock.patch.dict(os.environ, PYTHONPATH=os.pathsep.join(path for path in sys.path if path)):
        forkserver.ensure_running()  # it looks for modules by the environment, not by our sys.path
    return context


def in_small_parts(writers: int | None) -> None:
    """Make parts and chunks small, and have so many threads write; None for what the job chooses."""
    from ipsrec_onnx import memory_plan, score_run, user_parts

    user_parts.PART_ROWS = PART_ROWS
    score_run.CHUNK_ROWS = CHUNK_ROWS
    if writers is not None:
        memory_plan.num_writers = lambda threads: writers


def score_in_parts(arguments: dict[str, Any], writers: int | None = None) -> None:
    """Score with small parts."""
    from ipsrec_onnx import scoring

    in_small_parts(writers)
    scoring.score(**arguments)


def killed_at_step(arguments: dict[str, Any], step: int, kind: str, writers: int | None = None) -> None:
    """Score, and die before or after the step-th change of names (renames, and the removal of an old manifest)."""
    steps = itertools.count()
    inside = threading.local()  # one change calls another: Path.rename calls os.rename

    def dying(change: Callable[..., Any]) -> Callable[..., Any]:
        def changed(*positional: Any, **named: Any) -> Any:
            if getattr(inside, "change", False):
                return change(*positional, **named)
            here, inside.change = next(steps) == step, True
            if here and kind == "before":
                os.kill(os.getpid(), signal.SIGKILL)
            try:
                return change(*positional, **named)
            finally:
                inside.change = False
                if here:
                    os.kill(os.getpid(), signal.SIGKILL)

        return changed

    for name in ("replace", "rename", "unlink", "rmdir"):
        setattr(pathlib.Path, name, dying(getattr(pathlib.Path, name)))
        setattr(os, name, dying(getattr(os, name)))  # what shutil.rmtree calls
    score_in_parts(arguments, writers)


def command(
    arguments: list[str],
    stderr: Path,
    paused: Path | None = None,
    fails: str | None = None,
    writers: int | None = None,
) -> None:
    """Run the command line with small parts.

    Args:
        arguments: of the command line.
        stderr: a file for what it says.
        paused: a file that is made when the workers are at their sixth chunk; they go on when it is gone.
        fails: name of an exception that the worker of the sixth chunk meets.
        writers: threads that write; None for what the job chooses.
    """
    import pyarrow as pa

    from ipsrec_cli.main import main
    from ipsrec_onnx import score_run

    in_small_parts(writers)
    sys.stdout, sys.stderr = io.StringIO(), stderr.open("w", buffering=1)
    score_chunk, chunks = score_run.score_chunk, itertools.count(1)

    def disturbed(*positional: Any) -> Any:
        number = next(chunks)
        if number == 6 and paused is not None:
            paused.touch()
        while number >= 6 and paused is not None and paused.exists():
            time.sleep(0.01)
        if number == 6 and fails is not None:
            errors = {"ArrowMemoryError": pa.ArrowMemoryError("malloc of size 99 failed")}
            raise errors.get(fails) or getattr(builtins, fails)("of the test,\nin two lines")
        return score_chunk(*positional)

    score_run.score_chunk = disturbed
    main(arguments)


def run(
    context: ForkServerContext, target: Callable[..., None], *arguments: Any, kill_after_s: float | None = None
) -> int:
    """Run a job in a process of its own, perhaps kill it; gives the exit code, negative for a signal."""
    process = context.Process(target=target, args=arguments)
    process.start()
    if kill_after_s is not None:
        time.sleep(kill_after_s)
        process.kill()
    process.join(120)
    assert process.exitcode is not None, "the job hangs"
    return process.exitcode


def everything(folder: Path) -> dict[str, bytes]:
    """All files below a folder, hidden ones, too, and empty folders."""
    paths = [path for path in sorted(folder.rglob("*")) if path.is_file() or not any(path.iterdir())]
    return {str(path.relative_to(folder)): path.read_bytes() if path.is_file() else b"" for path in paths}
