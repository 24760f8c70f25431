"""Groups of users by what their history was before the held-out item: for figures that an average hides."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from ipsrec_onnx.dataset import Dataset
from ipsrec_train.batches import load_histories

_SHARES = 5  # groups by length; equal lengths stay together


@dataclass(frozen=True, eq=False)
class Grouping:
    """One way to split users.

    Attributes:
        title: what the split is by.
        groups: name -> (U,) bool, who is in it; no user is in two.
    """

    title: str
    groups: dict[str, npt.NDArray[np.bool_]]


def user_groups(dataset: Dataset, split: Literal["test", "valid"]) -> dict[str, Grouping]:
    """Split the users of a split by length of history, and by whether the next item's provider was there already.

    Returns:
        "length" and "provider"; masks in the order of split_histories, empty groups left out.
    """
    histories = load_histories(dataset, split)
    lengths = np.diff(histories.offsets)
    provider = dataset.catalog.item_provider
    user = np.repeat(np.arange(len(histories)), lengths)
    target_provider = provider[histories.targets]
    seen_item, seen_provider = np.zeros(len(histories), bool), np.zeros(len(histories), bool)
    seen_item[user[histories.values == histories.targets[user]]] = True
    same = (provider[histories.values] == target_provider[user]) & (target_provider[user] != 0)
    seen_provider[user[same]] = True
    return {
        "length": Grouping("items in the history", _by_length(lengths)),
        "provider": Grouping(
            "the next item",
            _without_empty(
                {
                    "was in the history": seen_item,
                    "new, of a provider in the history": seen_provider & ~seen_item,
                    "new, of a new provider": ~seen_provider & ~seen_item & (target_provider != 0),
                    "new, without a provider": ~seen_item & (target_provider == 0),
                }
            ),
        ),
    }


def _by_length(lengths: npt.NDArray[np.int64]) -> dict[str, npt.NDArray[np.bool_]]:
    """About equally many users in each group."""
    if not len(lengths):
        return {}
    tops = np.unique(np.quantile(lengths, np.arange(1, _SHARES + 1) / _SHARES, method="inverted_cdf"))
    groups, low = {}, int(lengths.min())
    for top in tops.astype(int).tolist():
        last = f"{low}+" if top == tops[-1] else f"{low} to {top}"
        groups[str(top) if low == top else last] = (lengths >= low) & (lengths <= top)
        low = top + 1
    return _without_empty(groups)


def _without_empty(groups: dict[str, npt.NDArray[np.bool_]]) -> dict[str, npt.NDArray[np.bool_]]:
    return {name: users for name, users in groups.items() if users.any()}
