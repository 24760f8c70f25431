"""Runs the short form of every benchmark of scoring on a CPU, and gives what must not get worse in one line of JSON.

    python benchmarks/bench_all.py --folder .bench

`make bench` runs it in an environment of its own. Each benchmark is a process of its own; its tables go through as they
come. The keys of the last line are ratios within one run: how many times as fast as the rival of the name, the share of
a physical limit, or a cost as a share of the time without.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from limits import Limits, cpu_model
from rounds import print_json

HERE = Path(__file__).parent
# Script -> the keys that it must give.
KEYS = {
    "bench_packing": ["packing_vs_python"],
    "bench_parquet": [],
    "bench_encoder": ["encoder_vs_plain_tmall", "encoder_vs_plain_twitch", "encoder_vs_plain_wechat"],
    "bench_retrieval": [
        "retrieval_vs_best_peer",
        "retrieval_vs_sgemm_limit",
        "seen_filter_cost",
        "provider_cap_cost",
    ],
    "bench_end_to_end": ["end_to_end_vs_naive_twitch"],
}
# Script -> its options beside --short; FOLDER stands for where the synthetic data lie.
FOLDER = "FOLDER"
OPTIONS = {"bench_parquet": ["--folder", FOLDER], "bench_end_to_end": ["--size", "twitch", "--folder", FOLDER]}


def main() -> None:
    """Run all, or some, and print one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", type=Path, required=True, help="Where the synthetic data lie, or will.")
    parser.add_argument("--only", default=",".join(KEYS), help="Which of them, with commas between.")
    arguments = parser.parse_args()
    started = time.perf_counter()
    figures: dict[str, Any] = {"cpu": cpu_model()}
    with Limits() as limits:
        figures |= {
            "sgemm_gflop_per_s": limits.sgemm_gflop_per_s(),
            "sgemm_1_gflop_per_s": limits.sgemm_gflop_per_s(1),
            "copy_gb_per_s": limits.copy_gb_per_s(),
        }
    whole: dict[str, Any] = {}
    for script in arguments.only.split(","):
        options = [str(arguments.folder) if option == FOLDER else option for option in OPTIONS.get(script, [])]
        whole[script] = run(script, options)
        missing = [key for key in KEYS[script] if key not in whole[script]]
        if missing:
            sys.exit(f"bench_all: {script}.py gave no {missing[0]}; its last line has {sorted(whole[script])}")
        figures |= {key: whole[script][key] for key in KEYS[script]}
    print(f"\n{time.perf_counter() - started:.0f} s")
    for key, value in figures.items():
        print(f"{key:>28} {value if isinstance(value, str) else format(value, '.3g')}")
    print_json({**figures, "scripts": whole})


def run(script: str, options: list[str]) -> dict[str, Any]:
    """Run the short form of a script, pass on what it prints, give the object of its last line."""
    print(f"\n=== {script}", flush=True)
    started = time.perf_counter()
    command = [sys.executable, str(HERE / f"{script}.py"), "--short", *options]
    last = ""
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if last:
                print(last, end="", flush=True)
            last = line
    if process.returncode:
        sys.exit(f"bench_all: {script}.py ended with exit code {process.returncode}; see its error above")
    print(f"({time.perf_counter() - started:.0f} s)", flush=True)
    found: dict[str, Any] = json.loads(last)
    return found


if __name__ == "__main__":
    main()
