"""The benchmarks of the edge file prove themselves on tiny catalogs: every way gives the same lists, or they say so."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from needed import skip_without
from training_data import make_run

from ipsrec_export.export import export

ROOT = Path(__file__).resolve().parents[1]
FOLDERS = [".", "kernels", "gpu", "train", "export", "experiment", "cli"]


def _run(name: str, *options: str, tiny: bool = True) -> dict[str, Any]:
    path = os.pathsep.join(str(ROOT / folder) for folder in FOLDERS)
    done = subprocess.run(
        [sys.executable, str(ROOT / "benchmarks" / name), *(["--tiny"] if tiny else []), *options],
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    figures: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return figures


def test_a_search_takes_fewer_bytes_than_label_encoder() -> None:
    found = _run("bench_edge_lookup.py")["300"]
    assert {"label_python", "search_python"} <= set(found)
    for figures in found.values():
        assert 0 < figures["p50_ms"] <= figures["p95_ms"] <= figures["p99_ms"]
        assert figures["load_ms"] > 0
    if not {"label_node", "search_node"} <= set(found):
        skip_without("Node or ONNX Runtime for Node is not installed (make javascript): Python alone was timed")


@pytest.mark.slow
def test_every_precision_runs_and_fp32_gives_the_lists_of_torch(tmp_path: Path) -> None:
    found = _run("bench_edge.py", "--ways", "python", "node", "--markdown", str(tmp_path / "edge.md"))["600"]
    sizes = [found[precision]["file_bytes"] for precision in ("int8", "fp16", "fp32")]
    assert sizes == sorted(sizes)
    assert found["fp32"]["python"]["overlap"] >= 0.999
    assert found["int8"]["python"]["overlap"] > 0.9
    assert found["torch"]["vs_torch"] == found["torch-kept"]["vs_torch_kept"] == 1
    page = (tmp_path / "edge.md").read_text(encoding="utf-8")
    ways = {"python", "node"} & set(found["fp32"])
    assert page.count("| 600 |") == 3 * len(ways) + 2  # and PyTorch
    if "node" not in ways:
        skip_without("Node or ONNX Runtime for Node is not installed (make javascript): Python alone was timed")


def test_rounding_for_users_keeps_scores_and_lists_better(tmp_path: Path) -> None:
    model = tmp_path / "model.onnx"
    export(make_run(tmp_path), model)
    found = _run("bench_edge_rounding.py", "--model", str(model), "--dataset", str(tmp_path / "dataset"), tiny=False)
    nearest, for_users = found["nearest"], found["for users"]
    assert found["users"] > 0 and 0 < for_users["score_error"] < nearest["score_error"]
    assert 0 < for_users["top_10"] <= 1 and 0 < nearest["top_100"] <= 1
