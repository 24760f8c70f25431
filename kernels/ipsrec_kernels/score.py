"""The score of one user and one item, in float64, rounded once to float32.

score = float32(dot + P + I), as retrieve() documents it. Kernels only; serial, GIL released (Numba's workqueue layer
must not be entered from two threads).
"""

from __future__ import annotations

import numpy as np
from numba import njit


@njit(cache=True, nogil=True)
def dot64(users, u, items, i):
    """Inner product of two float32 rows in float64, in one fixed order.

    Lane j of 8 sums dims j, j + 8, ... from 0; then the lanes are added in order. The product of two float32 is exact
    in float64, so that the order of the additions alone decides the result, fused or not. The number of dims must be a
    multiple of 8 (pad_dims).
    """
    s0 = s1 = s2 = s3 = s4 = s5 = s6 = s7 = 0.0
    for d in range(0, users.shape[1], 8):
        s0 += np.float64(users[u, d]) * np.float64(items[i, d])
        s1 += np.float64(users[u, d + 1]) * np.float64(items[i, d + 1])
        s2 += np.float64(users[u, d + 2]) * np.float64(items[i, d + 2])
        s3 += np.float64(users[u, d + 3]) * np.float64(items[i, d + 3])
        s4 += np.float64(users[u, d + 4]) * np.float64(items[i, d + 4])
        s5 += np.float64(users[u, d + 5]) * np.float64(items[i, d + 5])
        s6 += np.float64(users[u, d + 6]) * np.float64(items[i, d + 6])
        s7 += np.float64(users[u, d + 7]) * np.float64(items[i, d + 7])
    return ((((((s0 + s1) + s2) + s3) + s4) + s5) + s6) + s7


@njit(cache=True, nogil=True)
def age_sum(entries, start, stop, weights, wanted):
    """Sum weights[age] over the entries start..stop - 1 that equal `wanted`, oldest to newest; age 0 is the newest."""
    total = 0.0
    for at in range(start, stop):
        if entries[at] == wanted:
            total += weights[stop - 1 - at]
    return total


@njit(cache=True, nogil=True)
def rounded(dot, provider_term, item_term):
    """The score: one rounding to float32; beyond its range +-inf."""
    return np.float32((dot + provider_term) + item_term)
