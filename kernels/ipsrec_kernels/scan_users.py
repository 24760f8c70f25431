"""Users as the scan reads them: in int8 or float32, with what its bound needs to know of each."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from ipsrec_kernels.array_types import Float32Array, Float64Array, Int32Array
from ipsrec_kernels.check import read_only
from ipsrec_kernels.item_table import ItemTable, row_norms
from ipsrec_kernels.quantise import quantise_users
from ipsrec_kernels.scan_tile import TileScratch
from ipsrec_kernels.score_tile import FLOAT32_TILE, INT8_TILE

_SAFE = 2.0**126  # below it, no partial sum of float32 products overflows


class ScanUsers(NamedTuple):
    """Users as the scan reads them.

    Attributes:
        words: (B, steps) int32: the user's dims, one float32 or four int8 in a word.
        norms: (B,) float64, Euclidean norm.
        units: (B,) float64, scale of the int8; 1 with float32.
        errors: (B,) float64, Euclidean norm of what int8 lost; 0 with float32.
        offsets: (B,) int32, what the tile's sums have too much; 0 with float32.
        relative: r of the bound.
        absolute: t of the bound.
        safe: |u| * N from which nothing is known of a sum.
    """

    words: Int32Array
    norms: Float64Array
    units: Float64Array
    errors: Float64Array
    offsets: Int32Array
    relative: float
    absolute: float
    safe: float


def prepare_users(table: ItemTable, users: Float32Array) -> tuple[ScanUsers, TileScratch]:
    """Lay users out for the table's way of scanning.

    Args:
        table: as build_item_table made it.
        users: (B, dims) float32, padded as the table's embeddings.
    """
    quantised = table.panels.dtype == np.uint8
    shape = INT8_TILE if quantised else FLOAT32_TILE
    num_users, dims = users.shape
    norms, units, errors, offsets = measured = (
        np.zeros(num_users),
        np.ones(num_users),
        np.zeros(num_users),
        np.zeros(num_users, np.int32),
    )
    row_norms(users, norms)
    if quantised:
        levels = np.zeros((num_users, dims), np.int8)
        quantise_users(users, levels, units, errors, offsets)
        words, bound = levels.view(np.int32), (2.0**-30, 0.0, np.inf)
    else:
        rounding = (dims + 4) * 2.0**-24
        words = users.view(np.int32)
        bound = (1.01 * rounding / (1.0 - rounding), (dims + 2) * 2.0**-125, _SAFE)
    kind: Any = np.int32 if quantised else np.float32
    scratch = TileScratch(
        np.zeros(shape.users, kind), np.zeros(shape.users, np.int32), np.zeros((shape.users, shape.items), kind)
    )
    return ScanUsers(read_only(words), *measured, *bound), scratch
