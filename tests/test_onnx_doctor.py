"""What doctor finds."""

from __future__ import annotations

from pathlib import Path

import pytest

from ipsrec_onnx.cores import usable_cores
from ipsrec_onnx.doctor import (
    CPU_WHEEL,
    GPU_WHEEL,
    cache_problems,
    cuda_problems,
    doctor,
    thread_problems,
    wheel_problems,
)

NONE = "not installed"


@pytest.mark.parametrize(
    ("cpu", "gpu", "what"),
    [("1.22", "1.22", "both installed"), (NONE, NONE, "no onnxruntime is installed"), ("1.22", NONE, None)],
)
def test_wheels_must_be_one(cpu: str, gpu: str, what: str | None) -> None:
    problems = wheel_problems({CPU_WHEEL: cpu, GPU_WHEEL: gpu})
    assert len(problems) == (what is not None)
    if what is not None:
        assert what in problems[0].what
        assert "pip" in problems[0].mend


@pytest.mark.parametrize(
    ("limits", "quota", "what"),
    [
        ({"OMP_NUM_THREADS": "64"}, None, "OMP_NUM_THREADS is 64, but only 4 cores are usable"),
        ({"NUMBA_NUM_THREADS": "many"}, None, "NUMBA_NUM_THREADS is 'many', expected a number"),
        ({}, 1.5, "quota is worth 1.5 cores, but 4 are visible"),
        ({"OMP_NUM_THREADS": "4", "OPENBLAS_NUM_THREADS": "1"}, 4.0, None),
    ],
)
def test_thread_limits_must_fit_the_cores(limits: dict[str, str], quota: float | None, what: str | None) -> None:
    problems = thread_problems(limits, cores=4, quota=quota)
    assert (
        [what] == [problem.what[problem.what.index(what) :][: len(what)] for problem in problems]
        if what
        else (problems == [])
    )


def test_cuda_needs_its_wheel_first_and_then_its_execution_provider() -> None:
    assert "onnxruntime-gpu is not installed" in cuda_problems({CPU_WHEEL: "1", GPU_WHEEL: NONE}, ["CPU"])[0].what
    problems = cuda_problems({CPU_WHEEL: NONE, GPU_WHEEL: "1"}, ["CPUExecutionProvider"])
    assert "has only ['CPUExecutionProvider']" in problems[0].what


def test_a_missing_driver_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> None:
        raise OSError(f"{name}: cannot open shared object file")

    monkeypatch.setattr("ipsrec_onnx.doctor.ctypes.CDLL", missing)
    problems = cuda_problems({CPU_WHEEL: NONE, GPU_WHEEL: "1"}, ["CUDAExecutionProvider"])
    assert problems[0].what == "the NVIDIA driver is missing: libcuda.so.1: cannot open shared object file"


def test_a_cache_that_cannot_be_written_is_a_problem(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert cache_problems(tmp_path / "not there yet") == []
    monkeypatch.setattr("ipsrec_onnx.doctor.os.access", lambda path, mode: False)
    assert "cannot write its cache" in cache_problems(tmp_path)[0].what


def test_doctor_gives_plain_data(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", str(usable_cores() + 1))
    found = doctor()
    assert found["versions"]["numba"][0].isdigit()
    assert "CPUExecutionProvider" in found["execution_providers"]
    assert found["cores"]["usable"] == usable_cores()
    assert any("OMP_NUM_THREADS" in problem["what"] for problem in found["problems"])
