"""`ipsrec export`."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import click

from ipsrec_cli.options import json_option, overwrite_option

if TYPE_CHECKING:
    from ipsrec_export.export import ExportReport, Profile
    from ipsrec_export.precision import PrecisionChoice


@click.command()
@click.option("--checkpoint", required=True, help="Run folder made by `ipsrec train`.")
@click.option("--output", required=True, help="Model file to write (.onnx).")
@click.option("--dataset", default=None, help="Where the run's dataset lies now.  [default: where it lay at training]")
@click.option(
    "--profile",
    type=click.Choice(["server", "edge"]),
    default="server",
    show_default=True,
    help="server is for `ipsrec score`; edge gives lists for raw ids in any ONNX Runtime, with no code beside it.",
)
@click.option(
    "--precision",
    type=click.Choice(["fp32", "fp16", "int8", "auto"]),
    default="fp32",
    show_default=True,
    help="Of the weights; auto takes the smallest file that passes. A server's fp16 is for `score --device cuda`.",
)
@click.option(
    "--max-ndcg-drop",
    type=click.FloatRange(min=0),
    help="How far NDCG@10 of validation users may fall from float32's, as a share; for an edge file, int8 and auto.  "
    "[default: 0.001]",
)
@click.option("--top-k", type=click.IntRange(min=1), help="Length of an edge file's lists.  [default: 100]")
@click.option("--keep-seen", is_flag=True, help="An edge file recommends items of the history, too.")
@click.option(
    "--provider-switch",
    is_flag=True,
    help="An edge file has one more input, use_providers: false takes all providers for unknown.",
)
@overwrite_option
@json_option
def export(
    checkpoint: str,
    output: str,
    dataset: str | None,
    profile: Profile,
    precision: PrecisionChoice,
    max_ndcg_drop: float | None,
    top_k: int | None,
    keep_seen: bool,
    provider_switch: bool,
    overwrite: bool,
    as_json: bool,
) -> None:
    """Write the model file of a training run, unless ONNX Runtime gives other lists than PyTorch."""
    from ipsrec_cli.main import print_json
    from ipsrec_export.edge_graph import EdgeRules
    from ipsrec_export.export import export as run_export

    if profile != "edge" and (top_k or keep_seen or provider_switch):
        raise click.UsageError(
            "--top-k, --keep-seen and --provider-switch are of --profile edge; `ipsrec score` has its own"
        )
    if profile != "edge" and max_ndcg_drop is not None and precision in ("fp32", "fp16"):
        raise click.UsageError(f"--max-ndcg-drop is not for a server's {precision}, whose gate has bounds of its own")
    if max_ndcg_drop is not None and math.isnan(max_ndcg_drop):
        raise click.UsageError("--max-ndcg-drop is nan, expected a number from 0 on")
    rules = None
    if profile == "edge":
        rules = EdgeRules(top_k or EdgeRules.top_k, keep_seen=keep_seen, provider_switch=provider_switch)
    report = run_export(
        checkpoint,
        output,
        dataset=dataset,
        overwrite=overwrite,
        profile=profile,
        precision=precision,
        max_ndcg_drop=max_ndcg_drop,
        rules=rules,
    )
    if as_json:
        print_json({"output": str(report.output), "bytes": report.bytes_written, **_as_json(report)})
    else:
        _print_report(report)


def _as_json(report: ExportReport) -> dict[str, Any]:
    found: dict[str, Any] = {"gate": report.gate.as_metadata()}
    if report.edge_gate is not None:
        found["edge_gate"] = report.edge_gate.as_metadata()
    if report.tried is not None:
        found["candidates"] = report.tried.as_metadata()
    return found


def _print_report(report: ExportReport) -> None:
    from rich.console import Console

    from ipsrec_cli.precision_table import precision_table

    gate, edge = report.gate, report.edge_gate
    click.echo(f"{report.output}: {report.bytes_written / 1e6:.1f} MB")
    click.echo(
        f"gate passed: embedding error {gate.embedding_error:.1e}, top-100 overlap {gate.overlap:.4f}, "
        f"NDCG@10 {gate.ndcg_pytorch:.4f} -> {gate.ndcg_onnx:.4f} ({gate.validation_users} validation users)"
    )
    if edge is not None:
        overlap = f"overlap with `ipsrec score` in float32 {edge.overlap:.4f}"
        if edge.min_same_lists:  # else lists are seldom the same in every place, and scores of others are not compared
            overlap = (
                f"{edge.same_lists:.2%} of {edge.users} lists are those of `ipsrec score`, {overlap}, score error "
                f"{edge.score_error:.1e}"
            )
        click.echo(f"edge gate passed: {overlap}")
    if report.tried is not None:
        Console(markup=False).print(precision_table(report.tried.as_metadata()))
