"""Item embeddings laid out for retrieval.

Kernels are serial and release the GIL: parallelism comes from worker threads that each own a chunk (Numba's workqueue
layer must not be entered from two threads).
"""

from __future__ import annotations

from typing import Final, NamedTuple

import numpy as np
from numba import njit

from ipsrec_kernels.array_types import BoolArray, Float32Array, Float64Array, Int32Array, Int64Array
from ipsrec_kernels.check import check_array, check_range, read_only
from ipsrec_kernels.padding import PADDING

BLOCK_ITEMS: Final = 128  # 128 items x 64 dims of float32 are 32 KiB: one block stays in L1 or L2 for a tile of users
LANES: Final = 8  # dims are padded with zeros to a multiple of this, so that no kernel has a remainder loop


class ItemTable(NamedTuple):
    """What retrieve() reads; immutable, shared by all worker threads. A named tuple, for kernels take it whole.

    Attributes:
        item_embeddings: (num_items + 1, dim) float32, row-major; dim is padded with zeros to a multiple of LANES.
        item_provider: (num_items + 1,) int32, 0 is "no provider".
        allowed: (num_items + 1,) bool, items that may be recommended; never PADDING.
        item_index: (M,) int32, the allowed items, ascending.
        blocks: (ceil(M / 128), dim, 128) float32, the allowed items' embeddings, transposed block by block; zeros
            after the M-th item.
        block_norms: (ceil(M / 128),) float64, the largest Euclidean norm in each block.
        provider_offsets: (largest provider_index + 2,) int64 into provider_items; provider 0 has none.
        provider_items: (number of allowed items with a provider,) int32, provider by provider, ascending in each.
        dim: the model's own, before padding.
    """

    item_embeddings: Float32Array
    item_provider: Int32Array
    allowed: BoolArray
    item_index: Int32Array
    blocks: Float32Array
    block_norms: Float64Array
    provider_offsets: Int64Array
    provider_items: Int32Array
    dim: int


def build_item_table(
    item_embeddings: Float32Array, item_provider: Int32Array, *, allowed: BoolArray | None
) -> ItemTable:
    """Lay out the items that may be recommended. Once for a model and its allow and deny lists.

    Args:
        item_embeddings: (num_items + 1, dim) float32; row 0 belongs to PADDING and is not read.
        item_provider: (num_items + 1,) int32, provider_index of each item_index; 0 is "no provider".
        allowed: (num_items + 1,) bool, items that may be recommended; None allows all. PADDING never is.

    Raises:
        ValueError: a wrong dtype or shape, a negative provider_index, or NaN or infinity in an item's embedding.
    """
    item_embeddings = check_array("item_embeddings", item_embeddings, dtype=np.float32, ndim=2)
    item_provider = check_array("item_provider", item_provider, dtype=np.int32)
    rows, dim = item_embeddings.shape
    if rows == 0 or dim == 0:
        raise ValueError(f"item_embeddings has shape {item_embeddings.shape}, expected (num_items + 1, 1 or more)")
    if allowed is None:
        allowed = np.ones(rows, np.bool_)
    allowed = check_array("allowed", allowed, dtype=np.bool_).copy()
    for name, array in (("item_provider", item_provider), ("allowed", allowed)):
        if len(array) != rows:
            raise ValueError(f"{name} has {len(array)} entries, expected {rows} as item_embeddings has rows")
    check_range("item_provider", item_provider, low=0, high=np.iinfo(np.int32).max - 1)
    allowed[PADDING] = False
    item_index = np.flatnonzero(allowed).astype(np.int32)
    embeddings = pad_dims(item_embeddings)
    norms = np.zeros(rows, np.float64)
    _row_norms(embeddings, norms)
    norms[PADDING] = 0.0
    if not np.isfinite(norms).all():
        row = int((~np.isfinite(norms)).argmax())
        raise ValueError(f"item_embeddings[{row}] has NaN or infinity, expected finite numbers; train or export again")
    num_blocks = -(-len(item_index) // BLOCK_ITEMS)
    blocks = np.zeros((num_blocks, embeddings.shape[1], BLOCK_ITEMS), np.float32)
    block_norms = np.zeros(num_blocks, np.float64)
    _fill_blocks(embeddings, item_index, norms, blocks, block_norms)
    provider_offsets, provider_items = _items_by_provider(item_index, item_provider)
    return ItemTable(
        item_embeddings=embeddings,
        item_provider=item_provider,
        allowed=read_only(allowed),
        item_index=read_only(item_index),
        blocks=read_only(blocks),
        block_norms=read_only(block_norms),
        provider_offsets=read_only(provider_offsets),
        provider_items=read_only(provider_items),
        dim=dim,
    )


def pad_dims(vectors: Float32Array) -> Float32Array:
    """Append zeros to each row up to a multiple of LANES dims; the same memory, read-only, where nothing is to do."""
    missing = -vectors.shape[1] % LANES
    return read_only(np.pad(vectors, ((0, 0), (0, missing)))) if missing else vectors


def _items_by_provider(item_index: Int32Array, item_provider: Int32Array) -> tuple[Int64Array, Int32Array]:
    """List the allowed items of each provider: offsets and items."""
    with_provider = item_index[item_provider[item_index] != 0]
    providers = item_provider[with_provider]
    counts = np.bincount(providers, minlength=int(item_provider.max()) + 1)
    offsets = np.zeros(len(counts) + 1, np.int64)
    np.cumsum(counts, out=offsets[1:])
    return offsets, with_provider[np.argsort(providers, kind="stable")]


@njit(cache=True, nogil=True)
def _row_norms(vectors, norms):
    """Euclidean norms in float64: squares of float32 neither overflow nor vanish there."""
    for row in range(len(vectors)):
        total = 0.0
        for d in range(vectors.shape[1]):
            total += np.float64(vectors[row, d]) * np.float64(vectors[row, d])
        norms[row] = np.sqrt(total)


@njit(cache=True, nogil=True)
def _fill_blocks(embeddings, item_index, norms, blocks, block_norms):
    for at in range(len(item_index)):
        block, lane = at // BLOCK_ITEMS, at % BLOCK_ITEMS
        for d in range(embeddings.shape[1]):
            blocks[block, d, lane] = embeddings[item_index[at], d]
        block_norms[block] = max(block_norms[block], norms[item_index[at]])
