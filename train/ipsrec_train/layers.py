"""The parts that every model here is made of: post-LayerNorm attention and feed-forward, and their masks.

B batch, Q queries, K keys, D dim, H heads.
"""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ipsrec_train.settings import AttentionSettings

# Added to a score that may not be looked at. Finite: a row of -inf alone would give NaN in the exported graph.
BLOCKED = -1e9


class Dropout(nn.Module):
    """Zeroes elements in training, and scales what stays so that the mean is kept.

    On a CPU one random byte decides about each element, which takes 7 ns an element where torch's own dropout takes 17.
    So the share is rounded to 1/256: .5 is exact, .3 is .3008, and less than 1/512 is none.

    Args:
        share: of the elements that are zeroed, 0 or more and below 1.
    """

    def __init__(self, share: float) -> None:
        super().__init__()
        self.share = share
        self.threshold = min(round(share * 256), 255)

    def forward(self, states: Tensor) -> Tensor:
        """Any shape and device -> the same."""
        if not self.training or self.threshold == 0:
            return states
        if not states.is_cpu:
            return F.dropout(states, self.share)
        count = states.numel()
        words = torch.empty((count + 7) // 8, dtype=torch.int64).random_(-(2**63), None)
        kept = words.view(torch.uint8)[:count].view(states.shape) >= self.threshold
        return states * kept.to(states.dtype).mul_(256 / (256 - self.threshold))


class TransformerLayer(nn.Module):
    """Multi-head attention and feed-forward, each closed by residual and LayerNorm (Vaswani et al. 2017, section 3.1).

    Queries may come from another place than keys and values: from one position alone (the last layer of an exported
    graph) or from the other stream (co-attention).
    """

    def __init__(self, settings: AttentionSettings) -> None:
        super().__init__()
        D = settings.dim
        self.num_heads = settings.num_heads
        self.query = nn.Linear(D, D)
        self.key = nn.Linear(D, D)
        self.value = nn.Linear(D, D)
        self.output = nn.Linear(D, D)
        self.attention_norm = nn.LayerNorm(D, eps=settings.layer_norm_eps)
        self.inner = nn.Linear(D, settings.inner_dim)
        self.outer = nn.Linear(settings.inner_dim, D)
        self.feed_forward_norm = nn.LayerNorm(D, eps=settings.layer_norm_eps)
        self.dropout = Dropout(settings.dropout)

    def forward(self, at: Tensor, states: Tensor, mask: Tensor) -> Tensor:
        """Self-attention of some positions of a stream, or of all: at (B, Q, D), states (B, K, D) -> (B, Q, D)."""
        return self.attend(at, self.query(at), states, mask=mask)

    def attend(self, residual: Tensor, queries: Tensor, keys: Tensor, *, mask: Tensor) -> Tensor:
        """Look from queries at keys (Eq. 4), then close the layer.

        Args:
            residual: (B, Q, D) what the attention's result is added to.
            queries: (B, Q, D) projected by the `query` of this layer or of the other stream's.
            keys: (B, K, D) states that keys and values are made of.
            mask: (B or 1, 1, Q, K) float32, 0 where a query may look and BLOCKED where not.

        Returns:
            (B, Q, D) new states.
        """
        q = self._heads(queries)  # (B, H, Q, D / H)
        k = self._heads(self.key(keys))  # (B, H, K, D / H)
        v = self._heads(self.value(keys))  # (B, H, K, D / H)
        dropout = self.dropout.share if self.training else 0.0
        if dropout and q.is_cpu:
            # What torch does here, too, where there is dropout; but with ours.
            alike = q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5 + mask  # (B, H, Q, K)
            looked = self.dropout(alike.softmax(-1)) @ v  # (B, H, Q, D / H)
        else:
            looked = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, dropout_p=dropout)
        looked = looked.transpose(1, 2).flatten(2)  # (B, Q, D)
        states = self.attention_norm(residual + self.dropout(self.output(looked)))
        fed = self.outer(F.gelu(self.inner(states)))  # (B, Q, D)
        closed: Tensor = self.feed_forward_norm(states + self.dropout(fed))
        return closed

    def _heads(self, states: Tensor) -> Tensor:
        """(B, K, D) -> (B, H, K, D / H)."""
        return states.view(*states.shape[:-1], self.num_heads, -1).transpose(1, 2)


class StreamInput(nn.Module):
    """Position embeddings of one stream, and its segment embedding where there are two streams (Eq. 1)."""

    def __init__(self, settings: AttentionSettings, *, segment: bool = True) -> None:
        super().__init__()
        self.position = nn.Parameter(torch.empty(settings.max_len, settings.dim))
        self.segment = nn.Parameter(torch.empty(settings.dim)) if segment else None

    def forward(self, embeddings: Tensor, positions: Tensor) -> Tensor:
        """(B, K, D) embeddings, positions (B or 1, K) int64 from the oldest, 0 -> (B, K, D)."""
        placed = embeddings + F.embedding(positions, self.position)
        return placed if self.segment is None else placed + self.segment


def blocked_unless(allowed: Tensor) -> Tensor:
    """Turn (B, Q, K) bool, True where a query may look, into the (B, 1, Q, K) float32 mask of TransformerLayer."""
    return torch.where(allowed, 0.0, BLOCKED).unsqueeze(1)


def packed_allowed(segments: Tensor) -> tuple[Tensor, Tensor]:
    """Say who may look at whom where histories lie end to end.

    Args:
        segments: (R, W) int64, which history a position belongs to; positions of one history are in order.

    Returns:
        causal: (R, W, W) bool, query and key are of one history and the key is not newer.
        same: (R, W, W) bool, query and key are of one history.
    """
    at = torch.arange(segments.shape[1], device=segments.device)
    same = segments.unsqueeze(2) == segments.unsqueeze(1)
    return same & (at[:, None] >= at[None, :]), same


def packed_mask(segments: Tensor) -> Tensor:
    """(R, W) segments -> (R, 1, W, W) float32: block-diagonal and causal."""
    return blocked_unless(packed_allowed(segments)[0])


def causal_mask(sequence: int, device: torch.device) -> Tensor:
    """(1, 1, K, K) float32: position t looks at 0..t.

    With right padding this is all the masking there is: a real position looks back, where only real positions lie.
    """
    at = torch.arange(sequence, device=device)
    return blocked_unless((at[:, None] >= at[None, :]).unsqueeze(0))


def last_mask(lengths: Tensor, sequence: int) -> Tensor:
    """(B, 1, 1, K) float32: the last position of each history looks at all of its history."""
    at = torch.arange(sequence, device=lengths.device)
    return blocked_unless((at[None, :] < lengths[:, None]).unsqueeze(1))


def take_last(states: Tensor, lengths: Tensor) -> Tensor:
    """(B, K, D) states, (B,) lengths of 1 or more -> (B, 1, D), the state of each history's newest position."""
    index = (lengths - 1).view(-1, 1, 1).expand(-1, 1, states.shape[-1])
    return states.gather(1, index)


def stack(settings: AttentionSettings, count: int) -> nn.ModuleList:
    """Make `count` layers, to be kept by a module."""
    return nn.ModuleList(TransformerLayer(settings) for _ in range(count))


def layers_of(kept: nn.ModuleList) -> list[TransformerLayer]:
    """The layers of a stack, with their type."""
    return cast("list[TransformerLayer]", list(kept))


def initialize(module: nn.Module, std: float) -> None:
    """Draw every weight from N(0, std), as the released code does; biases 0, LayerNorm the identity, PADDING rows 0."""
    for part in module.modules():
        if isinstance(part, nn.Linear):
            nn.init.normal_(part.weight, std=std)
            nn.init.zeros_(part.bias)
        elif isinstance(part, nn.Embedding):
            nn.init.normal_(part.weight, std=std)
            if part.padding_idx is not None:
                with torch.no_grad():
                    part.weight[part.padding_idx].zero_()
        elif isinstance(part, StreamInput):
            nn.init.normal_(part.position, std=std)
            if part.segment is not None:
                nn.init.normal_(part.segment, std=std)
