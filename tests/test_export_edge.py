"""`ipsrec export --profile edge`: what is written, what its gate refuses, and what else takes or refuses the file."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from model_files import write_model_file
from training_data import ITEMS, build_graph_once, make_run

from ipsrec_cli.main import main
from ipsrec_export import edge as edge_module
from ipsrec_export import export as module
from ipsrec_export import external_data, trials
from ipsrec_export.edge_gate import edge_lists, edge_users, run_edge_gate
from ipsrec_export.edge_graph import EdgeRules, build_edge_graph
from ipsrec_export.export import export
from ipsrec_export.precision import choose_precision
from ipsrec_export.weight_storage import SMALLEST
from ipsrec_onnx import Scorer
from ipsrec_onnx.dataset import open_dataset
from ipsrec_onnx.edge_file import open_edge_file
from ipsrec_onnx.errors import DataError, ModelFileError
from ipsrec_onnx.inspection import inspect
from ipsrec_onnx.model_file import open_model_file
from ipsrec_train.batches import Histories, load_histories


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_run(tmp_path_factory.mktemp("trained"))


@pytest.fixture(autouse=True)
def one_graph(monkeypatch: pytest.MonkeyPatch) -> None:
    """The graph of the run is built once; all else is done at each export."""
    monkeypatch.setattr(module, "build_graph", build_graph_once)


@pytest.fixture
def server(tmp_path: Path, trained: Path) -> Path:
    export(trained, tmp_path / "server.onnx")
    return tmp_path / "server.onnx"


def ipsrec(*arguments: object) -> int:
    """Run the command line; its exit code."""
    with pytest.raises(SystemExit) as stop:
        main([str(argument) for argument in arguments])
        raise SystemExit(0)
    return int(stop.value.code or 0)


@pytest.mark.parametrize("keep_seen", [False, True])
def test_it_recommends_what_score_recommends(tmp_path: Path, trained: Path, server: Path, keep_seen: bool) -> None:
    rules = EdgeRules(top_k=7, keep_seen=keep_seen)
    report = export(trained, tmp_path / "edge.onnx", profile="edge", rules=rules)
    gate = report.edge_gate
    assert gate is not None
    assert gate.same_lists == gate.overlap == 1
    assert gate.cold_users == 3
    opened = open_edge_file(tmp_path / "edge.onnx")
    assert opened.gate == gate.as_metadata()
    assert opened.edge["top_k"] == 7
    catalog = open_model_file(server).catalog
    histories = edge_users(catalog, load_histories(open_dataset(trained.parent / "dataset"), "valid"))
    assert gate.users == len(histories)
    scorer = Scorer(server, top_k=7, keep_seen=keep_seen)
    for history, (item_ids, scores, cold) in zip(
        histories, edge_lists(opened.session, histories, catalog), strict=True
    ):
        expected = scorer.score_one(history)
        assert (cold, item_ids) == (expected.status == "cold", expected.item_ids)
        assert np.allclose(scores, expected.scores, rtol=0, atol=1e-5 * np.abs(expected.scores).max(initial=0))


def test_it_is_one_file_of_standard_operators(tmp_path: Path, trained: Path) -> None:
    export(trained, tmp_path / "edge.onnx", profile="edge")
    assert [path.name for path in tmp_path.iterdir()] == ["edge.onnx"]
    proto = onnx.load(tmp_path / "edge.onnx")
    onnx.checker.check_model(proto, full_check=True)
    domains = {"", "ai.onnx.ml"}  # the second for string ids alone
    assert {node.domain for node in proto.graph.node} <= domains
    assert {operator_set.domain for operator_set in proto.opset_import} <= domains
    assert next(one.version for one in proto.opset_import if not one.domain) == 20


def _roll_ids(proto: onnx.ModelProto) -> None:
    table = next(one for one in proto.graph.initializer if one.name.startswith("item_id_"))
    ids = onnx.numpy_helper.to_array(table)
    table.CopyFrom(onnx.numpy_helper.from_array(np.roll(ids, 1), table.name))


def _double_scores(proto: onnx.ModelProto) -> None:
    (node,) = (node for node in proto.graph.node if node.output[0] == "scores")
    node.output[0] = "half"
    proto.graph.node.append(onnx.helper.make_node("Add", ["half", "half"], ["scores"]))


@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8", "auto"])
@pytest.mark.parametrize("spoil", [_roll_ids, _double_scores, None], ids=["ids", "scores", "no history terms"])
def test_a_gate_that_is_not_passed_leaves_nothing(
    tmp_path: Path, trained: Path, monkeypatch: pytest.MonkeyPatch, spoil: Any, precision: Any
) -> None:
    def spoiled(encoder, catalog, terms, **options):
        proto = build_edge_graph(encoder, catalog, terms if spoil else None, **options)
        if spoil:
            spoil(proto)
        return proto

    monkeypatch.setattr(trials, "build_edge_graph", spoiled)
    with pytest.raises(ModelFileError, match=r"edge graph gives other lists .* of \d+ lists are .* scores are"):
        export(trained, tmp_path / "edge.onnx", profile="edge", precision=precision, max_ndcg_drop=1)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("num_items", [1, 3])
def test_users_who_have_seen_everything_are_alike(tmp_path: Path, num_items: int) -> None:
    model = write_model_file(tmp_path / "m.onnx", num_items=num_items, num_providers=1)
    opened = open_model_file(model.path)
    proto = build_edge_graph(
        onnx.load(model.path), opened.catalog, opened.history_terms, max_len=opened.max_len, rules=EdgeRules()
    )
    session = onnxruntime.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"])
    nobody = Histories(np.zeros(0, np.int32), np.zeros(1, np.int64), np.zeros(0, np.int32))
    gate = run_edge_gate(session, Scorer(model.path), opened.catalog, nobody, exact=True)
    assert gate.passed and gate.overlap == 1 and gate.users > 60


@pytest.mark.parametrize("name", ["edge", "edge.edge"])
def test_any_name_will_do(tmp_path: Path, trained: Path, name: str) -> None:
    export(trained, tmp_path / name, profile="edge")
    assert open_edge_file(tmp_path / name).edge["num_items"] > 0


def test_neighbours_do_not_change_a_list(tmp_path: Path, trained: Path) -> None:
    """Scores may differ in the last bits: products of one row and of many are added up in other orders."""
    for precision in ("fp32", "int8"):
        path = tmp_path / f"{precision}.onnx"
        export(trained, path, profile="edge", precision=precision, max_ndcg_drop=1, rules=EdgeRules(top_k=10))
        session = open_edge_file(path).session
        dataset = open_dataset(trained.parent / "dataset")
        histories = edge_users(dataset.catalog, load_histories(dataset, "valid"))
        together = edge_lists(session, histories, dataset.catalog)
        for history, (item_ids, scores, cold) in zip(histories, together, strict=True):
            ((alone_ids, alone_scores, alone_cold),) = edge_lists(session, [history], dataset.catalog)
            assert (alone_ids, alone_cold) == (item_ids, cold)
            assert np.allclose(alone_scores, scores, rtol=0, atol=1e-5 * np.abs(scores).max(initial=0))


def test_cold_users_must_get_the_popular_items(tmp_path: Path, trained: Path, server: Path) -> None:
    opened = open_model_file(server)
    export(trained, tmp_path / "edge.onnx", profile="edge", rules=EdgeRules(top_k=5))
    session = open_edge_file(tmp_path / "edge.onnx").session
    validation = load_histories(open_dataset(trained.parent / "dataset"), "valid")
    for scorer, passed in ((Scorer(server, top_k=5), True), (Scorer(server, top_k=5, cold_users="empty"), False)):
        gate = run_edge_gate(session, scorer, opened.catalog, validation, exact=False)
        assert gate.passed == passed


def test_a_file_beyond_2_gib_is_refused(tmp_path: Path, trained: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(external_data, "LARGEST_IN_ONE_FILE", 1_000)
    with pytest.raises(ModelFileError, match=r"in float32, .* graph has .* GB, and one file holds .* GB; export with"):
        export(trained, tmp_path / "edge.onnx", profile="edge")
    assert not list(tmp_path.iterdir())


def test_an_existing_file_is_kept_without_overwrite(tmp_path: Path, trained: Path) -> None:
    (tmp_path / "edge.onnx").write_text("precious")
    with pytest.raises(DataError, match="overwrite"):
        export(trained, tmp_path / "edge.onnx", profile="edge")
    assert (tmp_path / "edge.onnx").read_text() == "precious"
    export(trained, tmp_path / "edge.onnx", profile="edge", overwrite=True)
    assert open_edge_file(tmp_path / "edge.onnx").edge["num_items"] > 0


def test_score_refuses_an_edge_file_and_the_reverse(tmp_path: Path, trained: Path, server: Path) -> None:
    export(trained, tmp_path / "edge.onnx", profile="edge")
    with pytest.raises(ModelFileError, match=r"edge\.onnx: it is of profile edge, .* --profile server"):
        open_model_file(tmp_path / "edge.onnx")
    with pytest.raises(ModelFileError, match=r"server\.onnx: it is not of profile edge; export it with --profile edge"):
        open_edge_file(server)


@pytest.mark.parametrize("precision", ["fp16", "int8", "auto"])
def test_each_precision_is_smaller_and_its_table_is_stored(
    tmp_path: Path, trained: Path, capfd: pytest.CaptureFixture[str], precision: str
) -> None:
    export(trained, tmp_path / "fp32.onnx", profile="edge")
    path, arguments = tmp_path / "edge.onnx", ("--profile", "edge", "--max-ndcg-drop", 1)
    assert ipsrec("export", "--checkpoint", trained, "--output", path, "--precision", precision, *arguments) == 0
    said = capfd.readouterr().out
    found = inspect(path)
    (chosen,) = (row for row in found["candidates"] if row["chosen"])
    assert found["precision"] == chosen["precision"]
    assert precision in (chosen["precision"], "auto")
    assert found["candidates"][0]["precision"] == "fp32" and found["candidates"][0]["ndcg_change"] == 0
    assert path.stat().st_size < (tmp_path / "fp32.onnx").stat().st_size
    assert chosen["bytes"] == min(row["bytes"] for row in found["candidates"])
    assert chosen["latency_ms"] > 0 and 0.9 < chosen["overlap_at_100"] <= 1
    assert ipsrec("inspect", path) == 0
    shown = capfd.readouterr().out
    for row in found["candidates"]:
        for text in (said, shown):
            assert f"{row['bytes'] / 1e6:.2f}" in text and f"{row['ndcg_at_10']:.4f}" in text


@pytest.mark.parametrize("precision", ["int8", "auto"])
def test_a_servers_file_in_int8_is_scored_with(tmp_path: Path, trained: Path, precision: str) -> None:
    export(trained, tmp_path / "fp32.onnx")
    report = export(trained, tmp_path / "int8.onnx", precision=precision, max_ndcg_drop=1)
    assert report.tried is not None and report.tried.chosen.precision == "int8"
    assert (tmp_path / "int8.onnx").stat().st_size < (tmp_path / "fp32.onnx").stat().st_size
    opened = open_model_file(tmp_path / "int8.onnx")
    assert opened.precision == "int8"
    ids = opened.catalog.item_ids.to_pylist()
    lists = [Scorer(tmp_path / name, top_k=20).score_one(ids[:5]).item_ids for name in ("fp32.onnx", "int8.onnx")]
    assert len(set(lists[0]) & set(lists[1])) >= 15


def test_a_table_that_is_too_small_for_int8_stays_as_it_is(tmp_path: Path) -> None:
    run = make_run(tmp_path, dim=4)
    assert (ITEMS + 1) * 4 < SMALLEST
    tables = []
    for precision in ("fp32", "int8"):
        drop = None if precision == "fp32" else 1.0
        export(run, tmp_path / f"{precision}.onnx", precision=precision, max_ndcg_drop=drop)
        tables.append(open_model_file(tmp_path / f"{precision}.onnx").item_embeddings)
    np.testing.assert_array_equal(*tables)


def test_a_servers_file_has_a_program_in_python_alone(server: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert ipsrec("inspect", server, "--snippet", "python") == 0
    assert "scorer.score_one(history)" in capfd.readouterr().out
    assert ipsrec("inspect", server, "--snippet", "cpp") == 2
    assert "C++ runs files of profile edge, found profile server" in capfd.readouterr().err


@pytest.mark.parametrize("drop", [float("nan"), -0.1])
def test_a_drop_that_is_none_is_refused(tmp_path: Path, trained: Path, drop: float) -> None:
    with pytest.raises(ValueError, match=r"max_ndcg_drop is .*, expected 0 or more"):
        export(trained, tmp_path / "m.onnx", profile="edge", precision="auto", max_ndcg_drop=drop)
    assert ipsrec("export", "--checkpoint", trained, "--output", tmp_path / "m", "--max-ndcg-drop", drop) == 2


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_a_servers_gate_takes_no_drop(
    tmp_path: Path, trained: Path, capfd: pytest.CaptureFixture[str], precision: Any
) -> None:
    with pytest.raises(ValueError, match=f"max_ndcg_drop is not for a server's {precision}"):
        export(trained, tmp_path / "m.onnx", precision=precision, max_ndcg_drop=0.01)
    arguments = ("--output", tmp_path / "m.onnx", "--precision", precision, "--max-ndcg-drop", 0.01)
    assert ipsrec("export", "--checkpoint", trained, *arguments) == 2
    assert f"--max-ndcg-drop is not for a server's {precision}" in capfd.readouterr().err


def test_weights_are_put_back_layer_by_layer(tmp_path: Path, trained: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    groups = set[str]()

    def choose(trial: Any, **options: Any) -> Any:
        groups.update(weight.group for weight in trial.weights)
        return choose_precision(trial, **options)

    monkeypatch.setattr(edge_module, "choose_precision", choose)
    export(trained, tmp_path / "edge.onnx", profile="edge")
    assert "item_embeddings" in groups
    assert any(re.match(r"[a-z]+_layers\.\d+", group) for group in groups)
    assert not any(group.startswith("val_") for group in groups)  # the exporter's names, which say nothing to anybody


def test_no_file_names_a_place_of_this_machine(tmp_path: Path, trained: Path, server: Path) -> None:
    export(trained, tmp_path / "edge.onnx", profile="edge")
    for path in (server, tmp_path / "edge.onnx"):
        data = path.read_bytes()
        assert b"site-packages" not in data and str(Path(__file__).parents[1]).encode() not in data


def test_rules_are_of_an_edge_file_alone(tmp_path: Path, trained: Path, capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ValueError, match="rules are of profile edge"):
        export(trained, tmp_path / "m.onnx", rules=EdgeRules())
    assert ipsrec("export", "--checkpoint", trained, "--output", tmp_path / "m.onnx", "--top-k", 5) == 2
    assert "--top-k, --keep-seen and --provider-switch are of --profile edge" in capfd.readouterr().err


def test_the_command_line_writes_and_shows_it(tmp_path: Path, trained: Path, capfd: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "edge.onnx"
    options = ["--profile", "edge", "--top-k", "4", "--keep-seen", "--provider-switch"]
    assert ipsrec("export", "--checkpoint", trained, "--output", path, *options) == 0
    assert "edge gate passed: 100.00% of" in capfd.readouterr().out
    assert ipsrec("inspect", path) == 0
    shown = capfd.readouterr().out
    for part in ("edge", "top 4, with items of the history", "use_providers: bool [1]", "cold: bool [users]"):
        assert part in shown
    found = inspect(path)
    assert list(found["snippets"]) == ["Python", "JavaScript", "C++"]
    for language, program in zip(("python", "javascript", "cpp"), found["snippets"].values(), strict=True):
        assert program in shown
        assert ipsrec("inspect", path, "--snippet", language) == 0
        assert capfd.readouterr().out == program
    assert json.loads(json.dumps(found)) == found
    assert found["profile"] == "edge"
    assert [node["name"] for node in found["inputs"]] == ["item_history", "lengths", "use_providers"]
    assert inspect(path)["top_k"] == 4


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("ipsrec.gate", '{"passed": false}', "did not pass the gate"),
        ("ipsrec.edge", "[]", "its metadata is broken: ipsrec.edge is no JSON object"),
        ("ipsrec.edge", "{}", "its metadata is broken: ipsrec.edge has other keys or types than top_k, keep_seen"),
        ("ipsrec.candidates", "[1]", "its metadata is broken: ipsrec.candidates is no JSON array of candidates"),
        ("ipsrec.training", '{"loss": NaN}', "its metadata is broken: ipsrec.training: "),
        ("ipsrec.format_version", "9" * 5_000, "format version '99999999999999999999', expected a number"),
        ("ipsrec.settings", None, "its metadata is broken: ipsrec.settings is missing"),
        ("ipsrec.format_version", "99", "format version 99, this ipsrec-onnx reads up to 1"),
    ],
)
def test_broken_metadata_is_refused_in_one_line(
    tmp_path: Path, trained: Path, key: str, value: str | None, message: str
) -> None:
    export(trained, tmp_path / "edge.onnx", profile="edge")
    proto = onnx.load(tmp_path / "edge.onnx")
    texts = {entry.key: entry.value for entry in proto.metadata_props}
    texts[key] = value
    del proto.metadata_props[:]
    onnx.helper.set_model_props(proto, {name: text for name, text in texts.items() if text is not None})
    onnx.save(proto, tmp_path / "edge.onnx")
    with pytest.raises(ModelFileError, match=message) as refused:
        inspect(tmp_path / "edge.onnx")
    assert "\n" not in str(refused.value)
