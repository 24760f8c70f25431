"""How long does `ipsrec prepare` take on Tmall at its full size, and how much memory?

    python benchmarks/bench_prepare.py --folder /tmp/bench_prepare

Writes a synthetic `ijcai2016_taobao.csv` into a sub-folder of --folder: as many rows, users and items as the real file
(scaled together by --rows), skewed popularity, rows in random order. Prepares it with `--format tmall`, with the bounds
of 5 and 100 interactions of the paper's released code, in a process of its own for each of: all actions, purchases, and
all actions with repeats merged. What it wrote is deleted at the end.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl

from ipsrec_onnx.machine import cpu_model

# Of the real file; purchases are those of RUCAIBox/RecSysDatasets:dataset_info/Tmall/README.md, sellers of the paper.
ROWS, USERS, ITEMS, BUYS, SELLERS = 44_528_127, 963_923, 2_353_207, 9_348_756, 9_997
CHUNK_ROWS = 1 << 21

# Runs the command line and says its peak memory in KiB and its processor seconds, of itself alone.
PREPARE = """
import resource, sys
from ipsrec_cli.main import main
try:
    main(sys.argv[1:])
finally:
    used = resource.getrusage(resource.RUSAGE_SELF)
    print("used", used.ru_maxrss, used.ru_utime + used.ru_stime)
"""


def main() -> None:
    """Write the file, prepare it three times, print a table and one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", type=Path, required=True, help="Where there is room: 3 GB at full size.")
    parser.add_argument("--rows", type=int, default=ROWS)
    arguments = parser.parse_args()
    arguments.folder.mkdir(parents=True, exist_ok=True)
    print(
        f"{cpu_model()}, {len(os.sched_getaffinity(0))} cores, Python {platform.python_version()}, "
        f"polars {pl.__version__}"
    )
    with tempfile.TemporaryDirectory(dir=arguments.folder) as name:
        source = Path(name) / "ijcai2016_taobao.csv"
        started = time.perf_counter()
        write_source(source, rows=arguments.rows)
        written_s = time.perf_counter() - started
        size_mb = source.stat().st_size / 1e6
        print(f"{source.name}: {arguments.rows:,} rows, {size_mb:,.0f} MB, written in {written_s:.0f} s")
        print(f"{'':<28} {'interactions':>14} {'kept':>12} {'wall s':>8} {'CPU s':>8} {'rows/s':>10} {'peak MB':>9}")
        runs = {}
        for options in ("--action all", "--action buy", "--action all --merge-repeats"):
            output = Path(name) / "dataset"
            run = runs[options] = prepare(source, output, options.split())
            shutil.rmtree(output)
            print(
                f"{options:<28} {run['interactions']:>14,} {run['kept']:>12,} {run['wall_s']:>8.1f} "
                f"{run['cpu_s']:>8.1f} {arguments.rows / run['wall_s']:>10,.0f} {run['peak_mb']:>9.0f}",
                flush=True,
            )
    print(json.dumps({"rows": arguments.rows, "file_mb": size_mb, "runs": runs}))


def write_source(path: Path, *, rows: int) -> None:
    """Write the synthetic file in chunks; every user and every item comes at least once."""
    rng = np.random.default_rng(20150701)
    users, items, sellers = (max(1, round(count * rows / ROWS)) for count in (USERS, ITEMS, SELLERS))
    # Real numbers are no dense range, and neither are these.
    user_ids, item_ids = (rng.permutation(np.arange(1, 3 * count, 3)) for count in (users, items))
    item_seller = (sellers * rng.random(items) ** 2).astype(np.int64) + 1
    days = pl.date_range(pl.date(2015, 7, 1), pl.date(2015, 10, 31), eager=True).dt.strftime("%Y%m%d").to_numpy()
    with path.open("wb") as file:
        file.write(b"use_ID,sel_ID,ite_ID,cat_ID,act_ID,time\n")
        for start in range(0, rows, CHUNK_ROWS):
            place = np.arange(start, min(start + CHUNK_ROWS, rows))
            user = np.where(place < users, place, skewed(rng, users, len(place), power=2))
            item = np.where(place < items, place, skewed(rng, items, len(place), power=4))
            # The first rows name everyone once: shuffling each chunk and column keeps the pairs random.
            user, item = rng.permutation(user), rng.permutation(item)
            chunk = {
                "use_ID": user_ids[user],
                "sel_ID": item_seller[item],
                "ite_ID": item_ids[item],
                "cat_ID": item % 70 + 1,
                "act_ID": (rng.random(len(place)) < BUYS / ROWS).astype(np.int8),
                "time": days[rng.integers(0, len(days), len(place))],
            }
            pl.DataFrame(chunk).write_csv(file, include_header=False)


def skewed(rng: np.random.Generator, count: int, size: int, *, power: int) -> npt.NDArray[np.int64]:
    """(size,) int64 in 0..count - 1, the smaller the likelier."""
    return (count * rng.random(size) ** power).astype(np.int64)


def prepare(source: Path, output: Path, options: list[str]) -> dict[str, Any]:
    """Prepare in a process of its own: rows, seconds, peak resident memory in MB. Its stderr is ours."""
    command = [sys.executable, "-c", PREPARE, "prepare", "--format", "tmall", "--input", str(source), *options]
    for bound, interactions in (("min-user", 5), ("min-item", 5), ("max-user", 100), ("max-item", 100)):
        command += [f"--{bound}-interactions", str(interactions)]
    command += ["--output", str(output), "--json", "--quiet"]
    started = time.perf_counter()
    done = subprocess.run(command, check=False, stdout=subprocess.PIPE, text=True)
    wall_s = time.perf_counter() - started
    if done.returncode:
        sys.exit(f"bench_prepare: preparing {source} ended with exit code {done.returncode}; see its error above")
    report, _, used = done.stdout.rpartition("used")
    peak_kib, cpu_s = used.split()
    counts = json.loads(report)
    return {
        "interactions": counts["before"]["interactions"],
        "kept": counts["after"]["interactions"],
        "left_out": counts["left_out"],
        "wall_s": wall_s,
        "cpu_s": float(cpu_s),
        "peak_mb": int(peak_kib) * 1024 / 1e6,
    }


if __name__ == "__main__":
    main()
