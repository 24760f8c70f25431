"""Cross entropy over all items, and the contrastive losses.

T targets, V items, D dim, S entries of a target's history.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from ipsrec_train.history_terms import HistoryEntries, HistoryScores

# Scores held at once, targets x items. Small enough to stay near the caches of a CPU, large enough for its GEMM.
SCORES_AT_ONCE = {"cpu": 1_000_000, "cuda": 200_000_000}


class FullSoftmax(torch.autograd.Function):
    """Mean cross entropy of the scores of all items, which never holds more than one chunk of scores.

    Gradients are made in the forward pass, chunk by chunk, where the scores are at hand: one array of chunk x items
    lives instead of three of targets x items, and nothing is computed twice.
    """

    @staticmethod
    def forward(
        ctx: Any,
        users: Tensor,
        table: Tensor,
        targets: Tensor,
        a: Tensor,
        b: Tensor,
        entries: HistoryEntries | None,
        item_provider: Tensor,
    ) -> Tensor:
        """See full_softmax_loss; a and b are empty for a model without history terms."""
        d_users, d_table, d_a, d_b = (torch.zeros_like(part) for part in (users, table, a, b))
        items = table[1:]  # (V, D), without PADDING
        loss = users.new_zeros(())
        history_scores = HistoryScores(item_provider)
        chunk = max(1, SCORES_AT_ONCE[users.device.type] // max(1, len(items)))
        for start in range(0, len(users), chunk):
            here = slice(start, start + chunk)
            scores = users[here] @ items.T  # (C, V)
            target = (targets[here] - 1).unsqueeze(1)  # (C, 1)
            if entries is not None:
                history_scores.add(scores, a, b, entries=entries.rows(here))
            # The softmax in place, with one exponential for each score.
            scores -= scores.amax(1, keepdim=True)
            loss -= scores.gather(1, target).sum()
            total = scores.exp_().sum(1, keepdim=True)  # (C, 1)
            loss += total.log().sum()
            d_scores = scores.div_(total)
            d_scores.scatter_add_(1, target, torch.full_like(total, -1.0))
            d_users[here] = d_scores @ items
            d_table[1:].addmm_(d_scores.T, users[here])
            if entries is not None:
                history_scores.add_gradients(d_scores, d_a, d_b, entries=entries.rows(here))
        ctx.save_for_backward(d_users, d_table, d_a, d_b)
        ctx.count = len(users)
        return loss / len(users)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        """Scale what the forward pass made."""
        d_users, d_table, d_a, d_b = (part * (grad / ctx.count) for part in ctx.saved_tensors)
        return d_users, d_table, None, d_a, d_b, None, None


def full_softmax_loss(
    users: Tensor,
    table: Tensor,
    targets: Tensor,
    *,
    item_provider: Tensor,
    weights: tuple[Tensor, Tensor] | None = None,
    entries: HistoryEntries | None = None,
) -> Tensor:
    """Mean cross entropy of the next item against all items (Eq. 5-6), PADDING left out.

    Args:
        users: (T, D) states that predict.
        table: (V + 1, D) item embeddings.
        targets: (T,) int64 item_index of the item that came next.
        item_provider: (V + 1,) int64, items numbered by provider.
        weights: a and b of the history terms, (max_len,) each; None for a model without.
        entries: what each target's history holds, T rows; None for a model without.

    Returns:
        () float32.
    """
    a, b = weights if weights is not None else (users.new_zeros(0), users.new_zeros(0))
    loss: Tensor = FullSoftmax.apply(users, table, targets, a, b, entries, item_provider)  # type: ignore[no-untyped-call]
    return loss


def contrastive_loss(item_users: Tensor, provider_users: Tensor, *, temperature: float, symmetric: bool) -> Tensor:
    """Pull a user's two states together, push those of different users apart.

    Args:
        item_users: (B, D) last item state of each user.
        provider_users: (B, D) last provider state of each user.
        temperature: tau.
        symmetric: False is Eq. 12, anchor the item state, negatives the other users' provider states. True is the
            released code: each of the 2 B states is an anchor, its negatives are all states of the other users.

    Returns:
        () float32.
    """
    B = len(item_users)
    target = torch.arange(B, device=item_users.device)
    if not symmetric:
        return F.cross_entropy(item_users @ provider_users.T / temperature, target)
    views = torch.cat([item_users, provider_users])  # (2 B, D)
    alike = views @ views.T / temperature  # (2 B, 2 B)
    alike = alike.masked_fill(torch.eye(2 * B, dtype=torch.bool, device=views.device), float("-inf"))
    return F.cross_entropy(alike, torch.cat([target + B, target]))
