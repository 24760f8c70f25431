"""`ipsrec train`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from ipsrec_cli.options import (
    dataset_option,
    device_option,
    json_option,
    overwrite_option,
    quiet_option,
    threads_option,
)


@click.command()
@dataset_option
@click.option("--model", type=click.Choice(["ipsrec-c", "ipsrec-s"]), default=None, help="[default: ipsrec-c]")
@click.option("--output", required=True, help="Run folder to make.")
@click.option(
    "--variant",
    type=click.Choice(["recommended", "paper", "released"]),
    default=None,
    help="recommended: the paper's streams, plus the provider in every item and history terms.  "
    "paper: as read in docs/decisions.md.  released: as the authors' code.  [default: recommended]",
)
@click.option("--config", type=click.Path(exists=True, dir_okay=False, path_type=Path), help="TOML file of settings.")
@click.option("--max-len", type=int, help="Most recent items that the model sees.  [default: 50]")
@click.option("--dim", type=int, help="Width of the embeddings.  [default: 64]")
@click.option("--num-layers", type=int, help="Transformer layers.  [default: 2]")
@click.option("--num-heads", type=int, help="Attention heads.  [default: 2]")
@click.option("--inner-dim", type=int, help="Width of the feed-forward.  [default: 256]")
@click.option("--dropout", type=float, help="[default: 0.5]")
@click.option(
    "--contrastive-weight", type=float, help="Lambda.  [default: 0 in recommended, 0.1 in paper and released]"
)
@click.option("--temperature", type=float, help="Tau of the contrastive loss.  [default: 1]")
@click.option(
    "--co-attention",
    type=click.Choice(["queries", "keys_values"]),
    help="What ipsrec-c's streams exchange.  [default: queries]",
)
@click.option(
    "--provider-in-item/--no-provider-in-item",
    default=None,
    help="Add the provider's embedding to each item's.  [default: on in recommended, off in paper and released]",
)
@click.option(
    "--history-terms/--no-history-terms",
    default=None,
    help="Add learned weights for items and providers met before to the score.  "
    "[default: on in recommended, off in paper and released]",
)
@click.option("--batch-size", type=int, help="Windows of at most max_len items in a batch.  [default: 256]")
@click.option("--learning-rate", type=float, help="Of Adam.  [default: 0.001]")
@click.option("--epochs", type=int, help="Most epochs.  [default: 200]")
@click.option("--patience", type=int, help="Epochs without a better metric before it stops.  [default: 10]")
@click.option("--stop-metric", type=click.Choice(["ndcg@10", "mrr@10"]), help="[default: ndcg@10]")
@click.option("--seed", type=int, help="[default: 0]")
@click.option("--resume", is_flag=True, help="Go on with an interrupted run.")
@device_option
@threads_option
@overwrite_option
@quiet_option
@json_option
def train(
    dataset: str,
    model: str | None,
    output: str,
    variant: str | None,
    config: Path | None,
    device: str,
    threads: int | None,
    resume: bool,
    overwrite: bool,
    quiet: bool,
    as_json: bool,
    **settings: Any,
) -> None:
    """Train a model and keep its best epoch by full ranking of the validation items.

    Settings come from --config, and options on the command line win over it.
    """
    from ipsrec_cli.main import print_json
    from ipsrec_train.config import read_config
    from ipsrec_train.train import train as run_training

    if resume and overwrite:
        raise click.UsageError("--resume goes on with a run, --overwrite throws it away: give one of them")
    chosen = read_config(config, model=model, variant=variant, changes=settings)
    run = run_training(
        dataset,
        output,
        model=chosen.model,
        settings=chosen.settings,
        training=chosen.training,
        device="cuda" if device == "cuda" else "cpu",
        threads=threads,
        resume=resume,
        overwrite=overwrite,
        quiet=quiet,
    )
    best = run.best
    if as_json:
        print_json(
            {"output": str(run.path), "model": run.info["model"], "settings": run.info["settings"], "best": best}
        )
        return
    click.echo(
        f"{run.path}: {run.info['model']} ({run.info['settings']['variant']}), best of {len(run.metrics)} epochs is "
        f"{best['epoch']}: validation NDCG@10 {best['ndcg@10']:.4f}, HR@10 {best['hr@10']:.4f}"
    )
