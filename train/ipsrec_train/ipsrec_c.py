"""IPSRec-C, the cross-stream encoder: items and providers apart, joined by co-attention (paper section 2.2)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ipsrec_train.layers import (
    Dropout,
    StreamInput,
    TransformerLayer,
    causal_mask,
    initialize,
    last_mask,
    layers_of,
    packed_mask,
    stack,
    take_last,
)
from ipsrec_train.packed import PackedHistories
from ipsrec_train.settings import IPSRecSettings


class IPSRecC(nn.Module):
    """Two causal streams and their fusion.

    `paper` and `recommended`: each stream has its own `num_layers` of self-attention, then ONE fusion layer
    (Eq. 7-11 with Figure 2). `released`: no self-attention, `num_layers` of fusion.

    In a fusion layer both streams are causal, and the residual is the stream's own. What they exchange is a setting:
    "queries" (released code) gives the item stream softmax(Q_p K_i^T) V_i, "keys_values" softmax(Q_i K_p^T) V_p.
    """

    def __init__(self, settings: IPSRecSettings) -> None:
        super().__init__()
        self.settings = settings
        D, eps = settings.dim, settings.layer_norm_eps
        released = settings.variant == "released"
        own, fused = (0, settings.num_layers) if released else (settings.num_layers, 1)
        self.exchange = settings.co_attention
        self.item_input, self.provider_input = StreamInput(settings), StreamInput(settings)
        self.item_norm, self.provider_norm = nn.LayerNorm(D, eps=eps), nn.LayerNorm(D, eps=eps)
        self.dropout = Dropout(settings.dropout)
        self.item_layers = stack(settings, own)
        self.provider_layers = stack(settings, own)
        self.item_fusion = stack(settings, fused)
        self.provider_fusion = stack(settings, fused)

    def initialize(self) -> None:
        """Draw all weights from N(0, initializer_std), as the released code does."""
        initialize(self, self.settings.initializer_std)

    def forward(self, items: Tensor, providers: Tensor, packed: PackedHistories) -> tuple[Tensor, Tensor]:
        """Encode histories packed end to end, all positions in one pass.

        Args:
            items: (R, W, D) item embeddings.
            providers: (R, W, D) provider embeddings.
            packed: the histories that they are of.

        Returns:
            item and provider states, (R, W, D) each; state t has seen positions 0..t of its own history.
        """
        mask = packed_mask(packed.segments)  # (R, 1, W, W)
        x, y = self._embed(items, providers, packed.positions)
        for item_layer, provider_layer in self._own_layers():
            x, y = item_layer(x, x, mask), provider_layer(y, y, mask)
        for item_layer, provider_layer in self._fusion_layers():
            x, y = self._fuse(item_layer, provider_layer, x, y, mask)
        return x, y

    def encode_last(self, items: Tensor, providers: Tensor, item_history: Tensor, lengths: Tensor) -> Tensor:
        """Encode the newest position of right-padded histories, and of the last layers nothing else.

        Args:
            items: (B, L, D) item embeddings.
            providers: (B, L, D) provider embeddings.
            item_history: (B, L) int64 item_index; not looked at here.
            lengths: (B,) int64, 1 or more.

        Returns:
            (B, D) item state of the newest position: the user.
        """
        sequence = items.shape[1]
        causal, last = causal_mask(sequence, items.device), last_mask(lengths, sequence)
        x, y = self._embed(items, providers, torch.arange(sequence, device=items.device).unsqueeze(0))
        for item_layer, provider_layer in self._own_layers()[:-1]:
            x, y = item_layer(x, x, causal), provider_layer(y, y, causal)
        for item_layer, provider_layer in self._fusion_layers()[:-1]:
            x, y = self._fuse(item_layer, provider_layer, x, y, causal)
        # The fusion's keys need every position of one stream; the other stream is needed at its newest one alone.
        x_last, y_last = take_last(x, lengths), take_last(y, lengths)  # (B, 1, D)
        for item_layer, provider_layer in self._own_layers()[-1:]:
            if self.exchange == "queries":
                x = item_layer(x, x, causal)
                x_last, y_last = take_last(x, lengths), provider_layer(y_last, y, last)
            else:
                x_last, y = item_layer(x_last, x, last), provider_layer(y, y, causal)
        fusion, other = self._fusion_layers()[-1]
        if self.exchange == "queries":
            user = fusion.attend(x_last, other.query(y_last), x, mask=last)
        else:
            user = fusion.attend(x_last, fusion.query(x_last), y, mask=last)
        return user.squeeze(1)

    def _own_layers(self) -> list[tuple[TransformerLayer, TransformerLayer]]:
        """Self-attention layers of the two streams, pair by pair."""
        return list(zip(layers_of(self.item_layers), layers_of(self.provider_layers), strict=True))

    def _fusion_layers(self) -> list[tuple[TransformerLayer, TransformerLayer]]:
        """Fusion layers of the two streams, pair by pair."""
        return list(zip(layers_of(self.item_fusion), layers_of(self.provider_fusion), strict=True))

    def _embed(self, items: Tensor, providers: Tensor, positions: Tensor) -> tuple[Tensor, Tensor]:
        """Eq. 1 for both streams, then LayerNorm and dropout, as the released code."""
        x = self.dropout(self.item_norm(self.item_input(items, positions)))
        y = self.dropout(self.provider_norm(self.provider_input(providers, positions)))
        return x, y

    def _fuse(
        self, item_layer: TransformerLayer, provider_layer: TransformerLayer, x: Tensor, y: Tensor, mask: Tensor
    ) -> tuple[Tensor, Tensor]:
        """One co-attention fusion layer (Eq. 7-8), both streams at once."""
        item_queries, provider_queries = item_layer.query(x), provider_layer.query(y)
        if self.exchange == "queries":
            return (
                item_layer.attend(x, provider_queries, x, mask=mask),
                provider_layer.attend(y, item_queries, y, mask=mask),
            )
        return item_layer.attend(x, item_queries, y, mask=mask), provider_layer.attend(
            y, provider_queries, x, mask=mask
        )
