"""Does the memory of `ipsrec score` grow with the users file, and does it stay within --max-memory?

    python benchmarks/bench_memory.py --model ipsrec_c.onnx --users 200000 20000000 --max-memory 600MB --top-k 10

Writes a file of so many users with short histories of the model's items, a row group at a time, scores it in a process
of its own, and compares the peaks of resident memory with the bound and with each other. The ceiling is 1.2: however
many users, the same memory.
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
import pyarrow as pa
import pyarrow.parquet as pq
from jobs import SCORE
from limits import cpu_model

from ipsrec_cli.options import Size
from ipsrec_onnx.model_file import open_model_file

ROW_GROUP = 65_536  # rows


def main() -> None:
    """Measure each size, print a table and one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--users", type=int, nargs="+", default=[40_000, 400_000], help="Users of each file.")
    parser.add_argument("--mean-history", type=int, default=5, help="Items of a history on average.")
    parser.add_argument("--top-k", type=int, default=100)
    parser.add_argument("--encoder", choices=["onnxruntime", "fused"], default="onnxruntime")
    parser.add_argument("--max-memory", help="Bound given to the command; none by default.")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--folder", type=Path, help="Where files go meanwhile; the system's own folder by default.")
    arguments = parser.parse_args()
    options = ["--top-k", str(arguments.top_k), "--encoder", arguments.encoder, "--threads", str(arguments.threads)]
    bound_mb = None
    if arguments.max_memory is not None:
        bound_mb = Size().convert(arguments.max_memory, None, None) / 1e6
        options += ["--max-memory", arguments.max_memory]
    print(f"{cpu_model()}, Python {platform.python_version()}, {' '.join(options)}")
    print(f"{'users':>12} {'file MB':>9} {'peak MB':>9} {'wall s':>8} {'users/s':>9}")
    peaks = []
    with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
        for users in arguments.users:
            source = Path(folder) / "users.parquet"
            write_users(source, arguments.model, users=users, mean_history=arguments.mean_history)
            peak_mb, wall_s = score(arguments.model, source, Path(folder) / "candidates.parquet", options)
            size = source.stat().st_size / 1e6
            print(f"{users:>12,} {size:>9.1f} {peak_mb:>9.1f} {wall_s:>8.1f} {users / wall_s:>9,.0f}", flush=True)
            peaks.append(peak_mb)
    ratio = peaks[-1] / peaks[0]
    print(f"{arguments.users[-1] / arguments.users[0]:g} times the users, {ratio:.3f} times the memory (at most 1.2)")
    if bound_mb is not None:
        print(f"at most {max(peaks):.1f} MB of {bound_mb:.1f} MB: {'within' if max(peaks) <= bound_mb else 'BEYOND'}")
    print(json.dumps({"peak_mb": peaks, "memory_ratio": ratio, "bound_mb": bound_mb}))


def write_users(target: Path, model: Path, *, users: int, mean_history: int, seed: int = 0) -> None:
    """Write users whose histories hold 1 to 2 * mean_history - 1 of the model's items, in row groups of ROW_GROUP."""
    rng = np.random.default_rng(seed)
    item_ids = open_model_file(model).catalog.item_ids
    schema = pa.schema([("user_id", pa.int64()), ("item_history", pa.list_(item_ids.type))])
    with pq.ParquetWriter(target, schema, compression="zstd") as writer:
        for start in range(0, users, ROW_GROUP):
            user_id = np.arange(start, min(start + ROW_GROUP, users))
            lengths = rng.integers(1, 2 * mean_history, len(user_id))
            offsets = pa.array(np.concatenate([[0], np.cumsum(lengths)]), pa.int32())
            items = item_ids.take(pa.array(rng.integers(0, len(item_ids), int(lengths.sum()))))
            rows = [pa.array(user_id), pa.ListArray.from_arrays(offsets, items)]
            writer.write_table(pa.Table.from_arrays(rows, schema=schema), row_group_size=ROW_GROUP)


def score(model: Path, source: Path, output: Path, options: list[str]) -> tuple[float, float]:
    """Score a file in a process of its own: peak resident memory in MB, seconds. Its stderr is ours."""
    command = [sys.executable, "-c", SCORE, "score", "--model", str(model), "--input", str(source)]
    command += ["--output", str(output), "--overwrite", "--quiet", *options]
    started = time.perf_counter()
    done = subprocess.run(command, check=False, stdout=subprocess.PIPE, text=True)
    wall_s = time.perf_counter() - started
    if done.returncode:
        sys.exit(f"bench_memory: scoring {source} ended with exit code {done.returncode}; see its error above")
    return int(done.stdout.split()[-1]) * 1024 / 1e6, wall_s


if __name__ == "__main__":
    main()
