"""Ids are found with operators of the ONNX standard, and only those that are there."""

from __future__ import annotations

import numpy as np
import onnxruntime
import pytest
from onnx import TensorProto, helper

from ipsrec_export.graph import OPSET
from ipsrec_export.graph_nodes import GraphNodes
from ipsrec_export.id_search import add_id_search

LOWEST, HIGHEST = np.iinfo(np.int64).min, np.iinfo(np.int64).max


def _find(ids: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    g = GraphNodes()
    g.add("Identity", add_id_search(g, "wanted", ids, table="item_id"), name="found")
    value = helper.make_tensor_value_info
    inputs = [value("wanted", TensorProto.INT64, ["users", "history"])]
    outputs = [value("found", TensorProto.INT64, ["users", "history"])]
    graph = helper.make_graph(g.nodes, "search", inputs, outputs, g.initializers)
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=10)
    session = onnxruntime.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(None, {"wanted": wanted})[0]


@pytest.mark.parametrize("count", [1, 2, 15, 16, 17, 255, 256, 257, 5000])
@pytest.mark.parametrize("spread", [1, 2**20, 2**50], ids=["dense", "int32", "int64"])
def test_it_finds_what_a_dict_finds(rng: np.random.Generator, count: int, spread: int) -> None:
    # What lies between ids, before and behind them is unknown.
    ids = rng.permutation((np.arange(count) - count // 3) * 2 * spread)
    item_index = {item_id: index for index, item_id in enumerate(ids.tolist(), start=1)}
    around = np.concatenate([ids, ids - 1, ids + 1, [LOWEST, HIGHEST, 2**31, 2**32, ids[0] + 2**32]])
    found = _find(ids, around.reshape(1, -1))
    assert found.tolist() == [[item_index.get(item_id, 0) for item_id in around.tolist()]]


def test_the_smallest_and_the_largest_ids_are_ids(rng: np.random.Generator) -> None:
    ids = np.array([0, HIGHEST, -1, LOWEST, 7])
    wanted = np.array([[LOWEST, LOWEST + 1, HIGHEST], [HIGHEST - 1, 0, 1]])
    assert _find(ids, wanted).tolist() == [[4, 0, 2], [0, 1, 0]]


@pytest.mark.parametrize(("spread", "id_bytes"), [(1, 2), (2**16, 4), (2**40, 8)])
def test_ids_take_the_bytes_of_their_range(spread: int, id_bytes: int) -> None:
    ids = np.arange(8192)[::-1] * spread
    g = GraphNodes()
    add_id_search(g, "wanted", ids, table="item_id")
    kept = {tensor.name: len(tensor.raw_data) for tensor in g.initializers if len(tensor.raw_data) > 8192}
    assert kept == {"item_id": 8193 * id_bytes, "item_id_order": 8192 * 4}
    assert _find(ids, ids[None])[0].tolist() == list(range(1, 8193))


@pytest.mark.parametrize("shape", [(0, 0), (0, 3), (3, 0)])
def test_nothing_is_found_in_nothing(shape: tuple[int, int]) -> None:
    assert _find(np.array([3, 1]), np.zeros(shape, np.int64)).shape == shape
