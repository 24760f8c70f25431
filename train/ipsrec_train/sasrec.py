"""SASRec, self-attention over the items alone (Kang and McAuley 2018, section III)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ipsrec_train.layers import (
    Dropout,
    StreamInput,
    causal_mask,
    initialize,
    last_mask,
    layers_of,
    packed_mask,
    stack,
    take_last,
)
from ipsrec_train.packed import PackedHistories
from ipsrec_train.settings import SASRecSettings


class SASRec(nn.Module):
    """One causal stream: item and position embeddings, then Transformer layers (section III.A-C).

    As RecBole 1.0.0 has it (recbole/model/sequential_recommender/sasrec.py, properties/model/SASRec.yaml), and so
    unlike the paper: LayerNorm after each residual and not before, a LayerNorm on the embeddings, GELU and an inner
    width of 256 in the feed-forward, two heads, positions counted from the oldest item.
    """

    def __init__(self, settings: SASRecSettings) -> None:
        super().__init__()
        self.settings = settings
        self.item_input = StreamInput(settings, segment=False)
        self.norm = nn.LayerNorm(settings.dim, eps=settings.layer_norm_eps)
        self.dropout = Dropout(settings.dropout)
        self.layers = stack(settings, settings.num_layers)

    def initialize(self) -> None:
        """Draw all weights from N(0, initializer_std), as RecBole does."""
        initialize(self, self.settings.initializer_std)

    def forward(self, items: Tensor, providers: Tensor, packed: PackedHistories) -> tuple[Tensor, None]:
        """Encode histories packed end to end, all positions in one pass.

        Args:
            items: (R, W, D) item embeddings.
            providers: (R, W, D) provider embeddings; not looked at.
            packed: the histories that they are of.

        Returns:
            item states (R, W, D), state t has seen positions 0..t of its own history; and no provider states.
        """
        mask = packed_mask(packed.segments)  # (R, 1, W, W)
        states = self._embed(items, packed.positions)  # (R, W, D)
        for layer in layers_of(self.layers):
            states = layer(states, states, mask)
        return states, None

    def encode_last(self, items: Tensor, providers: Tensor, item_history: Tensor, lengths: Tensor) -> Tensor:
        """Encode the newest position of right-padded histories, and of the last layer nothing else.

        Args:
            items: (B, L, D) item embeddings.
            providers: (B, L, D) provider embeddings; not looked at.
            item_history: (B, L) int64 item_index; not looked at here.
            lengths: (B,) int64, 1 or more.

        Returns:
            (B, D) state of the newest position: the user.
        """
        sequence = items.shape[1]
        causal, last = causal_mask(sequence, items.device), last_mask(lengths, sequence)
        states = self._embed(items, torch.arange(sequence, device=items.device).unsqueeze(0))  # (B, L, D)
        *lower_layers, last_layer = layers_of(self.layers)
        for layer in lower_layers:
            states = layer(states, states, causal)
        user: Tensor = last_layer(take_last(states, lengths), states, last)  # (B, 1, D)
        return user.squeeze(1)

    def _embed(self, items: Tensor, positions: Tensor) -> Tensor:
        """Item and position embeddings, then LayerNorm and dropout: (B, K, D), (B or 1, K) -> (B, K, D)."""
        embedded: Tensor = self.dropout(self.norm(self.item_input(items, positions)))
        return embedded
