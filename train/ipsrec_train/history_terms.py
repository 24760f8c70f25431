"""What a user took before, as learned terms of the score.

    score(u, i) = h_u . item_embeddings[i] + sum_s a[age_s] [prov(s) = prov(i)] + sum_s b[age_s] [s = i]

over the last max_len interactions s, age 0 the newest, a >= 0, b of either sign: one number each for every age.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

# The weights are stored divided by this, so that Adam's steps of 1e-3 can move them by whole units in an epoch.
STEP_SCALE = 20.0
# softplus(-1) = 0.31, about the size that provider weights are learned to; from far below, softplus hardly moves.
PROVIDER_START = -1.0


class HistoryTerms(nn.Module):
    """The learned weights a (providers) and b (items), newest first.

    Args:
        max_len: how many ages have weights.
        providers: learn a as well as b; else a is 0 at every age, and nothing is learned of it.
    """

    def __init__(self, max_len: int, *, providers: bool = True) -> None:
        super().__init__()
        self.provider = nn.Parameter(torch.zeros(max_len)) if providers else None
        self.item = nn.Parameter(torch.zeros(max_len))

    def provider_weights(self) -> Tensor:
        """(max_len,) a, by age; never negative."""
        if self.provider is None:
            return torch.zeros_like(self.item)
        return F.softplus(STEP_SCALE * self.provider + PROVIDER_START)

    def item_weights(self) -> Tensor:
        """(max_len,) b, by age."""
        return STEP_SCALE * self.item
