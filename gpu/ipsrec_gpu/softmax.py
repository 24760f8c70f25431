"""Cross entropy of one target against many items on a GPU: scores in, gradients out, where the scores lay.

What ipsrec_kernels/softmax.py does on a CPU, for the same arguments as tensors. The scores are read twice and written
once, in their own dtype; sums and exponentials are float32.

1. Each row is split among several programs, so that few long rows fill a GPU too; each gives the maximum and the sum of
   exponentials of its part (_sum_kernel). A few numbers a row are left, which PyTorch's operators put together.
2. History terms change few columns of a row, and their gradients need those alone (_term_kernel).
3. The scores are read again and replaced by probabilities (_probability_kernel).

A row's history entries are sorted by where their items' columns begin. Items are numbered by provider, so the ranges of
two entries are the same or do not meet: a program walks down tiles and entries side by side, and a tile that no entry
concerns costs two scalar loads. Nothing is summed by atomics: the same input gives the same bits.

C rows, N columns, L = max_len ages.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

# Below any score, and finite: -inf less -inf would be NaN where a program's part holds the target's column alone.
_LOWEST = tl.constexpr(-3.0e38)
_NOWHERE = torch.iinfo(torch.int32).max  # where entries without a column lie: behind all that have one
_TILE = 1_024  # columns at once, 8 a thread
_PROGRAMS = 8_192  # at least so many where there are tiles for them: a few times what a large GPU holds at once


class Columns(NamedTuple):
    """Which items the columns of the scores are; items are numbered by provider, so a provider is a range of columns.

    Attributes:
        of_item: (num_items + 1,) int32 column of each item_index; -1 where it has none.
        bias: (N,) float32 added to every row, or (0,).
        begin: (num_providers + 1,) int32 first column of each provider_index.
        end: (num_providers + 1,) int32 one past its last column.
        item_provider: (num_items + 1,) int32 provider_index of each item_index, 0 for none.
    """

    of_item: Tensor
    bias: Tensor
    begin: Tensor
    end: Tensor
    item_provider: Tensor


class SoftmaxRows(NamedTuple):
    """What softmax_gradients gives beside the gradients of the scores, which lie where the scores lay.

    Attributes:
        loss: () float32 sum over the rows of the cross entropy.
        d_target_score: (C,) float32 gradient of each row's own target score.
        d_provider: (L,) float32 gradient of a.
        d_item: (L,) float32 gradient of b.
    """

    loss: Tensor
    d_target_score: Tensor
    d_provider: Tensor
    d_item: Tensor


class _Entries(NamedTuple):
    """Each row's history entries, in the order of their columns.

    Attributes:
        places: (C, 3, L + 1) int32 begin and end of the columns of the entry's provider (of the entry's item alone,
            where it has no provider), and the column of its item, -1 for none; _NOWHERE for no entry, and for the last.
        terms: (C, 2, L + 1) float32 what those columns and that column get.
        first: (C, L + 1) int32 the first entry with the same columns.
        ages: (C, L) int64 age of each.
        has_provider: (C, L) bool.
    """

    places: Tensor
    terms: Tensor
    first: Tensor
    ages: Tensor
    has_provider: Tensor


def softmax_gradients(
    scores: Tensor,
    target_scores: Tensor,
    targets: Tensor,
    *,
    columns: Columns,
    histories: Tensor,
    weights: tuple[Tensor, Tensor],
) -> SoftmaxRows:
    """Replace plain scores by the gradient of each row's cross entropy.

    A target's own score is given apart, and its own column, if it has one, takes no part: so the same rows serve a
    softmax over all items and over a sample of them, whose `bias` makes up for what the sample leaves out.

    What lies on the device is not looked at: an item_index that the columns do not know reads elsewhere.

    Args:
        scores: (C, N) bfloat16 or float32 inner products; finite; overwritten. Rows may lie further apart than they are
            long; a distance of a multiple of 16 is read fastest.
        target_scores: (C,) float32 inner product of each row with its target.
        targets: (C,) int64 item_index.
        columns: which items the columns are.
        histories: (C, L) int64 item_index of what came before, newest first, PADDING where nothing did; L may be 0.
        weights: (L,) float32 each, a (of an entry's provider) and b (of its item) by age.

    Raises:
        ValueError: tensors do not fit each other.
    """
    _check(scores, target_scores, targets, columns=columns, histories=histories, weights=weights)
    rows, width = scores.shape
    if not rows:
        nothing = scores.new_zeros(histories.shape[1], dtype=torch.float32)
        return SoftmaxRows(target_scores.sum(), torch.zeros_like(target_scores), nothing, nothing.clone())
    a, b = weights
    has_terms = histories.shape[1] > 0
    of_target = target_scores
    if has_terms:
        provider = columns.item_provider[targets].unsqueeze(1)
        same_provider = (columns.item_provider[histories] == provider) & (provider > 0)  # (C, L)
        same_item = histories == targets.unsqueeze(1)
        of_target = target_scores + (a * same_provider + b * same_item).sum(1)
    entries = _sorted_entries(histories, a, b, columns)
    target_column = columns.of_item[targets]
    tiles = triton.cdiv(width, _TILE)
    each = triton.cdiv(tiles, min(tiles, triton.cdiv(_PROGRAMS, rows)))  # tiles of a program
    splits = triton.cdiv(tiles, each)
    part_top, part_sum = (scores.new_empty(rows, splits, dtype=torch.float32) for _ in range(2))
    alike: dict[str, Any] = {
        "ENTRIES": histories.shape[1] + 1,
        "HAS_TERMS": has_terms,
        "HAS_BIAS": len(columns.bias) > 0,
        "num_warps": 4,
    }
    # A bias that is not there is never read: any tensor stands for it.
    common = (scores, scores.stride(0), width, columns.bias if alike["HAS_BIAS"] else target_scores)
    placed = (entries.places, entries.terms, target_column)
    walk = {"TILE": _TILE, "BLOCK": triton.next_power_of_2(histories.shape[1] + 1)}
    lane = 16 // scores.element_size()  # what a thread reads in one instruction
    _sum_kernel[(rows, splits)](*common, *placed, part_top, part_sum, each, LANE=lane, **walk, **alike)
    top = torch.maximum(part_top.amax(1), of_target)  # (C,)
    own = (of_target - top).exp()
    total = (part_sum * (part_top - top.unsqueeze(1)).exp()).sum(1) + own
    share = total.reciprocal()
    d_target = own * share - 1
    d_a, d_b = torch.zeros_like(a), torch.zeros_like(b)
    if has_terms:
        d_terms = entries.terms.new_zeros(entries.terms.shape)
        _term_kernel[(rows, histories.shape[1])](
            *common, *placed, entries.first, top, share, d_terms, TILE=128, **alike
        )
        by_provider = d_terms[:, 0].gather(1, entries.first.long())[:, :-1] * entries.has_provider
        d_a = torch.zeros_like(by_provider).scatter_(1, entries.ages, by_provider)
        d_b = torch.zeros_like(by_provider).scatter_(1, entries.ages, d_terms[:, 1, :-1])
        d_a = (d_a + d_target.unsqueeze(1) * same_provider).sum(0)
        d_b = (d_b + d_target.unsqueeze(1) * same_item).sum(0)
    _probability_kernel[(rows, splits)](*common, *placed, top, share, each, **walk, **alike)
    return SoftmaxRows((total.log() + (top - of_target)).sum(), d_target, d_a, d_b)


def _check(
    scores: Tensor,
    target_scores: Tensor,
    targets: Tensor,
    *,
    columns: Columns,
    histories: Tensor,
    weights: tuple[Tensor, Tensor],
) -> None:
    """Refuse tensors that do not fit each other, by what is known without looking at the device."""
    for name, given, numbers, axes in (
        ("scores", scores, (torch.bfloat16, torch.float32), 2),
        ("target_scores", target_scores, (torch.float32,), 1),
        ("targets", targets, (torch.int64,), 1),
        ("histories", histories, (torch.int64,), 2),
        ("a", weights[0], (torch.float32,), 1),
        ("b", weights[1], (torch.float32,), 1),
        ("bias", columns.bias, (torch.float32,), 1),
        *((name, getattr(columns, name), (torch.int32,), 1) for name in ("of_item", "begin", "end", "item_provider")),
    ):
        if given.dtype not in numbers or given.dim() != axes:
            expected = " or ".join(str(number).removeprefix("torch.") for number in numbers)
            raise ValueError(
                f"{name} is {str(given.dtype).removeprefix('torch.')} with {given.dim()} axes, "
                f"expected {expected} with {axes}"
            )
    rows, width = scores.shape
    if not rows == len(target_scores) == len(targets) == len(histories):
        raise ValueError(
            f"scores have {rows} rows for {len(targets)} targets with {len(target_scores)} scores and "
            f"{len(histories)} histories"
        )
    if not histories.shape[1] == len(weights[0]) == len(weights[1]):
        raise ValueError(
            f"histories have {histories.shape[1]} ages for {len(weights[0])} weights of providers and "
            f"{len(weights[1])} of items, expected as many"
        )
    if len(columns.bias) not in (0, width):
        raise ValueError(f"bias has {len(columns.bias)} numbers for {width} columns, expected as many or none")
    if width and rows and (scores.stride(1) != 1 or scores.stride(0) < width):
        raise ValueError(f"scores have strides {scores.stride()}, expected rows of {width} that do not overlap")


def _sorted_entries(histories: Tensor, a: Tensor, b: Tensor, columns: Columns) -> _Entries:
    """Find the columns of every entry and sort each row by them, with one more at the end that is nowhere."""
    provider = columns.item_provider[histories]  # (C, L)
    column = columns.of_item[histories]
    has_provider = provider > 0
    begin = torch.where(has_provider, columns.begin[provider], column)
    end = torch.where(has_provider, columns.end[provider], column + 1)
    # No item or provider of an entry may have a column: PADDING has none, and a sample leaves most items out.
    somewhere = (begin >= 0) & (begin < end)
    begin, end = (torch.where(somewhere, place, _NOWHERE) for place in (begin, end))
    begin, ages = begin.sort(dim=1, stable=True)
    ordered = (begin, end.gather(1, ages), column.gather(1, ages))
    places = torch.stack([torch.nn.functional.pad(part, (0, 1), value=_NOWHERE) for part in ordered], 1)
    has_provider = has_provider.gather(1, ages)
    # b needs no mask: an entry without a column adds to the column -1, which no tile has.
    terms = torch.stack([torch.nn.functional.pad(part, (0, 1)) for part in (a[ages] * has_provider, b[ages])], 1)
    begins = places[:, 0].contiguous()
    return _Entries(places, terms, torch.searchsorted(begins, begins, out_int32=True), ages, has_provider)


@triton.jit
def _tile_scores(row, BIAS, columns, lo, width, TILE: tl.constexpr, HAS_BIAS: tl.constexpr):
    """Scores and bias of the columns lo .. lo + TILE - 1 of a row in float32; _LOWEST past its end."""
    # Without a mask, threads load and store 16 bytes at once.
    if lo + TILE <= width:
        x = tl.load(row + columns).to(tl.float32)
        if HAS_BIAS:
            x += tl.load(BIAS + columns)
    else:
        inside = columns < width
        x = tl.load(row + columns, mask=inside, other=0.0).to(tl.float32)
        if HAS_BIAS:
            x += tl.load(BIAS + columns, mask=inside, other=0.0)
        x = tl.where(inside, x, _LOWEST)
    return x


@triton.jit
def _add_terms(x, columns, hi, entry, places, terms, ENTRIES: tl.constexpr):
    """Add what a row's entries from `entry` on say of some columns, all below hi."""
    begin = tl.load(places + entry)
    while begin < hi:
        end, own = tl.load(places + ENTRIES + entry), tl.load(places + 2 * ENTRIES + entry)
        x += tl.where((columns >= begin) & (columns < end), tl.load(terms + entry), 0.0)
        x += tl.where(columns == own, tl.load(terms + ENTRIES + entry), 0.0)
        entry += 1
        begin = tl.load(places + entry)
    return x


@triton.jit
def _first_entry(places, lo, ENTRIES: tl.constexpr, BLOCK: tl.constexpr):
    """How many of a row's entries lie before the column lo."""
    entry = tl.arange(0, BLOCK)
    end = tl.load(places + ENTRIES + entry, mask=entry < ENTRIES, other=2147483647)
    return tl.sum((end <= lo).to(tl.int32))


# Batches and samples differ in size: one compiled kernel serves all of them.
@triton.jit(do_not_specialize=["width", "tiles"])
def _sum_kernel(
    SCORES,
    stride,
    width,
    BIAS,
    PLACES,
    TERMS,
    TARGET_COLUMN,
    PART_TOP,
    PART_SUM,
    tiles,
    TILE: tl.constexpr,
    LANE: tl.constexpr,
    BLOCK: tl.constexpr,
    ENTRIES: tl.constexpr,
    HAS_TERMS: tl.constexpr,
    HAS_BIAS: tl.constexpr,
):
    """Maximum and sum of exponentials of some tiles of a row.

    LANE columns side by side, which one thread reads at once, have a maximum and a sum of their own: threads meet at
    the end alone. A maximum of all columns would need two barriers a tile, one of each column twice the exponentials.
    """
    c, part = tl.program_id(0).to(tl.int64), tl.program_id(1)
    row, target = SCORES + c * stride, tl.load(TARGET_COLUMN + c)
    places, terms = PLACES + c * 3 * ENTRIES, TERMS + c * 2 * ENTRIES
    start = part * tiles * TILE
    entry = 0
    if HAS_TERMS:
        entry = _first_entry(places, start, ENTRIES, BLOCK)
    top = tl.full((TILE // LANE,), _LOWEST, tl.float32)
    total = tl.zeros((TILE // LANE,), tl.float32)
    for lo in range(start, min(start + tiles * TILE, width), TILE):
        columns = lo + tl.arange(0, TILE // LANE)[:, None] * LANE + tl.arange(0, LANE)[None, :]
        x = _tile_scores(row, BIAS, columns, lo, width, TILE, HAS_BIAS)
        if HAS_TERMS:
            x = _add_terms(x, columns, lo + TILE, entry, places, terms, ENTRIES)
            while tl.load(places + ENTRIES + entry) <= lo + TILE:
                entry += 1
        x = tl.where(columns == target, _LOWEST, x)
        higher = tl.maximum(top, tl.max(x, 1))
        total = total * tl.exp(top - higher) + tl.sum(tl.exp(x - higher[:, None]), 1)
        top = higher
    highest = tl.max(top)
    at = c * tl.num_programs(1) + part
    tl.store(PART_TOP + at, highest)
    tl.store(PART_SUM + at, tl.sum(total * tl.exp(top - highest)))


@triton.jit(do_not_specialize=["width"])
def _term_kernel(
    SCORES,
    stride,
    width,
    BIAS,
    PLACES,
    TERMS,
    TARGET_COLUMN,
    FIRST,
    TOP,
    SHARE,
    D_TERMS,
    TILE: tl.constexpr,
    ENTRIES: tl.constexpr,
    HAS_TERMS: tl.constexpr,
    HAS_BIAS: tl.constexpr,
):
    """Sum of the probabilities of one entry's columns, unless the entry before has the same, and its own column's."""
    c, entry = tl.program_id(0).to(tl.int64), tl.program_id(1)
    row, target = SCORES + c * stride, tl.load(TARGET_COLUMN + c)
    places, terms = PLACES + c * 3 * ENTRIES, TERMS + c * 2 * ENTRIES
    top, share = tl.load(TOP + c), tl.load(SHARE + c)
    begin, end, own = (
        tl.load(places + entry),
        tl.load(places + ENTRIES + entry),
        tl.load(places + 2 * ENTRIES + entry),
    )
    first = tl.load(FIRST + c * ENTRIES + entry)
    d_terms = D_TERMS + c * 2 * ENTRIES + entry
    if (begin < end) & (own >= 0) & (own != target):
        x = tl.load(row + own).to(tl.float32)
        if HAS_BIAS:
            x += tl.load(BIAS + own)
        x = _add_terms(x, own, end, first, places, terms, ENTRIES)
        tl.store(d_terms + ENTRIES, tl.exp(x - top) * share)
    if (begin < end) & (first == entry):
        total = tl.zeros((TILE,), tl.float32)
        for lo in range(begin, end, TILE):
            columns = lo + tl.arange(0, TILE)
            x = _tile_scores(row, BIAS, columns, lo, end, TILE, HAS_BIAS)
            x = _add_terms(x, columns, end, first, places, terms, ENTRIES)
            total += tl.where((columns < end) & (columns != target), tl.exp(x - top), 0.0)
        tl.store(d_terms, tl.sum(total) * share)


@triton.jit(do_not_specialize=["width", "tiles"])
def _probability_kernel(
    SCORES,
    stride,
    width,
    BIAS,
    PLACES,
    TERMS,
    TARGET_COLUMN,
    TOP,
    SHARE,
    tiles,
    TILE: tl.constexpr,
    BLOCK: tl.constexpr,
    ENTRIES: tl.constexpr,
    HAS_TERMS: tl.constexpr,
    HAS_BIAS: tl.constexpr,
):
    """Replace some tiles of a row by probabilities, 0 at the target's column."""
    c, part = tl.program_id(0).to(tl.int64), tl.program_id(1)
    row, target = SCORES + c * stride, tl.load(TARGET_COLUMN + c)
    places, terms = PLACES + c * 3 * ENTRIES, TERMS + c * 2 * ENTRIES
    top, share = tl.load(TOP + c), tl.load(SHARE + c)
    start = part * tiles * TILE
    entry = 0
    if HAS_TERMS:
        entry = _first_entry(places, start, ENTRIES, BLOCK)
    for lo in range(start, min(start + tiles * TILE, width), TILE):
        columns = lo + tl.arange(0, TILE)
        x = _tile_scores(row, BIAS, columns, lo, width, TILE, HAS_BIAS)
        if HAS_TERMS:
            x = _add_terms(x, columns, lo + TILE, entry, places, terms, ENTRIES)
            while tl.load(places + ENTRIES + entry) <= lo + TILE:
                entry += 1
        probability = tl.where(columns == target, 0.0, tl.exp(x - top) * share).to(SCORES.dtype.element_ty)
        if lo + TILE <= width:
            tl.store(row + columns, probability)
        else:
            tl.store(row + columns, probability, mask=columns < width)
