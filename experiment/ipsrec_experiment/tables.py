"""The tables of a report as rows of text, the same for Markdown and HTML."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

METRIC_NAMES = {"hr": "HR", "mrr": "MRR", "ndcg": "NDCG"}


@dataclass(frozen=True)
class Figure:
    """One place in a table.

    Attributes:
        text: the number or words.
        spread: after it, smaller.
        notes: below it, smaller.
        best: of its column.
        best_baseline: of its column.
    """

    text: str
    spread: str = ""
    notes: tuple[str, ...] = ()
    best: bool = False
    best_baseline: bool = False


@dataclass(frozen=True)
class Table:
    """A table.

    Attributes:
        columns: titles; the first is that of the rows' names.
        rows: the first figure of each is its name.
        spans: titles above the columns, each with how many it covers; none for none.
        caption: what to know to read it.
    """

    columns: tuple[str, ...]
    rows: list[list[Figure]]
    spans: tuple[tuple[str, int], ...] = field(default=())
    caption: str = ""


def decimal(value: float, digits: int = 4) -> str:
    """A number between -1 and 1 without the 0 before the point: .0667."""
    text = f"{value:.{digits}f}"
    return text.replace("0.", ".", 1) if text.lstrip("-").startswith("0.") else text


def percent(value: float | None) -> str:
    """A relative difference: +5.5%; nothing for one that is relative to nothing."""
    if value is None:
        return ""
    return f"{value:+.1%}" if abs(value) >= 0.0005 else "0.0%"


def interval(low: float | None, high: float | None) -> str:
    """Two relative differences: +3.3, +7.7%."""
    ends = percent(low), percent(high)
    return f"{ends[0].removesuffix('%')}, {ends[1]}" if all(ends) else ""


def p_value(value: float | None) -> str:
    """A p-value short enough to read: .031, 2e-05."""
    if value is None:
        return "no test"
    if value < 1e-99:  # it may be too small for a float
        return "< 1e-99"
    return f"{value:.0e}" if value < 0.001 else decimal(value, 3)


def spread(metric: dict[str, Any]) -> str:
    """The standard deviation over seeds; nothing for one seed."""
    return "" if metric["std"] is None else f"± {decimal(metric['std'])}"


def metric_title(metric: str) -> str:
    """hr@5 as HR@5."""
    name, cutoff = metric.split("@")
    return f"{METRIC_NAMES[name]}@{cutoff}"


def overall_table(report: dict[str, Any]) -> Table:
    """Table 2 of the paper: best bold, best baseline underlined, improvement over it below the figure."""
    return _compared(report, "paper", ("hr@5", "hr@10", "mrr@5", "mrr@10", "ndcg@5", "ndcg@10"))


def ablation_table(report: dict[str, Any]) -> Table:
    """Table 3 of the paper, with NDCG@10 besides."""
    return _compared(report, "ablation", ("hr@5", "mrr@5", "ndcg@5", "ndcg@10"))


def _compared(report: dict[str, Any], table: str, metrics: Sequence[str]) -> Table:
    rows = [row for row in report["rows"] if table in row["tables"]]
    printed = report["paper"]["rows"] if report["paper"] else {}
    lines = [[_name(row)] for row in rows]
    for metric in metrics:
        values = [row["metrics"]["test"]["kept"][metric] for row in rows]
        best = max((value["mean"] for value in values), default=0.0)
        baseline = max((v["mean"] for row, v in zip(rows, values, strict=True) if row["baseline"]), default=None)
        for line, row, value in zip(lines, rows, values, strict=True):
            notes = []
            if not row["baseline"] and baseline:
                notes.append(percent(value["mean"] / baseline - 1))
            if metric in printed.get(row["name"], {}):
                notes.append(f"paper {decimal(printed[row['name']][metric])}")
            line.append(
                Figure(
                    decimal(value["mean"]),
                    spread(value),
                    tuple(notes),
                    best=value["mean"] == best,
                    best_baseline=row["baseline"] and value["mean"] == baseline,
                )
            )
    return Table(("", *(metric_title(metric) for metric in metrics)), lines)


def all_rows_table(report: dict[str, Any]) -> Table:
    """Every row with seen items kept and excluded, and the counting floor."""
    metrics = ("hr@10", "mrr@10", "ndcg@10")
    rows = [*report["rows"], report["counting"]]
    places = [("valid", "kept", "ndcg@10"), *(("test", p, m) for p in ("kept", "excluded") for m in metrics)]
    best = {
        (split, protocol, metric): max(row["metrics"][split][protocol][metric]["mean"] for row in rows)
        for split, protocol, metric in places
    }
    lines = []
    for row in rows:
        line = [_name(row) if "seeds" in row else Figure(row["name"], notes=("item → next item, not trained",))]
        for place in places:
            split, protocol, metric = place
            value = row["metrics"][split][protocol][metric]
            line.append(Figure(decimal(value["mean"]), spread(value), best=value["mean"] == best[place]))
        lines.append(line)
    return Table(
        ("", *(metric_title(metric) for _, _, metric in places)),
        lines,
        spans=(("", 1), ("validation, kept", 1), ("test, seen items kept", 3), ("test, seen items excluded", 3)),
    )


def tests_table(report: dict[str, Any]) -> Table:
    """The paired t-tests, a line for each pair, both protocols beside each other."""
    pairs: dict[tuple[str, str], dict[str, dict[str, Any]]] = {}
    for test in report["comparisons"]:
        pairs.setdefault((test["row"], test["against"]), {})[test["protocol"]] = test
    order = [row["name"] for row in report["rows"]]
    lines = []
    for (row, against), tests in sorted(pairs.items(), key=lambda pair: order.index(pair[0][0])):
        best = [protocol for protocol, test in tests.items() if test["why"] == "best baseline"]
        why = ("best baseline" if len(best) == len(tests) else f"best baseline, seen items {best[0]}",) if best else ()
        ours, theirs = next(iter(tests.values()))["seeds"]
        seeds = () if ours == theirs or against == report["counting"]["name"] else (f"{ours} and {theirs} seeds",)
        lines.append(
            [
                Figure(row),
                Figure(against, notes=(*why, *seeds)),
                *(figure for protocol in ("kept", "excluded") for figure in _test_figures(tests[protocol])),
            ]
        )
    return Table(
        ("", "against", *2 * ("difference", "95% interval", "p")),
        lines,
        spans=(("", 2), ("seen items kept", 3), ("seen items excluded", 3)),
    )


def _test_figures(test: dict[str, Any]) -> list[Figure]:
    """Difference, interval and p of one test."""
    return [
        Figure(percent(test["difference"]), best=test["p"] is not None and test["p"] < 0.001),
        Figure(interval(test["low"], test["high"])),
        Figure(p_value(test["p"])),
    ]


def cost_table(report: dict[str, Any]) -> Table:
    """What each row took."""
    lines = [
        [
            Figure(row["name"]),
            Figure(f"{len(row['seeds'])}"),
            Figure(f"{row['parameters']:,}"),
            Figure(f"{row['model_bytes'] / 1e6:.1f} MB"),
            Figure(f"{row['best_epoch']:.0f} of {row['epochs']:.0f}"),
            Figure(f"{row['epoch_s']:.1f}"),
            Figure(duration(row["training_s"])),
            Figure(f"{row['embedding_error']:.0e}"),
        ]
        for row in report["rows"]
    ]
    columns = ("", "seeds", "parameters", "model file", "best epoch", "s an epoch", "a training", "ONNX error")
    return Table(columns, lines)


def settings_table(report: dict[str, Any]) -> Table:
    """What each row was trained with, beside the models' defaults and what all rows share."""
    shared = shared_settings(report)
    lines = []
    for row in report["rows"]:
        choice = report["tuning"].get(row["name"])
        chosen = choice["chosen"] if choice else {}
        own = {name: value for name, value in row["changes"].items() if name not in shared and name not in chosen}
        named = row["model"] if row["variant"] is None else f"{row['model']}, {row['variant']}"
        line = [Figure(row["name"]), Figure(named), Figure(changes_text(own) or "defaults")]
        if report["tuning"]:
            line.append(Figure("not tuned" if choice is None else changes_text(choice["chosen"])))
            line.append(Figure("" if choice is None else "; ".join(_trial(trial) for trial in choice["trials"])))
        lines.append(line)
    tuned = ("chosen by validation", "trials (validation)") if report["tuning"] else ()
    return Table(("", "model", "settings of its own", *tuned), lines)


def shared_settings(report: dict[str, Any]) -> dict[str, Any]:
    """What the plan sets to the same value in every row, and no row's tuning has chosen anew."""
    first, *others = [row["changes"] for row in report["rows"]]
    tuned = {name for choice in report["tuning"].values() for name in choice["chosen"]}
    return {
        name: value
        for name, value in first.items()
        if name not in tuned and all(name in changes and changes[name] == value for changes in others)
    }


def changes_text(changes: dict[str, Any]) -> str:
    """Names and values in one line."""
    return ", ".join(
        f"{name} {str(value).lower() if isinstance(value, bool) else value}" for name, value in changes.items()
    )


def groups_table(report: dict[str, Any], kind: str, protocol: str) -> Table:
    """NDCG@10 of each group of users, all rows."""
    grouping = report["groups"][kind]
    names = list(grouping["users"])
    lines = [
        [Figure(row), *(Figure(decimal(values[name])) for name in names)]
        for row, values in grouping["ndcg@10"][protocol].items()
    ]
    return Table(("", *(f"{name} ({grouping['users'][name]:,} users)" for name in names)), lines)


def duration(seconds: float) -> str:
    """Seconds as a person says them."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def _name(row: dict[str, Any]) -> Figure:
    seeds = len(row["seeds"])
    return Figure(row["name"], notes=(f"{seeds} seed{'s' if seeds != 1 else ''}",))


def _trial(trial: dict[str, Any]) -> str:
    value = "not trainable" if trial["value"] is None else decimal(trial["value"])
    return f"{changes_text(trial['changes'])}: {value}"
