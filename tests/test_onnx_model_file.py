"""What open_model_file gives, and what it refuses."""

from __future__ import annotations

import base64
import hashlib
import os
import shutil
from pathlib import Path

import numpy as np
import onnx
import pyarrow as pa
import pytest
from model_files import TinyModel, write_model_file
from onnx import TensorProto, helper
from other_user import run_as_nobody

from ipsrec_onnx.catalog import catalog_to_table, table_to_text
from ipsrec_onnx.errors import ExecutionProviderError, IpsrecError, ModelFileError
from ipsrec_onnx.inspection import inspect
from ipsrec_onnx.model_file import model_file_sha256, open_model_file
from ipsrec_onnx.onnx_proto import external_data_files, graph_opset
from ipsrec_onnx.session import open_session


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
    assert model_file_sha256(model.path) == hashlib.sha256(model.path.read_bytes()).hexdigest()
    now = model_file_sha256(external)
    (tmp_path / "big.onnx.0123456789ab.data").write_text("weights of another")
    assert model_file_sha256(external) == now  # of what the graph names, whatever else lies there
    data.unlink()
    with pytest.raises(ModelFileError, match=r"big\.onnx\.data: there is no such file; keep its external data beside"):
        model_file_sha256(external)
    with pytest.raises(ModelFileError, match=r"lies in 'big\.onnx\.data': there is no such file; keep"):
        open_model_file(external)


NO_VERSION = ["0", "-1", "1.0", "²", "", "9" * 5000]
NO_MAX_LEN = ["0", "-1", "2.5", "true", "null", "1e400", '"6"', "9" * 5000]


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
        *(({"ipsrec.format_version": text}, "format version .*, expected a number, 1 or more") for text in NO_VERSION),
        *(({"ipsrec.settings": f'{{"max_len": {text}}}'}, "metadata is broken: ") for text in NO_MAX_LEN),
        ({"ipsrec.settings": "[" * 100_000}, "metadata is broken: "),
        ({"ipsrec.training": '{"loss": NaN}'}, "metadata is broken: "),
        ({"ipsrec.history_terms": f'{{"provider": [1{"0" * 400}], "item": []}}'}, "metadata is broken: "),
        ({"ipsrec.history_terms": "[1]"}, "metadata is broken: "),
    ],
)
def test_metadata_that_cannot_be_used_is_refused(tmp_path: Path, changed: dict[str, str | None], message: str) -> None:
    path = tmp_path / "model.onnx"
    write_model_file(path, changed_properties=changed)
    with pytest.raises(ModelFileError, match=message) as error:
        open_model_file(path)
    assert str(path) in str(error.value)


def test_metadata_changed_or_cut_anywhere_opens_or_is_refused(tmp_path: Path, rng: np.random.Generator) -> None:
    path = tmp_path / "model.onnx"
    write_model_file(path, string_ids=True)
    proto = onnx.load(path)
    whole = {entry.key: entry.value for entry in proto.metadata_props}
    refused = 0
    for _ in range(150):
        key = str(rng.choice(sorted(whole)))
        place = int(rng.integers(0, len(whole[key])))
        text = whole[key][:place] if rng.random() < 0.5 else change_byte(whole[key], place, rng)
        helper.set_model_props(proto, whole | {key: text})
        onnx.save(proto, path)
        try:
            open_model_file(path)
        except ModelFileError as error:
            refused += 1
            assert str(path) in str(error)
    assert refused > 75


def change_byte(text: str, place: int, rng: np.random.Generator) -> str:
    """Change one character; where the text is base64, one byte of what it stands for, so that Arrow sees it."""
    if not text.endswith("=") and len(text) < 500:
        return text[:place] + chr(rng.integers(32, 127)) + text[place + 1 :]
    data = bytearray(base64.b64decode(text))
    data[place * len(data) // len(text)] = rng.integers(0, 256)
    return base64.b64encode(data).decode()


def test_a_catalog_with_an_id_twice_is_refused_when_it_is_opened(tmp_path: Path, model: TinyModel) -> None:
    items, _ = catalog_to_table(model.catalog)
    ids = items["item_id"].combine_chunks()
    twice = items.set_column(0, "item_id", pa.concat_arrays([ids[:39], ids[:1]]))
    write_model_file(model.path, changed_properties={"ipsrec.catalog": table_to_text(twice)})
    with pytest.raises(ModelFileError, match=r"model\.onnx: its metadata is broken: catalog: item id: .* twice"):
        open_model_file(model.path)


def test_both_id_tables_are_there_before_threads_share_them(model: TinyModel) -> None:
    assert {"item_table", "provider_table"} <= set(vars(open_model_file(model.path).catalog))


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody else")
@pytest.mark.parametrize("locked", ["model.onnx", "."])
def test_a_file_that_may_not_be_read_is_refused(tmp_path: Path, locked: str) -> None:
    (tmp_path / "models").mkdir()
    model = write_model_file(tmp_path / "models" / "model.onnx")
    (model.path.parent / locked).chmod(0)
    done = run_as_nobody(f"ipsrec_cli.main.main(['inspect', {str(model.path)!r}])", model.path.parent)
    assert done.returncode == 1
    assert done.stderr.startswith(f"ipsrec: model {model.path}: it cannot be read (Permission denied); ")
    assert done.stderr.count("\n") == 1


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
    with pytest.raises(ModelFileError, match=r"it cannot be read \(File name too long\)"):
        open_model_file(tmp_path / ("m" * 300))
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(ModelFileError, match="it is a device or a pipe"):
        open_model_file(tmp_path / "pipe")


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
        open_session(model.path, device="cuda")


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


@pytest.mark.parametrize("size_threshold", [64, 1 << 20])
def test_external_data_are_found_without_onnx(tmp_path: Path, model: TinyModel, size_threshold: int) -> None:
    path = tmp_path / "big.onnx"
    where = {"all_tensors_to_one_file": False, "size_threshold": size_threshold}
    onnx.save_model(onnx.load(model.path), path, save_as_external_data=True, **where)
    expected = {
        entry.value
        for tensor in onnx.load(path, load_external_data=False).graph.initializer
        for entry in tensor.external_data
        if entry.key == "location"
    }
    assert external_data_files(path) == sorted(expected)
    assert len(expected) == (2 if size_threshold == 64 else 0)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\xff" * 1000,  # an integer without end
        b"\x42" + b"\xff" * 9 + b"\x01",  # an operator set of 2**64 bytes
        b"\x3a" + b"\xff" * 8 + b"\x7f",  # a graph of 2**63 bytes
        b"\x3a\x04\x2a\xff\xff\x7f",  # a tensor longer than its graph
        b"\x3a\x02\x2a\x0f\x6a\x0d\x0a\x08location\x12\x01x",  # likewise, with external data past the graph's end
        b"\x3a\x02\x2a\x00" * 50,  # many empty ones
        b"\x0b" * 100,  # groups
        b"\x42\x02\x0a",  # cut
    ],
)
def test_bytes_that_are_no_onnx_end_the_reading(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "junk").write_bytes(content)
    assert graph_opset(tmp_path / "junk") is None
    assert external_data_files(tmp_path / "junk") == []


def test_a_changed_file_is_read_to_its_end(tmp_path: Path, model: TinyModel, rng: np.random.Generator) -> None:
    whole = model.path.read_bytes()
    for _ in range(200):
        content = bytearray(whole[: rng.integers(1, len(whole) + 1)])
        for place in rng.integers(0, len(content), 3):
            content[place] = rng.integers(0, 256)
        (tmp_path / "changed").write_bytes(content)
        graph_opset(tmp_path / "changed")
        external_data_files(tmp_path / "changed")


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
