"""The sentences of a report that hold its figures: what ran, and what to read off each table and plot."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ipsrec_experiment.cell import PROTOCOLS
from ipsrec_experiment.tables import (
    changes_text,
    decimal,
    duration,
    interval,
    metric_title,
    percent,
    shared_settings,
)
from ipsrec_onnx.versions import NOT_INSTALLED

MOST_LEADING = 7  # lines that can be told apart in one plot


def leading_rows(report: dict[str, Any]) -> list[str]:
    """Rows worth a line in a crowded plot: baselines, reference, by validation the best of all and tables, counting."""
    rows = report["rows"]
    by_validation = sorted(rows, key=lambda row: -_valid(row))
    names = [report["best_baseline"]["kept"], report["reference"], best_row(report)["name"]]
    names += [report["best_baseline"]["excluded"]]
    ours = [row for row in by_validation if not row["baseline"]]
    names += [row["name"] for row in ours if "paper" in row["tables"]][:1]
    names += [row["name"] for row in ours if "beyond" in row["tables"]][:1]
    best = next((row for row in ours), None)
    names += [] if best is None else [name for name in best["against"] if name != report["counting"]["name"]]
    known = {row["name"] for row in rows}
    kept = [name for name in dict.fromkeys(names) if name in known]
    return [*kept[: MOST_LEADING - 1], report["counting"]["name"]]


def best_row(report: dict[str, Any]) -> dict[str, Any]:
    """The row with the best validation NDCG@10."""
    best: dict[str, Any] = max(report["rows"], key=_valid)
    return best


def summary(report: dict[str, Any]) -> list[str]:
    """The first lines: what was found, in figures."""
    best = best_row(report)
    lines = [
        f"Best of the trained rows by validation: {best['name']}, test NDCG@10 {_test(best, 'kept')}, "
        f"{_test(best, 'excluded')} with seen items excluded."
    ]
    for protocol, said in (("kept", "seen items kept"), ("excluded", "seen items excluded")):
        base = report["best_baseline"][protocol]
        test = next(
            (
                test
                for test in report["comparisons"]
                if (test["row"], test["against"], test["protocol"]) == (best["name"], base, protocol)
            ),
            None,
        )
        if test is not None and test["difference"] is not None:
            ends = interval(test["low"], test["high"])
            lines.append(
                f"Against {base}, the best baseline by validation, {said}: {percent(test['difference'])}"
                + (f" (95% interval {ends})." if ends else ".")
            )
    floor = report["counting"]["metrics"]["test"]
    kept, excluded = (_versus(_mean(best, protocol), floor[protocol]["ndcg@10"]["mean"]) for protocol in PROTOCOLS)
    lines.append(
        f"Counting which item came right after which reaches {kept}, and {excluded} with seen items excluded. "
        "It counts all that lies before the test items: the validation items too, which no row trains on."
    )
    return lines


def _versus(best: float, floor: float) -> str:
    """The floor, and how far the best row is from it."""
    return decimal(floor) + (f" (the best row: {percent(best / floor - 1)})" if floor else "")


def what_ran(report: dict[str, Any]) -> list[tuple[str, str]]:
    """Names and values: data, machine, versions, time."""
    what = report["what"]
    counts, data = what["dataset"]["counts"], what["dataset"]
    low, high = what["seeds"]
    missing = what["rows"] - what["rows_with_cells"]
    machines = "; ".join(
        ", ".join(f"{name} {value}" for name, value in machine.items()) for machine in what["machines"]
    )
    versions = "; ".join(
        ", ".join(f"{name} {value}" for name, value in versions.items() if value != NOT_INSTALLED)
        for versions in what["versions"]
    )
    return [
        ("data", f"{data['name']}: " + ", ".join(f"{counts[name]:,} {name}" for name in counts)),
        ("fingerprint", data["fingerprint"]),
        ("held out", f"{what['test_users']:,} test users, {what['valid_users']:,} validation users"),
        (
            "cells",
            f"{what['cells']} in {what['rows_with_cells']} rows, "
            + (f"{low} seed{'s' if low > 1 else ''} each" if low == high else f"{low} to {high} seeds each")
            + (f"; {missing} more row{'s have' if missing > 1 else ' has'} none yet" if missing else ""),
        ),
        ("training time", f"{duration(what['training_s'])}, the sum over cells"),
        ("machine", machines),
        ("versions", versions),
        ("last command", what["command"]),
    ]


def read_curves(report: dict[str, Any]) -> str:
    """What the training curves say."""
    metrics = metrics_of_curves(report["rows"])
    if len(metrics) > 1:
        return f"Rows stop by different metrics ({', '.join(metrics)}): compare only curves of the same one."
    best = max(report["rows"], key=lambda row: _peak(row)[0])
    least = min(report["rows"], key=lambda row: _peak(row)[0])
    high, epoch = _peak(best)
    highest = f"Highest validation {metrics[0]}: {best['name']}, {decimal(high)} at epoch {epoch}"
    return (
        f"{highest}; lowest peak: {least['name']}, {decimal(_peak(least)[0])}." if least is not best else f"{highest}."
    )


def curves_key(report: dict[str, Any]) -> str:
    """How to read the plot of the curves."""
    said = "The dot, and the figure beside a name, is the peak."
    if report["what"]["seeds"][1] == 1:
        return said
    return f"{said} Lines are means over seeds, bands from the worst to the best, up to where the first seed stopped."


def metrics_of_curves(rows: Sequence[dict[str, Any]]) -> list[str]:
    """The validation metrics by which some rows stop, each once."""
    return list(dict.fromkeys(metric_title(row["curve"]["metric"]) for row in rows))


def read_metrics(report: dict[str, Any]) -> str:
    """What leaving out seen items does."""
    gains = [
        (_mean(row, "excluded") / _mean(row, "kept") - 1, row["name"])
        for row in report["rows"]
        if _mean(row, "kept") > 0
    ]
    if not gains:
        return "With seen items kept, no row finds anything."
    (least, first), (most, last) = min(gains), max(gains)
    range_ = f"{percent(least)} ({first})" + (f" to {percent(most)} ({last})" if first != last else "")
    return f"Excluding seen items changes NDCG@10 by {range_}."


def metrics_key(report: dict[str, Any]) -> str:
    """How to read the plot of the metrics."""
    bars = "Bars are the standard deviation over seeds. " if report["what"]["seeds"][1] > 1 else ""
    return (
        f"{bars}The dashed lines are the counting floor: a point left of the line of its colour is worse than counting."
    )


def read_groups(report: dict[str, Any], kind: str) -> str:
    """Where the best row gains most over the reference, seen items excluded."""
    best, against = best_row(report)["name"], report["reference"] or report["best_baseline"]["excluded"]
    figures = report["groups"][kind]["ndcg@10"]["excluded"]
    if against is None or against == best:
        return "Seen items excluded."
    gains = [
        f"{percent(figures[best][name] / figures[against][name] - 1)} ({name})"
        for name in figures[best]
        if figures[against][name] > 0
    ]
    nothing = [name for name in figures[best] if figures[against][name] == 0]
    said = f"{best} against {against}, seen items excluded: {', '.join(gains)}." if gains else "Seen items excluded."
    return said + (f" {against} finds nothing here: {'; '.join(nothing)}." if nothing else "")


def groups_key(report: dict[str, Any]) -> str:
    """What the plots by groups leave out."""
    drawn = len(leading_rows(report)) - 1
    return "" if drawn == len(report["rows"]) else "Only rows that lead are drawn; the table has all."


def settings_note(report: dict[str, Any]) -> str:
    """Who chose the settings, and which all rows have."""
    who = _who_chose(report)
    shared = changes_text(shared_settings(report))
    return f"{who} What is not named has the model's default." + (f" Every row: {shared}." if shared else "")


def _who_chose(report: dict[str, Any]) -> str:
    trials = {len(choice["trials"]) for choice in report["tuning"].values()}
    if not trials:
        return "As the plan gives them; nothing was tuned here."
    number = f"{min(trials)}" if len(trials) == 1 else f"{min(trials)} to {max(trials)}"
    untuned = len(report["rows"]) - len(report["tuning"])
    return f"The validation metric of seed 0 chose among the trials ({number} a row); test chose nothing." + (
        f" {untuned} row{'s were' if untuned > 1 else ' was'} not tuned." if untuned else ""
    )


def tests_note(report: dict[str, Any]) -> str:
    """How many tests, and what they do not say."""
    number = sum(test["p"] is not None for test in report["comparisons"])
    baselines = any(report["best_baseline"].values())
    return (
        f"{number} paired two-sided t-test{'s' if number != 1 else ''} over {report['what']['test_users']:,} test "
        "users (NDCG@10 of each, the mean over seeds), no correction: read a p-value between .001 and .05 as no "
        "finding. The users are the sample: the tests say nothing of the spread over seeds or over data sets. "
        "Bold: p < .001."
        + (" The best baseline is the one with the best validation NDCG@10 of the same protocol." if baselines else "")
    )


def _peak(row: dict[str, Any]) -> tuple[float, int]:
    """The highest mean of a curve, and its epoch."""
    mean = row["curve"]["mean"]
    return max(mean), row["curve"]["epochs"][mean.index(max(mean))]


def _mean(row: dict[str, Any], protocol: str) -> float:
    return float(row["metrics"]["test"][protocol]["ndcg@10"]["mean"])


def _test(row: dict[str, Any], protocol: str) -> str:
    metric = row["metrics"]["test"][protocol]["ndcg@10"]
    return decimal(metric["mean"]) + ("" if metric["std"] is None else f" ± {decimal(metric['std'])}")


def _valid(row: dict[str, Any]) -> float:
    return float(row["metrics"]["valid"]["kept"]["ndcg@10"]["mean"])
