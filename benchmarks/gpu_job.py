"""How long does `ipsrec score --device cuda` take, from Parquet to Parquet, and against a first script on the GPU?

    python benchmarks/gpu_job.py --folder .bench
    python benchmarks/gpu_job.py --folder .bench --cases tmall,tmall-onnx --runs 5

A case is a size of the paper, a search, the precision of the model file, history terms, and lengths of histories: all
max_len, or as synthetic.py draws them. The first is Tmall's job, the others change one thing each. Top-100, seen items
left out, exact, into a folder of Parquet. Each run is a process of its own, and the whole of it is `process_s`; what
the job itself says is `wall_s` from its start, `start_s` until the first user, and their difference `loop_s`, with the
CPU seconds of all threads by stage. A run before the others fills caches (Triton's, Numba's, the files') and is
reported as `cold_s`. Medians of three, with lowest and highest.

The rival is naive_gpu_job.py on some of the users of the first case, all in one process, its set-up not counted; ours
is counted between set-up and end. Lists of a float32 model file are compared with it first.

Users and models are made on the first run, side by side in processes; --prepare does that alone, without a GPU.

    python benchmarks/gpu_job.py --folder .tiny --device cpu --tiny      # with TRITON_INTERPRET=1

proves the script where there is no GPU: the CPU stands in for one. Its figures mean nothing.
"""

from __future__ import annotations

import argparse
import functools
import json
import multiprocessing
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from gpu_machine import Samples, machine
from jobs import SCORE, TOP_K, first_users
from rounds import print_json
from synthetic import Lengths, make_world, size_of, users_file
from synthetic_model import make_model, model_file

MODEL = "ipsrec-c"
RUNS = 3
NAIVE_USERS, COMPARED = 20_000, 512
MODELS_AT_ONCE = 4  # of a million items: 4 GB of memory each while one is made
TINY_USERS, TINY_NAIVE = 60, 20

# Before SCORE on a machine without a GPU: cards are opened on the CPU, with small batches and few programs.
STAND_IN = """
import functools
import ipsrec_gpu.search, ipsrec_onnx.card_opening, ipsrec_onnx.cards, ipsrec_onnx.retrieval, ipsrec_onnx.score_options
def on_cpu(model, table, options, *, device, open_cards=ipsrec_onnx.card_opening.open_cards):
    return open_cards(model, table, options, device="cpu")
ipsrec_gpu.search._CHUNK = 64
ipsrec_onnx.cards._BATCH = 32
ipsrec_onnx.card_opening.why_no_triton = lambda dim, gpus: None
ipsrec_onnx.score_options.refuse_missing = lambda device: None
ipsrec_onnx.retrieval.open_cards = on_cpu
"""


class Case(NamedTuple):
    """One job."""

    size: str = "tmall"
    search: str = "triton"
    precision: Literal["fp32", "fp16"] = "fp16"
    history_terms: Literal["none", "all"] = "none"
    lengths: Lengths = "full"


CASES = {
    "tmall": Case(),
    "tmall-onnx": Case(search="onnx"),
    "tmall-fp32": Case(precision="fp32"),
    "tmall-terms": Case(history_terms="all"),
    "tmall-lognormal": Case(lengths="lognormal"),
    "twitch": Case(size="twitch"),
    "wechat": Case(size="wechat"),
}


def main() -> None:
    """Make what is missing, run every case, print tables and one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", type=Path, required=True, help="Where the synthetic data lie, or will.")
    parser.add_argument("--cases", default=",".join(CASES), help="Which of them, with commas between.")
    parser.add_argument("--runs", type=int, default=RUNS)
    parser.add_argument("--users", type=int, help="Fewer users than the size has.")
    parser.add_argument("--naive-users", type=int, default=NAIVE_USERS, help="Of the rival; 0 leaves it out.")
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument("--tiny", action="store_true", help="Few users and items: does the script work?")
    parser.add_argument("--prepare", action="store_true", help="Make users and models, and run nothing.")
    arguments = parser.parse_args()
    if arguments.tiny:
        arguments.users, arguments.naive_users = TINY_USERS, min(arguments.naive_users, TINY_NAIVE)
    cases = {name: CASES[name] for name in arguments.cases.split(",")}
    if arguments.tiny:
        cases = {name: case._replace(size="tiny") for name, case in cases.items()}
    names = machine(arguments.device)
    print(", ".join(f"{name} {value}" for name, value in names.items()))
    figures: dict[str, Any] = {"benchmark": "gpu_job", "device": arguments.device, "machine": names}
    started = time.perf_counter()
    prepare(arguments, list(cases.values()))
    figures["prepare_s"] = time.perf_counter() - started
    print(f"users and models are there after {figures['prepare_s']:.0f} s")
    if not arguments.prepare:
        with tempfile.TemporaryDirectory(dir=arguments.folder) as scratch:
            for name, case in cases.items():
                figures[name] = run_case(name, case, arguments, Path(scratch))
                print_json(figures)  # so that a kill loses one case
            if arguments.naive_users:
                name, case = next(iter(cases.items()))
                figures["naive"] = naive(case, figures[name], arguments, Path(scratch))
    print_json(figures)


def prepare(arguments: argparse.Namespace, cases: list[Case]) -> None:
    """Make all users and models that do not lie there yet, side by side."""
    if arguments.naive_users:
        cases = [*cases, cases[0]._replace(precision="fp32")]
    makers = [users_of(case, arguments) for case in cases] + [model_of(case, arguments) for case in cases]
    distinct = {(maker.func.__name__, *maker.args, *sorted(maker.keywords.items())): maker for maker in makers}
    at_once = max(1, min(MODELS_AT_ONCE, (os.cpu_count() or 1) // 2))
    threads = max(1, (os.cpu_count() or 1) // at_once)
    spawn = multiprocessing.get_context("spawn")  # torch and OpenMP do not survive a fork
    with ProcessPoolExecutor(at_once, mp_context=spawn, initializer=torch.set_num_threads, initargs=(threads,)) as pool:
        for made in [pool.submit(maker) for maker in distinct.values()]:
            made.result()


def users_of(case: Case, arguments: argparse.Namespace) -> functools.partial[Path]:
    """What makes the users of a case."""
    return functools.partial(users_file, arguments.folder, case.size, users=arguments.users, lengths=case.lengths)


def model_of(case: Case, arguments: argparse.Namespace) -> functools.partial[Path]:
    """What makes the model of a case."""
    return functools.partial(
        model_file,
        arguments.folder,
        case.size,
        model=MODEL,
        history_terms=case.history_terms,
        precision=case.precision,
    )


def run_case(name: str, case: Case, arguments: argparse.Namespace, scratch: Path) -> dict[str, Any]:
    """Run one case some times, print its table."""
    users, model = users_of(case, arguments)(), model_of(case, arguments)()
    work = functools.partial(run_job, model, users, scratch / "candidates", search=case.search, device=arguments.device)
    cold = work()
    runs = [work() for _ in range(arguments.runs)]
    count = runs[0]["rows_out"]
    found: dict[str, Any] = {**case._asdict(), "users": count, "cold_s": cold["process_s"]}
    for figure in ("process_s", "wall_s", "start_s", "loop_s"):
        found[figure] = Samples.of([run[figure] for run in runs])._asdict()
    found["users_per_s"] = Samples.of([count / run["loop_s"] for run in runs])._asdict()
    found["cpu_s"] = {stage: Samples.of([run["cpu_s"][stage] for run in runs]).median for stage in runs[0]["cpu_s"]}
    found["gpu_search"] = runs[-1]["gpu_search"]
    found["output_mb"] = runs[-1]["output_mb"]
    for peak in ("peak_host_mb", "peak_device_mb"):
        known = [run[peak] for run in runs if run[peak] is not None]
        found[peak] = max(known) if known else None
    print(
        f"\n{name}: {count:,} users, {', '.join(case)}; {found['output_mb']:,.0f} MB written; "
        f"cold {cold['process_s']:.2f} s"
    )
    for figure in ("process_s", "wall_s", "start_s", "loop_s"):
        print(f"  {figure:<12} {Samples(**found[figure]).write('.2f'):>24}")
    print(f"  users/s {Samples(**found['users_per_s']).write():>29} of the loop")
    print("  CPU seconds " + ", ".join(f"{stage} {seconds:.2f}" for stage, seconds in found["cpu_s"].items()))
    print(
        f"  search {found['gpu_search']}; peak MB: host {found['peak_host_mb']}, device {found['peak_device_mb']}",
        flush=True,
    )
    return found


def run_job(model: Path, users: Path, output: Path, *, search: str, device: str) -> dict[str, Any]:
    """Run `ipsrec score` in a process of its own; gives its report, and what was measured from outside."""
    script = STAND_IN + SCORE if device == "cpu" else SCORE
    command = [sys.executable, "-c", script, "score", "--model", str(model), "--input", str(users)]
    command += ["--output", f"{output}/", "--top-k", str(TOP_K), "--device", "cuda", "--search", search]
    command += ["--overwrite", "--quiet", "--json"]
    with DeviceMemory(device) as memory:
        started = time.perf_counter()
        done = subprocess.run(command, check=False, stdout=subprocess.PIPE, text=True)
        seconds = time.perf_counter() - started
    if done.returncode:
        sys.exit(f"gpu_job: `ipsrec score` ended with exit code {done.returncode}; see its error above")
    report_text, _, peak_kib = done.stdout.rstrip().rpartition("\n")
    report: dict[str, Any] = json.loads(report_text)
    return report | {
        "process_s": seconds,
        "loop_s": report["wall_s"] - report["start_s"],
        "peak_host_mb": int(peak_kib) * 1024 / 1e6,
        "peak_device_mb": memory.peak_mb,
        "output_mb": sum(part.stat().st_size for part in output.iterdir()) / 1e6,
    }


class DeviceMemory:
    """Asks twenty times a second how much memory of the card others have taken; a context manager.

    Attributes:
        peak_mb: the most that was seen, beyond what there was before the block; None without a card.
    """

    peak_mb: float | None = None

    def __init__(self, device: str) -> None:
        self._on_gpu, self._ended = device == "cuda", threading.Event()

    def __enter__(self) -> DeviceMemory:
        if self._on_gpu:
            self._before = self._used_mb()
            self.peak_mb = 0.0
            self._thread = threading.Thread(target=self._watch)
            self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._on_gpu:
            self._ended.set()
            self._thread.join()

    def _watch(self) -> None:
        while not self._ended.wait(0.05):
            self.peak_mb = max(self.peak_mb or 0.0, self._used_mb() - self._before)

    def _used_mb(self) -> float:
        free, total = torch.cuda.mem_get_info(0)
        return (total - free) / 1e6


def naive(case: Case, ours: dict[str, Any], arguments: argparse.Namespace, scratch: Path) -> dict[str, Any]:
    """Compare lists with the naive script's, time it, and give how many times as fast ours is."""
    from bench_end_to_end import compare
    from naive_gpu_job import NaiveGpuJob

    case = case._replace(precision="fp32", history_terms="none")
    world = make_world(size_of(case.size))
    model = make_model(world, model=MODEL, history_terms="none")
    script = NaiveGpuJob(model, world.catalog, max_len=world.size.max_len, device=arguments.device)
    everyone = users_of(case, arguments)()
    some, few = (
        first_users(everyone, scratch / f"{count}.parquet", count)
        for count in (arguments.naive_users, min(COMPARED, arguments.naive_users))
    )
    work: Callable[[Path], Any] = functools.partial(script.run, output=scratch / "naive.parquet", top_k=TOP_K)
    run_job(model_of(case, arguments)(), few, scratch / "compared", search=case.search, device=arguments.device)
    compare(work(few), scratch / "compared")
    rates = []
    for _ in range(arguments.runs):
        started = time.perf_counter()
        work(some)
        rates.append(arguments.naive_users / (time.perf_counter() - started))
    speed = Samples.of(rates)
    found = {
        "users": arguments.naive_users,
        "users_per_s": speed._asdict(),
        "times_as_fast": ours["users_per_s"]["median"] / speed.median,
    }
    print(f"\nnaive script: {speed.write()} users/s; ours {found['times_as_fast']:.1f} times as fast")
    return found


if __name__ == "__main__":
    main()
