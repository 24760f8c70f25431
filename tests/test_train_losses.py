from __future__ import annotations

import naive_training
import numpy as np
import pytest
import torch
from training_data import ITEMS, MAX_LEN, catalog_providers

from ipsrec_onnx.errors import DataError
from ipsrec_train import losses
from ipsrec_train.history_scores import HistoryEntries, scored_items
from ipsrec_train.history_terms import HistoryTerms
from ipsrec_train.losses import contrastive_loss, softmax_loss

DIM = 6
CLOSE = {"rtol": 1e-4, "atol": 1e-6}


@pytest.fixture
def scores_at_once(monkeypatch):
    def change(scores: int) -> None:
        monkeypatch.setattr(losses, "SCORES_AT_ONCE", {"cpu": scores})
        monkeypatch.setattr(losses, "ROWS_AT_ONCE", 1)

    return change


@pytest.fixture(params=["kernel", "torch", "triton"])
def engine(request, monkeypatch):
    """Rows by the Numba kernel, as on a CPU, or as on a GPU: by Triton, or without it by PyTorch's operators."""
    if request.param == "torch":
        monkeypatch.setattr(losses, "_kernel_rows", losses._torch_rows)
    if request.param == "triton":
        if not losses._has_triton():
            pytest.skip("triton is not installed")
        if torch.cuda.is_available():
            pytest.skip("with a GPU here Triton does not interpret; tests/test_gpu.py compares the devices")
        monkeypatch.setattr(losses, "_kernel_rows", losses._triton_rows)
    if request.param != "kernel":
        monkeypatch.setattr(losses, "ROW_ALIGNMENT", {"cpu": losses.ROW_ALIGNMENT["cuda"]})


def entries_of(histories):
    """The entries of some histories, end to end among others that are nobody's."""
    items, starts, stops = [5, 6], [], []
    for history in histories:
        starts.append(len(items))
        items += history
        stops.append(len(items))
        items.append(1)
    return HistoryEntries(torch.tensor(items, dtype=torch.int32), torch.tensor(starts), torch.tensor(stops))


def random_case(rng, *, targets):
    """users, table, targets and histories; some repeat an item, one is empty."""
    histories = [rng.integers(1, ITEMS + 1, length).tolist() for length in rng.integers(1, MAX_LEN + 1, targets)]
    histories[0] = [7, 7, 3, 7]
    if targets > 1:
        histories[1] = []
    table = rng.normal(0, 1, (ITEMS + 1, DIM)).astype(np.float32)
    users = rng.normal(0, 1, (targets, DIM)).astype(np.float32)
    return users, table, rng.integers(1, ITEMS + 1, targets), histories


def loss_and_gradients(
    users, table, targets, *, item_provider, weights=None, entries=None, scale=1.0, columns=None, precision="fp32"
):
    users, table = (torch.tensor(array, requires_grad=True) for array in (users, table))
    a_and_b = None
    if weights is not None:
        a_and_b = tuple(torch.tensor(part, dtype=torch.float32, requires_grad=True) for part in weights)
    loss = softmax_loss(
        users,
        table,
        torch.from_numpy(targets),
        columns=columns or scored_items(torch.from_numpy(item_provider)),
        weights=a_and_b,
        entries=entries,
        precision=precision,
    )
    (loss * scale).backward()
    found = {"loss": loss.detach(), "users": users.grad, "table": table.grad}
    if a_and_b is not None:
        found |= {"a": a_and_b[0].grad, "b": a_and_b[1].grad}
    return {name: tensor.numpy() for name, tensor in found.items()}


# Chunks of 1, 3, 5 and all 13 targets, the last one shorter in two of them.
@pytest.mark.parametrize("chunk", [1, 3, 5, 1_000])
@pytest.mark.parametrize("without_provider", [0, 9])
def test_loss_and_gradients_equal_the_naive_ones(engine, rng, scores_at_once, chunk, without_provider):
    scores_at_once(chunk * ITEMS)
    users, table, targets, histories = random_case(rng, targets=13)
    item_provider = catalog_providers(without=without_provider)
    a, b = rng.uniform(0, 2, MAX_LEN), rng.normal(0, 1, MAX_LEN)
    found = loss_and_gradients(
        users, table, targets, item_provider=item_provider, weights=(a, b), entries=entries_of(histories)
    )
    expected = naive_training.softmax_loss(
        users.astype(np.float64), table, targets, item_provider=item_provider, a=a, b=b, histories=histories
    )
    assert found.keys() == expected.keys()
    for name, array in expected.items():
        np.testing.assert_allclose(found[name], array, **CLOSE, err_msg=name)


@pytest.mark.parametrize("chunk", [2, 1_000])
def test_without_history_terms_it_is_cross_entropy(engine, rng, scores_at_once, chunk):
    scores_at_once(chunk * ITEMS)
    users, table, targets, _ = random_case(rng, targets=5)
    found = loss_and_gradients(users, table, targets, item_provider=catalog_providers())
    expected = naive_training.softmax_loss(users.astype(np.float64), table, targets, item_provider=catalog_providers())
    for name, array in expected.items():
        np.testing.assert_allclose(found[name], array, **CLOSE, err_msg=name)


def test_one_target_and_fewer_scores_at_once_than_items(engine, rng, scores_at_once):
    scores_at_once(1)
    users, table, targets, histories = random_case(rng, targets=1)
    a, b = np.ones(MAX_LEN), np.ones(MAX_LEN)
    case = {"item_provider": catalog_providers()}
    found = loss_and_gradients(users, table, targets, **case, weights=(a, b), entries=entries_of(histories))
    expected = naive_training.softmax_loss(
        users.astype(np.float64), table, targets, **case, a=a, b=b, histories=histories
    )
    np.testing.assert_allclose(found["loss"], expected["loss"], **CLOSE)


def test_a_catalog_of_any_size_has_several_targets_at_once(rng, monkeypatch):
    monkeypatch.setattr(losses, "SCORES_AT_ONCE", {"cpu": 1})
    real, rows = losses._kernel_rows, []

    def recorded(scores, *arguments, **options):
        rows.append(len(scores))
        return real(scores, *arguments, **options)

    monkeypatch.setattr(losses, "_kernel_rows", recorded)
    users, table, targets, _ = random_case(rng, targets=2 * losses.ROWS_AT_ONCE + 3)
    loss_and_gradients(users, table, targets, item_provider=catalog_providers())
    assert rows == [losses.ROWS_AT_ONCE, losses.ROWS_AT_ONCE, 3]


def test_a_gpu_takes_triton_where_it_is_and_operators_where_not(monkeypatch):
    monkeypatch.setattr(losses, "_has_triton", lambda: True)
    assert (losses._rows_on("cuda"), losses._rows_on("cpu")) == (losses._triton_rows, losses._kernel_rows)
    assert losses.softmax_means("cuda") == "kernels in Triton"
    monkeypatch.setattr(losses, "_has_triton", lambda: False)
    assert losses._rows_on("cuda") is losses._torch_rows
    assert losses.softmax_means("cuda") == "PyTorch's operators, since triton is not installed"
    assert losses.softmax_means("cpu") == "a kernel in Numba"


def test_items_in_another_order_than_by_provider_are_refused():
    for wrong in ([0, 2, 1], [0, 1, 0]):
        with pytest.raises(DataError, match="items are not numbered by provider; make the dataset again"):
            scored_items(torch.tensor(wrong))


def test_padding_gets_no_probability_and_no_gradient(engine, rng):
    users, table, targets, histories = random_case(rng, targets=4)
    case = {"item_provider": catalog_providers(), "weights": (np.ones(MAX_LEN), np.ones(MAX_LEN))}
    entries = entries_of(histories)
    before = loss_and_gradients(users, table, targets, **case, entries=entries)
    table[0] = 1e6  # would take all probability
    after = loss_and_gradients(users, table, targets, **case, entries=entries)
    assert not before["table"][0].any()
    for name in before:
        np.testing.assert_array_equal(before[name], after[name])


def test_gradients_scale_with_what_the_loss_is_multiplied_by(rng):
    users, table, targets, histories = random_case(rng, targets=4)
    case = {"item_provider": catalog_providers(), "weights": (np.ones(MAX_LEN), np.ones(MAX_LEN))}
    entries = entries_of(histories)
    once = loss_and_gradients(users, table, targets, **case, entries=entries)
    thrice = loss_and_gradients(users, table, targets, **case, entries=entries, scale=3.0)
    for name in ("users", "table", "a", "b"):
        np.testing.assert_allclose(thrice[name], 3 * once[name], rtol=1e-5, atol=1e-7)


def test_gradients_are_those_of_autograd_through_plain_operators(engine, rng, scores_at_once):
    scores_at_once(4 * ITEMS)
    users, table, targets, histories = random_case(rng, targets=9)
    item_provider = catalog_providers(without=3)
    a, b = rng.uniform(0, 2, MAX_LEN), rng.normal(0, 1, MAX_LEN)
    found = loss_and_gradients(
        users, table, targets, item_provider=item_provider, weights=(a, b), entries=entries_of(histories)
    )
    leaves = {"users": users, "table": table, "a": a, "b": b}
    leaves = {name: torch.tensor(array, dtype=torch.float64, requires_grad=True) for name, array in leaves.items()}
    providers = torch.from_numpy(item_provider)
    scores = leaves["users"] @ leaves["table"].T
    for row, history in enumerate(histories):
        for age, taken in enumerate(reversed(history)):
            same = (providers == providers[taken]) & (providers > 0)
            scores = scores.index_put((torch.tensor(row),), scores[row] + leaves["a"][age] * same)
            scores = scores.index_put((torch.tensor(row), torch.tensor(taken)), scores[row, taken] + leaves["b"][age])
    loss = torch.nn.functional.cross_entropy(scores[:, 1:], torch.from_numpy(targets) - 1)
    loss.backward()
    assert found["loss"] == pytest.approx(loss.item(), rel=1e-5)
    for name, leaf in leaves.items():
        np.testing.assert_allclose(found[name], leaf.grad.numpy(), **CLOSE, err_msg=name)


def test_large_scores_give_a_finite_loss(engine, rng):
    users, table, targets, _ = random_case(rng, targets=4)
    found = loss_and_gradients(100 * users, 100 * table, targets, item_provider=catalog_providers())
    assert np.isfinite(found["loss"])
    assert found["loss"] > 100


@pytest.mark.parametrize("without_provider", [0, 9])
def test_a_sample_of_items_counts_as_often_as_its_bias_says(engine, rng, scores_at_once, without_provider):
    scores_at_once(3 * ITEMS)
    users, table, targets, histories = random_case(rng, targets=13)
    item_provider = catalog_providers(without=without_provider)
    a, b = rng.uniform(0, 2, MAX_LEN), rng.normal(0, 1, MAX_LEN)
    chosen = np.sort(rng.permutation(np.arange(1, ITEMS + 1))[:25])
    counted = np.zeros(ITEMS + 1)
    counted[chosen] = rng.uniform(1, 9, 25)
    bias = torch.from_numpy(np.log(counted[chosen]).astype(np.float32))
    found = loss_and_gradients(
        users,
        table,
        targets,
        item_provider=item_provider,
        weights=(a, b),
        entries=entries_of(histories),
        columns=scored_items(torch.from_numpy(item_provider), chosen, bias=bias),
    )
    expected = naive_training.softmax_loss(
        users.astype(np.float64),
        table,
        targets,
        item_provider=item_provider,
        a=a,
        b=b,
        histories=histories,
        counted=counted,
    )
    for name, array in expected.items():
        np.testing.assert_allclose(found[name], array, **CLOSE, err_msg=name)


def test_low_precision_is_close(engine, rng, scores_at_once):
    scores_at_once(5 * ITEMS)
    users, table, targets, histories = random_case(rng, targets=13)
    case = {"item_provider": catalog_providers(), "weights": (np.ones(MAX_LEN), np.ones(MAX_LEN))}
    entries = entries_of(histories)
    exact = loss_and_gradients(users, table, targets, **case, entries=entries)
    low = loss_and_gradients(users, table, targets, **case, entries=entries, precision="bf16")
    for name, array in exact.items():
        np.testing.assert_allclose(low[name], array, rtol=0.03, atol=0.03 * abs(array).max(), err_msg=name)
        assert low[name].dtype == np.float32


def test_threads_share_the_rows_and_change_nothing_but_the_order_of_sums(rng):
    users, table, targets, histories = random_case(rng, targets=13)
    case = {"item_provider": catalog_providers(), "weights": (np.ones(MAX_LEN), np.ones(MAX_LEN))}
    entries = entries_of(histories)
    alone = loss_and_gradients(users, table, targets, **case, entries=entries)
    threads = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        shared = loss_and_gradients(users, table, targets, **case, entries=entries)
    finally:
        torch.set_num_threads(threads)
    for name, array in alone.items():
        np.testing.assert_allclose(shared[name], array, rtol=1e-5, atol=1e-7, err_msg=name)


def test_provider_weights_are_never_negative_and_item_weights_may_be():
    terms = HistoryTerms(4)
    with torch.no_grad():
        terms.provider.copy_(torch.tensor([-50.0, -0.1, 0.0, 2.0]))
        terms.item.copy_(torch.tensor([-0.5, 0.0, 0.5, 1.0]))
    weights = terms.provider_weights()
    assert (weights >= 0).all()
    assert (weights[1:] > weights[:-1]).all()
    assert terms.item_weights().tolist() == [-10.0, 0.0, 10.0, 20.0]
    assert len(terms.provider_weights()) == 4


@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("temperature", [1.0, 0.2])
@pytest.mark.parametrize("users", [1, 2, 7])
def test_contrastive_loss_equals_plain_loops(rng, symmetric, temperature, users):
    item_users, provider_users = rng.normal(0, 1, (2, users, DIM))
    found = contrastive_loss(
        torch.from_numpy(item_users), torch.from_numpy(provider_users), temperature=temperature, symmetric=symmetric
    )
    expected = naive_training.contrastive_loss(item_users, provider_users, temperature=temperature, symmetric=symmetric)
    assert found.item() == pytest.approx(expected, rel=1e-9, abs=1e-12)


def test_only_the_symmetric_contrastive_loss_is_the_same_with_the_streams_exchanged(rng):
    views = [torch.from_numpy(view) for view in rng.normal(0, 1, (2, 5, DIM))]

    def both(symmetric: bool) -> list[float]:
        orders = (views, views[::-1])
        return [contrastive_loss(*order, temperature=1.0, symmetric=symmetric).item() for order in orders]

    assert both(True)[0] == pytest.approx(both(True)[1], rel=1e-12)
    assert abs(both(False)[0] - both(False)[1]) > 1e-3
