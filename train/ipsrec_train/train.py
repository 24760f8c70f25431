"""Train one model on one dataset: all positions in one pass, full ranking after each epoch, the best epoch kept."""

from __future__ import annotations

import math
import time
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from ipsrec_onnx.atomic import refuse_existing
from ipsrec_onnx.dataset import open_dataset
from ipsrec_onnx.errors import DataError, ExecutionProviderError
from ipsrec_onnx.metrics import metrics_of_ranks
from ipsrec_train.batches import Batch, Histories, cut_windows, epoch_batches, load_histories
from ipsrec_train.losses import contrastive_loss, full_softmax_loss
from ipsrec_train.model import Model
from ipsrec_train.progress import TrainingBar
from ipsrec_train.ranking import rank_targets
from ipsrec_train.run import (
    Progress,
    Run,
    can_resume,
    continue_run,
    load_progress,
    open_run,
    read_run_info,
    run_info,
    save_model,
    save_progress,
    start_run,
)
from ipsrec_train.settings import IPSRecSettings
from ipsrec_train.training_settings import TrainingSettings

CUTOFFS = (5, 10)


def train(
    dataset: str | Path,
    output: str | Path,
    *,
    model: str = "ipsrec-c",
    settings: IPSRecSettings | None = None,
    training: TrainingSettings | None = None,
    device: Literal["cpu", "cuda"] = "cpu",
    threads: int | None = None,
    resume: bool = False,
    overwrite: bool = False,
    quiet: bool = False,
) -> Run:
    """Train a model and leave a run folder behind (ipsrec_train/run.py says what is in it).

    On a CPU the same dataset, settings and thread count give the same weights, whether or not training was killed
    and resumed on the way.

    Args:
        dataset: folder made by `ipsrec prepare`.
        output: the run folder.
        model: "ipsrec-s" or "ipsrec-c".
        settings: of the model; the recommended variant where None.
        training: how to train.
        device: "cpu" or "cuda".
        threads: of the CPU; all where None.
        resume: go on from the last whole epoch of an interrupted run.
        overwrite: start anew in a folder that exists.
        quiet: no progress on stderr.

    Returns:
        The finished run.

    Raises:
        DataError: the dataset is broken or empty, the output exists, or the run to resume is another one.
        ExecutionProviderError: cuda is asked for and not there.
    """
    settings, training = settings or IPSRecSettings(), training or TrainingSettings()
    folder = refuse_existing(output, overwrite=overwrite or resume)
    place = _device(device)
    if threads is not None and threads < 1:
        raise DataError(f"settings: threads is {threads}, expected 1 or more")
    if threads is not None:
        torch.set_num_threads(threads)
    data = open_dataset(dataset)
    learned, held_out = load_histories(data, "train"), load_histories(data, "valid")
    if not len(cut_windows(learned.offsets, settings.max_len)):
        raise DataError(f"{data.path}: no user has two training interactions; prepare it with fewer filters")
    torch.manual_seed(training.seed)
    net = Model(model, settings, item_provider=data.catalog.item_provider, num_providers=data.catalog.num_providers).to(
        place
    )
    optimizer = torch.optim.Adam(net.parameters(), lr=training.learning_rate)
    info = run_info(model, settings, training, data, device=device)
    bar = TrainingBar(quiet=quiet)
    progress = Progress(epoch=0, metrics=[])
    if resume and can_resume(folder, info):
        progress = load_progress(folder, net, optimizer)
        before = read_run_info(folder).get("machine")
        continue_run(folder, info, progress)
        bar.say(f"going on after epoch {progress.epoch}")
        if before != info["machine"]:
            bar.say(f"until now on {before}, from now on {info['machine']}: the last bits of the weights may differ")
    else:
        start_run(folder, info, data.catalog)
    loop = _Loop(net, optimizer, settings=settings, training=training, device=place, bar=bar)
    while progress.epoch < training.epochs and not _out_of_patience(progress, training):
        line = loop.run_epoch(learned, held_out, progress)
        progress = Progress(epoch=progress.epoch + 1, metrics=[*progress.metrics, line])
        if _best_epoch(progress, training) == progress.epoch:
            save_model(folder, net)
        save_progress(folder, net, optimizer, progress)
    return open_run(folder)


class _Loop:
    """Runs epochs; holds what stays the same from one to the next."""

    def __init__(
        self,
        model: Model,
        optimizer: torch.optim.Optimizer,
        *,
        settings: IPSRecSettings,
        training: TrainingSettings,
        device: torch.device,
        bar: TrainingBar,
    ) -> None:
        self.model, self.optimizer, self.device, self.bar = model, optimizer, device, bar
        self.settings, self.training = settings, training

    def run_epoch(self, learned: Histories, held_out: Histories, progress: Progress) -> dict[str, Any]:
        """Train on every window once, then rank the validation targets; gives the epoch's line of metrics.jsonl."""
        number = progress.epoch + 1
        started = time.perf_counter()
        windows = len(cut_windows(learned.offsets, self.settings.max_len))
        order = np.random.default_rng([self.training.seed, number]).permutation(windows)
        batches = math.ceil(windows / self.training.batch_size)
        best = max((line[self.training.stop_metric] for line in progress.metrics), default=0.0)
        note = f"best {self.training.stop_metric} {best:.4f}"
        total, targets = 0.0, 0
        self.model.train()
        with self.bar.epoch(number, batches, note):
            for batch in epoch_batches(
                learned,
                max_len=self.settings.max_len,
                batch_size=self.training.batch_size,
                order=order,
                device=self.device,
            ):
                loss = self._step(batch)
                if not math.isfinite(loss):
                    raise DataError(
                        f"training: loss {loss} in epoch {number}; try a smaller --learning-rate or another --seed"
                    )
                total, targets = total + loss * len(batch.targets), targets + len(batch.targets)
                self.bar.batch_done(total / targets, note)
        trained_s = time.perf_counter() - started
        metrics = metrics_of_ranks(rank_targets(self.model, held_out, device=self.device), CUTOFFS)
        wall_s = time.perf_counter() - started
        line = {"epoch": number, "loss": total / targets, **metrics, "train_s": trained_s, "wall_s": wall_s}
        reached = metrics[self.training.stop_metric]
        self.bar.say(
            f"epoch {number}: loss {line['loss']:.4f}  {self.training.stop_metric} {reached:.4f}"
            f"{' (best)' if reached > best else ''}  {wall_s:.1f} s"
        )
        return line

    def _step(self, batch: Batch) -> float:
        """One step of Adam; gives the loss (Eq. 13) before it."""
        model, settings = self.model, self.settings
        table = model.item_embeddings()
        item_states, provider_states = model.encode_packed(table, batch.histories)
        item_states = item_states.flatten(0, 1)  # (R W, D)
        terms = model.history_terms
        loss = full_softmax_loss(
            item_states[batch.at],
            table,
            batch.targets,
            item_provider=model.item_provider,
            weights=(terms.provider_weights(), terms.item_weights()) if terms is not None else None,
            entries=batch.history_entries() if terms is not None else None,
        )
        users = batch.last[batch.newest]
        if settings.contrastive_weight and len(users):
            contrast = contrastive_loss(
                item_states[users],
                provider_states.flatten(0, 1)[users],
                temperature=settings.temperature,
                symmetric=settings.variant == "released",
            )
            loss = loss + settings.contrastive_weight * contrast
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        self.optimizer.step()
        return loss.item()


def _device(device: Literal["cpu", "cuda"]) -> torch.device:
    if device not in ("cpu", "cuda"):
        raise DataError(f"settings: device is {device!r}, expected cpu or cuda")
    if device == "cuda" and not torch.cuda.is_available():
        raise ExecutionProviderError(
            f"device cuda: torch {torch.__version__} finds no GPU; use --device cpu, or install a CUDA build of torch"
        )
    return torch.device(device)


def _best_epoch(progress: Progress, training: TrainingSettings) -> int:
    """The epoch with the best validation metric, the first of equals; 0 before the first."""
    best = max(progress.metrics, key=lambda line: (line[training.stop_metric], -line["epoch"]), default={"epoch": 0})
    return int(best["epoch"])


def _out_of_patience(progress: Progress, training: TrainingSettings) -> bool:
    return progress.epoch - _best_epoch(progress, training) >= training.patience
