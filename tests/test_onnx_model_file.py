"""What open_model_file gives, and what it refuses."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import onnx
import pytest
from model_files import TinyModel, write_model_file
from onnx import TensorProto, helper

from ipsrec_onnx.errors import ExecutionProviderError, IpsrecError, ModelFileError
from ipsrec_onnx.inspection import inspect
from ipsrec_onnx.model_file import model_file_sha256, open_model_file
from ipsrec_onnx.opset import graph_opset


@pytest.fixture
def model(tmp_path: Path) -> TinyModel:
    return write_model_file(tmp_path / "model.onnx")


@pytest.mark.parametrize("string_ids", [False, True])
def test_a_model_file_gives_back_what_went_in(tmp_path: Path, string_ids: bool) -> None:
    model = write_model_file(tmp_path / "model.onnx", string_ids=string_ids)
    opened = open_model_file(model.path)
    assert opened.catalog.item_ids.equals(model.catalog.item_ids)
    assert opened.catalog.provider_ids.equals(model.catalog.provider_ids)
    np.testing.assert_array_equal(opened.catalog.item_provider, model.catalog.item_provider)
    np.testing.assert_array_equal(opened.catalog.popularity, model.catalog.popularity)
    np.testing.assert_array_equal(opened.item_embeddings, model.item_embeddings)
    assert opened.history_terms is not None and model.history_terms is not None
    assert opened.history_terms.provider.tolist() == model.history_terms["provider"]
    assert opened.history_terms.item.tolist() == model.history_terms["item"]
    assert (opened.model, opened.max_len, opened.dim, opened.format_version) == ("ipsrec-c", 6, 8, 1)


def test_weights_in_external_data_are_read_and_hashed(tmp_path: Path, model: TinyModel) -> None:
    proto = onnx.load(model.path)
    external = tmp_path / "big.onnx"
    onnx.save_model(proto, external, save_as_external_data=True, location="big.onnx.data", size_threshold=64)
    np.testing.assert_array_equal(open_model_file(external).item_embeddings, model.item_embeddings)
    before = model_file_sha256(external)
    data = tmp_path / "big.onnx.data"
    data.write_bytes(data.read_bytes()[:-1] + b"\x01")
    assert model_file_sha256(external) != before
    data.unlink()
    with pytest.raises(ModelFileError, match=r"ONNX Runtime cannot load it: .*big\.onnx\.data"):
        open_model_file(external)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"ipsrec.format_version": "2"}, "format version 2, this ipsrec-onnx reads up to 1; upgrade ipsrec-onnx"),
        ({"ipsrec.format_version": "one"}, "format version 'one', expected a number"),
        ({"ipsrec.format_version": None}, r"an ONNX model without ipsrec\.\* metadata"),
        ({"ipsrec.catalog": None}, r"metadata is broken: ipsrec\.catalog is missing"),
        ({"ipsrec.catalog": "%%%"}, "metadata is broken: "),
        ({"ipsrec.settings": "[]"}, r"metadata is broken: ipsrec\.settings is no JSON object"),
        ({"ipsrec.settings": "{"}, "metadata is broken: "),
        ({"ipsrec.settings": "{}"}, "metadata is broken: max_len is missing"),
        ({"ipsrec.history_terms": '{"provider": [1], "item": [1]}'}, r"history term provider has shape \(1,\)"),
        ({"ipsrec.gate": '{"passed": false}'}, "did not pass the gate"),
        ({"ipsrec.gate": "{}"}, "did not pass the gate"),
    ],
)
def test_metadata_that_cannot_be_used_is_refused(tmp_path: Path, changed: dict[str, str | None], message: str) -> None:
    path = tmp_path / "model.onnx"
    write_model_file(path, changed_properties=changed)
    with pytest.raises(ModelFileError, match=message) as error:
        open_model_file(path)
    assert str(path) in str(error.value)


def test_a_catalog_that_does_not_fit_the_item_table_is_refused(tmp_path: Path, model: TinyModel) -> None:
    other = write_model_file(tmp_path / "other.onnx", num_items=41)
    catalog = {p.key: p.value for p in onnx.load(other.path).metadata_props}["ipsrec.catalog"]
    write_model_file(model.path, changed_properties={"ipsrec.catalog": catalog})
    with pytest.raises(ModelFileError, match="item_embeddings has 41 rows, expected 42"):
        open_model_file(model.path)


def test_files_that_are_no_model_are_refused(tmp_path: Path, model: TinyModel) -> None:
    truncated = tmp_path / "truncated.onnx"
    truncated.write_bytes(model.path.read_bytes()[:-100])
    (tmp_path / "text.onnx").write_text("hello", encoding="utf-8")
    (tmp_path / "empty.onnx").touch()
    for name in ("truncated.onnx", "text.onnx", "empty.onnx"):
        with pytest.raises(ModelFileError, match="is no ONNX model"):
            open_model_file(tmp_path / name)
    with pytest.raises(ModelFileError, match="there is no such file"):
        open_model_file(tmp_path / "missing.onnx")
    with pytest.raises(ModelFileError, match="it is a folder"):
        open_model_file(tmp_path)


def test_another_graph_with_our_metadata_is_refused(tmp_path: Path, model: TinyModel) -> None:
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, [1]) for name in "xy")
    graph = helper.make_graph([helper.make_node("Identity", ["x"], ["y"])], "other", [x], [y])
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    proto.metadata_props.extend(onnx.load(model.path).metadata_props)
    onnx.save(proto, tmp_path / "other.onnx")
    with pytest.raises(ModelFileError, match=r"the graph has .*expected .*item_history"):
        open_model_file(tmp_path / "other.onnx")


def test_cuda_where_it_is_missing_is_refused_and_says_what_is_there(model: TinyModel) -> None:
    import onnxruntime

    if "CUDAExecutionProvider" in onnxruntime.get_available_providers():
        pytest.skip("this onnxruntime has CUDA")
    with pytest.raises(
        ExecutionProviderError, match=r"CUDAExecutionProvider is not in .*CPUExecutionProvider.*\[gpu\]"
    ):
        open_model_file(model.path, device="cuda")


def test_a_model_file_moved_elsewhere_is_whole(tmp_path: Path, model: TinyModel) -> None:
    elsewhere = tmp_path / "empty folder é"
    elsewhere.mkdir()
    shutil.move(model.path, elsewhere / "m.onnx")
    assert open_model_file(elsewhere / "m.onnx").catalog.num_items == 40


def test_the_opset_is_read_without_the_onnx_package(tmp_path: Path, model: TinyModel) -> None:
    assert graph_opset(model.path) == 20
    proto = onnx.load(model.path)
    del proto.opset_import[:]
    proto.opset_import.extend([helper.make_opsetid("com.microsoft", 1), helper.make_opsetid("", 300)])
    onnx.save(proto, tmp_path / "other.onnx")
    assert graph_opset(tmp_path / "other.onnx") == 300
    (tmp_path / "junk").write_bytes(b"\xff\xff\x07junk")
    assert graph_opset(tmp_path / "junk") is None


def test_inspect_tells_what_is_in_the_file(model: TinyModel) -> None:
    found = inspect(model.path)
    assert (found["model"], found["variant"], found["num_items"], found["opset"]) == ("ipsrec-c", "recommended", 40, 20)
    assert found["inputs"][0] == {"name": "item_history", "type": "tensor(int32)", "shape": ["batch", "sequence"]}
    assert found["outputs"][1]["shape"] == [41, 8]
    assert found["history_terms"]["item"]["ages"] == 6
    assert found["gate"] == {"passed": True}
    assert found["sha256"] == model_file_sha256(model.path)


def test_every_refusal_is_one_of_ours(tmp_path: Path) -> None:
    assert issubclass(ModelFileError, IpsrecError) and issubclass(ExecutionProviderError, IpsrecError)
