from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
from training_data import build_graph_once, make_run

from ipsrec_cli.main import main
from ipsrec_export import export as module
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
