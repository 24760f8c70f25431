"""What doctor finds."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from model_files import write_model_file

from ipsrec_onnx import session
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
from ipsrec_onnx.errors import IpsrecError

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
        ({"OMP_NUM_THREADS": "²"}, None, "OMP_NUM_THREADS is '²', expected a number"),
        ({"OMP_NUM_THREADS": "9" * 5000}, None, "expected a number"),
        ({"OMP_NUM_THREADS": "4,0"}, None, "OMP_NUM_THREADS is '4,0', expected a number"),
        ({"OMP_NUM_THREADS": ""}, None, "OMP_NUM_THREADS is '', expected a number"),
        ({"NUMBA_NUM_THREADS": "4,2"}, None, "NUMBA_NUM_THREADS is '4,2', expected a number"),
        ({"OMP_NUM_THREADS": "8,2"}, None, "OMP_NUM_THREADS is 8,2, but only 4 cores are usable"),
        ({"OMP_NUM_THREADS": " 4, 2"}, None, None),
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


@pytest.fixture
def leftover(tmp_path: Path) -> dict[str, str]:
    """An environment whose onnxruntime is a folder without modules: what removing one of two wheels leaves."""
    (tmp_path / "onnxruntime" / "capi").mkdir(parents=True)
    finder = (
        "import sys, importlib.machinery as m\n"
        "class Leftover:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name != 'onnxruntime': return None\n"
        "        spec = m.ModuleSpec(name, None, is_package=True)\n"
        f"        spec.submodule_search_locations = [{str(tmp_path / 'onnxruntime')!r}]\n"
        "        return spec\n"
        "sys.meta_path.insert(0, Leftover())\n"
    )
    (tmp_path / "sitecustomize.py").write_text(finder, encoding="utf-8")
    paths = os.pathsep.join([str(tmp_path), *(path for path in sys.path if path)])
    return {**os.environ, "PYTHONPATH": paths}


def test_a_folder_that_is_left_of_onnxruntime_is_named(leftover: dict[str, str], tmp_path: Path) -> None:
    def ipsrec(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-c", "from ipsrec_cli.main import main; main()", *arguments]
        return subprocess.run(command, env=leftover, capture_output=True, text=True)

    for device in ((), ("--device", "cuda")):
        examined = ipsrec("doctor", "--json", *device)
        assert examined.returncode == 1, examined.stderr
        (problem,) = [p for p in json.loads(examined.stdout)["problems"] if "not whole" in p["what"]]
        assert str(tmp_path / "onnxruntime") in problem["what"]
        assert problem["mend"].startswith(
            "pip uninstall -y onnxruntime onnxruntime-gpu && pip install -c constraints.txt '.["
        )
    refused = ipsrec("inspect", str(write_model_file(tmp_path / "model.onnx").path))
    assert refused.returncode == 1
    assert refused.stderr.startswith("ipsrec: the onnxruntime at ") and refused.stderr.count("\n") == 1


@pytest.mark.filterwarnings("ignore:Specified provider 'CUDAExecutionProvider' is not in")
def test_what_onnxruntime_prints_keeps_out_of_stdout(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    def preload(directory: str) -> None:
        print("Failed to load libcublasLt.so.12")

    monkeypatch.setattr(session.onnxruntime, "preload_dlls", preload, raising=False)
    monkeypatch.setattr(session, "available_execution_providers", lambda: ["CUDAExecutionProvider"])
    with pytest.raises(IpsrecError):
        session.open_session(tmp_path / "no model", device="cuda")
    out, err = capfd.readouterr()
    assert out == ""
    assert "Failed to load libcublasLt.so.12" in err


def test_doctor_gives_plain_data(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", str(usable_cores() + 1))
    found = doctor()
    assert found["versions"]["numba"][0].isdigit()
    assert "CPUExecutionProvider" in found["execution_providers"]
    assert found["cores"]["usable"] == usable_cores()
    assert any("OMP_NUM_THREADS" in problem["what"] for problem in found["problems"])
