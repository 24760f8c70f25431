"""What a user took before, as learned terms of the score.

    score(u, i) = h_u . item_embeddings[i] + sum_s a[age_s] [prov(s) = prov(i)] + sum_s b[age_s] [s = i]

over the last max_len interactions s, age 0 the newest, a >= 0, b of either sign: one number each for every age.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

# The weights are stored divided by this, so that Adam's steps of 1e-3 can move them by whole units in an epoch.
STEP_SCALE = 20.0
# softplus(-1) = 0.31, about the size that provider weights are learned to; from far below, softplus hardly moves.
PROVIDER_START = -1.0


class HistoryTerms(nn.Module):
    """The learned weights a (providers) and b (items), newest first."""

    def __init__(self, max_len: int) -> None:
        super().__init__()
        self.provider = nn.Parameter(torch.zeros(max_len))
        self.item = nn.Parameter(torch.zeros(max_len))

    def provider_weights(self) -> Tensor:
        """(max_len,) a, by age; never negative."""
        return F.softplus(STEP_SCALE * self.provider + PROVIDER_START)

    def item_weights(self) -> Tensor:
        """(max_len,) b, by age."""
        return STEP_SCALE * self.item


class HistoryEntries(NamedTuple):
    """What the history of each target holds; row t belongs to target t.

    Attributes:
        items: (T, S) int64 item_index; anything where `real` is 0.
        age: (T, S) int64, 0 the newest.
        real: (T, S) float32, 1 where there is an entry, else 0.
    """

    items: Tensor
    age: Tensor
    real: Tensor

    def rows(self, here: slice) -> HistoryEntries:
        """The entries of some targets."""
        return HistoryEntries(self.items[here], self.age[here], self.real[here])


class HistoryScores:
    """History terms of a chunk of scores (C, V), column c for item_index c + 1, and their gradients.

    Args:
        item_provider: (V + 1,) int64 provider_index of each item_index, items numbered by provider.
    """

    def __init__(self, item_provider: Tensor) -> None:
        self.item_provider = item_provider
        self.num_providers = int(item_provider.max())
        count = torch.bincount(item_provider[1:], minlength=self.num_providers + 1)
        self.end = torch.cumsum(count, 0)  # (P + 1,) one past the last column of each provider
        self.begin = self.end - count

    def add(self, scores: Tensor, a: Tensor, b: Tensor, *, entries: HistoryEntries) -> None:
        """Add a and b (max_len,) of every history entry to scores (C, V), in place."""
        by_provider = scores.new_zeros(len(scores), self.num_providers + 1)
        by_provider.scatter_add_(1, self.item_provider[entries.items], a[entries.age] * entries.real)
        by_provider[:, 0] = 0.0  # items without a provider have none in common
        scores.add_(by_provider.index_select(1, self.item_provider[1:]))
        scores.scatter_add_(1, (entries.items - 1).clamp(min=0), b[entries.age] * entries.real)

    def add_gradients(self, d_scores: Tensor, d_a: Tensor, d_b: Tensor, *, entries: HistoryEntries) -> None:
        """Add to d_a and d_b (max_len,), in place, what d_scores (C, V) says of each age."""
        running = torch.cumsum(d_scores, 1)  # (C, V): a provider's sum is a difference of two of these
        provider = self.item_provider[entries.items]  # (C, S)
        begin, end = self.begin[provider], self.end[provider]
        before = running.gather(1, (begin - 1).clamp(min=0)) * (begin > 0)
        of_provider = running.gather(1, (end - 1).clamp(min=0)) - before
        d_a.index_add_(0, entries.age.flatten(), (of_provider * entries.real * (provider > 0)).flatten())
        of_item = d_scores.gather(1, (entries.items - 1).clamp(min=0))
        d_b.index_add_(0, entries.age.flatten(), (of_item * entries.real).flatten())
