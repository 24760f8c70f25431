"""Proposes the items that may be among each user's best, all of them looked at; nothing of users x items is written.

A row's cut is a high (scan_kernels.py): what is not proposed scores at most that much. It is chosen so that about as
many items reach it as were asked for. Large catalogs: a threshold from a sample of the items first lets a few hundred
groups pass; then the best of these are looked at item by item. Small ones: the highs of all groups fit into memory.
"""

from __future__ import annotations

import math
from typing import Final, NamedTuple

import torch
from torch import Tensor

from ipsrec_gpu.scan_kernels import group_highs, keep_groups, keep_items, keep_of_providers
from ipsrec_gpu.scan_table import (
    TILE_ITEMS,
    TILE_USERS,
    ScanTable,
    ScanUsers,
    lay_out_items,
    lay_out_users,
    power_of_two,
    table_exponent,
)
from ipsrec_kernels.proposals import UNKNOWN

LARGEST_DIM: Final = 128  # of wider ones tiles do not fit into registers and shared memory
USERS_AT_ONCE: Final = 8192
_GROUP: Final = 16
_ITEMS_PER_FETCH: Final = 64  # with fewer items for each that is fetched, every item is a group of its own
_WINDOW: Final = 16_384  # items of about equal norm that lie in random order
_DENSE_GROUPS: Final = 8192  # groups up to which all highs are written: 256 MiB for USERS_AT_ONCE
_DENSE_BYTES: Final = 1 << 28  # of highs at once
_SAMPLED: Final = 16  # one item of so many is in the sample
_SAMPLE_GROUP: Final = 64  # the threshold comes from the maxima of so many items of the sample
_CHUNK: Final = 8  # groups that one program of keep_items takes
_LOWEST: Final = torch.finfo(torch.float32).min
_MULTIPROCESSORS: Final = 132  # where the device does not say: the interpreter


class Found(NamedTuple):
    """What a search gives, on the device.

    Attributes:
        items: (B, P) int32 item_index, PADDING where there are fewer.
        outside: (B,) float32; no item that a row lacks has an exact score above it; +inf where too many came.
        touched: (B, T) int32, as in Proposals; None where no providers were given.
    """

    items: Tensor
    outside: Tensor
    touched: Tensor | None


class Search:
    """A catalog on one device; searches of several threads must not overlap.

    Args:
        embeddings: (num_items + 1, dim) float32 on the device, finite, dim up to LARGEST_DIM; not kept.
        by_norm: (M,) int64 item_index that may be proposed, largest norm first, M of 1 or more.
        item_provider: (num_items + 1,) int64 provider_index of each item, 0 for none.
        num_providers: the largest provider_index that a user's history may have, if not the largest of the items.
    """

    def __init__(
        self, embeddings: Tensor, by_norm: Tensor, item_provider: Tensor, *, num_providers: int | None = None
    ) -> None:
        self.num_items = len(by_norm)
        generator = torch.Generator().manual_seed(0)
        shuffled = torch.randperm(self.num_items, generator=generator).to(by_norm.device)
        # By norm, so that tiles of small items have small bounds, or need not be looked at. Not quite, for the best
        # items, often large ones, should not be together in few groups.
        windows = torch.argsort(shuffled // _WINDOW, stable=True)
        exponent = table_exponent(embeddings, by_norm)
        self.table = lay_out_items(embeddings, by_norm[shuffled[windows]], exponent=exponent)
        self.tile_reach = self.table.tile_norms.flip(0).cummax(0).values.flip(0)  # the largest norm from here on
        self.sample: ScanTable | None = None
        if self.num_items > _DENSE_GROUPS * _GROUP:
            sampled = by_norm[shuffled[: self.num_items // _SAMPLED]]
            sample = lay_out_items(embeddings, sampled, exponent=exponent)
            # Every threshold is a right one: this one is of plain products, or few groups would pass.
            nothing = torch.zeros_like(sample.tile_norms)
            self.sample = sample._replace(tile_norms=nothing, tile_errors=nothing)
        # The places of each provider's items, one provider behind the other; a copy is nobody's.
        of_place = torch.where(self.table.item_at > 0, item_provider[self.table.item_at.long()], 0)
        most = int(item_provider.max()) if num_providers is None else num_providers
        counts = torch.bincount(of_place, minlength=most + 1)
        counts[0] = 0
        self.provider_offsets = torch.nn.functional.pad(counts.cumsum(0), (1, 0))
        self.provider_places = torch.argsort(of_place, stable=True)[int((of_place == 0).sum()) :].int()
        device = embeddings.device
        self.programs = 2 * _MULTIPROCESSORS
        if device.type == "cuda":
            self.programs = 2 * torch.cuda.get_device_properties(device).multi_processor_count

    def name_items(self, names: Tensor) -> None:
        """From now on propose names[i], (rows of embeddings,) int32 on the device, for item i; names[0] is PADDING."""
        self.table = self.table._replace(item_at=names[self.table.item_at.long()])

    def propose(
        self,
        user_embedding: Tensor,
        *,
        fetch: int,
        weighed: tuple[Tensor, Tensor] | None = None,
        every_group: bool = False,
    ) -> Found:
        """Propose about `fetch` items for each user.

        Args:
            user_embedding: (B, dim) float32 on the device, finite; B up to USERS_AT_ONCE.
            fetch: how many, 1 or more; all where there are no more items.
            weighed: (B, W) int32 providers of each user's history, each of a row once, 0 for none; and (B, W) float32
                what is added to the scores of their items, rounded up.
            every_group: write the highs of all groups, whatever the catalog's size: slower, and never too many groups.
        """
        users = lay_out_users(user_embedding)
        group = 1 if self.num_items <= _ITEMS_PER_FETCH * fetch else _GROUP
        if self.sample is None or group == 1 or every_group:
            groups, cuts = self._best_of_all(users, fetch, group)
        else:
            groups, cuts = self._best_of_some(users, fetch, self.sample)
        count, room = len(user_embedding), self._room(fetch)
        kept = groups.new_zeros((len(users.users), room))
        counts = groups.new_zeros(len(users.users))
        groups = torch.nn.functional.pad(groups, (0, -groups.shape[1] % _CHUNK), value=-1)
        keep_items[(groups.shape[1] // _CHUNK, count)](
            *_scan_arguments(users, self.table),
            self.table.item_at,
            groups,
            cuts,
            counts,
            kept,
            groups.shape[1],
            room,
            CHUNK=_CHUNK,
            BN=TILE_ITEMS,
            G=group,
            D=users.users.shape[1],
        )
        touched = None if weighed is None else self._touched(users, cuts, *weighed, room=2 * fetch)
        outside = torch.where(counts > room, torch.inf, cuts).double() / power_of_two(users.exponents)
        outside = outside * 2.0**-self.table.exponent
        # Rounded up; below the smallest float32 that is finite there is no other, and -inf says that nothing is left.
        finite = outside.clamp(min=_LOWEST).float()
        finite = torch.nextafter(finite, torch.full_like(finite, torch.inf))
        outside = torch.where(outside == -torch.inf, -torch.inf, finite)
        return Found(kept[:count], outside[:count], touched)

    def _touched(self, users: ScanUsers, cuts: Tensor, providers: Tensor, terms: Tensor, *, room: int) -> Tensor:
        """(B, room) int32: items of these providers that could reach the cut; UNKNOWN where they are too many."""
        count, width = providers.shape
        kept = providers.new_zeros((count, room))
        if width == 0:
            return kept
        counts = providers.new_zeros(count)
        scales = power_of_two(users.exponents[:count] + self.table.exponent)
        scaled = terms.double() * scales.unsqueeze(1)
        scaled = (scaled + scaled.abs() * 2.0**-20).float()  # pays for float32, here and in the sum
        keep_of_providers[(width, count)](
            *_scan_arguments(users, self.table),
            self.table.item_at,
            providers,
            scaled,
            self.provider_offsets,
            self.provider_places,
            cuts,
            counts,
            kept,
            width,
            room,
            CHUNK=_CHUNK * _GROUP,
            BN=TILE_ITEMS,
            D=users.users.shape[1],
        )
        kept[:, 0] = torch.where(counts > room, UNKNOWN, kept[:, 0])
        return kept

    def _room(self, fetch: int) -> int:
        """P: the best items of `fetch` groups, and some more, for a group may have two that reach the cut."""
        return self.num_items if fetch >= self.num_items else fetch + max(64, fetch // 4)

    def _best_of_all(self, users: ScanUsers, wanted: int, group: int) -> tuple[Tensor, Tensor]:
        """(B, K) int32 groups and (B,) cuts, from the highs of all groups, some users at a time."""
        num_groups = self.table.num_tiles * TILE_ITEMS // group
        at_once = max(1, _DENSE_BYTES // (4 * num_groups * TILE_USERS)) * TILE_USERS
        parts = []
        for first in range(0, len(users.users), at_once):
            some = ScanUsers(*(part[first : first + at_once] for part in users))
            highs = self._highs(some, self.table, group)
            if wanted >= self.num_items:
                groups = torch.arange(num_groups, dtype=torch.int32, device=highs.device)
                parts.append((groups.expand(len(highs), -1), highs.new_full((len(highs),), -torch.inf)))
            else:
                best = torch.topk(highs, wanted, dim=1)
                parts.append((best.indices.int(), best.values[:, -1].contiguous()))
        groups, cuts = (torch.cat(part) for part in zip(*parts, strict=True))
        return groups, cuts

    def _best_of_some(self, users: ScanUsers, wanted: int, sample: ScanTable) -> tuple[Tensor, Tensor]:
        """The same from the groups above a threshold; where these are too many to keep, the cut is +inf."""
        # About `expected` groups of the sample, and 16 times as many of the catalog, lie above the expected-th largest
        # maximum of the sample, give or take their square root.
        expected = math.ceil(wanted / _SAMPLED + 3 * math.sqrt(wanted / _SAMPLED) + 3)
        maxima = self._highs(users, sample, _SAMPLE_GROUP)
        expected = min(expected, maxima.shape[1])
        thresholds = torch.topk(maxima, expected, dim=1).values[:, -1].contiguous()
        room = -(-_SAMPLED * math.ceil(expected + 6 * math.sqrt(expected)) // 128) * 128
        rows = len(users.users)
        counts = users.users.new_zeros(rows, dtype=torch.int32)
        highs = thresholds.new_full((rows, room), -torch.inf)
        groups = counts.new_full((rows, room), -1)
        keep_groups[self._grid(rows, self.table.num_tiles)](
            *_scan_arguments(users, self.table),
            thresholds,
            self._reach(users, thresholds),
            counts,
            highs,
            groups,
            room,
            **_compiled(users, _GROUP),
        )
        best = torch.topk(highs, wanted, dim=1)
        cuts = torch.maximum(best.values[:, -1], thresholds)
        return groups.gather(1, best.indices), torch.where(counts > room, torch.inf, cuts)

    def _reach(self, users: ScanUsers, thresholds: Tensor) -> Tensor:
        """(B / TILE_USERS,) int32: where |u| * |v| is below the threshold for all that follow, nobody needs to look."""
        longest = (users.norms + users.errors) * 1.0001
        needed = torch.where(thresholds > 0.0, thresholds / longest, 0.0)  # a NaN of a user of zeros compares as false
        tiles = torch.searchsorted(-self.tile_reach, -needed, right=True)
        return tiles.view(-1, TILE_USERS).amax(1).int()

    def _highs(self, users: ScanUsers, table: ScanTable, group: int) -> Tensor:
        """(B, groups) float32."""
        num_groups = table.num_tiles * TILE_ITEMS // group
        highs = users.norms.new_empty((len(users.users), num_groups))
        group_highs[self._grid(len(users.users), table.num_tiles)](
            *_scan_arguments(users, table), highs, table.num_tiles, num_groups, **_compiled(users, group)
        )
        return highs

    def _grid(self, rows: int, tiles: int) -> tuple[int, int]:
        """Blocks of users, and programs that share the tiles of each: as many as the device runs at once."""
        blocks = rows // TILE_USERS
        return blocks, max(1, min(tiles, self.programs // blocks))


def _scan_arguments(users: ScanUsers, table: ScanTable) -> tuple[Tensor, ...]:
    return users.users, users.norms, users.errors, table.items, table.tile_norms, table.tile_errors


def _compiled(users: ScanUsers, group: int) -> dict[str, int]:
    """Compile-time arguments of the scan; tiles on their way from memory are as many as shared memory holds."""
    dims = users.users.shape[1]
    stages = 3 if dims <= 64 else 2
    return {
        "BM": TILE_USERS,
        "BN": TILE_ITEMS,
        "G": group,
        "D": dims,
        "STAGES": stages,
        "num_warps": 8 if group == 1 else 4,
    }
