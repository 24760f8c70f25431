"""`ipsrec doctor`: what this machine can run, and what is wrong with it."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any, Literal

import click

from ipsrec_cli.options import json_option

if TYPE_CHECKING:
    from rich.table import Table


@click.command()
@click.option("--device", type=click.Choice(["cpu", "cuda"]), help="Look for what keeps this device from running.")
@click.option("--model", help="Run this model file on the device, and say which of its nodes ran where.")
@json_option
def doctor(device: Literal["cpu", "cuda"] | None, model: str | None, as_json: bool) -> None:
    """Show what this machine can run, and how it runs a model; exit code 1 when something is wrong."""
    from ipsrec_cli.main import print_json
    from ipsrec_onnx.doctor import doctor as examine

    found = examine(device, model=model)
    if as_json:
        print_json(found)
    else:
        _print_summary(found)
    if found["problems"]:
        sys.exit(1)


def _print_summary(found: dict[str, Any]) -> None:
    """Show one table, and each problem with its mend below."""
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table
    from rich.text import Text

    cores = found["cores"]
    quota = "no quota" if cores["cgroup_quota"] is None else f"quota worth {cores['cgroup_quota']:g}"
    limits = ", ".join(f"{name}={value}" for name, value in found["thread_limits"].items())
    table = Table(show_header=False, title="This machine", title_justify="left")
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    for name, version in found["versions"].items():
        table.add_row(name, version)
    table.add_section()
    table.add_row("execution providers", ", ".join(found["execution_providers"]) or "none")
    table.add_row("cores", f"{cores['usable']} usable of {cores['of_the_machine']}, {quota}")
    table.add_row("thread limits", Text(limits or "none set"))
    table.add_row("Numba cache", Text(found["numba_cache"]))
    if "gpu_search" in found:
        search = found["gpu_search"]
        reason = f"; not triton: {search['why_not_triton']}" if search["why_not_triton"] else ""
        table.add_row("search on a GPU", Text(f"{search['search']}{reason}"))
    if found.get("model"):
        _add_model(table, found["model"])
    console = Console()
    console.print(table)
    for problem in found["problems"]:
        console.print(f"[bold red]problem:[/] {escape(problem['what'])}", highlight=False, soft_wrap=True)
        console.print(f"[bold]mend it:[/] {escape(problem['mend'])}", highlight=False, soft_wrap=True)
    if not found["problems"]:
        console.print("nothing wrong found", highlight=False)


def _add_model(table: Table, model: dict[str, Any]) -> None:
    """Where its nodes ran; those that compute shapes on the CPU are no problem."""
    from rich.text import Text

    table.add_section()
    table.add_row("model", Text(f"{model['path']}, {model['precision']}, on {model['device']}"))
    nodes = ", ".join(f"{count} on {provider}" for provider, count in model["nodes"].items())
    table.add_row("nodes", Text(nodes))
    shapes = [f"{node['name']} ({node['op_type']})" for node in model["shapes_on_the_cpu"]]
    if shapes:
        table.add_row("on the CPU by design", Text("shapes: " + ", ".join(shapes)))
