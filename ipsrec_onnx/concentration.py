"""How unequally something is shared out: the Lorenz curve and the Gini coefficient."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt


def gini(shares: npt.NDArray[np.int64]) -> float | None:
    """Half the mean difference of two shares over their mean: 0 is all equal, near 1 is one has everything.

    Args:
        shares: (n,) what each has, 0 or more.

    Returns:
        None where nobody has anything.
    """
    total = float(shares.sum())
    if not total:
        return None
    ranked = np.sort(shares).astype(np.float64)
    n = len(ranked)
    return float(((2 * np.arange(1, n + 1) - n - 1) * ranked).sum() / (n * total))


def lorenz(shares: npt.NDArray[np.int64], *, most: int) -> tuple[list[float], list[float]]:
    """The share of everything that the poorest have together.

    Args:
        shares: (n,) what each has, 0 or more.
        most: points of the curve beside (0, 0), half of them spread over either axis; all where n is not more.

    Returns:
        x: shares of the n, poorest first, from 0 to 1.
        y: what they have together, from 0 to 1; both empty where nobody has anything.
    """
    total = float(shares.sum())
    if not total:
        return [], []
    n = len(shares)
    held = np.concatenate([[0.0], np.cumsum(np.sort(shares).astype(np.float64))]) / total
    held[-1] = 1.0
    at = np.arange(n + 1)
    if n > most:
        even = np.linspace(0, 1, most // 2)
        at = np.unique(np.concatenate([np.rint(even * n).astype(np.int64), np.searchsorted(held, even), [n]]))
    return (at / n).tolist(), held[at].tolist()
