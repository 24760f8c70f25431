"""Flags that several commands share, declared once so that each means one thing everywhere."""

from __future__ import annotations

import click

json_option = click.option("--json", "as_json", is_flag=True, help="Print one JSON object on stdout, for machines.")
quiet_option = click.option("--quiet", is_flag=True, help="No progress on stderr.")
overwrite_option = click.option("--overwrite", is_flag=True, help="Replace an existing output.")
threads_option = click.option(
    "--threads", type=click.IntRange(min=1), default=None, help="Threads to use.  [default: all cores]"
)
device_option = click.option(
    "--device", type=click.Choice(["cpu", "cuda"]), default="cpu", show_default=True, help="Where the model runs."
)
encoder_option = click.option(
    "--encoder",
    type=click.Choice(["onnxruntime", "fused"]),
    default="onnxruntime",
    show_default=True,
    help="What computes the users: the file's graph, or faster kernels of our own for SASRec and IPSRec on a CPU.",
)
model_file_option = click.option("--model", "model", type=str, required=True, help="Model file (.onnx).")
dataset_option = click.option("--dataset", type=str, required=True, help="Dataset folder made by `ipsrec prepare`.")
