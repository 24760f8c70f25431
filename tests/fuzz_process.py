"""Runs inputs in a forked process and sees how each ends: with an outcome, by a death, or not at all."""

from __future__ import annotations

import faulthandler
import os
import resource
import select
import signal
import time
import traceback
import zlib
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from ipsrec_onnx.errors import IpsrecError

OUR_FOLDERS = ("ipsrec_onnx", "ipsrec_train", "ipsrec_kernels")
LONGEST_MESSAGE = 2_000  # characters that may still be called one readable line
_START = b"start"
_QUIET_S = 120.0  # between two inputs nothing takes longer than this

Run = Callable[[bytes], None]
Work = Callable[[Run], None]


@dataclass(frozen=True)
class Limits:
    """What one input may cost.

    Attributes:
        input_s: seconds.
        memory_mib: growth of the process; twice as much, and allocations fail.
    """

    input_s: float = 10.0
    memory_mib: int = 512


@dataclass
class Report:
    """What came of a target.

    Attributes:
        target: its name.
        outcomes: inputs by kind: "result", "refused", or the kind of a finding.
        findings: what is wrong -> the file that repeats it, and how often it was met.
        seconds: of it all.
    """

    target: str
    outcomes: Counter[str] = field(default_factory=Counter)
    findings: dict[str, tuple[str, int]] = field(default_factory=dict)
    seconds: float = 0.0

    @property
    def inputs(self) -> int:
        """Inputs tried."""
        return self.outcomes.total()

    def note(self, kind: str, wrong: str, file: Path) -> None:
        """Count a finding."""
        _, count = self.findings.get(wrong, ("", 0))
        self.findings[wrong] = (str(file), count + 1)


def outcome_of(run: Run, data: bytes, *, memory_mib: int) -> tuple[str, str, str]:
    """Run one input.

    Returns:
        kind: "result", "refused", or what kind of finding.
        wrong: the finding in one line, the same for the same defect; empty for the two others.
        words: the whole traceback.
    """
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    kind, wrong, words = "result", "", ""
    try:
        run(data)
    except IpsrecError as error:
        kind = "refused"
        message = " ".join(str(error).split())
        if not message or len(message) > LONGEST_MESSAGE:
            kind, wrong, words = "unreadable", f"a message of {len(message)} characters: {message[:60]}", message
    except BaseException as error:  # every kind is a finding
        frames = traceback.extract_tb(error.__traceback__)
        ours = [frame for frame in frames if any(f"/{folder}/" in frame.filename for folder in OUR_FOLDERS)]
        place = (ours or frames)[-1]
        kind = "wrong result" if isinstance(error, AssertionError) else "other exception"
        said = str(error) if isinstance(error, AssertionError) else ""
        wrong = (
            f"{type(error).__name__} at {Path(place.filename).name}, {place.name}, line {place.lineno} {said}".strip()
        )
        words = "".join(traceback.format_exception(error))
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024
    if not wrong and grown > memory_mib:
        kind, wrong, words = "memory", "memory grew beyond the bound", f"by {grown} MiB"
    return kind, " ".join(wrong.split()), words


def keep_finding(folder: Path, target: str, wrong: str, *, words: str, data: bytes) -> Path:
    """Write the input of a finding, and beside it what was said; the first of several stays."""
    file = folder / f"{target}-{zlib.crc32(wrong.encode()):08x}.bin"
    if not file.exists():
        file.with_suffix(".txt").write_text(f"{wrong}\n\n{words}\n", encoding="utf-8")
        file.write_bytes(data)
    return file


def run_forked(work: Work, run: Run, report: Report, *, scratch: Path, findings: Path, limits: Limits) -> int:
    """Do some work, a run for each input, in a process of its own; note all outcomes.

    Args:
        work: makes the inputs and calls what it is given for each.
        run: reads one input.
        report: to note in.
        scratch: a folder that the target does not look into.
        findings: where the inputs of findings are kept.
        limits: of one input.

    Returns:
        How many inputs were tried.
    """
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reader)
        _live(work, run, writer, report.target, scratch=scratch, findings=findings, limits=limits)
    os.close(writer)
    tried, buffer, running, hangs = 0, b"", False, False
    while True:
        ready, _, _ = select.select([reader], [], [], limits.input_s if running else _QUIET_S)
        if not ready:
            hangs = True
            os.kill(child, signal.SIGKILL)
            break
        block = os.read(reader, 1 << 16)
        if not block:
            break
        *lines, buffer = (buffer + block).split(b"\n")
        for line in lines:
            running = line == _START
            if running:
                tried += 1
                continue
            kind, wrong, file = line.decode("utf-8", errors="replace").split("\t")
            report.outcomes[kind] += 1
            if wrong:
                report.note(kind, wrong, Path(file))
    os.close(reader)
    _, status = os.waitpid(child, 0)
    words = _said(scratch)
    if not tried:
        raise RuntimeError(f"the process ended before its first input: {words[-1000:]}")
    if running:  # libFuzzer's way to end a process is no input's fault
        kind = "hang" if hangs else "death"
        signal_name = signal.Signals(os.WTERMSIG(status)).name if os.WIFSIGNALED(status) else ""
        how = "" if hangs else f" by {signal_name or f'exit code {os.WEXITSTATUS(status)}'}"
        frame = next((line.strip() for line in words.splitlines() if line.strip().startswith("File ")), "")
        wrong = f"{kind}{how} in {frame}"
        report.outcomes[kind] += 1
        data = (scratch / "current").read_bytes() if (scratch / "current").exists() else b""
        report.note(kind, wrong, keep_finding(findings, report.target, wrong, words=words, data=data))
    return tried


def _said(scratch: Path) -> str:
    path = scratch / "said"
    return path.read_text(encoding="utf-8", errors="replace") if path.exists() else ""


def _live(work: Work, run: Run, writer: int, target: str, *, scratch: Path, findings: Path, limits: Limits) -> None:
    """The life of a forked process; does not return."""
    try:
        with (scratch / "said").open("w") as file:
            os.dup2(file.fileno(), 1)
            os.dup2(file.fileno(), 2)
        faulthandler.enable()
        pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0])
        room = pages * resource.getpagesize() + 2 * limits.memory_mib * 2**20
        resource.setrlimit(resource.RLIMIT_AS, (room, room))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))

        def run_one(data: bytes) -> None:
            (scratch / "current").write_bytes(data)
            faulthandler.dump_traceback_later(0.9 * limits.input_s)  # says where a hang is
            os.write(writer, _START + b"\n")
            kind, wrong, words = outcome_of(run, data, memory_mib=limits.memory_mib)
            faulthandler.cancel_dump_traceback_later()
            kept = keep_finding(findings, target, wrong, words=words, data=data) if wrong else ""
            os.write(writer, f"{kind}\t{wrong}\t{kept}\n".encode())

        work(run_one)
    except BaseException:  # the parent sees a death, and what was said
        traceback.print_exc()
        os._exit(70)
    os._exit(0)


def deadline(seconds: float) -> Callable[[], bool]:
    """Says whether so many seconds have gone."""
    stop = time.monotonic() + seconds
    return lambda: time.monotonic() > stop
