"""The report of an experiment: what its cells say, as one value of plain parts, written in three forms."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from ipsrec_experiment.cell import PROTOCOLS, SPLITS
from ipsrec_experiment.markdown import report_markdown
from ipsrec_experiment.page import report_page
from ipsrec_experiment.paired import best_baseline, compare_rows
from ipsrec_experiment.paper_figures import paper_figures
from ipsrec_experiment.plan import COUNTING, Plan, Row
from ipsrec_experiment.results import RowResult, counting_result, read_results
from ipsrec_experiment.schedule import TUNING
from ipsrec_experiment.tuning import read_choice
from ipsrec_experiment.user_groups import user_groups
from ipsrec_onnx.atomic import atomic_file
from ipsrec_onnx.dataset import Dataset
from ipsrec_onnx.errors import DataError

REPORT_FILES = ("report.json", "report.md", "report.html")
METRICS = ("hr@5", "hr@10", "mrr@5", "mrr@10", "ndcg@5", "ndcg@10")


def write_report(
    folder: Path,
    plan: Plan,
    rows: Sequence[Row],
    dataset: Dataset,
    *,
    command: str,
    paper_data_set: str | None,
) -> dict[str, Any]:
    """Write report.json, report.md and report.html of the cells that are there.

    Args:
        folder: of the experiment.
        plan: of the experiment.
        rows: to report on; those without a finished cell are left out.
        dataset: as open_dataset gave it.
        command: what makes the report.
        paper_data_set: whose figures of the paper stand beside ours; None for none.

    Returns:
        What report.json holds.

    Raises:
        DataError: no cell is finished, or one is broken.
    """
    report = build_report(folder, plan, rows, dataset, command=command, paper_data_set=paper_data_set)
    texts = (json.dumps(report, indent=1, allow_nan=False) + "\n", report_markdown(report), report_page(report))
    for name, text in zip(REPORT_FILES, texts, strict=True):
        with atomic_file(folder / name, overwrite=True) as temporary:
            temporary.write_text(text, encoding="utf-8")
    return report


def build_report(
    folder: Path, plan: Plan, rows: Sequence[Row], dataset: Dataset, *, command: str, paper_data_set: str | None
) -> dict[str, Any]:
    """Everything that the report says; the same cells give the same report.

    Raises:
        DataError: no cell is finished, or one is broken.
    """
    results = read_results(folder, rows, dataset)
    if not results:
        raise DataError(f"{folder}: no cell is finished yet; run it without --report-only first")
    counting = counting_result(folder, dataset)
    baselines = {protocol: best_baseline(results, protocol) for protocol in PROTOCOLS}
    choices = {result.name: read_choice(folder / TUNING, result.row) for result in results if result.row is not None}
    return {
        "what": _what(dataset, results, rows=len(rows), command=command),
        "reference": plan.reference if any(result.name == plan.reference for result in results) else None,
        "best_baseline": {protocol: row.name if row else None for protocol, row in baselines.items()},
        "rows": [_row(result) for result in results],
        "counting": {"name": COUNTING, "metrics": _metrics(counting)},
        "comparisons": [
            {**asdict(test), "seeds": list(test.seeds)}
            for protocol in PROTOCOLS
            for test in compare_rows(results, counting, reference=plan.reference, protocol=protocol)
        ],
        "groups": _groups(dataset, [*results, counting]),
        "tuning": {name: choice for name, choice in choices.items() if choice is not None},
        "paper": paper_figures(paper_data_set, [result.name for result in results]),
    }


def _what(dataset: Dataset, results: Sequence[RowResult], *, rows: int, command: str) -> dict[str, Any]:
    """Data, machine, versions and time."""
    cells = [cell for result in results for cell in result.cells]
    distinct = {
        name: sorted({json.dumps(cell[name], sort_keys=True) for cell in cells}) for name in ("machine", "versions")
    }
    return {
        "dataset": {
            "name": dataset.path.resolve().name,
            "fingerprint": dataset.fingerprint,
            "counts": dataset.info.get("after", {}),
        },
        "command": command,
        "rows": rows,
        "rows_with_cells": len(results),
        "cells": len(cells),
        "seeds": [min(len(result.cells) for result in results), max(len(result.cells) for result in results)],
        "test_users": len(results[0].ranks[0]["test_kept"]),
        "valid_users": len(results[0].ranks[0]["valid_kept"]),
        "training_s": float(sum(cell["training_s"] for cell in cells)),
        "machines": [json.loads(machine) for machine in distinct["machine"]],
        "versions": [json.loads(versions) for versions in distinct["versions"]],
    }


def _row(result: RowResult) -> dict[str, Any]:
    row, cells = result.row, result.cells
    if row is None:
        raise ValueError(f"{result.name} was not trained")
    return {
        "name": row.name,
        "tables": list(row.tables),
        "model": row.model,
        "variant": row.variant,
        "baseline": row.baseline,
        "against": list(row.against),
        "changes": row.changes,
        "settings": cells[0]["settings"],
        "training": {name: value for name, value in cells[0]["training"].items() if name != "seed"},
        "seeds": [cell["seed"] for cell in cells],
        "parameters": cells[0]["parameters"],
        "model_bytes": cells[0]["model_bytes"],
        "best_epoch": float(np.mean([cell["best_epoch"] for cell in cells])),
        "epochs": float(np.mean([cell["epochs"] for cell in cells])),
        "epoch_s": float(np.median([cell["epoch_s"] for cell in cells])),
        "training_s": float(np.mean([cell["training_s"] for cell in cells])),
        "embedding_error": float(max(cell["gate"]["embedding_error"] for cell in cells)),
        "metrics": _metrics(result),
        "curve": _curve(cells),
    }


def _metrics(result: RowResult) -> dict[str, Any]:
    """Mean, standard deviation over seeds (n - 1; None for one seed) and the values: split, protocol, metric."""
    return {
        split: {
            protocol: {
                metric: {
                    "mean": float(np.mean(values)),
                    "std": float(np.std(values, ddof=1)) if len(values) > 1 else None,
                    "values": values,
                }
                for metric in METRICS
                for values in [result.values(split, protocol, metric)]
            }
            for protocol in PROTOCOLS
        }
        for split in SPLITS
    }


def _curve(cells: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Validation metric by validated epoch: mean, lowest and highest of the seeds, as far as all of them trained."""
    metric = cells[0]["stop_metric"]
    common = min(len(cell["curve"]) for cell in cells)
    values = np.array([[line[metric] for line in cell["curve"][:common]] for cell in cells])  # (seeds, epochs)
    return {
        "metric": metric,
        "epochs": [line["epoch"] for line in cells[0]["curve"][:common]],
        "mean": values.mean(axis=0).tolist(),
        "low": values.min(axis=0).tolist(),
        "high": values.max(axis=0).tolist(),
    }


def _groups(dataset: Dataset, results: Sequence[RowResult]) -> dict[str, Any]:
    """Mean NDCG@10 of each group of test users: kind of grouping, protocol, row, group."""
    return {
        kind: {
            "title": grouping.title,
            "users": {name: int(users.sum()) for name, users in grouping.groups.items()},
            "ndcg@10": {
                protocol: {
                    result.name: {
                        name: float(result.ndcg("test", protocol)[users].mean())
                        for name, users in grouping.groups.items()
                    }
                    for result in results
                }
                for protocol in PROTOCOLS
            },
        }
        for kind, grouping in user_groups(dataset, "test").items()
    }
