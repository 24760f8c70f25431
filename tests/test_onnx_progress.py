"""Progress goes to stderr: lines in a log, a bar in a terminal, JSON for machines, nothing when it is not wanted."""

from __future__ import annotations

import json
import re
import sys

import pytest

from ipsrec_onnx import progress
from ipsrec_onnx.progress import JobLog
from ipsrec_onnx.stage_times import StageTimes


@pytest.fixture
def times() -> StageTimes:
    times = StageTimes()
    times.cpu_s.update(read=0.02, encode=0.38, retrieve=0.6)
    return times


def test_a_log_gets_plain_lines(capsys: pytest.CaptureFixture[str]) -> None:
    with JobLog(show=True).progress(3_000, what="users") as advance:
        advance(1_000)
        advance(2_000)
    out, err = capsys.readouterr()
    assert out == ""
    assert re.fullmatch(r"3,000 of 3,000 users, [\d,]+ users/s, 0:00:00 left\n", err)


def test_a_log_gets_a_line_every_few_seconds_with_the_stage_that_takes_most(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, times: StageTimes
) -> None:
    clock = iter([0.0, 5.0, 11.0, 11.0, 12.0, 23.0, 23.0])
    now = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    with JobLog(show=True).progress(1_000, what="users", times=times) as advance:
        for now[0] in clock:
            advance(10)
    assert capsys.readouterr().err.splitlines() == [
        "30 of 1,000 users, 3 users/s, 0:05:56 left, most time in retrieve (60%)",
        "60 of 1,000 users, 3 users/s, 0:06:00 left, most time in retrieve (60%)",
    ]


@pytest.mark.parametrize("as_json", [False, True])
def test_users_of_an_earlier_run_spoil_neither_speed_nor_time_left(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, as_json: bool
) -> None:
    now = [100.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    with JobLog(show=True, as_json=as_json).progress(1_000_000, what="users", already=900_000) as advance:
        now[0] += 20
        advance(2_000)
    err = capsys.readouterr().err
    if as_json:
        event = json.loads(err)
        assert (event["done"], event["per_s"], event["left_s"]) == (902_000, 100.0, 980.0)
    else:
        assert err == "902,000 of 1,000,000 users, 100 users/s, 0:16:20 left\n"


def test_a_terminal_gets_a_bar(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, times: StageTimes
) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    monkeypatch.setenv("COLUMNS", "160")
    with JobLog(show=True).progress(10, what="users", times=times) as advance:
        advance(10)
    out, err = capsys.readouterr()
    assert out == ""
    assert "10 of 10" in err and "users/s" in err and "retrieve 60% encode 38%" in err


@pytest.mark.parametrize("as_json", [False, True])
def test_quiet_is_silent(capsys: pytest.CaptureFixture[str], as_json: bool) -> None:
    log = JobLog(show=False, as_json=as_json)
    log.note("a word")
    log.event("job_begun", rows=10)
    with log.progress(10, what="users") as advance:
        advance(10)
    assert capsys.readouterr() == ("", "")
