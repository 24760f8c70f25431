"""`ipsrec doctor`: what this machine can run, and what is wrong with it."""

from __future__ import annotations

import sys
from typing import Any, Literal

import click

from ipsrec_cli.options import json_option


@click.command()
@click.option("--device", type=click.Choice(["cpu", "cuda"]), help="Look for what keeps this device from running.")
@json_option
def doctor(device: Literal["cpu", "cuda"] | None, as_json: bool) -> None:
    """Show what this machine can run; exit code 1 when something is wrong."""
    from ipsrec_cli.main import print_json
    from ipsrec_onnx.doctor import doctor as examine

    found = examine(device)
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
    console = Console()
    console.print(table)
    for problem in found["problems"]:
        console.print(f"[bold red]problem:[/] {escape(problem['what'])}", highlight=False, soft_wrap=True)
        console.print(f"[bold]mend it:[/] {escape(problem['mend'])}", highlight=False, soft_wrap=True)
    if not found["problems"]:
        console.print("nothing wrong found", highlight=False)
