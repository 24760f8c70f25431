"""The report as one HTML page that needs nothing else: no script, no font, no picture from elsewhere."""

from __future__ import annotations

from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

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


def report_page(report: dict[str, Any]) -> str:
    """The whole page."""
    environment = Environment(
        loader=PackageLoader("ipsrec_experiment", "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template("page.html.j2").render(
        report=report,
        title=f"Experiment on {report['what']['dataset']['name']}",
        summary=summary(report),
        what_ran=what_ran(report),
        tests_note=tests_note(report),
        settings_note=settings_note(report),
        tables={
            "overall": overall_table(report),
            "ablation": ablation_table(report),
            "all": all_rows_table(report),
            "tests": tests_table(report),
            "length": groups_table(report, "length", "excluded"),
            "provider": groups_table(report, "provider", "excluded"),
            "cost": cost_table(report),
            "settings": settings_table(report),
        },
        plots={
            "metrics": (metrics_plot(report), f"{read_metrics(report)} {metrics_key(report)}"),
            "curves": (curves_plot(report), f"{read_curves(report)} {curves_key(report)}"),
            "length": (length_plot(report), f"{read_groups(report, 'length')} {groups_key(report)}"),
            "provider": (provider_plot(report), f"{read_groups(report, 'provider')} {groups_key(report)}"),
        },
    )
