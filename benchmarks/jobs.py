"""Runs `ipsrec score` for benchmarks: as a function in this process, and as a process of its own."""

from __future__ import annotations

import resource
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from ipsrec_onnx.score_report import ScoreReport
from ipsrec_onnx.scoring import score

TOP_K = 100

# Runs the command line; its last line is the peak of resident memory of itself alone, in KiB, as Linux has it for the
# process: getrusage's figure begins with what the parent had when it started this one.
SCORE = """
import sys
from ipsrec_cli.main import main
try:
    main(sys.argv[1:])
finally:
    with open("/proc/self/status") as status:
        print(next(line.split()[1] for line in status if line.startswith("VmHWM")))
"""


class Jobs:
    """Runs our jobs and keeps what they report.

    Args:
        output: where candidates go.
        options: of every job.
    """

    def __init__(self, output: Path, options: dict[str, Any]) -> None:
        self.output, self.options = output, options
        self.forget()

    def forget(self) -> None:
        """Start counting again."""
        self.reports: dict[str, list[tuple[ScoreReport, float]]] = {}
        self.peak_mb: list[float] = []

    def in_process(self, name: str, model: Path, source: Path) -> Path:
        """Score with the library, in this process; keep its report and the CPU seconds of the whole process."""
        before = _cpu_s()
        report = score(model, source, self.output, **self.options)
        self.reports.setdefault(name, []).append((report, _cpu_s() - before))
        return self.output

    def process(self, model: Path, source: Path) -> None:
        """Score with the command line in a process of its own; keep its peak memory."""
        command = [sys.executable, "-c", SCORE, "score", "--model", str(model), "--input", str(source)]
        command += ["--output", str(self.output), "--top-k", str(TOP_K), "--threads", str(self.options["threads"])]
        command += ["--encoder", self.options["encoder"], "--overwrite", "--quiet"]
        done = subprocess.run(command, check=False, stdout=subprocess.PIPE, text=True)
        if done.returncode:
            sys.exit(f"jobs: `ipsrec score` ended with exit code {done.returncode}; see its error above")
        self.peak_mb.append(int(done.stdout.split()[-1]) * 1024 / 1e6)


def _cpu_s() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def first_users(source: Path, target: Path, count: int) -> Path:
    """Write the first users of a file into another."""
    pq.write_table(pq.read_table(source).slice(0, count), target)
    return target
