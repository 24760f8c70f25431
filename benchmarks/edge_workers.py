"""Starts the processes that run edge graphs, and lets them work in turn: one speaks at a time, the others wait."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

HERE = Path(__file__).parent
NODE_MODULES = HERE.parent / "examples" / "node_modules"
TURN = 20  # users that a worker takes before the next one has its turn


class Worker:
    """A process that recommends; a context manager.

    Args:
        command: as edge_worker.py has it, or another that speaks its language.

    Attributes:
        opened: load_ms, pss_mb and anonymous_mb.
    """

    def __init__(self, command: Sequence[str | Path]) -> None:
        self._process = subprocess.Popen(
            list(map(str, command)), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        self.opened: dict[str, float] = self._answer()

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._process.communicate()  # closes its stdin, which ends it

    def lists(self, first: int, count: int) -> tuple[list[list[str]], list[list[float]]]:
        """Item ids and scores of some users."""
        answer = self._ask("lists", first, count)
        return answer["item_ids"], answer["scores"]

    def times(self, first: int, count: int) -> dict[str, list[float]]:
        """Milliseconds of each of some users, "ms" by the clock and, but in a browser, "cpu_ms" of the processor."""
        return self._ask("times", first, count)

    def _ask(self, *words: object) -> dict[str, Any]:
        assert self._process.stdin is not None
        print(*words, file=self._process.stdin, flush=True)
        return self._answer()

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        assert line, f"{self._process.args} ended with {self._process.wait()}"
        answer: dict[str, Any] = json.loads(line)
        return answer


def python_command(runtime: str, model: Path, users: Path) -> list[str | Path]:
    """Onnxruntime or torch."""
    return [sys.executable, HERE / "edge_worker.py", runtime, model, users]


def node_command(model: Path, users: Path, *, modules: Path = NODE_MODULES) -> list[str | Path] | None:
    """onnxruntime-node; None where there is no Node or no package."""
    node = shutil.which("node")
    if node is None or not (modules / "onnxruntime-node").is_dir():
        return None
    return [node, "--expose-gc", HERE / "edge_worker.mjs", "node", model, users, modules]


def browser_command(model: Path, users: Path, *, modules: Path = NODE_MODULES) -> list[str | Path] | None:
    """onnxruntime-web in a headless chromium; None where one of them or playwright is missing."""
    try:
        from edge_browser import chromium
    except ImportError:
        return None
    if chromium() is None or not (modules / "onnxruntime-web").is_dir():
        return None
    return [sys.executable, HERE / "edge_browser.py", model, users, modules]


def times_in_turn(workers: Mapping[str, Worker], *, first: int, count: int) -> dict[str, dict[str, list[float]]]:
    """Times of the same users, TURN of them with each worker before the next has its turn."""
    found: dict[str, dict[str, list[float]]] = {name: {} for name in workers}
    for start in range(first, first + count, TURN):
        for name, worker in workers.items():
            for clock, times in worker.times(start, min(TURN, first + count - start)).items():
                found[name].setdefault(clock, []).extend(times)
    return found


def quantiles(times: Mapping[str, list[float]]) -> dict[str, float]:
    """p50_ms, p95_ms and p99_ms; and cpu_p50_ms, ... where it is known."""
    return {
        f"{clock.removesuffix('ms')}p{share}_ms": float(np.percentile(of_clock, share))
        for clock, of_clock in times.items()
        for share in (50, 95, 99)
    }
