"""The programs that inspect shows run as they are, and print the list that ONNX Runtime gives."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from model_files import write_model_file
from needed import skip_without
from onnxruntime_cpp import need_onnxruntime_cpp

from ipsrec_export.edge_graph import EdgeRules, build_edge_graph
from ipsrec_onnx import Scorer
from ipsrec_onnx.model_file import open_model_file
from ipsrec_onnx.snippets import edge_snippets, server_snippets

ROOT = Path(__file__).resolve().parents[1]
TOP_K = 7
Lines = list[tuple[str, float]]


@pytest.fixture(params=["int64", "string", "switch"])
def edge(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Path, list[dict[str, Any]], list[Any], Lines]:
    """An edge file with a name that must be quoted: its inputs, a history, and the list that it gives."""
    model = write_model_file(tmp_path / "m.onnx", string_ids=request.param == "string")
    opened = open_model_file(model.path)
    rules = EdgeRules(top_k=TOP_K, provider_switch=request.param == "switch")
    proto = build_edge_graph(
        onnx.load(model.path), opened.catalog, opened.history_terms, max_len=opened.max_len, rules=rules
    )
    path = tmp_path / 'the "edge" \\ file.onnx'
    onnx.save(proto, path)
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    history = model.catalog.item_ids.to_pylist()[4:9]
    feed = {
        "item_history": np.array([history], np.int64 if isinstance(history[0], int) else object),
        "lengths": np.array([len(history)]),
        "use_providers": np.array([True]),
    }
    inputs = [{"name": node.name, "type": node.type, "shape": node.shape} for node in session.get_inputs()]
    used = {node["name"]: feed[node["name"]] for node in inputs}
    item_ids, scores, counts = session.run(["item_ids", "scores", "counts"], used)
    assert counts == [TOP_K]
    return path, inputs, history, list(zip(map(str, item_ids[0]), scores[0].tolist(), strict=True))


@pytest.fixture(scope="module")
def onnxruntime_cpp(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with ONNX Runtime's include/ and lib/."""
    return need_onnxruntime_cpp(tmp_path_factory.mktemp("onnxruntime"))


def _printed(*command: str | Path, folder: Path) -> Lines:
    path = os.pathsep.join(str(ROOT / name) for name in (".", "kernels"))
    done = subprocess.run(
        list(map(str, command)),
        cwd=folder,
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    parts = [line.rsplit(" ", 1) for line in done.stdout.splitlines()]
    return [(item_id, float(score)) for item_id, score in parts]


def test_the_python_one_prints_the_list(edge: Any, tmp_path: Path) -> None:
    path, inputs, history, expected = edge
    (tmp_path / "snippet.py").write_text(edge_snippets(str(path), inputs, history)["Python"], encoding="utf-8")
    assert _printed(sys.executable, "snippet.py", folder=tmp_path) == expected


def test_the_javascript_one_prints_the_list(edge: Any, tmp_path: Path) -> None:
    modules = ROOT / "examples" / "node_modules"
    if shutil.which("node") is None or not (modules / "onnxruntime-node").is_dir():
        skip_without("Node or ONNX Runtime for Node is not installed (make javascript)")
    path, inputs, history, expected = edge
    (tmp_path / "snippet.mjs").write_text(edge_snippets(str(path), inputs, history)["JavaScript"], encoding="utf-8")
    (tmp_path / "node_modules").symlink_to(modules)
    found = _printed("node", "snippet.mjs", folder=tmp_path)
    assert [item_id for item_id, _ in found] == [item_id for item_id, _ in expected]
    # Node and Python have kernels of their own versions, which add in another order.
    assert [score for _, score in found] == pytest.approx([score for _, score in expected], rel=1e-6)


def test_the_cpp_one_compiles_and_prints_the_list(edge: Any, tmp_path: Path, onnxruntime_cpp: Path) -> None:
    path, inputs, history, expected = edge
    (tmp_path / "snippet.cpp").write_text(edge_snippets(str(path), inputs, history)["C++"], encoding="utf-8")
    headers, libraries = onnxruntime_cpp / "include", onnxruntime_cpp / "lib"
    command = ["c++", "-std=c++17", "-Wall", "-Werror", f"-isystem{headers}", "snippet.cpp", "-o", "snippet"]
    command += [f"-L{libraries}", "-lonnxruntime", f"-Wl,-rpath,{libraries}"]
    subprocess.run(command, cwd=tmp_path, check=True, timeout=300)
    found = _printed(tmp_path / "snippet", folder=tmp_path)
    assert [item_id for item_id, _ in found] == [item_id for item_id, _ in expected]
    assert [score for _, score in found] == pytest.approx(
        [score for _, score in expected], rel=1e-4
    )  # 6 digits printed


def test_as_they_are_they_show_the_popular_items(edge: Any, tmp_path: Path) -> None:
    path, inputs, _, _ = edge
    (tmp_path / "snippet.py").write_text(edge_snippets(str(path), inputs)["Python"], encoding="utf-8")
    found = _printed(sys.executable, "snippet.py", folder=tmp_path)
    scores = [score for _, score in found]
    assert len(found) == TOP_K
    assert scores == sorted(scores, reverse=True)


@pytest.mark.parametrize("string_ids", [False, True], ids=["int64", "string"])
def test_the_one_for_a_server_prints_the_list_of_score(tmp_path: Path, string_ids: bool) -> None:
    model = write_model_file(tmp_path / "m.onnx", string_ids=string_ids)
    history = model.catalog.item_ids.to_pylist()[4:9]
    snippets = server_snippets(str(model.path), "string" if string_ids else "int64", history)
    assert list(snippets) == ["Python"]
    (tmp_path / "snippet.py").write_text(snippets["Python"], encoding="utf-8")
    expected = Scorer(model.path, top_k=10).score_one(history)
    assert _printed(sys.executable, "snippet.py", folder=tmp_path) == list(
        zip(map(str, expected.item_ids), expected.scores, strict=True)
    )
