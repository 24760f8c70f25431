"""Runs every benchmark of the GPU and writes the figures that were asked for, and those that were reached, as a table.

    python benchmarks/gpu_all.py --folder .bench --output gpu-figures --minutes 25
    python benchmarks/gpu_all.py --folder .bench --output gpu-figures --only limits,retrieval

Each benchmark is a process of its own, with a time limit of its own within --minutes. What it prints goes to
OUTPUT/NAME.txt as it comes, its last line of JSON to OUTPUT/NAME.json, also where it failed or ran out of time later,
and OUTPUT/gpu.md is written anew after each of them, from all JSON that lies in OUTPUT: a kill loses nothing, and what
one call did not do another can. One that fails is passed over, and said so at the end, with exit code 1. `prepare`
makes the users and models of `job`.

    python benchmarks/gpu_all.py --folder .tiny --output .tiny/figures --device cpu --tiny

proves the scripts where there is no GPU, in minutes; Triton's kernels run in its interpreter. Its figures mean nothing.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from synthetic import SIZES

HERE = Path(__file__).parent
FOLDER = "FOLDER"  # in options: where the synthetic data lie
KILL_AFTER_S = 10.0
TMALL = SIZES["tmall"].items

Figures = dict[str, Any]  # name of a benchmark -> the object of its last line


class Benchmark(NamedTuple):
    """One script.

    Attributes:
        script: its file.
        minutes: it may take so long.
        options: of it.
        tiny: options on a machine without a GPU.
    """

    script: str
    minutes: float
    options: list[str]
    tiny: list[str]


BENCHMARKS = {
    "limits": Benchmark("gpu_limits.py", 2, [], ["--tiny"]),
    "prepare": Benchmark(
        "gpu_job.py", 5, ["--folder", FOLDER, "--prepare"], ["--folder", FOLDER, "--tiny", "--prepare"]
    ),
    "retrieval": Benchmark("gpu_retrieval.py", 6, [], ["--tiny", "--sizes", "tmall"]),
    "job": Benchmark("gpu_job.py", 9, ["--folder", FOLDER], ["--folder", FOLDER, "--tiny", "--runs", "1"]),
    "encoder": Benchmark(
        "gpu_encoder.py",
        6,
        ["--model", "ipsrec-c"],
        ["--model", "ipsrec-c", "--size", "tmall", "--items", "2000", "--batch", "64", "--rounds", "1", "--calls", "1"],
    ),
    "retrieval_onnx": Benchmark(
        "gpu_retrieval_onnx.py", 3, [], ["--items", "20000", "--users", "256", "--rounds", "1"]
    ),
    "training": Benchmark(
        "gpu_training.py",
        8,
        ["--sizes", "tmall"],
        ["--sizes", "tiny", "--steps", "1", "--rounds", "2", "--windows", "8"],
    ),
}


class Asked(NamedTuple):
    """A row of the table of figures.

    Attributes:
        what: is measured.
        least: that was asked for.
        aim: that was hoped for.
        reached: what came out; "not measured" where no benchmark has said.
    """

    what: str
    least: str
    aim: str
    reached: str


def main() -> None:
    """Run all, or some, and write the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", type=Path, required=True, help="Where the synthetic data lie, or will.")
    parser.add_argument("--output", type=Path, required=True, help="Folder for what comes out.")
    parser.add_argument("--only", default=",".join(BENCHMARKS), help="Which of them, with commas between, in order.")
    parser.add_argument("--minutes", type=float, default=30.0, help="For all of them together.")
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument("--tiny", action="store_true", help="Few users and items: do the scripts work?")
    arguments = parser.parse_args()
    names = arguments.only.split(",")
    unknown = [name for name in names if name not in BENCHMARKS]
    if unknown:
        parser.error(f"--only: there is no {unknown[0]}; expected some of {','.join(BENCHMARKS)}")
    for folder in (arguments.folder, arguments.output):
        folder.mkdir(parents=True, exist_ok=True)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that what is running ends, too
    ends_at = time.monotonic() + 60 * arguments.minutes
    failed = {}
    for name in names:
        reason = run(name, arguments, seconds=ends_at - time.monotonic())
        if reason is not None:
            failed[name] = reason
            print(f"gpu_all: {name} failed: {reason}", flush=True)
        (arguments.output / "gpu.md").write_text(markdown(read_figures(arguments.output)), encoding="utf-8")
    print(f"\n{markdown(read_figures(arguments.output))}")
    for name, reason in failed.items():
        print(f"gpu_all: {name} failed: {reason}; see {arguments.output / name}.txt", file=sys.stderr)
    sys.exit(1 if failed else 0)


def run(name: str, arguments: argparse.Namespace, *, seconds: float) -> str | None:
    """Run one benchmark, pass on and keep what it prints; gives why it failed, None where it did not."""
    benchmark = BENCHMARKS[name]
    limit = min(60 * benchmark.minutes, seconds)
    (arguments.output / f"{name}.json").unlink(missing_ok=True)  # an old figure is none of this run
    if limit <= 0:
        return "no time was left"
    if not (HERE / benchmark.script).is_file():
        return f"{benchmark.script} is not there"
    print(f"\n=== {name}, {limit:.0f} s at most", flush=True)
    options = benchmark.tiny if arguments.tiny else benchmark.options
    command = [sys.executable, str(HERE / benchmark.script), "--device", arguments.device]
    command += [str(arguments.folder) if option == FOLDER else option for option in options]
    environment = {**os.environ, "PYTHONUNBUFFERED": "1"}
    if arguments.device == "cpu":
        environment["TRITON_INTERPRET"] = "1"
    started = time.monotonic()
    log = arguments.output / f"{name}.txt"
    with log.open("w", encoding="utf-8") as file:
        # The log is a file and no pipe: what a killed process has printed is there, and nobody has to read meanwhile.
        process = subprocess.Popen(command, env=environment, stdout=file, stderr=file, process_group=0)
        try:
            code: int | None = process.wait(limit)
        except subprocess.TimeoutExpired:
            code = None
        finally:
            end(process)
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
    print("\n".join(line for line in lines if not line.startswith("{")), flush=True)
    print(f"({time.monotonic() - started:.0f} s)", flush=True)
    found = last_object(lines)
    if code is None:
        reason = f"it was not done after {limit:.0f} s"
    elif code:
        reason = f"exit code {code}: {lines[-1] if lines else 'it printed nothing'}"
    else:
        reason = None if found is not None else "it printed no line of JSON"
    if found is not None:
        if reason is not None:
            found["failed"] = reason
        (arguments.output / f"{name}.json").write_text(json.dumps(found), encoding="utf-8")
    return reason


def end(process: subprocess.Popen[bytes]) -> None:
    """End a process and those that it started, if they still run: they have a group of their own."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        try:
            os.killpg(process.pid, number)
        except ProcessLookupError:
            return
        try:
            process.wait(KILL_AFTER_S)
        except subprocess.TimeoutExpired:
            continue


def last_object(lines: list[str]) -> dict[str, Any] | None:
    """The last line that is a JSON object: warnings may come after it, for both streams are one file."""
    for line in reversed(lines):
        if line.startswith("{"):
            try:
                found = json.loads(line)
            except ValueError:
                continue
            return found if isinstance(found, dict) else None
    return None


def read_figures(output: Path) -> Figures:
    """What benchmarks have said, in this run or before."""
    paths = {name: output / f"{name}.json" for name in BENCHMARKS}
    return {name: json.loads(path.read_text(encoding="utf-8")) for name, path in paths.items() if path.is_file()}


def markdown(figures: Figures) -> str:
    """The tables, to be put into docs/gpu.md."""
    machines = [found["machine"] for found in figures.values() if isinstance(found.get("machine"), dict)]
    named = ", ".join(f"{name} {value}" for name, value in machines[0].items()) if machines else "unknown machine"
    lines = [f"Measured on: {named}.", "", "| figure | asked | aim | reached |", "|---|---|---|---|"]
    lines += [f"| {row.what} | {row.least} | {row.aim} | {row.reached} |" for row in asked(figures)]
    lines += ["", "| limit | median | range |", "|---|---|---|"]
    for name, value in figures.get("limits", {}).items():
        if isinstance(value, dict) and "median" in value:
            lines.append(f"| {name} | {value['median']:,.4g} | {value['low']:,.4g}..{value['high']:,.4g} |")
    lines += [f"\n{name} is not whole: {found['failed']}." for name, found in figures.items() if "failed" in found]
    missing = [name for name in BENCHMARKS if name not in figures]
    if missing:
        lines += ["", f"Not measured: {', '.join(missing)}."]
    return "\n".join(lines) + "\n"


def asked(figures: Figures) -> Iterator[Asked]:
    """Every figure that was asked for, with what was reached."""
    retrieval, job = figures.get("retrieval", {}), figures.get("job", {})
    kinds = {kind: retrieval.get(f"tmall-{kind}", {}) for kind in ("gaussian", "trained")}
    search = f"exact top-100 of {TMALL:,} x 64"
    for rival, least, aim in (("onnxruntime", "35x", "46x"), ("torch", "20x", "26x")):
        names = {"onnxruntime": "ONNX Runtime Gemm, TopK fp32", "torch": "torch mm, topk fp32"}
        reached = by_kind(kinds, lambda found, rival=rival: f"{found['ratios'][f'triton vs {rival}']:.1f}x")  # type: ignore[misc]
        yield Asked(f"{search} against {names[rival]}", least, aim, reached)
    yield Asked(
        f"{search}, users/s",
        "",
        "1,500,000",
        by_kind(kinds, lambda found: f"{found['users_per_s']['triton']['median']:,.0f}"),
    )
    yield Asked(
        f"{search}, share of the GEMM in fp16", "", "", by_kind(kinds, lambda found: f"{found['share_of_gemm']:.1%}")
    )
    yield Asked(
        "the same with lists made exact on the CPU, users/s",
        "",
        "",
        by_kind(kinds, lambda found: f"{found['users_per_s']['triton and lists']['median']:,.0f}"),
    )
    onnx = {kind: figures.get("retrieval_onnx", {}).get(f"{TMALL}-{kind}", {}) for kind in kinds}
    yield Asked(
        "ONNX-only search against ONNX Runtime Gemm, TopK fp32",
        "5.5x",
        "7.5x",
        by_kind(onnx, lambda found: f"{found['ratio']:.1f}x"),
    )
    for size, least in (("tmall", "1.8x"), ("twitch", "2.4x"), ("wechat", "3x")):
        key = f"fp16_vs_plain_{size}_ipsrec-c_"
        batches = {
            f"B {name.removeprefix(key)}": ratio
            for name, ratio in figures.get("encoder", {}).items()
            if name.startswith(key)
        }
        yield Asked(
            f"encoder fp16 against the plain export in fp16, L = {SIZES[size].max_len}",
            least,
            "4x",
            by_kind(batches, lambda ratio: f"{ratio:.1f}x"),
        )
    yield Asked("Tmall job, GPU loop", "1.0 s", "0.7 s", seconds(job, "loop_s"))
    yield Asked("Tmall job, whole process, warm caches", "8 s", "4 s", seconds(job, "process_s"))
    naive = job.get("naive", {})
    yield Asked(
        "Tmall job against a first script in torch on the GPU, users/s",
        "",
        "",
        f"{naive['times_as_fast']:.1f}x" if naive else "not measured",
    )
    yield Asked("rows certified exact or searched again", "100 %", "100 %", certified(job.get("tmall", {})))
    epochs = [
        figure["epoch_s"]
        for figure in figures.get("training", {}).get("figures", [])
        if figure["size"] == "tmall" and figure["softmax"] == "triton" and "epoch_s" in figure
    ]
    yield Asked(
        "full-scan training, an epoch of Tmall's size, the fastest way",
        "10 min",
        "3 min",
        f"{min(epochs) / 60:.1f} min" if epochs else "not measured",
    )


def by_kind(found: dict[str, Any], write: Any) -> str:
    """What was reached for each kind, as "1.0x gaussian, 2.0x trained"."""
    return ", ".join(f"{write(one)} {kind}" for kind, one in found.items() if one) or "not measured"


def seconds(job: dict[str, Any], figure: str) -> str:
    """A duration of Tmall's job in each of its cases, with the range of the first."""
    parts = []
    for name, found in job.items():
        if name.startswith("tmall") and isinstance(found, dict):
            one = found[figure]
            spread = f" [{one['low']:.2f}..{one['high']:.2f}]" if name == "tmall" else ""
            parts.append(f"{one['median']:.2f} s{spread}{name.removeprefix('tmall').replace('-', ' ')}")
    return ", ".join(parts) or "not measured"


def certified(found: dict[str, Any]) -> str:
    """Shares of users that one search was enough for, that were searched for again, and that the CPU searched for."""
    counts = found.get("gpu_search")
    if counts is None:
        return "not measured"
    users, again, on_cpu = counts["users"], counts["again"], counts["on_cpu"]
    return (
        f"{users / found['users']:.2%} of the rows: {1 - again / users:.3%} certified at once, "
        f"{(again - on_cpu) / users:.3%} again, {on_cpu / users:.3%} by the CPU"
    )


if __name__ == "__main__":
    main()
