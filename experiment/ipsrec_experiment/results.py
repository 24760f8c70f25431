"""What the finished cells of an experiment hold, read back: figures of every row and seed, and ranks user by user."""

from __future__ import annotations

import json
import zipfile
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ipsrec_experiment.cell import CELL_FILE, PROTOCOLS, RANKS_FILE, SPLITS, write_ranks
from ipsrec_experiment.counting import counting_ranks
from ipsrec_experiment.plan import COUNTING, Row
from ipsrec_experiment.schedule import CELLS
from ipsrec_onnx.dataset import Dataset
from ipsrec_onnx.errors import DataError
from ipsrec_onnx.metrics import metrics_of_ranks

Ranks = dict[str, npt.NDArray[np.int32]]


@dataclass(frozen=True, eq=False)
class RowResult:
    """All finished seeds of one row.

    Attributes:
        name: of the row.
        row: of the plan; None for the counting floor.
        cells: what cell.json holds, by seed.
        ranks: "test_kept", "test_excluded", "valid_kept" and "valid_excluded" of each seed, each (U,) int32.
    """

    name: str
    row: Row | None
    cells: list[dict[str, Any]]
    ranks: list[Ranks]

    def ndcg(self, split: str, protocol: str) -> npt.NDArray[np.float64]:
        """(U,) NDCG@10 of each user, the mean over seeds."""
        each = [ndcg_of_ranks(ranks[f"{split}_{protocol}"]) for ranks in self.ranks]
        return np.asarray(np.mean(each, axis=0), np.float64)

    def values(self, split: str, protocol: str, metric: str) -> list[float]:
        """One metric, a number for each seed."""
        return [float(cell["metrics"][split][protocol][metric]) for cell in self.cells]


def ndcg_of_ranks(ranks: npt.NDArray[np.integer], cutoff: int = 10) -> npt.NDArray[np.float64]:
    """What each user's rank is worth by NDCG; 0 for a target beyond the cut-off or without a rank."""
    found = (ranks >= 1) & (ranks <= cutoff)
    return np.where(found, 1 / np.log2(np.where(found, ranks, 1) + 1.0), 0.0)


def read_results(folder: Path, rows: Sequence[Row], dataset: Dataset) -> list[RowResult]:
    """Read every finished cell of some rows; rows without one are left out.

    Raises:
        DataError: a cell is broken, or of another dataset.
    """
    results = []
    for row in rows:
        places = sorted((folder / CELLS / row.slug).glob("seed-*"), key=lambda place: int(place.name[5:]))
        done = [place for place in places if (place / CELL_FILE).is_file()]
        if done:
            cells, ranks = zip(*(_read_cell(place, dataset) for place in done), strict=True)
            results.append(RowResult(row.name, row, list(cells), list(ranks)))
    return results


def counting_result(folder: Path, dataset: Dataset) -> RowResult:
    """The counting floor, computed once and kept among the cells."""
    place = folder / CELLS / "counting"
    if not (place / RANKS_FILE).is_file():
        place.mkdir(parents=True, exist_ok=True)
        write_ranks(
            place / RANKS_FILE,
            {
                f"{split}_{protocol}": counting_ranks(dataset, split, exclude_seen=protocol == "excluded")
                for split in SPLITS
                for protocol in PROTOCOLS
            },
        )
    ranks = _read_ranks(place / RANKS_FILE)
    metrics = {
        split: {protocol: metrics_of_ranks(ranks[f"{split}_{protocol}"], (5, 10)) for protocol in PROTOCOLS}
        for split in SPLITS
    }
    return RowResult(COUNTING, None, [{"metrics": metrics}], [ranks])


def _read_cell(place: Path, dataset: Dataset) -> tuple[dict[str, Any], Ranks]:
    path = place / CELL_FILE
    try:
        cell = json.loads(path.read_text(encoding="utf-8"))
        fingerprint = cell["dataset_fingerprint"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"{path} is broken ({error!r}); remove it, and the cell is done again") from error
    if fingerprint != dataset.fingerprint:
        raise DataError(f"{path}: of dataset {fingerprint[:12]}, this one is {dataset.fingerprint[:12]}; --overwrite")
    return cell, _read_ranks(place / RANKS_FILE)


def _read_ranks(path: Path) -> Ranks:
    try:
        with np.load(path, allow_pickle=False) as file:
            return {f"{split}_{protocol}": file[f"{split}_{protocol}"] for split in SPLITS for protocol in PROTOCOLS}
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise DataError(f"{path} is broken ({error!r}); remove {path.parent}, and it is done again") from error
