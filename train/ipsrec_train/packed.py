"""Histories laid end to end in rows, as training encodes them."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor


class PackedHistories(NamedTuple):
    """Windows of histories in R rows of W positions; the positions of one history lie side by side, in order.

    Attributes:
        item_history: (R, W) int64 item_index, PADDING where nothing lies.
        positions: (R, W) int64 place in its history, 0 the oldest; 0 where nothing lies.
        segments: (R, W) int64 which history a position belongs to, 0 the first; -1 where nothing lies.
    """

    item_history: Tensor
    positions: Tensor
    segments: Tensor
