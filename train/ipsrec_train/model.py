"""A whole model: embedding tables, an encoder, and history terms where the settings ask for them."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ipsrec_kernels.padding import PADDING
from ipsrec_onnx.errors import DataError
from ipsrec_train.caser import Caser
from ipsrec_train.gru4rec import GRU4Rec
from ipsrec_train.history_terms import HistoryTerms
from ipsrec_train.ipsrec_c import IPSRecC
from ipsrec_train.ipsrec_s import IPSRecS
from ipsrec_train.layers import initialize
from ipsrec_train.packed import PackedHistories
from ipsrec_train.sasrec import SASRec
from ipsrec_train.settings import (
    CaserSettings,
    GRU4RecSettings,
    IPSRecSettings,
    ModelSettings,
    SASRecSettings,
    SRGNNSettings,
    settings_type,
)
from ipsrec_train.srgnn import SRGNN

Encoder = IPSRecC | IPSRecS | SASRec | GRU4Rec | Caser | SRGNN


class Model(nn.Module):
    """Histories in, user embeddings out; scores are dot products with item_embeddings(), plus the history terms.

    Args:
        name: of the model, a key of MODEL_SETTINGS.
        settings: of that model.
        item_provider: (num_items + 1,) int32 provider_index of each item_index, items numbered by provider.
        num_providers: how many providers, without the padding row.

    Raises:
        DataError: an unknown name, or settings of another model.
    """

    item_provider: Tensor

    def __init__(self, name: str, settings: ModelSettings, *, item_provider: np.ndarray, num_providers: int) -> None:
        super().__init__()
        self.name, self.settings = name, settings
        self.items = nn.Embedding(len(item_provider), settings.dim, padding_idx=PADDING)
        self.providers = nn.Embedding(num_providers + 1, settings.dim, padding_idx=PADDING)
        self.encoder = make_encoder(name, settings)
        terms = settings.history_terms
        self.history_terms = HistoryTerms(settings.max_len, providers=terms == "all") if terms != "none" else None
        self.register_buffer("item_provider", torch.from_numpy(np.asarray(item_provider, np.int64)), persistent=False)
        for table in (self.items, self.providers):
            initialize(table, settings.initializer_std)
        self.encoder.initialize()

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

    def encode_packed(self, item_embeddings: Tensor, packed: PackedHistories) -> tuple[Tensor, Tensor | None]:
        """Encode every position of histories packed end to end, for training.

        Args:
            item_embeddings: (num_items + 1, D) as item_embeddings() gives it.
            packed: the histories; providers are the catalog's.

        Returns:
            item and provider states, (R, W, D) each; no provider states from a model with one stream.
        """
        items = F.embedding(packed.item_history, item_embeddings)
        providers = self.providers(self.item_provider[packed.item_history])
        states: tuple[Tensor, Tensor | None] = self.encoder(items, providers, packed)
        return states


def make_encoder(name: str, settings: ModelSettings) -> Encoder:
    """Make the encoder of a model, its weights not drawn yet.

    Raises:
        DataError: an unknown name, or settings of another model.
    """
    if type(settings) is not settings_type(name):
        raise DataError(f"settings: {name} takes {settings_type(name).__name__}, found {type(settings).__name__}")
    match settings:
        case IPSRecSettings() if name == "ipsrec-c":
            return IPSRecC(settings)
        case IPSRecSettings():
            return IPSRecS(settings)
        case SASRecSettings():
            return SASRec(settings)
        case GRU4RecSettings():
            return GRU4Rec(settings)
        case CaserSettings():
            return Caser(settings)
        case SRGNNSettings():
            return SRGNN(settings)
    raise AssertionError(f"{name} is in MODEL_SETTINGS and has no encoder here")
