"""`ipsrec plan`: what a scoring job will take."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ipsrec_cli.options import json_option, overwrite_option
from ipsrec_cli.score import score

if TYPE_CHECKING:
    from ipsrec_onnx.job_plan import JobPlan, Prediction

# The options of `ipsrec score` that say what is scored, by what, and with how much of the machine.
_OF_SCORE = (
    "model",
    "source",
    "top_k",
    "layout",
    "keep_seen",
    "unknown_items",
    "cold_users",
    "bad_rows",
    "allow_items",
    "deny_items",
    "max_per_provider",
    "candidates_column",
    "user_column",
    "item_column",
    "provider_column",
    "approximate",
    "index_cache",
    "encoder",
    "device",
    "gpus",
    "search",
    "catalog_shards",
    "threads",
    "max_memory",
    "fingerprints",
    "part_rows",
)


def options_of_score(command: Any) -> Any:
    """Give a command the options of `ipsrec score` that are a plan's, too: declared there, meaning the same."""
    command.params[:0] = [option for option in score.params if option.name in _OF_SCORE]
    return command


@options_of_score
@click.command()
@click.option("--as-folder", is_flag=True, help="The candidates will be a folder of parts.  [default: one file]")
@click.option("--workers", type=click.IntRange(min=1), help="Plan for a Ray cluster of so many workers, too.")
@click.option("--output", help="File to write the plan to, for `ipsrec score --plan`.  [default: none]")
@overwrite_option
@json_option
def plan(output: str | None, overwrite: bool, as_json: bool, **options: Any) -> None:
    """Say how long a scoring job will take, with how much memory.

    Opens the job as `ipsrec score` does, and scores about two seconds' worth of
    its users, spread over the input, into a scratch folder.
    """
    from ipsrec_cli.main import print_json
    from ipsrec_onnx.atomic import atomic_file, refuse_existing
    from ipsrec_onnx.planning import plan as plan_job

    if output is not None:
        refuse_existing(output, overwrite=overwrite)
    planned = plan_job(**options)
    if output is not None:
        with atomic_file(output, overwrite=overwrite) as temporary:
            Path(temporary).write_text(json.dumps(planned.to_json(), indent=2) + "\n", encoding="utf-8")
    if as_json:
        print_json(planned.to_json())
    else:
        _print_plan(planned)


def _print_plan(planned: JobPlan) -> None:
    """Show what was predicted, and what of it was measured."""
    from rich.console import Console
    from rich.table import Table

    from ipsrec_onnx.memory_plan import size_in_words

    def column(prediction: Prediction) -> list[str]:
        times = (prediction.start_s, prediction.loop_s, prediction.finish_s, prediction.wall_s)
        return [
            *(f"{seconds:,.1f} s" for seconds in times),
            f"{prediction.users_per_s:,.0f}",
            size_in_words(prediction.memory_bytes),
            size_in_words(prediction.output_bytes),
        ]

    table = Table("")
    names = ["start-up", "scoring and writing", "finishing", "in all", "users/s while scoring", "memory", "output"]
    columns = [column(planned.here)]
    table.add_column("this machine", justify="right")
    if planned.cluster is not None:
        table.add_column(f"{planned.cluster.workers} workers, each", justify="right")
        columns.append(column(planned.cluster))
    for name, *cells in zip(names, *columns, strict=True):
        table.add_row(name, *cells)
    console = Console()
    console.print(f"{planned.rows:,} users, {planned.threads} threads", highlight=False)
    console.print(table)
    probe = planned.probe
    if probe is not None:
        console.print(
            f"probed {probe.users:,} users in {probe.seconds:.1f} s, chunks of {probe.chunk_rows:,} (the job's: "
            f"{probe.chunks.rows:,}); it held {size_in_words(probe.peak)}, the job keeps within "
            f"{size_in_words(probe.chunks.peak)}",
            highlight=False,
            soft_wrap=True,
        )
    if planned.compiled:
        console.print("kernels were compiled, as once after an install: later jobs have less memory; plan again")
