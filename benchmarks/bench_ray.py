"""What does `--engine ray` cost on one machine, against the engine of one process?

    python benchmarks/bench_ray.py --folder .bench

The same job of some minutes, top-100, in turn: in this process with T threads; on a Ray that is started and ended for
it, with one worker of T threads, and with T workers of one. A job of few users goes before, for kernels to be compiled;
bytes are compared at the end, for whole jobs take minutes. Overhead is the time of a way over that of this process,
less one, once for whole jobs and once without what starting takes (`start_s`: of Ray, or of laying out the items).
Workers start and open the model, too, once for a job, however long it is.
"""

from __future__ import annotations

import argparse
import filecmp
import functools
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

import ray
from limits import Limits, cpu_model
from rounds import Timed, in_turn, print_json
from synthetic import SIZES, users_file
from synthetic_model import model_file

from ipsrec_onnx.score_report import ScoreReport
from ipsrec_onnx.scoring import score

TOP_K, ROUNDS = 100, 2
WARM_UP_USERS = 8_192


def main() -> None:
    """Compare the bytes, time all ways, print a table and one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", type=Path, required=True, help="Where the synthetic data lie, or will.")
    parser.add_argument("--size", choices=list(SIZES), default="tmall")
    parser.add_argument("--users", type=int, help="Of the job; all by default.")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--part-rows", type=int, help="Users of a part; as ipsrec score by default.")
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--ways", nargs="+", choices=["1xT", "Tx1"], default=["1xT", "Tx1"], help="Workers x threads.")
    arguments = parser.parse_args()
    threads = arguments.threads
    print(f"{cpu_model()}, {threads} threads, ray {ray.__version__}")
    users = users_file(arguments.folder, arguments.size, users=arguments.users)
    few_users = users_file(arguments.folder, arguments.size, users=WARM_UP_USERS)
    model = model_file(arguments.folder, arguments.size, model="ipsrec-c")
    with tempfile.TemporaryDirectory(dir=arguments.folder) as scratch, Limits(threads) as limits:
        reports: dict[str, list[ScoreReport]] = {}

        def job(name: str, *, source: Path = users, **engine: Any) -> None:
            report = score(
                model,
                source,
                f"{scratch}/{name}/",
                top_k=TOP_K,
                part_rows=arguments.part_rows,
                overwrite=True,
                **engine,
            )
            reports.setdefault(name, []).append(report)

        ways = {"local": functools.partial(job, "local", threads=threads)}
        shapes = {"1xT": (1, threads), "Tx1": (threads, 1)}
        for workers, each in dict.fromkeys(shapes[way] for way in arguments.ways):  # with one thread, both are the same
            name = f"{workers}x{each}"
            ways[name] = functools.partial(job, name, engine="ray", workers=workers, threads=each)
        for way in ways.values():
            way(source=few_users)
        reports.clear()
        found = in_turn(ways, limits, rounds=arguments.rounds)
        refuse_other_bytes(Path(scratch), list(ways))
    print_json(table(found, reports))


def refuse_other_bytes(scratch: Path, names: list[str]) -> None:
    """End where a way has written other parts than the first one."""
    first = sorted(path.name for path in (scratch / names[0]).iterdir())
    for name in names[1:]:
        same, other, missing = filecmp.cmpfiles(scratch / names[0], scratch / name, first, shallow=False)
        if other or missing or len(list((scratch / name).iterdir())) != len(same):
            sys.exit(f"bench_ray: {name} has written other bytes: {other or missing}")
    print(f"{len(first)} parts, the same bytes from all ways")


def table(found: dict[str, Timed], reports: dict[str, list[ScoreReport]]) -> dict[str, Any]:
    """Print what was measured; gives it for the line of JSON."""
    local = [(seconds, report) for seconds, report in zip(found["local"].seconds, reports["local"], strict=True)]
    figures: dict[str, Any] = {"benchmark": "bench_ray", "users": reports["local"][0].counts.rows_in}
    for name, timed in found.items():
        samples = list(zip(timed.seconds, reports[name], strict=True))
        whole = [seconds / ours - 1 for (seconds, _), (ours, _) in zip(samples, local, strict=True)]
        loop = [
            (seconds - report.start_s) / (ours - base.start_s) - 1
            for (seconds, report), (ours, base) in zip(samples, local, strict=True)
        ]
        start_s = statistics.median(report.start_s for _, report in samples)
        print(
            f"{name:>6}  {timed.median:8.1f} s [{min(timed.kept):.1f}..{max(timed.kept):.1f}], start {start_s:4.1f} s; "
            f"overhead {spread(whole)}, without the start {spread(loop)}"
        )
        figures[name] = {**timed.to_json(), "start_s": start_s, "overhead": whole, "overhead_without_start": loop}
    return figures


def spread(shares: list[float]) -> str:
    """Median and range of shares."""
    return f"{statistics.median(shares):+.1%} [{min(shares):+.1%}..{max(shares):+.1%}]"


if __name__ == "__main__":
    main()
