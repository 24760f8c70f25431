"""weigh_providers() against its twin."""

import naive
import numpy as np
import pytest

from ipsrec_kernels.history_items import History, HistoryTerms
from ipsrec_kernels.weighed_providers import weigh_providers

MAX_LEN = 6


def weigh(providers, weights, num_providers):
    items, offsets = naive.ragged([[1] * len(one) for one in providers])
    history = History(items, naive.ragged(providers)[0], offsets)
    return weigh_providers(history, HistoryTerms(np.array(weights), np.zeros(MAX_LEN)), num_providers=num_providers)


@pytest.mark.parametrize(
    "providers",
    [[], [[]], [[], [3]], [[0, 0]], [[5, 1, 5, 0, 2, 5]], [[9, 3, 9], [1, 2, 3, 4, 5, 6], []]],
    ids=["no users", "no history", "one entry", "no provider", "repeated", "several"],
)
def test_terms_of_each_provider_add_up(rng, providers):
    weights = rng.standard_normal(MAX_LEN)
    found = weigh(providers, weights, 6)
    width = max((len(one) for one in providers), default=0)
    assert found.providers.shape == found.terms.shape == (len(providers), width)
    for u, history in enumerate(providers):
        want = naive.weighed_providers(history, weights, 6)
        assert found.providers[u, : len(want)].tolist() == sorted(want)
        assert not found.providers[u, len(want) :].any()
        for provider, term in zip(found.providers[u], found.terms[u], strict=True):
            exact = want.get(int(provider), 0.0)
            assert exact <= term <= np.nextafter(np.float32(exact), np.float32(np.inf))


def test_terms_are_rounded_up(rng):
    found = weigh([[1]], [np.nextafter(1.0, 2.0), *np.zeros(5)], 1)
    assert found.terms[0, 0] == np.nextafter(np.float32(1.0), np.float32(2.0))
    found = weigh([[1]], [-1.0 - 2.0**-40, *np.zeros(5)], 1)
    assert found.terms[0, 0] == -1.0
