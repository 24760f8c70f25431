"""Item embeddings laid out for retrieval.

Kernels are serial and release the GIL: parallelism comes from worker threads that each own a chunk (Numba's workqueue
layer must not be entered from two threads).
"""

from __future__ import annotations

from typing import Final, NamedTuple

import numpy as np
from numba import njit

from ipsrec_kernels.array_types import BoolArray, Float32Array, Float64Array, Int32Array, Int64Array, UInt8Array
from ipsrec_kernels.check import check_array, check_range, read_only
from ipsrec_kernels.cpu import PATHS, Path, runnable_paths
from ipsrec_kernels.padding import PADDING
from ipsrec_kernels.quantise import BLOCK_ITEMS, LONGEST_INT8, OFFSET, quantise_items
from ipsrec_kernels.score_tile import FLOAT32_TILE, INT8_TILE

TABLE_VERSION: Final = 2  # goes up when the arrays of a table, or what they mean, change
# Items from which a provider gets blocks of its own. Scanning those beats scoring each item from about 200 items on;
# the more providers have them, the larger the index.
BIG_PROVIDER: Final = 512
LANES: Final = 8  # dims are padded with zeros to a multiple of this, so that no kernel has a remainder loop


class ItemTable(NamedTuple):
    """What retrieve() reads; immutable, shared by all worker threads. A named tuple, for kernels take it whole.

    A block is 256 places, a panel the places that one tile of the scan takes. The first blocks hold all allowed items,
    by Euclidean norm, the largest first, equal ones by item_index. Then come those of each big provider once more, in
    the same order and in blocks of their own: users with history terms for the provider are scanned for them apart.

    Attributes:
        item_embeddings: (num_items + 1, dim) float32, row-major; dim is padded with zeros to a multiple of LANES.
        item_provider: (num_items + 1,) int32, 0 is "no provider".
        allowed: (num_items + 1,) bool, items that may be recommended; never PADDING.
        item_at: (blocks * 256,) int32, the item of each place; PADDING where a last block has none.
        provider_at: likewise, its provider.
        panels: (P, dim / 4, W, 4) uint8 (path "int8") or (P, dim, W) float32: the embeddings of W places dim by dim;
            zeros (as int8: OFFSET) in a place without an item. Whole blocks.
        block_norms: (blocks,) float64, the largest Euclidean norm in each block.
        block_units: likewise, the scale of the block's int8; 1 with float32.
        block_errors: likewise, the largest Euclidean norm of what int8 lost of an item; 0 with float32.
        block_sizes: likewise, the largest Euclidean norm of what it kept; 0 with float32.
        provider_offsets: (largest provider_index + 2,) int64 into provider_items; provider 0 has none.
        provider_items: (number of allowed items with a provider,) int32, provider by provider, by norm in each, the
            largest first.
        provider_norms: likewise float64, the items' Euclidean norms.
        big_providers: (G,) int32, ascending, the providers with many allowed items.
        big_blocks: (G + 1,) int64; all items are in the blocks before big_blocks[0], those of big_providers[g] in
            big_blocks[g]..big_blocks[g + 1] - 1.
        dim: the model's own, before padding.
    """

    item_embeddings: Float32Array
    item_provider: Int32Array
    allowed: BoolArray
    item_at: Int32Array
    provider_at: Int32Array
    panels: UInt8Array | Float32Array
    block_norms: Float64Array
    block_units: Float64Array
    block_errors: Float64Array
    block_sizes: Float64Array
    provider_offsets: Int64Array
    provider_items: Int32Array
    provider_norms: Float64Array
    big_providers: Int32Array
    big_blocks: Int64Array
    dim: int


def build_item_table(
    item_embeddings: Float32Array,
    item_provider: Int32Array,
    *,
    allowed: BoolArray | None,
    items: range | None = None,
    path: Path | None = None,
    big_provider: int = BIG_PROVIDER,
) -> ItemTable:
    """Lay out the items that may be recommended. Once for a model and its allow and deny lists.

    Args:
        item_embeddings: (num_items + 1, dim) float32; row 0 belongs to PADDING and is not read.
        item_provider: (num_items + 1,) int32, provider_index of each item_index; 0 is "no provider".
        allowed: (num_items + 1,) bool, items that may be recommended; None allows all. PADDING never is.
        items: item_index, one after the other, of which all others are as if not allowed: a shard of the catalog. Only
            their embeddings are looked at, and memory grows with them. None for the whole catalog.
        path: how to scan; None for the fastest that this CPU and this dim can. Lists are the same with each.
        big_provider: allowed items from which a provider gets blocks of its own, 1 or more; likewise.

    Raises:
        ValueError: a wrong dtype or shape, a negative provider_index, NaN or infinity in an item's embedding, items
            that are not in the catalog, or a path that this CPU or dim cannot take.
    """
    item_embeddings = check_array("item_embeddings", item_embeddings, dtype=np.float32, ndim=2)
    item_provider = check_array("item_provider", item_provider, dtype=np.int32)
    rows, dim = item_embeddings.shape
    if rows == 0 or dim == 0:
        raise ValueError(f"item_embeddings has shape {item_embeddings.shape}, expected (num_items + 1, 1 or more)")
    path = choose_path(dim, path)
    if allowed is None:
        allowed = np.ones(rows, np.bool_)
    allowed = check_array("allowed", allowed, dtype=np.bool_).copy()
    for name, array in (("item_provider", item_provider), ("allowed", allowed)):
        if len(array) != rows:
            raise ValueError(f"{name} has {len(array)} entries, expected {rows} as item_embeddings has rows")
    check_range("item_provider", item_provider, low=0, high=np.iinfo(np.int32).max - 1)
    first, stop = (1, rows) if items is None else (items.start, items.stop)
    if not 1 <= first <= stop <= rows or (items is not None and items.step != 1):
        raise ValueError(f"items are {items}, expected a range inside 1..{rows - 1}")
    allowed[:first] = False
    allowed[stop:] = False
    embeddings = pad_dims(item_embeddings)
    norms = np.zeros(stop - first, np.float64)
    row_norms(embeddings[first:stop], norms)
    if not np.isfinite(norms).all():
        row = first + int((~np.isfinite(norms)).argmax())
        raise ValueError(f"item_embeddings[{row}] has NaN or infinity, expected finite numbers; train or export again")
    there = np.flatnonzero(allowed[first:stop]).astype(np.int32)
    by_norm = there[np.argsort(-norms[there], kind="stable")] + np.int32(first)
    provider_offsets, provider_items = _items_by_provider(by_norm, item_provider)
    big_providers = np.flatnonzero(np.diff(provider_offsets) >= big_provider).astype(np.int32)
    parts = [by_norm, *(provider_items[provider_offsets[one] : provider_offsets[one + 1]] for one in big_providers)]
    item_at = read_only(np.concatenate([np.pad(part, (0, -len(part) % BLOCK_ITEMS)) for part in parts]))
    panels, units, errors, sizes = _fill_panels(embeddings, item_at, path)
    return ItemTable(
        item_embeddings=embeddings,
        item_provider=item_provider,
        allowed=read_only(allowed),
        item_at=item_at,
        provider_at=read_only(item_provider[item_at]),
        panels=read_only(panels),
        block_norms=read_only(norms[item_at[::BLOCK_ITEMS] - first]),  # a block begins with an item
        block_units=read_only(units),
        block_errors=read_only(errors),
        block_sizes=read_only(sizes),
        provider_offsets=read_only(provider_offsets),
        provider_items=read_only(provider_items),
        provider_norms=read_only(norms[provider_items - first]),
        big_providers=read_only(big_providers),
        big_blocks=read_only(np.cumsum([-(-len(part) // BLOCK_ITEMS) for part in parts])),
        dim=dim,
    )


def items_by_norm(table: ItemTable) -> Int32Array:
    """(M,) int32: the items that may be recommended, the largest norm first."""
    places = table.item_at[: int(table.big_blocks[0]) * BLOCK_ITEMS]
    items: Int32Array = places[places != PADDING]
    return items


def choose_path(dim: int, path: Path | None) -> Path:
    """The path asked for, or the fastest that can be taken.

    Raises:
        ValueError: no such path, or this CPU or dim cannot take it.
    """
    possible = [one for one in runnable_paths() if one != "int8" or dim <= LONGEST_INT8]
    if path is None:
        return possible[0]
    if path not in possible:
        known = "" if path in PATHS else " unknown;"
        raise ValueError(f"path is {path!r},{known} expected one of {possible} on this CPU with {dim} dims, or None")
    return path


def panel_items(path: Path) -> int:
    """W, the places of a panel, on this CPU."""
    return INT8_TILE.items if path == "int8" else FLOAT32_TILE.items


def pad_dims(vectors: Float32Array) -> Float32Array:
    """Append zeros to each row up to a multiple of LANES dims; the same memory, read-only, where nothing is to do."""
    missing = -vectors.shape[1] % LANES
    return read_only(np.pad(vectors, ((0, 0), (0, missing)))) if missing else vectors


def _fill_panels(
    embeddings: Float32Array, item_at: Int32Array, path: Path
) -> tuple[UInt8Array | Float32Array, Float64Array, Float64Array, Float64Array]:
    """Panels, and what the blocks' bounds need: units, errors, sizes."""
    num_blocks, dims = len(item_at) // BLOCK_ITEMS, embeddings.shape[1]
    units, errors, sizes = np.ones(num_blocks), np.zeros(num_blocks), np.zeros(num_blocks)
    width = panel_items(path)
    if path == "int8":
        quantised = np.full((len(item_at) // width, dims // 4, width, 4), OFFSET, np.uint8)
        quantise_items(embeddings, item_at, quantised, units, errors, sizes)
        return quantised, units, errors, sizes
    panels = np.zeros((len(item_at) // width, dims, width), np.float32)
    _transpose(embeddings, item_at, panels)
    return panels, units, errors, sizes


def _items_by_provider(by_norm: Int32Array, item_provider: Int32Array) -> tuple[Int64Array, Int32Array]:
    """List the allowed items of each provider, in the order of by_norm: offsets and items."""
    with_provider = by_norm[item_provider[by_norm] != 0]
    providers = item_provider[with_provider]
    counts = np.bincount(providers, minlength=int(item_provider.max()) + 1)
    offsets = np.zeros(len(counts) + 1, np.int64)
    np.cumsum(counts, out=offsets[1:])
    return offsets, with_provider[np.argsort(providers, kind="stable")]


@njit(cache=True, nogil=True)
def row_norms(vectors, norms):
    """Kernel: Euclidean norms in float64: squares of float32 neither overflow nor vanish there."""
    for row in range(len(vectors)):
        total = 0.0
        for d in range(vectors.shape[1]):
            total += np.float64(vectors[row, d]) * np.float64(vectors[row, d])
        norms[row] = np.sqrt(total)


@njit(cache=True, nogil=True)
def _transpose(embeddings, item_at, panels):
    width = panels.shape[2]
    for place in range(len(item_at)):
        item = item_at[place]
        if item != PADDING:
            for d in range(embeddings.shape[1]):
                panels[place // width, d, place % width] = embeddings[item, d]
