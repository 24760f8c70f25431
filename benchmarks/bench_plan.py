"""How wrong is `ipsrec plan`: time, memory and size of the output, of jobs of different shape?

    python benchmarks/bench_plan.py --folder .bench

Four jobs (synthetic.py), top-100, in turn, some rounds of each: `ipsrec plan` as a process of its own, then
`ipsrec score --plan` as another, which says by how much the plan was off. What counts is the largest deviation.

| job | users | catalog | model |
|---|---|---|---|
| shop | many, short histories | small | IPSRec-C, the fused encoder, a folder of parts |
| tmall | fewer, short histories | over a million items | IPSRec-C |
| wechat | fewer, long histories | 96,565 items | IPSRec-C with history terms |
| cluster | many, short histories | over a million items | IPSRec-C, a folder, on a Ray of one worker with all threads |

Ray is started for its job and ended after it: both are in what the job took, and neither is in the plan.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import synthetic
from limits import cpu_model
from rounds import print_json
from synthetic import Size, users_file
from synthetic_model import model_file

synthetic.SIZES["shop"] = Size(users=300_000, items=6_319, providers=698, mean_length=8.6, max_len=20)
JOBS: dict[str, dict[str, Any]] = {
    "shop": {"users": 300_000, "history_terms": "none", "output": "shop/", "options": ["--encoder", "fused"]},
    "tmall": {"users": 40_000, "history_terms": "none", "output": "tmall.parquet", "options": []},
    "wechat": {"users": 10_000, "history_terms": "all", "output": "wechat.parquet", "options": []},
    "cluster": {"users": 300_000, "history_terms": "none", "output": "cluster/", "options": [], "workers": 1},
}
SIZE_OF = {"cluster": "tmall"}  # others have the name of their size
RUN = "from ipsrec_cli.main import main; main()"
FIGURES = ("wall_s", "memory_bytes", "output_bytes")


def main() -> None:
    """Plan and do all jobs, print a table and one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", type=Path, required=True, help="Where the synthetic data lie, or will.")
    parser.add_argument("--job", choices=list(JOBS), action="append", help="One of the jobs.  [default: all]")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    print(f"{cpu_model()}, {arguments.threads} threads, {arguments.rounds} rounds")
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory(dir=arguments.folder) as scratch:
        for name in arguments.job or JOBS:
            found[name] = [run(name, arguments, Path(scratch)) for _ in range(arguments.rounds)]
            show(name, found[name])
    print_json(found)


def run(name: str, arguments: argparse.Namespace, scratch: Path) -> dict[str, Any]:
    """Plan a job and do it; gives what the plan said, what the job did, and how far they are apart."""
    job, size = JOBS[name], SIZE_OF.get(name, name)
    model = model_file(arguments.folder, size, history_terms=job["history_terms"])
    users = users_file(arguments.folder, size, users=job["users"])
    same = ["--model", str(model), "--input", str(users), "--threads", str(arguments.threads), *job["options"]]
    workers = ["--workers", str(job["workers"])] if "workers" in job else []
    folder = ["--as-folder"] if job["output"].endswith("/") else []
    same_file = str(scratch / "plan.json")
    planned = ipsrec("plan", *same, *workers, "--output", same_file, "--overwrite", *folder)
    output = ["--output", f"{scratch}/{job['output']}", "--overwrite", "--quiet"]
    done = ipsrec("score", *same, *(["--engine", "ray", *workers] if workers else []), "--plan", same_file, *output)
    return {
        "plan": planned["cluster" if workers else "here"],
        "probe": planned["probe"],
        "off": done["plan"],
        "start_s": done["start_s"],
    }


def ipsrec(*arguments: str) -> dict[str, Any]:
    """Run a command in a process of its own; gives its JSON."""
    done = subprocess.run(
        [sys.executable, "-c", RUN, *arguments, "--json"], check=False, stdout=subprocess.PIPE, text=True
    )
    if done.returncode:
        sys.exit(f"bench_plan: `ipsrec {arguments[0]}` ended with exit code {done.returncode}; see its error above")
    return dict(json.loads(done.stdout))


def show(name: str, rounds: list[dict[str, Any]]) -> None:
    """Print one line a figure: planned and taken in each round, and the deviations."""
    for figure in FIGURES:
        off = [found["off"][figure] for found in rounds]
        if None in off:  # memory of a cluster's workers is their machines' matter
            continue
        unit = 1.0 if figure == "wall_s" else 1e6
        pairs = "  ".join(f"{one['planned'] / unit:.1f}/{one['taken'] / unit:.1f}" for one in off)
        percent = [one["percent"] for one in off]
        print(
            f"{name:8} {figure:13} planned/taken {pairs}  off {' '.join(f'{one:+.1f}%' for one in percent)}, median "
            f"{statistics.median(percent):+.1f}%"
        )


if __name__ == "__main__":
    main()
