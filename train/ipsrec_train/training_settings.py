"""Settings of training, frozen: the same for every model."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from ipsrec_onnx.errors import DataError
from ipsrec_train.settings import refuse_unless_positive

Metric = Literal["ndcg@10", "mrr@10"]
Schedule = Literal["constant", "linear"]

LARGEST_SEED = 2**63 - 1  # what torch takes


@dataclass(frozen=True)
class TrainingSettings:
    """How a model is trained (paper section 3.3).

    Attributes:
        batch_size: windows of histories in a step.
        batch_parts: how many parts a step is computed in, one after the other (gradient accumulation): less memory for
            the same gradient. A contrastive loss tells users apart within a part.
        newest_windows: train on so many windows of each user, the newest; 0 is all.
        learning_rate: of Adam, the highest.
        schedule: "constant", or "linear": falling in a straight line to 0 at the last step of `epochs`.
        warmup_steps: steps in which the learning rate rises from 0 to its highest.
        average: decay of the moving average of the weights that is validated and kept (Polyak and Juditsky 1992);
            0 keeps the weights themselves.
        negatives: items that a step tells its targets from, drawn anew for each step (NegativeSampler); 0 is all items.
        precision: of the products of users and items, "fp32" or "bf16"; on a GPU also of the encoder.
        compile: let torch.compile make the encoder's kernels; on a GPU alone.
        epochs: most epochs.
        validate_every: epochs from one validation to the next; the last of `epochs` is always validated.
        patience: stop after so many epochs without a better validation metric, at least validate_every.
        stop_metric: which metric is watched.
        seed: of weights, dropout and order.
    """

    batch_size: int = 256
    batch_parts: int = 1
    newest_windows: int = 0
    learning_rate: float = 1e-3
    schedule: Schedule = "constant"
    warmup_steps: int = 0
    average: float = 0.0
    negatives: int = 0
    precision: Literal["fp32", "bf16"] = "fp32"
    compile: bool = False
    epochs: int = 200
    validate_every: int = 1
    patience: int = 10
    stop_metric: Metric = "ndcg@10"
    seed: int = 0

    def __post_init__(self) -> None:
        least = {
            "batch_size": 1,
            "batch_parts": 1,
            "newest_windows": 0,
            "warmup_steps": 0,
            "negatives": 0,
            "epochs": 1,
            "validate_every": 1,
            "patience": 1,
            "seed": 0,
        }
        for name, low in least.items():
            if getattr(self, name) < low:
                raise DataError(f"settings: {name} is {getattr(self, name)}, expected {low} or more")
        if self.patience < self.validate_every:
            raise DataError(
                f"settings: patience is {self.patience}, expected validate_every ({self.validate_every}) or more: "
                "training would stop before it was validated"
            )
        if self.seed > LARGEST_SEED:
            raise DataError(f"settings: seed is {self.seed}, expected at most {LARGEST_SEED}")
        refuse_unless_positive(self, "learning_rate")
        if not 0 <= self.average < 1:
            raise DataError(f"settings: average is {self.average}, expected 0 <= average < 1")
        choices = {
            "stop_metric": ("ndcg@10", "mrr@10"),
            "schedule": ("constant", "linear"),
            "precision": ("fp32", "bf16"),
        }
        for name, known in choices.items():
            if getattr(self, name) not in known:
                raise DataError(f"settings: {name} {getattr(self, name)!r}, expected {' or '.join(known)}")

    def learning_rate_at(self, step: int, *, steps: int) -> float:
        """The learning rate of one step, 0 the first, of a training of at most `steps` steps."""
        rate = self.learning_rate
        if step < self.warmup_steps:
            return rate * (step + 1) / self.warmup_steps
        if self.schedule == "linear":
            return rate * max(steps - step, 1) / max(steps - self.warmup_steps, 1)
        return rate
