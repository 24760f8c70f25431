"""History terms as parts of scores: which items the columns of scores are, and what came before each target."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ipsrec_kernels.target_rows import Columns, TargetHistories, TermWeights
from ipsrec_onnx.errors import DataError


class HistoryEntries(NamedTuple):
    """What came before each of T targets: items[start[t]:stop[t]], oldest first.

    Attributes:
        items: (M,) int32 item_index, histories end to end.
        start: (T,) int64.
        stop: (T,) int64; age 0 is items[stop[t] - 1].
    """

    items: Tensor
    start: Tensor
    stop: Tensor

    def rows(self, here: slice) -> HistoryEntries:
        """The entries of some targets."""
        return HistoryEntries(self.items, self.start[here], self.stop[here])

    def by_age(self, max_len: int) -> tuple[Tensor, Tensor]:
        """(T, max_len) int64 item_index by age, 1 where there is none, and (T, max_len) bool, where there is one."""
        age = torch.arange(max_len, device=self.items.device)
        at = self.stop.unsqueeze(1) - 1 - age  # (T, max_len)
        real = at >= self.start.unsqueeze(1)
        items = self.items[at.clamp(min=0)] if len(self.items) else torch.ones_like(at)
        return torch.where(real, items.long(), 1), real


class ScoredItems(NamedTuple):
    """Which items are scored: column c of the scores is item_index items[c].

    Items are numbered by provider, so a provider's items are the columns begin[p] .. end[p] - 1.

    Attributes:
        items: (N,) int64 item_index, ascending.
        bias: (N,) float32 added to every score of the column; (0,) where nothing is.
        of_item: (num_items + 1,) int32 column of each item_index; -1 for none.
        begin: (num_providers + 1,) int32.
        end: (num_providers + 1,) int32.
        item_provider: (num_items + 1,) int32 provider_index of each item_index.
    """

    items: Tensor
    bias: Tensor
    of_item: Tensor
    begin: Tensor
    end: Tensor
    item_provider: Tensor

    @property
    def all_items(self) -> bool:
        """Is every item a column, in order?"""
        return len(self.items) + 1 == len(self.of_item)


def scored_items(
    item_provider: Tensor, items: npt.NDArray[np.int64] | None = None, *, bias: Tensor | None = None
) -> ScoredItems:
    """Describe columns of scores.

    Args:
        item_provider: (num_items + 1,) integers, on the device where scores are made.
        items: (N,) ascending item_index; all items where None.
        bias: (N,) float32 to add to every row.

    Raises:
        DataError: items are not numbered by provider.
    """
    device = item_provider.device
    providers = item_provider.int()
    columns = torch.arange(1, len(providers), device=device) if items is None else torch.from_numpy(items).to(device)
    of_item = torch.full((len(providers),), -1, dtype=torch.int32, device=device)
    of_item[columns] = torch.arange(len(columns), dtype=torch.int32, device=device)
    every = torch.arange(int(providers.max()) + 1, dtype=torch.int32, device=device)
    of_column = providers[columns].contiguous()
    if bool((of_column[1:] < of_column[:-1]).any()):  # searchsorted would give ranges of other providers
        raise DataError("catalog: items are not numbered by provider; make the dataset again with `ipsrec prepare`")
    return ScoredItems(
        items=columns,
        bias=torch.zeros(0, device=device) if bias is None else bias,
        of_item=of_item,
        begin=torch.searchsorted(of_column, every, out_int32=True),
        end=torch.searchsorted(of_column, every, right=True, out_int32=True),
        item_provider=providers,
    )


def add_history_scores(scores: Tensor, a: Tensor, b: Tensor, *, entries: HistoryEntries, columns: ScoredItems) -> None:
    """Add a and b (max_len,) of every history entry to scores (C, N), in place, with PyTorch's operators."""
    items, real = entries.by_age(len(a))  # (C, max_len)
    by_provider = scores.new_zeros(len(scores), len(columns.begin))
    by_provider.scatter_add_(1, columns.item_provider[items].long(), a * real)
    by_provider[:, 0] = 0.0  # items without a provider have none in common
    scores.add_(by_provider.index_select(1, columns.item_provider[columns.items].long()))
    column = columns.of_item[items].long()
    scores.scatter_add_(1, column.clamp(min=0), b * (real & (column >= 0)))


def history_gradients(
    d_scores: Tensor, max_len: int, *, entries: HistoryEntries, columns: ScoredItems
) -> tuple[Tensor, Tensor]:
    """What d_scores (C, N) say of a and b: (max_len,) each."""
    items, real = entries.by_age(max_len)  # (C, max_len)
    running = torch.cumsum(d_scores, 1)  # (C, N): a provider's sum is a difference of two of these
    provider = columns.item_provider[items].long()
    begin, end = columns.begin[provider].long(), columns.end[provider].long()
    before = running.gather(1, (begin - 1).clamp(min=0)) * (begin > 0)
    of_provider = running.gather(1, (end - 1).clamp(min=0)) * (end > 0) - before
    column = columns.of_item[items].long()
    of_item = d_scores.gather(1, column.clamp(min=0)) * (real & (column >= 0))
    return (of_provider * (real & (provider > 0))).sum(0), of_item.sum(0)


def target_history_scores(
    targets: Tensor, a: Tensor, b: Tensor, *, entries: HistoryEntries, columns: ScoredItems
) -> Tensor:
    """(C,) what the history terms add to each target's own score."""
    same_provider, same_item = target_matches(targets, len(a), entries=entries, columns=columns)
    return (a * same_provider + b * same_item).sum(1)


def target_matches(
    targets: Tensor, max_len: int, *, entries: HistoryEntries, columns: ScoredItems
) -> tuple[Tensor, Tensor]:
    """(C, max_len) bool twice: is the entry of each age of the target's provider, and is it the target itself?"""
    items, real = entries.by_age(max_len)
    provider = columns.item_provider[targets].unsqueeze(1)
    return real & (columns.item_provider[items] == provider) & (provider > 0), real & (items == targets.unsqueeze(1))


def kernel_columns(columns: ScoredItems) -> Columns:
    """The same as arrays for the kernels, on a CPU; nothing is copied."""
    of_item, bias, begin, end = (part.numpy() for part in (columns.of_item, columns.bias, columns.begin, columns.end))
    return Columns(of_item, bias, begin, end, columns.item_provider.numpy())


def kernel_histories(entries: HistoryEntries | None) -> TargetHistories:
    """The same as arrays for the kernels; empty ones for a model without history terms."""
    if entries is None:
        none = np.zeros(0, np.int64)
        return TargetHistories(none.astype(np.int32), none, none)
    return TargetHistories(entries.items.numpy(), entries.start.numpy(), entries.stop.numpy())


def kernel_weights(weights: tuple[Tensor, Tensor] | None) -> TermWeights:
    """The same as arrays for the kernels; empty ones for a model without history terms."""
    if weights is None:
        return TermWeights(np.zeros(0, np.float32), np.zeros(0, np.float32))
    return TermWeights(*(part.detach().numpy() for part in weights))
