from __future__ import annotations

import numpy as np
import pytest
import torch
from naive_training import NaiveModel
from training_data import (
    BASELINES,
    DEEPER,
    ITEMS,
    KINDS,
    MAX_LEN,
    PROVIDERS,
    catalog_providers,
    make_model,
    prefixes,
    small_settings,
)

from ipsrec_onnx.errors import DataError
from ipsrec_train.batches import Histories, Windows
from ipsrec_train.history_scores import scored_items
from ipsrec_train.layers import packed_mask
from ipsrec_train.losses import contrastive_loss, softmax_loss
from ipsrec_train.model import Model
from ipsrec_train.packed import PackedHistories
from ipsrec_train.settings import MODEL_SETTINGS, VARIANTS, settings_for

# float32 through a few layers, states of size 1; a wrong mask or position moves them by 0.01 and more.
CLOSE = {"rtol": 1e-5, "atol": 1e-5}

every_kind = pytest.mark.parametrize(("name", "variant", "co_attention"), KINDS)


def model_of(name, variant, co_attention, **changes):
    settings = small_settings(variant, model=name, **{"co_attention": co_attention, **DEEPER[name], **changes})
    return make_model(name, settings)


def random_histories(rng, lengths):
    return [rng.integers(1, ITEMS + 1, length).tolist() for length in lengths]


def pack_in_rows(rows, width=MAX_LEN):
    """Lay histories end to end, several to a row: item_history, positions and segments, (R, width) int64 each."""
    shape = (len(rows), width)
    items, positions, segments = np.zeros(shape, np.int64), np.zeros(shape, np.int64), np.full(shape, -1)
    number = 0
    for row, histories in enumerate(rows):
        column = 0
        for history in histories:
            here = slice(column, column + len(history))
            items[row, here], positions[row, here], segments[row, here] = history, range(len(history)), number
            column, number = column + len(history), number + 1
    return tuple(torch.from_numpy(array) for array in (items, positions, segments))


def pad(histories, width):
    """Right-padded item_history, provider_history (B, width) and lengths (B,), int32."""
    items = np.zeros((len(histories), width), np.int32)
    for row, history in enumerate(histories):
        items[row, : len(history)] = history
    lengths = np.array([len(history) for history in histories], np.int32)
    providers = catalog_providers()[items].astype(np.int32)
    return tuple(torch.from_numpy(array) for array in (items, providers, lengths))


@torch.no_grad()
def states_of(model, rows):
    """Item and, where there are any, provider states of every history, in order, (length, D) each."""
    items, positions, segments = pack_in_rows(rows)
    states = model.encode_packed(model.item_embeddings(), PackedHistories(items, positions, segments))
    count = int(segments.max()) + 1
    return [[part[segments == number].numpy() for number in range(count)] for part in states if part is not None]


@torch.no_grad()
def users_of(model, histories, width):
    return model(*pad(histories, width)).numpy()


@every_kind
def test_one_pass_over_packed_histories_gives_the_user_of_every_prefix(rng, name, variant, co_attention):
    model = model_of(name, variant, co_attention)
    rows = [random_histories(rng, lengths) for lengths in ([MAX_LEN], [4, 5], [1, 1, 2, 3], [6, 4])]
    histories = [history for row in rows for history in row]
    item_states = states_of(model, rows)[0]
    for history, states in zip(histories, item_states, strict=True):
        prefixes = [history[: length + 1] for length in range(len(history))]
        np.testing.assert_allclose(states, users_of(model, prefixes, len(history)), **CLOSE)


@every_kind
def test_states_equal_a_float64_twin_in_plain_loops(rng, name, variant, co_attention):
    model = model_of(name, variant, co_attention, dim=8)
    # Three items again and again: a graph with loops, two-way edges and fewer nodes than positions.
    rows = [random_histories(rng, [5]), random_histories(rng, [3, 4, 1]), [rng.integers(1, 4, 9).tolist()]]
    found = states_of(model, rows)
    twin = NaiveModel(model)
    for number, history in enumerate(history for row in rows for history in row):
        expected = [states for states in twin.states(history, catalog_providers()[history].tolist()) if states]
        for stream, states in zip(found, expected, strict=True):
            np.testing.assert_allclose(stream[number], states, **CLOSE)


@every_kind
def test_the_exported_path_equals_the_twin_with_providers_that_are_not_the_catalogs(rng, name, variant, co_attention):
    model = model_of(name, variant, co_attention, dim=8)
    twin = NaiveModel(model)
    histories = random_histories(rng, [1, 2, 5])
    items, providers, lengths = pad(histories, 6)
    providers = torch.from_numpy(rng.integers(0, PROVIDERS + 1, providers.shape).astype(np.int32))
    with torch.no_grad():
        users = model(items, providers, lengths).numpy()
    expected = [
        twin.user(history, row[: len(history)]) for history, row in zip(histories, providers.tolist(), strict=True)
    ]
    np.testing.assert_allclose(users, expected, **CLOSE)


@every_kind
def test_a_later_item_changes_no_earlier_state(rng, name, variant, co_attention):
    model = model_of(name, variant, co_attention)
    history = list(range(5, 45, 5))
    changed = [*history[:5], 59, *history[6:]]
    (before,), *provider_streams_before = states_of(model, [[history]])
    (after,), *provider_streams_after = states_of(model, [[changed]])
    np.testing.assert_array_equal(before[:5], after[:5])
    assert np.abs(before[5:] - after[5:]).max(1).min() > 1e-3
    if (name, variant) != ("ipsrec-s", "released"):  # there a provider sees the whole item half, as its docstring says
        for (earlier,), (later,) in zip(provider_streams_before, provider_streams_after, strict=True):
            np.testing.assert_array_equal(earlier[:5], later[:5])


@every_kind
def test_a_neighbour_in_the_row_changes_nothing(rng, name, variant, co_attention):
    model = model_of(name, variant, co_attention)
    first, second, other = random_histories(rng, [4, 5, 4])
    before, after = states_of(model, [[first, second]]), states_of(model, [[other, second]])
    for stream, changed in zip(before, after, strict=True):
        np.testing.assert_array_equal(stream[1], changed[1])
        assert np.abs(stream[0] - changed[0]).max() > 1e-3


@every_kind
def test_where_a_history_lies_in_its_row_changes_nothing(rng, name, variant, co_attention):
    model = model_of(name, variant, co_attention)
    first, second = random_histories(rng, [4, 5])
    before, after = states_of(model, [[first, second]]), states_of(model, [[second, first]])
    for stream, moved in zip(before, after, strict=True):
        np.testing.assert_allclose(stream[0], moved[1], **CLOSE)


@every_kind
def test_padding_beyond_the_length_changes_nothing(rng, name, variant, co_attention):
    model = model_of(name, variant, co_attention)
    histories = random_histories(rng, [1, 2, 5, 7])
    items, providers, lengths = pad(histories, MAX_LEN)
    behind = torch.arange(MAX_LEN) >= lengths[:, None]
    with torch.no_grad():
        clean = model(items, providers, lengths).numpy()
        full = (torch.where(behind, 33, items), torch.where(behind, 7, providers))
        np.testing.assert_array_equal(model(*full, lengths).numpy(), clean)
    np.testing.assert_allclose(users_of(model, histories, 7), clean, **CLOSE)


@every_kind
def test_a_user_is_the_same_alone_and_in_a_batch(rng, name, variant, co_attention):
    model = model_of(name, variant, co_attention)
    histories = random_histories(rng, rng.integers(1, MAX_LEN + 1, 17))
    together = users_of(model, histories, MAX_LEN)
    for row in (0, 8, 16):
        np.testing.assert_allclose(users_of(model, [histories[row]], MAX_LEN)[0], together[row], **CLOSE)


@every_kind
def test_an_empty_history_gives_finite_numbers(name, variant, co_attention):
    model = model_of(name, variant, co_attention)
    users = users_of(model, [[], [3, 4, 5], []], 3)
    assert users.shape == (3, 16)
    assert np.isfinite(users).all()
    np.testing.assert_allclose(users[1], users_of(model, [[3, 4, 5]], 3)[0], **CLOSE)


@every_kind
def test_the_order_of_a_history_matters(name, variant, co_attention):
    model = model_of(name, variant, co_attention)
    forward, swapped = users_of(model, [[10, 20, 30], [20, 10, 30]], 3)
    assert np.abs(forward - swapped).max() > 1e-3


@every_kind
def test_providers_matter_to_an_ipsrec_except_to_the_single_stream_as_released(rng, name, variant, co_attention):
    model = model_of(name, variant, co_attention)
    items, providers, lengths = pad(random_histories(rng, [3, 6, MAX_LEN]), MAX_LEN)
    others = providers % PROVIDERS + 1
    with torch.no_grad():
        before, after = model(items, providers, lengths).numpy(), model(items, others, lengths).numpy()
    if name in BASELINES or (name, variant) == ("ipsrec-s", "released"):
        np.testing.assert_array_equal(before, after)
    else:
        assert np.abs(before - after).max(1).min() > 1e-3


def test_items_of_the_single_stream_as_released_do_not_see_providers_in_training_either(rng):
    model = model_of("ipsrec-s", "released", "queries")
    rows = [random_histories(rng, [4, 5])]
    before = states_of(model, rows)
    with torch.no_grad():
        model.providers.weight *= 2.0
    after = states_of(model, rows)
    np.testing.assert_array_equal(np.concatenate(before[0]), np.concatenate(after[0]))
    assert np.abs(np.concatenate(before[1]) - np.concatenate(after[1])).max() > 1e-3


def test_the_readings_of_co_attention_and_the_variants_differ(rng):
    history = random_histories(rng, [6])
    users = []
    for variant in VARIANTS:
        for co_attention in ("queries", "keys_values"):
            model = model_of("ipsrec-c", variant, co_attention, provider_in_item=False, history_terms="none")
            users.append(users_of(model, history, 6)[0])
    different = {tuple(np.round(user, 4)) for user in users}
    assert len(different) == 4  # paper and recommended share streams and weights, so their users are equal


@pytest.mark.parametrize("name", ["ipsrec-s", "ipsrec-c", *BASELINES])
def test_an_item_is_its_own_embedding_and_its_providers(name):
    model = model_of(name, None, None, provider_in_item=True)
    providers, items = model.providers.weight.detach().numpy(), model.items.weight.detach().numpy()
    folded = model.item_embeddings().detach().numpy()
    for item in range(1, ITEMS + 1):
        np.testing.assert_array_equal(folded[item], items[item] + providers[catalog_providers()[item]])
    np.testing.assert_array_equal(folded[0], 0.0)
    plain = model_of(name, None, None, provider_in_item=False).item_embeddings().detach().numpy()
    np.testing.assert_array_equal(plain, items)


def test_an_item_without_provider_is_its_own_embedding_alone():
    settings = small_settings()
    model = Model("ipsrec-c", settings, item_provider=catalog_providers(without=4), num_providers=PROVIDERS)
    np.testing.assert_array_equal(model.item_embeddings()[1:5].detach(), model.items.weight[1:5].detach())
    assert not torch.equal(model.item_embeddings()[5], model.items.weight[5])


@every_kind
def test_padding_rows_stay_zero_while_every_other_weight_learns(rng, name, variant, co_attention):
    model = model_of(name, variant, co_attention, provider_in_item=True).train()
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    items, positions, segments = pack_in_rows([random_histories(rng, [4, 3]), random_histories(rng, [5])])
    at = torch.nonzero(segments.flatten() >= 0).flatten()
    for _ in range(2):
        table = model.item_embeddings()
        states, others = model.encode_packed(table, PackedHistories(items, positions, segments))
        states = states.flatten(0, 1)
        loss = softmax_loss(states[at], table, items.flatten()[at], columns=scored_items(model.item_provider))
        if others is not None:
            loss = loss + contrastive_loss(states[at], others.flatten(0, 1)[at], temperature=1.0, symmetric=True)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert not model.items.weight[0].any()
    assert not model.providers.weight[0].any()
    still = {name for name, parameter in model.named_parameters() if torch.equal(parameter, before[name])}
    assert still <= {"history_terms.provider", "history_terms.item"}  # not given to the loss above


def test_the_same_seed_gives_the_same_model_and_weights_have_the_asked_for_spread():
    settings = small_settings(dim=64, inner_dim=256, initializer_std=0.05)
    models = []
    for _ in range(2):
        torch.manual_seed(3)
        models.append(Model("ipsrec-c", settings, item_provider=catalog_providers(), num_providers=PROVIDERS))
    first, second = (model.state_dict() for model in models)
    assert all(torch.equal(first[name], second[name]) for name in first)
    for name, weight in first.items():
        if "norm" in name:
            assert torch.equal(weight, torch.ones_like(weight) if name.endswith("weight") else torch.zeros_like(weight))
        elif name.endswith("bias") or name.startswith("history_terms"):
            assert not weight.any(), name
        elif weight.numel() > 1_000:
            assert weight.std().item() == pytest.approx(0.05, rel=0.1), name
    assert not first["items.weight"][0].any()
    assert not first["providers.weight"][0].any()


@pytest.mark.parametrize("name", MODEL_SETTINGS)
def test_a_new_model_has_drawn_every_weight(name):
    settings = small_settings(model=name, dim=64)
    model = Model(name, settings, item_provider=catalog_providers(), num_providers=PROVIDERS)
    with torch.no_grad():
        for parameter in model.encoder.parameters():
            parameter.fill_(float("nan"))
    model.encoder.initialize()
    born = {part for part, weight in model.encoder.named_parameters() if not torch.isfinite(weight).all()}
    assert all("norm" in part for part in born)  # those are as they should be from the start
    for table in (model.items.weight, model.providers.weight):
        assert not table[0].any()
        assert table[1:].std().item() == pytest.approx(settings.initializer_std, rel=0.1)


@pytest.mark.parametrize(
    ("name", "part", "bound"),
    [
        ("gru4rec", "gru.weight_ih_l0", (6 / (64 + 3 * 128)) ** 0.5),  # Glorot's uniform
        ("gru4rec", "gru.weight_hh_l0", (6 / (128 + 3 * 128)) ** 0.5),
        ("gru4rec", "dense.weight", 128**-0.5),
        ("sr-gnn", "from_messages.weight", 64**-0.5),
        ("sr-gnn", "bias_in", 64**-0.5),
    ],
)
def test_weights_of_the_baselines_are_drawn_as_their_source_draws_them(name, part, bound):
    model = Model(name, settings_for(name, None, {}), item_provider=catalog_providers(), num_providers=PROVIDERS)
    weight = model.encoder.get_parameter(part)
    assert weight.abs().max() <= bound
    assert weight.abs().max() > 0.9 * bound


def test_a_mask_joins_a_history_with_its_own_past_alone():
    mask = packed_mask(torch.tensor([[0, 0, 1, -1]]))
    allowed = (mask[0, 0] == 0).int().tolist()
    assert allowed == [[1, 0, 0, 0], [1, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]]
    assert torch.isfinite(mask).all()


def test_an_unknown_model_is_refused():
    with pytest.raises(DataError, match="model 'bert4rec' is not known, expected one of ipsrec-c, ipsrec-s, sasrec, "):
        Model("bert4rec", small_settings(), item_provider=catalog_providers(), num_providers=PROVIDERS)


def test_settings_of_another_model_are_refused():
    with pytest.raises(DataError, match="settings: sasrec takes SASRecSettings, found IPSRecSettings"):
        Model("sasrec", small_settings(), item_provider=catalog_providers(), num_providers=PROVIDERS)


def test_co_attention_is_of_the_cross_stream_alone():
    with pytest.raises(DataError, match="co_attention is of ipsrec-c; ipsrec-s has one stream"):
        model_of("ipsrec-s", "paper", "keys_values")


@every_kind
@pytest.mark.parametrize("terms", ["none", "seen", "all"])
def test_the_loss_of_one_pass_is_for_each_target_that_of_its_prefix_alone(rng, name, variant, co_attention, terms):
    model = model_of(name, variant, co_attention, dim=8, history_terms=terms)
    values = rng.integers(1, 9, 17).astype(np.int32)  # items come again: history terms have a say
    offsets = np.array([0, 6, 17])
    histories = Histories(values=values, offsets=offsets, targets=np.zeros(0, np.int32))
    batch = Windows(histories, max_len=MAX_LEN, device=torch.device("cpu")).pack(np.arange(2))
    weights = model.history_terms and (model.history_terms.provider_weights(), model.history_terms.item_weights())
    table = model.item_embeddings()
    states = model.encode_packed(table, batch.histories)[0].flatten(0, 1)
    twin = NaiveModel(model)
    for row, (prefix, target) in enumerate(prefixes(batch)):
        here = slice(row, row + 1)
        loss = softmax_loss(
            states[batch.at[here]],
            table,
            batch.targets[here],
            columns=scored_items(model.item_provider),
            weights=weights,
            entries=batch.entries.rows(here) if weights else None,
        )
        scores = np.array(twin.scores(prefix))
        expected = np.log(np.exp(scores - scores.max()).sum()) + scores.max() - scores[target - 1]
        assert loss.item() == pytest.approx(expected, rel=1e-5, abs=1e-4)


def test_the_window_of_caser_reaches_no_further_back(rng):
    model = model_of("caser", None, None, window=3)
    users = users_of(model, [[7, 8, 9], [5, 6, 7, 8, 9], [6, 7, 8, 9]], 5)
    np.testing.assert_allclose(users[1:], users[[0, 0]], **CLOSE)
    assert np.abs(users[0] - users_of(model, [[8, 9]], 5)[0]).max() > 1e-3


def test_a_window_longer_than_max_len_is_max_len():
    model = model_of("caser", None, None, window=MAX_LEN + 5)
    assert model.encoder.window == MAX_LEN


def test_dropout_of_the_session_graph_falls_on_items_not_on_positions(rng):
    """Two positions of one item keep one state, however the draw falls."""
    model = model_of("sr-gnn", None, None, dropout=0.5).train()
    seen = []
    read_out = model.encoder._read_out
    model.encoder._read_out = lambda states, *rest: seen.append(states) or read_out(states, *rest)
    torch.manual_seed(0)
    users_of(model, [[7, 8, 7, 9, 8]], 5)
    (states,) = seen
    torch.testing.assert_close(states[0, 0], states[0, 2])
    torch.testing.assert_close(states[0, 1], states[0, 4])
    assert (states[0, 0] - states[0, 1]).abs().max() > 1e-3
