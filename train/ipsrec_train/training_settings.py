"""Settings of training, frozen: the same for every model."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from ipsrec_onnx.errors import DataError
from ipsrec_train.settings import refuse_unless_positive

Metric = Literal["ndcg@10", "mrr@10"]


@dataclass(frozen=True)
class TrainingSettings:
    """How a model is trained (paper section 3.3).

    Attributes:
        batch_size: windows of histories in a batch.
        learning_rate: of Adam.
        epochs: most epochs.
        patience: stop after so many epochs without a better validation metric.
        stop_metric: which metric is watched.
        seed: of weights, dropout and order.
    """

    batch_size: int = 256
    learning_rate: float = 1e-3
    epochs: int = 200
    patience: int = 10
    stop_metric: Metric = "ndcg@10"
    seed: int = 0

    def __post_init__(self) -> None:
        for name, least in (("batch_size", 1), ("epochs", 1), ("patience", 1), ("seed", 0)):
            if getattr(self, name) < least:
                raise DataError(f"settings: {name} is {getattr(self, name)}, expected {least} or more")
        refuse_unless_positive(self, "learning_rate")
        if self.stop_metric not in ("ndcg@10", "mrr@10"):
            raise DataError(f"settings: stop_metric {self.stop_metric!r}, expected ndcg@10 or mrr@10")
