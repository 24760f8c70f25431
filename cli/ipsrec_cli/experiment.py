"""`ipsrec experiment`."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import click

from ipsrec_cli.options import dataset_option, device_option, json_option, overwrite_option, quiet_option


@click.command()
@dataset_option
@click.option("--output", required=True, help="Folder of the experiment, made or gone on with.")
@click.option(
    "--plan",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="TOML file of rows, as in configs/experiments/.  [default: the paper's tables and what goes beyond]",
)
@click.option(
    "--models",
    multiple=True,
    default=("all",),
    show_default=True,
    help="Rows to run, by their names or their models' names, separated by commas; all is all.",
)
@click.option("--seeds", type=int, default=5, show_default=True, help="Trainings of each row: seeds 0, 1, ...")
@click.option(
    "--tune",
    type=int,
    default=0,
    show_default=True,
    help="Trials of each row, by which validation chooses its settings; 0 takes those of the plan.",
)
@click.option("--jobs", type=int, default=1, show_default=True, help="Processes at once.")
@click.option("--threads", type=int, default=1, show_default=True, help="Threads of each process.")
@click.option(
    "--paper-figures",
    type=click.Choice(["tmall", "twitch", "wechat"]),
    help="Put the paper's figures for its data set beside ours.",
)
@click.option("--report-only", is_flag=True, help="Write the report of what is there, and run nothing.")
@device_option
@overwrite_option
@quiet_option
@json_option
def experiment(
    dataset: str,
    output: str,
    plan: Path | None,
    models: tuple[str, ...],
    seeds: int,
    tune: int,
    jobs: int,
    threads: int,
    paper_figures: str | None,
    report_only: bool,
    device: Literal["cpu", "cuda"],
    overwrite: bool,
    quiet: bool,
    as_json: bool,
) -> int:
    """Train, export and evaluate every row of a plan over seeds, and write report.md, report.json and report.html.

    A folder that holds the same plan goes on where it stopped: stop it at any time, and give the same command again.
    """
    from ipsrec_cli.main import print_json
    from ipsrec_experiment.experiment import experiment as run_experiment

    if report_only and overwrite:
        raise click.UsageError("--report-only keeps what is there, --overwrite throws it away: give one of them")
    result = run_experiment(
        dataset,
        output,
        plan=plan,
        models=[name.strip() for names in models for name in names.split(",")],
        seeds=seeds,
        tune=tune,
        jobs=jobs,
        threads=threads,
        device=device,
        paper_figures=paper_figures,
        report_only=report_only,
        overwrite=overwrite,
        quiet=quiet,
    )
    if as_json:
        failures = [
            {"title": failure.title, "reason": failure.reason, "log": str(failure.log)} for failure in result.failures
        ]
        print_json(
            {"output": str(result.output), "cells": result.cells, "missing": result.missing, "failures": failures}
        )
    else:
        see = "; see report.md or report.html" if (result.output / "report.html").is_file() else ""
        click.echo(f"{result.output}: {result.cells} cells done, {result.missing} missing{see}")
    for failure in result.failures:
        click.echo(f"ipsrec: {failure.title}: {failure.reason} (log: {failure.log})", err=True)
    return 1 if result.failures else 0
