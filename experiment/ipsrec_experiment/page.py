"""The report as one HTML page."""

from __future__ import annotations

from typing import Any

from ipsrec_experiment.plots import curves_plot, length_plot, metrics_plot, provider_plot
from ipsrec_experiment.tables import (
    ablation_table,
    all_rows_table,
    cost_table,
    groups_table,
    overall_table,
    settings_table,
    tests_table,
)
from ipsrec_experiment.wording import (
    curves_key,
    groups_key,
    metrics_key,
    read_curves,
    read_groups,
    read_metrics,
    settings_note,
    summary,
    tests_note,
    what_ran,
)
from ipsrec_onnx.page import render_page


def report_page(report: dict[str, Any]) -> str:
    """The whole page."""
    values = {
        "report": report,
        "title": f"Experiment on {report['what']['dataset']['name']}",
        "summary": summary(report),
        "what_ran": what_ran(report),
        "tests_note": tests_note(report),
        "settings_note": settings_note(report),
        "tables": {
            "overall": overall_table(report),
            "ablation": ablation_table(report),
            "all": all_rows_table(report),
            "tests": tests_table(report),
            "length": groups_table(report, "length", "excluded"),
            "provider": groups_table(report, "provider", "excluded"),
            "cost": cost_table(report),
            "settings": settings_table(report),
        },
        "plots": {
            "metrics": (metrics_plot(report), f"{read_metrics(report)} {metrics_key(report)}"),
            "curves": (curves_plot(report), f"{read_curves(report)} {curves_key(report)}"),
            "length": (length_plot(report), f"{read_groups(report, 'length')} {groups_key(report)}"),
            "provider": (provider_plot(report), f"{read_groups(report, 'provider')} {groups_key(report)}"),
        },
    }
    return render_page("ipsrec_experiment", "page.html.j2", values)
