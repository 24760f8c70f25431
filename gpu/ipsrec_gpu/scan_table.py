"""Items and users in fp16 for the scan, and how far a scanned product can be from the exact one.

The bound. All items are multiplied by one power of two and each user by its own, in float64, so that their largest
elements lie in 2^13..2^14: that changes no digit, keeps fp16 far from its largest number, and what becomes subnormal is
2^27 times smaller than the largest. Let u and v be a user and an item after that, u16 and v16 what fp16 keeps. Then

    u.v - u16.v16 = (u - u16).v + u16.(v - v16), at most |u - u16| * |v| + |u16| * |v - v16|  (Cauchy-Schwarz).

The scan adds up products of fp16, which are exact in float32. A GPU's tensor cores align some products to the largest
of them and cut what sticks out below its 23rd bit (Fasi, Higham, Mikaitis and Pranesh, Numerical behavior of NVIDIA
tensor cores, 2021, sections 3 and 4): k + 1 such cuts for each k products are within 2 D * 2^-23 * sum|u_d v_d| <=
D * 2^-22 * |u16| * |v16|, which rounded float32 sums in any order also keep. So, over the items of a tile,

    bound = user_norm * tile_error + user_error * tile_norm

with user_norm = |u16|, user_error = |u - u16|, tile_norm the largest |v| of the tile, and tile_error the largest
|v - v16| + (D + 8) * 2^-22 * |v16|. The 8 pay for what float32 rounds in the bound itself and where it is added, a few
times 2^-24 of |u16| * |v| and of the bound, and for the exact score's own float64 sum. All four numbers are rounded up.
D counts the zeros behind a model's dims.
"""

from __future__ import annotations

from typing import Final, NamedTuple

import torch
from torch import Tensor

TILE_ITEMS: Final = 128  # BN of the kernels
TILE_USERS: Final = 128  # BM
_TOP: Final = 14  # the largest elements lie in 2^13..2^14
_UP: Final = 1.0 + 2.0**-20  # pays for rounding a float64 to float32, and for its own sum


class ScanTable(NamedTuple):
    """Items laid out for the scan, in whole tiles.

    A tile is TILE_ITEMS places. Places behind the last item hold copies of the items with the smallest norms: a copy
    never scores above the item itself, so that nothing has to be masked.

    Attributes:
        items: (places, D) fp16, D a power of two, 64 or more, zeros behind the model's dims.
        item_at: (places,) int32 item_index; PADDING for a copy.
        tile_norms: (tiles,) float32, rounded up.
        tile_errors: (tiles,) float32, rounded up.
        exponent: items are multiplied by 2^exponent.
    """

    items: Tensor
    item_at: Tensor
    tile_norms: Tensor
    tile_errors: Tensor
    exponent: int

    @property
    def num_tiles(self) -> int:
        """How many tiles there are."""
        return len(self.tile_norms)


class ScanUsers(NamedTuple):
    """Users laid out for the scan, in whole blocks of TILE_USERS; those behind the last one are zeros.

    Attributes:
        users: (blocks * TILE_USERS, D) fp16.
        norms: (blocks * TILE_USERS,) float32, rounded up.
        errors: likewise.
        exponents: likewise int64; each user is multiplied by 2^exponent.
    """

    users: Tensor
    norms: Tensor
    errors: Tensor
    exponents: Tensor


def table_exponent(embeddings: Tensor, item_index: Tensor) -> int:
    """What brings the largest element of some items to 2^13..2^14."""
    return _TOP - int(torch.frexp(embeddings[item_index].abs().max().double()).exponent)


def lay_out_items(embeddings: Tensor, item_index: Tensor, *, exponent: int) -> ScanTable:
    """Lay out some items, one or more, in the order given; the last ones should have the smallest norms.

    Args:
        embeddings: (num_items + 1, dim) float32, finite.
        item_index: (M,) int64.
        exponent: as table_exponent gave it of these items or of more.
    """
    missing = -len(item_index) % TILE_ITEMS
    copies = item_index.flip(0).repeat(-(-missing // len(item_index)))[:missing]
    place = torch.cat([item_index, copies])
    tables = [_lay_out_some(embeddings[some], exponent) for some in place.split(1 << 18)]
    items, norms, errors = (torch.cat(parts) for parts in zip(*tables, strict=True))
    item_at = place.int()
    item_at[len(item_index) :] = 0
    return ScanTable(
        items,
        item_at,
        norms.view(-1, TILE_ITEMS).amax(1),
        errors.view(-1, TILE_ITEMS).amax(1),
        exponent,
    )


def _lay_out_some(embeddings: Tensor, exponent: int) -> tuple[Tensor, Tensor, Tensor]:
    """(n, dim) float32 -> (n, D) fp16, (n,) float32 norms, (n,) float32 errors, which each item adds to a bound."""
    exact = _whole_dims(embeddings.double()) * 2.0**exponent
    kept = exact.half()
    rounding = (kept.shape[1] + 8) * 2.0**-22
    errors = (exact - kept.double()).norm(dim=1) + rounding * kept.double().norm(dim=1)
    return kept, _rounded_up(exact.norm(dim=1)), _rounded_up(errors)


def lay_out_users(user_embedding: Tensor) -> ScanUsers:
    """Lay out users: (B, dim) float32, finite."""
    missing = -len(user_embedding) % TILE_USERS
    exact = _whole_dims(torch.nn.functional.pad(user_embedding, (0, 0, 0, missing)).double())
    exponents = _TOP - torch.frexp(exact.abs().amax(1)).exponent.long()  # a user of zeros keeps its zeros
    exact *= power_of_two(exponents).unsqueeze(1)
    kept = exact.half()
    norms, errors = kept.double().norm(dim=1), (exact - kept.double()).norm(dim=1)
    return ScanUsers(kept, _rounded_up(norms), _rounded_up(errors), exponents)


def _rounded_up(numbers: Tensor) -> Tensor:
    """(n,) float64, 0 or more -> float32, some larger: where float32 has no more digits, by what it has left."""
    return (numbers * _UP + 2.0**-100).float()


def power_of_two(exponents: Tensor) -> Tensor:
    """2^exponent in float64, exactly, which pow() of a GPU does not promise; (n,) int64, -1022..1023."""
    return ((exponents + 1023) << 52).view(torch.float64)


def _whole_dims(vectors: Tensor) -> Tensor:
    """Append zeros to each row, up to a power of two: what the kernels' products take, and 64 or more of them.

    Triton 3.6 compiled products of 32 dims to wrong ones for an H100.
    """
    dims = max(64, 1 << (vectors.shape[1] - 1).bit_length())
    return torch.nn.functional.pad(vectors, (0, dims - vectors.shape[1])).contiguous()
