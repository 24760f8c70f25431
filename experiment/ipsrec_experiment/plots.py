"""The plots of a report, as inline SVG."""

from __future__ import annotations

from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ipsrec_experiment.plan import TABLES
from ipsrec_experiment.tables import decimal
from ipsrec_experiment.wording import leading_rows, metrics_of_curves
from ipsrec_onnx.svg import COLOURS, LINE, plot_style, svg

KEPT, EXCLUDED = COLOURS[0], COLOURS[1]

_TABLE_TITLES = {"paper": "The paper's table", "ablation": "Ablation", "beyond": "Beyond the paper"}


def curves_plot(report: dict[str, Any]) -> str:
    """Validation metric by epoch, a panel for each table, a line for each row, a band for its seeds."""
    panels = [(table, rows) for table in TABLES if (rows := _only_in(report, table))]
    with plot_style():
        figure = Figure(figsize=(8.4, 3.3 * len(panels)), layout="constrained")
        axes = figure.subplots(len(panels), 1, sharex=True, sharey=True, squeeze=False)[:, 0]
        for ax, (table, rows) in zip(axes, panels, strict=True):
            for row, colour in zip(rows, _colours(len(rows)), strict=True):
                curve = row["curve"]
                epochs = curve["epochs"]
                ax.fill_between(epochs, curve["low"], curve["high"], color=colour, alpha=0.2, linewidth=0)
                peak = max(curve["mean"])
                ax.plot(epochs, curve["mean"], color=colour, label=f"{row['name']} ({decimal(peak)})")
                ax.plot([epochs[curve["mean"].index(peak)]], [peak], "o", color=colour, markersize=4)
            ax.set_title(_TABLE_TITLES[table])
            ax.set_ylabel(f"validation {', '.join(metrics_of_curves(rows))}")
            ax.legend(loc="center left", bbox_to_anchor=(1.0, 0.5))
            _tidy(ax)
        axes[-1].set_xlabel("epoch")
        return svg(figure, "curves", label="Validation metric of each row by epoch")


def metrics_plot(report: dict[str, Any]) -> str:
    """NDCG@10 of each row, sorted, with seen items kept and excluded, and the counting floor of both."""
    rows = sorted(report["rows"], key=lambda row: _test(row, "excluded")["mean"])
    floor = report["counting"]["metrics"]["test"]
    with plot_style():
        figure = Figure(figsize=(8.4, 1.3 + 0.3 * len(rows)), layout="constrained")
        ax = figure.subplots()
        for protocol, colour, marker in (("kept", KEPT, "o"), ("excluded", EXCLUDED, "s")):
            values = [_test(row, protocol) for row in rows]
            ax.errorbar(
                [value["mean"] for value in values],
                range(len(rows)),
                xerr=[value["std"] or 0.0 for value in values],
                fmt=marker,
                color=colour,
                markersize=5,
                capsize=3,
                linestyle="none",
                label=f"seen items {protocol}",
            )
            ax.axvline(
                floor[protocol]["ndcg@10"]["mean"],
                color=colour,
                linestyle="--",
                linewidth=1.1,
                label=f"counting, seen items {protocol}",
            )
        for place, row in enumerate(rows):
            ends = sorted(_test(row, protocol)["mean"] for protocol in ("kept", "excluded"))
            ax.plot(ends, [place, place], color=LINE, linewidth=1.6, zorder=1)
        ax.set_yticks(range(len(rows)), [row["name"] for row in rows])
        ax.set_xlabel("test NDCG@10")
        ax.set_ylim(-0.7, len(rows) - 0.3)
        ax.grid(axis="y", visible=False)
        figure.legend(loc="outside upper left", ncols=2)
        _tidy(ax, values="x")
        return svg(figure, "metrics", label="Test NDCG@10 of each row with both protocols")


def length_plot(report: dict[str, Any]) -> str:
    """NDCG@10 of the leading rows by length of history, a panel for each protocol."""
    grouping = report["groups"]["length"]
    names = list(grouping["users"])
    leading = leading_rows(report)
    with plot_style():
        figure = Figure(figsize=(8.4, 4.2), layout="constrained")
        panels = figure.subplots(1, 2, sharey=True)
        for ax, protocol in zip(panels, ("kept", "excluded"), strict=True):
            for row, colour in zip(leading, _colours(len(leading)), strict=True):
                values = grouping["ndcg@10"][protocol][row]
                style = "--" if row == report["counting"]["name"] else "-"
                label = row if protocol == "kept" else None
                ax.plot(
                    names, [values[name] for name in names], style, marker="o", markersize=4, color=colour, label=label
                )
            ax.set_title(f"seen items {protocol}")
            ax.set_xlabel(grouping["title"])
            _tidy(ax)
        panels[0].set_ylabel("test NDCG@10")
        figure.legend(loc="outside upper left", ncols=3)
        return svg(figure, "length", label="Test NDCG@10 by length of history")


def provider_plot(report: dict[str, Any]) -> str:
    """NDCG@10 of the leading rows by whether the next item or its provider was in the history."""
    grouping = report["groups"]["provider"]
    names = list(grouping["users"])
    leading = leading_rows(report)
    with plot_style():
        figure = Figure(figsize=(8.4, 1.4 + 0.26 * len(leading) * len(names)), layout="constrained")
        ax = figure.subplots()
        height = 0.8 / len(leading)
        for number, (row, colour) in enumerate(zip(leading, _colours(len(leading)), strict=True)):
            values = [grouping["ndcg@10"]["excluded"][row][name] for name in names]
            places = [-group + 0.4 - (number + 0.5) * height for group in range(len(names))]
            bars = ax.barh(places, values, height=0.86 * height, color=colour, label=row)
            ax.bar_label(bars, [decimal(value) for value in values], padding=3, fontsize=8)
        labels = [f"{_wrapped(name)}\n{grouping['users'][name]:,} users" for name in names]
        ax.set_yticks([-group for group in range(len(names))], labels)
        ax.set_xlabel("test NDCG@10, seen items excluded")
        ax.margins(x=0.1)
        ax.grid(axis="y", visible=False)
        figure.legend(loc="outside upper left", ncols=3)
        _tidy(ax, values="x")
        return svg(figure, "provider", label="Test NDCG@10 by whether the next item's provider was in the history")


def _only_in(report: dict[str, Any], table: str) -> list[dict[str, Any]]:
    """Rows of the first of their tables, so that each is drawn once; few enough for the colours."""
    return [row for row in report["rows"] if row["tables"][0] == table]


def _colours(count: int) -> list[str]:
    return [COLOURS[number % len(COLOURS)] for number in range(count)]


def _test(row: dict[str, Any], protocol: str) -> dict[str, Any]:
    metric: dict[str, Any] = row["metrics"]["test"][protocol]["ndcg@10"]
    return metric


def _wrapped(name: str) -> str:
    return name.replace(", ", ",\n")


def _tidy(ax: Axes, *, values: str = "y") -> None:
    """Numbers without the 0 before the point, and no frame where there is a grid."""
    axis = ax.yaxis if values == "y" else ax.xaxis
    axis.set_major_formatter(lambda value, _: decimal(value, 3) if value else "0")
    for spine in ("left", "bottom"):
        ax.spines[spine].set_visible(False)
