from __future__ import annotations

import numpy as np
import pytest
import torch
from training_data import ITEMS, catalog_providers

from ipsrec_train.sampling import NegativeSampler, inclusion_probabilities


@pytest.mark.parametrize("count", [1, 2, 17, 199, 200])
@pytest.mark.parametrize("kind", ["skewed", "equal", "one heavy"])
def test_probabilities_are_proportional_below_one_and_sum_to_the_count(rng, count, kind):
    weights = {
        "skewed": rng.pareto(0.7, 200) + 0.01,
        "equal": np.ones(200),
        "one heavy": np.append(np.ones(199), 1e9),
    }[kind]
    found = inclusion_probabilities(weights, count)
    assert found.sum() == pytest.approx(count, rel=1e-6)
    assert (found > 0).all()
    assert (found <= 1).all()
    below = found < 1
    ratios = found[below] / weights[below]
    assert np.allclose(ratios, ratios[:1])
    if below.any():  # whoever is certain would be above 1 at the others' rate
        assert (weights[~below] * ratios[0] >= 1 - 1e-9).all()


def test_the_weighted_sum_of_a_sample_is_the_sum_over_all_items_on_average(rng):
    popularity = np.concatenate([[0], rng.integers(0, 50, ITEMS)])
    sampler = NegativeSampler(popularity, 20)
    values = rng.uniform(0, 1, ITEMS)
    provider = torch.from_numpy(catalog_providers())
    sums, sizes = [], []
    for seed in range(3_000):
        columns = sampler.draw(np.random.default_rng(seed), provider)
        sums.append(float((np.exp(columns.bias.numpy()) * values[columns.items.numpy() - 1]).sum()))
        sizes.append(len(columns.items))
    error = np.std(sums) / np.sqrt(len(sums))
    assert abs(np.mean(sums) - values.sum()) < 4 * error
    assert np.mean(sizes) == pytest.approx(20, rel=0.03)


def test_as_many_negatives_as_items_is_every_item_without_bias():
    sampler = NegativeSampler(np.arange(ITEMS + 1), 10 * ITEMS)
    columns = sampler.draw(np.random.default_rng(0), torch.from_numpy(catalog_providers()))
    assert columns.all_items
    assert abs(columns.bias).max() < 1e-6


def test_columns_of_a_sample_know_their_items_and_the_ranges_of_providers(rng):
    provider = catalog_providers(without=5)
    columns = NegativeSampler(np.ones(ITEMS + 1, np.int64), 15).draw(rng, torch.from_numpy(provider))
    items = columns.items.tolist()
    assert items == sorted(set(items))
    assert 0 not in items
    for item in range(ITEMS + 1):
        assert columns.of_item[item] == (items.index(item) if item in items else -1)
    for p in range(int(provider.max()) + 1):
        inside = items[int(columns.begin[p]) : int(columns.end[p])]
        assert inside == [item for item in items if provider[item] == p]


def test_a_draw_is_never_empty():
    sampler = NegativeSampler(np.zeros(ITEMS + 1, np.int64), 1)
    provider = torch.from_numpy(catalog_providers())
    assert min(len(sampler.draw(np.random.default_rng(seed), provider).items) for seed in range(50)) == 1
