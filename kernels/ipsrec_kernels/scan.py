"""The float32 scan: which items of a block could still get into a user's list.

It only finds candidates; the exact score decides. So its order of additions is free, and LLVM may fuse and vectorise.
Kernels only; serial, GIL released (Numba's workqueue layer must not be entered from two threads).
"""

from __future__ import annotations

from typing import Final

import numpy as np
from numba import njit

from ipsrec_kernels.item_table import BLOCK_ITEMS

SCAN_USERS: Final = 4  # users that one pass over a block serves
_UNIT_ROUNDOFF = 2.0**-24  # of float32
_TINY = 2.0**-125  # twice the smallest normal float32: more than one product or sum loses by underflow
_SAFE = 2.0**126  # below it, no partial sum of float32 products overflows
_LARGEST = float(np.finfo(np.float32).max)


@njit(cache=True, nogil=True)
def scan_threshold(worst, norms, dims):
    """The float32 sum that an item needs to be able to beat a kept score; +inf if no item of the block can.

    With n = dims + 4, g = n * 2^-24 / (1 - n * 2^-24) and `norms` = |user| * largest |item| of the block:
    - a float32 sum of products, in any order and with or without fused operations, is within g * sum|u_d * i_d|
      <= g * norms of the true inner product (Higham, Accuracy and Stability of Numerical Algorithms, section 3.1),
      plus an underflow for each operation; 4 more than dims and the factor 1.01 also pay for the float64 rounding of
      the exact sum and of the norms;
    - the exact sum may be half a float32 step below `worst` and still round to it; |worst| * 2^-22 is four times that
      and pays for rounding the threshold itself.
    Where norms reach 2^126 a float32 sum may overflow to +-inf or NaN: the threshold is -inf, every item of the block
    is scored exactly.

    Args:
        worst: float32 score of the worst item kept; +-inf if it overflowed.
        norms: product of the norms, float64.
        dims: number of products.
    """
    if norms >= _SAFE or worst == -np.inf:
        return np.float32(-np.inf)
    kept = min(np.float64(worst), _LARGEST)  # what rounds to +inf is at least the largest float32
    g = (dims + 4) * _UNIT_ROUNDOFF
    g = g / (1.0 - g)
    needed = kept - (1.01 * g * norms + abs(kept) * 2.0**-22 + (dims + 2) * _TINY)
    if norms * 1.0001 < needed:  # Cauchy-Schwarz: no inner product exceeds the product of the norms
        return np.float32(np.inf)
    return np.float32(needed)


@njit(cache=True, nogil=True, fastmath={"contract"})
def scan_block(users, u, blocks, block, sums):
    """Fill sums (SCAN_USERS, BLOCK_ITEMS) float32 with the inner products of users u..u + 3 and a block of items.

    Four users share each load of the items, four dims each load and store of the sums; the inner loop runs over items
    and holds nothing but multiply-adds, so that LLVM vectorises it. On an AVX-512 core 4 x 4 reached 0.7 of sgemm's
    peak; one user x 8 dims, the next thought, 0.36 (L1 and L2 loads decide), 8 users x 4 dims spills on AVX2.
    """
    for r in range(SCAN_USERS):
        for j in range(BLOCK_ITEMS):
            sums[r, j] = np.float32(0.0)
    for d in range(0, users.shape[1], 4):
        a0, a1, a2, a3 = users[u, d], users[u, d + 1], users[u, d + 2], users[u, d + 3]
        b0, b1, b2, b3 = users[u + 1, d], users[u + 1, d + 1], users[u + 1, d + 2], users[u + 1, d + 3]
        c0, c1, c2, c3 = users[u + 2, d], users[u + 2, d + 1], users[u + 2, d + 2], users[u + 2, d + 3]
        e0, e1, e2, e3 = users[u + 3, d], users[u + 3, d + 1], users[u + 3, d + 2], users[u + 3, d + 3]
        for j in range(BLOCK_ITEMS):
            i0, i1 = blocks[block, d, j], blocks[block, d + 1, j]
            i2, i3 = blocks[block, d + 2, j], blocks[block, d + 3, j]
            sums[0, j] = sums[0, j] + a0 * i0 + a1 * i1 + a2 * i2 + a3 * i3
            sums[1, j] = sums[1, j] + b0 * i0 + b1 * i1 + b2 * i2 + b3 * i3
            sums[2, j] = sums[2, j] + c0 * i0 + c1 * i1 + c2 * i2 + c3 * i3
            sums[3, j] = sums[3, j] + e0 * i0 + e1 * i1 + e2 * i2 + e3 * i3


@njit(cache=True, nogil=True)
def find_survivors(sums, r, threshold, u, survivors, found):
    """Append (u, j) to survivors for each sum j of row r that is not below the threshold (NaN is not below).

    Most blocks have none: all are counted first (an integer reduction vectorises; a maximum of floats does not), and
    looked at one by one only in the sixteens that have some. survivors is (enough, 2) int32, filled up to `found`; how
    far it is filled now is returned.
    """
    if _count(sums, r, threshold, 0, BLOCK_ITEMS) == 0:
        return found
    for start in range(0, BLOCK_ITEMS, 16):
        if _count(sums, r, threshold, start, 16) > 0:
            for j in range(start, start + 16):
                if not (sums[r, j] < threshold):
                    survivors[found, 0] = u
                    survivors[found, 1] = j
                    found += 1
    return found


@njit(cache=True, nogil=True)
def _count(sums, r, threshold, start, size):
    count = np.int32(0)
    for j in range(start, start + size):
        count += np.int32(not (sums[r, j] < threshold))
    return count
