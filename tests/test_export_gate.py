from __future__ import annotations

import copy
import itertools
from dataclasses import replace

import numpy as np
import onnxruntime
import pytest
import torch
from training_data import ITEMS, KINDS, MAX_LEN, build_graph_once, exportable, kind_id, small_settings

from ipsrec_export.comparison import Exported, history_terms
from ipsrec_export.gate import BATCH_SIZES, BOUNDS, Bounds, GateReport, run_gate
from ipsrec_onnx.errors import ModelFileError
from ipsrec_train.batches import Histories
from ipsrec_train.history_scores import scored_items
from ipsrec_train.model import Model
from ipsrec_train.ranking import rank_targets

MANY_ITEMS = 400  # more than the lists hold, so that they can differ


@pytest.fixture
def validation(rng):
    return random_histories(rng, ITEMS)


@pytest.fixture
def large_model():
    """Wide vectors, so that lists of different users differ."""
    torch.manual_seed(1)
    providers = np.concatenate([[0], np.repeat(np.arange(1, 11), MANY_ITEMS // 10)])
    settings = small_settings(initializer_std=0.5)
    return Model("ipsrec-c", settings, item_provider=providers, num_providers=10).eval()


def random_histories(rng, num_items, users=80):
    lengths = np.concatenate([[0, 1, MAX_LEN, MAX_LEN + 1], rng.integers(0, 25, users - 4)])
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    draw = rng.integers(1, num_items + 1, offsets[-1] + users).astype(np.int32)
    return Histories(values=draw[: offsets[-1]], offsets=offsets, targets=draw[offsets[-1] :])


def exported(model, encode, **changes):
    """The model's own tables beside an encoder."""
    parts = {
        "item_embeddings": model.item_embeddings().detach().numpy(),
        "item_provider": model.item_provider.numpy().astype(np.int32),
        "history_terms": history_terms(model),
    }
    return Exported(encode=encode, **(parts | changes))


def graph_encoder(graph):
    session = onnxruntime.InferenceSession(graph.SerializeToString(), providers=["CPUExecutionProvider"])

    def encode(items, providers, lengths):
        feed = {"item_history": items, "provider_history": providers, "lengths": lengths}
        return session.run(["user_embedding"], feed)[0]

    return encode


def torch_encoder(model):
    @torch.no_grad()
    def encode(items, providers, lengths):
        return model(*(torch.from_numpy(array) for array in (items, providers, lengths))).numpy()

    return encode


def changed_encoder(model, change):
    """The model itself, with its answer changed."""
    encode = torch_encoder(model)

    def changed(items, providers, lengths):
        return change(encode(items, providers, lengths).copy())

    return changed


def swap_first_two(users):
    users[:2] = users[:2][::-1].copy()
    return users


def first_is_nan(users):
    users[0, 0] = np.nan
    return users


def last_is_infinite(users):
    users[-1, -1] = np.inf
    return users


def refusal(report: GateReport) -> str:
    assert not report.passed
    with pytest.raises(ModelFileError, match="the gate is not passed, so no model file is written") as refused:
        report.refuse_unless_passed()
    assert "\n" not in str(refused.value)
    return str(refused.value)


@pytest.mark.parametrize("kind", KINDS[:7], ids=kind_id)
def test_every_model_passes_and_says_what_was_compared(kind, validation):
    model = exportable(*kind)
    report = run_gate(model, exported(model, graph_encoder(build_graph_once(model))), validation)
    assert report.passed
    report.refuse_unless_passed()
    kinds = ("1", "2", str(MAX_LEN // 2), str(MAX_LEN), "mixed", "empty")
    assert BATCH_SIZES == (1, 2, 7, 64)
    assert [(cell.batch_size, cell.lengths) for cell in report.cells] == list(itertools.product(BATCH_SIZES, kinds))
    assert report.validation_users == np.count_nonzero(np.diff(validation.offsets))
    assert 0 < report.embedding_error < 1e-5
    assert report.embedding_error >= max(cell.embedding_error for cell in report.cells)
    assert report.overlap == 1.0
    assert report.ndcg_change < 1e-12


@pytest.mark.parametrize("max_len", [1, 2])
def test_the_shortest_models_pass(rng, max_len):
    model = exportable("ipsrec-c", "recommended", max_len=max_len)
    report = run_gate(model, exported(model, graph_encoder(build_graph_once(model))), random_histories(rng, ITEMS))
    assert report.passed
    assert {cell.lengths for cell in report.cells} == {"1", "2", "mixed", "empty"} - ({"2"} if max_len == 1 else set())


def test_its_grid_has_full_empty_and_mixed_histories_and_unknown_providers():
    calls = []
    model = exportable("ipsrec-s", "released")

    def encode(*arrays):
        calls.append(arrays)
        return torch_encoder(model)(*arrays)

    nobody = Histories(values=np.zeros(0, np.int32), offsets=np.zeros(1, np.int64), targets=np.zeros(0, np.int32))
    report = run_gate(model, exported(model, encode), nobody)
    assert len(calls) == len(report.cells)
    for cell, (items, providers, lengths) in zip(report.cells, calls, strict=True):
        assert items.dtype == providers.dtype == lengths.dtype == np.int32
        assert items.shape == providers.shape
        assert items.shape[0] == len(lengths) == cell.batch_size
        np.testing.assert_array_equal((items != 0).sum(1), lengths)
        assert items.shape[1] == max(1, lengths.max())
        assert not providers[items == 0].any()
        if cell.lengths.isdigit():
            assert set(lengths.tolist()) == {int(cell.lengths)}
        if cell.lengths == "empty":
            assert not lengths.any()
    mixed = [lengths for cell, (_, _, lengths) in zip(report.cells, calls, strict=True) if cell.lengths == "mixed"]
    assert {0, MAX_LEN} <= set(mixed[-1].tolist())
    assert any(((items > 0) & (providers == 0)).any() for items, providers, _ in calls)


def test_no_validation_users_leave_the_grid_to_decide(large_model):
    nobody = Histories(values=np.zeros(0, np.int32), offsets=np.zeros(3, np.int64), targets=np.ones(2, np.int32))
    report = run_gate(large_model, exported(large_model, torch_encoder(large_model)), nobody)
    assert report.passed
    assert report.validation_users == 0
    assert not run_gate(large_model, exported(large_model, changed_encoder(large_model, swap_first_two)), nobody).passed


@pytest.mark.parametrize("part", ["item_fusion.0.key.weight", "item_input.position", "item_layers.1.inner.bias"])
def test_a_graph_of_other_weights_is_refused_with_figures(validation, part):
    model = exportable("ipsrec-c", "recommended")
    graph = build_graph_once(model)
    other = copy.deepcopy(model)
    with torch.no_grad():
        other.encoder.get_parameter(part)[0] *= 1.2
    message = refusal(run_gate(other, exported(model, graph_encoder(graph)), validation))
    assert "(at most 1e-04)" in message
    assert "overlap" in message
    assert "NDCG@10 change" in message


@pytest.mark.parametrize("change", [first_is_nan, last_is_infinite])
def test_a_graph_that_gives_no_number_is_refused_with_figures(large_model, rng, change):
    encode = changed_encoder(large_model, change)
    message = refusal(run_gate(large_model, exported(large_model, encode), random_histories(rng, MANY_ITEMS)))
    assert "embedding error inf" in message


def test_swapped_users_are_refused(large_model, rng):
    report = run_gate(
        large_model,
        exported(large_model, changed_encoder(large_model, swap_first_two)),
        random_histories(rng, MANY_ITEMS),
    )
    assert "overlap" in refusal(report)
    cells = {(cell.batch_size, cell.lengths): cell for cell in report.cells}
    assert cells[1, "mixed"].embedding_error == 0.0
    assert cells[7, "2"].embedding_error > 0.1
    assert cells[7, "2"].overlap < 1.0


def test_an_error_in_one_shape_alone_is_refused(large_model, rng):
    """Such as a graph that fixed an axis: right for every batch but one."""
    encode = torch_encoder(large_model)

    def wrong_for_seven(items, providers, lengths):
        users = encode(items, providers, lengths)
        return users * 1.01 if len(items) == 7 and items.shape[1] == 5 else users

    report = run_gate(large_model, exported(large_model, wrong_for_seven), random_histories(rng, MANY_ITEMS))
    wrong = [(cell.batch_size, cell.lengths) for cell in report.cells if cell.embedding_error > 0]
    assert wrong == [(7, "5")]
    refusal(report)


def test_lists_and_quality_are_bounds_of_their_own(large_model, rng):
    validation = random_histories(rng, MANY_ITEMS)
    encode = changed_encoder(large_model, lambda users: users[::-1].copy())
    bounds = replace(BOUNDS["fp32"], max_embedding_error=float("inf"))
    by_lists = run_gate(large_model, exported(large_model, encode), validation, bounds=bounds)
    assert by_lists.overlap < 0.9
    refusal(by_lists)
    bounds = replace(bounds, min_overlap=0.0)
    by_cells = run_gate(large_model, exported(large_model, encode), validation, bounds=bounds)
    refusal(by_cells)  # the lowest cell has a bound of its own
    bounds = replace(bounds, min_cell_overlap=0.0)
    by_quality = run_gate(large_model, exported(large_model, encode), validation, bounds=bounds)
    assert by_quality.ndcg_change > 1e-3
    refusal(by_quality)
    bounds = replace(bounds, max_ndcg_change=float("inf"))
    assert run_gate(large_model, exported(large_model, encode), validation, bounds=bounds).passed


@pytest.mark.parametrize("part", ["item_embeddings", "item_provider", "history_terms"])
def test_onnx_ranks_with_the_files_own_tables(large_model, rng, part):
    right = exported(large_model, torch_encoder(large_model))
    value = getattr(right, part)
    changed = type(value)(*(10 + weights for weights in value)) if part == "history_terms" else value[::-1].copy()
    if part == "item_provider":
        changed[0] = 0
    report = run_gate(large_model, replace(right, **{part: changed}), random_histories(rng, MANY_ITEMS))
    assert report.embedding_error == 0.0
    assert report.overlap < 0.999
    refusal(report)


@pytest.mark.parametrize("with_terms", [True, False])
def test_its_ndcg_is_that_of_a_full_ranking(rng, with_terms):
    torch.manual_seed(2)
    providers = np.concatenate([[0], np.repeat(np.arange(1, 9), 5)])
    settings = small_settings(history_terms="all" if with_terms else "none", initializer_std=0.3)
    model = Model("ipsrec-s", settings, item_provider=providers, num_providers=8).eval()
    validation = random_histories(rng, 40)
    report = run_gate(model, exported(model, torch_encoder(model)), validation)
    ranks = rank_targets(model, validation, columns=scored_items(model.item_provider))
    ranks = ranks[ranks > 0]
    expected = np.where(ranks <= 10, 1 / np.log2(ranks + 1), 0.0).mean()
    assert report.ndcg_pytorch == report.ndcg_onnx == pytest.approx(expected, rel=1e-12)


def test_history_terms_are_the_models_weights():
    model = exportable("ipsrec-c", "recommended")
    terms = history_terms(model)
    assert terms.provider.dtype == terms.item.dtype == np.float64
    np.testing.assert_array_equal(terms.provider, model.history_terms.provider_weights().detach().numpy())
    np.testing.assert_array_equal(terms.item, model.history_terms.item_weights().detach().numpy())
    assert history_terms(exportable("ipsrec-c", "paper")) is None


def test_what_is_stored_says_the_bounds(large_model, rng):
    report = run_gate(large_model, exported(large_model, torch_encoder(large_model)), random_histories(rng, MANY_ITEMS))
    stored = report.as_metadata()
    assert stored["passed"] is True
    assert stored["bounds"] == {
        "max_embedding_error": 1e-4,
        "min_overlap": 0.999,
        "min_cell_overlap": 0.98,
        "max_ndcg_change": 1e-3,
    }
    assert stored["cells"][0] == {"batch_size": 1, "lengths": "1", "embedding_error": 0.0, "overlap": 1.0}


def test_a_change_of_ndcg_that_may_be_chance_is_let_pass_in_half_precision_alone(large_model, rng):
    """One user's target goes from rank 2 to 1: much for 77 users' NDCG, and no proof of anything."""
    validation = random_histories(rng, MANY_ITEMS)
    encode = torch_encoder(large_model)
    bounds = Bounds(
        max_embedding_error=float("inf"), min_overlap=0.0, min_cell_overlap=0.0, max_ndcg_change=1e-3, ndcg_errors=2
    )

    def one_user_better(items, providers, lengths):
        users = encode(items, providers, lengths)
        if len(items) > 64:  # validation users, and no cell of the grid
            users[5] = large_model.item_embeddings().detach().numpy()[validation.targets[6]] * 100
        return users

    report = run_gate(large_model, exported(large_model, one_user_better), validation, bounds=bounds)
    assert report.ndcg_change > 1e-3
    assert report.ndcg_standard_error == pytest.approx(abs(report.ndcg_onnx - report.ndcg_pytorch), rel=0.2)
    assert report.passed
    assert report.as_metadata()["ndcg_standard_error"] == report.ndcg_standard_error
    strict = run_gate(
        large_model, exported(large_model, one_user_better), validation, bounds=replace(bounds, ndcg_errors=0.0)
    )
    refusal(strict)
    assert "ndcg_standard_error" not in strict.as_metadata()

    def all_better(items, providers, lengths):
        users = encode(items, providers, lengths)
        if len(items) > 64:
            liked = validation.targets[np.diff(validation.offsets) > 0]
            users[:] = large_model.item_embeddings().detach().numpy()[liked] * 100
        return users

    refusal(run_gate(large_model, exported(large_model, all_better), validation, bounds=bounds))
