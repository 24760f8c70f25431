"""What a search on a GPU proposes for each user, and how good what it left out can be at most."""

from __future__ import annotations

from typing import Final, NamedTuple

from ipsrec_kernels.array_types import Float32Array, Int32Array

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
