"""SR-GNN, a gated network over the graph of a history (Wu et al. 2019, sections 3.2-3.4)."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ipsrec_train.layers import Dropout, take_last
from ipsrec_train.packed import PackedHistories
from ipsrec_train.settings import SRGNNSettings

# Prefixes of like length are encoded together: padding costs little, and so do the calls. Longest of each group.
GROUPS = (2, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128)


class SRGNN(nn.Module):
    """The items of a history are nodes, each step from one item to the next an edge; messages run along both ways.

    As RecBole 1.0.0 has it (recbole/model/sequential_recommender/srgnn.py, properties/model/SRGNN.yaml): an edge counts
    once however often it is taken, what arrives is the mean over the edges in and over those out, the last item and a
    sigmoid attention over all positions give the user, and every weight is uniform within 1 / sqrt(dim).

    Nodes would need the distinct items of each history, which a graph with dynamic axes does not give. Here every
    position carries the state of its item's node instead, and only the first position of each item sends: all of it is
    comparisons and products of (L, L) matrices, and equals the network over distinct items (a test has it so).
    """

    def __init__(self, settings: SRGNNSettings) -> None:
        super().__init__()
        D = settings.dim
        self.steps = settings.steps
        self.dropout = Dropout(settings.dropout)
        self.edge_in, self.edge_out = nn.Linear(D, D), nn.Linear(D, D)
        self.bias_in, self.bias_out = nn.Parameter(torch.empty(D)), nn.Parameter(torch.empty(D))
        self.from_messages, self.from_state = nn.Linear(2 * D, 3 * D), nn.Linear(D, 3 * D)
        self.of_last, self.of_each = nn.Linear(D, D), nn.Linear(D, D)
        self.attention = nn.Linear(D, 1, bias=False)
        self.output = nn.Linear(2 * D, D)

    def initialize(self) -> None:
        """Draw every weight, biases included, uniformly within 1 / sqrt(dim), as RecBole does."""
        for weight in self.parameters():
            nn.init.uniform_(weight, -(len(self.bias_in) ** -0.5), len(self.bias_in) ** -0.5)

    def forward(self, items: Tensor, providers: Tensor, packed: PackedHistories) -> tuple[Tensor, None]:
        """Encode every prefix of histories packed end to end; each is a graph of its own.

        Args:
            items: (R, W, D) item embeddings.
            providers: (R, W, D) provider embeddings; not looked at.
            packed: the histories that they are of.

        Returns:
            item states (R, W, D), state t is of the graph of positions 0..t of its own history; and no provider states.
        """
        flat, item_history = items.flatten(0, 1), packed.item_history.flatten()  # (R W, D), (R W,)
        newest = (packed.segments >= 0).flatten().nonzero().squeeze(1)  # (N,) where each prefix ends
        lengths = packed.positions.flatten()[newest] + 1
        encoded: list[Tensor] = []
        ends: list[Tensor] = []
        shortest = 0
        for longest in (*GROUPS, items.shape[1]):
            here = (lengths > shortest) & (lengths <= longest)
            end, length = newest[here].unsqueeze(1), lengths[here]  # (B, 1), (B,)
            if len(length):
                at = torch.arange(min(longest, items.shape[1]), device=items.device)  # (L,)
                place = torch.where(at < length.unsqueeze(1), end - length.unsqueeze(1) + 1 + at, end)  # (B, L)
                encoded.append(self.encode_last(F.embedding(place, flat), providers, item_history[place], length))
                ends.append(newest[here])
            shortest = max(shortest, longest)
        users = torch.cat(encoded)  # (N, D)
        return users.new_zeros(flat.shape).index_put((torch.cat(ends),), users).view(items.shape), None

    def encode_last(self, items: Tensor, providers: Tensor, item_history: Tensor, lengths: Tensor) -> Tensor:
        """Encode right-padded histories.

        Args:
            items: (B, L, D) item embeddings, equal where item_history is.
            providers: (B, L, D) provider embeddings; not looked at.
            item_history: (B, L) int64 item_index; anything beyond a length.
            lengths: (B,) int64, 1 or more.

        Returns:
            (B, D) the user.
        """
        at = torch.arange(items.shape[1], device=items.device)  # (L,)
        real = at < lengths.unsqueeze(1)  # (B, L)
        same = (item_history.unsqueeze(2) == item_history.unsqueeze(1)) & real.unsqueeze(2) & real.unsqueeze(1)
        first = real & ~(same & (at < at.unsqueeze(1))).any(2)  # (B, L): no earlier position has the item
        arriving, leaving = _edges(same.to(items.dtype), first)  # (B, L, L) each
        states = items
        if self.training and self.dropout.share:
            # One draw a node: each position takes what the first of its item got.
            states = (same & first.unsqueeze(1)).to(items.dtype) @ self.dropout(items)
        for _ in range(self.steps):
            states = self._step(states, arriving, leaving)
        return self._read_out(states, lengths, real)

    def _step(self, states: Tensor, arriving: Tensor, leaving: Tensor) -> Tensor:
        """Eq. 1-5, one round of messages: (B, L, D) -> (B, L, D)."""
        before = arriving @ self.edge_in(states) + self.bias_in  # (B, L, D) from the items before, Eq. 1
        after = leaving @ self.edge_out(states) + self.bias_out
        m_reset, m_update, m_new = self.from_messages(torch.cat([before, after], 2)).chunk(3, 2)
        s_reset, s_update, s_new = self.from_state(states).chunk(3, 2)
        reset, update = torch.sigmoid(m_reset + s_reset), torch.sigmoid(m_update + s_update)  # Eq. 2-3
        new = torch.tanh(m_new + reset * s_new)  # Eq. 4
        return states + update * (new - states)  # Eq. 5

    def _read_out(self, states: Tensor, lengths: Tensor, real: Tensor) -> Tensor:
        """Eq. 6-7, attention to every position by the newest: (B, L, D) -> (B, D)."""
        last = take_last(states, lengths)  # (B, 1, D)
        weights = self.attention(torch.sigmoid(self.of_last(last) + self.of_each(states)))  # (B, L, 1)
        history = (weights * states * real.unsqueeze(2)).sum(1)  # (B, D)
        user: Tensor = self.output(torch.cat([history, last.squeeze(1)], 1))
        return user


def _edges(same: Tensor, first: Tensor) -> tuple[Tensor, Tensor]:
    """The connection matrix of section 3.2, between positions.

    Args:
        same: (B, L, L) float, 1 where two real positions hold the same item.
        first: (B, L) bool, the first position of each item.

    Returns:
        arriving: (B, L, L) share of each first position in the mean over what arrives at the row's item.
        leaving: likewise over what its edges lead to. Rows without an edge are 0.
    """
    L = same.shape[1]
    after = torch.arange(1, L + 1, device=same.device)
    # Row t of `next` says who holds the item of position t + 1; nobody after the last. Not a slice: with one position
    # it would leave a product over no elements.
    following = same.index_select(1, after.clamp(max=L - 1)) * (after < L).unsqueeze(1)
    edge = ((same @ following) > 0).to(same.dtype)  # (B, L, L): from the row's item to the column's
    senders = first.unsqueeze(1)  # (B, 1, L)
    return _mean_of(edge.transpose(1, 2) * senders), _mean_of(edge * senders)


def _mean_of(edges: Tensor) -> Tensor:
    """Divide each row by its sum where it has one."""
    return edges / edges.sum(2, keepdim=True).clamp(min=1)
