"""What a search on a GPU proposes for each user, and how good what it left out can be at most."""

from __future__ import annotations

from typing import NamedTuple

from ipsrec_kernels.array_types import Float32Array, Int32Array


class Proposals(NamedTuple):
    """Items that are to be scored exactly; kernels of the CPU do that, and check that nothing better was left out.

    Attributes:
        items: (B, P) int32 item_index in any order, no item twice in a row; PADDING where there are fewer.
        outside: (B,) float32, no allowed item that the row lacks has an exact inner product above this; -inf where the
            row lacks none, +inf where the search failed.
    """

    items: Int32Array
    outside: Float32Array
