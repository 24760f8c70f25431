"""`ipsrec prepare`: interactions to a dataset folder."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import click

from ipsrec_cli.options import json_option, overwrite_option, quiet_option

if TYPE_CHECKING:
    from ipsrec_train.format_tmall import Action
    from ipsrec_train.formats import InputFormat
    from ipsrec_train.prepare import PrepareReport

FORMATS = ("generic", "tmall", "twitch", "wechat", "recbole", "amazon")


@click.command()
@click.option("--input", "source", required=True, help="File or folder of interactions, laid out as --format says.")
@click.option("--output", required=True, help="Dataset folder to make.")
@click.option(
    "--format",
    "input_format",
    type=click.Choice(FORMATS),
    default="generic",
    show_default=True,
    help="generic: Parquet or CSV, one row per interaction, columns as named below. Or a public data set as it is "
    "published: docs/prepare.md says which files, and what becomes item and provider.",
)
@click.option("--user-column", help="Whose interaction it is.  [default: user_id]")
@click.option("--item-column", help="What was taken.  [default: item_id]")
@click.option("--provider-column", help="Who offers the item.  [default: provider_id; for recbole seller_id]")
@click.option("--timestamp-column", help="When: a number or a date.  [default: timestamp]")
@click.option(
    "--action",
    type=click.Choice(["buy", "click", "all"]),
    help="For tmall: which actions are interactions.  [default: buy]",
)
@click.option("--merge-repeats", is_flag=True, help="Keep only the latest interaction of a user with an item.")
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
    input_format: InputFormat,
    user_column: str | None,
    item_column: str | None,
    provider_column: str | None,
    timestamp_column: str | None,
    action: Action | None,
    merge_repeats: bool,
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
        input_format=input_format,
        user_column=user_column,
        item_column=item_column,
        provider_column=provider_column,
        timestamp_column=timestamp_column,
        action=action,
        merge_repeats=merge_repeats,
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
    console = Console(markup=False)  # names of files may have brackets
    console.print(table)
    for what in report.left_out:
        first = f" (first: {what.first})" if what.first else ""
        console.print(f"left out: {what.rows:,} {what.reason}{first}", highlight=False, soft_wrap=True)
    rounds = f"filter: {report.k_core_rounds} rounds that removed something"
    settled = f"; {report.provider_conflicts:,} items with several providers got their latest"
    console.print(rounds + (settled if report.provider_conflicts else ""), highlight=False)
    console.print(f"fingerprint: {report.fingerprint}", highlight=False, soft_wrap=True)
