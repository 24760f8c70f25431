"""What can this machine do at most: multiply matrices, copy memory, and run two threads at once?

    python benchmarks/limits.py

Benchmarks ask for these beside every sample, because on shared machines the second core comes and goes. BLAS runs in
processes of its own, one for each number of threads: its workers spin for tens of milliseconds after a product and
would take a core from what is timed next. PAUSE_S lets them come to rest.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import numpy.typing as npt

from ipsrec_onnx.machine import cpu_model

SGEMM_ROWS = 1536  # of square float32 matrices: 38 MB for the three, 7 GFLOP
COPY_BYTES = 1 << 28  # far above every cache
PAUSE_S = 0.15
TWO_CORES = 1.8  # two threads that are this many times as fast as one have a core each


class Limits:
    """Processes that measure the machine on request; a context manager.

    Args:
        threads: what sgemm's peak is measured with, beside one thread.
    """

    def __init__(self, threads: int = 2) -> None:
        self.threads = threads
        self._servers = {count: _start_server(count) for count in {1, threads}}

    def __enter__(self) -> Limits:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        for server in self._servers.values():
            server.communicate()  # closes its stdin, which ends it

    def sgemm_gflop_per_s(self, threads: int | None = None) -> float:
        """Peak of a float32 matrix product, GFLOP/s: the better of two; all the threads unless one is asked for."""
        return self._ask("sgemm", threads or self.threads)

    def copy_gb_per_s(self) -> float:
        """Bytes read and written a second by one thread that copies memory, GB/s: the better of two."""
        return self._ask("copy", 1)

    def two_thread_ratio(self) -> float:
        """How many times as fast as one thread all of them are right now; 1.0 says that they share one core."""
        return self.sgemm_gflop_per_s() / self.sgemm_gflop_per_s(1)

    def _ask(self, what: str, threads: int) -> float:
        server = self._servers[threads]
        assert server.stdin is not None and server.stdout is not None
        server.stdin.write(what + "\n")
        server.stdin.flush()
        answer = server.stdout.readline()
        if not answer:
            sys.exit(f"limits: the process that measures {what} with {threads} threads ended; run this file alone")
        time.sleep(PAUSE_S)
        return float(answer)


def _start_server(threads: int) -> subprocess.Popen[str]:
    names = ("OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "OMP_NUM_THREADS", "VECLIB_MAXIMUM_THREADS")
    # Some machines name an older kernel for old builds' sake: the peak is that of the CPU's own.
    environment = {name: value for name, value in os.environ.items() if name != "OPENBLAS_CORETYPE"}
    environment |= dict.fromkeys(names, str(threads))
    command = [sys.executable, str(Path(__file__)), "--serve"]
    return subprocess.Popen(command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def _serve() -> None:
    """Answer each line of stdin, `sgemm` or `copy`, with one number."""
    rng = np.random.default_rng(0)
    factor = rng.standard_normal((SGEMM_ROWS, SGEMM_ROWS), dtype=np.float32)
    product = np.empty_like(factor)
    source: npt.NDArray[np.uint8] | None = None
    target: npt.NDArray[np.uint8] | None = None
    for line in sys.stdin:
        if line.strip() == "copy":
            if source is None or target is None:
                source, target = np.ones(COPY_BYTES, np.uint8), np.zeros(COPY_BYTES, np.uint8)
            print(2 * COPY_BYTES / _best_s(np.copyto, target, source) / 1e9, flush=True)
        else:
            print(2 * SGEMM_ROWS**3 / _best_s(np.matmul, factor, factor, product) / 1e9, flush=True)


def _best_s(work: Callable[..., object], *arguments: npt.NDArray[Any]) -> float:
    """Seconds of the better of two calls."""
    times = []
    for _ in range(2):
        started = time.perf_counter()
        work(*arguments)
        times.append(time.perf_counter() - started)
    return min(times)


def main() -> None:
    """Measure five times, print a table and one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.serve:
        _serve()
        return
    samples: dict[str, list[float]] = {"sgemm_1_gflop_per_s": [], "sgemm_gflop_per_s": [], "copy_gb_per_s": []}
    with Limits(arguments.threads) as limits:
        for _ in range(5):
            samples["sgemm_1_gflop_per_s"].append(limits.sgemm_gflop_per_s(1))
            samples["sgemm_gflop_per_s"].append(limits.sgemm_gflop_per_s())
            samples["copy_gb_per_s"].append(limits.copy_gb_per_s())
    print(f"{cpu_model()}, {os.cpu_count()} CPUs, {arguments.threads} threads, NumPy {np.__version__}")
    for name, values in samples.items():
        print(f"{name:>22} {statistics.median(values):8.1f} [{min(values):.1f}..{max(values):.1f}]")
    print(json.dumps({name: statistics.median(values) for name, values in samples.items()}))


if __name__ == "__main__":
    main()
