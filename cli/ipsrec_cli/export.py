"""`ipsrec export`."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from ipsrec_cli.options import json_option, overwrite_option

if TYPE_CHECKING:
    from ipsrec_onnx.model_file import Precision


@click.command()
@click.option("--checkpoint", required=True, help="Run folder made by `ipsrec train`.")
@click.option("--output", required=True, help="Model file to write (.onnx).")
@click.option("--dataset", default=None, help="Where the run's dataset lies now.  [default: where it lay at training]")
@click.option(
    "--precision",
    type=click.Choice(["fp32", "fp16"]),
    default="fp32",
    show_default=True,
    help="Of the encoder; fp16 is for `score --device cuda`, and gives slightly other lists.",
)
@overwrite_option
@json_option
def export(
    checkpoint: str, output: str, dataset: str | None, precision: Precision, overwrite: bool, as_json: bool
) -> None:
    """Write the model file of a training run, unless ONNX Runtime gives other lists than PyTorch."""
    from ipsrec_cli.main import print_json
    from ipsrec_export.export import export as run_export

    report = run_export(checkpoint, output, dataset=dataset, overwrite=overwrite, precision=precision)
    if as_json:
        gate = report.gate.as_metadata()
        print_json({"output": str(report.output), "bytes": report.bytes_written, "gate": gate})
        return
    gate_line = (
        f"gate passed: embedding error {report.gate.embedding_error:.1e}, top-100 overlap {report.gate.overlap:.4f}, "
        f"NDCG@10 {report.gate.ndcg_pytorch:.4f} -> {report.gate.ndcg_onnx:.4f} "
        f"({report.gate.validation_users} validation users)"
    )
    click.echo(f"{report.output}: {report.bytes_written / 1e6:.1f} MB\n{gate_line}")
