"""Small data and models for the tests of training and export."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from ipsrec_export.graph import build_graph
from ipsrec_train.batches import Batch
from ipsrec_train.model import Model
from ipsrec_train.prepare import prepare
from ipsrec_train.settings import ModelSettings, settings_for
from ipsrec_train.train import train
from ipsrec_train.training_settings import TrainingSettings

torch.set_num_threads(1)  # at these sizes more threads only wait for each other

USERS, ITEMS, PROVIDERS = 120, 60, 12
LONGEST = 40  # more than MAX_LEN, so that training cuts windows
MAX_LEN = 10

# Model, variant and what co-attention exchanges; None where a model has none.
KINDS = [
    ("sasrec", None, None),
    ("gru4rec", None, None),
    ("caser", None, None),
    ("sr-gnn", None, None),
    ("ipsrec-s", "recommended", "queries"),
    ("ipsrec-s", "paper", "queries"),
    ("ipsrec-s", "released", "queries"),
    ("ipsrec-c", "recommended", "queries"),
    ("ipsrec-c", "paper", "keys_values"),
    ("ipsrec-c", "released", "queries"),
    ("ipsrec-c", "recommended", "keys_values"),
    ("ipsrec-c", "paper", "queries"),
    ("ipsrec-c", "released", "keys_values"),
]

IPSREC_KINDS = [kind for kind in KINDS if kind[0].startswith("ipsrec")]
BASELINES = ["sasrec", "gru4rec", "caser", "sr-gnn"]


def kind_id(kind: tuple[str | None, ...]) -> str:
    """A kind's name in the list of tests."""
    return "-".join(part for part in kind if part)


ATTENTION = {"num_layers": 1, "inner_dim": 32}
SMALL: dict[str, dict[str, Any]] = {
    "ipsrec-c": ATTENTION,
    "ipsrec-s": ATTENTION,
    "sasrec": ATTENTION,
    "gru4rec": {"hidden_dim": 12},
    "caser": {"window": 4, "horizontal_filters": 3, "vertical_filters": 2},
    "sr-gnn": {},
}
# What makes each model deeper than SMALL does, where it can be.
DEEPER: dict[str, dict[str, Any]] = {
    **{name: {"num_layers": 2} for name in ("ipsrec-c", "ipsrec-s", "sasrec", "gru4rec")},
    "caser": {},
    "sr-gnn": {"steps": 2},
}


def make_interactions(rng: np.random.Generator) -> pa.Table:
    """USERS histories of 3 to LONGEST items, oldest first.

    Each provider has five items. A user mostly stays with the provider at hand and takes the item after the last one.
    """
    item_ids = 1_000 + rng.permutation(ITEMS)  # so that the order of ids is not the order of providers
    lengths = np.concatenate([[3, 3, 4, LONGEST], rng.integers(3, LONGEST + 1, USERS - 4)])
    rows: list[tuple[int, int, str, int]] = []
    for user, length in enumerate(lengths):
        provider, place = rng.integers(PROVIDERS), rng.integers(5)
        for time in range(length):
            if rng.random() < 0.15:
                provider = rng.integers(PROVIDERS)
            place = (place + 1) % 5 if rng.random() < 0.8 else rng.integers(5)
            rows.append((user, int(item_ids[provider * 5 + place]), f"provider {provider:02}", time))
    return pa.table(dict(zip(("user_id", "item_id", "provider_id", "timestamp"), zip(*rows, strict=True), strict=True)))


def make_dataset(folder: Path, rng: np.random.Generator) -> Path:
    """Prepare those interactions; no filter, so that users of 3 interactions stay."""
    source = folder / "interactions.parquet"
    pq.write_table(make_interactions(rng), source)
    prepare(source, folder / "dataset", min_user_interactions=1, min_item_interactions=1)
    return folder / "dataset"


def small_settings(variant: str | None = None, *, model: str = "ipsrec-c", **changes: Any) -> ModelSettings:
    """Settings that train in a second; IPSRec's variant is the recommended one unless another is asked for."""
    return settings_for(model, variant, {"max_len": MAX_LEN, "dim": 16, "dropout": 0.2, **SMALL[model], **changes})


def small_training(**changes: Any) -> TrainingSettings:
    """Few, fast epochs."""
    return dataclasses.replace(TrainingSettings(batch_size=64, learning_rate=0.01, epochs=4, seed=7), **changes)


def catalog_providers(*, without: int = 0) -> npt.NDArray[np.int64]:
    """(ITEMS + 1,) provider of each item_index, in runs of unequal length; the first `without` items have none."""
    rng = np.random.default_rng(5)
    owned = np.sort(np.concatenate([np.arange(1, PROVIDERS + 1), rng.integers(1, PROVIDERS + 1, ITEMS - PROVIDERS)]))
    providers = np.concatenate([[0], owned])
    providers[1 : 1 + without] = 0
    return providers


def make_model(name: str, settings: ModelSettings, *, seed: int = 0, spread: float = 0.3) -> Model:
    """An untrained model whose weights are all drawn wide, so that attention looks somewhere and no bias is 0."""
    torch.manual_seed(seed)
    model = Model(name, settings, item_provider=catalog_providers(), num_providers=PROVIDERS)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += spread * torch.randn(parameter.shape)
        for table in (model.items.weight, model.providers.weight):
            table[0].zero_()
        if model.history_terms is not None:
            for weights in model.history_terms.parameters():
                weights /= 10 * spread
    return model.eval()


_GRAPHS: dict[tuple[str, ModelSettings, bytes], bytes] = {}


def build_graph_once(model: Model) -> onnx.ModelProto:
    """build_graph, which takes seconds, once for the same weights; each call gives a copy of its own."""
    weights = b"".join(weight.numpy().tobytes() for weight in model.state_dict().values())
    key = (model.name, model.settings, weights)
    if key not in _GRAPHS:
        _GRAPHS[key] = build_graph(model).SerializeToString()
    return onnx.load_from_string(_GRAPHS[key])


def exportable(
    name: str, variant: str | None, co_attention: str | None = None, *, max_len: int = MAX_LEN, **changes: Any
) -> Model:
    """The same small model at every call, so that tests share its graph."""
    deeper = DEEPER[name] if max_len == MAX_LEN else {}
    thin = {"inner_dim": 12} if "inner_dim" in SMALL[name] else {}
    changes = {"max_len": max_len, "dim": 8, **thin, **deeper, "co_attention": co_attention, **changes}
    return make_model(name, small_settings(variant, model=name, **changes))


def make_run(folder: Path, *, dim: int = 8) -> Path:
    """A dataset and a run of it, folder/dataset and folder/run; the same weights at every call."""
    dataset = make_dataset(folder, np.random.default_rng(4))
    settings = small_settings(dim=dim)
    train(dataset, folder / "run", settings=settings, training=small_training(epochs=2), threads=1, quiet=True)
    return folder / "run"


def prefixes(batch: Batch) -> Iterator[tuple[tuple[int, ...], int]]:
    """Each target of a batch and the window's items before it, oldest first, read off the packed rows."""
    width = batch.histories.item_history.shape[1]
    for at, target in zip(batch.at.tolist(), batch.targets.tolist(), strict=True):
        row, column = divmod(at, width)
        length = int(batch.histories.positions[row, column]) + 1
        yield tuple(batch.histories.item_history[row, column - length + 1 : column + 1].tolist()), target
