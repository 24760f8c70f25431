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
from ipsrec_train.settings import MODEL_SETTINGS, TERMS, VARIANTS


@click.command()
@dataset_option
@click.option("--model", type=click.Choice(list(MODEL_SETTINGS)), default=None, help="[default: ipsrec-c]")
@click.option("--output", required=True, help="Run folder to make.")
@click.option(
    "--variant",
    type=click.Choice(VARIANTS),
    default=None,
    help="Of an IPSRec.  recommended: the paper's streams, plus the provider in every item and history terms.  "
    "paper: as read in docs/decisions.md.  released: as the authors' code.  [default: recommended]",
)
@click.option("--config", type=click.Path(exists=True, dir_okay=False, path_type=Path), help="TOML file of settings.")
@click.option("--max-len", type=int, help="Most recent items that the model sees.  [default: 50]")
@click.option("--dim", type=int, help="Width of the embeddings.  [default: 64]")
@click.option("--num-layers", type=int, help="Transformer or recurrent layers.  [default: 2; gru4rec 1]")
@click.option("--num-heads", type=int, help="Attention heads.  [default: 2]")
@click.option("--inner-dim", type=int, help="Width of the feed-forward.  [default: 256]")
@click.option("--dropout", type=float, help="[default: 0.5; gru4rec 0.3, caser 0.4, sr-gnn 0]")
@click.option("--hidden-dim", type=int, help="Width of gru4rec's recurrent state.  [default: 128]")
@click.option("--window", type=int, help="Newest items that caser's filters see.  [default: 10]")
@click.option("--horizontal-filters", type=int, help="Filters of each height in caser.  [default: 16]")
@click.option("--vertical-filters", type=int, help="Weighted sums in caser.  [default: 8]")
@click.option("--steps", type=int, help="Rounds of messages in sr-gnn.  [default: 1]")
@click.option(
    "--contrastive-weight",
    type=float,
    help="Lambda, of an IPSRec.  [default: 0 in recommended, 0.1 in paper and released]",
)
@click.option("--temperature", type=float, help="Tau of the contrastive loss of an IPSRec.  [default: 1]")
@click.option(
    "--co-attention",
    type=click.Choice(["queries", "keys_values"]),
    help="What ipsrec-c's streams exchange.  [default: queries]",
)
@click.option(
    "--provider-in-item/--no-provider-in-item",
    default=None,
    help="Add the provider's embedding to each item's.  [default: on in recommended, else off]",
)
@click.option(
    "--history-terms",
    type=click.Choice(TERMS),
    default=None,
    help="Add learned weights to the score: seen: for items met before.  all: for these and items of providers met "
    "before.  [default: all in recommended, else none]",
)
@click.option("--batch-size", type=int, help="Windows of at most max_len items in a batch.  [default: 256]")
@click.option("--learning-rate", type=float, help="Of Adam.  [default: 0.001]")
@click.option(
    "--schedule",
    type=click.Choice(["constant", "linear"]),
    help="linear: the learning rate falls in a straight line to 0 at the last of --epochs.  [default: constant]",
)
@click.option("--warmup-steps", type=int, help="Steps in which the learning rate rises from 0.  [default: 0]")
@click.option("--average", type=float, help="Keep a moving average of the weights, of this decay.  [default: 0, none]")
@click.option(
    "--negatives", type=int, help="Items that a step tells its targets from, drawn anew each step.  [default: 0, all]"
)
@click.option(
    "--precision",
    type=click.Choice(["fp32", "bf16"]),
    help="Of the products of users and items, on a GPU of the encoder too.  bf16 is fast where the processor has it.  "
    "[default: fp32]",
)
@click.option(
    "--compile/--no-compile",
    default=None,
    help="Compile the encoder with torch.compile; with --device cuda alone.  [default: off]",
)
@click.option("--batch-parts", type=int, help="Compute a batch in so many parts: less memory.  [default: 1]")
@click.option(
    "--newest-windows", type=int, help="Train on so many windows of each user, the newest.  [default: 0, all]"
)
@click.option("--epochs", type=int, help="Most epochs.  [default: 200]")
@click.option("--validate-every", type=int, help="Epochs from one validation to the next.  [default: 1]")
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
    from ipsrec_train.distributed import first_process
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
    if not first_process():
        return
    best = run.best
    if as_json:
        print_json(
            {"output": str(run.path), "model": run.info["model"], "settings": run.info["settings"], "best": best}
        )
        return
    variant = run.info["settings"].get("variant")
    click.echo(
        f"{run.path}: {run.info['model']}{f' ({variant})' if variant else ''}, best of {len(run.metrics)} epochs is "
        f"{best['epoch']}: validation NDCG@10 {best['ndcg@10']:.4f}, HR@10 {best['hr@10']:.4f}"
    )
