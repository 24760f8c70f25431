"""What a search on a GPU proposes for each user, and how good what it left out can be at most."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, NamedTuple

import numpy as np

from ipsrec_kernels.array_types import Float32Array, Int32Array
from ipsrec_kernels.padding import PADDING

UNKNOWN: Final = -1  # in the first place of a row: there were too many


class Proposals(NamedTuple):
    """Items that are to be scored exactly; kernels of the CPU do that, and check that nothing better was left out.

    Attributes:
        items: (B, P) int32 item_index in any order, no item twice in a row; PADDING stands for none.
        outside: (B,) float32, no allowed item that the row lacks has an exact inner product above this; -inf where the
            row lacks none, +inf where the search failed.
        touched: (B, T) int32, likewise, items of the providers of the user's history: those that a row lacks have no
            score, with the provider's term and without the item's own, above outside. A row that begins with UNKNOWN
            says nothing. None: no row does.
    """

    items: Int32Array
    outside: Float32Array
    touched: Int32Array | None = None


def proposals_among(proposals: Proposals, items: range) -> Proposals:
    """Leave PADDING where an item is not of a range, such as a shard of the catalog; bounds stay as they are."""

    def among(proposed: Int32Array, *, kept: int) -> Int32Array:
        there = ((proposed >= items.start) & (proposed < items.stop)) | (proposed == kept)
        return np.where(there, proposed, np.int32(PADDING))

    touched = None if proposals.touched is None else among(proposals.touched, kept=UNKNOWN)
    return Proposals(among(proposals.items, kept=PADDING), proposals.outside, touched)


def join_proposals(parts: Sequence[Proposals]) -> Proposals:
    """Put together what was proposed of several parts of a catalog, which have no item in common.

    Nothing that a part left out scores above its own bound, and so none above the largest. A row of `touched` that says
    nothing in one part says nothing of the whole.

    Args:
        parts: (B) proposals each, one part or more.
    """
    items = np.concatenate([part.items for part in parts], axis=1)
    outside = np.max([part.outside for part in parts], axis=0)
    rows = [part.touched for part in parts if part.touched is not None]
    if len(rows) < len(parts):
        return Proposals(items, outside)
    touched = np.concatenate(rows, axis=1)
    unknown = np.any([part[:, 0] == UNKNOWN for part in rows], axis=0)
    touched[touched == UNKNOWN] = PADDING
    touched[unknown, 0] = UNKNOWN
    return Proposals(items, outside, touched)
