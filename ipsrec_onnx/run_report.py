"""The report of a scoring job: all figures of its page as plain data, and the file; run_report_page.py lays it out."""

from __future__ import annotations

import importlib
import platform
from dataclasses import asdict
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ipsrec_onnx.atomic import atomic_file
from ipsrec_onnx.candidate_statistics import CandidateStatistics, candidate_statistics
from ipsrec_onnx.catalog import Catalog
from ipsrec_onnx.concentration import gini, lorenz
from ipsrec_onnx.cores import usable_cores
from ipsrec_onnx.errors import DataError
from ipsrec_onnx.machine import cpu_model, memory_bytes
from ipsrec_onnx.model_file import ModelFile
from ipsrec_onnx.output_paths import OutputPaths, part_files
from ipsrec_onnx.score_report import ScoreReport
from ipsrec_onnx.staging import origin
from ipsrec_onnx.users import Users
from ipsrec_onnx.versions import how_to_install

_CURVE_POINTS = 200
_LEADERS = 10


def refuse_without_libraries(path: str | Path) -> None:
    """Say early, before hours of work, that a report could not be drawn.

    Raises:
        DataError: a library of the extra `report` is not installed or broken.
    """
    for name in ("jinja2", "matplotlib.figure"):
        try:
            importlib.import_module(name)
        except ImportError as error:
            library = name.partition(".")[0]
            raise DataError(
                f"report {path}: it is drawn with {library}, which cannot be imported ({error}); mend it with: "
                f"{how_to_install('report')}"
            ) from error


def write_run_report(path: str | Path, figures: dict[str, Any], *, overwrite: bool) -> None:
    """Write the page.

    Args:
        path: file to write.
        figures: as run_figures gave them.
        overwrite: replace an existing file.

    Raises:
        DataError: it exists and is not to be replaced, or cannot be written.
    """
    from ipsrec_onnx.run_report_page import run_report_page  # its libraries are an extra

    page = run_report_page(figures)
    with atomic_file(path, overwrite=overwrite) as temporary:
        temporary.write_text(page, encoding="utf-8", errors="replace")  # names of files need not be UTF-8


def run_figures(
    report: ScoreReport,
    *,
    model: ModelFile,
    users: Users,
    targets: OutputPaths,
    allowed: npt.NDArray[np.bool_] | None,
    options: dict[str, Any],
    versions: dict[str, str],
    samples: list[tuple[float, int]],
) -> dict[str, Any]:
    """Look over a finished job.

    Args:
        report: what it did.
        model: that it scored with.
        users: that it scored.
        targets: where its candidates are.
        allowed: (num_items + 1,) bool, items that could be recommended; None for all.
        options: what it was asked for, by name.
        versions: of packages, by name.
        samples: (seconds, users done by then) of this run, as Throughput has them.

    Returns:
        JSON values: what, counts, run, scores, coverage, concentration.

    Raises:
        DataError: the candidates cannot be read.
    """
    ended = datetime.now(UTC)  # what comes now looks back, and is no part of the job
    files = part_files(targets.candidates) if targets.as_folder else [targets.candidates]
    statistics = candidate_statistics(files, model.catalog, any_cold=report.counts.cold_users > 0)
    return {
        "what": {
            "model": {
                "file": origin(model.path),
                "sha256": report.model_sha256,
                "name": model.model,
                "variant": model.settings.get("variant"),
                "dim": model.dim,
                "max_len": model.max_len,
                "num_items": model.catalog.num_items,
                "num_providers": model.catalog.num_providers,
            },
            "input": {"source": users.source, "files": len(users.files), "columns": users.columns.names},
            "output": report.output,
            "options": options,
            "versions": {"python": platform.python_version()}
            | {name: version for name, version in versions.items() if version[0].isdigit()},
            "machine": {
                "name": platform.node(),
                "cpu": cpu_model(),
                "usable_cores": usable_cores(),
                "memory_bytes": memory_bytes(),
                "system": platform.platform(),
            },
            "began": (ended - timedelta(seconds=report.wall_s)).isoformat(timespec="seconds"),
            "ended": ended.isoformat(timespec="seconds"),
        },
        "counts": report.counts.to_json(),
        "run": {
            "resumed_rows": report.resumed_rows,
            "carried_users": report.carried_users,
            "cpu_s": report.cpu_s,
            "start_s": report.start_s,
            "wall_s": report.wall_s,
            "users_per_s": report.users_per_s,
            "plan": None if report.plan is None else asdict(report.plan),
            "samples": samples,
        },
        "scores": {
            "edges": statistics.scores.edges.tolist(),
            "counts": statistics.scores.counts.tolist(),
            "best_first": statistics.best_scores.first - statistics.scores.first,
            "best_counts": statistics.best_scores.counts.tolist(),
        },
        "coverage": _coverage(statistics, model.catalog, _allowed(model.catalog, allowed)),
        "concentration": _concentration(statistics, model.catalog, _allowed(model.catalog, allowed)),
    }


def _allowed(catalog: Catalog, allowed: npt.NDArray[np.bool_] | None) -> npt.NDArray[np.int64]:
    """The item_index of each item that could be recommended."""
    return np.arange(1, catalog.num_items + 1) if allowed is None else np.flatnonzero(allowed)


def _coverage(statistics: CandidateStatistics, catalog: Catalog, allowed: npt.NDArray[np.int64]) -> dict[str, Any]:
    """How many items and providers are recommended at least once, after how many lists."""
    found = np.flatnonzero(statistics.first_list >= 0)
    never = np.iinfo(np.int64).max
    first_of_provider = np.full(catalog.num_providers + 1, never)
    np.minimum.at(first_of_provider, catalog.item_provider[found], statistics.first_list[found])
    first_of_provider[0] = never  # no provider
    lists = np.unique(np.rint(np.linspace(0, statistics.num_lists, _CURVE_POINTS)).astype(np.int64))
    providers = np.unique(catalog.item_provider[allowed])
    coverage: dict[str, Any] = {"num_lists": statistics.num_lists, "lists": lists.tolist()}
    for name, first, num_allowed in (
        ("items", statistics.first_list[found], len(allowed)),
        ("providers", first_of_provider[first_of_provider < never], int(np.count_nonzero(providers))),
    ):
        coverage[name] = {
            "allowed": num_allowed,
            "recommended": len(first),
            "curve": np.searchsorted(np.sort(first), lists).tolist(),
        }
    return coverage


def _concentration(statistics: CandidateStatistics, catalog: Catalog, allowed: npt.NDArray[np.int64]) -> dict[str, Any]:
    """How candidates, and the items that could be recommended, are shared out among the providers of these items."""
    in_catalog = np.bincount(catalog.item_provider[allowed], minlength=catalog.num_providers + 1)
    in_lists = np.zeros(catalog.num_providers + 1, np.int64)
    np.add.at(in_lists, catalog.item_provider, statistics.item_counts)
    there = np.flatnonzero(in_catalog[1:]) + 1
    concentration: dict[str, Any] = {
        "providers": len(there),
        "candidates": statistics.num_candidates,
        "without_provider": int(in_lists[0]),
        "leaders": min(_LEADERS, len(there)),
    }
    leaders = there[np.argsort(-in_lists[there], kind="stable")[:_LEADERS]]
    for name, shares in (("lists", in_lists), ("catalog", in_catalog)):
        x, y = lorenz(shares[there], most=_CURVE_POINTS)
        total = int(shares[there].sum())
        concentration[name] = {
            "gini": gini(shares[there]),
            "x": x,
            "y": y,
            "leaders_share": int(shares[leaders].sum()) / total if total else None,
        }
    return concentration
