"""The half-precision graph: its rewriting is exact, its rounding is bounded, and its weights must fit."""

from __future__ import annotations

import copy

import numpy as np
import onnx
import pytest
import torch
from encoder_files import drawn_model
from test_export_gate import exported, graph_encoder, random_histories
from test_export_graph import axes, random_batch, run_graph, torch_users
from training_data import BASELINES, ITEMS, KINDS, MAX_LEN, exportable, kind_id

from ipsrec_export.gate import BOUNDS, run_gate
from ipsrec_export.graph import OPSET, build_lean_graph
from ipsrec_export.lean import MODELS, lean_encoder
from ipsrec_onnx.errors import DataError

DIM = 8
LEAN = [kind for kind in KINDS if kind[0] in MODELS]
SHORTEST = [("ipsrec-s", "recommended", None), ("ipsrec-c", "recommended", None), ("sasrec", None, None)]
every_kind = pytest.mark.parametrize("kind", LEAN, ids=kind_id)

_GRAPHS: dict[tuple, onnx.ModelProto] = {}


def lean_graph(kind, dtype=torch.float16, *, max_len=MAX_LEN):
    """The graph of a small model, which takes seconds, once."""
    key = (kind, dtype, max_len)
    if key not in _GRAPHS:
        _GRAPHS[key] = build_lean_graph(exportable(*kind, max_len=max_len), dtype=dtype)
    return _GRAPHS[key]


def error(found, expected):
    """Largest difference, as a share of the user's largest element: what the gate bounds."""
    return (np.abs(found - expected) / np.abs(expected).max(1, keepdims=True)).max()


@every_kind
def test_the_rewriting_alone_changes_rounding_only(rng, kind):
    model, graph = exportable(*kind), lean_graph(kind, torch.float32)
    for batch, sequence in ((1, 1), (1, 2), (7, 1), (2, 2), (7, MAX_LEN), (64, 3), (64, MAX_LEN)):
        arrays = random_batch(rng, batch, sequence)
        (found,) = run_graph(graph, ["user_embedding"], *arrays)
        assert found.shape == (batch, DIM)
        np.testing.assert_allclose(found, torch_users(model, arrays), rtol=1e-5, atol=1e-5)


@every_kind
def test_half_precision_stays_within_the_gates_bounds(rng, kind):
    model = exportable(*kind)
    report = run_gate(
        model,
        exported(model, graph_encoder(lean_graph(kind))),
        random_histories(rng, ITEMS),
        bounds=BOUNDS["fp16"],
    )
    assert 1e-5 < report.embedding_error <= BOUNDS["fp16"].max_embedding_error
    assert {cell.lengths for cell in report.cells} == {"1", "2", "5", "10", "mixed", "empty"}
    assert report.as_metadata()["bounds"]["max_embedding_error"] == BOUNDS["fp16"].max_embedding_error


@pytest.mark.parametrize("kind", SHORTEST, ids=kind_id)
@pytest.mark.parametrize("max_len", [1, 2])
@pytest.mark.parametrize(("dtype", "close"), [(torch.float32, 1e-5), (torch.float16, 1e-2)])
def test_the_shortest_models_can_be_exported(rng, kind, max_len, dtype, close):
    model, graph = exportable(*kind, max_len=max_len), lean_graph(kind, dtype, max_len=max_len)
    for batch, sequence in ((1, 1), (5, max_len)):
        arrays = random_batch(rng, batch, sequence)
        (found,) = run_graph(graph, ["user_embedding"], *arrays)
        assert error(found, torch_users(model, arrays)) < close


@every_kind
def test_names_types_and_axes_are_the_contracts(kind):
    graph = lean_graph(kind).graph
    found = {value.name: (value.type.tensor_type.elem_type, axes(value)) for value in (*graph.input, *graph.output)}
    assert found == {
        "item_history": (onnx.TensorProto.INT32, ["batch", "sequence"]),
        "provider_history": (onnx.TensorProto.INT32, ["batch", "sequence"]),
        "lengths": (onnx.TensorProto.INT32, ["batch"]),
        "user_embedding": (onnx.TensorProto.FLOAT, ["batch", DIM]),
        "item_embeddings": (onnx.TensorProto.FLOAT, [ITEMS + 1, DIM]),
    }


@every_kind
def test_all_but_the_item_table_is_half_and_attention_is_one_node(kind):
    proto = lean_graph(kind)
    onnx.checker.check_model(proto)
    assert [(opset.domain, opset.version) for opset in proto.opset_import] == [("", OPSET), ("com.microsoft", 1)]
    floats = {one.name for one in proto.graph.initializer if one.data_type == onnx.TensorProto.FLOAT and one.dims}
    assert floats == {"item_embeddings"}
    attention = [node for node in proto.graph.node if node.op_type == "MultiHeadAttention"]
    assert {node.domain for node in proto.graph.node if node not in attention} == {""}
    assert not any(node.op_type == "Softmax" for node in proto.graph.node)
    layers = {"ipsrec-c": 2 * 2 + 1, "ipsrec-s": 2, "sasrec": 2}  # the last fusion of providers is of no use
    if kind[1] == "released" and kind[0] == "ipsrec-c":
        layers["ipsrec-c"] = 3
    assert len(attention) == layers[kind[0]]
    assert not any(node.input[3:4] and node.input[3] for node in attention)  # no bias that a kernel must add
    norms = [node for node in proto.graph.node if node.op_type == "LayerNormalization"]
    epsilons = {attribute.f for node in norms for attribute in node.attribute if attribute.name == "epsilon"}
    assert epsilons == {np.float32(1e-12)}


@every_kind
def test_the_item_table_is_the_exact_one(kind):
    one = (np.ones((1, 1), np.int32), np.ones((1, 1), np.int32), np.ones(1, np.int32))
    (table,) = run_graph(lean_graph(kind), ["item_embeddings"], *one)
    np.testing.assert_array_equal(table, exportable(*kind).item_embeddings().detach().numpy())


@every_kind
def test_what_lies_beyond_a_length_changes_no_bit(rng, kind):
    items, providers, lengths = random_batch(rng, 7, MAX_LEN)
    lengths = np.maximum(lengths, 1)
    beyond = np.arange(MAX_LEN) >= lengths[:, None]
    others = (np.where(beyond, 9, items).astype(np.int32), np.where(beyond, 3, providers).astype(np.int32))
    (clean,) = run_graph(lean_graph(kind), ["user_embedding"], items, providers, lengths)
    (full,) = run_graph(lean_graph(kind), ["user_embedding"], *others, lengths)
    np.testing.assert_array_equal(clean, full)


@pytest.mark.parametrize("name", MODELS)
def test_biases_and_norms_as_large_as_trained_ones_are_all_there(rng, name):
    model = drawn_model(name, max_len=12)
    graph = build_lean_graph(model, dtype=torch.float32)
    lengths = np.array([1, 2, 12, 5], np.int32)
    arrays = (rng.integers(1, 301, (4, 12)), rng.integers(0, 21, (4, 12)), lengths)
    arrays = tuple(array.astype(np.int32) for array in arrays)
    (found,) = run_graph(graph, ["user_embedding"], *arrays)
    np.testing.assert_allclose(found, torch_users(model, arrays), rtol=1e-5, atol=1e-5)


def test_the_model_itself_stays_as_it_is():
    model = exportable("ipsrec-c", "recommended")
    before = copy.deepcopy(model.state_dict())
    encoder = lean_encoder(model)
    with torch.no_grad():
        for weight in encoder.parameters():
            weight.fill_(3.0)
    assert model.state_dict().keys() == before.keys()
    assert all(torch.equal(weight, before[name]) for name, weight in model.state_dict().items())


@pytest.mark.parametrize("name", sorted(set(BASELINES) - {"sasrec"}))
def test_models_of_other_parts_are_refused(name):
    with pytest.raises(DataError, match=f"fp16 has ipsrec-c, ipsrec-s, sasrec, found {name}; export it with --prec"):
        build_lean_graph(exportable(name, None))


@pytest.mark.parametrize("part", ["encoder.layers.1.inner.weight", "items.weight", "providers.weight"])
def test_weights_beyond_half_precision_are_refused(part):
    model = exportable("ipsrec-s", "recommended")
    with torch.no_grad():
        model.get_parameter(part)[1, 2] = -70000.0
    with pytest.raises(DataError, match=r"reaches \S+, float16 ends at 65504; export with --precision fp32") as refused:
        build_lean_graph(model)
    assert "\n" not in str(refused.value)


def test_states_beyond_half_precision_fail_the_gate(rng):
    """Weights that fit one by one, and a product that does not: the user is infinite or no number."""
    model = exportable("sasrec", None)
    with torch.no_grad():
        model.encoder.layers[0].inner.weight.fill_(60000.0)
    graph = build_lean_graph(model)
    report = run_gate(model, exported(model, graph_encoder(graph)), random_histories(rng, ITEMS), bounds=BOUNDS["fp16"])
    assert report.embedding_error == float("inf")
    assert not report.passed
