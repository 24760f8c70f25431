from __future__ import annotations

import dataclasses
import itertools
from collections import Counter

import numpy as np
import pytest
from training_data import make_dataset

from ipsrec_experiment.counting import counting_ranks
from ipsrec_experiment.user_groups import user_groups
from ipsrec_onnx.dataset import open_dataset
from ipsrec_train.batches import load_histories


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    return open_dataset(make_dataset(tmp_path_factory.mktemp("data"), np.random.default_rng(3)))


def histories_of(dataset, split):
    """Each user's items and the held-out one, as lists."""
    read = load_histories(dataset, split)
    ends = zip(read.offsets[:-1], read.offsets[1:], strict=True)
    return [read.values[first:last].tolist() for first, last in ends], read.targets.tolist()


@pytest.mark.parametrize("split", ["test", "valid"])
@pytest.mark.parametrize("exclude_seen", [False, True])
def test_counting_ranks_equal_sorting_all_items_by_their_counts(dataset, split, exclude_seen):
    histories, targets = histories_of(dataset, split)
    followed = Counter(pair for history in histories for pair in itertools.pairwise(history))
    popularity = dataset.catalog.popularity
    expected = []
    for history, target in zip(histories, targets, strict=True):
        allowed = [item for item in range(1, dataset.catalog.num_items + 1) if not (exclude_seen and item in history)]
        last = history[-1] if history else None
        order = sorted(allowed, key=lambda item: (-followed[last, item], -popularity[item], item))
        expected.append(order.index(target) + 1 if target in order else 0)
    assert counting_ranks(dataset, split, exclude_seen=exclude_seen).tolist() == expected
    assert (0 in expected) == exclude_seen


def test_groups_split_all_users_by_length_and_by_the_next_items_provider(dataset):
    histories, targets = histories_of(dataset, "test")
    provider = dataset.catalog.item_provider
    groups = user_groups(dataset, "test")
    for grouping in groups.values():
        assert sum(users.astype(int) for users in grouping.groups.values()).tolist() == [1] * len(histories)
    for user, (history, target) in enumerate(zip(histories, targets, strict=True)):
        if target in history:
            name = "was in the history"
        elif provider[target] in provider[history]:
            name = "new, of a provider in the history"
        else:
            name = "new, of a new provider"
        assert groups["provider"].groups[name][user]
        (length,) = [name for name, users in groups["length"].groups.items() if users[user]]
        ends = [int(end) for end in length.rstrip("+").split(" to ")]
        assert ends[0] <= len(history) and (length.endswith("+") or len(history) <= ends[-1])


def test_an_item_without_a_provider_is_not_of_a_new_one(dataset):
    histories, targets = histories_of(dataset, "test")
    provider = dataset.catalog.item_provider.copy()
    provider[: len(provider) // 2] = 0
    some = dataclasses.replace(dataset, catalog=dataclasses.replace(dataset.catalog, item_provider=provider))
    groups = user_groups(some, "test")["provider"].groups
    expected = [
        target not in history and provider[target] == 0 for history, target in zip(histories, targets, strict=True)
    ]
    assert any(expected)
    assert groups["new, without a provider"].tolist() == expected
    assert sum(users.astype(int) for users in groups.values()).tolist() == [1] * len(histories)
