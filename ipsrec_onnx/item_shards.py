"""The items of a job, laid out whole or in shards: ranges of item_index, each in files that are mapped.

A shard's table has the item_index of the whole catalog, so that its lists need no translation. Memory holds one shard
while it is laid out, and nothing of it afterwards that the system could not read again.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from ipsrec_kernels.item_table import LANES, ItemTable, build_item_table
from ipsrec_onnx.index_cache import cached_item_table
from ipsrec_onnx.mapped_arrays import map_array, map_weight
from ipsrec_onnx.model_file import ModelFile
from ipsrec_onnx.onnx_rewrite import TABLE
from ipsrec_onnx.onnx_weights import find_weights

_NOT_MAPPED = ("item_embeddings", "item_provider", "dim")  # shared by all shards, and a number


@dataclass(frozen=True)
class CatalogShards:
    """How a catalog is cut.

    Attributes:
        count: shards; 1 for a catalog that stays whole, in memory.
        folder: where files without a name lie while they are mapped, of the shards and of the item embeddings; needed
            with more than one. Not one of those that systems keep in memory.
    """

    count: int = 1
    folder: Path | None = None

    @property
    def mapped_in(self) -> Path | None:
        """What open_model_file asks for: the folder, where there are shards."""
        return self.folder if self.count > 1 else None


WHOLE = CatalogShards()


def shard_ranges(num_items: int, count: int) -> list[range]:
    """Cut a catalog into ranges of item_index of like length, none of them empty but that of an empty catalog.

    Args:
        num_items: of the catalog.
        count: ranges, 1 or more; fewer where there are fewer items.
    """
    count = max(1, min(count, num_items))
    bounds = [1 + num_items * number // count for number in range(count + 1)]
    return [range(first, stop) for first, stop in itertools.pairwise(bounds)]


def lay_out_items(
    model: ModelFile,
    allowed: npt.NDArray[np.bool_] | None,
    *,
    shards: CatalogShards,
    index_cache: str | Path | None,
) -> tuple[ItemTable, ...]:
    """Lay out the items that may be recommended, in one table or one a shard.

    Args:
        model: the opened model file; with shards, its embeddings are mapped.
        allowed: (num_items + 1,) bool; None for all.
        shards: how the catalog is cut.
        index_cache: folder in which tables are kept from job to job; None lays them out anew.

    Raises:
        ValueError: as build_item_table.
        DataError: the cache or the folder of the shards cannot be written, or an entry is broken.
    """
    embeddings, item_provider = model.item_embeddings, model.catalog.item_provider
    if shards.count == 1 or shards.folder is None:
        if index_cache is None:
            return (build_item_table(embeddings, item_provider, allowed=allowed),)
        return (cached_item_table(index_cache, embeddings, item_provider=item_provider, allowed=allowed),)
    if model.dim % LANES:
        weight = find_weights(model.path, [TABLE])[TABLE]
        embeddings = map_weight(weight, shards.folder, dims=-(-model.dim // LANES) * LANES)
    tables = []
    for items in shard_ranges(model.catalog.num_items, shards.count):
        if index_cache is None:
            table = _mapped(build_item_table(embeddings, item_provider, allowed=allowed, items=items), shards.folder)
        else:
            table = cached_item_table(
                index_cache, embeddings, item_provider=item_provider, allowed=allowed, items=items
            )
        tables.append(table._replace(dim=model.dim))
    return tuple(tables)


def _mapped(table: ItemTable, folder: Path) -> ItemTable:
    """The same table, of which all that is not shared by shards is mapped."""
    parts = table._asdict()
    own = {name: map_array(parts[name], folder) for name in parts if name not in _NOT_MAPPED}
    return ItemTable(**{**parts, **own})
