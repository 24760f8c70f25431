"""Weights in fewer bytes: what a graph computes with them, and what its file and its memory hold."""

from __future__ import annotations

import naive
import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper
from test_export_graph import random_batch, run_graph
from training_data import BASELINES, ITEMS, MAX_LEN, build_graph_once, exportable, kind_id

from ipsrec_export import weight_storage
from ipsrec_export.weight_storage import (
    SMALLEST,
    drop_node_notes,
    drop_output,
    groups_of,
    quantize,
    second_moment,
    storable_weights,
    store_weights,
)
from ipsrec_onnx.errors import DataError

DIM = 16
KINDS = [*((name, None) for name in BASELINES), ("ipsrec-s", "recommended"), ("ipsrec-c", "recommended", "queries")]
every_kind = pytest.mark.parametrize("kind", KINDS, ids=kind_id)


def encoder_graph(kind=("ipsrec-c", "recommended", "queries")):
    """Of a small model, wide enough that its matrices are stored in fewer bytes."""
    return build_graph_once(exportable(*kind, dim=DIM))


def all_in(graph, kind):
    return {weight.name: kind for weight in storable_weights(graph)}


def users_of(proto, arrays):
    return run_graph(proto, ["user_embedding"], *arrays)[0]


@pytest.mark.parametrize("inputs", [(0,), (1,), (1, 2), (2,)])
def test_quantizing_is_the_naive_twins(rng, inputs):
    weight = rng.normal(size=(7, 6, 5) if 2 in inputs else (9, 8)).astype(np.float32)
    found = quantize(weight, inputs)
    values, scales = naive.quantize(weight, inputs)
    np.testing.assert_array_equal(found.values, values)
    np.testing.assert_array_equal(found.scales, scales)
    assert found.scales.dtype == np.float16
    assert (np.abs(found.as_float32() - weight) <= 0.57 * found.scales.astype(np.float32)).all()


def correlated(rng, num_vectors, dim=DIM):
    """Vectors that vary in few directions much more than in others, as users do."""
    return (rng.normal(size=(num_vectors, dim)) * 2.0 ** -np.arange(dim) @ rng.normal(size=(dim, dim))).astype(
        np.float32
    )


@pytest.mark.parametrize("num_rows", [1, 2, 7, 40])
def test_rounding_for_products_is_the_naive_twins(rng, monkeypatch, num_rows):
    monkeypatch.setattr(weight_storage, "_ROUNDED_AT_ONCE", 7)
    table = rng.normal(size=(num_rows, DIM)).astype(np.float32)
    table[num_rows // 2] = 0
    vectors = correlated(rng, 50)
    met = second_moment(vectors)
    plain = sum(np.outer(v, v) for v in vectors.astype(np.float64)) / 50
    damping = (0.1 + 0.3 * DIM / 50) * sum(plain[d, d] for d in range(DIM)) / DIM
    np.testing.assert_allclose(met, plain + damping * np.eye(DIM), rtol=1e-9)
    found, nearest = quantize(table, (1,), met=met), quantize(table, (1,))
    np.testing.assert_array_equal(found.scales, nearest.scales)
    scales = np.where(found.scales > 0, found.scales, 1).astype(np.float32)
    np.testing.assert_array_equal(found.values, naive.round_for_products(table / scales, met))
    assert (found.values[num_rows // 2] == 0).all()


def off_by(table, users, met):
    """Mean square of what rounding makes of the users' products with the rows."""
    return float(np.square(users @ (quantize(table, (1,), met=met).as_float32() - table).T).mean())


@pytest.mark.parametrize(("num_met", "share"), [(1, 0.9), (DIM, 0.6), (2_000, 0.5)])
def test_rounding_for_products_keeps_them_better_for_users_it_has_not_met(rng, num_met, share):
    table, users = rng.normal(size=(500, DIM)).astype(np.float32), correlated(rng, 4_000)
    met = second_moment(users[:num_met])
    assert off_by(table, users[2_000:], met) < share * off_by(table, users[2_000:], None)


@pytest.mark.parametrize("num_met", [1, 8, DIM, 4 * DIM, 2_000])
def test_even_users_lose_little_by_being_few(rng, num_met):
    """Nothing can be won for them; what is learned from a few must not do much harm to the others."""
    table, users = (rng.normal(size=(size, DIM)).astype(np.float32) for size in (500, 4_000))
    met = second_moment(users[:num_met])
    assert off_by(table, users[2_000:], met) < 1.5 * off_by(table, users[2_000:], None)


@pytest.mark.parametrize(("inputs", "shape"), [((0,), (DIM, DIM)), ((1,), (5, 5))])
def test_a_moment_that_is_not_of_the_rows_is_refused(rng, inputs, shape):
    with pytest.raises(ValueError, match="expected one of its rows"):
        quantize(rng.normal(size=(DIM + 1, DIM)).astype(np.float32), inputs, met=np.eye(*shape))


@pytest.mark.parametrize("met", [np.zeros((DIM, DIM)), np.full((DIM, DIM), np.nan), np.diag([np.inf] * DIM)])
def test_without_users_to_go_by_it_rounds_to_the_nearest(rng, met):
    table = rng.normal(size=(5, DIM)).astype(np.float32)
    np.testing.assert_array_equal(quantize(table, (1,), met=met).values, quantize(table, (1,)).values)
    assert not second_moment(np.zeros((0, DIM), np.float32)).any()


def test_the_graph_holds_the_table_that_was_rounded_for_users(rng):
    proto, met = encoder_graph(), second_moment(correlated(rng, 30))
    (table,) = (numpy_helper.to_array(one) for one in proto.graph.initializer if one.name == "item_embeddings")
    rounded = quantize(table, (1,), met=met)
    store_weights(proto, {"item_embeddings": "int8"}, rounded={"item_embeddings": rounded})
    found = run_graph(proto, ["item_embeddings"], *random_batch(rng, 3, MAX_LEN))[0]
    np.testing.assert_array_equal(found, rounded.as_float32())
    assert (found != quantize(table, (1,)).as_float32()).any()


def test_zeros_stay_zeros_and_one_huge_value_costs_its_own_row_alone(rng):
    table = rng.normal(size=(6, DIM)).astype(np.float32)
    before = quantize(table, (1,)).as_float32()
    table[0] = 0
    table[3, 5] = 1e6
    after = quantize(table, (1,)).as_float32()
    assert (after[0] == 0).all()
    assert after[3, 5] == pytest.approx(1e6, rel=1e-3)
    np.testing.assert_array_equal(after[[1, 2, 4, 5]], before[[1, 2, 4, 5]])


@pytest.mark.parametrize("scale", [1e-9, 1e9])
def test_scales_that_float16_has_no_digits_for_are_float32(rng, scale):
    table = rng.normal(size=(6, DIM)).astype(np.float32) * np.float32(scale)
    found = quantize(table, (1,))
    assert found.scales.dtype == np.float32
    np.testing.assert_allclose(found.as_float32(), table, atol=0.02 * scale)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("kind", ["int8", "fp16"])
def test_a_weight_that_is_not_finite_is_refused(value, kind):
    proto = encoder_graph()
    spoil(proto, "item_embeddings", value)
    with pytest.raises(DataError, match="weight item_embeddings holds a value that is not finite"):
        store_weights(proto, {"item_embeddings": kind})


def test_a_weight_beyond_float16_is_refused_in_it_and_stored_in_int8():
    proto = encoder_graph()
    spoil(proto, "item_embeddings", 70_000)
    with pytest.raises(DataError, match="reaches 70000, float16 ends at 65504"):
        store_weights(proto, {"item_embeddings": "fp16"})
    store_weights(proto, {"item_embeddings": "int8"})


def spoil(proto, name, value):
    (tensor,) = (one for one in proto.graph.initializer if one.name == name)
    array = numpy_helper.to_array(tensor).copy()
    array[2, 1] = value
    tensor.CopyFrom(numpy_helper.from_array(array, name))


@every_kind
@pytest.mark.parametrize("stored", ["fp16", "int8"])
@pytest.mark.parametrize("table_is_output", [True, False], ids=["server", "edge"])
def test_the_graph_computes_with_the_rounded_weights(rng, kind, stored, table_is_output):
    proto, rounded = encoder_graph(kind), encoder_graph(kind)
    if not table_is_output:
        drop_output(proto, ["item_embeddings"])
    weights = {weight.name: weight for weight in storable_weights(proto.graph)}
    assert len(groups_of(weights.values())) >= 2  # the item table, and layers
    for tensor in rounded.graph.initializer:
        if tensor.name in weights:
            array = numpy_helper.to_array(tensor)
            if stored == "fp16":
                array = array.astype(np.float16).astype(np.float32)
            else:
                values, scales = naive.quantize(array, weights[tensor.name].inputs)
                array = values * scales.astype(np.float32)
            tensor.CopyFrom(numpy_helper.from_array(array, tensor.name))
    store_weights(proto, dict.fromkeys(weights, stored))
    onnx.checker.check_model(proto, full_check=True)
    arrays = random_batch(rng, 7, MAX_LEN)
    np.testing.assert_array_equal(users_of(proto, arrays), users_of(rounded, arrays))
    if table_is_output:
        found, expected = (run_graph(one, ["item_embeddings"], *arrays)[0] for one in (proto, rounded))
        np.testing.assert_array_equal(found, expected)


@every_kind
def test_what_is_not_named_stays_as_it_is(kind):
    proto = encoder_graph(kind)
    before = proto.SerializeToString()
    store_weights(proto, {})
    assert proto.SerializeToString() == before


@every_kind
def test_every_matrix_and_table_is_found_and_small_ones_and_positions_are_left(kind):
    long = {"max_len": 20} if kind[0] in ("sasrec", "ipsrec-s", "ipsrec-c") else {}
    graph = build_graph_once(exportable(*kind, dim=DIM, **long)).graph
    found = {weight.name for weight in storable_weights(graph)}
    large = {
        one.name
        for one in graph.initializer
        if one.data_type == TensorProto.FLOAT
        and len(one.dims) > 1
        and np.prod(one.dims) >= SMALLEST
        and "position" not in one.name
    }
    assert found == large
    assert "item_embeddings" in found


def test_layers_are_groups():
    groups = groups_of(storable_weights(encoder_graph().graph))
    layers = [f"{stream}_layers.{layer}" for layer in (0, 1) for stream in ("item", "provider")]
    assert set(groups) == {"item_embeddings", *layers, "item_fusion.0", "provider_fusion.0"}


def test_files_shrink_about_as_much_as_their_weights():
    sizes = {}
    for kind in ("fp32", "fp16", "int8"):
        proto = many_items()
        store_weights(proto, all_in(proto.graph, kind))
        sizes[kind] = proto.ByteSize()
    assert sizes["fp16"] < 0.51 * sizes["fp32"]
    assert sizes["int8"] < (1 + 2 / DIM) * 0.26 * sizes["fp32"]


def many_items(rows=5_000):
    """A graph that looks rows up, and multiplies with the same table."""
    table = np.random.default_rng(0).normal(size=(rows, DIM)).astype(np.float32)
    nodes = [
        helper.make_node("Gather", ["item_embeddings", "places"], ["found"]),
        helper.make_node("ReduceMean", ["found", "axis"], ["user_embedding"], keepdims=0),
    ]
    graph = helper.make_graph(
        nodes,
        "many",
        [helper.make_tensor_value_info("places", TensorProto.INT64, ["batch", "sequence"])],
        [helper.make_tensor_value_info("user_embedding", TensorProto.FLOAT, ["batch", DIM])],
        [numpy_helper.from_array(table, "item_embeddings"), numpy_helper.from_array(np.array([1]), "axis")],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


def optimized(proto, path):
    """The graph that ONNX Runtime runs."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
    options.optimized_model_filepath = str(path)
    onnxruntime.InferenceSession(proto.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return onnx.load(path).graph


def test_a_table_of_rows_stays_int8_when_it_is_loaded(tmp_path):
    proto = many_items()
    store_weights(proto, all_in(proto.graph, "int8"))
    graph = optimized(proto, tmp_path / "optimized.onnx")
    large = {one.data_type for one in graph.initializer if np.prod(one.dims) >= SMALLEST}
    assert large == {TensorProto.INT8, TensorProto.FLOAT16}


def test_matrices_are_float32_when_they_are_loaded_and_nothing_of_it_is_left_to_do(tmp_path):
    proto = encoder_graph()
    store_weights(proto, all_in(proto.graph, "int8"))
    graph = optimized(proto, tmp_path / "optimized.onnx")
    plain = optimized(encoder_graph(), tmp_path / "plain.onnx")
    count = lambda graph: sum(node.op_type in ("Cast", "Mul") for node in graph.node)  # noqa: E731
    assert count(graph) == count(plain)


def test_notes_of_the_exporter_can_be_dropped(rng):
    proto = encoder_graph()
    arrays = random_batch(rng, 3, MAX_LEN)
    before, size = users_of(proto, arrays), proto.ByteSize()
    drop_node_notes(proto)
    assert proto.ByteSize() < 0.5 * size
    assert b"/ipsrec_" not in proto.SerializeToString()  # paths of files
    np.testing.assert_array_equal(users_of(proto, arrays), before)


def test_ids_beyond_the_tables_rows_fail_as_before():
    proto = encoder_graph()
    store_weights(proto, all_in(proto.graph, "int8"))
    beyond = np.array([[ITEMS + 1]], np.int32)
    with pytest.raises(onnxruntime.capi.onnxruntime_pybind11_state.InvalidArgument):
        run_graph(proto, ["user_embedding"], beyond, np.array([[0]], np.int32), np.array([1], np.int32))
