"""`ipsrec score`: users' histories to ranked candidates."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Literal

import click

from ipsrec_cli.options import (
    device_option,
    encoder_option,
    json_option,
    log_json_option,
    max_memory_option,
    model_file_option,
    overwrite_option,
    quiet_option,
    threads_option,
)

if TYPE_CHECKING:
    from ipsrec_onnx.job_plan import PlanCheck
    from ipsrec_onnx.score_report import ScoreReport


def parse_recall(ctx: click.Context, param: click.Parameter, value: str | None) -> float | None:
    """Give R of recall=R, 0 < R <= 1."""
    if value is None:
        return None
    word, _, number = value.partition("=")
    try:
        recall = float(number)
    except ValueError:
        recall = 0.0
    if word != "recall" or not 0.0 < recall <= 1.0:
        raise click.BadParameter(f"{value!r} is not recall=R with R above 0, at most 1; try recall=0.99", ctx, param)
    return recall


def parse_numbers(ctx: click.Context, param: click.Parameter, value: str | None) -> tuple[int, ...]:
    """Give the numbers of 0,1,3; 0 by default."""
    if value is None:
        return (0,)
    parts = value.split(",")
    if not all(re.fullmatch("[0-9]{1,4}", part) for part in parts) or len(set(parts)) < len(parts):
        raise click.BadParameter(f"{value!r} is no list of numbers, each once; try 0,1", ctx, param)
    return tuple(int(part) for part in parts)


@click.command()
@model_file_option
@click.option(
    "--input",
    "source",
    required=True,
    help="Users: a Parquet file, a folder of them, a quoted pattern ('data/dt=*/*.parquet'), or a URI.",
)
@click.option(
    "--output", required=True, help="Candidates to write: a Parquet file, or a folder of them if it ends in a slash."
)
@click.option("--top-k", type=click.IntRange(min=1), default=100, show_default=True, help="Length of the lists.")
@click.option(
    "--layout",
    type=click.Choice(["list", "long"]),
    default="list",
    show_default=True,
    help="One row per user, or one per candidate.",
)
@click.option("--keep-seen", is_flag=True, help="Recommend items of the user's own history, too.")
@click.option(
    "--unknown-items",
    type=click.Choice(["drop", "error"]),
    default="drop",
    show_default=True,
    help="An item id that the model does not know: drop it from the history, or refuse it.",
)
@click.option(
    "--cold-users",
    type=click.Choice(["popular", "empty", "error"]),
    default="popular",
    show_default=True,
    help="A user without a known item: the popular items, an empty list, or refuse.",
)
@click.option(
    "--bad-rows",
    type=click.Choice(["error", "divert"]),
    default="error",
    show_default=True,
    help="A malformed row: refuse it, or set it aside in OUTPUT.bad_rows.parquet with the reason.",
)
@click.option("--allow-items", help="Parquet (column item_id) or text file of the only items to recommend.")
@click.option("--deny-items", help="Parquet (column item_id) or text file of items never to recommend.")
@click.option(
    "--max-per-provider", type=click.IntRange(min=1), help="Items of one provider in a list at most.  [default: any]"
)
@click.option("--candidates-column", help="Column of lists: the only items to choose from for each user.")
@click.option("--user-column", default="user_id", show_default=True, help="Column of the user ids, of any type.")
@click.option("--item-column", default="item_history", show_default=True, help="Column of item lists, oldest first.")
@click.option(
    "--provider-column",
    help="Column of provider lists; without any, the model's catalog says who offers an item.  "
    "[default: provider_history, if the input has it]",
)
@click.option(
    "--approximate",
    callback=parse_recall,
    metavar="recall=R",
    help="Search approximately, with recall R (0.99, say) of the exact lists, measured on the first users of the "
    "input. Needs faiss.  [default: exact]",
)
@click.option("--index-cache", help="Folder in which the laid out items are kept from job to job.  [default: none]")
@encoder_option
@device_option
@click.option(
    "--gpus",
    callback=parse_numbers,
    metavar="0,1",
    help="With --device cuda: numbers of the GPUs.  [default: 0]",
)
@click.option(
    "--search",
    type=click.Choice(["auto", "cpu", "triton", "onnx"]),
    default="auto",
    show_default=True,
    help="With --device cuda: what searches. Lists are the same; triton needs torch and triton, and is the fastest.",
)
@click.option(
    "--catalog-shards",
    type=click.IntRange(min=1),
    default=1,
    show_default=True,
    help="Cut the catalog into so many shards, mapped from files: for more items than memory or one GPU holds.",
)
@threads_option
@click.option(
    "--engine",
    type=click.Choice(["local", "ray"]),
    default="local",
    show_default=True,
    help="This process, or the workers of a Ray cluster; the bytes are the same. Needs ray.",
)
@click.option(
    "--address", help="With --engine ray: of the cluster; auto for this machine's.  [default: Ray on this machine]"
)
@click.option(
    "--workers",
    type=click.IntRange(min=1),
    help="With --engine ray: sessions side by side.  [default: one a machine, or one for each --gpus-per-worker GPUs]",
)
@click.option(
    "--gpus-per-worker",
    type=click.IntRange(min=1),
    default=1,
    show_default=True,
    help="With --engine ray and --device cuda: GPUs of a worker.",
)
@click.option("--fingerprints", is_flag=True, help="Add a fingerprint of each history, for a later job with --since.")
@click.option(
    "--since",
    metavar="PREVIOUS_OUTPUT",
    help="Carry lists over from this output, of the same model and options, for users whose history has not changed; "
    "the bytes are those of a whole job. Adds --fingerprints, and needs them there.",
)
@click.option(
    "--report", help="Page about the job to write, HTML in one file. Needs jinja2 and matplotlib.  [default: none]"
)
@max_memory_option
@click.option(
    "--part-rows",
    type=click.IntRange(min=1),
    help="Users of a part at most: of each file of an output folder, and what a killed job loses.  [default: 8192 to "
    "65536, up to 64 parts where that is enough]",
)
@click.option("--plan", help="Plan of this job, of `ipsrec plan --output`: say how wrong it was.  [default: none]")
@click.option("--resume", is_flag=True, help="Go on where the same job was broken off; begin where none was.")
@overwrite_option
@json_option
@quiet_option
@log_json_option
def score(
    model: str,
    source: str,
    output: str,
    top_k: int,
    layout: Literal["list", "long"],
    keep_seen: bool,
    unknown_items: Literal["drop", "error"],
    cold_users: Literal["popular", "empty", "error"],
    bad_rows: Literal["error", "divert"],
    allow_items: str | None,
    deny_items: str | None,
    max_per_provider: int | None,
    candidates_column: str | None,
    user_column: str,
    item_column: str,
    provider_column: str | None,
    approximate: float | None,
    index_cache: str | None,
    encoder: Literal["onnxruntime", "fused"],
    device: Literal["cpu", "cuda"],
    gpus: tuple[int, ...],
    search: Literal["auto", "cpu", "triton", "onnx"],
    catalog_shards: int,
    threads: int | None,
    engine: Literal["local", "ray"],
    address: str | None,
    workers: int | None,
    gpus_per_worker: int,
    fingerprints: bool,
    since: str | None,
    report: str | None,
    max_memory: int | None,
    part_rows: int | None,
    plan: str | None,
    resume: bool,
    overwrite: bool,
    as_json: bool,
    quiet: bool,
    log_json: bool,
) -> None:
    """Rank candidates for every user of a Parquet file.

    One output row per input row, in the same order; lists are exact (but with
    --approximate), best first.
    """
    from ipsrec_cli.main import print_json
    from ipsrec_onnx.scoring import score as score_users

    done = score_users(
        model,
        source,
        output,
        top_k=top_k,
        layout=layout,
        keep_seen=keep_seen,
        unknown_items=unknown_items,
        cold_users=cold_users,
        bad_rows=bad_rows,
        allow_items=allow_items,
        deny_items=deny_items,
        max_per_provider=max_per_provider,
        candidates_column=candidates_column,
        user_column=user_column,
        item_column=item_column,
        provider_column=provider_column,
        approximate=approximate,
        index_cache=index_cache,
        encoder=encoder,
        device=device,
        gpus=gpus,
        search=search,
        catalog_shards=catalog_shards,
        threads=threads,
        engine=engine,
        address=address,
        workers=workers,
        gpus_per_worker=gpus_per_worker,
        fingerprints=fingerprints,
        since=since,
        report=report,
        max_memory=max_memory,
        part_rows=part_rows,
        plan=plan,
        resume=resume,
        overwrite=overwrite,
        progress=not quiet,
        log_json=log_json,
    )
    if as_json:
        print_json(done.to_json())
    else:
        _print_summary(done)


def plan_lines(check: PlanCheck) -> list[str]:
    """Say how wrong a plan was, a line for each figure."""
    from ipsrec_onnx.memory_plan import size_in_words

    lines = [f"time: {check.wall_s.taken:,.1f} s, planned {check.wall_s.planned:,.1f} s ({check.wall_s.percent:+.1f}%)"]
    for name, size in (("memory", check.memory_bytes), ("output", check.output_bytes)):
        if size is not None:
            taken, planned = (size_in_words(int(number)) for number in (size.taken, size.planned))
            lines.append(f"{name}: {taken}, planned {planned} ({size.percent:+.1f}%)")
    return lines


def _print_summary(report: ScoreReport) -> None:
    """Show the account of rows and ids; lines that say nothing are left out."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    counts = report.counts
    table = Table("")
    table.add_column("count", justify="right")
    for name, count, always in (
        ("users read", counts.rows_in, True),
        ("users written", counts.rows_out, True),
        ("of them before this run", report.resumed_rows, False),
        ("of them carried over from an earlier output", report.carried_users, False),
        (f"malformed rows, in {report.bad_rows}", counts.rows_diverted, report.bad_rows is not None),
        *((f"of them because {reason}", count, True) for reason, count in counts.diverted_by_reason.items()),
        ("cold users", counts.cold_users, True),
        ("histories longer than the model looks at", counts.truncated_histories, False),
        ("lists shorter than asked for", counts.short_lists, True),
        ("item ids in the histories", counts.history_items, True),
        ("of them unknown to the model", counts.unknown_items, True),
        ("entries with an unknown provider", counts.unknown_providers, False),
        ("unknown candidates", counts.unknown_candidates, False),
        ("items that could be recommended", report.allowed_items, True),
        ("unknown ids of the allow list", report.unknown_allow_items, False),
        ("unknown ids of the deny list", report.unknown_deny_items, False),
    ):
        if count or always:
            table.add_row(Text(name), f"{count:,}")
    console = Console(markup=False)  # names of files may have brackets
    console.print(Text(f"Candidates {report.output}"), soft_wrap=True)
    console.print(table)
    if report.approximate is not None:
        console.print(f"approximate: recall {report.approximate.measured:.4f} on {report.approximate.users} users")
    if report.gpu_search is not None:
        found = report.gpu_search
        console.print(
            f"search: {found.search}; of {found.users:,} users {found.again:,} again, {found.on_cpu:,} by the CPU",
            highlight=False,
        )
    if report.plan is not None:
        for line in plan_lines(report.plan):
            console.print(line, highlight=False)
    if report.report is not None:
        console.print(Text(f"report {report.report}"), soft_wrap=True)
    console.print(f"{report.wall_s:,.1f} s, {report.users_per_s:,.0f} users/s", highlight=False)
