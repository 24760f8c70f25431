"""Caser, convolutions over the newest items (Tang and Wang 2018, section 3)."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ipsrec_train.layers import Dropout
from ipsrec_train.packed import PackedHistories
from ipsrec_train.settings import CaserSettings


class Caser(nn.Module):
    """Horizontal and vertical filters over the last `window` items (Eq. 3-8), and one dense layer (Eq. 9).

    From RecBole 1.0.0 (recbole/model/sequential_recommender/caser.py, properties/model/Caser.yaml): 16 horizontal
    filters of each height from 1 to the window, 8 vertical ones, ReLU after the horizontal ones and the dense layer,
    dropout before it. Unlike there:

    - The user embedding of Eq. 10 is left out, and with it the second dense layer: the same file serves users who were
      never seen in training. The user is z of Eq. 9.
    - The window is the paper's L, the newest items, 10 by default, and not all of max_len: filters of every height
      cost about window^3 / 6 x dim x filters products a prefix: .45 megaflop at 10 and 45 at 50. Any up to max_len
      can be set.
    - Zeros stand before the oldest item of a shorter history, so that a filter's rows always have the same age.
    - RecBole's L2 penalty of 1e-4 on some of the weights is left out: here every model has the same loss.

    A file's input has no fixed width: the window is gathered by index arithmetic from each row's length, so that any
    sequence will do, shorter than the window or longer. In training all histories lie on one line with zeros between
    them, where neighbouring windows share the horizontal filters' work.
    """

    def __init__(self, settings: CaserSettings) -> None:
        super().__init__()
        D, W = settings.dim, min(settings.window, settings.max_len)
        horizontal, vertical = settings.horizontal_filters, settings.vertical_filters
        self.window = W
        self.horizontal = nn.ModuleList(nn.Conv1d(D, horizontal, height) for height in range(1, W + 1))
        self.vertical = nn.Linear(W, vertical)
        self.dropout = Dropout(settings.dropout)
        self.dense = nn.Linear(vertical * D + horizontal * W, D)

    def initialize(self) -> None:
        """Draw the dense layer after Glorot and Bengio 2010, as RecBole does, and the filters as torch does."""
        for part in (*self.horizontal, self.vertical):
            part.reset_parameters()
        nn.init.xavier_normal_(self.dense.weight)
        nn.init.zeros_(self.dense.bias)

    def forward(self, items: Tensor, providers: Tensor, packed: PackedHistories) -> tuple[Tensor, None]:
        """Encode histories packed end to end, all positions in one pass.

        Args:
            items: (R, W, D) item embeddings.
            providers: (R, W, D) provider embeddings; not looked at.
            packed: the histories that they are of.

        Returns:
            item states (R, W, D), state t has seen the window up to position t of its own history; and no provider
            states.
        """
        real = packed.segments >= 0  # (R, W)
        gap = self.window - 1
        # Row after row, with a gap before each history; histories lie in their rows in the order of their segments.
        at = gap * (packed.positions[real] == 0).cumsum(0) + torch.arange(int(real.sum()), device=items.device)  # (N,)
        line = items.new_zeros(int(at[-1]) + 1, items.shape[2]).index_put((at,), items[real])  # (P, D)
        seen = F.embedding(at.unsqueeze(1) - self._ages(items.device), line)  # (N, window, D)
        matches = self._match(line.T.unsqueeze(0)).squeeze(0).T[at - gap]  # (N, window horizontal)
        users = self._read_out(seen, matches)
        return users.new_zeros(items.shape).index_put((real,), users), None

    def encode_last(self, items: Tensor, providers: Tensor, item_history: Tensor, lengths: Tensor) -> Tensor:
        """Encode the newest window of right-padded histories.

        Args:
            items: (B, L, D) item embeddings.
            providers: (B, L, D) provider embeddings; not looked at.
            item_history: (B, L) int64 item_index; not looked at here.
            lengths: (B,) int64, 1 or more.

        Returns:
            (B, D) the user.
        """
        at = lengths.unsqueeze(1) - 1 - self._ages(items.device)  # (B, window), below 0 where the history is shorter
        index = at.clamp(min=0).unsqueeze(2).expand(-1, -1, items.shape[2])
        seen = items.gather(1, index) * (at >= 0).unsqueeze(2)  # (B, window, D)
        return self._read_out(seen, self._match(seen.transpose(1, 2)).squeeze(2))

    def _ages(self, device: torch.device) -> Tensor:
        """(window,) int64 how old each place of the window is, the oldest first."""
        return torch.arange(self.window - 1, -1, -1, device=device)

    def _match(self, columns: Tensor) -> Tensor:
        """Slide window and filters along lines, Eq. 3-5: (S, D, window - 1 + T) -> (S, window horizontal, T)."""
        highest = []
        for height, filters in enumerate(self.horizontal, start=1):
            matches = F.relu(filters(columns))  # (S, horizontal, window - height + T)
            highest.append(F.max_pool1d(matches, self.window - height + 1, stride=1))  # (S, horizontal, T)
        return torch.cat(highest, 1)

    def _read_out(self, seen: Tensor, matches: Tensor) -> Tensor:
        """Eq. 6-9: windows (N, window, D) and what their horizontal filters found (N, ...) -> (N, D)."""
        sums = self.vertical(seen.transpose(1, 2)).flatten(1)  # (N, D vertical)
        user: Tensor = F.relu(self.dense(self.dropout(torch.cat([sums, matches], 1))))
        return user
