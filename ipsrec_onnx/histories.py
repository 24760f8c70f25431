"""Turns histories of ids into histories of indices: the known items only, oldest first."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ipsrec_kernels.keep import drop_unknown, keep_newest
from ipsrec_kernels.padding import PADDING
from ipsrec_onnx.catalog import Catalog
from ipsrec_onnx.id_lists import IdLists, range_positions
from ipsrec_onnx.ids import find_ids


@dataclass(frozen=True, eq=False)
class Histories:
    """Histories end to end, oldest first, items that the catalog knows only.

    Attributes:
        items: (N,) int32 item_index, never PADDING.
        providers: (N,) int32 provider_index, 0 for no provider.
        offsets: (n + 1,) int64; history b is items[offsets[b]:offsets[b + 1]].
    """

    items: npt.NDArray[np.int32]
    providers: npt.NDArray[np.int32]
    offsets: npt.NDArray[np.int64]

    @property
    def lengths(self) -> npt.NDArray[np.int64]:
        """(n,) known items of each user."""
        return np.diff(self.offsets)

    def newest(self, max_len: int) -> Histories:
        """Keep the last max_len items of each history."""
        return Histories(*keep_newest(self.items, self.providers, self.offsets, max_len=max_len))

    def of_users(self, users: npt.NDArray[np.bool_]) -> Histories:
        """Select the histories that `users`, (n,) bool, says."""
        positions, offsets = range_positions(self.offsets[:-1][users], self.lengths[users])
        return Histories(self.items[positions], self.providers[positions], offsets)

    def without_empty(self) -> Histories:
        """Leave out the users without a history: their share of items is nothing, so only offsets change."""
        return Histories(self.items, self.providers, np.append(self.offsets[:-1][self.lengths > 0], self.offsets[-1]))


@dataclass(frozen=True, eq=False)
class MappedHistories:
    """What mapping found.

    Attributes:
        known: the histories to go on with.
        unknown_items: (K,) int64, positions of the item ids that the catalog does not know.
        num_unknown_providers: provider ids that the catalog does not know, among the known items.
    """

    known: Histories
    unknown_items: npt.NDArray[np.int64]
    num_unknown_providers: int


def map_histories(item_lists: IdLists, provider_lists: IdLists | None, catalog: Catalog) -> MappedHistories:
    """Look up the ids of histories and drop the items that the catalog does not know.

    Args:
        item_lists: item ids without nulls.
        provider_lists: the provider of each; None takes the catalog's provider of each item.
        catalog: of the model.

    Returns:
        (n histories) the known ones, and what was not.
    """
    items = find_ids(catalog.item_table, item_lists.ids)
    if provider_lists is None:
        # Every index is in range, so nothing is clipped: this is the mode that makes no pass of its own to check them.
        providers = np.take(catalog.item_provider, items, mode="clip")
    else:
        providers = find_ids(catalog.provider_table, provider_lists.ids)
    unknown = np.zeros(0, np.int64)
    known = Histories(items, providers, item_lists.offsets)
    if np.count_nonzero(items) < len(items):
        unknown = np.flatnonzero(items == PADDING)
        known = Histories(*drop_unknown(items, providers, item_lists.offsets))
    lost = 0 if provider_lists is None else len(known.providers) - int(np.count_nonzero(known.providers))
    return MappedHistories(known=known, unknown_items=unknown, num_unknown_providers=lost)
