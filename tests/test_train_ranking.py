from __future__ import annotations

import naive_training
import numpy as np
import pytest
import torch
from naive_training import NaiveModel
from training_data import ITEMS, MAX_LEN, make_model, small_settings

from ipsrec_onnx.errors import DataError
from ipsrec_train.batches import Histories
from ipsrec_train.ranking import BATCH_SIZE, rank_of, rank_targets

CPU = torch.device("cpu")


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
        ("ipsrec-c", "paper", {"history_terms": True}),
        ("ipsrec-s", "released", {}),
    ],
)
def test_ranks_equal_a_float64_ranking_with_history_terms(rng, name, variant, changes):
    model = make_model(name, small_settings(variant, dim=8, inner_dim=12, **changes))
    histories = held_out(rng, [0, 1, MAX_LEN, MAX_LEN + 1, 0, 25, 3, *rng.integers(1, 15, 14)])
    ranks = rank_targets(model, histories, device=CPU)
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
    ranks = rank_targets(model, histories, device=CPU)
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
    ranks = rank_targets(model, histories, device=CPU)
    order = rng.permutation(len(histories))
    lists = [histories.values[histories.offsets[user] : histories.offsets[user + 1]] for user in order]
    offsets = np.concatenate([[0], np.cumsum([len(items) for items in lists])]).astype(np.int64)
    shuffled = Histories(values=np.concatenate(lists), offsets=offsets, targets=histories.targets[order])
    np.testing.assert_array_equal(rank_targets(model, shuffled, device=CPU), ranks[order])
    for user in (0, 100, 295):
        begin, end = histories.offsets[user : user + 2]
        alone = Histories(
            values=histories.values[begin:end],
            offsets=np.array([0, end - begin]),
            targets=histories.targets[user : user + 1],
        )
        assert rank_targets(model, alone, device=CPU)[0] == ranks[user]


def test_the_mode_of_the_model_is_left_as_it_was_and_dropout_is_off(rng):
    model = make_model("ipsrec-s", small_settings(dropout=0.5))
    histories = held_out(rng, rng.integers(1, 15, 30))
    expected = rank_targets(model.eval(), histories, device=CPU)
    assert not model.training
    np.testing.assert_array_equal(rank_targets(model.train(), histories, device=CPU), expected)
    assert model.training


def test_no_users():
    model = make_model("ipsrec-s", small_settings())
    nobody = Histories(values=np.zeros(0, np.int32), offsets=np.zeros(1, np.int64), targets=np.zeros(0, np.int32))
    assert rank_targets(model, nobody, device=CPU).shape == (0,)


def test_rank_of_one_column():
    scores = torch.tensor([[1.0, 3.0, 3.0, 3.0, 0.0]]).repeat(5, 1)
    assert rank_of(scores, torch.arange(5).unsqueeze(1)).tolist() == [4, 1, 2, 3, 5]


def test_a_score_that_is_no_number_is_refused_and_never_ranked_first(rng):
    model = make_model("ipsrec-s", small_settings())
    with torch.no_grad():
        model.items.weight[5:] = float("nan")
    with pytest.raises(DataError, match="a validation score is NaN or infinite; try a smaller --learning-rate"):
        rank_targets(model, held_out(rng, [3, 4, 5]), device=CPU)
