"""The sentences of a report that hold its figures: what ran, and what to read off each plot."""

from __future__ import annotations

from typing import Any

from ipsrec_experiment.tables import changes_text, decimal, duration, interval, percent, shared_settings

MOST_LEADING = 7  # lines that can be told apart in one plot


def leading_rows(report: dict[str, Any]) -> list[str]:
    """Rows worth a line in a crowded plot: baseline and reference, the best of each table by validation, counting."""
    rows = report["rows"]
    by_validation = sorted(rows, key=lambda row: -_valid(row))
    names = [report["best_baseline"]["kept"], report["reference"]]
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
    best, base = best_row(report), report["best_baseline"]["kept"]
    lines = [
        f"Best by validation: {best['name']}, test NDCG@10 {_test(best, 'kept')}, "
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
        if test is not None:
            lines.append(
                f"Against {base}, the best baseline by validation, {said}: {percent(test['difference'])} "
                f"(95% interval {interval(test['low'], test['high'])})."
            )
    floor = report["counting"]["metrics"]["test"]
    lines.append(
        f"Counting which item follows which, without training, reaches {decimal(floor['kept']['ndcg@10']['mean'])}, "
        f"and {decimal(floor['excluded']['ndcg@10']['mean'])} with seen items excluded."
    )
    return lines


def what_ran(report: dict[str, Any]) -> list[tuple[str, str]]:
    """Names and values: data, machine, versions, time."""
    what = report["what"]
    counts, data = what["dataset"]["counts"], what["dataset"]
    low, high = what["seeds"]
    machines = "; ".join(
        ", ".join(f"{name} {value}" for name, value in machine.items()) for machine in what["machines"]
    )
    versions = "; ".join(
        ", ".join(f"{name} {value}" for name, value in versions.items()) for versions in what["versions"]
    )
    return [
        ("data", f"{data['name']}: " + ", ".join(f"{counts[name]:,} {name}" for name in counts)),
        ("fingerprint", data["fingerprint"]),
        ("held out", f"{what['test_users']:,} test users, {what['valid_users']:,} validation users"),
        (
            "cells",
            f"{what['cells']} of {what['rows_with_cells']} rows, "
            + (f"{low} seed{'s' if low > 1 else ''} each" if low == high else f"{low} to {high} seeds each"),
        ),
        ("training time", f"{duration(what['training_s'])}, the sum over cells"),
        ("machine", machines),
        ("versions", versions),
        ("command", what["command"]),
    ]


def read_curves(report: dict[str, Any]) -> str:
    """What to read off the training curves."""
    best = max(report["rows"], key=lambda row: max(row["curve"]["mean"]))
    least = min(report["rows"], key=lambda row: max(row["curve"]["mean"]))
    high, epoch = _peak(best)
    low, _ = _peak(least)
    return (
        f"Highest: {best['name']}, {decimal(high)} at epoch {epoch}; lowest peak: {least['name']}, {decimal(low)}. "
        "The band is from the worst to the best seed; a line ends where the first seed stopped."
    )


def read_metrics(report: dict[str, Any]) -> str:
    """What to read off the metric of each row."""
    gains = [
        (row["metrics"]["test"]["excluded"]["ndcg@10"]["mean"] / max(_mean(row, "kept"), 1e-12) - 1, row["name"])
        for row in report["rows"]
    ]
    most, least = max(gains), min(gains)
    return (
        "Bars are the standard deviation over seeds. Excluding seen items changes NDCG@10 by "
        f"{percent(least[0])} ({least[1]}) to {percent(most[0])} ({most[1]}). The dashed lines are the counting floor: "
        "a row left of the line of its colour is worse than counting."
    )


def read_groups(report: dict[str, Any], kind: str) -> str:
    """What to read off a plot by groups: where the best row gains most over the reference."""
    best, against = best_row(report)["name"], report["reference"] or report["best_baseline"]["excluded"]
    figures = report["groups"][kind]["ndcg@10"]["excluded"]
    if against is None or against == best:
        return "Only rows that lead are drawn; the table below has all of them."
    gains = {
        name: figures[best][name] / figures[against][name] - 1 for name in figures[best] if figures[against][name] > 0
    }
    if not gains:
        return f"{against} finds nothing in any group."
    said = ", ".join(f"{percent(gain)} ({name})" for name, gain in gains.items())
    return f"{best} against {against}, seen items excluded: {said}. Only rows that lead are drawn."


def settings_note(report: dict[str, Any]) -> str:
    """Who chose the settings, and which all rows have."""
    who = (
        "The validation metric of seed 0 chose among the trials, the same number for every row; test chose nothing."
        if report["tuning"]
        else "As the plan gives them; nothing was tuned here."
    )
    shared = changes_text(shared_settings(report))
    return f"{who} What is not named has the model's default." + (f" Every row: {shared}." if shared else "")


def tests_note(report: dict[str, Any]) -> str:
    """How many tests, and what they do not say."""
    return (
        f"{len(report['comparisons'])} paired two-sided t-tests over {report['what']['test_users']:,} test users "
        "(NDCG@10 of each, the mean over seeds), no correction: read a p-value between .001 and .05 as no finding. "
        "The users are the sample: the tests say nothing of the spread over seeds or over data sets. "
        "Bold: p < .001. The best baseline is the one with the best validation NDCG@10 of the same protocol."
    )


def _peak(row: dict[str, Any]) -> tuple[float, int]:
    mean = row["curve"]["mean"]
    return max(mean), mean.index(max(mean)) + 1


def _mean(row: dict[str, Any], protocol: str) -> float:
    return float(row["metrics"]["test"][protocol]["ndcg@10"]["mean"])


def _test(row: dict[str, Any], protocol: str) -> str:
    metric = row["metrics"]["test"][protocol]["ndcg@10"]
    return decimal(metric["mean"]) + ("" if metric["std"] is None else f" ± {decimal(metric['std'])}")


def _valid(row: dict[str, Any]) -> float:
    return float(row["metrics"]["valid"]["kept"]["ndcg@10"]["mean"])
