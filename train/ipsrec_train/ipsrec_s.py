"""IPSRec-S, the single-stream encoder: one Transformer over [items, providers] (paper section 2.1)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ipsrec_onnx.errors import DataError
from ipsrec_train.layers import (
    Dropout,
    StreamInput,
    blocked_unless,
    causal_mask,
    initialize,
    last_mask,
    layers_of,
    packed_allowed,
    stack,
    take_last,
)
from ipsrec_train.packed import PackedHistories
from ipsrec_train.settings import IPSRecSettings


class IPSRecS(nn.Module):
    """One stream of 2 L tokens, the items and then their providers (Eq. 2-3).

    `paper` and `recommended`: causal in time over both halves; position t looks at items and providers up to t.
    `released`: one lower-triangular mask over the 2 L tokens, so that items never see providers and every provider
    position sees the whole item half. Item states then do not depend on the providers at all, and `encode_last`
    runs on L tokens instead of 2 L.
    """

    def __init__(self, settings: IPSRecSettings) -> None:
        super().__init__()
        if settings.co_attention != "queries":
            raise DataError("settings: co_attention is of ipsrec-c; ipsrec-s has one stream, leave it out")
        self.settings = settings
        self.released = settings.variant == "released"
        self.item_input, self.provider_input = StreamInput(settings), StreamInput(settings)
        self.norm = nn.LayerNorm(settings.dim, eps=settings.layer_norm_eps)
        self.dropout = Dropout(settings.dropout)
        self.layers = stack(settings, settings.num_layers)

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
            item and provider states, (R, W, D) each. State t has seen positions 0..t of its own history; but in
            `released` a provider state has seen the WHOLE item history: use it at the last position alone.
        """
        causal, same = packed_allowed(packed.segments)  # (R, W, W) each
        if self.released:
            upper, lower = torch.cat([causal, torch.zeros_like(causal)], 2), torch.cat([same, causal], 2)
        else:
            upper = lower = torch.cat([causal, causal], 2)
        mask = blocked_unless(torch.cat([upper, lower], 1))  # (R, 1, 2 W, 2 W)
        states = self._embed(items, providers, packed.positions)  # (R, 2 W, D)
        for layer in layers_of(self.layers):
            states = layer(states, states, mask)
        item_states, provider_states = states.chunk(2, 1)
        return item_states, provider_states

    def encode_last(self, items: Tensor, providers: Tensor, item_history: Tensor, lengths: Tensor) -> Tensor:
        """Encode the newest item position of right-padded histories, and of the last layer nothing else.

        Args:
            items: (B, L, D) item embeddings.
            providers: (B, L, D) provider embeddings; not looked at in `released`.
            item_history: (B, L) int64 item_index; not looked at here.
            lengths: (B,) int64, 1 or more.

        Returns:
            (B, D) item state of the newest position: the user.
        """
        sequence = items.shape[1]
        positions = torch.arange(sequence, device=items.device).unsqueeze(0)
        causal, last = causal_mask(sequence, items.device), last_mask(lengths, sequence)
        if self.released:
            states = self.dropout(self.norm(self.item_input(items, positions)))  # (B, L, D)
        else:
            states = self._embed(items, providers, positions)  # (B, 2 L, D)
            causal = causal.repeat(1, 1, 2, 2)  # (1, 1, 2 L, 2 L)
            last = last.repeat(1, 1, 1, 2)  # (B, 1, 1, 2 L)
        *lower_layers, last_layer = layers_of(self.layers)
        for layer in lower_layers:
            states = layer(states, states, causal)
        user: Tensor = last_layer(take_last(states, lengths), states, last)
        return user.squeeze(1)

    def _embed(self, items: Tensor, providers: Tensor, positions: Tensor) -> Tensor:
        """Eq. 1-2, then LayerNorm and dropout as the released code: (B, L, D) twice -> (B, 2 L, D)."""
        both = torch.cat([self.item_input(items, positions), self.provider_input(providers, positions)], 1)
        embedded: Tensor = self.dropout(self.norm(both))
        return embedded
