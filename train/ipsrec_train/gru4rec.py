"""GRU4Rec, a recurrent network over the items (Tan, Xu and Liu 2016, section 3; Hidasi et al. 2016, section 3.1)."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from ipsrec_train.layers import Dropout, take_last
from ipsrec_train.packed import PackedHistories
from ipsrec_train.settings import GRU4RecSettings


class GRU4Rec(nn.Module):
    """Gated recurrent layers over the item embeddings, and a linear map of the state back to their width.

    As RecBole 1.0.0 has it (recbole/model/sequential_recommender/gru4rec.py, properties/model/GRU4Rec.yaml): a GRU
    without biases, drawn uniformly after Glorot and Bengio 2010, dropout on the embeddings, a dense layer after it.

    The exporter of torch 2.13 writes ONNX's own GRU operator, with a state of zeros whose batch is read off the input,
    so that both axes stay dynamic. With right padding the newest state is taken before padding can reach it.
    """

    def __init__(self, settings: GRU4RecSettings) -> None:
        super().__init__()
        D, H = settings.dim, settings.hidden_dim
        self.dropout = Dropout(settings.dropout)
        self.gru = nn.GRU(D, H, settings.num_layers, bias=False, batch_first=True)
        self.dense = nn.Linear(H, D)

    def initialize(self) -> None:
        """Draw the recurrent weights as RecBole does; its dense layer is as torch draws one."""
        for weight in self.gru.parameters():
            nn.init.xavier_uniform_(weight)
        self.dense.reset_parameters()

    def forward(self, items: Tensor, providers: Tensor, packed: PackedHistories) -> tuple[Tensor, None]:
        """Encode histories packed end to end, all positions in one pass.

        Args:
            items: (R, W, D) item embeddings.
            providers: (R, W, D) provider embeddings; not looked at.
            packed: the histories that they are of.

        Returns:
            item states (R, W, D), state t has seen positions 0..t of its own history; and no provider states.
        """
        real = packed.segments >= 0  # (R, W)
        segment, position = packed.segments[real], packed.positions[real]  # (N,)
        lengths = torch.bincount(segment)  # (S,)
        # The recurrence must not run from one history into its neighbour in the row: each gets a row of its own.
        rows = items.new_zeros(len(lengths), int(lengths.max()), items.shape[2])  # (S, longest, D)
        rows = rows.index_put((segment, position), self.dropout(items[real]))
        runs = pack_padded_sequence(rows, lengths.cpu(), batch_first=True, enforce_sorted=False)
        found, _ = pad_packed_sequence(self.gru(runs)[0], batch_first=True)  # (S, longest, H)
        users = self.dense(found[segment, position])  # (N, D)
        return users.new_zeros(items.shape).index_put((real,), users), None

    def encode_last(self, items: Tensor, providers: Tensor, item_history: Tensor, lengths: Tensor) -> Tensor:
        """Encode the newest position of right-padded histories.

        Args:
            items: (B, L, D) item embeddings.
            providers: (B, L, D) provider embeddings; not looked at.
            item_history: (B, L) int64 item_index; not looked at here.
            lengths: (B,) int64, 1 or more.

        Returns:
            (B, D) the newest state, mapped to the width of the items: the user.
        """
        states, _ = self.gru(items)  # (B, L, H)
        user: Tensor = self.dense(take_last(states, lengths).squeeze(1))
        return user
