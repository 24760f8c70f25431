"""The scan: which items could still get into a user's list, by an inner product with a proven bound.

It only finds candidates; the exact score decides. So every way of scanning gives the same lists.

The bound. Let u be a user and v an item of a block, both as the float32 numbers that they are, and

    value = what the tile's sum stands for: with int8, (sum of q_u * q_v) * unit of u * unit of the block;
    bound = |u| * E + F * H + r * |u| * N + t

with, over the items of the block, E the largest |v - v^|, H the largest |v^|, N the largest |v|, F = |u - u^|; u^ and
v^ are unit * q, the numbers that int8 stands for (float32: u^ = u, v^ = v, H = 0). Then the exact score, the float64
sum before its last rounding, is within bound of value:
- int8: u.v - u^.v^ = u.(v - v^) + (u - u^).v^, and Cauchy-Schwarz holds each product below |u| * E and F * H. The
  integer sum is exact. t = 0, and r = 2^-30 pays for what is rounded in float64. With D <= 2^14 dims, a unit is at most
  N / 127 (of the user: |u| / 127), so E and F are below sqrt(D) / 254 < 1 times N and |u|, and |v^| <= 2 N, |u^| <=
  2 |u|. Each element of v - v^ is computed with an error of at most 2^-52 * (|v_d| + N / 254), each norm with a
  relative one of at most (D + 4) * 2^-53 < 2^-38, the scale of value with 4 * 2^-53, and the exact score's own sum
  with D * 2^-53 * |u| * |v|: with the factors above, less than 2^-33 * |u| * N altogether.
- float32: E = F = 0. A float32 sum of products, in any order and with or without fused operations, is within
  g * sum|u_d * v_d| <= g * |u| * N of the true inner product, g = n * 2^-24 / (1 - n * 2^-24) (Higham, Accuracy and
  Stability of Numerical Algorithms, section 3.1), plus an underflow for each operation: t = (D + 2) * 2^-125.
  n = D + 4 and r = 1.01 * g pay for float64 rounding as above. Where |u| * N reaches 2^126 a sum may overflow to
  +-inf or NaN: the bound is infinite, every item of the block is kept.

The floor is a score that k items reach (shortlist.py). An item gets in only if its rounded score reaches the floor, so
if its exact score reaches wanted = floor - |floor| * 2^-22 - 2^-148: four times half a float32 step, which also pays
for rounding a float32 threshold. So it is kept if value >= wanted - bound; a block is passed over for a user if
|u| * N * 1.0001 < wanted (Cauchy-Schwarz), and so are all after it, for items come by norm. A floor of +inf is taken as
the largest float32: what rounds to +inf is at least that.

With a history term p, the same for all items that a user is scanned for, the score is float32(dot + p), and an item is
kept if dot reaches wanted - p - |p| * 2^-22. The last part pays for rounding sums with p in float64, and what is left
of p in a float32 threshold: near the floor |dot| is at most |wanted| + |p| and a little.

Users that are done leave their tile, and the others close ranks: with 192 users side by side, what is scanned is what
each of them needs, not what the neediest of twelve does.

Kernels only; serial, GIL released (Numba's workqueue layer must not be entered from two threads).
"""

from __future__ import annotations

from typing import Final, NamedTuple

import numpy as np
from numba import njit

from ipsrec_kernels.array_types import Float64Array, Int32Array, Int64Array
from ipsrec_kernels.left_out import is_item_left_out, is_provider_left_out, may_hold
from ipsrec_kernels.padding import PADDING
from ipsrec_kernels.quantise import BLOCK_ITEMS
from ipsrec_kernels.scan_tile import aim, run_tile, value_of
from ipsrec_kernels.score_tile import lowest_bit
from ipsrec_kernels.shortlist import tighten

_LARGEST = float(np.finfo(np.float32).max)
_HALF_STEP = 2.0**-22
_SMALLEST = 2.0**-148
_REFRESHES: Final = 8  # times that all floors are raised on the way, besides where a list is full


class _Slots(NamedTuple):
    """The users that blocks are still scanned for, side by side in tiles.

    Attributes:
        row: (S,) int64, whose list it is.
        wanted: (S,) float64, what an exact score must reach; +inf where there is nobody.
        norms: (S,) float64; this and what follows as in ScanUsers.
        errors: (S,) float64.
        inverses: (S,) float64, 1 / unit.
        offsets: (S,) int32.
        words: (S / W, steps, W) int32.
    """

    row: Int64Array
    wanted: Float64Array
    norms: Float64Array
    errors: Float64Array
    inverses: Float64Array
    offsets: Int32Array
    words: Int32Array


@njit(cache=True, nogil=True)
def wanted_score(floor):
    """Kernel: the exact score that surely rounds to the floor or above is no less than this."""
    if floor == -np.inf:
        return -np.inf
    kept = min(np.float64(floor), _LARGEST)
    return kept - (abs(kept) * _HALF_STEP + _SMALLEST)


@njit(cache=True, nogil=True)
def _wanted_dot(floor, term):
    """What an item's inner product must reach, if a term is added to it."""
    return wanted_score(floor) - term - abs(term) * _HALF_STEP


@njit(cache=True, nogil=True, error_model="numpy")
def scan(table, users, scan_users, scratch, first, lists, rows, part, k, cap, filters, provider_counts):
    """Kernel: bring lists up to date with all items of a part of the table but those left out.

    Args:
        table: as build_item_table made it.
        users: (B, dims) float32.
        scan_users: the same, as prepare_users made them.
        scratch: likewise.
        first: the user of list 0.
        lists: a shortlist for each user from there on; may hold exact entries of items that are left out. All that is
            not exact has the list's term, as what is scanned for has.
        rows: (R,) int64, the lists to bring up to date.
        part: 0 for all items, without those of the history's providers; g + 1 for those of big_providers[g].
        k: length of the wanted lists.
        cap: items of one provider, 0 for any number.
        filters: what to leave out, with the bitmaps of these users.
        provider_counts: scratch of the shortlists.
    """
    # Names for the inner loops: reading a named tuple's array there costs two atomic reference counts each time.
    panels, item_at, provider_at, block_norms = table.panels, table.item_at, table.provider_at, table.block_norms
    block_units, block_errors, block_sizes = table.block_units, table.block_errors, table.block_sizes
    start, masks, sums = scratch.start, scratch.masks, scratch.sums
    low, high, entry, counts, floors, terms = lists
    item_bits, provider_bits = filters.item_bits, filters.provider_bits
    relative, absolute, safe = scan_users.relative, scan_users.absolute, scan_users.safe
    room, (width, panel_items) = low.shape[1], sums.shape
    groups, per_block = -(-len(rows) // width), BLOCK_ITEMS // panel_items
    begin, stop = 0 if part == 0 else table.big_blocks[part - 1], table.big_blocks[part]
    limits = np.zeros(width, np.float64)
    tidy = np.full(len(counts), k)
    refresh = max(4, (stop - begin) // _REFRESHES)
    slots = _Slots(
        np.zeros(groups * width, np.int64),
        np.full(groups * width, np.inf),
        np.zeros(groups * width),
        np.zeros(groups * width),
        np.zeros(groups * width),
        np.zeros(groups * width, np.int32),
        np.zeros((groups, scan_users.words.shape[1], width), np.int32),
    )
    for slot in range(len(rows)):
        slots.row[slot] = rows[slot]
        slots.wanted[slot] = _wanted_dot(floors[rows[slot]], terms[rows[slot]])
    _fill_slots(slots, scan_users, first, len(rows))
    row, wanted, norms, errors = slots.row, slots.wanted, slots.norms, slots.errors
    inverses, offsets, words = slots.inverses, slots.offsets, slots.words
    for block in range(begin, stop):
        norm, unit, error, size = block_norms[block], block_units[block], block_errors[block], block_sizes[block]
        inverse = 1.0 / unit
        within_reach = np.int64(0)
        for group in range(groups):
            slot = group * width
            for j in range(width):
                product = norms[slot + j] * norm
                within_reach += np.int64(product * 1.0001 >= wanted[slot + j])
                bound = norms[slot + j] * error + errors[slot + j] * size + relative * product + absolute
                bound = bound if product < safe else np.inf
                limits[j] = (wanted[slot + j] - bound) * (inverses[slot + j] * inverse)
            aim(start, limits, offsets, slot)
            for panel in range(block * per_block, (block + 1) * per_block):
                found = np.int64(run_tile(panels, panel, words, group, scratch))
                while found != 0:
                    j = lowest_bit(found)
                    found &= found - 1
                    if wanted[slot + j] == np.inf:
                        break  # nobody is in this slot, nor in those after it
                    r, u, term = row[slot + j], first + row[slot + j], terms[row[slot + j]]
                    product, scale, threshold = norms[slot + j] * norm, unit / inverses[slot + j], start[j]
                    bound = norms[slot + j] * error + errors[slot + j] * size + relative * product + absolute
                    bound = bound if product < safe else np.inf
                    mask = np.int64(masks[j]) & 0xFFFFFFFF
                    while mask != 0:
                        lane = lowest_bit(mask)
                        mask &= mask - 1
                        place = panel * panel_items + lane
                        item, provider = item_at[place], provider_at[place]
                        if item == PADDING:
                            break
                        if may_hold(item_bits, r, item) and is_item_left_out(filters, u, item):
                            continue
                        in_bits = part == 0 and may_hold(provider_bits, r, provider)
                        if in_bits and is_provider_left_out(filters, u, provider):
                            continue
                        at = counts[r]
                        value = value_of(sums[j, lane], threshold, offsets[slot + j]) * scale
                        low[r, at], high[r, at] = _interval(value + term, bound + abs(term) * _HALF_STEP)
                        entry[r, at] = -item
                        counts[r] = at + 1
                        if at + 1 == room:
                            tighten(lists, r, k, cap, table, users, u, provider_counts)
                            wanted[slot + j] = _wanted_dot(floors[r], term)
                            tidy[r] = counts[r] + k // 16
                            limits[j] = (wanted[slot + j] - bound) * (inverses[slot + j] * inverse)
                            aim(start, limits, offsets, slot)
        if (block + 1 - begin) % refresh == 0:
            for slot in range(groups * width):
                if wanted[slot] < np.inf and counts[row[slot]] > tidy[row[slot]]:
                    tighten(lists, row[slot], k, cap, table, users, first + row[slot], provider_counts)
                    wanted[slot] = _wanted_dot(floors[row[slot]], terms[row[slot]])
                    tidy[row[slot]] = max(k, counts[row[slot]] + k // 16)
        if within_reach <= (groups - 1) * width:
            remaining = _close_ranks(slots, groups * width, norm)
            _fill_slots(slots, scan_users, first, remaining)
            groups = -(-remaining // width)
            if groups == 0:
                break


@njit(cache=True, nogil=True)
def _close_ranks(slots, count, norm):
    """Move the users to the front who could still find something in blocks of this norm; gives their number.

    Who cannot never will: norms fall, and floors rise.
    """
    row, wanted, norms = slots.row, slots.wanted, slots.norms
    remaining = 0
    for slot in range(count):
        if norms[slot] * norm * 1.0001 >= wanted[slot]:
            row[remaining], wanted[remaining] = row[slot], wanted[slot]
            remaining += 1
    wanted[remaining:] = np.inf
    return remaining


@njit(cache=True, nogil=True)
def _fill_slots(slots, scan_users, first, count):
    """Copy what the first slots need of their users; the others get zeros."""
    width = slots.words.shape[2]
    for slot in range(-(-count // width) * width):
        there = slot < count
        u = first + slots.row[slot] if there else 0
        slots.norms[slot] = scan_users.norms[u] if there else 0.0
        slots.errors[slot] = scan_users.errors[u]
        slots.inverses[slot] = 1.0 / scan_users.units[u]
        slots.offsets[slot] = scan_users.offsets[u]
        for step in range(slots.words.shape[1]):
            slots.words[slot // width, step, slot % width] = scan_users.words[u, step] if there else 0


@njit(cache=True, nogil=True)
def _interval(value, bound):
    """Float32 numbers that hold every score whose exact sum is within the bound of value."""
    if bound == np.inf:
        return np.float32(-np.inf), np.float32(np.inf)
    lower, upper = value - bound, value + bound
    return (
        np.float32(lower - abs(lower) * _HALF_STEP - _SMALLEST),
        np.float32(upper + abs(upper) * _HALF_STEP + _SMALLEST),
    )
