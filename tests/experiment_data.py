"""Small experiments for the tests of experiment/: plans, and finished cells without a training."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import numpy.typing as npt

from ipsrec_experiment.cell import CELL_FILE, CUTOFFS, PROTOCOLS, RANKS_FILE, SPLITS, write_ranks
from ipsrec_experiment.plan import Plan, Row, read_plan
from ipsrec_experiment.results import RowResult
from ipsrec_experiment.schedule import cell_folder
from ipsrec_onnx.dataset import Dataset
from ipsrec_onnx.metrics import metrics_of_ranks

PLAN = """
reference = "A"

[training]
batch_size = 64
learning_rate = 0.01
epochs = 3

[settings]
max_len = 10
dim = 8

[search]
dropout = [0.1, 0.3]

[[rows]]
name = "A"
table = ["paper", "ablation"]
model = "sasrec"
baseline = true
settings = { num_layers = 1, inner_dim = 16 }

[[rows]]
name = "B + terms"
table = "beyond"
model = "ipsrec-s"
variant = "recommended"
settings = { num_layers = 1, inner_dim = 16 }
against = ["A", "Counting"]
"""


def write_plan(folder: Path, text: str = PLAN) -> Path:
    """A plan file of small models."""
    path = folder / "plan.toml"
    path.write_text(text, encoding="utf-8")
    return path


def make_plan(folder: Path, text: str = PLAN) -> Plan:
    """The same, read."""
    return read_plan(write_plan(folder, text))


def make_cell(row: Row, seed: int, ranks: dict[str, npt.NDArray[np.int64]], *, fingerprint: str) -> dict[str, object]:
    """What cell.json would hold; validated every second epoch, the curve rises to epoch 4."""
    return {
        "row": row.name,
        "seed": seed,
        "model": row.model,
        "settings": {"max_len": 10},
        "training": {"epochs": 6, "seed": seed},
        "parameters": 1234,
        "epochs": 6,
        "best_epoch": 4,
        "stop_metric": "ndcg@10",
        "curve": [
            {"epoch": 2 + 2 * at, "loss": 3.0 - at, "ndcg@10": 0.1 * (1 + seed) + lift}
            for at, lift in enumerate((0.0, 0.02, 0.01))
        ],
        "epoch_s": 2.0,
        "training_s": 7.0,
        "model_bytes": 5_000,
        "gate": {"embedding_error": 1e-7, "overlap": 1.0, "ndcg_change": 0.0},
        "metrics": {
            split: {protocol: metrics_of_ranks(ranks[f"{split}_{protocol}"], CUTOFFS) for protocol in PROTOCOLS}
            for split in SPLITS
        },
        "unknown_targets": 0,
        "cold_users": 0,
        "dataset_fingerprint": fingerprint,
        "machine": {"device": "cpu", "threads": 1},
        "versions": {"torch": "2"},
        "process_s": 9.0,
    }


def random_ranks(rng: np.random.Generator, users: int, *, good: float) -> dict[str, npt.NDArray[np.int64]]:
    """Ranks 1 to 10 for a share `good` of the users, 0 for the others."""
    return {
        f"{split}_{protocol}": np.where(rng.random(users) < good, rng.integers(1, 11, users), 0)
        for split in SPLITS
        for protocol in PROTOCOLS
    }


def make_result(row: Row, rng: np.random.Generator, *, users: int, seeds: int, good: float) -> RowResult:
    """A row's finished cells, in memory."""
    ranks = [random_ranks(rng, users, good=good) for _ in range(seeds)]
    cells = [make_cell(row, seed, one, fingerprint="f") for seed, one in enumerate(ranks)]
    return RowResult(row.name, row, cells, ranks)  # type: ignore[arg-type]


def write_cells(
    folder: Path, plan: Plan, dataset: Dataset, *, users: int, seeds: dict[str, int], good: float = 0.3
) -> None:
    """Finished cells of an experiment's folder; the first row finds a share `good`, the second 0.3 more."""
    for number, row in enumerate(plan.rows):
        for seed in range(seeds[row.name]):
            ranks = random_ranks(np.random.default_rng([number, seed]), users, good=good + 0.3 * number)
            place = cell_folder(folder, row, seed)
            place.mkdir(parents=True)
            write_ranks(place / RANKS_FILE, ranks)
            cell = make_cell(row, seed, ranks, fingerprint=dataset.fingerprint)
            (place / CELL_FILE).write_text(json.dumps(cell), encoding="utf-8")
