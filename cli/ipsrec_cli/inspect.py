"""`ipsrec inspect`: what is in a model file."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from ipsrec_cli.options import json_option

if TYPE_CHECKING:
    from rich.console import RenderableType


_LANGUAGES = {"python": "Python", "javascript": "JavaScript", "cpp": "C++"}


@click.command()
@click.argument("model")
@click.option(
    "--snippet",
    type=click.Choice(list(_LANGUAGES)),
    help="Write nothing but the program in this language; a file for `ipsrec score` has one in Python.",
)
@json_option
def inspect(model: str, snippet: str | None, as_json: bool) -> None:
    """Show what is in a model file, and programs to copy that recommend with it."""
    from ipsrec_cli.main import print_json
    from ipsrec_onnx.inspection import inspect as inspect_model

    found = inspect_model(model)
    if snippet is not None:
        _write_snippet(found, _LANGUAGES[snippet])
    elif as_json:
        print_json(found)
    else:
        _print_summary(found)


def _write_snippet(found: dict[str, Any], language: str) -> None:
    if language not in found["snippets"]:
        raise click.UsageError(f"--snippet: {language} runs files of profile edge, found profile {found['profile']}")
    click.echo(found["snippets"][language], nl=False)


def _print_summary(found: dict[str, Any]) -> None:
    """Show one table: what it is, then its graph, settings, training and gate."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from ipsrec_cli.precision_table import precision_table

    variant = f", variant {found['variant']}" if found["variant"] else ""
    table = Table(show_header=False)
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")

    def row(name: str, value: str) -> None:
        table.add_row(name, Text(value))  # as it is: brackets are no markup here

    row("model", f"{found['model']}{variant}")
    row("profile", found["profile"])
    row("file", f"{found['file_bytes']:,} bytes, format version {found['format_version']}")
    row("sha256", found["sha256"])
    row("items", f"{found['num_items']:,}, ids {found['item_id_type']}")
    row("providers", _providers(found))
    if found["profile"] == "edge":
        row("lists", _lists(found))
    table.add_section()
    row("opset", str(found["opset"]))
    row("precision", found["precision"])
    for direction in ("inputs", "outputs"):
        row(direction, "\n".join(f"{node['name']}: {_tensor(node)}" for node in found[direction]))
    if "history_terms" in found:
        row("history terms", _history_terms(found["history_terms"]))
    for section in ("settings", "training", "gate"):
        table.add_section()
        table.add_row(section, _section(found[section]))
    console = Console(markup=False)  # names of files may have brackets
    console.print(Text(f"Model file {found['path']}"), soft_wrap=True)
    console.print(table)
    if found["candidates"]:
        console.print(precision_table(found["candidates"]))
    for language, program in found["snippets"].items():
        console.print(Text(f"\n{language}:\n", style="bold"))
        click.echo(program, nl=False)  # as it is: a line that is broken cannot be copied


def _providers(found: dict[str, Any]) -> str:
    """How many there are; an edge file does not hold their ids."""
    if found["profile"] == "edge":
        return f"{found['num_providers']:,}"
    without = found["items_without_provider"]
    return f"{found['num_providers']:,}, ids {found['provider_id_type']}" + (
        f"; {without:,} items without one" if without else ""
    )


def _lists(found: dict[str, Any]) -> str:
    """What an edge file recommends."""
    seen = "with items of the history" if found["keep_seen"] else "without items of the history"
    return f"top {found['top_k']:,}, {seen}" + ("; use_providers switches them off" if found["provider_switch"] else "")


def _section(values: dict[str, Any]) -> RenderableType:
    """One line per value, and a table for each list of like objects: the cells of the gate."""
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    parts: list[RenderableType] = []
    for name, value in _flat(values).items():
        if isinstance(value, list) and value and all(isinstance(entry, dict) for entry in value):
            cells = Table(*value[0], title=name, title_justify="left", box=None)
            for entry in value:
                cells.add_row(*(_plain(number) for number in entry.values()))
            parts.append(cells)
        else:
            parts.append(Text(f"{name}: {_plain(value)}"))
    return Group(*parts)


def _tensor(node: dict[str, Any]) -> str:
    kind = node["type"].removeprefix("tensor(").removesuffix(")")
    return f"{kind} [{', '.join(str(axis) for axis in node['shape'])}]"


def _history_terms(terms: dict[str, Any] | None) -> str:
    if terms is None:
        return "none"
    return "\n".join(
        f"{name}: {', '.join(f'{weight:.4g}' for weight in term['newest'])}, ... by age; sum {term['sum']:.4g} over "
        f"{term['ages']} ages"
        for name, term in terms.items()
    )


def _flat(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Objects inside an object, named after both."""
    flat: dict[str, Any] = {}
    for name, value in values.items():
        flat |= _flat(value, f"{prefix}{name}.") if isinstance(value, dict) else {f"{prefix}{name}": value}
    return flat


def _plain(value: object) -> str:
    return f"{value:.6g}" if isinstance(value, float) else str(value)
