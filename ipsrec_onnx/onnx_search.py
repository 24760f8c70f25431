"""Exact search with ONNX Runtime alone: an ONNX graph proposes items, and says how good what it left out can be.

For a GPU where onnxruntime-gpu is installed and neither torch nor triton is. The graph (search_graph.onnx, made by
ipsrec_export/search_graph.py) multiplies each user with each item in float16, keeps the best logit of each group of 16
places and of each block of 15 groups, goes on with the best blocks, then with the best of their groups, scores the
items of these in float32, and gives the best of them. Kernels of the CPU score what is proposed exactly.

The bound. A power of two scales the items, another one each user: exact, and taken back at the end. With u and v a
scaled user and item, u^ and v^ the same in float16, l their logit as it is written down, and, over the items of v's
block, E the largest |v - v^|, H the largest |v^|:

    u.v <= l + |u| * e + t,   e = E + (2^-11 + k * (1 + 2^-11) + 2 * s) * H,   k = g + 2^-11 * (1 + g),
                              s = sqrt(D) * 2^-25,   t = (P + 2) * 2^-24 + D * 2^-100

- u.v - u^.v^ = u.(v - v^) + (u - u^).v^ <= |u| * E + |u - u^| * H by Cauchy-Schwarz. E and H are measured in float64.
  |u - u^| <= 2^-11 * |u| + s is what rounding to nearest can do at most: measuring it in the graph would rest on no
  optimizer ever taking a pair of casts for nothing, and would make bounds a tenth narrower. s <= s * |u|, for the
  largest element of u is above 1 (users of tiny numbers: see the end).
- The sum of products, before it is rounded to float16, is within g * |u^| * H of u^.v^: products of float16 are exact
  in float32, and sum|u^_d * v^_d| <= |u^| * H. g = (D + 8) * 2^-22 + P * 2^-11. A tensor core cuts addends to 24 bits
  under the largest, at most one cut for each product and one for each group of four: 1.25 * D * 2^-23, and
  Higham's D * 2^-24 holds for other orders of float32. cuBLAS may also split a product along D and add the parts in
  float16: P parts of 32 dims or more, one rounding each, 2^-11 of what is added so far, which is sum|u^_d * v^_d| at
  most.
- Rounding it to float16 costs 2^-11 of it, or 2^-25; |u^| <= (1 + 2^-11) * |u| + s, and k < 1.
- t is for what float16 has no bits for in the logit and the parts, and float32 in all else (|u| <= 4 * sqrt(D),
  |v| < 2^13).
- Nothing overflows: |u^| * H * (1 + k) < 2^16 - 2^5 (search_table.py chooses the scale so, and D <= 2^14).
- The graph's own float32: |u| comes out too small by (D + 4) * 2^-24 of it at most, and e, the product and the sum
  with l are rounded once each: a factor 1 + (D + 64) * 2^-22 on e, and 2^-22 * H more in it, for |l| < 2 * |u| * H.

The maximum of a group or block is the logit of an item in it, exactly, so b = maximum + |u| * e is a bound for all of
its items, but for t. K groups are kept (or all). What is in a group that is not kept has b no higher than that of the
last kept one: this is so inside the kept blocks, and each of the K kept blocks has a group with the block's own b (the
same maximum, the same e), so that the K-th best group is no worse than any block left out.

Of the kept groups all but the best items by float32 score r are dropped: u.v <= r + |u| * (D + 8) * 2^-23 * N +
D * 2^-100, N being the largest norm of all: Higham's bound twice, which also pays for |u|. One item more than is
proposed is asked for, and dropped here: what it reaches, none of the others exceeds.

outside is the larger of both, divided by both scales in float64 (exact), and rounded up to float32. Added to it is
sqrt(D) * 2^-126 * N / scale, for users with elements that are no normal float32: a GPU may take these for zeros, and
where all are, |u| may be below 1. What float64 rounds on the way is far below the factors of two above; so is the
exact score's own error, which the proof in ipsrec_kernels/scan.py names.
"""

from __future__ import annotations

import os
import platform
import threading
from pathlib import Path
from typing import Final

import numpy as np
import onnxruntime

from ipsrec_kernels.array_types import BoolArray, Float32Array, Float64Array, Int32Array
from ipsrec_kernels.check import check_array, check_at_least
from ipsrec_kernels.padding import PADDING
from ipsrec_kernels.proposals import Proposals
from ipsrec_onnx.errors import ExecutionProviderError
from ipsrec_onnx.search_table import BLOCK, GROUP, SearchTable, build_search_table
from ipsrec_onnx.session import Device, open_session, place_on_device, run_on_device

GRAPH: Final = Path(__file__).with_name("search_graph.onnx")

_ON_DEVICE: Final = ("scan_items", "exact_items", "item_at", "block_errors")
_MOST_USERS: Final = 1024  # of a run: more were no faster where that was measured
_MOST_LOGITS: Final = (1 << 31) - 1  # of a run: kernels count in int32
_MOST_CANDIDATES: Final = 1 << 29  # numbers of items gathered in a run: 2 GiB
_FEWEST_USERS: Final = 16  # fewer are filled up to a power of two, so that shapes are few
_KEPT_STEP: Final = 32
_GEMM_OPTIONS: Final = "ORT_CUDA_GEMM_OPTIONS"


class OnnxSearch:
    """Proposes items for user embeddings; threads share one, and take turns on its device."""

    def __init__(
        self, item_embeddings: Float32Array, allowed: BoolArray | None, *, device: Device, card: int = 0
    ) -> None:
        """Lay out the items and copy them to the device.

        Args:
            item_embeddings: (num_items + 1, dim) float32; row 0 belongs to PADDING and is not read.
            allowed: (num_items + 1,) bool, items that may be proposed; None allows all. PADDING never is.
            device: "cuda"; or "cpu", for tests: the same law holds, but kernels of our own are faster there.
            card: which GPU, by CUDA's number.

        Raises:
            ValueError: as build_search_table().
            ExecutionProviderError: the device's execution provider is not there, did not start, or sums in float16.
            MemoryError: the device has no room for the items.
        """
        _check_sums(device)
        table = build_search_table(item_embeddings, allowed=allowed)
        self._device: Device = device
        self._card = card
        self._session = open_session(GRAPH, device=device, card=card)
        self._placed = {
            name: place_on_device(array, device=device, card=card)
            for name, array in table._asdict().items()
            if name in _ON_DEVICE and table.num_items
        }
        # The items themselves are on the device now.
        self._table = table._replace(scan_items=table.scan_items[:0].copy(), exact_items=table.exact_items[:0].copy())
        self._lock = threading.Lock()

    def propose(self, user_embedding: Float32Array, *, fetch: int) -> Proposals:
        """Find the items that are best for each user, by scores in float32.

        Args:
            user_embedding: (B, dim) float32, finite.
            fetch: items to propose, 1 or more. A list of k is certain only if fetch is above k; how much above is a
                question of speed: uncertain users have to be searched again.

        Returns:
            (B) items (B, fetch), best first, and bounds.

        Raises:
            ValueError: a wrong dtype or shape, NaN or infinity.
            MemoryError: memory ran out, that of the device or the machine's.
            DefectError: the graph fails.
        """
        users = check_array("user_embedding", user_embedding, dtype=np.float32, ndim=2)
        if not np.isfinite(users).all():
            row = int((~np.isfinite(users)).any(axis=1).argmax())
            raise ValueError(f"user_embedding[{row}] has NaN or infinity, expected finite numbers")
        if len(users) == 0:  # no bytes to place
            return Proposals(np.zeros((0, check_at_least("fetch", fetch, low=1)), np.int32), np.zeros(0, np.float32))
        return self.propose_on_device(place_on_device(users, device=self._device, card=self._card), fetch=fetch)

    def propose_on_device(self, users: onnxruntime.OrtValue, *, fetch: int) -> Proposals:
        """Do the same for users that lie on the device, where an encoder left them.

        Args:
            users: (B, dim) float32. One with NaN or infinity gets no items, and +inf for `outside`.
            fetch: as for propose().

        Returns and raises what propose() does.
        """
        check_at_least("fetch", fetch, low=1)
        shape, dtype, table = users.shape(), users.data_type(), self._table
        if dtype != "tensor(float)" or len(shape) != 2 or shape[1] != table.dim:
            raise ValueError(f"user_embedding is {dtype} of shape {shape}, expected float32 of (B, {table.dim})")
        num_users = shape[0]
        items = np.full((num_users, fetch), PADDING, np.int32)
        outside = np.full(num_users, -np.inf, np.float32)
        if fetch >= table.num_items:  # all there is; its order does not matter
            items[:, : table.num_items] = table.item_at.reshape(-1)[: table.num_items]
            return Proposals(items, outside)
        at_once = _users_at_once(table, num_users, fetch)
        for first in range(0, num_users, at_once):
            some = slice(first, min(first + at_once, num_users))
            items[some], outside[some] = self._run(users, some, at_once=at_once, fetch=fetch)
        return Proposals(items, outside)

    def _run(
        self, users: onnxruntime.OrtValue, some: slice, *, at_once: int, fetch: int
    ) -> tuple[Int32Array, Float32Array]:
        """Search for the users of a slice, filled up with zeros to `at_once`."""
        table, count = self._table, some.stop - some.start
        blocks, dims = table.block_errors.shape[1], table.scan_items.shape[1]
        groups = blocks * BLOCK // GROUP
        kept_blocks = min(_kept_groups(fetch), blocks)
        kept_groups = min(_kept_groups(fetch), kept_blocks * BLOCK // GROUP)
        sizes = {
            "first": [some.start],
            "stop": [some.stop],
            "pads": [0, 0, at_once - count, dims - table.dim],
            "row_shape": [0, -1, dims],
            "kept_blocks": [kept_blocks],
            "kept_groups": [kept_groups],
            "kept_items": [fetch + 1],
        }
        feed = {"users": users, **self._placed, **{name: np.array(size, np.int64) for name, size in sizes.items()}}
        with self._lock:
            found, facts = run_on_device(self._session, ["items", "facts"], feed)
        outside = _outside(table, facts[:count].astype(np.float64), all_groups=kept_groups == groups)
        items = found[:count, :fetch]
        # A user with NaN or infinity: nothing can be said, not even that no item is there twice.
        return np.where(np.isposinf(outside)[:, None] & ~np.isfinite(facts[:count, 2:3]), PADDING, items), outside


def _outside(table: SearchTable, facts: Float64Array, *, all_groups: bool) -> Float32Array:
    """The bound of what was left out, from what the graph says of each user."""
    last_group, last_item, norm, user_scale = facts.T
    by_logit = -np.inf if all_groups else last_group + table.logit_absolute
    scaled = np.maximum(by_logit, last_item + norm * table.score_error + table.score_absolute)
    bound = scaled / (user_scale * table.scale) + table.flushed
    return np.where(np.isnan(bound) | ~np.isfinite(norm), np.float32(np.inf), _rounded_up(bound))


def _rounded_up(numbers: Float64Array) -> Float32Array:
    """The smallest float32 numbers that are no less; above the largest finite one that is infinity."""
    with np.errstate(over="ignore"):
        rounded = numbers.astype(np.float32)
    return np.where(rounded < numbers, np.nextafter(rounded, np.float32(np.inf)), rounded)


def _kept_groups(fetch: int) -> int:
    """Groups to go on with: some more than items, for the groups' bounds are wider than the items'."""
    return -(-(fetch + fetch // 8) // _KEPT_STEP) * _KEPT_STEP


def _users_at_once(table: SearchTable, num_users: int, fetch: int) -> int:
    """Users of a run: a power of two, as many as there are or as the device takes; 1 or more."""
    places, dims = table.block_errors.shape[1] * BLOCK, table.scan_items.shape[1]
    most = min(_MOST_USERS, _MOST_LOGITS // places, _MOST_CANDIDATES // (_kept_groups(fetch) * GROUP * dims))
    there = 1 << max(num_users - 1, _FEWEST_USERS - 1).bit_length()
    return int(min(there, 1 << (max(most, 1).bit_length() - 1)))


def _check_sums(device: Device) -> None:
    """Refuse what adds products of float16 in float16: the bounds do not hold there.

    Raises:
        ExecutionProviderError: the device does.
    """
    if device == "cpu" and platform.machine().lower() not in ("x86_64", "amd64"):
        raise ExecutionProviderError(
            f"a search by an ONNX graph on a {platform.machine()} CPU: ONNX Runtime may add float16 in float16 there; "
            "expected x86-64 or --device cuda"
        )
    options = os.environ.get(_GEMM_OPTIONS, "0")
    if device == "cuda" and options.strip() not in ("0", "2", "4", "6", ""):
        raise ExecutionProviderError(
            f"{_GEMM_OPTIONS} is {options!r}: ONNX Runtime may add float16 in float16 then; unset it"
        )
