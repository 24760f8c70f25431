"""Which execution provider ran what."""

from __future__ import annotations

import json

import onnxruntime
import pytest
from encoder_files import drawn_model, write_encoder_file
from model_files import write_model_file
from test_cli_score import run

from ipsrec_onnx.doctor import doctor, placement_problems
from ipsrec_onnx.errors import ModelFileError
from ipsrec_onnx.model_file import open_model_file
from ipsrec_onnx.placement import NodeRun, Placement, find_placement, runs_of


def test_every_node_of_a_graph_is_found(tmp_path):
    model = open_model_file(write_encoder_file(tmp_path / "model.onnx", drawn_model("sasrec", max_len=6)))
    placement = find_placement(model, "cpu")
    assert placement.nodes == {"CPUExecutionProvider": len(placement.runs)}
    assert len({node.name for node in placement.runs}) == len(placement.runs) > 20
    assert {"MatMul", "Gather", "Shape"} <= {node.op_type for node in placement.runs}
    for node in placement.runs:
        if node.op_type in ("MatMul", "Softmax", "LayerNormalization", "SkipLayerNormalization", "GatherElements"):
            assert not node.computes_shapes, node
        if node.op_type in ("Shape", "Range"):
            assert node.computes_shapes, node
    assert placement.on_the_cpu(computes_shapes=True) + placement.on_the_cpu(computes_shapes=False)


def test_half_precision_runs_on_a_cpu_with_casts(tmp_path):
    path = write_encoder_file(tmp_path / "model.onnx", drawn_model("sasrec", max_len=6), precision="fp16")
    placement = find_placement(open_model_file(path), "cpu")
    assert {"Cast", "MultiHeadAttention"} <= {node.op_type for node in placement.runs}


def test_no_profile_is_left(tmp_path, monkeypatch):
    model = open_model_file(write_model_file(tmp_path / "model.onnx").path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    assert find_placement(model, "cpu").runs
    assert [path.name for path in tmp_path.iterdir()] == ["model.onnx"]


def event(name, op_type, provider, **outputs):
    shapes = [{kind: shape} for kind, shape in outputs.items()]
    arguments = {"op_name": op_type, "provider": provider, "output_type_shape": shapes}
    return {"cat": "Node", "name": f"{name}_kernel_time", "args": arguments}


def test_on_a_gpu_a_node_on_the_cpu_is_a_problem_unless_it_computes_shapes():
    cuda, cpu = "CUDAExecutionProvider", "CPUExecutionProvider"
    runs = runs_of(
        [
            {"cat": "Session", "name": "model_run"},
            {"cat": "Node", "name": "fence_before", "args": {"op_name": "MatMul"}},
            event("a", "MatMul", cuda, float16=[32, 64]),
            event("b", "Gelu", cpu, float16=[32, 64]),
            event("c", "Shape", cpu, int64=[2]),
            event("d", "Squeeze", cpu, int64=[]),
            event("e", "Cast", cpu, int64=[32]),
            event("f", "Range", cpu, int64=[31]),
            event("g", "Cast", cpu, float=[1]),
        ]
    )
    assert [(node.name, node.computes_shapes) for node in runs] == [
        ("a", False),
        ("b", False),
        ("c", True),
        ("d", True),
        ("e", False),
        ("f", True),
        ("g", False),
    ]
    placement = Placement(runs)
    assert placement.nodes == {cuda: 1, cpu: 6}
    problems = placement_problems("m.onnx", placement)
    assert [problem.what for problem in problems] == [
        f"model m.onnx: node '{name}' ({kind}) ran on the CPU, not on the GPU"
        for name, kind in (("b", "Gelu"), ("e", "Cast"), ("g", "Cast"))
    ]
    assert placement_problems("m.onnx", Placement([NodeRun("a", "MatMul", cuda, False)])) == []


def test_doctor_runs_a_model(tmp_path, capsys):
    model = write_model_file(tmp_path / "m[bold].onnx")
    code = run("doctor", "--model", model.path)
    assert "m[bold].onnx, fp32, on cpu" in capsys.readouterr().out.replace("\n", "")
    assert run("doctor", "--model", model.path, "--json") == code
    found = json.loads(capsys.readouterr().out)
    assert found["model"]["device"] == "cpu"
    assert found["model"]["nodes"] == {
        "CPUExecutionProvider": len(find_placement(open_model_file(model.path), "cpu").runs)
    }
    assert found["model"]["shapes_on_the_cpu"] == []
    assert "model" not in doctor()


def test_doctor_refuses_what_is_no_model(tmp_path, capsys):
    (tmp_path / "m.onnx").write_text("no", encoding="utf-8")
    assert run("doctor", "--model", tmp_path / "m.onnx") == 1
    out, err = capsys.readouterr()
    assert out == "" and err.count("\n") == 1 and "is no ONNX model" in err
    with pytest.raises(ModelFileError):
        doctor(model=tmp_path / "absent.onnx")


def test_doctor_says_that_a_model_cannot_run_where_cuda_is_missing(tmp_path, capsys):
    if "CUDAExecutionProvider" in onnxruntime.get_available_providers():
        pytest.skip("this onnxruntime has CUDA")
    model = write_model_file(tmp_path / "model.onnx")
    assert run("doctor", "--device", "cuda", "--model", model.path, "--json") == 1
    found = json.loads(capsys.readouterr().out)
    assert found["model"] is None
    assert any("CUDAExecutionProvider is not in this onnxruntime" in problem["what"] for problem in found["problems"])
