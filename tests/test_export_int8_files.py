"""Files in int8 of both profiles: the edge's scan of whole numbers gives what scoring gives with the same weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from model_files import TinyModel, write_model_file
from onnx import helper, numpy_helper

from ipsrec_export.edge_graph import EdgeRules, build_edge_graph
from ipsrec_export.weight_storage import drop_output, storable_weights, store_weights
from ipsrec_onnx import Scorer
from ipsrec_onnx.errors import ModelFileError
from ipsrec_onnx.fused_encoder import open_fused_encoder
from ipsrec_onnx.model_file import bytes_to_open, open_model_file
from ipsrec_onnx.scoring import score

TABLE = "item_embeddings"


def int8_model(path: Path, *, huge_item: int | None = None, **options: Any) -> TinyModel:
    """A model file for scoring with its item table in int8; one item may be a thousand times as large."""
    model = write_model_file(path, **options)
    proto = onnx.load(path)
    (tensor,) = (one for one in proto.graph.initializer if one.name == TABLE)
    table = numpy_helper.to_array(tensor).copy()
    # Few duplicates: a scan that rounds a user cannot tell a thousand of them from an item that is nearly as good.
    table[100:] = np.random.default_rng(2).normal(size=table[100:].shape)
    if huge_item is not None:
        table[huge_item] *= 1_000
    tensor.CopyFrom(numpy_helper.from_array(table, TABLE))
    assert TABLE in {weight.name for weight in storable_weights(proto.graph)}
    store_weights(proto, {TABLE: "int8"})
    properties = {entry.key: entry.value for entry in proto.metadata_props}
    helper.set_model_props(proto, {**properties, "ipsrec.precision": "int8"})
    onnx.save(proto, path)
    return model


def edge_session(model: TinyModel, *, largest_element: float, top_k: int = 10) -> onnxruntime.InferenceSession:
    """An edge file of the very weights."""
    opened = open_model_file(model.path)
    encoder = onnx.load(model.path)
    drop_output(encoder, [TABLE])
    proto = build_edge_graph(
        encoder,
        opened.catalog,
        opened.history_terms,
        max_len=opened.max_len,
        rules=EdgeRules(top_k),
        largest_element=largest_element,
    )
    onnx.checker.check_model(proto, full_check=True)
    return onnxruntime.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"])


def feed(histories: list[list[Any]]) -> dict[str, np.ndarray]:
    width = max(map(len, histories))
    padded = [history + histories[0][:1] * (width - len(history)) for history in histories]
    dtype = object if isinstance(histories[0][0], str) else np.int64
    return {
        "item_history": np.array(padded, dtype).reshape(len(histories), width),
        "lengths": np.array([len(history) for history in histories], np.int64),
    }


def drawn_histories(model: TinyModel, rng: np.random.Generator, users: int = 60) -> list[list[Any]]:
    ids = model.catalog.item_ids.to_pylist()
    return [[ids[place] for place in rng.integers(0, len(ids), rng.integers(1, 12))] for _ in range(users)]


@pytest.mark.parametrize("top_k", [1, 10, 300, 5_000])
@pytest.mark.parametrize("with_history_terms", [False, True], ids=["plain", "terms"])
@pytest.mark.parametrize("string_ids", [False, True], ids=["int64", "string"])
def test_lists_and_scores_of_both_profiles_are_the_same(
    tmp_path: Path, rng: np.random.Generator, string_ids: bool, with_history_terms: bool, top_k: int
) -> None:
    model = int8_model(
        tmp_path / "m.onnx", num_items=3_000, string_ids=string_ids, with_history_terms=with_history_terms
    )
    scorer = Scorer(model.path, top_k=top_k)
    histories = drawn_histories(model, rng)
    outputs = edge_session(model, largest_element=20.0, top_k=top_k).run(None, feed(histories))
    for history, item_ids, scores, count, _ in zip(histories, *outputs, strict=True):
        expected = scorer.score_one(history)
        assert item_ids[:count].tolist() == expected.item_ids
        assert scores[:count].tolist() == expected.scores


def test_users_beyond_the_largest_element_get_lists_of_exact_scores(tmp_path: Path, rng: np.random.Generator) -> None:
    model = int8_model(tmp_path / "m.onnx", num_items=60)  # so few that all are scored again
    scorer = Scorer(model.path, top_k=10)
    histories = drawn_histories(model, rng)
    item_ids, scores, *_ = edge_session(model, largest_element=0.5).run(None, feed(histories))
    for user, history in enumerate(histories):
        expected = scorer.score_one(history)
        assert item_ids[user].tolist() == expected.item_ids
        assert scores[user].tolist() == expected.scores


def test_a_user_gets_the_same_beside_a_neighbour_of_huge_values(tmp_path: Path, rng: np.random.Generator) -> None:
    model = int8_model(tmp_path / "m.onnx", num_items=3_000, huge_item=17)
    session = edge_session(model, largest_element=10.0)
    huge = model.catalog.item_ids.to_pylist()[16]
    histories = drawn_histories(model, rng)
    together = session.run(None, feed([[huge] * 5, *histories, [huge]]))
    for user, history in enumerate(histories, 1):
        for alone, all_users in zip(session.run(None, feed([history])), together, strict=True):
            np.testing.assert_array_equal(alone[0], all_users[user])


def test_no_users_get_no_lists(tmp_path: Path) -> None:
    session = edge_session(int8_model(tmp_path / "m.onnx"), largest_element=10.0)
    found = session.run(None, {"item_history": np.zeros((0, 4), np.int64), "lengths": np.zeros(0, np.int64)})
    assert [len(one) for one in found] == [0, 0, 0, 0]


def test_the_item_table_is_never_expanded(tmp_path: Path) -> None:
    model = write_model_file(tmp_path / "m.onnx", num_items=3_000)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
    options.optimized_model_filepath = str(tmp_path / "optimized.onnx")
    encoder = onnx.load(model.path)
    drop_output(encoder, [TABLE])
    store_weights(encoder, {TABLE: "int8"})
    opened = open_model_file(model.path)
    proto = build_edge_graph(encoder, opened.catalog, None, max_len=6, rules=EdgeRules(), largest_element=9.0)
    onnxruntime.InferenceSession(proto.SerializeToString(), options, providers=["CPUExecutionProvider"])
    graph = onnx.load(tmp_path / "optimized.onnx").graph
    large = {one.data_type for one in graph.initializer if np.prod(one.dims) >= 8 * 3_000}
    assert large == {onnx.TensorProto.INT8}
    assert not any(node.op_type == "Transpose" for node in graph.node)  # done once, when the file is loaded


def test_an_int8_table_needs_the_largest_element(tmp_path: Path) -> None:
    model = int8_model(tmp_path / "m.onnx")
    opened = open_model_file(model.path)
    with pytest.raises(ValueError, match="needs the largest element"):
        build_edge_graph(onnx.load(model.path), opened.catalog, None, max_len=6, rules=EdgeRules())


def test_a_servers_file_is_scored_as_float32_of_the_rounded_weights(tmp_path: Path) -> None:
    model = int8_model(tmp_path / "int8.onnx", num_items=500)
    plain = write_model_file(tmp_path / "fp32.onnx", num_items=500)
    opened = open_model_file(model.path)
    assert opened.precision == "int8"
    assert opened.item_embeddings.dtype == np.float32
    np.testing.assert_allclose(opened.item_embeddings[:100], plain.item_embeddings[:100], atol=0.02)
    proto = onnx.load(plain.path)
    (tensor,) = (one for one in proto.graph.initializer if one.name == TABLE)
    tensor.CopyFrom(numpy_helper.from_array(opened.item_embeddings, TABLE))
    onnx.save(proto, plain.path)
    users = tmp_path / "users.parquet"
    histories = drawn_histories(model, np.random.default_rng(0))
    pq.write_table(pa.table({"user_id": np.arange(len(histories)), "item_history": histories}), users)
    for path in (model.path, plain.path):
        score(path, users, tmp_path / f"{path.stem}.parquet")
    found, expected = (pq.read_table(tmp_path / f"{name}.parquet") for name in ("int8", "fp32"))
    assert found.equals(expected)


def test_what_reads_float32_weights_refuses_int8_in_one_line(tmp_path: Path) -> None:
    model = int8_model(tmp_path / "m.onnx")
    with pytest.raises(ModelFileError, match=r"--catalog-shards maps .* export it with --prec"):
        open_model_file(model.path, mapped_in=tmp_path)
    with pytest.raises(ModelFileError, match="takes float32 weights, found int8; export it again with --precision"):
        open_fused_encoder(open_model_file(model.path))


def test_opening_an_int8_file_takes_the_memory_of_its_float32(tmp_path: Path) -> None:
    int8 = int8_model(tmp_path / "int8.onnx", num_items=5_000, dim=64)
    plain = write_model_file(tmp_path / "fp32.onnx", num_items=5_000, dim=64)
    assert int8.path.stat().st_size < 0.4 * plain.path.stat().st_size
    assert bytes_to_open(int8.path, mapped=False) == pytest.approx(bytes_to_open(plain.path, mapped=False), rel=0.02)
