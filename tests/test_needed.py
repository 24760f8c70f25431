"""Tests are skipped without what they need of the machine, and fail where IPSREC_TEST_EVERYTHING=1 asks for it."""

from __future__ import annotations

from pathlib import Path

import edge_runtimes
import onnxruntime_cpp
import pytest
from browser import need_chromium
from edge_runtimes import need_node_modules, run_node
from onnxruntime_cpp import need_onnxruntime_cpp

NEEDS = {
    "chromium is not installed": need_chromium,
    "npm packages are not installed": need_node_modules,
    "there is no Node": lambda: run_node("--version"),
}


@pytest.fixture
def bare(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A machine with nothing in its PATH, and no headers; the folder of its programs."""
    programs = tmp_path / "bin"
    programs.mkdir()
    monkeypatch.setenv("PATH", str(programs))
    monkeypatch.delenv("ONNXRUNTIME_HOME", raising=False)
    monkeypatch.setattr(onnxruntime_cpp, "HEADERS", [])
    return programs


@pytest.mark.parametrize("everything", [False, True])
@pytest.mark.parametrize("said", NEEDS)
def test_what_is_missing_skips_or_fails(
    bare: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, said: str, everything: bool
) -> None:
    monkeypatch.setenv("IPSREC_TEST_EVERYTHING", "1" if everything else "")
    monkeypatch.setattr(edge_runtimes, "NODE_MODULES", tmp_path)
    if said == "there is no Node":
        (tmp_path / "onnxruntime-web").mkdir()
    with pytest.raises((pytest.fail.Exception, pytest.skip.Exception), match=said) as raised:
        NEEDS[said]()
    assert raised.type is (pytest.fail.Exception if everything else pytest.skip.Exception)


@pytest.mark.parametrize(
    ("programs", "said", "fails"),
    [
        ([], "no C\\+\\+ compiler", False),
        (["c++"], "headers are missing", False),
        (["c++", "cmake"], "headers are missing", True),
    ],
)
def test_headers_must_be_there_only_where_cpp_can_be_built(
    bare: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, programs: list[str], said: str, fails: bool
) -> None:
    monkeypatch.setenv("IPSREC_TEST_EVERYTHING", "1")
    for name in programs:
        (bare / name).touch(mode=0o755)
    with pytest.raises((pytest.fail.Exception, pytest.skip.Exception), match=said) as raised:
        need_onnxruntime_cpp(tmp_path)
    assert raised.type is (pytest.fail.Exception if fails else pytest.skip.Exception)
