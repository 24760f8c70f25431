from __future__ import annotations

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from naive_training import NaiveModel
from training_data import BASELINES, ITEMS, KINDS, MAX_LEN, PROVIDERS, build_graph_once, exportable, kind_id

from ipsrec_export.graph import OPSET

DIM = 8
# All of them but the two readings of co-attention that the paper's notes do not name.
EXPORTED = KINDS[:-2]


every_kind = pytest.mark.parametrize("kind", EXPORTED, ids=kind_id)


def run_graph(graph, outputs, items, providers, lengths):
    session = onnxruntime.InferenceSession(graph.SerializeToString(), providers=["CPUExecutionProvider"])
    feed = {"item_history": items, "provider_history": providers, "lengths": lengths}
    return session.run(outputs, feed)


def random_batch(rng, batch, sequence, *, longest=None):
    lengths = rng.integers(0, (longest or sequence) + 1, batch)
    real = np.arange(sequence) < lengths[:, None]
    items = np.where(real, rng.integers(1, ITEMS + 1, real.shape), 0)
    providers = np.where(real, rng.integers(0, PROVIDERS + 1, real.shape), 0)
    return tuple(array.astype(np.int32) for array in (items, providers, lengths))


def torch_users(model, batch):
    with torch.no_grad():
        return model(*(torch.from_numpy(array) for array in batch)).numpy()


def axes(value):
    return [axis.dim_param or axis.dim_value for axis in value.type.tensor_type.shape.dim]


@every_kind
def test_names_types_and_axes_are_the_contracts(kind):
    graph = build_graph_once(exportable(*kind)).graph
    found = {value.name: (value.type.tensor_type.elem_type, axes(value)) for value in graph.input}
    assert found == {
        "item_history": (onnx.TensorProto.INT32, ["batch", "sequence"]),
        "provider_history": (onnx.TensorProto.INT32, ["batch", "sequence"]),
        "lengths": (onnx.TensorProto.INT32, ["batch"]),
    }
    found = {value.name: (value.type.tensor_type.elem_type, axes(value)) for value in graph.output}
    assert found == {
        "user_embedding": (onnx.TensorProto.FLOAT, ["batch", DIM]),
        "item_embeddings": (onnx.TensorProto.FLOAT, [ITEMS + 1, DIM]),
    }


@every_kind
def test_the_graph_is_valid_and_of_standard_operators_of_one_opset(kind):
    graph = build_graph_once(exportable(*kind))
    onnx.checker.check_model(graph, full_check=True)
    assert [(opset.domain, opset.version) for opset in graph.opset_import] == [("", OPSET)]
    assert {node.domain for node in graph.graph.node} == {""}
    assert not graph.functions


@every_kind
@pytest.mark.parametrize(("batch", "sequence"), [(1, 1), (1, MAX_LEN), (2, 3), (7, 2), (64, 1), (64, MAX_LEN)])
def test_any_batch_and_sequence_gives_what_pytorch_gives(rng, kind, batch, sequence):
    model = exportable(*kind)
    arrays = random_batch(rng, batch, sequence)
    (found,) = run_graph(build_graph_once(model), ["user_embedding"], *arrays)
    assert found.shape == (batch, DIM)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, torch_users(model, arrays), rtol=1e-4, atol=1e-5)


@every_kind
def test_the_graph_equals_the_float64_twin(rng, kind):
    model = exportable(*kind)
    twin = NaiveModel(model)
    items, providers, lengths = random_batch(rng, 6, 7)
    (found,) = run_graph(build_graph_once(model), ["user_embedding"], items, providers, lengths)
    assert np.isfinite(found).all()
    for row, length in enumerate(lengths.tolist()):
        if length:
            expected = twin.user(items[row, :length].tolist(), providers[row, :length].tolist())
            np.testing.assert_allclose(found[row], expected, rtol=1e-4, atol=1e-5)


@every_kind
def test_the_item_table_is_an_output_with_the_provider_folded_in(kind):
    model = exportable(*kind)
    one = (np.ones((1, 1), np.int32), np.ones((1, 1), np.int32), np.ones(1, np.int32))
    (table,) = run_graph(build_graph_once(model), ["item_embeddings"], *one)
    np.testing.assert_array_equal(table, model.item_embeddings().detach().numpy())
    assert not table[0].any()
    items = model.items.weight.detach().numpy()
    assert np.array_equal(table, items) != model.settings.provider_in_item


@every_kind
def test_what_lies_beyond_a_length_changes_no_bit(rng, kind):
    items, providers, lengths = random_batch(rng, 7, MAX_LEN)
    lengths = np.maximum(lengths, 1)
    beyond = np.arange(MAX_LEN) >= lengths[:, None]
    others = (np.where(beyond, 9, items).astype(np.int32), np.where(beyond, 3, providers).astype(np.int32))
    graph = build_graph_once(exportable(*kind))
    (clean,) = run_graph(graph, ["user_embedding"], items, providers, lengths)
    (full,) = run_graph(graph, ["user_embedding"], *others, lengths)
    np.testing.assert_array_equal(clean, full)


@pytest.mark.parametrize(
    "kind",
    [("ipsrec-s", "recommended"), ("ipsrec-c", "recommended"), *((name, None) for name in BASELINES)],
    ids=kind_id,
)
@pytest.mark.parametrize("max_len", [1, 2])
def test_the_shortest_models_can_be_exported(rng, kind, max_len):
    model = exportable(*kind, max_len=max_len)
    graph = build_graph_once(model)
    for batch, sequence in ((1, 1), (5, max_len)):
        arrays = random_batch(rng, batch, sequence)
        (found,) = run_graph(graph, ["user_embedding"], *arrays)
        np.testing.assert_allclose(found, torch_users(model, arrays), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", [("ipsrec-s", "released"), *((name, None) for name in BASELINES)], ids=kind_id)
def test_a_model_that_sees_no_provider_stream_looks_up_no_provider(rng, kind):
    graph = build_graph_once(exportable(*kind))
    readers = {node.op_type for node in graph.graph.node if "provider_history" in node.input}
    assert readers <= {"Shape"}  # the inputs are the same for every model, but this one needs no providers
    items, providers, lengths = random_batch(rng, 5, 6)
    users = [run_graph(graph, ["user_embedding"], items, given, lengths)[0] for given in (providers, providers * 0)]
    np.testing.assert_array_equal(*users)


@pytest.mark.parametrize(("variant", "tokens"), [("released", "sequence"), ("paper", "2*sequence")])
def test_the_single_stream_as_released_attends_over_half_the_tokens(variant, tokens):
    graph = build_graph_once(exportable("ipsrec-s", variant)).graph
    shapes = {value.name: axes(value) for value in graph.value_info}
    attention = [shapes[node.output[0]] for node in graph.node if node.op_type == "Softmax"]
    assert [shape[2] for shape in attention] == [tokens, 1]  # queries; of the last layer the newest position alone
