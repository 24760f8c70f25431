"""The edge graph gives the lists of `ipsrec score`, from raw ids to raw ids."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from model_files import TinyModel, write_model_file
from onnx import TensorProto, helper

from ipsrec_export.edge_graph import EdgeRules, build_edge_graph
from ipsrec_export.edge_history import add_item_provider
from ipsrec_export.graph_nodes import GraphNodes
from ipsrec_onnx import Scorer
from ipsrec_onnx.model_file import open_model_file

Ids = list[Any]


def _session(model: TinyModel, rules: EdgeRules) -> onnxruntime.InferenceSession:
    opened = open_model_file(model.path)
    proto = build_edge_graph(
        onnx.load(model.path), opened.catalog, opened.history_terms, max_len=opened.max_len, rules=rules
    )
    onnx.checker.check_model(proto, full_check=True)
    return onnxruntime.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"])


def _feed(histories: list[Ids], model: TinyModel, **more: np.ndarray) -> dict[str, np.ndarray]:
    """Padded with an id that the catalog knows: what lies behind a length must not count."""
    ids = model.catalog.item_ids.to_pylist()
    width = max(map(len, histories))
    padded = [history + [ids[3]] * (width - len(history)) for history in histories]
    dtype = object if isinstance(ids[0], str) else np.int64
    return {
        "item_history": np.array(padded, dtype).reshape(len(histories), width),
        "lengths": np.array([len(history) for history in histories], np.int64),
        **more,
    }


def _histories(model: TinyModel, rng: np.random.Generator) -> list[Ids]:
    """Empty, one, at and around max_len, repeated, unknown alone and between, nearly everything."""
    ids = model.catalog.item_ids.to_pylist()
    unknown = "nobody's" if isinstance(ids[0], str) else -5
    drawn = [[(*ids, unknown)[place] for place in rng.integers(0, len(ids) + 1, length)] for length in (1, 2, 30, 60)]
    edges = [ids[: model.max_len + more] for more in (-1, 0, 1)]
    return [*drawn, *edges, [], [unknown] * 3, [unknown, ids[0], unknown, ids[1]], [ids[7]] * 9, ids[:-4], ids]


def _lists(outputs: list[np.ndarray]) -> Iterator[tuple[bool, Ids, np.ndarray]]:
    for item_ids, scores, count, cold in zip(*outputs, strict=True):
        yield bool(cold), item_ids[:count].tolist(), scores[:count]


@pytest.mark.parametrize("top_k", [1, 10, 1_000])
@pytest.mark.parametrize("with_history_terms", [False, True], ids=["plain", "terms"])
@pytest.mark.parametrize("keep_seen", [False, True], ids=["without seen", "with seen"])
@pytest.mark.parametrize("string_ids", [False, True], ids=["int64", "string"])
def test_its_lists_and_scores_are_those_of_score(
    tmp_path: Path, rng: np.random.Generator, string_ids: bool, keep_seen: bool, with_history_terms: bool, top_k: int
) -> None:
    model = write_model_file(tmp_path / "m.onnx", string_ids=string_ids, with_history_terms=with_history_terms)
    scorer = Scorer(model.path, top_k=top_k, keep_seen=keep_seen)
    session = _session(model, EdgeRules(top_k=top_k, keep_seen=keep_seen))
    histories = _histories(model, rng)
    found = _lists(session.run(None, _feed(histories, model)))
    for history, (cold, item_ids, scores) in zip(histories, found, strict=True):
        expected = scorer.score_one(history)
        assert cold == (expected.status == "cold")
        assert item_ids == expected.item_ids
        assert scores.tolist() == expected.scores


def test_scores_that_float32_makes_equal_go_by_item_index(tmp_path: Path, rng: np.random.Generator) -> None:
    model = write_model_file(tmp_path / "m.onnx", num_items=4_000, with_history_terms=False)
    scorer = Scorer(model.path, top_k=3_000)  # so many that some lie closer than float32 tells
    ids = model.catalog.item_ids.to_numpy()
    histories = [rng.choice(ids, 3).tolist() for _ in range(60)]
    found = _lists(_session(model, EdgeRules(top_k=3_000)).run(None, _feed(histories, model)))
    for history, (_, item_ids, _) in zip(histories, found, strict=True):
        assert item_ids == scorer.score_one(history).item_ids


def test_a_user_gets_the_same_alone_and_with_neighbours(tmp_path: Path, rng: np.random.Generator) -> None:
    model = write_model_file(tmp_path / "m.onnx")
    session = _session(model, EdgeRules(top_k=10))
    histories = _histories(model, rng)
    together = session.run(None, _feed(histories, model))
    for user, history in enumerate(histories):
        alone = session.run(None, _feed([history], model))
        for one, all_users in zip(alone, together, strict=True):
            assert np.array_equal(one[0], all_users[user])


@pytest.mark.parametrize("providers", [[0], [0, 0, 0], [0, 1], [0, 0, 3, 3, 5], [0, 2, 2, 1]], ids=str)
def test_providers_of_items_are_made_of_where_each_begins(providers: list[int]) -> None:
    g = GraphNodes()
    add_item_provider(g, np.array(providers, np.int32))
    g.add("Cast", "item_provider", to=TensorProto.INT64, name="found")
    found = helper.make_tensor_value_info("found", TensorProto.INT64, None)
    graph = helper.make_graph(g.nodes, "providers", [], [found], g.initializers)
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9)
    session = onnxruntime.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"])
    assert session.run(None, {})[0].tolist() == providers


def test_no_users_get_no_lists(tmp_path: Path) -> None:
    model = write_model_file(tmp_path / "m.onnx")
    session = _session(model, EdgeRules(top_k=10))
    item_ids, scores, counts, cold = session.run(
        None, {"item_history": np.zeros((0, 4), np.int64), "lengths": np.zeros(0, np.int64)}
    )
    assert item_ids.shape == scores.shape == (0, 10)
    assert counts.shape == cold.shape == (0,)


def test_without_providers_all_of_them_count_as_unknown(tmp_path: Path, rng: np.random.Generator) -> None:
    model = write_model_file(tmp_path / "m.onnx")
    scorer = Scorer(model.path, top_k=10)
    session = _session(model, EdgeRules(top_k=10, provider_switch=True))
    histories = _histories(model, rng)
    changed = 0
    for use in (True, False):
        found = _lists(session.run(None, _feed(histories, model, use_providers=np.array([use]))))
        for history, (_, item_ids, scores) in zip(histories, found, strict=True):
            expected = scorer.score_one(history, provider_history=None if use else [-1] * len(history))
            assert (item_ids, scores.tolist()) == (expected.item_ids, expected.scores)
            changed += not use and item_ids != scorer.score_one(history).item_ids
    assert changed  # so the switch does something
