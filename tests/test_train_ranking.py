from __future__ import annotations

import naive_training
import numpy as np
import pytest
import torch
from naive_training import NaiveModel
from training_data import ITEMS, MAX_LEN, catalog_providers, make_model, small_settings

from ipsrec_kernels.target_rank import target_ranks
from ipsrec_onnx.errors import DataError
from ipsrec_train.batches import Histories
from ipsrec_train.history_scores import (
    HistoryEntries,
    add_history_scores,
    kernel_columns,
    kernel_histories,
    kernel_weights,
    scored_items,
)
from ipsrec_train.ranking import BATCH_SIZE, rank_of, rank_targets


def rank_all(model, histories, **changes):
    return rank_targets(model, histories, columns=scored_items(model.item_provider), **changes)


def held_out(rng, lengths):
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    draw = rng.integers(1, ITEMS + 1, offsets[-1] + len(lengths)).astype(np.int32)
    return Histories(values=draw[: offsets[-1]], offsets=offsets, targets=draw[offsets[-1] :])


def last_items(histories, user):
    return histories.values[histories.offsets[user] : histories.offsets[user + 1]][-MAX_LEN:].tolist()


@pytest.mark.parametrize(
    ("name", "variant", "changes"),
    [
        ("ipsrec-c", "recommended", {}),
        ("ipsrec-s", "recommended", {}),
        ("ipsrec-c", "paper", {"history_terms": "all"}),
        ("ipsrec-s", "released", {}),
    ],
)
def test_ranks_equal_a_float64_ranking_with_history_terms(rng, name, variant, changes):
    model = make_model(name, small_settings(variant, dim=8, inner_dim=12, **changes))
    histories = held_out(rng, [0, 1, MAX_LEN, MAX_LEN + 1, 0, 25, 3, *rng.integers(1, 15, 14)])
    ranks = rank_all(model, histories)
    assert ranks.dtype == np.int64
    twin = NaiveModel(model)
    for user, target in enumerate(histories.targets.tolist()):
        items = last_items(histories, user)
        if not items:
            assert ranks[user] == 0
            continue
        scores = twin.scores(items)
        near = [abs(score - scores[target - 1]) for item, score in enumerate(scores, 1) if item != target]
        assert min(near) > 1e-5  # so that float32 cannot rank otherwise
        assert ranks[user] == naive_training.rank(scores, target)


def test_ties_go_to_the_smaller_item_index(rng, monkeypatch):
    """Small whole numbers, so that many scores are equal and float32 is exact."""
    model = make_model("ipsrec-c", small_settings("paper", dim=4, inner_dim=4))
    with torch.no_grad():
        model.items.weight[1:] = torch.from_numpy(rng.integers(-1, 2, (ITEMS, 4)).astype(np.float32))

    def last_item(table, items, providers, lengths):
        return table[items.gather(1, lengths[:, None] - 1).squeeze(1)]

    monkeypatch.setattr(model, "encode_last", last_item)
    histories = held_out(rng, rng.integers(1, 15, 200))
    ranks = rank_all(model, histories)
    table = model.items.weight.detach().double().numpy()
    tied = 0
    for user, target in enumerate(histories.targets.tolist()):
        scores = (table[1:] @ table[last_items(histories, user)[-1]]).tolist()
        assert ranks[user] == naive_training.rank(scores, target)
        tied += scores.count(scores[target - 1]) > 1
    assert tied > 100


def test_a_users_rank_is_the_same_alone_and_among_many_in_any_order(rng):
    model = make_model("ipsrec-c", small_settings())
    histories = held_out(rng, rng.integers(0, 15, BATCH_SIZE + 40))
    ranks = rank_all(model, histories)
    order = rng.permutation(len(histories))
    lists = [histories.values[histories.offsets[user] : histories.offsets[user + 1]] for user in order]
    offsets = np.concatenate([[0], np.cumsum([len(items) for items in lists])]).astype(np.int64)
    shuffled = Histories(values=np.concatenate(lists), offsets=offsets, targets=histories.targets[order])
    np.testing.assert_array_equal(rank_all(model, shuffled), ranks[order])
    for user in (0, 100, 295):
        begin, end = histories.offsets[user : user + 2]
        alone = Histories(
            values=histories.values[begin:end],
            offsets=np.array([0, end - begin]),
            targets=histories.targets[user : user + 1],
        )
        assert rank_all(model, alone)[0] == ranks[user]


def test_the_mode_of_the_model_is_left_as_it_was_and_dropout_is_off(rng):
    model = make_model("ipsrec-s", small_settings(dropout=0.5))
    histories = held_out(rng, rng.integers(1, 15, 30))
    expected = rank_all(model.eval(), histories)
    assert not model.training
    np.testing.assert_array_equal(rank_all(model.train(), histories), expected)
    assert model.training


def test_users_not_asked_for_are_left_out(rng):
    model = make_model("ipsrec-s", small_settings())
    histories = held_out(rng, rng.integers(1, 15, 30))
    everyone = rank_all(model, histories)
    parts = [rank_all(model, histories, users=np.arange(first, 30, 3)) for first in range(3)]
    assert [int((part > 0).sum()) for part in parts] == [10, 10, 10]
    np.testing.assert_array_equal(sum(parts), everyone)


def test_the_kernel_ranks_as_pytorchs_operators_do(rng):
    """A GPU has no Numba kernel."""
    scores = rng.integers(-3, 4, (40, ITEMS)).astype(np.float32)
    targets = rng.integers(1, ITEMS + 1, 40).astype(np.int32)
    lists = [rng.integers(1, ITEMS + 1, length) for length in rng.integers(0, MAX_LEN + 1, 40)]
    ends = np.cumsum([len(items) for items in lists])
    entries = HistoryEntries(
        torch.from_numpy(np.concatenate(lists).astype(np.int32)),
        torch.from_numpy(ends - [len(items) for items in lists]),
        torch.from_numpy(ends),
    )
    weights = torch.from_numpy(rng.integers(0, 3, (2, MAX_LEN)).astype(np.float32)).unbind(0)
    columns = scored_items(torch.from_numpy(catalog_providers(without=9)))
    other = torch.from_numpy(scores.copy())
    add_history_scores(other, *weights, entries=entries, columns=columns)
    expected = rank_of(other, torch.from_numpy(targets.astype(np.int64) - 1).unsqueeze(1))
    found = target_ranks(
        scores,
        targets,
        columns=kernel_columns(columns),
        histories=kernel_histories(entries),
        weights=kernel_weights(weights),
    )
    np.testing.assert_array_equal(found, expected.numpy())
    np.testing.assert_array_equal(scores, other.numpy())  # whole numbers: exact


def test_no_users():
    model = make_model("ipsrec-s", small_settings())
    nobody = Histories(values=np.zeros(0, np.int32), offsets=np.zeros(1, np.int64), targets=np.zeros(0, np.int32))
    assert rank_all(model, nobody).shape == (0,)


def test_rank_of_one_column():
    scores = torch.tensor([[1.0, 3.0, 3.0, 3.0, 0.0]]).repeat(5, 1)
    assert rank_of(scores, torch.arange(5).unsqueeze(1)).tolist() == [4, 1, 2, 3, 5]


def test_a_score_that_is_no_number_is_refused_and_never_ranked_first(rng):
    model = make_model("ipsrec-s", small_settings())
    with torch.no_grad():
        model.items.weight[5:] = float("nan")
    with pytest.raises(DataError, match="a validation score is NaN or infinite; try a smaller --learning-rate"):
        rank_all(model, held_out(rng, [3, 4, 5]))
