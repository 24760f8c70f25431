"""Throws spoilt bytes at everything that reads files, and says what came of it.

    python tests/fuzz.py --seconds 60 --target parquet     one target, or several; all without --target
    python tests/fuzz.py --target parquet --repeat FILE    the one input of a finding again, in this process

Two outcomes are allowed: a result that is right, as far as fuzz_targets.py can tell, or one IpsrecError. All else is a
finding: another exception, a process that dies, an input that takes longer than --input-s, memory that grows by more
than --memory-mib. Input number n of a target depends on --seed and n alone. With --engine atheris (the extra `fuzz`)
libFuzzer mutates, too, and goes on from inputs that reach new lines of ours.

Exit code: 0 without findings, 1 with some. The last line of stdout is one JSON object.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / name) for name in (".", "kernels", "train", "export", "experiment", "cli", "tests")]

if TYPE_CHECKING:
    from fuzz_process import Limits, Report, Work
    from fuzz_targets import Target

BATCH = 300  # inputs of one process: what leaks is gone with it
TARGETS = ("parquet", "model", "items", "dataset", "job", "checkpoint", "config")


def fuzz(
    name: str,
    *,
    seconds: float,
    seed: int,
    findings: Path,
    limits: Limits,
    inputs: int | None = None,
    engine: str = "mutations",
) -> Report:
    """Run one target for some seconds, or so many inputs, whichever ends first."""
    from fuzz_process import Report, deadline, run_forked

    report, number = Report(name), 0
    findings.mkdir(parents=True, exist_ok=True)
    with _folder() as folder, _folder() as scratch:
        target = warm_target(name, folder)
        good = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
        started, over = time.monotonic(), deadline(seconds)
        while not over() and (inputs is None or number < inputs):
            batch = BATCH if inputs is None else min(BATCH, inputs - number)
            left = started + seconds - time.monotonic()
            if engine == "atheris":
                work = _coverage_guided(
                    target, corpus=scratch / "corpus", seed=seed + number, batch=batch, seconds=left
                )
            else:
                work = _mutations(name, target, seed=seed, numbers=range(number, number + batch), seconds=left)
            number += run_forked(work, target.run, report, scratch=scratch, findings=findings, limits=limits)
            _restore(folder, good)
        report.seconds = time.monotonic() - started
    return report


def warm_target(name: str, folder: Path) -> Target:
    """A target whose good inputs were read once: a fork then finds every kernel compiled."""
    import fuzz_targets

    from ipsrec_onnx.errors import IpsrecError

    target = fuzz_targets.TARGETS[name](folder)
    for data in target.seeds:
        with contextlib.suppress(IpsrecError):
            target.run(data)
    return target


@contextlib.contextmanager
def _folder() -> Iterator[Path]:
    """A temporary folder, in memory where there is one: a job syncs every file."""
    memory = Path("/dev/shm")  # noqa: S108
    with tempfile.TemporaryDirectory(prefix="fuzz-", dir=memory if os.access(memory, os.W_OK) else None) as folder:
        yield Path(folder)


def _restore(folder: Path, good: dict[Path, bytes]) -> None:
    """Bring a folder back to what it was, after a process that may have died in the middle."""
    for entry in folder.iterdir():
        shutil.rmtree(entry) if entry.is_dir() else entry.unlink()
    for path, content in good.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)


def _mutations(name: str, target: Target, *, seed: int, numbers: range, seconds: float) -> Work:
    from fuzz_process import Run, deadline

    def work(run: Run) -> None:
        over = deadline(seconds)
        for number in numbers:
            run(target.make(random.Random(f"{seed}/{name}/{number}")))
            if over():
                return

    return work


def _coverage_guided(target: Target, *, corpus: Path, seed: int, batch: int, seconds: float) -> Work:
    """libFuzzer goes on from what reaches new lines, and keeps it in the corpus; half of its mutations are ours."""
    from fuzz_process import Run

    if not corpus.exists():
        corpus.mkdir()
        for number, data in enumerate(target.seeds):
            (corpus / f"seed-{number}").write_bytes(data)

    def mutate(data: bytes, max_size: int, number: int) -> bytes:
        import atheris

        rng = random.Random(number)
        if data and rng.random() < 0.5:
            return target.spoil(bytes(data), rng)[:max_size]
        return bytes(atheris.Mutate(data, max_size))

    def work(run: Run) -> None:
        import atheris

        runs, time_s = f"-runs={batch + len(list(corpus.iterdir()))}", f"-max_total_time={max(1, int(seconds))}"
        flags = [
            runs,
            time_s,
            f"-seed={seed % 2**31 or 1}",
            "-max_len=65536",
            "-timeout=1000",
            "-rss_limit_mb=0",
            f"-artifact_prefix={corpus.parent}/",
        ]
        atheris.Setup([sys.argv[0], *flags, str(corpus)], run, custom_mutator=mutate)
        atheris.Fuzz()

    return work


def show(report: Report) -> None:
    """Print what came of a target."""
    kinds = ", ".join(f"{kind} {number:,}" for kind, number in sorted(report.outcomes.items()))
    print(f"{report.target}: {report.inputs:,} inputs in {report.seconds:.0f} s: {kinds}", flush=True)
    for wrong, (file, times) in report.findings.items():
        print(f"  FINDING, {times} times: {wrong}\n    {file}", flush=True)


def repeat(name: str, file: Path) -> None:
    """Run one input here, so that its traceback is seen."""
    with _folder() as folder:
        warm_target(name, folder).run(file.read_bytes())


def main() -> int:
    """Run the targets that are asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--target", action="append", choices=TARGETS, help="several may be given; all by default")
    parser.add_argument("--seconds", type=float, default=60.0, help="of each target")
    parser.add_argument("--inputs", type=int, help="of each target at most")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--engine", choices=("mutations", "atheris"), default="mutations")
    parser.add_argument("--input-s", type=float, default=10.0, help="seconds of one input at most")
    parser.add_argument("--memory-mib", type=int, default=512, help="memory of one input at most")
    parser.add_argument("--findings", type=Path, default=Path("fuzz-findings"), help="folder for inputs of findings")
    parser.add_argument("--repeat", type=Path, help="an input of the target to run once, in this process")
    options = parser.parse_args()
    if options.repeat is not None:
        repeat((options.target or parser.error("--repeat needs --target"))[0], options.repeat)
        return 0
    if options.engine == "atheris":
        import atheris

        with atheris.instrument_imports(include=["ipsrec_onnx", "ipsrec_train"]):
            import fuzz_targets  # noqa: F401
    from fuzz_process import Limits

    reports = []
    for name in options.target or TARGETS:
        report = fuzz(
            name,
            seconds=options.seconds,
            seed=options.seed,
            findings=options.findings,
            limits=Limits(options.input_s, options.memory_mib),
            inputs=options.inputs,
            engine=options.engine,
        )
        show(report)
        reports.append(report)
    found = sum(len(report.findings) for report in reports)
    outcomes = {report.target: dict(sorted(report.outcomes.items())) for report in reports}
    print(json.dumps({"inputs": sum(report.inputs for report in reports), "outcomes": outcomes, "findings": found}))
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
