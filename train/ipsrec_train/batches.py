"""Training batches: windows of histories, packed end to end by the kernels that scoring packs with."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ipsrec_kernels.end_to_end import pack_end_to_end, place_histories
from ipsrec_kernels.padding import PADDING
from ipsrec_onnx.dataset import Dataset, Split, read_histories, split_histories
from ipsrec_onnx.errors import DataError
from ipsrec_onnx.ids import find_ids, plain_ids
from ipsrec_train.history_scores import HistoryEntries
from ipsrec_train.packed import PackedHistories


@dataclass(frozen=True, eq=False)
class Histories:
    """Histories of item_index, end to end.

    Attributes:
        values: (N,) int32 item_index, oldest first.
        offsets: (U + 1,) int64; user u has values[offsets[u]:offsets[u + 1]].
        targets: (U,) int32 the item to foretell; empty for the training split.
    """

    values: npt.NDArray[np.int32]
    offsets: npt.NDArray[np.int64]
    targets: npt.NDArray[np.int32]

    def __len__(self) -> int:
        return len(self.offsets) - 1


def load_histories(dataset: Dataset, split: Split) -> Histories:
    """Read one split of a dataset as item_index.

    Raises:
        DataError: the dataset is broken, or a history holds an item that its catalog does not.
    """
    table = split_histories(read_histories(dataset), split).combine_chunks()
    lists = table["item_history"].combine_chunks()
    find = dataset.catalog.item_table
    offsets = lists.offsets.to_numpy().astype(np.int64)
    values = find_ids(find, plain_ids(lists.flatten(), where="item_history"))
    targets = np.zeros(0, np.int32)
    if "target_item" in table.column_names:
        targets = find_ids(find, plain_ids(table["target_item"], where="target_item"))
    for name, found in (("item_history", values), ("target_item", targets)):
        if (found == PADDING).any():
            raise DataError(
                f"{dataset.path}: {name} holds {int((found == PADDING).sum())} items that the catalog does not; "
                "make the dataset again with `ipsrec prepare`"
            )
    return Histories(values=values, offsets=offsets - offsets[0], targets=targets)


def cut_windows(offsets: npt.NDArray[np.int64], max_len: int, *, newest: int | None = None) -> npt.NDArray[np.int64]:
    """Cut each history into windows from its end, so that every item but the first is a target once.

    A window's inputs are at most max_len items; its targets are the same items moved on by one.

    Args:
        offsets: (U + 1,) int64.
        max_len: most inputs of a window.
        newest: keep so many windows of each user, the newest; all where None.

    Returns:
        (num_windows, 2) int64, first and one past the last input of each window, in the values.
    """
    start, inputs = offsets[:-1], np.maximum(np.diff(offsets) - 1, 0)
    count = -(-inputs // max_len)
    if newest is not None:
        count = np.minimum(count, newest)
    user = np.repeat(np.arange(len(start)), count)
    nth = np.arange(len(user)) - np.repeat(np.cumsum(count) - count, count)  # 0 is the newest window
    stop = start[user] + inputs[user] - nth * max_len
    return np.stack([np.maximum(stop - max_len, start[user]), stop], 1)


def newest_windows(windows: npt.NDArray[np.int64], offsets: npt.NDArray[np.int64]) -> npt.NDArray[np.bool_]:
    """(num_windows,) which windows, as cut_windows gave them, are the newest of their user."""
    user = np.searchsorted(offsets, windows[:, 0], side="right") - 1
    newest: npt.NDArray[np.bool_] = windows[:, 1] == offsets[user + 1] - 1
    return newest


@dataclass(frozen=True, eq=False)
class Batch:
    """Windows packed end to end into R rows of W positions.

    Attributes:
        histories: the windows' inputs; segment b is window b.
        at: (T,) int64 where a target's state lies, in the flattened rows.
        targets: (T,) int64 item_index that came next.
        entries: what came before each target in its window.
        last: (B,) int64 where each window's newest state lies.
        users: (U,) int64 `last` of those windows that are the newest of their user: the state there is the user's.
    """

    histories: PackedHistories
    at: Tensor
    targets: Tensor
    entries: HistoryEntries
    last: Tensor
    users: Tensor


class Windows:
    """All windows of the training histories, cut once.

    Args:
        histories: the training split.
        max_len: width of a window and of a packed row.
        device: where batches go.
        newest: keep so many windows of each user, the newest; all where None.
    """

    def __init__(self, histories: Histories, *, max_len: int, device: torch.device, newest: int | None = None) -> None:
        self.histories, self.max_len, self.device = histories, max_len, device
        self.ranges = cut_windows(histories.offsets, max_len, newest=newest)  # (num_windows, 2)
        self.newest = newest_windows(self.ranges, histories.offsets)  # (num_windows,)

    def __len__(self) -> int:
        return len(self.ranges)

    def num_targets(self, chosen: npt.NDArray[np.int64]) -> int:
        """How many targets the windows of these numbers have."""
        return int((self.ranges[chosen, 1] - self.ranges[chosen, 0]).sum())

    def pack(self, chosen: npt.NDArray[np.int64]) -> Batch:
        """Make a batch of the windows of these numbers, one or more."""
        ranges, values, width = self.ranges[chosen], self.histories.values, self.max_len
        lengths = ranges[:, 1] - ranges[:, 0]
        offsets = np.zeros(len(ranges) + 1, np.int64)
        np.cumsum(lengths, out=offsets[1:])
        window = np.repeat(np.arange(len(ranges)), lengths)
        place = np.arange(offsets[-1]) - offsets[window]  # position in its window
        source = ranges[window, 0] + place
        items, targets = values[source], values[source + 1]
        row, column, num_rows = pack_end_to_end(items, offsets, width=width)

        def placed(stream: npt.NDArray[np.integer]) -> Tensor:
            laid = place_histories(stream.astype(np.int32), offsets, row, column, num_rows=num_rows, width=width)
            return self._tensor(laid).long()

        at = row[window].astype(np.int64) * width + column[window] + place
        last = at[offsets[1:] - 1]
        return Batch(
            histories=PackedHistories(placed(items), placed(place), placed(window + 1) - 1),
            at=self._tensor(at),
            targets=self._tensor(targets.astype(np.int64)),
            entries=HistoryEntries(
                self._tensor(items), self._tensor(offsets[window]), self._tensor(np.arange(1, len(items) + 1))
            ),
            last=self._tensor(last),
            users=self._tensor(last[self.newest[chosen]]),
        )

    def _tensor(self, array: npt.NDArray[Any]) -> Tensor:
        tensor = torch.from_numpy(array)
        if self.device.type == "cuda":  # from pinned memory the copy goes on by itself
            return tensor.pin_memory().to(self.device, non_blocking=True)
        return tensor.to(self.device)
