"""Does the formula of docs/sizing.md give the memory and the time of a job, at three sizes of catalogs?

    python benchmarks/bench_sizing.py --folder .bench

Jobs of trained-like catalogs (synthetic.py), each in a process of its own, in turn, the catalog whole and in shards,
one worker. Memory is what nobody can take from a process (RssAnon), looked at all the time; predicted are it and the
CPU time of a user, the latter for the machine that docs/sizing.md names. On another one, the last line of each table
counts: CPU time at the largest size, from that of the two smaller ones. Ratios are measured / predicted, medians with
their range over the rounds. Making the model of three million items takes 8 GB of memory, once.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numba
import onnxruntime
from limits import cpu_model
from rounds import print_json
from synthetic import DIM, SIZES, Size, users_file
from synthetic_model import model_file

ITEMS = (100_000, 1_000_000, 3_000_000)
SHARDS = 4
TOP_K = 100

# The formulas of docs/sizing.md: bytes, and microseconds of a core.
BASE = 150e6  # the interpreter, onnxruntime, compiled kernels; without the libraries' own pages, which are files
WORKER = 65e6  # chunks of lists of 100, in work and on their way
CATALOG_PER_ITEM = 170  # ids of 8 bytes and their hash table, providers, popularity
WHOLE_PER_ITEM = 9 * DIM + 35  # float32 twice (ONNX Runtime's and ours) and int8 once; orders and providers
REST_US = 80  # read, ids, encoder, writing: nothing of it depends on the items
SEARCH_US, PER_MILLION_US, PER_SHARD_US = 120, 160, 30  # of each shard but the first

# Runs a job; its last line has the account and the largest RssAnon, looked at every 5 ms.
JOB = """
import json, sys, threading
from ipsrec_onnx.machine_memory import held_memory
from ipsrec_onnx.scoring import score
peak, done = 0, threading.Event()

def look():
    global peak
    while not done.wait(0.005):
        peak = max(peak, held_memory(1 << 60))

looking = threading.Thread(target=look)
looking.start()
try:
    shards = int(sys.argv[4])
    report = score(*sys.argv[1:4], top_k=100, threads=1, encoder="fused", catalog_shards=shards, overwrite=True)
finally:
    done.set()
    looking.join()
print(json.dumps({"cpu_s": report.cpu_s, "users": report.counts.rows_in, "wall_s": report.wall_s, "held": peak}))
"""


@dataclass(frozen=True)
class Job:
    """What one job took.

    Attributes:
        held: bytes, the largest.
        retrieve_us: CPU microseconds a user in the search.
        other_us: in all else.
    """

    held: float
    retrieve_us: float
    other_us: float

    @property
    def cpu_us(self) -> float:
        """CPU microseconds a user."""
        return self.retrieve_us + self.other_us


def main() -> None:
    """Run the jobs, print predicted beside measured, and one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--items", type=int, nargs=3, default=ITEMS, help="Sizes of catalogs, ascending.")
    parser.add_argument("--users", type=int, default=20_000)
    parser.add_argument("--shards", type=int, default=SHARDS)
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    print(
        f"{cpu_model()}, Python {platform.python_version()}, Numba {numba.__version__}, ONNX Runtime "
        f"{onnxruntime.__version__}; IPSRec-C, {DIM} dims, top-{TOP_K}, {arguments.users:,} users, one worker"
    )
    files = {items: _files(arguments.folder, items, users=arguments.users) for items in arguments.items}
    jobs: dict[tuple[int, int], list[Job]] = {}
    _run(files[arguments.items[0]], arguments.folder, shards=1)  # kernels get compiled
    for _ in range(arguments.rounds):
        for items in arguments.items:
            for shards in (1, arguments.shards):
                jobs.setdefault((items, shards), []).append(_run(files[items], arguments.folder, shards=shards))
    found = [_compare(jobs, arguments.items, shards=shards) for shards in (1, arguments.shards)]
    print_json({"shards": [1, arguments.shards], "whole": found[0], "cut": found[1]})


def _files(folder: Path, items: int, *, users: int) -> tuple[Path, Path]:
    """Model and users of a catalog of so many items, a hundred to a provider."""
    name = f"items{items}"
    SIZES[name] = Size(users=users, items=items, providers=max(40, items // 100), mean_length=8.6, max_len=20)
    return model_file(folder, name), users_file(folder, name, users=users)


def _run(files: tuple[Path, Path], folder: Path, *, shards: int) -> Job:
    command = [sys.executable, "-c", JOB, *map(str, files), str(folder / "sizing.parquet"), str(shards)]
    done = subprocess.run(command, check=False, stdout=subprocess.PIPE, text=True)
    if done.returncode:
        sys.exit("bench_sizing: a job failed; see its error above")
    found = json.loads(done.stdout.splitlines()[-1])
    retrieve_s = found["cpu_s"]["retrieve"]
    per_user = 1e6 / found["users"]
    return Job(found["held"], retrieve_s * per_user, (sum(found["cpu_s"].values()) - retrieve_s) * per_user)


def predicted_bytes(items: int, *, shards: int) -> float:
    """Memory of a job with one worker, by the formula."""
    return BASE + WORKER + items * (CATALOG_PER_ITEM + (WHOLE_PER_ITEM if shards == 1 else 0))


def formula_us(items: int, *, shards: int) -> float:
    """CPU microseconds a user, by the formula."""
    return REST_US + SEARCH_US + PER_MILLION_US * items / 1e6 + PER_SHARD_US * (shards - 1)


def predicted_us(known: Sequence[tuple[int, Job]], items: int) -> float:
    """CPU microseconds a user, from jobs of two smaller catalogs."""
    (fewer, small), (more, large) = known
    per_item = (large.retrieve_us - small.retrieve_us) / (more - fewer)
    return statistics.mean([small.other_us, large.other_us]) + large.retrieve_us + per_item * (items - more)


def _compare(jobs: dict[tuple[int, int], list[Job]], sizes: Sequence[int], *, shards: int) -> dict[str, Any]:
    """Print predicted and measured of one way of cutting the catalog."""
    print(
        f"\n{'whole' if shards == 1 else f'{shards} shards'}: items; MB predicted, measured, ratio; us a user likewise"
    )
    memory, times = {}, {}
    for items in sizes:
        mine = jobs[items, shards]
        held, cpu_us = predicted_bytes(items, shards=shards), formula_us(items, shards=shards)
        memory[items], times[items] = [job.held / held for job in mine], [job.cpu_us / cpu_us for job in mine]
        print(
            f"{items:>12,} {held / 1e6:>9,.0f} {statistics.median(job.held for job in mine) / 1e6:>9,.0f} "
            f"{_spread(memory[items])} {cpu_us:>9,.0f} {statistics.median(job.cpu_us for job in mine):>9,.0f} "
            f"{_spread(times[items])}, search {statistics.median(job.retrieve_us for job in mine):,.0f}"
        )
    rounds = zip(*(jobs[items, shards] for items in sizes), strict=True)
    ratios, expected_us = [], []
    for small, large, largest in rounds:
        expected_us.append(predicted_us([(sizes[0], small), (sizes[1], large)], sizes[2]))
        ratios.append(largest.cpu_us / expected_us[-1])
    print(
        f"CPU at {sizes[2]:,} from the smaller ones: predicted {_spread(expected_us, digits=0)} us a user, measured / "
        f"predicted {_spread(ratios)}"
    )
    return {
        "memory_ratio": {str(items): statistics.median(ratio) for items, ratio in memory.items()},
        "cpu_ratio": {str(items): statistics.median(ratio) for items, ratio in times.items()},
        "cpu_ratio_from_smaller": statistics.median(ratios),
    }


def _spread(values: Sequence[float], *, digits: int = 2) -> str:
    return f"{statistics.median(values):,.{digits}f} [{min(values):,.{digits}f}..{max(values):,.{digits}f}]"


if __name__ == "__main__":
    main()
