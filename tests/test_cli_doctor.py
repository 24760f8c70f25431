"""`ipsrec doctor`."""

from __future__ import annotations

import json

import onnxruntime
import pytest
from test_cli_score import run


def test_doctor_shows_the_machine(capsys: pytest.CaptureFixture[str]) -> None:
    code = run("doctor")
    out = capsys.readouterr().out
    assert "CPUExecutionProvider" in out
    assert code == ("nothing wrong found" not in out)
    assert run("doctor", "--json") == code
    assert bool(json.loads(capsys.readouterr().out)["problems"]) == bool(code)


def test_doctor_ends_with_1_and_a_mend_for_a_problem(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "100000")
    assert run("doctor") == 1
    out = capsys.readouterr().out
    assert "problem: OMP_NUM_THREADS is 100000" in out and "mend it: export OMP_NUM_THREADS=" in out


def test_doctor_says_why_cuda_is_not_there(capsys: pytest.CaptureFixture[str]) -> None:
    if "CUDAExecutionProvider" in onnxruntime.get_available_providers():
        pytest.skip("this onnxruntime has CUDA")
    assert run("doctor", "--device", "cuda", "--json") == 1
    problems = json.loads(capsys.readouterr().out)["problems"]
    assert any("onnxruntime-gpu is not installed" in problem["what"] for problem in problems)
    assert run("doctor", "--device", "cuda") == 1
    assert "not triton: torch" in capsys.readouterr().out
