"""What each user's history adds to the items of each of its providers, for a search that is not in here.

Kernels are serial and release the GIL: parallelism comes from worker threads that each own a chunk (Numba's workqueue
layer must not be entered from two threads).
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numba import njit

from ipsrec_kernels.array_types import Float32Array, Int32Array
from ipsrec_kernels.history_items import History, HistoryTerms, check_terms, provider_term


class WeighedProviders(NamedTuple):
    """The providers of each user's history.

    Attributes:
        providers: (B, W) int32, each once, ascending; 0 fills up.
        terms: (B, W) float32, what is added to the score of their items, rounded up; 0 fills up.
    """

    providers: Int32Array
    terms: Float32Array


def weigh_providers(history: History, terms: HistoryTerms, *, num_providers: int) -> WeighedProviders:
    """Add up the terms of each provider.

    Args:
        history: (B) the last max_len entries of each user.
        terms: of the model.
        num_providers: a provider_index above it is as good as none.

    Returns:
        W is the longest history.

    Raises:
        ValueError: history or terms are not as retrieve() asks.
    """
    num_users = len(history.offsets) - 1
    checked = check_terms(history, terms, num_users=num_users)
    width = int(np.diff(checked.offsets).max(initial=0))
    found = WeighedProviders(np.zeros((num_users, width), np.int32), np.zeros((num_users, width), np.float32))
    _weigh(checked, num_providers, found.providers, found.terms)
    return found


@njit(cache=True, nogil=True)
def _weigh(terms, num_providers, providers, totals):
    own = terms.sorted_providers
    for u in range(len(providers)):
        before, count = 0, 0  # provider 0 is "no provider"
        for at in range(own.offsets[u], own.offsets[u + 1]):
            provider = own.values[at]
            if provider == before or provider > num_providers:
                continue
            before = provider
            total = provider_term(terms, u, provider)
            rounded = np.float32(total)
            if np.float64(rounded) < total:
                rounded = np.nextafter(rounded, np.float32(np.inf))
            providers[u, count], totals[u, count] = provider, rounded
            count += 1
