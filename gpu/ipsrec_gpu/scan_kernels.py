"""The scan on a GPU: which items could still be among a user's best, by fp16 products with a proven bound.

A `high` is an upper bound of an exact score: what was scanned, and the bound of scan_table.py added to it. An item, or
a group of items, is left behind only where its high is below a number that the caller knows: what was left behind is
known to score at most that much.

Groups are strided inside a tile: group j of tile t holds the places t * BN + g * (BN / G) + j, so that the maximum of a
group stays inside the accumulator registers of a thread. Kernels have no masks: tables are whole tiles, and users whole
blocks. Compile-time arguments are in capitals: BM users and BN places of a tile, G places of a group, D dims.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def _tile_highs(u, items, tile, user_norm, user_error, tile_norms, tile_errors, BM: tl.constexpr, BN: tl.constexpr,
                G: tl.constexpr, D: tl.constexpr):  # fmt: skip
    """(BM, BN / G) float32: the high of each group of one tile."""
    place, k = tl.arange(0, BN), tl.arange(0, D)
    at = items + tile * tl.full([], BN * D, tl.int64)
    v = tl.load(at + place[None, :] * D + k[:, None])  # (D, BN)
    scanned = tl.dot(u, v)  # (BM, BN), fp32 sums
    if G > 1:
        scanned = tl.max(tl.reshape(scanned, (BM, G, BN // G)), axis=1)
    bound = user_norm * tl.load(tile_errors + tile) + user_error * tl.load(tile_norms + tile)
    return scanned + bound[:, None]


@triton.jit
def group_highs(users, user_norms, user_errors, items, tile_norms, tile_errors, highs, num_tiles, num_groups,
                BM: tl.constexpr, BN: tl.constexpr, G: tl.constexpr, D: tl.constexpr,
                STAGES: tl.constexpr):  # fmt: skip
    """Write the high of every group.

    Grid: (B / BM, S); program s of a block takes the tiles s, s + S, s + 2 S, ...

    Args:
        users: (B, D) fp16.
        user_norms: (B,) float32, as scan_table.py has it; so too what follows.
        user_errors: (B,) float32.
        items: (num_tiles * BN, D) fp16.
        tile_norms: (num_tiles,) float32.
        tile_errors: (num_tiles,) float32.
        highs: (B, num_groups) float32 out.
        num_tiles: of items.
        num_groups: num_tiles * BN / G.
    """
    J: tl.constexpr = BN // G
    row, k = tl.program_id(0) * BM + tl.arange(0, BM), tl.arange(0, D)
    u = tl.load(users + row[:, None] * D + k[None, :])
    user_norm, user_error = tl.load(user_norms + row), tl.load(user_errors + row)
    out = highs + row.to(tl.int64)[:, None] * num_groups + tl.arange(0, J)[None, :]
    for tile in tl.range(tl.program_id(1), num_tiles, tl.num_programs(1), num_stages=STAGES):
        high = _tile_highs(u, items, tile, user_norm, user_error, tile_norms, tile_errors, BM, BN, G, D)
        tl.store(out + tile * J, high)


@triton.jit
def keep_groups(users, user_norms, user_errors, items, tile_norms, tile_errors, thresholds, reach, counts, kept_highs,
                kept_groups, room, BM: tl.constexpr, BN: tl.constexpr, G: tl.constexpr, D: tl.constexpr,
                STAGES: tl.constexpr):  # fmt: skip
    """List the groups whose high is above the user's threshold; their order is that of chance.

    Grid: as group_highs.

    Args:
        users: this and what follows as for group_highs.
        user_norms: (B,) float32.
        user_errors: (B,) float32.
        items: (tiles * BN, D) fp16.
        tile_norms: (tiles,) float32.
        tile_errors: (tiles,) float32.
        thresholds: (B,) float32.
        reach: (B / BM,) int32, tiles to look at for each block of users; those behind hold nothing above a threshold.
        counts: (B,) int32, zeros; out: groups above the threshold, more than room where some found no place.
        kept_highs: (B, room) float32 out.
        kept_groups: (B, room) int32 out.
        room: groups that are kept at most.
    """
    J: tl.constexpr = BN // G
    row, k = tl.program_id(0) * BM + tl.arange(0, BM), tl.arange(0, D)
    u = tl.load(users + row[:, None] * D + k[None, :])
    user_norm, user_error = tl.load(user_norms + row), tl.load(user_errors + row)
    threshold = tl.load(thresholds + row)
    zeros = tl.zeros((BM, J), tl.int32)
    count_at, room_at = counts + row[:, None] + zeros, row.to(tl.int64)[:, None] * room
    for tile in tl.range(tl.program_id(1), tl.load(reach + tl.program_id(0)), tl.num_programs(1), num_stages=STAGES):
        high = _tile_highs(u, items, tile, user_norm, user_error, tile_norms, tile_errors, BM, BN, G, D)
        above = high > threshold[:, None]
        place = tl.atomic_add(count_at, zeros + 1, mask=above, sem="relaxed")
        fits = above & (place < room)
        tl.store(kept_highs + room_at + place, high, mask=fits)
        tl.store(kept_groups + room_at + place, zeros + tile * J + tl.arange(0, J)[None, :], mask=fits)


@triton.jit
def keep_items(users, user_norms, user_errors, items, tile_norms, tile_errors, item_at, groups, cuts, counts, kept,
               num_groups, room, CHUNK: tl.constexpr, BN: tl.constexpr, G: tl.constexpr, D: tl.constexpr):  # fmt: skip
    """List the items of some groups whose own high reaches the user's cut; their order is that of chance.

    Grid: (num_groups / CHUNK, B); the first may be the larger one.

    Args:
        users: this and what follows as for group_highs.
        user_norms: (B,) float32.
        user_errors: (B,) float32.
        items: (tiles * BN, D) fp16.
        tile_norms: (tiles,) float32.
        tile_errors: (tiles,) float32.
        item_at: (tiles * BN,) int32 item_index of each place; PADDING is never kept.
        groups: (B, num_groups) int32; -1 for none.
        cuts: (B,) float32.
        counts: (B,) int32, zeros; out: items that reach the cut, more than room where some found no place.
        kept: (B, room) int32 item_index out.
        num_groups: of a row of groups, a multiple of CHUNK.
        room: items that are kept at most.
    """
    J: tl.constexpr = BN // G
    row, k = tl.program_id(1), tl.arange(0, D)
    at = row.to(tl.int64) * num_groups + tl.program_id(0) * CHUNK + tl.arange(0, CHUNK)
    group = tl.load(groups + at)  # (CHUNK,)
    there = group >= 0
    tile = tl.where(there, group // J, 0)
    user_norm, user_error = tl.load(user_norms + row), tl.load(user_errors + row)
    bound = user_norm * tl.load(tile_errors + tile) + user_error * tl.load(tile_norms + tile)
    first = tile.to(tl.int64) * BN + tl.where(there, group % J, 0)
    place = tl.reshape(first[:, None] + (tl.arange(0, G) * J)[None, :], (CHUNK * G,))
    u = tl.load(users + row * D + k).to(tl.float32)
    v = tl.load(items + place[:, None] * D + k[None, :]).to(tl.float32)  # (CHUNK * G, D)
    wide = tl.zeros((CHUNK, G), tl.float32)
    high = tl.sum(v * u[None, :], axis=1) + tl.reshape(bound[:, None] + wide, (CHUNK * G,))
    item = tl.load(item_at + place)
    own = tl.reshape(there[:, None] & (wide == 0.0), (CHUNK * G,))
    keep = own & (item != 0) & (high >= tl.load(cuts + row))
    keep = keep.to(tl.int32)
    start = tl.atomic_add(counts + row, tl.sum(keep, axis=0), sem="relaxed")
    free = start + tl.cumsum(keep, axis=0) - keep
    tl.store(kept + row.to(tl.int64) * room + free, item, mask=(keep == 1) & (free < room))


@triton.jit
def keep_of_providers(users, user_norms, user_errors, items, tile_norms, tile_errors, item_at, providers, terms,
                      offsets, places, cuts, counts, kept, width, room, CHUNK: tl.constexpr, BN: tl.constexpr,
                      D: tl.constexpr):  # fmt: skip
    """List the items of some providers whose high, with the provider's term, reaches the user's cut, in any order.

    Grid: (width, B).

    Args:
        users: this and what follows as for group_highs.
        user_norms: (B,) float32.
        user_errors: (B,) float32.
        items: (tiles * BN, D) fp16.
        tile_norms: (tiles,) float32.
        tile_errors: (tiles,) float32.
        item_at: (tiles * BN,) int32 item_index of each place.
        providers: (B, width) int32, each of a row once; 0 fills up.
        terms: (B, width) float32, what is added to the scores of their items, rounded up.
        offsets: (largest provider + 2,) int64 into places; provider 0 has none.
        places: of the items of each provider, one provider behind the other, int32.
        cuts: (B,) float32.
        counts: (B,) int32, zeros; out: items that reach the cut, more than room where some found no place.
        kept: (B, room) int32 item_index out.
        width: of a row of providers.
        room: items that are kept at most.
    """
    row, k = tl.program_id(1), tl.arange(0, D)
    at = row.to(tl.int64) * width + tl.program_id(0)
    provider, term = tl.load(providers + at), tl.load(terms + at)
    user_norm, user_error, cut = tl.load(user_norms + row), tl.load(user_errors + row), tl.load(cuts + row)
    u = tl.load(users + row * D + k).to(tl.float32)
    stop = tl.load(offsets + provider + 1)
    for first in range(tl.load(offsets + provider), stop, CHUNK):
        entry = first + tl.arange(0, CHUNK)
        there = entry < stop
        place = tl.load(places + entry, mask=there, other=0)
        tile = place // BN
        v = tl.load(items + place.to(tl.int64)[:, None] * D + k[None, :]).to(tl.float32)  # (CHUNK, D)
        bound = user_norm * tl.load(tile_errors + tile) + user_error * tl.load(tile_norms + tile)
        high = tl.sum(v * u[None, :], axis=1) + bound + term
        keep = (there & (high >= cut)).to(tl.int32)
        start = tl.atomic_add(counts + row, tl.sum(keep, axis=0), sem="relaxed")
        free = start + tl.cumsum(keep, axis=0) - keep
        item = tl.load(item_at + place)
        tl.store(kept + row.to(tl.int64) * room + free, item, mask=(keep == 1) & (free < room))
