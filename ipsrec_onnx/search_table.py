"""Items laid out for the search by an ONNX graph: in float16 to be scanned, in float32 to be scored."""

from __future__ import annotations

import math
from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt

from ipsrec_kernels.array_types import BoolArray, Float32Array, Int32Array
from ipsrec_kernels.check import check_array
from ipsrec_kernels.item_table import LANES, row_norms
from ipsrec_kernels.padding import PADDING

GROUP: Final = 16  # places that one logit stands for, as the graph has it
BLOCK: Final = 15 * GROUP  # likewise, of the first step; a multiple of 8, as rows of logits have to be
LONGEST: Final = 1 << 14  # dims for which the bounds hold

_CHUNK = BLOCK * 128  # places laid out at a time, so that float64 takes little memory
_HALF = 2.0**-11  # relative error of rounding to float16
_HALF_SMALLEST = 2.0**-25  # absolute, where float16 has no more bits
_SLICE = 32  # dims that one part of a split product has at least


class SearchTable(NamedTuple):
    """The items that may be recommended; the graph reads the arrays of the first part on its device.

    Places hold items by Euclidean norm, the largest first, equal ones by item_index, so that a block's items have
    nearly one norm and the block an error bound that fits them; then copies of the items with the smallest norms, up
    to whole blocks. A copy makes no maximum larger than its item does, whatever the sign of the scores.

    Attributes:
        scan_items: (N, dims) float16, the items times scale; dims is dim with zeros up to a multiple of 8.
        exact_items: (N / GROUP, GROUP, dims) float32, the same.
        item_at: (N / GROUP, GROUP) int32, the item of each place; PADDING where a copy is.
        block_errors: (1, N / BLOCK) float32, by what part of the user's norm a logit may lie below the inner product.
        score_error: likewise of float32 scores, for all items.
        logit_absolute: what a logit may lie below it besides, whatever the user's norm.
        score_absolute: likewise of float32 scores.
        flushed: the same in the scale of the embeddings as they came, of users whose numbers are too small for a GPU.
        scale: a power of two.
        num_items: how many may be recommended.
        dim: the model's own, before padding.
    """

    scan_items: npt.NDArray[np.float16]
    exact_items: Float32Array
    item_at: Int32Array
    block_errors: Float32Array
    score_error: float
    logit_absolute: float
    score_absolute: float
    flushed: float
    scale: float
    num_items: int
    dim: int


def build_search_table(item_embeddings: Float32Array, *, allowed: BoolArray | None) -> SearchTable:
    """Lay out the items that may be recommended; onnx_search.py has the proof of the errors.

    Args:
        item_embeddings: (num_items + 1, dim) float32; row 0 belongs to PADDING and is not read.
        allowed: (num_items + 1,) bool, items that may be recommended; None allows all. PADDING never is.

    Raises:
        ValueError: a wrong dtype or shape, more than LONGEST dims, or NaN or infinity in an item's embedding.
    """
    item_embeddings = check_array("item_embeddings", item_embeddings, dtype=np.float32, ndim=2)
    rows, dim = item_embeddings.shape
    if rows == 0 or not 1 <= dim <= LONGEST:
        raise ValueError(f"item_embeddings has shape {item_embeddings.shape}, expected (num_items + 1, 1..{LONGEST})")
    if allowed is None:
        allowed = np.ones(rows, np.bool_)
    allowed = check_array("allowed", allowed, dtype=np.bool_).copy()
    if len(allowed) != rows:
        raise ValueError(f"allowed has {len(allowed)} entries, expected {rows} as item_embeddings has rows")
    allowed[PADDING] = False
    norms = np.zeros(rows, np.float64)
    row_norms(item_embeddings, norms)
    norms[PADDING] = 0.0
    if not np.isfinite(norms).all():
        row = int((~np.isfinite(norms)).argmax())
        raise ValueError(f"item_embeddings[{row}] has NaN or infinity, expected finite numbers; train or export again")
    items = np.flatnonzero(allowed).astype(np.int32)
    by_norm = items[np.argsort(-norms[items], kind="stable")]
    copies = np.resize(by_norm[::-1], -len(by_norm) % BLOCK)  # the smallest first, over and over
    places = np.concatenate([by_norm, copies])
    largest = float(norms[by_norm[0]]) if len(by_norm) else 0.0
    # Norms below 2^top, and users of at most 4 in each of their elements: no logit reaches 65,504, float16's largest.
    top = math.floor(13 - math.log2(dim) / 2)
    scale = math.ldexp(1.0, top - math.frexp(largest)[1]) if largest else 1.0
    dims = dim + -dim % LANES
    scan_items = np.zeros((len(places), dims), np.float16)
    exact_items = np.zeros((len(places), dims), np.float32)
    lost, kept = np.zeros(len(places)), np.zeros(len(places))
    for first in range(0, len(places), _CHUNK):
        chunk = slice(first, first + _CHUNK)
        scaled = item_embeddings[places[chunk]].astype(np.float64) * scale
        scan_items[chunk, :dim] = exact_items[chunk, :dim] = scaled
        rounded = scan_items[chunk, :dim].astype(np.float64)
        lost[chunk] = np.linalg.norm(scaled - rounded, axis=1)
        kept[chunk] = np.linalg.norm(rounded, axis=1)
    parts = -(-dim // _SLICE)
    summed = (dim + 8) * 2.0**-22 + parts * _HALF
    logit = summed + _HALF * (1 + summed)
    slack = 1 + (dim + 64) * 2.0**-22
    by_block = (-1, BLOCK)
    block_lost, block_kept = (values.reshape(by_block).max(axis=1) for values in (lost, kept))
    by_size = _HALF + logit * (1 + _HALF) + 2 * math.sqrt(dim) * _HALF_SMALLEST + 2.0**-22
    errors = (block_lost + by_size * block_kept) * slack
    return SearchTable(
        scan_items=scan_items,
        exact_items=exact_items.reshape(-1, GROUP, dims),
        item_at=np.concatenate([by_norm, np.full(len(copies), PADDING, np.int32)]).reshape(-1, GROUP),
        block_errors=errors.astype(np.float32)[None],
        score_error=(dim + 8) * 2.0**-23 * largest * scale * slack,
        logit_absolute=(parts + 2) * 2 * _HALF_SMALLEST + dim * 2.0**-100,
        score_absolute=dim * 2.0**-100,
        flushed=1.01 * math.sqrt(dim) * 2.0**-126 * largest,
        scale=scale,
        num_items=len(by_norm),
        dim=dim,
    )
