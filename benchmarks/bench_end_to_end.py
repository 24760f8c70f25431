"""How much faster is `ipsrec score` than a first script, from Parquet to Parquet, and how well do its stages overlap?

    python benchmarks/bench_end_to_end.py --size twitch --folder .bench

Users and a model file of one of the paper's sizes (synthetic.py), top-100, seen items left out. In turn, five times:
the naive script (naive_job.py) on a few users, in this process, its set-up not counted; `ipsrec score` on all users in
a process of its own, everything counted from its start; the library's score() in this process, for all users and for
one user, which is what set-up takes. Lists are compared on the naive script's users first.

`rate` is users a second between set-up and end: (users - 1) / (seconds of all - seconds of one). Overlap is these
seconds over the CPU seconds of all stages divided by the threads; 1.0 would be no waiting at all.
"""

from __future__ import annotations

import argparse
import functools
import platform
import statistics
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numba
import numpy as np
import onnxruntime
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from jobs import TOP_K, Jobs, first_users
from limits import Limits, cpu_model
from naive_job import NaiveJob
from plain_graph import plain_file, plain_session
from rounds import ROUNDS, in_turn, print_json, ratio_in_rounds
from synthetic import SIZES, users_file
from synthetic_model import model_file

from ipsrec_onnx.model_file import open_model_file

# Users of the naive script, and of ours in the short form; in the full form ours are the whole data set.
NAIVE_USERS = {"tmall": 256, "twitch": 512, "wechat": 1024}
SHORT_NAIVE_USERS = {"tmall": 128, "twitch": 128, "wechat": 512}
SHORT_USERS = {"tmall": 8_192, "twitch": 4_096, "wechat": 2_048}
SHORT_ROUNDS = 3
TIE = 1e-4  # scores of two float32 encoders may differ by this share of the largest


def main() -> None:
    """Measure one size, print a table and one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", choices=list(SIZES), default="twitch")
    parser.add_argument("--folder", type=Path, required=True, help="Where the synthetic data lie, or will.")
    parser.add_argument("--users", type=int, help="Users of our jobs; all by default, fewer with --short.")
    parser.add_argument("--naive-users", type=int)
    parser.add_argument("--model", choices=["sasrec", "ipsrec-s", "ipsrec-c"], default="ipsrec-c")
    parser.add_argument("--history-terms", action="store_true", help="Time a model with history terms, too.")
    parser.add_argument("--encoder", choices=["onnxruntime", "fused"], default="onnxruntime")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int)
    parser.add_argument("--no-process", action="store_true", help="Leave out `ipsrec score` as a process.")
    parser.add_argument("--no-naive", action="store_true", help="Leave out the naive script, and comparing lists.")
    parser.add_argument("--short", action="store_true", help="Fewer users and rounds: under 40 seconds.")
    arguments = parser.parse_args()
    print(
        f"{cpu_model()}, {arguments.threads} threads, Python {platform.python_version()}, NumPy {np.__version__}, "
        f"onnxruntime {onnxruntime.__version__}, Numba {numba.__version__}, pyarrow {pa.__version__}, "
        f"pandas {pd.__version__}"
    )
    with tempfile.TemporaryDirectory() as scratch, Limits(arguments.threads) as limits:
        print_json(run(arguments, Path(scratch), limits))


def run(arguments: argparse.Namespace, scratch: Path, limits: Limits) -> dict[str, Any]:
    """Make the data, compare the lists, time all ways in turn."""
    size, folder = SIZES[arguments.size], arguments.folder
    users = arguments.users or (SHORT_USERS[arguments.size] if arguments.short else size.users)
    naive_users = arguments.naive_users or (SHORT_NAIVE_USERS if arguments.short else NAIVE_USERS)[arguments.size]
    rounds = arguments.rounds or (SHORT_ROUNDS if arguments.short else ROUNDS)
    everyone = users_file(folder, arguments.size, users=users)
    some, one = (first_users(everyone, scratch / f"{count}.parquet", count) for count in (naive_users, 1))
    model = model_file(folder, arguments.size, model=arguments.model)
    print(f"{arguments.size}: {size.items:,} items, max_len {size.max_len}, {arguments.model}, {arguments.encoder}")
    options: dict[str, Any] = {"top_k": TOP_K, "threads": arguments.threads, "overwrite": True}
    options |= {"encoder": arguments.encoder}
    jobs = Jobs(scratch / "candidates.parquet", options)
    ways: dict[str, Callable[[], object]] = {
        "score(), all users": functools.partial(jobs.in_process, "all", model, everyone),
        "score(), one user": functools.partial(jobs.in_process, "one", model, one),
    }
    if not arguments.no_naive:
        naive = naive_job(arguments, folder, model)
        compare(naive.run(some, scratch / "naive.parquet", top_k=TOP_K), jobs.in_process("some", model, some))
        naive.seconds.clear()
        ways["naive script"] = lambda: naive.run(some, scratch / "naive.parquet", top_k=TOP_K)
    if not (arguments.no_process or arguments.short):
        ways["ipsrec score, a process"] = functools.partial(jobs.process, model, everyone)
    if arguments.history_terms:
        with_terms = model_file(folder, arguments.size, model=arguments.model, history_terms="all")
        ways["with history terms"] = functools.partial(jobs.in_process, "terms", with_terms, everyone)
    for way in ("score(), one user", "with history terms"):  # compiled and read before the clock starts
        if way in ways:
            ways[way]()
    jobs.forget()
    times = in_turn(ways, limits, rounds=rounds)
    if arguments.short and not arguments.no_process:
        jobs.process(model, everyone)  # once, for its memory
    counts = {"score(), one user": 1, "naive script": naive_users}
    for way, timed in times.items():
        count = counts.get(way, users)
        print(
            f"{way:<26} {count:>8,} users {timed.median:>8.2f} s {timed.spread(count, ' users/s'):>34}  "
            f"{timed.whole} of {rounds} on two cores"
        )
    everything, setup = times["score(), all users"], times["score(), one user"]
    seconds = [max(a - b, 1e-9) for a, b in zip(everything.seconds, setup.seconds, strict=True)]
    rates = [(users - 1) / part for part in seconds]
    figures: dict[str, Any] = {
        "size": arguments.size,
        "model": arguments.model,
        "encoder": arguments.encoder,
        "users": users,
        "threads": arguments.threads,
        "setup_s": setup.median,
        "users_per_s": users / everything.median,
        "rate_users_per_s": statistics.median(rates),
        "rate_range": [min(rates), max(rates)],
        "stages": stages(jobs, arguments.threads, seconds),
        "ways": {way: timed.to_json() for way, timed in times.items()},
    }
    if "naive script" in times:
        slow = times["naive script"]
        naive_rates = [naive_users / part for part in slow.seconds]
        figures |= {
            "naive_users_per_s": naive_users / slow.median,
            "naive_seconds": dict(naive.seconds),
            "vs_naive": statistics.median(a / b for a, b in zip(rates, naive_rates, strict=True)),
            "vs_naive_with_setup": ratio_in_rounds(slow, everything) * users / naive_users,
        }
        figures[f"end_to_end_vs_naive_{arguments.size}"] = figures["vs_naive"]
        print(
            f"against the naive script: {figures['vs_naive']:.1f}x between set-up and end, "
            f"{figures['vs_naive_with_setup']:.1f}x with our set-up counted"
        )
    if "with history terms" in times:
        pairs = zip(times["with history terms"].seconds, everything.seconds, seconds, strict=True)
        figures["history_terms_cost"] = statistics.median((a - b) / c for a, b, c in pairs)
        print(f"history terms: {figures['history_terms_cost']:+.1%} of the time between set-up and end")
    if jobs.peak_mb:
        figures["peak_mb"] = max(jobs.peak_mb)
        print(f"peak resident memory of the process: {figures['peak_mb']:,.0f} MB")
    return figures


def stages(jobs: Jobs, threads: int, seconds: list[float]) -> dict[str, Any]:
    """Print and give the CPU seconds of each stage, and how well the stages overlap.

    Args:
        jobs: that ran "all".
        threads: of the jobs.
        seconds: of each of them, without set-up.
    """
    reports = [report for report, _ in jobs.reports["all"]]
    names = list(reports[0].cpu_s)
    cpu_s = {name: statistics.median(report.cpu_s[name] for report in reports) for name in names}
    total = sum(cpu_s.values())
    overlap = statistics.median(
        wall_s / (sum(report.cpu_s.values()) / threads) for wall_s, report in zip(seconds, reports, strict=True)
    )
    for name, part in cpu_s.items():
        print(f"  {name:<10} {part:>8.2f} CPU s {part / total:>7.1%}")
    process_s = statistics.median(cpu for _, cpu in jobs.reports["all"])
    print(f"  together {total:.2f} CPU s of {process_s:.2f} of the process; wall / (together / threads) {overlap:.3f}")
    return {"cpu_s": cpu_s, "process_cpu_s": process_s, "overlap": overlap}


def naive_job(arguments: argparse.Namespace, folder: Path, model: Path) -> NaiveJob:
    """Prepare the naive script with the same weights and catalog."""
    plain = plain_file(folder, arguments.size, model=arguments.model, scores=True)
    catalog = open_model_file(model).catalog
    session = plain_session(plain, threads=arguments.threads)
    return NaiveJob(session, catalog, max_len=SIZES[arguments.size].max_len)


def compare(naive: pd.DataFrame, ours: Path) -> None:
    """Refuse to time lists that differ by more than ties: another item must score as the list's end does."""
    table = pq.read_table(ours)
    same = 0
    for row, (ids, scores, naive_ids, naive_scores) in enumerate(
        zip(table["item_ids"].to_pylist(), table["scores"].to_pylist(), naive["item_ids"], naive["scores"], strict=True)
    ):
        bound = TIE * float(np.abs(naive_scores).max())
        assert np.abs(np.array(scores) - naive_scores).max() <= bound, f"row {row}: the scores differ"
        theirs = set(naive_ids)
        other = [score for item, score in zip(ids, scores, strict=True) if item not in theirs]
        assert all(score - scores[-1] <= bound for score in other), f"row {row}: the items differ"
        same += not other
    print(f"lists compared: {len(naive)} users, {same} with the same items, the others differ by ties at the end")


if __name__ == "__main__":
    main()
