"""Training batches: windows of histories, packed end to end by the kernels that scoring packs with."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ipsrec_kernels.pack import pack_end_to_end, place_histories
from ipsrec_kernels.padding import PADDING
from ipsrec_onnx.dataset import Dataset, Split, read_histories, split_histories
from ipsrec_onnx.errors import DataError
from ipsrec_onnx.ids import find_ids, plain_ids
from ipsrec_train.history_terms import HistoryEntries
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


def cut_windows(offsets: npt.NDArray[np.int64], max_len: int) -> npt.NDArray[np.int64]:
    """Cut each history into windows from its end, so that every item but the first is a target once.

    A window's inputs are at most max_len items; its targets are the same items moved on by one.

    Args:
        offsets: (U + 1,) int64.
        max_len: most inputs of a window.

    Returns:
        (num_windows, 2) int64, first and one past the last input of each window, in the values.
    """
    start, inputs = offsets[:-1], np.maximum(np.diff(offsets) - 1, 0)
    count = -(-inputs // max_len)
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
        last: (B,) int64 where each window's newest state lies.
        newest: (B,) bool, which windows are the newest of their user: the state at their end is the user's.
    """

    histories: PackedHistories
    at: Tensor
    targets: Tensor
    last: Tensor
    newest: Tensor

    def history_entries(self) -> HistoryEntries:
        """What each target's history holds, (T, W): the entries of its row that are its own and not newer."""
        items, positions, segments = self.histories
        row = self.at // items.shape[1]
        segment = segments.flatten()[self.at].unsqueeze(1)
        age = positions.flatten()[self.at].unsqueeze(1) - positions[row]
        real = (segments[row] == segment) & (age >= 0)
        return HistoryEntries(items[row], age.clamp(min=0), real.float())


def epoch_batches(
    histories: Histories, *, max_len: int, batch_size: int, order: npt.NDArray[np.int64], device: torch.device
) -> Iterator[Batch]:
    """Give all windows once, batch_size at a time.

    Args:
        histories: the training split.
        max_len: width of a window and of a row.
        batch_size: windows of a batch; the last one may have fewer.
        order: (num_windows,) a permutation of the windows.
        device: where the tensors go.

    Yields:
        Batches.
    """
    windows = cut_windows(histories.offsets, max_len)
    for first in range(0, len(order), batch_size):
        yield _pack(histories, windows[order[first : first + batch_size]], max_len=max_len, device=device)


def _pack(histories: Histories, windows: npt.NDArray[np.int64], *, max_len: int, device: torch.device) -> Batch:
    """Pack some windows."""
    values = histories.values
    lengths = windows[:, 1] - windows[:, 0]
    offsets = np.zeros(len(windows) + 1, np.int64)
    np.cumsum(lengths, out=offsets[1:])
    window = np.repeat(np.arange(len(windows)), lengths)
    place = np.arange(offsets[-1]) - offsets[window]  # position in its window
    source = windows[window, 0] + place
    items, targets = values[source], values[source + 1]
    row, column, num_rows = pack_end_to_end(items, offsets, width=max_len)

    def placed(stream: npt.NDArray[np.integer]) -> Tensor:
        laid = place_histories(stream.astype(np.int32), offsets, row, column, num_rows=num_rows, width=max_len)
        return torch.from_numpy(laid).long().to(device)

    at = (row[window].astype(np.int64) * max_len) + column[window] + place
    return Batch(
        histories=PackedHistories(placed(items), placed(place), placed(window + 1) - 1),
        at=torch.from_numpy(at).to(device),
        targets=torch.from_numpy(targets.astype(np.int64)).to(device),
        last=torch.from_numpy(at[offsets[1:] - 1]).to(device),
        newest=torch.from_numpy(newest_windows(windows, histories.offsets)).to(device),
    )
