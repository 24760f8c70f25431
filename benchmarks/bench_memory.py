"""Does the memory of `ipsrec score` grow with the users file?

    python benchmarks/bench_memory.py --model ipsrec_c.onnx --users dataset/histories.parquet

Repeats the users of a file until there are --base-users of them, and ten times as many, scores both files in a process
of its own each, and compares the peaks of resident memory. The ceiling is 1.2: ten times the users, the same memory.
"""

from __future__ import annotations

import argparse
import json
import platform
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
from jobs import SCORE
from limits import cpu_model

ROW_GROUP = 65_536  # rows


def main() -> None:
    """Measure both sizes, print a table and one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--users", type=Path, required=True, help="Users file whose rows are repeated.")
    parser.add_argument("--base-users", type=int, default=40_000)
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    print(f"{cpu_model()}, Python {platform.python_version()}, {arguments.threads} threads, top-100")
    print(f"{'users':>12} {'file MB':>9} {'peak MB':>9} {'wall s':>8} {'users/s':>9}")
    peaks = []
    with tempfile.TemporaryDirectory() as folder:
        for users in (arguments.base_users, 10 * arguments.base_users):
            source = Path(folder) / "users.parquet"
            repeat_users(arguments.users, source, users=users)
            peak_mb, wall_s = score(arguments.model, source, Path(folder) / "candidates.parquet", arguments.threads)
            size = source.stat().st_size / 1e6
            print(f"{users:>12,} {size:>9.1f} {peak_mb:>9.1f} {wall_s:>8.1f} {users / wall_s:>9,.0f}", flush=True)
            peaks.append(peak_mb)
    ratio = peaks[1] / peaks[0]
    print(f"ten times the users, {ratio:.3f} times the memory (at most 1.2)")
    print(json.dumps({"peak_mb": peaks, "memory_ratio": ratio}))


def repeat_users(source: Path, target: Path, *, users: int) -> None:
    """Write `users` rows, the rows of a file again and again, in row groups of ROW_GROUP; one of them is held."""
    table = pq.read_table(source)
    with pq.ParquetWriter(target, table.schema, compression="zstd") as writer:
        for start in range(0, users, ROW_GROUP):
            rows = np.arange(start, min(start + ROW_GROUP, users)) % len(table)
            writer.write_table(table.take(rows), row_group_size=ROW_GROUP)


def score(model: Path, source: Path, output: Path, threads: int) -> tuple[float, float]:
    """Score a file in a process of its own: peak resident memory in MB, seconds. Its stderr is ours."""
    command = [sys.executable, "-c", SCORE, "score", "--model", str(model), "--input", str(source)]
    command += ["--output", str(output), "--threads", str(threads), "--overwrite", "--quiet"]
    started = time.perf_counter()
    done = subprocess.run(command, check=False, stdout=subprocess.PIPE, text=True)
    wall_s = time.perf_counter() - started
    if done.returncode:
        sys.exit(f"bench_memory: scoring {source} ended with exit code {done.returncode}; see its error above")
    return int(done.stdout.split()[-1]) * 1024 / 1e6, wall_s


if __name__ == "__main__":
    main()
