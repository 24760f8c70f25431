"""`ipsrec prepare`: interactions to a dataset folder."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import click

from ipsrec_cli.options import json_option, overwrite_option, quiet_option

if TYPE_CHECKING:
    from ipsrec_train.prepare import PrepareReport


@click.command()
@click.option("--input", "source", required=True, help="Parquet or CSV file of interactions, or a folder of them.")
@click.option("--output", required=True, help="Dataset folder to make.")
@click.option(
    "--format",
    "input_format",
    type=click.Choice(["generic"]),
    default="generic",
    show_default=True,
    help="How the input is laid out; generic: one row per interaction, columns as named below.",
)
@click.option("--user-column", default="user_id", show_default=True, help="Whose interaction it is.")
@click.option("--item-column", default="item_id", show_default=True, help="What was taken.")
@click.option("--provider-column", default="provider_id", show_default=True, help="Who offers the item.")
@click.option("--timestamp-column", default="timestamp", show_default=True, help="When: a number or a date.")
@click.option(
    "--min-user-interactions",
    type=click.IntRange(min=1),
    default=5,
    show_default=True,
    help="Remove users with fewer; users and items are filtered until nothing changes. 1 keeps all.",
)
@click.option(
    "--min-item-interactions",
    type=click.IntRange(min=1),
    default=5,
    show_default=True,
    help="Remove items with fewer. 1 keeps all.",
)
@click.option("--max-user-interactions", type=click.IntRange(min=1), help="Remove users with more.  [default: none]")
@click.option("--max-item-interactions", type=click.IntRange(min=1), help="Remove items with more.  [default: none]")
@click.option(
    "--on-provider-conflict",
    type=click.Choice(["error", "last"]),
    default="error",
    show_default=True,
    help="An item seen with several providers: refuse it, or take the provider of its latest interaction.",
)
@overwrite_option
@json_option
@quiet_option
def prepare(
    source: str,
    output: str,
    input_format: str,
    user_column: str,
    item_column: str,
    provider_column: str,
    timestamp_column: str,
    min_user_interactions: int,
    min_item_interactions: int,
    max_user_interactions: int | None,
    max_item_interactions: int | None,
    on_provider_conflict: Literal["error", "last"],
    overwrite: bool,
    as_json: bool,
    quiet: bool,
) -> None:
    """Filter, order and split interactions into a dataset.

    Interactions of equal time keep the order of the input. Each user's last one is for testing, the one before it
    for validation, the rest for training.
    """
    from ipsrec_cli.main import print_json
    from ipsrec_train.prepare import prepare as prepare_dataset

    report = prepare_dataset(
        source,
        output,
        user_column=user_column,
        item_column=item_column,
        provider_column=provider_column,
        timestamp_column=timestamp_column,
        min_user_interactions=min_user_interactions,
        min_item_interactions=min_item_interactions,
        max_user_interactions=max_user_interactions,
        max_item_interactions=max_item_interactions,
        on_provider_conflict=on_provider_conflict,
        overwrite=overwrite,
        report_stage=None if quiet else lambda stage: click.echo(f"prepare: {stage}", err=True),
    )
    if as_json:
        print_json(report.to_json())
    else:
        _print_summary(report)


def _print_summary(report: PrepareReport) -> None:
    """Show what went in and what is left."""
    from dataclasses import asdict

    from rich.console import Console
    from rich.table import Table

    table = Table("", title=f"Dataset {report.dataset}", title_justify="left")
    for heading in ("input", "dataset", "kept"):
        table.add_column(heading, justify="right")
    for (name, before), after in zip(asdict(report.before).items(), asdict(report.after).values(), strict=True):
        table.add_row(name, f"{before:,}", f"{after:,}", f"{after / before:.1%}")
    console = Console()
    console.print(table)
    rounds = f"filter: {report.k_core_rounds} rounds that removed something"
    settled = f"; {report.provider_conflicts:,} items with several providers got their latest"
    console.print(rounds + (settled if report.provider_conflicts else ""), highlight=False)
    console.print(f"fingerprint: {report.fingerprint}", highlight=False, soft_wrap=True)
