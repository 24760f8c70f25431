"""`ipsrec inspect`."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow as pa
import pytest
from model_files import write_model_file
from test_cli_score import run

from ipsrec_onnx.inspection import _id_type


def test_inspect_prints_a_table_or_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    gate = {"passed": True, "embedding_error": 1.25e-6, "cells": [{"batch_size": 64, "overlap": 0.75}]}
    model = write_model_file(tmp_path / "m.onnx", gate=gate)
    assert run("inspect", model.path) == 0
    out = capsys.readouterr().out
    for text in (
        "ipsrec-c, variant recommended",
        "item_history: int32 [batch, sequence]",
        "item_embeddings: float [41, 8]",
        "valid.ndcg@10: 0.5",
        "embedding_error: 1.25e-06",
        "40, ids int64",
        "batch_size  overlap",
        "64          0.75",
    ):
        assert text in out
    assert run("inspect", model.path, "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert found["gate"] == gate
    assert found["settings"]["max_len"] == 6


def test_brackets_in_a_name_are_no_markup(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = write_model_file(tmp_path / "m[bold].onnx")
    assert run("inspect", model.path) == 0
    assert "m[bold].onnx" in capsys.readouterr().out


@pytest.mark.parametrize("kind", [pa.string(), pa.large_string()])
def test_string_ids_are_called_string(kind: pa.DataType) -> None:
    assert _id_type(pa.array(["a"], kind)) == "string"


def test_inspect_refuses_what_is_no_model(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "m.onnx").write_text("no", encoding="utf-8")
    assert run("inspect", tmp_path / "m.onnx") == 1
    out, err = capsys.readouterr()
    assert out == "" and err.count("\n") == 1 and "is no ONNX model" in err
