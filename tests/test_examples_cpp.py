"""The example in C++ is built, and prints the lists that ONNX Runtime gives in Python."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from edge_runtimes import ROOT, in_python
from model_files import TinyModel, write_model_file
from onnxruntime_cpp import need_onnxruntime_cpp

from ipsrec_export.edge_graph import EdgeRules, build_edge_graph
from ipsrec_onnx.model_file import open_model_file

TOP_K = 9


@pytest.fixture(scope="session")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The example, built by CMake."""
    home = need_onnxruntime_cpp(tmp_path_factory.mktemp("onnxruntime"))
    if shutil.which("cmake") is None:
        pytest.skip("there is no CMake")
    build = tmp_path_factory.mktemp("build")
    source = ROOT / "examples" / "cpp"
    options = [f"-DONNXRUNTIME_HOME={home}", "-DCMAKE_COMPILE_WARNING_AS_ERROR=ON"]
    for command in (["-S", source, "-B", build, *options], ["--build", build]):
        done = subprocess.run(["cmake", *map(str, command)], capture_output=True, text=True, timeout=300, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
    return build / "recommend"


def run(program: Path, *arguments: object) -> subprocess.CompletedProcess[str]:
    command = [str(program), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


@pytest.fixture(params=["int64", "string", "int64, switch", "string, switch"])
def files(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[TinyModel, Path]:
    """A model for `ipsrec score`, and its edge file."""
    model = write_model_file(tmp_path / "server.onnx", string_ids="string" in request.param)
    opened = open_model_file(model.path)
    rules = EdgeRules(top_k=TOP_K, provider_switch="switch" in request.param)
    proto = build_edge_graph(
        onnx.load(model.path), opened.catalog, opened.history_terms, max_len=opened.max_len, rules=rules
    )
    edge = tmp_path / "edge.onnx"
    onnx.save(proto, edge)
    return model, edge


def histories(model: TinyModel) -> list[list[Any]]:
    """None, one, at max_len and more, unknown items among them and alone, nearly the whole catalog."""
    ids = model.catalog.item_ids.to_pylist()
    unknown: list[Any] = ["of nobody", ""] if isinstance(ids[0], str) else [-5, 2**63 - 1]
    return [[], ids[:1], ids[: model.max_len], ids[:20], [unknown[0], ids[3], unknown[1], ids[5]], unknown, ids[:-4]]


def test_it_prints_the_lists_of_python(program: Path, files: tuple[TinyModel, Path]) -> None:
    model, edge = files
    users = histories(model)
    for history, expected in zip(users, in_python(edge, users, use_providers=True), strict=True):
        done = run(program, edge, *history)
        assert done.returncode == 0, done.stderr
        rows = [line.split("\t") for line in done.stdout.splitlines()]
        assert [int(rank) for rank, _, _ in rows] == list(range(1, len(expected["itemIds"]) + 1))
        assert [item_id for _, item_id, _ in rows] == expected["itemIds"]
        # Kernels differ from build to build, and so does the last bit of a score.
        np.testing.assert_allclose([float(score) for _, _, score in rows], expected["scores"], rtol=1e-5, atol=1e-6)
        assert done.stderr.count("the popular items") == done.stderr.count("\n") == expected["cold"]


@pytest.mark.parametrize("files", ["int64", "string"], indirect=True)
def test_a_file_that_is_no_edge_model_is_refused_in_one_line(program: Path, files: tuple[TinyModel, Path]) -> None:
    done = run(program, files[0].path, 1)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == f"{files[0].path}: this is no edge model; write one with `ipsrec export --profile edge`\n"


@pytest.mark.parametrize("files", ["int64"], indirect=True)
@pytest.mark.parametrize(
    ("item_id", "what"),
    [("tea", "is not a whole number"), ("", "is not a whole number"), ("7.", "whole"), (str(2**63), "64 bits")],
)
def test_ids_that_are_no_int64_are_refused(
    program: Path, files: tuple[TinyModel, Path], item_id: str, what: str
) -> None:
    done = run(program, files[1], item_id)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.count("\n") == 1 and what in done.stderr


def test_a_file_that_is_not_there_is_named(program: Path, tmp_path: Path) -> None:
    done = run(program, tmp_path / "nothing.onnx")
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1 and "nothing.onnx" in done.stderr


def test_without_a_model_it_says_how_to_call_it(program: Path) -> None:
    done = run(program)
    assert done.returncode == 2
    assert done.stderr.startswith("usage: ")
