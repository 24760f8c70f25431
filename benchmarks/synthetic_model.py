"""Makes a model file of a synthetic size with the library's own model, run folder, export and gate.

Nothing is trained: the embeddings are the world's and the encoder's weights are drawn, but so that a user vector comes
out near the items of the history, as training would have it. Attention passes on what it looks at, with some noise, and
looks unevenly; the feed-forward layers are random and small. What is computed, and how much, is as in a trained model.
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any, Literal

import pyarrow.parquet as pq
import torch
from synthetic import DIM, Ids, Kind, World, make_world, size_of, users_table

from ipsrec_export.export import export
from ipsrec_onnx.catalog import catalog_to_table
from ipsrec_onnx.dataset import CATALOG_FILE, FORMAT_VERSION, HISTORIES_FILE, INFO_FILE, PROVIDERS_FILE, open_dataset
from ipsrec_train.history_terms import HistoryTerms
from ipsrec_train.layers import TransformerLayer
from ipsrec_train.model import Model
from ipsrec_train.run import METRICS_FILE, run_info, save_model, start_run
from ipsrec_train.settings import settings_for
from ipsrec_train.training_settings import TrainingSettings

GATE_USERS = 64  # validation users of the gate; a catalog of a million items makes each one dear
INNER_DIM = 256
_QUERY_STD, _NOISE_STD = 0.1, 0.02


def model_file(
    folder: Path,
    name: str,
    *,
    model: str = "ipsrec-c",
    history_terms: Literal["none", "seen", "all"] = "none",
    inner_dim: int = INNER_DIM,
    kind: Kind = "trained",
    ids: Ids = "int64",
    precision: Literal["fp32", "fp16"] = "fp32",
) -> Path:
    """Export a model file of a size unless it lies there already; the path says what it is.

    An IPSRec has the provider in every item (the `recommended` variant); SASRec is plain.
    """
    changes = ("" if inner_dim == INNER_DIM else f"-inner{inner_dim}") + (
        "" if precision == "fp32" else f"-{precision}"
    )
    path = folder / f"{name}-{kind}-{ids}-{model}-{history_terms}{changes}.onnx"
    if not path.is_file():
        folder.mkdir(parents=True, exist_ok=True)
        world = make_world(size_of(name), kind=kind, ids=ids)
        with tempfile.TemporaryDirectory(dir=folder) as scratch:
            dataset = _write_dataset(Path(scratch) / "dataset", world)
            net = make_model(world, model=model, history_terms=history_terms, inner_dim=inner_dim)
            export(_write_run(Path(scratch) / "run", dataset, world, net), path, precision=precision)
    return path


def make_model(world: World, *, model: str, history_terms: str, inner_dim: int = INNER_DIM, seed: int = 0) -> Model:
    """Build a model of a world, in evaluation mode, its item table the world's embeddings."""
    torch.manual_seed(seed)
    changes = {"max_len": world.size.max_len, "dim": DIM, "history_terms": history_terms, "inner_dim": inner_dim}
    settings = settings_for(model, None, changes)
    net = Model(
        model, settings, item_provider=world.catalog.item_provider, num_providers=world.catalog.num_providers
    ).eval()
    with torch.no_grad():
        items = torch.from_numpy(world.embeddings.copy())
        if settings.provider_in_item:
            net.providers.weight.mul_(2)  # std 0.04: a third of an item's element
            items -= net.providers.weight[net.item_provider]
        net.items.weight.copy_(items)
        for part in net.modules():
            if isinstance(part, TransformerLayer):
                _pass_on(part)
        if net.history_terms is not None:
            _fade(net.history_terms)
    return net


def _pass_on(layer: TransformerLayer) -> None:
    """Let attention give what it looks at, with noise, and look at some places more than at others."""
    for linear in (layer.query, layer.key):
        torch.nn.init.normal_(linear.weight, std=_QUERY_STD)
    for linear in (layer.value, layer.output):
        torch.nn.init.normal_(linear.weight, std=_NOISE_STD)
        linear.weight += torch.eye(DIM)


def _fade(terms: HistoryTerms) -> None:
    """Weights that are large for what is new and fade with age, as training finds them."""
    for parameter, newest in ((terms.provider, 0.1), (terms.item, 0.05)):
        if parameter is not None:
            parameter.copy_(newest * 0.9 ** torch.arange(len(parameter)) - 0.02)


def _write_dataset(folder: Path, world: World) -> Path:
    """Write as much of a dataset folder as export asks for: the catalog and a few histories for the gate."""
    folder.mkdir()
    for file, table in zip((CATALOG_FILE, PROVIDERS_FILE), catalog_to_table(world.catalog), strict=True):
        pq.write_table(table, folder / file)
    pq.write_table(users_table(world, users=GATE_USERS), folder / HISTORIES_FILE)
    info = {"format_version": FORMAT_VERSION, "fingerprint": "0" * 64}
    (folder / INFO_FILE).write_text(json.dumps(info), encoding="utf-8")
    return folder


def _write_run(folder: Path, dataset: Path, world: World, net: Model) -> Path:
    """Write a run folder that says of itself that it trained for no epoch."""
    training = TrainingSettings()
    info = run_info(net.name, net.settings, training, open_dataset(dataset), device="cpu")
    start_run(folder, info, world.catalog)
    save_model(folder, net)
    epoch: dict[str, Any] = {"epoch": 0, training.stop_metric: 0.0}
    (folder / METRICS_FILE).write_text(json.dumps(epoch) + "\n", encoding="utf-8")
    return folder
