"""`ipsrec evaluate`: metrics of a model file, by the scoring code itself."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import click

from ipsrec_cli.options import (
    dataset_option,
    device_option,
    encoder_option,
    json_option,
    model_file_option,
    quiet_option,
    threads_option,
)

if TYPE_CHECKING:
    from ipsrec_onnx.evaluation import EvaluationReport


@click.command()
@model_file_option
@dataset_option
@click.option(
    "--split",
    type=click.Choice(["test", "valid"]),
    default="test",
    show_default=True,
    help="Foretell each user's last interaction, or the one before it.",
)
@click.option(
    "--cutoff",
    "cutoffs",
    type=click.IntRange(min=1),
    multiple=True,
    default=(5, 10),
    show_default=True,
    help="N of HR@N, MRR@N and NDCG@N; give it several times for several.",
)
@click.option("--exclude-seen", is_flag=True, help="Leave the items of the history out of the ranking.")
@encoder_option
@device_option
@threads_option
@json_option
@quiet_option
def evaluate(
    model: str,
    dataset: str,
    split: Literal["test", "valid"],
    cutoffs: tuple[int, ...],
    exclude_seen: bool,
    encoder: Literal["onnxruntime", "fused"],
    device: Literal["cpu", "cuda"],
    threads: int | None,
    as_json: bool,
    quiet: bool,
) -> None:
    """HR, MRR and NDCG of a model file: each user's held-out item, ranked among all items."""
    from ipsrec_cli.main import print_json
    from ipsrec_onnx.evaluation import evaluate as evaluate_model

    report = evaluate_model(
        model,
        dataset,
        split=split,
        cutoffs=cutoffs,
        exclude_seen=exclude_seen,
        encoder=encoder,
        device=device,
        threads=threads,
        progress=not quiet,
    )
    if as_json:
        print_json(report.to_json())
    else:
        _print_summary(report, cutoffs)


def _print_summary(report: EvaluationReport, cutoffs: tuple[int, ...]) -> None:
    """Show a row per cut-off, and whom the figures are about."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    seen = "seen items left out" if report.exclude_seen else "seen items kept"
    table = Table("N")
    for metric in ("HR", "MRR", "NDCG"):
        table.add_column(f"{metric}@N", justify="right")
    for cutoff in cutoffs:
        values = (report.metrics[f"{metric}@{cutoff}"] for metric in ("hr", "mrr", "ndcg"))
        table.add_row(str(cutoff), *(f"{value:.4f}" for value in values))
    console = Console(markup=False)  # names of files may have brackets
    console.print(Text(f"{report.model} on {report.dataset}, {report.split} split"), soft_wrap=True)
    console.print(table)
    console.print(
        f"{report.users:,} users ({report.cold_users:,} cold), {report.unknown_targets:,} held-out items unknown to "
        f"the model; full ranking, {seen}; {report.wall_s:,.1f} s, {report.users_per_s:,.0f} users/s",
        highlight=False,
        soft_wrap=True,
    )
