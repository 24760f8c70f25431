"""The benchmarks of the GPU on a machine without one: they run, lose nothing, and say what is missing."""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
COPY = {"median": 3, "low": 2, "high": 4}
FOLDERS = [".", "kernels", "gpu", "train", "export", "experiment", "cli"]


@pytest.fixture
def gpu_all(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "benchmarks")  # where a script finds its neighbours
    return importlib.import_module("gpu_all")


@pytest.fixture
def scripts(gpu_all, monkeypatch, tmp_path):
    """Benchmarks of one line each in the place of the real ones: name -> that line, and minutes that it may take."""

    def write(lines: dict[str, tuple[str, float]]) -> None:
        benchmarks = {}
        for name, (line, minutes) in lines.items():
            (tmp_path / f"{name}.py").write_text(line, encoding="utf-8")
            benchmarks[name] = gpu_all.Benchmark(f"{name}.py", minutes, [], [])
        monkeypatch.setattr(gpu_all, "HERE", tmp_path)
        monkeypatch.setattr(gpu_all, "BENCHMARKS", benchmarks)

    return write


def run(gpu_all, monkeypatch, folder, *options):
    """Run it in this process; gives its exit code."""
    monkeypatch.setattr(sys, "argv", ["gpu_all", "--folder", str(folder), "--output", str(folder / "out"), *options])
    monkeypatch.setattr(gpu_all.signal, "signal", lambda *_: None)
    with pytest.raises(SystemExit) as ended:
        gpu_all.main()
    return ended.value.code


def test_one_that_fails_is_passed_over_and_named(gpu_all, scripts, monkeypatch, tmp_path, capsys):
    scripts({
        "broken": ("raise SystemExit('no card')", 1),
        "silent": ("print('nothing to say')", 1),
        "limits": (f"print({json.dumps({'machine': {'card': 'H100'}, 'copy': COPY})!r})", 1),
    })  # fmt: skip
    assert run(gpu_all, monkeypatch, tmp_path, "--only", "broken,silent,limits") == 1
    error = capsys.readouterr().err
    assert "broken failed: exit code 1: no card" in error
    assert "silent failed: it printed no line of JSON" in error
    assert "limits" not in error
    page = (tmp_path / "out" / "gpu.md").read_text(encoding="utf-8")
    assert "card H100" in page
    assert "| copy | 3 | 2..4 |" in page
    assert "Not measured: broken, silent." in page


def test_a_script_that_is_not_there_is_a_failure(gpu_all, scripts, monkeypatch, tmp_path, capsys):
    scripts({"encoder": ("", 1)})
    (tmp_path / "encoder.py").unlink()
    assert run(gpu_all, monkeypatch, tmp_path) == 1
    assert "encoder.py is not there" in capsys.readouterr().err


def test_one_that_takes_too_long_is_ended_with_its_children_and_its_output_kept(
    gpu_all, scripts, monkeypatch, tmp_path, capsys
):
    script = (
        "import pathlib, subprocess, sys, time\n"
        "child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)'])\n"
        f"pathlib.Path({str(tmp_path / 'child')!r}).write_text(str(child.pid))\n"
        f"print({json.dumps({'copy': COPY})!r}, flush=True); print('half done'); time.sleep(600)"
    )
    scripts({"limits": (script, 2 / 60), "job": ("print('{}')", 1)})
    assert run(gpu_all, monkeypatch, tmp_path) == 1
    assert "limits failed: it was not done after 2 s" in capsys.readouterr().err
    assert (tmp_path / "out" / "limits.txt").read_text(encoding="utf-8").endswith("half done\n")
    assert (tmp_path / "out" / "job.json").is_file()
    page = (tmp_path / "out" / "gpu.md").read_text(encoding="utf-8")
    assert "| copy | 3 | 2..4 |" in page
    assert "limits is not whole: it was not done after 2 s." in page
    child = int((tmp_path / "child").read_text())
    for _ in range(50):  # init may take a moment to reap it
        if not is_running(child):
            return
        time.sleep(0.1)
    raise AssertionError("the child still runs")


def is_running(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    state = Path(f"/proc/{process}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[0]
    return state != "Z"


def test_no_time_left_is_a_failure_and_figures_of_another_run_stay(gpu_all, scripts, monkeypatch, tmp_path):
    scripts({"limits": ('print(\'{"copy": {"median": 3, "low": 2, "high": 4}}\')', 1), "job": ("print('{}')", 1)})
    assert run(gpu_all, monkeypatch, tmp_path, "--only", "limits") == 0
    assert run(gpu_all, monkeypatch, tmp_path, "--only", "job", "--minutes", "0") == 1
    assert "| copy | 3 | 2..4 |" in (tmp_path / "out" / "gpu.md").read_text(encoding="utf-8")


def test_an_unknown_name_is_refused(gpu_all, monkeypatch, tmp_path, capsys):
    assert run(gpu_all, monkeypatch, tmp_path, "--only", "limits,speed") == 2
    assert "there is no speed; expected some of limits,prepare,retrieval,job," in capsys.readouterr().err


def test_the_table_has_a_row_for_each_figure_whatever_was_measured(gpu_all):
    empty = gpu_all.markdown({})
    assert empty.count("| not measured |") == 14
    samples = {"median": 0.9, "low": 0.8, "high": 1.0}
    job = {"users": 100, "loop_s": samples, "process_s": samples}
    counts = {"search": "triton", "users": 100, "again": 3, "on_cpu": 1}
    figures = {
        "job": {"tmall": {**job, "gpu_search": counts}, "tmall-onnx": job, "naive": {"times_as_fast": 12.3}},
        "encoder": {"fp16_vs_plain_tmall_ipsrec-c_4096": 3.14},
        "retrieval_onnx": {"1144125-trained": {"ratio": 6.2}},
        "training": {
            "figures": [
                {"size": "tmall", "softmax": "triton", "epoch_s": 240.0},
                {"size": "tmall", "softmax": "triton", "out_of_memory": True},
                {"size": "tmall", "softmax": "operators", "epoch_s": 60.0},
            ]
        },
    }
    page = gpu_all.markdown(figures)
    assert "| 1.0 s | 0.7 s | 0.90 s [0.80..1.00], 0.90 s onnx |" in page
    assert "100.00% of the rows: 97.000% certified at once, 2.000% again, 1.000% by the CPU" in page
    assert "| 1.8x | 4x | 3.1x B 4096 |" in page
    assert "| 5.5x | 7.5x | 6.2x trained |" in page
    assert "| 10 min | 3 min | 4.0 min |" in page
    assert "Not measured: limits, prepare, retrieval." in page


@pytest.mark.slow
def test_limits_and_search_are_measured_without_a_gpu(tmp_path):
    command = [sys.executable, str(ROOT / "benchmarks" / "gpu_all.py"), "--folder", str(tmp_path)]
    command += ["--output", str(tmp_path / "out"), "--device", "cpu", "--tiny", "--only", "limits,retrieval"]
    path = os.pathsep.join(str(ROOT / folder) for folder in FOLDERS)
    done = subprocess.run(
        command, env={**os.environ, "PYTHONPATH": path}, capture_output=True, text=True, timeout=600, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    limits = json.loads((tmp_path / "out" / "limits.json").read_text(encoding="utf-8"))
    assert limits["gemm_fp16_tflop_per_s"]["median"] > 0
    retrieval = json.loads((tmp_path / "out" / "retrieval.json").read_text(encoding="utf-8"))
    for kind in ("gaussian", "trained"):
        found = retrieval[f"tmall-{kind}"]
        assert set(found["users_per_s"]) == {"triton", "triton and lists", "onnx", "rival torch", "rival onnxruntime"}
        assert sum(found["shares"]["onnx"][what] for what in ("certain", "again")) == pytest.approx(1)
        assert {"threshold", "scan", "best groups", "items of the groups"} <= set(found["parts"])
    page = (tmp_path / "out" / "gpu.md").read_text(encoding="utf-8")
    assert "gemm_fp16_tflop_per_s" in page
    assert "a CPU stands in" in page


@pytest.mark.slow
def test_a_job_is_measured_without_a_gpu(tmp_path):
    command = [sys.executable, str(ROOT / "benchmarks" / "gpu_job.py"), "--folder", str(tmp_path), "--tiny"]
    command += ["--device", "cpu", "--cases", "tmall-onnx", "--runs", "1", "--naive-users", "0"]
    path = os.pathsep.join(str(ROOT / folder) for folder in FOLDERS)
    done = subprocess.run(
        command, env={**os.environ, "PYTHONPATH": path}, capture_output=True, text=True, timeout=600, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads(done.stdout.splitlines()[-1])["tmall-onnx"]
    assert found["gpu_search"]["search"] == "onnx"
    assert found["gpu_search"]["users"] == found["users"] > 0
    assert found["loop_s"]["median"] > 0
