from __future__ import annotations

import json
import shutil

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from training_data import build_graph_once, make_run

from ipsrec_cli.main import main
from ipsrec_export import export as module
from ipsrec_export.graph import build_lean_graph
from ipsrec_onnx.model_file import open_model_file


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    return make_run(tmp_path_factory.mktemp("trained"))


@pytest.fixture
def one_graph(monkeypatch):
    monkeypatch.setattr(module, "build_graph", build_graph_once)


def ipsrec(*arguments: object) -> int:
    """Run the command line; its exit code."""
    with pytest.raises(SystemExit) as stop:
        main([str(argument) for argument in arguments])
        raise SystemExit(0)
    return int(stop.value.code or 0)


def test_a_run_becomes_a_model_file_and_nothing_but_the_summary_is_said(trained, tmp_path, capfd):
    assert ipsrec("export", "--checkpoint", trained, "--output", tmp_path / "model.onnx") == 0
    out, err = capfd.readouterr()
    file, gate = out.splitlines()
    assert file == f"{tmp_path / 'model.onnx'}: {(tmp_path / 'model.onnx').stat().st_size / 1e6:.1f} MB"
    assert gate.startswith("gate passed: embedding error ")
    assert "top-100 overlap 1.0000" in gate
    assert "(120 validation users)" in gate
    assert err == ""
    assert open_model_file(tmp_path / "model.onnx").gate["passed"] is True


def test_json_is_one_object(trained, tmp_path, capfd, one_graph):
    assert ipsrec("export", "--checkpoint", trained, "--output", tmp_path / "model.onnx", "--json") == 0
    out, err = capfd.readouterr()
    report = json.loads(out)
    assert report["output"] == str(tmp_path / "model.onnx")
    assert report["bytes"] == (tmp_path / "model.onnx").stat().st_size
    assert report["gate"]["passed"] is True
    assert report["gate"]["validation_users"] == 120
    assert err == ""


def test_refusals_are_one_line_and_exit_code_1(trained, tmp_path, capfd, monkeypatch, one_graph):
    command = ["export", "--checkpoint", trained, "--output", tmp_path / "model.onnx"]
    assert ipsrec(*command) == 0
    before = (tmp_path / "model.onnx").read_bytes()

    def refused(*options: object) -> str:
        capfd.readouterr()
        assert ipsrec(*command, *options) == 1
        out, err = capfd.readouterr()
        assert out == ""
        assert err.startswith("ipsrec: ")
        assert err.count("\n") == 1
        assert (tmp_path / "model.onnx").read_bytes() == before
        return err

    assert "--overwrite" in refused()
    assert "is no finished training run" in refused("--overwrite", "--checkpoint", tmp_path)
    assert "is no dataset" in refused("--overwrite", "--dataset", tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(module, "_encoder", lambda path: lambda *arrays: np.zeros((len(arrays[2]), 8), np.float32))
        assert "gate is not passed" in refused("--overwrite")
    assert ipsrec(*command, "--overwrite") == 0


def test_a_moved_dataset_can_be_given(trained, tmp_path, capfd, one_graph):
    moved = shutil.copytree(trained.parent / "dataset", tmp_path / "moved")
    assert ipsrec("export", "--checkpoint", trained, "--output", tmp_path / "m.onnx", "--dataset", moved) == 0


def test_wrong_usage_is_exit_code_2(trained, capfd):
    assert ipsrec("export", "--checkpoint", trained) == 2
    assert ipsrec("export", "--output", "model.onnx") == 2


@pytest.fixture(scope="module")
def half(trained, tmp_path_factory):
    """A file in half precision, written by the command."""
    path = tmp_path_factory.mktemp("half") / "half.onnx"
    assert ipsrec("export", "--checkpoint", trained, "--output", path, "--precision", "fp16") == 0
    return path


def users_file(path):
    histories = [[1_001, 1_002, 1_003], [1_059], [], [1_000 + number % 60 for number in range(30)], [5]]
    pq.write_table(pa.table({"user_id": range(len(histories)), "item_history": histories}), path)
    return path


def test_half_precision_is_written_through_a_gate_of_its_own(half, trained, tmp_path, capfd, one_graph):
    opened = open_model_file(half)
    assert opened.precision == "fp16"
    assert opened.gate["passed"] is True
    assert opened.gate["bounds"] == {
        "max_embedding_error": 1e-2,
        "min_overlap": 0.99,
        "min_cell_overlap": 0.95,
        "max_ndcg_change": 1e-3,
        "ndcg_errors": 2.0,
    }
    assert 1e-5 < opened.gate["embedding_error"] < 1e-2
    assert ipsrec("export", "--checkpoint", trained, "--output", tmp_path / "full.onnx", "--precision", "fp32") == 0
    full = open_model_file(tmp_path / "full.onnx")
    assert full.precision == "fp32"
    np.testing.assert_array_equal(opened.item_embeddings, full.item_embeddings)
    capfd.readouterr()
    for path, precision in ((half, "fp16"), (tmp_path / "full.onnx", "fp32")):
        assert ipsrec("inspect", path) == 0
        assert [line.split()[-2] for line in capfd.readouterr().out.splitlines() if "│ precision " in line] == [
            precision
        ]
        assert ipsrec("inspect", path, "--json") == 0
        assert json.loads(capfd.readouterr().out)["precision"] == precision


def test_half_precision_scores_and_evaluates_on_the_cpu(half, trained, tmp_path, capfd, one_graph):
    users = users_file(tmp_path / "users.parquet")
    assert ipsrec("export", "--checkpoint", trained, "--output", tmp_path / "full.onnx") == 0
    scores, figures = [], []
    for path in (half, tmp_path / "full.onnx"):
        output = tmp_path / f"{path.stem}.parquet"
        options = ["--top-k", 60, "--keep-seen", "--layout", "long", "--device", "cpu", "--quiet"]
        assert ipsrec("score", "--model", path, "--input", users, "--output", output, *options) == 0
        table = pq.read_table(output).sort_by([("user_id", "ascending"), ("item_id", "ascending")])
        scores.append(table)
        capfd.readouterr()
        assert ipsrec("evaluate", "--model", path, "--dataset", trained.parent / "dataset", "--json") == 0
        figures.append(json.loads(capfd.readouterr().out))
    found, expected = scores
    assert len(found) >= 3 * 60
    assert found["item_id"].equals(expected["item_id"])  # every item is in every list
    np.testing.assert_allclose(found["score"].to_numpy(), expected["score"].to_numpy(), rtol=1e-2, atol=1e-2)
    assert not found["score"].equals(expected["score"])
    assert figures[0]["metrics"]["ndcg@10"] == pytest.approx(figures[1]["metrics"]["ndcg@10"], rel=1e-2)


def test_half_precision_has_no_weights_for_the_fused_encoder(half, tmp_path, capfd):
    users = users_file(tmp_path / "users.parquet")
    command = ["score", "--model", half, "--input", users, "--output", tmp_path / "out.parquet", "--encoder", "fused"]
    assert ipsrec(*command) == 1
    out, err = capfd.readouterr()
    assert out == ""
    assert err.count("\n") == 1
    assert "the fused encoder takes float32 weights, found fp16; export it again with --precision fp32" in err
    assert not (tmp_path / "out.parquet").exists()


def test_half_precision_of_other_weights_is_refused(trained, tmp_path, capfd, monkeypatch):
    def other_weights(model):
        graph = build_lean_graph(model)
        with torch.no_grad():
            model.encoder.get_parameter("item_fusion.0.output.weight").mul_(1.3)
        return graph

    monkeypatch.setattr(module, "build_lean_graph", other_weights)
    command = ["export", "--checkpoint", trained, "--output", tmp_path / "half.onnx", "--precision", "fp16"]
    assert ipsrec(*command) == 1
    out, err = capfd.readouterr()
    assert out == ""
    assert err.count("\n") == 1
    assert "(at most 1e-02)" in err
    assert "export with --precision fp32" in err
    assert list(tmp_path.iterdir()) == []
