"""Full ranking in PyTorch, for validation between epochs; the last word has `ipsrec evaluate`."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ipsrec_kernels.pack import pack_histories
from ipsrec_onnx.errors import DataError
from ipsrec_train.batches import Histories
from ipsrec_train.history_terms import HistoryEntries, HistoryScores
from ipsrec_train.model import Model

BATCH_SIZE = 256


@torch.no_grad()
def rank_targets(model: Model, histories: Histories, *, device: torch.device) -> npt.NDArray[np.int64]:
    """Rank each user's target among all items, seen ones included, ties by smaller item_index.

    Args:
        model: on the device; its mode is left as it was.
        histories: with targets.
        device: where the model is.

    Returns:
        (U,) int64, 1 is best; 0 for a user without any item before the target.

    Raises:
        DataError: a score is no finite number.
    """
    training = model.training
    model.eval()
    table = model.item_embeddings()
    lengths = np.minimum(np.diff(histories.offsets), model.settings.max_len)
    by_length = np.argsort(lengths, kind="stable")
    by_length = by_length[lengths[by_length] > 0]
    ranks = np.zeros(len(histories), np.int64)
    for first in range(0, len(by_length), BATCH_SIZE):
        users = by_length[first : first + BATCH_SIZE]
        scores = score_batch(model, table, histories, users, device=device)  # (B, num_items)
        target = torch.from_numpy(histories.targets[users].astype(np.int64) - 1).to(device).unsqueeze(1)
        if not torch.isfinite(scores).all():  # NaN is not above anything: ranks would be too good
            raise DataError("training: a validation score is NaN or infinite; try a smaller --learning-rate")
        ranks[users] = rank_of(scores, target).cpu().numpy()
    model.train(training)
    return ranks


def score_batch(
    model: Model, table: Tensor, histories: Histories, users: npt.NDArray[np.int64], *, device: torch.device
) -> Tensor:
    """(B, num_items) full scores of some users, history terms included; column c is item_index c + 1."""
    bucket_len = int(min(np.diff(histories.offsets)[users].max(), model.settings.max_len))
    packed, lengths = pack_histories(
        histories.values, histories.offsets, users, bucket_len=bucket_len, batch_size=len(users)
    )
    items = torch.from_numpy(packed).long().to(device)  # (B, L)
    length = torch.from_numpy(lengths).long().to(device)
    user = model.encode_last(table, items, model.item_provider[items], length)  # (B, D)
    scores = user @ table[1:].T
    if model.history_terms is not None:
        age = length.unsqueeze(1) - 1 - torch.arange(bucket_len, device=device)
        HistoryScores(model.item_provider).add(
            scores,
            model.history_terms.provider_weights(),
            model.history_terms.item_weights(),
            entries=HistoryEntries(items, age.clamp(min=0), (age >= 0).float()),
        )
    return scores


def rank_of(scores: Tensor, target: Tensor) -> Tensor:
    """Rank of one column each: scores (B, V), target (B, 1) column -> (B,) int64, ties by smaller column."""
    best = scores.gather(1, target)  # (B, 1)
    earlier = torch.arange(scores.shape[1], device=scores.device) < target
    return 1 + ((scores > best) | ((scores == best) & earlier)).sum(1)
