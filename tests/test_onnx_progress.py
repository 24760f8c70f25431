"""Progress goes to stderr: lines in a log, a bar in a terminal, nothing when it is not wanted."""

from __future__ import annotations

import re
import sys

import pytest

from ipsrec_onnx.progress import show_progress


def test_a_log_gets_plain_lines(capsys: pytest.CaptureFixture[str]) -> None:
    with show_progress(3_000, what="users", show=True) as advance:
        advance(1_000)
        advance(2_000)
    out, err = capsys.readouterr()
    assert out == ""
    assert re.fullmatch(r"3,000 of 3,000 users, [\d,]+ users/s, 0:00:00 left\n", err)


def test_a_terminal_gets_a_bar(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    with show_progress(10, what="users", show=True) as advance:
        advance(10)
    out, err = capsys.readouterr()
    assert out == ""
    assert "10 of 10" in err and "users/s" in err


def test_quiet_is_silent(capsys: pytest.CaptureFixture[str]) -> None:
    with show_progress(10, what="users", show=False) as advance:
        advance(10)
    assert capsys.readouterr() == ("", "")
