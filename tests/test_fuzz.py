"""The fuzzer for some seconds, what it found once, and that it finds what is wrong; longer by hand: docs/fuzzing.md."""

from __future__ import annotations

import os
import random
import signal
import time
from pathlib import Path

import fuzz
import pytest
from fuzz_process import Limits, Report, Run, run_forked

from ipsrec_onnx.errors import DataError

CASES = sorted((Path(__file__).parent / "fuzz_cases").glob("*.bin"))


@pytest.mark.parametrize("target", fuzz.TARGETS)
def test_spoilt_bytes_give_a_right_result_or_one_error(tmp_path: Path, target: str) -> None:
    report = fuzz.fuzz(target, seconds=4, seed=1, findings=tmp_path, limits=Limits())
    assert report.findings == {}
    assert {"refused", "result"} <= set(report.outcomes)


@pytest.mark.parametrize("target", sorted({case.name.partition("-")[0] for case in CASES}))
def test_what_was_found_once_is_a_right_result_or_one_error_now(tmp_path: Path, target: str) -> None:
    cases = [case for case in CASES if case.name.startswith(f"{target}-")]
    folders = [tmp_path / name for name in ("target", "scratch", "findings")]
    for folder in folders:
        folder.mkdir()
    warm = fuzz.warm_target(target, folders[0])

    def work(run: Run) -> None:
        for case in cases:
            run(case.read_bytes())

    report = Report(target)
    run_forked(work, warm.run, report, scratch=folders[1], findings=folders[2], limits=Limits())
    assert report.findings == {}
    assert report.outcomes["refused"] + report.outcomes["result"] == len(cases)


def _refuse(data: bytes) -> None:
    raise DataError("users.parquet: it is broken; write it again")


def _fail(data: bytes) -> None:
    raise KeyError("item_id")


def _lie(data: bytes) -> None:
    raise AssertionError("rows are lost")


def _die(data: bytes) -> None:
    os.kill(os.getpid(), signal.SIGSEGV)


def _hang(data: bytes) -> None:
    time.sleep(60)


def _swell(data: bytes) -> None:
    _ = b"?" * (70 << 20)


def _exhaust(data: bytes) -> None:
    bytearray(1 << 34)


def _ramble(data: bytes) -> None:
    raise DataError("?" * 5_000)


@pytest.mark.parametrize(
    ("run", "kind"),
    [
        (_refuse, "refused"),
        (_fail, "other exception"),
        (_lie, "wrong result"),
        (_die, "death"),
        (_hang, "hang"),
        (_swell, "memory"),
        (_exhaust, "other exception"),
        (_ramble, "unreadable"),
    ],
)
def test_every_kind_of_end_is_seen(tmp_path: Path, run: Run, kind: str) -> None:
    report = Report("any")
    (tmp_path / "findings").mkdir()
    limits = Limits(input_s=1.0, memory_mib=50)
    tried = run_forked(
        lambda one: one(b"bad"), run, report, scratch=tmp_path, findings=tmp_path / "findings", limits=limits
    )
    assert (tried, dict(report.outcomes)) == (1, {kind: 1})
    assert [Path(file).read_bytes() for file, _ in report.findings.values()] == ([] if kind == "refused" else [b"bad"])


def test_an_input_depends_on_the_seed_and_its_number_alone(tmp_path: Path) -> None:
    target = fuzz.warm_target("items", tmp_path)
    first, again, other = (target.make(random.Random(f"{seed}/items/7")) for seed in (1, 1, 2))
    assert first == again != other
