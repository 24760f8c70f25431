"""Epochs of training: steps over all windows, then the validation targets ranked."""

from __future__ import annotations

import math
import time
from typing import Any, cast

import numpy as np
import torch
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from ipsrec_onnx.catalog import Catalog
from ipsrec_onnx.errors import DataError
from ipsrec_onnx.metrics import metrics_of_ranks
from ipsrec_train.batches import Batch, Histories, Windows
from ipsrec_train.distributed import Workers
from ipsrec_train.history_scores import ScoredItems, scored_items
from ipsrec_train.losses import contrastive_loss, softmax_loss
from ipsrec_train.model import Model
from ipsrec_train.progress import TrainingBar
from ipsrec_train.ranking import rank_targets
from ipsrec_train.run import Learning, Progress, best_epoch
from ipsrec_train.sampling import NegativeSampler
from ipsrec_train.training_settings import TrainingSettings

CUTOFFS = (5, 10)
# Steps from one look at the loss to the next. A look waits for all that a GPU was given to do: between two of them it
# never waits for Python, which packs the next batch while a step runs.
LOOK_EVERY = {"cpu": 1, "cuda": 50}


class Loop:
    """Runs epochs; holds what stays the same from one to the next.

    Attributes:
        learning: what training changes.
    """

    def __init__(
        self,
        model: Model,
        *,
        learned: Histories,
        catalog: Catalog,
        training: TrainingSettings,
        device: torch.device,
        workers: Workers,
        bar: TrainingBar,
    ) -> None:
        self.model, self.training, self.device, self.workers, self.bar = model, training, device, workers, bar
        # The number of rows changes from step to step: compiled for any number, once.
        self.encode = torch.compile(model.encode_packed, dynamic=True) if training.compile else model.encode_packed
        self.optimizer = torch.optim.Adam(model.parameters(), lr=training.learning_rate, fused=True)
        average: AveragedModel | None = None
        if training.average:
            mean = get_ema_multi_avg_fn(training.average)  # type: ignore[no-untyped-call]
            average = AveragedModel(model, multi_avg_fn=mean)
        self.average = average
        self.learning = Learning(model, self.optimizer, average)
        self.windows = Windows(
            learned, max_len=model.settings.max_len, device=device, newest=training.newest_windows or None
        )
        self.all_items = scored_items(model.item_provider)
        self.sampler = NegativeSampler(catalog.popularity, training.negatives) if training.negatives else None

    @property
    def validated(self) -> Model:
        """The model that is validated and kept: the average, or the model itself."""
        if self.average is None:
            return self.model
        return cast(Model, self.average.module)

    def run_epoch(self, held_out: Histories, progress: Progress) -> dict[str, Any]:
        """Train on every window once, and validate where it is time; gives the epoch's line of metrics.jsonl."""
        number, metric = progress.epoch + 1, self.training.stop_metric
        started = time.perf_counter()
        best = best_epoch(progress.metrics, metric).get(metric, 0.0)
        loss, targets = self._train_epoch(number, note=f"best {metric} {best:.4f}")
        line: dict[str, Any] = {"epoch": number, "loss": loss, "targets": targets}
        line["train_s"] = time.perf_counter() - started
        reached = ""
        if number % self.training.validate_every == 0 or number == self.training.epochs:
            line |= metrics_of_ranks(self._rank(held_out), CUTOFFS)
            reached = f"{metric} {line[metric]:.4f}{' (best)' if line[metric] > best else ''}  "
        line["wall_s"] = time.perf_counter() - started
        self.bar.say(f"epoch {number}: loss {loss:.4f}  {reached}{line['wall_s']:.1f} s")
        return line

    def _train_epoch(self, number: int, *, note: str) -> tuple[float, int]:
        """Every window once; gives the mean loss and the number of targets."""
        size = self.training.batch_size
        rng = np.random.default_rng([self.training.seed, number])
        order = rng.permutation(len(self.windows))
        steps = math.ceil(len(order) / size)
        total, targets, since = torch.zeros((), dtype=torch.float64, device=self.device), 0, 0
        look_every = LOOK_EVERY[self.device.type]
        # A stream of random numbers for each epoch and process: a resumed run needs no state of them.
        torch.manual_seed(
            int(np.random.SeedSequence([self.training.seed, number, self.workers.rank]).generate_state(1)[0])
        )
        self.model.train()
        with self.bar.epoch(number, steps, note):
            for nth, first in enumerate(range(0, len(order), size)):
                chosen = order[first : first + size]
                done = (number - 1) * steps + nth
                for group in self.optimizer.param_groups:
                    group["lr"] = self.training.learning_rate_at(done, steps=steps * self.training.epochs)
                columns = self.all_items if self.sampler is None else self.sampler.draw(rng, self.model.item_provider)
                count = self.windows.num_targets(chosen)
                total += self.step(chosen, columns) * count
                targets, since = targets + count, since + 1
                if since == look_every or nth == steps - 1:
                    mean = float(total) / targets
                    if not math.isfinite(mean):
                        raise DataError(
                            f"training: loss {mean} in epoch {number}; try a smaller --learning-rate or another --seed"
                        )
                    self.bar.batches_done(since, mean, note)
                    since = 0
        return mean, targets

    def step(self, chosen: np.ndarray, columns: ScoredItems) -> torch.Tensor:
        """One step of Adam over some windows; gives the loss (Eq. 13) before it, () float64 on the device.

        Nothing here waits for a GPU, except the encoders of GRU4Rec, Caser and SR-GNN, which look at lengths.

        The windows are shared out to the processes, and there to parts that are computed one after the other; each
        part counts by its targets, so that the gradient is that of all windows at once.
        """
        shares = np.array_split(chosen, self.workers.size * self.training.batch_parts)
        count = self.windows.num_targets(chosen)
        self.optimizer.zero_grad(set_to_none=True)
        total = torch.zeros((), dtype=torch.float64, device=self.device)
        for share in shares[self.workers.rank :: self.workers.size]:
            if len(share):
                batch = self.windows.pack(share)
                with torch.autocast(self.device.type, torch.bfloat16, enabled=self._low_precision_encoder):
                    loss = self._loss(batch, columns) * (len(batch.targets) / count)
                loss.backward()  # type: ignore[no-untyped-call]
                total += loss.detach()
        self.workers.sum_gradients(self.model)
        self.optimizer.step()
        if self.average is not None:
            self.average.update_parameters(self.model)
        self.workers.sum_tensor(total)
        return total

    @property
    def _low_precision_encoder(self) -> bool:
        """On a CPU an encoder of these widths gains nothing from bfloat16: its time goes into small operators."""
        return self.training.precision == "bf16" and self.device.type == "cuda"

    def _loss(self, batch: Batch, columns: ScoredItems) -> torch.Tensor:
        """Eq. 13 of one batch."""
        model, settings = self.model, self.model.settings
        table = model.item_embeddings()
        item_states, provider_states = self.encode(table, batch.histories)
        item_states = item_states.flatten(0, 1).float()  # (R W, D)
        terms = model.history_terms
        loss = softmax_loss(
            item_states[batch.at],
            table,
            batch.targets,
            columns=columns,
            weights=None if terms is None else (terms.provider_weights(), terms.item_weights()),
            entries=None if terms is None else batch.entries,
            precision=self.training.precision,
        )
        users = batch.users
        contrastive = settings.contrastive
        if contrastive is not None and provider_states is not None and len(users):
            contrast = contrastive_loss(
                item_states[users],
                provider_states.flatten(0, 1)[users],
                temperature=contrastive.temperature,
                symmetric=contrastive.symmetric,
            )
            loss = loss + contrastive.weight * contrast
        return loss

    def _rank(self, held_out: Histories) -> np.ndarray:
        """Ranks of the validation targets, each process its share."""
        mine = np.arange(self.workers.rank, len(held_out), self.workers.size)
        ranks = rank_targets(self.validated, held_out, columns=self.all_items, users=mine)
        return self.workers.sum_array(ranks, self.device)
