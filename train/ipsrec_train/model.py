"""A whole model: embedding tables, an encoder, and history terms where the settings ask for them."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ipsrec_kernels.padding import PADDING
from ipsrec_onnx.errors import DataError
from ipsrec_train.history_terms import HistoryTerms
from ipsrec_train.ipsrec_c import IPSRecC
from ipsrec_train.ipsrec_s import IPSRecS
from ipsrec_train.layers import initialize
from ipsrec_train.packed import PackedHistories
from ipsrec_train.settings import IPSRecSettings

ENCODERS: dict[str, type[IPSRecS] | type[IPSRecC]] = {"ipsrec-s": IPSRecS, "ipsrec-c": IPSRecC}


class Model(nn.Module):
    """Histories in, user embeddings out; scores are dot products with item_embeddings(), plus the history terms.

    Args:
        name: of the encoder, a key of ENCODERS.
        settings: frozen settings.
        item_provider: (num_items + 1,) int32 provider_index of each item_index, items numbered by provider.
        num_providers: how many providers, without the padding row.

    Raises:
        DataError: an unknown name.
    """

    item_provider: Tensor

    def __init__(self, name: str, settings: IPSRecSettings, *, item_provider: np.ndarray, num_providers: int) -> None:
        super().__init__()
        if name not in ENCODERS:
            raise DataError(f"model {name!r} is not known, expected one of {', '.join(ENCODERS)}")
        if name == "ipsrec-s" and settings.co_attention != "queries":
            raise DataError("settings: co_attention is of ipsrec-c; ipsrec-s has one stream, leave it out")
        self.name, self.settings = name, settings
        self.items = nn.Embedding(len(item_provider), settings.dim, padding_idx=PADDING)
        self.providers = nn.Embedding(num_providers + 1, settings.dim, padding_idx=PADDING)
        self.encoder: IPSRecS | IPSRecC = ENCODERS[name](settings)
        self.history_terms = HistoryTerms(settings.max_len) if settings.history_terms else None
        self.register_buffer("item_provider", torch.from_numpy(np.asarray(item_provider, np.int64)), persistent=False)
        initialize(self, settings.initializer_std)

    def item_embeddings(self) -> Tensor:
        """(num_items + 1, D) what an item is in the input and in the score: e_i, or e_i + p_provider(i)."""
        if self.settings.provider_in_item:
            return self.items.weight + F.embedding(self.item_provider, self.providers.weight, PADDING)
        return self.items.weight

    def forward(self, item_history: Tensor, provider_history: Tensor, lengths: Tensor) -> Tensor:
        """Encode users, as validation does and as the exported graph must.

        Args:
            item_history: (B, L) item_index, right padded, L up to max_len.
            provider_history: (B, L) provider_index.
            lengths: (B,) items in each row; a row of length 0 gives a finite vector that means nothing.

        Returns:
            (B, D) float32 user_embedding.
        """
        return self.encode_last(self.item_embeddings(), item_history, provider_history, lengths)

    def encode_last(
        self, item_embeddings: Tensor, item_history: Tensor, provider_history: Tensor, lengths: Tensor
    ) -> Tensor:
        """The same as forward, with the item table already made."""
        items = F.embedding(item_history.long(), item_embeddings)  # (B, L, D)
        providers = self.providers(provider_history.long())  # (B, L, D)
        return self.encoder.encode_last(items, providers, item_history.long(), lengths.long().clamp(min=1))

    def encode_packed(self, item_embeddings: Tensor, packed: PackedHistories) -> tuple[Tensor, Tensor]:
        """Encode every position of histories packed end to end, for training.

        Args:
            item_embeddings: (num_items + 1, D) as item_embeddings() gives it.
            packed: the histories; providers are the catalog's.

        Returns:
            item and provider states, (R, W, D) each.
        """
        items = F.embedding(packed.item_history, item_embeddings)
        providers = self.providers(self.item_provider[packed.item_history])
        states: tuple[Tensor, Tensor] = self.encoder(items, providers, packed)
        return states
