"""The counting floor: what a table of item -> next item reaches, without any training.

score(u, i) = how often i came right after the newest item of u's history, counted over everything that lies before
the held-out items of the split: for testing, histories with their validation item. Items that never came after it
follow by popularity; ties go to the more popular item, then to the smaller item_index. A model that learned more than
what follows what must be above it.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
import numpy.typing as npt

from ipsrec_onnx.dataset import Dataset
from ipsrec_train.batches import Histories, load_histories

_Followers = dict[int, tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]]


def counting_ranks(dataset: Dataset, split: Literal["test", "valid"], *, exclude_seen: bool) -> npt.NDArray[np.int64]:
    """Rank each user's held-out item by counting.

    Args:
        dataset: as open_dataset gave it.
        split: which items are held out.
        exclude_seen: leave the items of the history out of the ranking.

    Returns:
        (U,) int64, 1 is best, over all items; 0 for one that was left out. In the order of split_histories.
    """
    histories = load_histories(dataset, split)
    place = _popularity_place(np.asarray(dataset.catalog.popularity))
    followers = _followers(histories)
    nobody = (np.zeros(0, np.int64), np.zeros(0, np.int64))
    ranks = np.zeros(len(histories), np.int64)
    for user in range(len(histories)):
        history = histories.values[histories.offsets[user] : histories.offsets[user + 1]]
        items, counts = followers.get(int(history[-1]), nobody) if len(history) else nobody
        seen = np.unique(history).astype(np.int64) if exclude_seen else np.zeros(0, np.int64)
        ranks[user] = _rank(int(histories.targets[user]), items, counts, seen, place)
    return ranks


def _popularity_place(popularity: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """(num_items + 1,) place of each item by popularity, from 0, ties by smaller item_index; PADDING has none."""
    order = np.lexsort((np.arange(1, len(popularity)), -popularity[1:])) + 1
    place = np.full(len(popularity), -1, np.int64)
    place[order] = np.arange(len(order))
    return place


def _followers(histories: Histories) -> _Followers:
    """For each item, the items that came right after it and how often."""
    values, offsets = histories.values.astype(np.int64), histories.offsets
    starts = np.zeros(len(values) + 1, bool)  # a history may be empty and start where the values end
    starts[offsets[:-1]] = True
    after = np.flatnonzero(~starts[:-1])
    pairs, counts = np.unique(np.stack([values[after - 1], values[after]], 1), axis=0, return_counts=True)
    cuts = np.flatnonzero(np.diff(pairs[:, 0])) + 1
    groups = zip(np.split(pairs, cuts), np.split(counts, cuts), strict=True)
    return {int(group[0, 0]): (group[:, 1], count) for group, count in groups if len(group)}


def _rank(
    target: int,
    items: npt.NDArray[np.int64],
    counts: npt.NDArray[np.int64],
    seen: npt.NDArray[np.int64],
    place: npt.NDArray[np.int64],
) -> int:
    """Rank of one target: `items` came after the newest item `counts` times, `seen` are left out."""
    if (seen == target).any():
        return 0
    allowed = ~np.isin(items, seen)
    own = counts[items == target]
    if len(own):
        better = (counts > own[0]) | ((counts == own[0]) & (place[items] < place[target]))
        return 1 + int((better & allowed).sum())
    others = np.union1d(items, seen)  # not among those that follow by popularity
    return 1 + int(allowed.sum()) + int(place[target]) - int((place[others] < place[target]).sum())
