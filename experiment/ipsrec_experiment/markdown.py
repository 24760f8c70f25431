"""The report as Markdown: every table and sentence of the page, without its plots."""

from __future__ import annotations

from typing import Any

from ipsrec_experiment.tables import (
    Figure,
    Table,
    ablation_table,
    all_rows_table,
    cost_table,
    groups_table,
    overall_table,
    settings_table,
    tests_table,
)
from ipsrec_experiment.wording import (
    read_curves,
    read_groups,
    read_metrics,
    settings_note,
    summary,
    tests_note,
    what_ran,
)


def report_markdown(report: dict[str, Any]) -> str:
    """The whole text."""
    parts = [
        f"# Experiment on {report['what']['dataset']['name']}",
        "\n".join(f"- {line}" for line in summary(report)),
        "`report.html` has the plots, `report.json` every figure. Numbers are mean ± standard deviation over seeds.",
    ]
    tables = [
        (
            "Overall results",
            "Test, full ranking, seen items kept, as in the paper's Table 2. **Best**, <u>best baseline</u>; "
            "below the others, their difference from the best baseline of the column.",
            overall_table(report),
        ),
        ("Ablation", "As in the paper's Table 3; CL is the contrastive loss.", ablation_table(report)),
        ("Every row, seen items kept and excluded", read_metrics(report), all_rows_table(report)),
        ("Tests", tests_note(report), tests_table(report)),
        (
            "By length of history",
            read_groups(report, "length"),
            groups_table(report, "length", "excluded"),
        ),
        (
            "By the next item's provider",
            read_groups(report, "provider"),
            groups_table(report, "provider", "excluded"),
        ),
        ("Cost", read_curves(report), cost_table(report)),
        ("Settings", settings_note(report), settings_table(report)),
    ]
    for title, text, table in tables:
        if table.rows:
            parts += [f"## {title}", *([text] if text else []), _table(table)]
    if report["paper"]:
        parts.append(f"Figures marked “paper”: {report['paper']['source']}, {report['paper']['data_set']}.")
    parts += ["## What ran", "\n".join(f"- {name}: {_code(name, value)}" for name, value in what_ran(report))]
    return "\n\n".join(parts) + "\n"


def _table(table: Table) -> str:
    columns = list(table.columns)
    if table.spans:
        above = [title for title, count in table.spans for _ in range(count)]
        columns = [f"{span}<br>{name}" if span else name for span, name in zip(above, columns, strict=True)]
    lines = [columns, ["---"] * len(columns), *([_figure(figure) for figure in row] for row in table.rows)]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _figure(figure: Figure) -> str:
    text = figure.text.replace("|", "\\|")
    if figure.best_baseline:
        text = f"<u>{text}</u>"
    if figure.best:
        text = f"**{text}**"
    text = f"{text} {figure.spread}".strip()
    return "<br>".join((text, *figure.notes))


def _code(name: str, value: str) -> str:
    return f"`{value}`" if name in ("last command", "fingerprint") else value
