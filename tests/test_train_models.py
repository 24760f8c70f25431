from __future__ import annotations

import numpy as np
import pytest
import torch
from naive_training import NaiveModel
from training_data import ITEMS, KINDS, MAX_LEN, PROVIDERS, catalog_providers, make_model, small_settings

from ipsrec_onnx.errors import DataError
from ipsrec_train.layers import initialize, packed_mask
from ipsrec_train.losses import contrastive_loss, full_softmax_loss
from ipsrec_train.model import Model
from ipsrec_train.packed import PackedHistories
from ipsrec_train.settings import VARIANTS

# float32 through a few layers, states of size 1; a wrong mask or position moves them by 0.01 and more.
CLOSE = {"rtol": 1e-5, "atol": 1e-5}

every_kind = pytest.mark.parametrize(("name", "variant", "co_attention"), KINDS)


def model_of(name, variant, co_attention, **changes):
    settings = small_settings(variant, **{"co_attention": co_attention, "num_layers": 2, **changes})
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
    """Item and provider states of every history, in order, (length, D) each."""
    items, positions, segments = pack_in_rows(rows)
    states = model.encode_packed(model.item_embeddings(), PackedHistories(items, positions, segments))
    count = int(segments.max()) + 1
    return [[part[segments == number].numpy() for number in range(count)] for part in states]


@torch.no_grad()
def users_of(model, histories, width):
    return model(*pad(histories, width)).numpy()


@every_kind
def test_one_pass_over_packed_histories_gives_the_user_of_every_prefix(rng, name, variant, co_attention):
    model = model_of(name, variant, co_attention)
    rows = [random_histories(rng, lengths) for lengths in ([MAX_LEN], [4, 5], [1, 1, 2, 3], [6, 4])]
    histories = [history for row in rows for history in row]
    item_states, _ = states_of(model, rows)
    for history, states in zip(histories, item_states, strict=True):
        prefixes = [history[: length + 1] for length in range(len(history))]
        np.testing.assert_allclose(states, users_of(model, prefixes, len(history)), **CLOSE)


@every_kind
def test_states_equal_a_float64_twin_in_plain_loops(rng, name, variant, co_attention):
    model = model_of(name, variant, co_attention, dim=8, inner_dim=12)
    rows = [random_histories(rng, [5]), random_histories(rng, [3, 4, 1])]
    item_states, provider_states = states_of(model, rows)
    twin = NaiveModel(model)
    for number, history in enumerate(history for row in rows for history in row):
        items, providers = twin.states(history, catalog_providers()[history].tolist())
        np.testing.assert_allclose(item_states[number], items, **CLOSE)
        np.testing.assert_allclose(provider_states[number], providers, **CLOSE)


@every_kind
def test_the_exported_path_equals_the_twin_with_providers_that_are_not_the_catalogs(rng, name, variant, co_attention):
    model = model_of(name, variant, co_attention, dim=8, inner_dim=12)
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
    (before,), (providers_before,) = states_of(model, [[history]])
    (after,), (providers_after,) = states_of(model, [[changed]])
    np.testing.assert_array_equal(before[:5], after[:5])
    assert np.abs(before[5:] - after[5:]).max(1).min() > 1e-3
    if (name, variant) != ("ipsrec-s", "released"):  # there a provider sees the whole item half, as its docstring says
        np.testing.assert_array_equal(providers_before[:5], providers_after[:5])


@every_kind
def test_a_neighbour_in_the_row_changes_nothing(rng, name, variant, co_attention):
    model = model_of(name, variant, co_attention)
    first, second, other = random_histories(rng, [4, 5, 4])
    before, after = states_of(model, [[first, second]]), states_of(model, [[other, second]])
    for stream in (0, 1):
        np.testing.assert_array_equal(before[stream][1], after[stream][1])
        assert np.abs(before[stream][0] - after[stream][0]).max() > 1e-3


@every_kind
def test_where_a_history_lies_in_its_row_changes_nothing(rng, name, variant, co_attention):
    model = model_of(name, variant, co_attention)
    first, second = random_histories(rng, [4, 5])
    before, after = states_of(model, [[first, second]]), states_of(model, [[second, first]])
    for stream in (0, 1):
        np.testing.assert_allclose(before[stream][0], after[stream][1], **CLOSE)


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
def test_providers_matter_except_to_the_single_stream_as_released(rng, name, variant, co_attention):
    model = model_of(name, variant, co_attention)
    items, providers, lengths = pad(random_histories(rng, [3, 6, MAX_LEN]), MAX_LEN)
    others = providers % PROVIDERS + 1
    with torch.no_grad():
        before, after = model(items, providers, lengths).numpy(), model(items, others, lengths).numpy()
    if (name, variant) == ("ipsrec-s", "released"):
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
            model = model_of("ipsrec-c", variant, co_attention, provider_in_item=False, history_terms=False)
            users.append(users_of(model, history, 6)[0])
    different = {tuple(np.round(user, 4)) for user in users}
    assert len(different) == 4  # paper and recommended share streams and weights, so their users are equal


@pytest.mark.parametrize("name", ["ipsrec-s", "ipsrec-c"])
def test_an_item_is_its_own_embedding_and_its_providers(name):
    model = model_of(name, "recommended", "queries")
    providers, items = model.providers.weight.detach().numpy(), model.items.weight.detach().numpy()
    folded = model.item_embeddings().detach().numpy()
    for item in range(1, ITEMS + 1):
        np.testing.assert_array_equal(folded[item], items[item] + providers[catalog_providers()[item]])
    np.testing.assert_array_equal(folded[0], 0.0)
    plain = model_of(name, "paper", "queries").item_embeddings().detach().numpy()
    np.testing.assert_array_equal(plain, items)


def test_an_item_without_provider_is_its_own_embedding_alone():
    settings = small_settings()
    model = Model("ipsrec-c", settings, item_provider=catalog_providers(without=4), num_providers=PROVIDERS)
    np.testing.assert_array_equal(model.item_embeddings()[1:5].detach(), model.items.weight[1:5].detach())
    assert not torch.equal(model.item_embeddings()[5], model.items.weight[5])


@every_kind
def test_padding_rows_stay_zero_while_every_other_weight_learns(rng, name, variant, co_attention):
    model = model_of(name, variant, co_attention, contrastive_weight=0.1).train()
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    items, positions, segments = pack_in_rows([random_histories(rng, [4, 3]), random_histories(rng, [5])])
    at = torch.nonzero(segments.flatten() >= 0).flatten()
    for _ in range(2):
        table = model.item_embeddings()
        states, others = (
            part.flatten(0, 1) for part in model.encode_packed(table, PackedHistories(items, positions, segments))
        )
        loss = full_softmax_loss(states[at], table, items.flatten()[at], item_provider=model.item_provider)
        loss = loss + contrastive_loss(states[at], others[at], temperature=1.0, symmetric=True)
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


def test_initialize_reaches_every_weight():
    model = Model("ipsrec-s", small_settings(), item_provider=catalog_providers(), num_providers=PROVIDERS)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(float("nan"))
    initialize(model, 0.02)
    finite = {name for name, parameter in model.named_parameters() if torch.isfinite(parameter).all()}
    kept = {name for name, _ in model.named_parameters()} - finite
    assert all("norm" in name or name.startswith("history_terms") for name in kept), kept  # born as they should be


def test_a_mask_joins_a_history_with_its_own_past_alone():
    mask = packed_mask(torch.tensor([[0, 0, 1, -1]]))
    allowed = (mask[0, 0] == 0).int().tolist()
    assert allowed == [[1, 0, 0, 0], [1, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]]
    assert torch.isfinite(mask).all()


def test_an_unknown_model_is_refused():
    with pytest.raises(DataError, match="model 'sasrec' is not known, expected one of ipsrec-s, ipsrec-c"):
        Model("sasrec", small_settings(), item_provider=catalog_providers(), num_providers=PROVIDERS)
