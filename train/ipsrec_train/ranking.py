"""Full ranking in training, for validation between epochs; the last word has `ipsrec evaluate`."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ipsrec_kernels.pack import pack_histories
from ipsrec_kernels.target_rank import target_ranks
from ipsrec_onnx.errors import DataError
from ipsrec_train.batches import Histories
from ipsrec_train.history_scores import (
    HistoryEntries,
    ScoredItems,
    add_history_scores,
    kernel_columns,
    kernel_histories,
    kernel_weights,
)
from ipsrec_train.model import Model

BATCH_SIZE = 256


@torch.no_grad()
def rank_targets(
    model: Model, histories: Histories, *, columns: ScoredItems, users: npt.NDArray[np.int64] | None = None
) -> npt.NDArray[np.int64]:
    """Rank each user's target among all items, seen ones included, ties by smaller item_index.

    Args:
        model: its mode is left as it was.
        histories: with targets.
        columns: all items, on the model's device.
        users: which users to rank; all where None.

    Returns:
        (U,) int64, 1 is best; 0 for a user without any item before the target, and for those not asked for.

    Raises:
        DataError: a score is no finite number.
    """
    training = model.training
    model.eval()
    table = model.item_embeddings()
    terms = model.history_terms
    weights = None if terms is None else (terms.provider_weights(), terms.item_weights())
    lengths = np.minimum(np.diff(histories.offsets), model.settings.max_len)
    asked = np.arange(len(histories)) if users is None else users
    by_length = asked[np.argsort(lengths[asked], kind="stable")]
    by_length = by_length[lengths[by_length] > 0]
    ranks = np.zeros(len(histories), np.int64)
    for first in range(0, len(by_length), BATCH_SIZE):
        batch = by_length[first : first + BATCH_SIZE]
        packed, kept = pack_histories(
            histories.values, histories.offsets, batch, bucket_len=int(lengths[batch].max()), batch_size=len(batch)
        )
        found = rank_batch(
            model, table, packed, kept, targets=histories.targets[batch], columns=columns, weights=weights
        )
        if not found.all():  # NaN is not above anything: ranks would be too good
            raise DataError("training: a validation score is NaN or infinite; try a smaller --learning-rate")
        ranks[batch] = found
    model.train(training)
    return ranks


def rank_batch(
    model: Model,
    table: Tensor,
    packed: npt.NDArray[np.int32],
    lengths: npt.NDArray[np.int32],
    *,
    targets: npt.NDArray[np.int32],
    columns: ScoredItems,
    weights: tuple[Tensor, Tensor] | None,
) -> npt.NDArray[np.int64]:
    """Rank the targets of some users with right-padded histories packed (B, L) of these lengths (B,).

    Returns:
        (B,) int64; 0 where a score is no finite number.
    """
    items = torch.from_numpy(packed).to(table.device)  # (B, L)
    length = torch.from_numpy(lengths).to(table.device).long()
    user = model.encode_last(table, items, model.item_provider[items.long()], length)  # (B, D)
    scores = user @ table[1:].T  # (B, num_items)
    start = torch.arange(len(items), device=table.device) * items.shape[1]
    entries = None if weights is None else HistoryEntries(items.flatten(), start, start + length)
    if table.device.type == "cpu":
        return target_ranks(
            scores.numpy(),
            targets,
            columns=kernel_columns(columns),
            histories=kernel_histories(entries),
            weights=kernel_weights(weights),
        )
    if entries is not None and weights is not None:
        add_history_scores(scores, *weights, entries=entries, columns=columns)
    ranks = rank_of(scores, torch.from_numpy(targets.astype(np.int64) - 1).to(table.device).unsqueeze(1))
    ranks[~torch.isfinite(scores).all(1)] = 0
    found: npt.NDArray[np.int64] = ranks.cpu().numpy()
    return found


def rank_of(scores: Tensor, target: Tensor) -> Tensor:
    """Rank of one column each: scores (B, V), target (B, 1) column -> (B,) int64, ties by smaller column."""
    best = scores.gather(1, target)  # (B, 1)
    earlier = torch.arange(scores.shape[1], device=scores.device) < target
    return 1 + ((scores > best) | ((scores == best) & earlier)).sum(1)
