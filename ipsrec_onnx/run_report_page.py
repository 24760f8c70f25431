"""Lays the figures of a scoring job out as a page: what to read in each plot, in words, and the plots."""

from __future__ import annotations

import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from ipsrec_onnx.memory_plan import size_in_words
from ipsrec_onnx.page import render_page
from ipsrec_onnx.run_report_plots import (
    accounts_plot,
    concentration_plot,
    coverage_plot,
    lengths_plot,
    scores_plot,
    stages_plot,
    throughput_plot,
)

_BAR_NAME = 20  # letters of a line beside a bar


class _Plot(NamedTuple):
    """A plot on the page: heading, SVG, what to read in it."""

    title: str
    svg: str
    words: str


def run_report_page(figures: dict[str, Any]) -> str:
    """Give the page of a job, whose figures are as run_figures gave them."""
    what = figures["what"]
    values = {
        "title": f"Scoring {Path(what['input']['source'].rstrip('/')).name}",
        "summary": _summary(figures),
        "tiles": _tiles(figures),
        "sections": [
            ("users", "Users", _users(figures), _users_note(figures)),
            ("lists", "Lists", _lists(figures), _lists_note(figures)),
            ("run", "Time", _run(figures), _run_note(figures)),
        ],
        "what_ran": _what_ran(figures),
        "figures": figures,
    }
    return render_page("ipsrec_onnx", "run_report.html.j2", values)


def percent(part: float, whole: float) -> str:
    """A share in words: no share of nothing, and never 0% or 100% of what is not."""
    if not whole:
        return "–"
    share = 100 * part / whole
    if 0 < share < 0.1:
        return "<0.1%"
    return f"{min(share, 99.9) if part < whole else share:.1f}%".replace(".0%", "%")


def _summary(figures: dict[str, Any]) -> str:
    counts, what = figures["counts"], figures["what"]
    diverted = f", {counts['rows_diverted']:,} set aside as malformed" if counts["rows_diverted"] else ""
    return (
        f"{counts['rows_in']:,} users read, {counts['rows_out']:,} written{diverted}: no row is lost. "
        f"{what['model']['name']} chose among {figures['coverage']['items']['allowed']:,} items of "
        f"{figures['coverage']['providers']['allowed']:,} providers."
    )


def _tiles(figures: dict[str, Any]) -> list[tuple[str, str]]:
    """The numbers to see first, each with its name."""
    counts, run, coverage = figures["counts"], figures["run"], figures["coverage"]
    gini = figures["concentration"]["lists"]["gini"]
    tiles = [("users", f"{counts['rows_in']:,}")]
    if run["cpu_s"]:
        tiles += [
            ("users/s overall", f"{run['users_per_s']:,.0f}"),
            ("from start to end", seconds(run["wall_s"])),
        ]
    return [
        *tiles,
        ("cold users", percent(counts["cold_users"], counts["rows_out"])),
        ("items recommended", percent(coverage["items"]["recommended"], coverage["items"]["allowed"])),
        ("Gini of providers", "–" if gini is None else f"{gini:.2f}"),
    ]


def seconds(value: float) -> str:
    """A span of time in words."""
    if value < 120:
        return f"{value:,.1f} s"
    minutes, rest = divmod(round(value), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s"


def _run_note(figures: dict[str, Any]) -> str:
    """What the figures of this run leave out."""
    run, rows = figures["run"], figures["counts"]["rows_in"]
    if not run["cpu_s"]:
        return "The job was finished before this run, which scored nothing: there is no time to show."
    notes = []
    if run["resumed_rows"]:
        notes.append(
            f"This run went on with a job that was broken off: {run['resumed_rows']:,} of {rows:,} users were done "
            "before. Times and speed are of this run and its users alone."
        )
    if run["carried_users"]:
        notes.append(
            f"The lists of {run['carried_users']:,} users, whose histories have not changed, were carried over from an "
            "earlier output."
        )
    return " ".join(notes)


def _run(figures: dict[str, Any]) -> list[_Plot]:
    run = figures["run"]
    if not run["cpu_s"]:
        return []
    plots = []
    span, done = run["samples"][-1]
    if done and span > 0:
        words = (
            f"{done:,} users in {seconds(span)}, {done / span:,.0f} a second on average. {seconds(run['start_s'])} "
            "before that went to opening the model and laying out its items."
        )
        plots.append(_Plot("Speed over time", throughput_plot(run, f"Users per second over time. {words}"), words))
    total = sum(run["cpu_s"].values())
    most = max(run["cpu_s"], key=run["cpu_s"].get)
    words = (
        f"{seconds(total)} of CPU time, all threads together; most of it, {percent(run['cpu_s'][most], total)}, to "
        f"{most.replace('_', ' ')}."
    )
    return [*plots, _Plot("CPU time by stage", stages_plot(run, f"CPU seconds by stage. {words}"), words)]


def _users(figures: dict[str, Any]) -> list[_Plot]:
    counts, max_len = figures["counts"], figures["what"]["model"]["max_len"]
    plots = []
    if counts["rows_out"]:
        truncated = counts["truncated_histories"]
        words = (
            f"{truncated:,} users ({percent(truncated, counts['rows_out'])}) have more known items than the {max_len} "
            f"that the model sees; it sees their newest. Without a known item: {counts['cold_users']:,}."
        )
        label = f"Users by the number of known items in their history. {words}"
        plots.append(_Plot("Length of histories", lengths_plot(counts["history_lengths"], max_len, label), words))
        bars = [
            ("cold users", counts["cold_users"], counts["rows_out"]),
            ("truncated histories", truncated, counts["rows_out"]),
            ("short lists", counts["short_lists"], counts["rows_out"]),
            ("unknown items", counts["unknown_items"], counts["history_items"]),
            ("malformed rows", counts["rows_diverted"], counts["rows_in"]),
        ]
        words = (
            f"Of {counts['history_items']:,} item ids in the histories, the model does not know "
            f"{counts['unknown_items']:,}. Lists shorter than asked for: {counts['short_lists']:,}."
        )
        shares = [(name, 100 * part / whole if whole else 0.0, percent(part, whole)) for name, part, whole in bars]
        label = f"Shares of {', '.join(f'{name} {share}' for name, _, share in shares)}. {words}"
        axis = "% of users, of item ids, of rows"
        plots.append(_Plot("Left out or cut", accounts_plot(shares, "account", label, axis=axis), words))
    if counts["diverted_by_reason"]:
        reasons = sorted(counts["diverted_by_reason"].items(), key=lambda item: -item[1])
        words = f"{counts['rows_diverted']:,} of {counts['rows_in']:,} rows were malformed and set aside."
        shares = [(textwrap.fill(reason, _BAR_NAME), float(count), f"{count:,}") for reason, count in reasons]
        label = f"Malformed rows by reason: {', '.join(f'{reason}, {count}' for reason, count in reasons)}. {words}"
        plots.append(_Plot("Malformed rows", accounts_plot(shares, "diverted", label, axis="rows"), words))
    return plots


def _users_note(figures: dict[str, Any]) -> str:
    counts = figures["counts"]
    if not counts["rows_in"]:
        return "The input has no users."
    return "" if counts["rows_diverted"] else "No row was malformed."


def _lists(figures: dict[str, Any]) -> list[_Plot]:
    scores, coverage, concentration = figures["scores"], figures["coverage"], figures["concentration"]
    plots = []
    if scores["counts"]:
        words = (
            f"{sum(scores['counts']):,} candidates of {sum(scores['best_counts']):,} users. Cold users are left out: "
            "their scores are the items' popularity."
        )
        plots.append(_Plot("Scores", scores_plot(scores, f"Distribution of scores. {words}"), words))
    if coverage["num_lists"]:
        items, providers = coverage["items"], coverage["providers"]
        words = (
            f"{items['recommended']:,} of {items['allowed']:,} items and {providers['recommended']:,} of "
            f"{providers['allowed']:,} providers are in at least one of {coverage['num_lists']:,} lists."
        )
        label = f"Share of the catalog recommended at least once, over the lists. {words}"
        plots.append(_Plot("Coverage of the catalog", coverage_plot(coverage, label), words))
    if concentration["lists"]["x"]:
        lists, catalog = concentration["lists"], concentration["catalog"]
        leaders = concentration["leaders"]
        words = (
            f"The {leaders} providers with most candidates hold {percent(lists['leaders_share'], 1)} of them and "
            f"{percent(catalog['leaders_share'], 1)} of the catalog's items. "
            f"Gini {lists['gini']:.2f} in the lists, {catalog['gini']:.2f} in the catalog: 0 is all equal."
        )
        if concentration["without_provider"]:
            words += f" {concentration['without_provider']:,} candidates have no provider."
        label = f"Lorenz curves over {concentration['providers']:,} providers. {words}"
        plots.append(_Plot("Concentration on providers", concentration_plot(concentration, label), words))
    return plots


def _lists_note(figures: dict[str, Any]) -> str:
    return "" if figures["coverage"]["num_lists"] else "No user has a list."


def _what_ran(figures: dict[str, Any]) -> list[tuple[str, str]]:
    what, run = figures["what"], figures["run"]
    model, machine = what["model"], what["machine"]
    variant = f" ({model['variant']})" if model["variant"] else ""
    files = what["input"]["files"]
    source = what["input"]["source"] + (f", {files:,} files" if files != 1 else "")
    times = f"{what['began']} to {what['ended']}"
    return [
        ("model", model["file"]),
        ("SHA-256", model["sha256"]),
        (
            "it is",
            f"{model['name']}{variant}, dim {model['dim']}, max_len {model['max_len']}, {model['num_items']:,} items, "
            f"{model['num_providers']:,} providers",
        ),
        ("input", source),
        ("columns", ", ".join(what["input"]["columns"])),
        ("output", what["output"]),
        ("options", ", ".join(f"{name} {_option(value)}" for name, value in what["options"].items())),
        ("versions", ", ".join(f"{name} {version}" for name, version in what["versions"].items())),
        (
            "machine",
            f"{machine['name']}: {machine['cpu']}, {machine['usable_cores']} usable cores, "
            f"{machine['memory_bytes'] / 2**30:.1f} GiB of memory, {machine['system']}",
        ),
        ("this run", f"{times}, {seconds(run['wall_s'])}"),
        *([] if run["plan"] is None else [("its plan", _plan(run["plan"]))]),
    ]


def _plan(plan: dict[str, Any]) -> str:
    """How wrong the plan of a job was."""

    def off(figure: dict[str, float], words: Callable[[float], str]) -> str:
        return f"{words(figure['taken'])}, planned {words(figure['planned'])} ({figure['percent']:+.1f}%)"

    sizes = [(name, plan[f"{name}_bytes"]) for name in ("memory", "output") if plan[f"{name}_bytes"] is not None]
    return "; ".join([f"time {off(plan['wall_s'], seconds)}", *(f"{name} {off(size, _size)}" for name, size in sizes)])


def _size(num_bytes: float) -> str:
    return size_in_words(int(num_bytes))


def _option(value: object) -> str:
    return {True: "yes", False: "no", None: "none"}[value] if value is None or isinstance(value, bool) else str(value)
