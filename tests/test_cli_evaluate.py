"""`ipsrec evaluate`."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from model_files import write_model_file
from test_cli_score import run
from test_onnx_evaluation import random_histories, write_dataset


def test_evaluate_prints_a_table_or_json(
    tmp_path: Path, rng: np.random.Generator, capsys: pytest.CaptureFixture[str]
) -> None:
    model = write_model_file(tmp_path / "m.onnx")
    dataset = write_dataset(tmp_path / "d", model, *random_histories(model, rng, 80))
    paths = ("--model", model.path, "--dataset", dataset)
    assert run("evaluate", *paths, "--cutoff", "3", "--cutoff", "20", "--exclude-seen") == 0
    out, err = capsys.readouterr()
    assert "NDCG@N" in out and "80 users" in out and "seen items left out" in out
    assert "80 of 80 users" in err
    assert run("evaluate", *paths, "--json", "--quiet") == 0
    out, err = capsys.readouterr()
    assert err == ""
    report = json.loads(out)
    assert sorted(report["metrics"]) == ["hr@10", "hr@5", "mrr@10", "mrr@5", "ndcg@10", "ndcg@5"]
    assert report["split"] == "test"


def test_brackets_in_a_name_are_no_markup(
    tmp_path: Path, rng: np.random.Generator, capsys: pytest.CaptureFixture[str]
) -> None:
    model = write_model_file(tmp_path / "m[bold].onnx")
    dataset = write_dataset(tmp_path / "d[red]", model, *random_histories(model, rng, 8))
    assert run("evaluate", "--model", model.path, "--dataset", dataset, "--quiet") == 0
    assert "m[bold].onnx on" in (out := capsys.readouterr().out.replace("\n", "")) and "d[red]" in out


def test_evaluate_refuses_what_is_no_dataset(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = write_model_file(tmp_path / "m.onnx")
    assert run("evaluate", "--model", model.path, "--dataset", tmp_path) == 1
    out, err = capsys.readouterr()
    assert out == "" and err.count("\n") == 1 and "is no dataset" in err
