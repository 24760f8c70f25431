"""The plots of a scoring job's report: small, so that text keeps its size on a phone and three stand side by side."""

from __future__ import annotations

from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ipsrec_onnx.score_counts import length_range
from ipsrec_onnx.svg import COLOURS, INK, plot_style, svg
from ipsrec_onnx.throughput import users_per_second

_WIDTH, _HEIGHT = 4.0, 2.7  # inches; one inch is about 90 pixels on the page
_SPANS = 60
_BLUE, _ORANGE = COLOURS[0], COLOURS[1]
_STAGES = ("read", "map", "encode", "retrieve", "lay_out", "write")


def throughput_plot(run: dict[str, Any], label: str) -> str:
    """Users per second over time, and their mean."""
    edges, rates = users_per_second(run["samples"], most=_SPANS)
    unit, name = (3600.0, "hours") if edges[-1] > 7200 else (60.0, "minutes") if edges[-1] > 120 else (1.0, "seconds")
    seconds, done = run["samples"][-1]
    with plot_style(legend_fontsize=10):
        figure, ax = _figure()
        ax.stairs(rates, [edge / unit for edge in edges], fill=True, color=_BLUE, alpha=0.25)
        ax.stairs(rates, [edge / unit for edge in edges], color=_BLUE, linewidth=1.6)
        ax.axhline(done / seconds, color=_ORANGE, linestyle="--", linewidth=1.3, label=f"mean: {done / seconds:,.0f}")
        ax.set_xlabel(f"{name} of scoring")
        ax.set_ylabel("users per second")
        ax.set_xlim(0, edges[-1] / unit)
        ax.set_ylim(0, 1.15 * max(rates))
        figure.legend(loc="outside upper left")
        _thousands(ax, "x")
        _thousands(ax, "y")
        return svg(figure, "throughput", label=label)


def stages_plot(run: dict[str, Any], label: str) -> str:
    """CPU seconds of each stage, in the order of the work."""
    total = sum(run["cpu_s"].values()) or 1.0
    stages = [(stage.replace("_", " "), run["cpu_s"].get(stage, 0.0)) for stage in _STAGES]
    with plot_style(legend_fontsize=10):
        figure, ax = _figure()
        _bars(ax, [(name, value, f"{value:,.2f} s, {value / total:.0%}") for name, value in stages])
        ax.set_xlabel("CPU seconds")
        _thousands(ax, "x")
        return svg(figure, "stages", label=label)


def accounts_plot(shares: list[tuple[str, float, str]], name: str, label: str, *, axis: str) -> str:
    """Bars of (name, number, words), the first on top; a number is a percentage."""
    with plot_style(legend_fontsize=10):
        lines = max((bar[0].count("\n") + 1 for bar in shares), default=1)
        figure, ax = _figure(height=max(_HEIGHT, 0.7 + len(shares) * (0.12 + 0.17 * lines)))
        _bars(ax, shares)
        ax.set_xlabel(axis)
        _thousands(ax, "x")
        return svg(figure, name, label=label)


def lengths_plot(counts: dict[str, int], max_len: int, label: str) -> str:
    """How many users have histories of which length; ranges that nobody is in keep their place."""
    ranges, max_len_at = _all_ranges(list(counts), max_len)
    with plot_style(legend_fontsize=10):
        figure, ax = _figure()
        ax.bar(range(len(ranges)), [counts.get(name, 0) for name in ranges], width=0.86, color=_BLUE)
        if max_len_at is not None:
            ax.axvline(max_len_at, color=_ORANGE, linestyle="--", linewidth=1.3, label=f"the model sees {max_len}")
            figure.legend(loc="outside upper left")
        step = 2 if len(ranges) > 9 else 1  # else numbers would touch
        ax.set_xticks(range(0, len(ranges), step), [_short(name) for name in ranges[::step]])
        ax.set_xlabel("known items of a user, at most")
        ax.set_ylabel("users")
        ax.grid(axis="x", visible=False)
        _thousands(ax, "y")
        return svg(figure, "lengths", label=label)


def scores_plot(scores: dict[str, Any], label: str) -> str:
    """How scores are spread, of all candidates and of the best of each list; both are shares, to be compared."""
    edges, first = scores["edges"], scores["best_first"]
    with plot_style(legend_fontsize=10):
        figure, ax = _figure()
        best = scores["best_counts"]
        for counts, its_edges, colour, name in (
            (scores["counts"], edges, _BLUE, "all candidates"),
            (best, edges[first : first + len(best) + 1], _ORANGE, "the first of each list"),
        ):
            shares = [100 * count / sum(counts) for count in counts]
            ax.stairs(shares, its_edges, fill=True, color=colour, alpha=0.25)
            ax.stairs(shares, its_edges, color=colour, linewidth=1.3, label=name)
        ax.set_xlabel("score")
        ax.set_ylabel("% of them")
        ax.set_ylim(0)
        _thousands(ax, "y")
        figure.legend(loc="outside upper left", ncols=2)
        return svg(figure, "scores", label=label)


def coverage_plot(coverage: dict[str, Any], label: str) -> str:
    """How many items and providers have been recommended at least once after so many lists."""
    with plot_style(legend_fontsize=10):
        figure, ax = _figure()
        for name, colour in (("items", _BLUE), ("providers", _ORANGE)):
            if coverage[name]["allowed"]:
                shares = [100 * found / coverage[name]["allowed"] for found in coverage[name]["curve"]]
                ax.plot(coverage["lists"], shares, color=colour, label=f"{name}: {shares[-1]:.1f}%")
        ax.set_xlabel("lists")
        ax.set_ylabel("% recommended")
        ax.set_xlim(0, coverage["num_lists"])
        ax.set_ylim(0, 103)
        figure.legend(loc="outside upper left", ncols=2)
        _thousands(ax, "x")
        return svg(figure, "coverage", label=label)


def concentration_plot(concentration: dict[str, Any], label: str) -> str:
    """The Lorenz curves of lists and catalog over providers."""
    with plot_style(legend_fontsize=10):
        figure, ax = _figure()
        ax.plot([0, 100], [0, 100], color=INK, linewidth=0.8, linestyle=":")
        ax.annotate("all equal", (50, 50), (44, 52), ha="right", va="bottom")
        for name, colour in (("catalog", _BLUE), ("lists", _ORANGE)):
            curve = concentration[name]
            if curve["x"]:
                x, y = ([100 * value for value in curve[axis]] for axis in ("x", "y"))
                ax.plot(x, y, color=colour, label=f"{name}: Gini {curve['gini']:.2f}")
        ax.set_xlabel("% of providers, smallest first")
        ax.set_ylabel("% they have together")
        ax.set_xlim(0, 100)
        ax.set_ylim(0, 100)
        figure.legend(loc="outside upper left", ncols=2)
        return svg(figure, "concentration", label=label)


def _figure(*, height: float = _HEIGHT) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(_WIDTH, height), layout="constrained")
    ax: Axes = figure.subplots()
    for spine in ("left", "bottom"):
        ax.spines[spine].set_visible(False)
    ax.tick_params(axis="x", pad=6)  # else the numbers of both axes could touch at the origin
    return figure, ax


def _bars(ax: Axes, bars: list[tuple[str, float, str]]) -> None:
    """Horizontal bars with words at their ends."""
    places = [-number for number in range(len(bars))]
    drawn = ax.barh(places, [value for _, value, _ in bars], height=0.66, color=_BLUE)
    ax.bar_label(drawn, [words for _, _, words in bars], padding=3)
    ax.set_yticks(places, [name for name, _, _ in bars])
    ax.set_xlim(0, 1.6 * max((value for _, value, _ in bars), default=0.0) or 1.0)  # room for the words
    ax.grid(axis="y", visible=False)
    ax.locator_params(axis="x", nbins=4, integer=all(value == int(value) for _, value, _ in bars))


def _short(name: str) -> str:
    """The end of a range of lengths, a power of two: 64, 1k for 1024."""
    most = int(name.partition("-")[2] or name)
    return f"{most >> 10}k" if most >= 1024 else str(most)


def _thousands(ax: Axes, axis: str) -> None:
    """Numbers with commas, without digits that they do not need."""
    (ax.yaxis if axis == "y" else ax.xaxis).set_major_formatter(lambda value, _: f"{value:,.10g}")


def _all_ranges(found: list[str], max_len: int) -> tuple[list[str], float | None]:
    """All ranges up to the longest one found, and where among them max_len lies; None beyond the last."""
    ranges: list[str] = []
    max_len_at = None
    while len(ranges) < 3 or any(name not in ranges for name in found):
        ranges.append(length_range(len(ranges)))
        low, _, high = ranges[-1].partition("-")
        if int(low) <= max_len <= int(high or low):
            within = (max_len - int(low) + 1) / (int(high or low) - int(low) + 1)
            max_len_at = len(ranges) - 1.5 + within
    return ranges, max_len_at
