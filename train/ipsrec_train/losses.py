"""Cross entropy of the next item, over all items or a sample of them, and the contrastive losses.

T targets, N scored items, D dim, C rows of a chunk.
"""

from __future__ import annotations

import functools
import importlib.util
import itertools
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from ipsrec_kernels.padding import PADDING
from ipsrec_kernels.softmax import SoftmaxRows, softmax_gradients
from ipsrec_kernels.target_rows import TargetHistories
from ipsrec_train.history_scores import (
    HistoryEntries,
    ScoredItems,
    add_history_scores,
    history_gradients,
    kernel_columns,
    kernel_histories,
    kernel_weights,
    target_history_scores,
    target_matches,
)

Precision = Literal["fp32", "bf16"]

# Scores held at once, targets x items. Small enough to stay near the caches of a CPU, large enough for its GEMM. On a
# GPU 2 GB in bfloat16 and 4 GB in float32: hundreds of rows even of a million items, since each chunk reads the item
# table twice and writes a change of all of it.
SCORES_AT_ONCE = {"cpu": 2_000_000, "cuda": 1_000_000_000}
# Rows of scores begin at multiples of so many numbers: elsewhere a GPU can neither read 16 bytes at once nor multiply
# at full speed, and numbers of items are seldom even.
ROW_ALIGNMENT = {"cpu": 1, "cuda": 64}
# Rows at once all the same: each chunk reads and adds to the whole item table, and a product of few rows is bound by
# memory. Over 1.1 million items on one core, 128 rows at once take .7 of the time of 16 in float32, and .4 in bfloat16.
ROWS_AT_ONCE = 128


class _Rows(NamedTuple):
    """What a chunk of rows gives: summed loss, gradients of scores (C, N), target scores (C,), a and b (max_len,)."""

    loss: float | Tensor
    d_scores: Tensor
    d_target: Tensor
    d_a: Tensor
    d_b: Tensor


class SoftmaxLoss(torch.autograd.Function):
    """Mean cross entropy that never holds more than one chunk of scores.

    Gradients are made in the forward pass, chunk by chunk, where the scores are at hand: one array of chunk x items
    lives instead of three of targets x items, and nothing is computed twice.

    On a GPU with Triton, scores pass through memory six times: written by their product, read by the kernel's first
    pass, read and written by its second, and read by the two products of gradients. With N items and C targets in a
    chunk that is 12 C N bytes in bfloat16. Each chunk reads the items twice, 4 N D bytes, and writes their gradients, 4
    N D; a chunk after the first adds 12 N D for the sum. A step adds 14 N D: items to bfloat16, and backward's scaling.
    """

    @staticmethod
    def forward(
        ctx: Any,
        users: Tensor,
        table: Tensor,
        targets: Tensor,
        a: Tensor,
        b: Tensor,
        entries: HistoryEntries | None,
        columns: ScoredItems,
        precision: Precision,
    ) -> Tensor:
        """See softmax_loss; a and b are empty for a model without history terms."""
        number = torch.bfloat16 if precision == "bf16" else torch.float32
        device = users.device.type
        items = table[1:] if columns.all_items else table[columns.items]  # (N, D), without PADDING
        of_target = table[targets]  # (T, D)
        low_users, low_items = users.to(number), items.to(number)
        target_scores = (users * of_target).sum(1)  # (T,)
        d_users, d_target = torch.empty_like(users), torch.empty_like(target_scores)
        if columns.all_items:  # the items' gradients are made where the table's lie, which is never filled with zeros
            d_table = torch.empty_like(table)
            d_table[PADDING] = 0
            d_items = d_table[1:]
        else:
            d_table, d_items = torch.zeros_like(table), torch.empty_like(items)
        d_a, d_b = torch.zeros_like(a), torch.zeros_like(b)
        loss = users.new_zeros(())
        chunk_rows = _rows_on(device)
        chunk = max(ROWS_AT_ONCE, SCORES_AT_ONCE[device] // max(1, len(items)))
        # Written over by each chunk: fresh memory of this size would cost as much as the products.
        width = -(-len(items) // ROW_ALIGNMENT[device]) * ROW_ALIGNMENT[device]
        scores = low_users.new_empty(min(chunk, len(users)), width)[:, : len(items)]  # (C, N)
        change = torch.empty_like(items if device == "cuda" else low_items)  # (N, D)
        for start in range(0, len(users), chunk):
            here = slice(start, start + chunk)
            rows = chunk_rows(
                torch.mm(low_users[here], low_items.T, out=scores[: len(low_users[here])]),
                target_scores[here],
                targets[here],
                weights=(a, b),
                entries=None if entries is None else entries.rows(here),
                columns=columns,
            )
            loss += rows.loss
            _put_product(rows.d_scores, low_items, out=d_users[here])
            if start == 0:
                _put_product(rows.d_scores.T, low_users[here], out=d_items)
            elif number == torch.float32:
                d_items.addmm_(rows.d_scores.T, low_users[here])
            else:
                d_items += _put_product(rows.d_scores.T, low_users[here], out=change)
            d_target[here] = rows.d_target
            d_a += rows.d_a
            d_b += rows.d_b
        d_users.addcmul_(d_target.unsqueeze(1), of_target)
        if not columns.all_items:
            d_table[columns.items] = d_items
        d_table.index_add_(0, targets, d_target.unsqueeze(1) * users)
        ctx.save_for_backward(d_users, d_table, d_a, d_b)
        ctx.count = len(users)
        return loss / len(users)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        """Scale what the forward pass made."""
        d_users, d_table, d_a, d_b = (part.mul_(grad / ctx.count) for part in ctx.saved_tensors)
        return d_users, d_table, None, d_a, d_b, None, None, None


def softmax_loss(
    users: Tensor,
    table: Tensor,
    targets: Tensor,
    *,
    columns: ScoredItems,
    weights: tuple[Tensor, Tensor] | None = None,
    entries: HistoryEntries | None = None,
    precision: Precision = "fp32",
) -> Tensor:
    """Mean cross entropy of the next item against the scored items (Eq. 5-6), PADDING left out.

    Args:
        users: (T, D) float32 states that predict.
        table: (V + 1, D) float32 item embeddings.
        targets: (T,) int64 item_index of the item that came next.
        columns: the items to tell it from: all of them, or a sample with its bias (ipsrec_train.sampling).
        weights: a and b of the history terms, (max_len,) each; None for a model without.
        entries: what came before each target; None for a model without history terms.
        precision: of the products of users and items and of their gradients; sums, exponentials and each target's own
            score stay float32.

    Returns:
        () float32.
    """
    a, b = weights if weights is not None else (users.new_zeros(0), users.new_zeros(0))
    loss: Tensor = SoftmaxLoss.apply(users, table, targets, a, b, entries, columns, precision)  # type: ignore[no-untyped-call]
    return loss


def softmax_means(device: str) -> str:
    """What turns scores into gradients on a device ("cpu" or "cuda"), in words."""
    names = {
        _kernel_rows: "a kernel in Numba",
        _triton_rows: "kernels in Triton",
        _torch_rows: "PyTorch's operators, since triton is not installed",
    }
    return names[_rows_on(device)]


def _rows_on(device: str) -> Callable[..., _Rows]:
    """What turns a chunk's scores into gradients on a device."""
    if device == "cpu":
        return _kernel_rows
    return _triton_rows if _has_triton() else _torch_rows


@functools.cache
def _has_triton() -> bool:
    """Is Triton here? It comes with torch's CUDA build on Linux."""
    return importlib.util.find_spec("triton") is not None


def _put_product(left: Tensor, right: Tensor, *, out: Tensor) -> Tensor:
    """Write left @ right to `out`; on a GPU float32 sums of bfloat16 products stay what they are."""
    if left.dtype == out.dtype:
        return torch.mm(left, right, out=out)
    if out.is_cuda:
        return torch.mm(left, right, out_dtype=out.dtype, out=out)
    return out.copy_(left @ right)


def _triton_rows(
    scores: Tensor,
    target_scores: Tensor,
    targets: Tensor,
    *,
    weights: tuple[Tensor, Tensor],
    entries: HistoryEntries | None,
    columns: ScoredItems,
) -> _Rows:
    """One chunk on a GPU."""
    from ipsrec_gpu.softmax import Columns, softmax_gradients

    histories = targets.new_empty(len(targets), 0)
    if entries is not None:
        items, real = entries.by_age(len(weights[0]))
        histories = torch.where(real, items, PADDING)
    rows = softmax_gradients(
        scores,
        target_scores,
        targets,
        columns=Columns(columns.of_item, columns.bias, columns.begin, columns.end, columns.item_provider),
        histories=histories,
        weights=weights,
    )
    return _Rows(rows.loss, scores, rows.d_target_score, rows.d_provider, rows.d_item)


def _kernel_rows(
    scores: Tensor,
    target_scores: Tensor,
    targets: Tensor,
    *,
    weights: tuple[Tensor, Tensor],
    entries: HistoryEntries | None,
    columns: ScoredItems,
) -> _Rows:
    """One chunk on a CPU, its rows shared out to as many threads as PyTorch has."""
    bits = scores.view(torch.uint16).numpy() if scores.dtype == torch.bfloat16 else scores.numpy()
    own, target = target_scores.numpy(), targets.int().numpy()
    described, histories = kernel_columns(columns), kernel_histories(entries)

    def part(here: slice) -> SoftmaxRows:
        return softmax_gradients(
            bits[here],
            own[here],
            target[here],
            columns=described,
            histories=TargetHistories(histories.items, histories.start[here], histories.stop[here]),
            weights=kernel_weights(weights),
        )

    workers = min(torch.get_num_threads(), len(own))
    cuts = np.linspace(0, len(own), workers + 1).astype(int).tolist()
    slices = [slice(low, high) for low, high in itertools.pairwise(cuts)]
    if workers == 1:
        done = [part(slices[0])]
    else:
        with ThreadPoolExecutor(workers) as pool:
            done = list(pool.map(part, slices))
    return _Rows(
        loss=sum(rows.loss for rows in done),
        d_scores=scores,
        d_target=torch.from_numpy(np.concatenate([rows.d_target_score for rows in done])),
        d_a=torch.from_numpy(sum(rows.d_provider for rows in done)).float(),
        d_b=torch.from_numpy(sum(rows.d_item for rows in done)).float(),
    )


def _torch_rows(
    scores: Tensor,
    target_scores: Tensor,
    targets: Tensor,
    *,
    weights: tuple[Tensor, Tensor],
    entries: HistoryEntries | None,
    columns: ScoredItems,
) -> _Rows:
    """One chunk with PyTorch's operators, on any device."""
    a, b = weights
    low, scores = scores.dtype, scores.float()
    if len(columns.bias):
        scores += columns.bias
    if entries is not None:
        add_history_scores(scores, a, b, entries=entries, columns=columns)
        target_scores = target_scores + target_history_scores(targets, a, b, entries=entries, columns=columns)
    # The target's own column, where it has one, takes no part: its score is known apart.
    column = columns.of_item[targets].long().unsqueeze(1)
    has_column = column >= 0
    column = column.clamp(min=0)
    scores.scatter_(1, column, torch.where(has_column, float("-inf"), scores.gather(1, column)))
    top = torch.maximum(scores.amax(1), target_scores).unsqueeze(1)
    # The softmax in place, with one exponential for each score.
    scores -= top
    total = scores.exp_().sum(1, keepdim=True)  # (C, 1)
    of_target = (target_scores.unsqueeze(1) - top).exp()
    total += of_target
    loss = (total.log() + top).sum() - target_scores.sum()
    scores /= total
    d_target = (of_target / total - 1).squeeze(1)
    d_a, d_b = torch.zeros_like(a), torch.zeros_like(b)
    if entries is not None:
        d_a, d_b = history_gradients(scores, len(a), entries=entries, columns=columns)
        same_provider, same_item = target_matches(targets, len(a), entries=entries, columns=columns)
        d_a = d_a + (d_target.unsqueeze(1) * same_provider).sum(0)
        d_b = d_b + (d_target.unsqueeze(1) * same_item).sum(0)
    return _Rows(loss, scores.to(low), d_target, d_a, d_b)


def contrastive_loss(item_users: Tensor, provider_users: Tensor, *, temperature: float, symmetric: bool) -> Tensor:
    """Pull a user's two states together, push those of different users apart.

    Args:
        item_users: (B, D) last item state of each user.
        provider_users: (B, D) last provider state of each user.
        temperature: tau.
        symmetric: False is Eq. 12, anchor the item state, negatives the other users' provider states. True is the
            released code: each of the 2 B states is an anchor, its negatives are all states of the other users.

    Returns:
        () float32.
    """
    B = len(item_users)
    target = torch.arange(B, device=item_users.device)
    if not symmetric:
        return F.cross_entropy(item_users @ provider_users.T / temperature, target)
    views = torch.cat([item_users, provider_users])  # (2 B, D)
    alike = views @ views.T / temperature  # (2 B, 2 B)
    alike = alike.masked_fill(torch.eye(2 * B, dtype=torch.bool, device=views.device), float("-inf"))
    return F.cross_entropy(alike, torch.cat([target + B, target]))
