"""Flags that several commands share, declared once so that each means one thing everywhere."""

from __future__ import annotations

import re

import click

LOG_JSON = "--log-json"

_UNITS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12}
_UNITS |= {f"{unit}i": 2 ** (10 * number) for number, unit in enumerate("kmgt", 1)}


class Size(click.ParamType[int]):
    """A number of bytes, as people write it: 2GB, 800MiB, 1.5g."""

    name = "SIZE"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """Give the bytes."""
        if isinstance(value, int):
            return value
        parts = re.fullmatch(r"([0-9]{1,15}(?:\.[0-9]{1,9})?) ?([kmgt]?i?)b?", str(value).strip().lower())
        unit = None if parts is None else _UNITS.get(parts[2])
        if parts is None or unit is None or (size := int(float(parts[1]) * unit)) < 1:
            self.fail(f"{value!r} is no size; try 2GB or 800MiB", param, ctx)
        return size


json_option = click.option("--json", "as_json", is_flag=True, help="Print one JSON object on stdout, for machines.")
quiet_option = click.option("--quiet", is_flag=True, help="No progress on stderr.")
log_json_option = click.option(
    LOG_JSON, is_flag=True, help="Log as JSON, one object a line, on stderr; the error, too, if there is one."
)
overwrite_option = click.option("--overwrite", is_flag=True, help="Replace an existing output.")
threads_option = click.option(
    "--threads", type=click.IntRange(min=1), default=None, help="Threads to use.  [default: all cores]"
)
max_memory_option = click.option(
    "--max-memory",
    type=Size(),
    default=None,
    help="Memory that the job may have: 2GB, 800MiB.  [default: most of what the machine has free]",
)
device_option = click.option(
    "--device",
    type=click.Choice(["cpu", "cuda"]),
    default="cpu",
    show_default=True,
    help="Where users are encoded and items searched.",
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
