"""Model files that somebody made to do harm: each is one ModelFileError, before anything is allocated, read or run."""

from __future__ import annotations

import base64
import json
import os
import resource
import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pyarrow as pa
import pytest
from encoder_files import drawn_model, write_encoder_file
from model_files import write_model_file
from onnx import AttributeProto, TensorProto, helper, numpy_helper

from ipsrec_export.edge_graph import EdgeRules, build_edge_graph
from ipsrec_export.graph import build_lean_graph
from ipsrec_onnx.catalog import catalog_to_table, table_from_text, table_to_text
from ipsrec_onnx.encoding import encode, open_encoder
from ipsrec_onnx.errors import ModelFileError
from ipsrec_onnx.graph_check import check_graph
from ipsrec_onnx.histories import Histories
from ipsrec_onnx.inspection import inspect
from ipsrec_onnx.model_file import open_model_file
from ipsrec_onnx.retrieval import build_ranker

MUCH = 1 << 31  # bytes that a test may take on top of what it has


@pytest.fixture(autouse=True)
def little_memory():
    """Let an allocation by a number in the file fail, instead of filling the machine."""
    before = resource.getrlimit(resource.RLIMIT_AS)
    taken = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (taken + MUCH, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_AS, before)


def changed(path: Path, change: Callable[[onnx.ModelProto], None]) -> Path:
    """Write a model file and change it."""
    write_model_file(path)
    proto = onnx.load(path)
    change(proto)
    path.write_bytes(proto.SerializeToString())
    return path


def refused(path: Path, message: str, *, read: Callable[[Path], object] = open_model_file) -> None:
    """It is refused in one line that names the file."""
    with pytest.raises(ModelFileError, match=message) as error:
        read(path)
    text = str(error.value)
    assert str(path) in text and text.isprintable(), text
    assert len(text) < 1000


def attention(
    *inputs: str, outputs: tuple[str, ...] = ("looked",), lengths: tuple[str, ...] = (), columns: int = 8
) -> Callable[[onnx.ModelProto], None]:
    """A node of the one operator of com.microsoft that is run; `lengths` are operators that make its input 4.

    "k" and "v" are products with a weight of so many columns.
    """

    def change(proto: onnx.ModelProto) -> None:
        made = "start"
        proto.graph.initializer.append(numpy_helper.from_array(np.zeros((8, columns), np.float32), "wide"))
        for name in ("k", "v"):
            proto.graph.node.append(helper.make_node("MatMul", ["states", "wide"], [name]))
        for number, operator in enumerate(lengths):
            domain, _, name = operator.rpartition(":")
            proto.graph.node.append(helper.make_node(name, [made, "zero"], [f"made {number}"], domain=domain))
            made = f"made {number}"
        add_node(
            "MultiHeadAttention",
            [made if name == "made" else name for name in inputs],
            outputs,
            domain="com.microsoft",
            num_heads=1,
        )(proto)

    return change


def attention_inside(proto: onnx.ModelProto) -> None:
    """Lengths that come from the outer graph: nobody looks there."""
    node = helper.make_node("MultiHeadAttention", ["q", "k", "v", "", "made 2"], ["y"], domain="com.microsoft")
    attention("q", "k", "v", lengths=("Equal", "Cast", "ReduceSum"))(proto)
    if_node(inner_graph([node]))(proto)


def weight(proto: onnx.ModelProto, name: str = "item_embeddings") -> TensorProto:
    return next(one for one in proto.graph.initializer if one.name == name)


def add_node(*arguments, **attributes) -> Callable[[onnx.ModelProto], None]:
    return lambda proto: proto.graph.node.append(helper.make_node(*arguments, **attributes))


def inner_graph(nodes=(), initializer=()) -> onnx.GraphProto:
    return helper.make_graph(list(nodes), "inner", [], [], initializer=list(initializer))


def if_node(branch: onnx.GraphProto) -> Callable[[onnx.ModelProto], None]:
    return add_node("If", ["flag"], [], then_branch=branch, else_branch=inner_graph())


def nested(proto: onnx.ModelProto) -> None:
    graph = inner_graph()
    for _ in range(12):
        graph = inner_graph([helper.make_node("If", ["flag"], [], then_branch=graph)])
    if_node(graph)(proto)


def local_function(proto: onnx.ModelProto) -> None:
    node = helper.make_node("Neg", ["x"], ["y"])
    function = helper.make_function("mine", "Double", ["x"], ["y"], [node], [helper.make_opsetid("", 20)])
    proto.functions.append(function)
    proto.graph.node.append(helper.make_node("Double", ["user_embedding"], ["more"], domain="mine"))


def function_in_the_standard_domain(proto: onnx.ModelProto) -> None:
    node = helper.make_node("Neg", ["x"], ["y"])
    proto.functions.append(helper.make_function("", "Add", ["x"], ["y"], [node], [helper.make_opsetid("", 20)]))


def training_graph(proto: onnx.ModelProto) -> None:
    proto.training_info.add().algorithm.CopyFrom(inner_graph())


def sparse_weight(proto: onnx.ModelProto) -> None:
    values = helper.make_tensor("sparse", TensorProto.FLOAT, [1], [1.0])
    indices = helper.make_tensor("indices", TensorProto.INT64, [1], [0])
    proto.graph.sparse_initializer.append(helper.make_sparse_tensor(values, indices, [1 << 40]))


def sparse_attribute(proto: onnx.ModelProto) -> None:
    sparse_weight(proto)
    node = helper.make_node("Constant", [], ["large"])
    node.attribute.append(
        AttributeProto(
            name="sparse_value", type=AttributeProto.SPARSE_TENSOR, sparse_tensor=proto.graph.sparse_initializer.pop()
        )
    )
    proto.graph.node.append(node)


def dims(*sizes: int, name: str = "item_embeddings") -> Callable[[onnx.ModelProto], None]:
    def change(proto: onnx.ModelProto) -> None:
        weight(proto, name).dims[:] = sizes

    return change


def typed_data(proto: onnx.ModelProto) -> None:
    """A shape of a terabyte, and eight numbers outside raw_data."""
    tensor = weight(proto, "provider_embeddings")
    tensor.ClearField("raw_data")
    tensor.dims[:] = [1 << 20, 1 << 18]
    tensor.float_data.extend([0.0] * 8)


def constant_without_bytes(proto: onnx.ModelProto) -> None:
    proto.graph.node.append(
        helper.make_node("Constant", [], ["large"], value=TensorProto(dims=[1 << 40], data_type=1, name="large"))
    )


def weight_in_a_branch(proto: onnx.ModelProto) -> None:
    if_node(inner_graph(initializer=[TensorProto(dims=[1 << 40], data_type=7, name="large")]))(proto)


def data_type(number: int) -> Callable[[onnx.ModelProto], None]:
    return lambda proto: setattr(weight(proto), "data_type", number)


def segment(proto: onnx.ModelProto) -> None:
    weight(proto).segment.begin = 0


def many_axes(proto: onnx.ModelProto) -> None:
    weight(proto).dims[:] = [1] * 1000


def twice(proto: onnx.ModelProto) -> None:
    proto.graph.initializer.append(weight(proto))


def renamed(proto: onnx.ModelProto) -> None:
    """The table is computed: no weight says how large it is."""
    weight(proto).name = "table"
    for node in proto.graph.node:
        node.input[:] = ["table" if name == "item_embeddings" else name for name in node.input]
    proto.graph.node.append(helper.make_node("Expand", ["table", "axis"], ["item_embeddings"]))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            add_node("Mine", ["x"], ["y"], domain="mine"),
            "operator 'Mine' of domain 'mine'; only those of the ONNX stand",
        ),
        (add_node("EPContext", [], ["y"], domain="com.microsoft"), "operator 'EPContext' of domain 'com.microsoft'"),
        *(
            (
                if_node(inner_graph([helper.make_node(name, ["x"], ["y"], domain=domain)]))
                if inner
                else add_node(name, ["x"], ["y"], domain=domain),
                f"operator '{name}' of domain '{domain}'",
            )
            for name, domain, inner in (
                ("Attention", "com.microsoft", False),
                ("BeamSearch", "com.microsoft", False),
                ("BiasGelu", "com.microsoft", False),
                ("DecoderMaskedMultiHeadAttention", "com.microsoft", False),
                ("GroupQueryAttention", "com.microsoft", True),
                ("SkipLayerNormalization", "com.microsoft", True),
                ("multiheadattention", "com.microsoft", False),
                ("MultiHeadAttention", "com.Microsoft", False),
                ("MultiHeadAttention", "com.microsoft.nchwc", True),
                ("MultiHeadAttention", "mine", False),
            )
        ),
        (attention("q", "k", "v", "", "", "", "pk", "pv"), "has MultiHeadAttention with a cache, or without keys"),
        (
            attention("q", "k", "v", outputs=("y", "key", "value")),
            "has MultiHeadAttention with a cache, or without keys",
        ),
        (attention("q", "k", "v", "", "lengths"), "MultiHeadAttention with lengths 'lengths' that are not counted"),
        (attention("q", "k", "v", "", "made", lengths=("Sub",)), "with lengths 'made 0' that are not counted"),
        (attention("q", "k", "v", "", "made", lengths=("Equal", "Neg", "ReduceSum")), "that are not counted"),
        (attention("q", "k", "v", "", "made", lengths=("Add", "Cast", "ReduceSum")), "that are not counted"),
        (attention("q", "k", "v", "", "made", lengths=("Less", "Cast", "ai.onnx.ml:ReduceSum")), "are not counted"),
        (attention("q"), "has MultiHeadAttention with a cache, or without keys and values"),
        (attention("q", "q", "v"), "has MultiHeadAttention with keys 'q' that no weight makes"),
        (attention("q", "k", "states"), "has MultiHeadAttention with values 'states' that no weight makes"),
        (attention("q", "k", "v", columns=0), "has MultiHeadAttention with keys 'k' that no weight makes"),
        (attention_inside, "with lengths 'made 2' that are not counted"),
        (add_node("PyOp", [], ["y"], domain="ai.onnx.contrib"), r"operator 'PyOp' of domain 'ai\.onnx\.contrib'"),
        (add_node("Mine", [], [], domain="a\nb\x1b[2J"), "is no ONNX model: a name at byte [0-9]+ cannot be printed"),
        (add_node("Mine", [], [], domain="x" * 5000), "is no ONNX model: a name is a number, or too long"),
        (if_node(inner_graph([helper.make_node("Mine", [], [], domain="mine")])), "operator 'Mine' of domain 'mine'"),
        (add_node("Max", ["lengths", ""], ["longest"]), "operator 'Max' with an input that has no name"),
        (add_node("Loop", [], [], body=inner_graph()), "operator 'Loop', which could run for ever"),
        (if_node(inner_graph([helper.make_node("Scan", [], [], body=inner_graph())])), "operator 'Scan', which could"),
        (nested, "graphs lie more than 8 deep"),
        (local_function, "it has functions of its own"),
        (function_in_the_standard_domain, "it has functions of its own"),
        (training_graph, "it has a graph for training"),
        (sparse_weight, "its graph has a sparse weight"),
        (sparse_attribute, "its graph has a sparse weight"),
        (dims(1 << 40, 1 << 40), r"weight 'item_embeddings' has 1312 bytes, expected 4835703278458516698824704 for"),
        (dims(1 << 62, 8), "weight 'item_embeddings' has 1312 bytes, expected"),
        (dims(-1, 8), r"weight 'item_embeddings' has shape \(-1, 8\)"),
        (dims(-1, -328), r"weight 'item_embeddings' has shape \(-1, -328\)"),
        (dims(41, 9), "weight 'item_embeddings' has 1312 bytes, expected 1476"),
        (dims(41, 0), "weight 'item_embeddings' has 1312 bytes, expected 0"),
        (dims(328), r"the graph has .*expected .*'item_embeddings'"),
        (dims(82, 4), "ONNX Runtime cannot load it|expected"),
        (typed_data, "its 274877906944 numbers lie in [0-9]+ bytes"),
        (constant_without_bytes, "weight 'large' has shape .*numbers lie in"),
        (weight_in_a_branch, "weight 'large' has shape .*numbers lie in"),
        (data_type(99), "has ONNX's data type 99, which is none"),
        (data_type(11), "has 1312 bytes, expected 2624"),
        (data_type(8), "has 1312 bytes, expected None"),
        (segment, "a weight is cut into segments"),
        (many_axes, "a weight has more than 32 axes"),
        (twice, "two of its weights are named 'item_embeddings'"),
        (renamed, "item_embeddings has shape None among the weights"),
    ],
    ids=lambda value: None if isinstance(value, str) else "",
)
def test_a_graph_that_could_do_harm_is_refused_before_it_runs(tmp_path: Path, change, message: str) -> None:
    refused(changed(tmp_path / "model.onnx", change), message)


def outside(tmp_path: Path, name: str = "item_embeddings", **entries: str | None) -> Path:
    """A model file whose item table is external data with these entries; None takes one away."""
    path = tmp_path / "models" / "model.onnx"
    path.parent.mkdir(exist_ok=True)
    write_model_file(path)
    proto = onnx.load(path)
    tensor = weight(proto, name)
    (path.parent / "weights.data").write_bytes(tensor.raw_data)
    (tmp_path / "secret").write_bytes(tensor.raw_data)
    for link, to in (
        ("out.data", "../secret"),
        ("folder", ".."),
        ("in.data", "weights.data"),
        ("loop.data", "loop.data"),
    ):
        if not (path.parent / link).is_symlink():
            (path.parent / link).symlink_to(to)
    all_entries = {"location": "weights.data", "offset": "0", "length": str(len(tensor.raw_data))} | entries
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    for key, value in all_entries.items():
        if value is not None:
            tensor.external_data.add(key=key, value=value)
    path.write_bytes(proto.SerializeToString())
    return path


@pytest.mark.parametrize("entries", [{}, {"location": "in.data"}, {"length": None}, {"offset": None, "checksum": "x"}])
def test_external_data_in_the_models_folder_are_read(tmp_path: Path, entries) -> None:
    expected = open_model_file(write_model_file(tmp_path / "model.onnx").path).item_embeddings
    np.testing.assert_array_equal(open_model_file(outside(tmp_path, **entries)).item_embeddings, expected)


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ({"location": "/etc/passwd"}, "lies in '/etc/passwd', which is not in the model's folder"),
        ({"location": "../secret"}, r"lies in '\.\./secret', which is not in the model's folder"),
        ({"location": "../models/weights.data"}, "which is not in the model's folder"),
        ({"location": "folder/secret"}, "lies in 'folder/secret', which is not in the model's folder"),
        ({"location": "folder/models/../secret"}, "which is not in the model's folder"),
        ({"location": "out.data"}, r"lies in 'out\.data', which is not in the model's folder; copy that file beside"),
        ({"location": "loop.data"}, r"lies in 'loop\.data'"),
        ({"location": "missing.data"}, r"lies in 'missing\.data': there is no such file"),
        ({"location": "."}, r"lies in '\.': it is a folder"),
        ({"location": ""}, "has external data that are none"),
        ({"location": None}, "has external data that are none"),
        ({"location": "a\0b"}, "is no ONNX model: a name at byte"),
        ({"location": "x" * 4000}, "it cannot be read|not in the model's folder"),
        ({"location": "*/_ORT_MEM_ADDR_/*", "offset": "94000000000000"}, "there is no such file"),
        ({"offset": "1"}, "needs the bytes 1 to 1313 of 'weights.data', which has 1312"),
        ({"offset": str((1 << 63) - 1)}, "needs the bytes 9223372036854775807 to"),
        ({"offset": "-4"}, "has external data at '-4'"),
        ({"offset": "9" * 4000}, "has external data at '9999"),
        ({"offset": "٣"}, "has external data at '٣'"),
        ({"length": "1308"}, "has 1308 bytes, expected 1312"),
        ({"length": "0"}, "has 0 bytes, expected 1312"),
        ({"length": str(1 << 62)}, "bytes, expected 1312"),
        ({"length": "0x10"}, "has external data at '0', '0x10' bytes"),
    ],
    ids=lambda value: None if isinstance(value, str) else "",
)
def test_external_data_elsewhere_or_of_another_size_are_refused(tmp_path: Path, entries, message: str) -> None:
    refused(outside(tmp_path, **entries), message)


def test_a_device_is_not_opened_as_external_data(tmp_path: Path) -> None:
    path = outside(tmp_path)
    (path.parent / "weights.data").unlink()
    os.mkfifo(path.parent / "weights.data")
    refused(path, "it is a device or a pipe")


def test_external_data_of_two_places_are_refused(tmp_path: Path) -> None:
    path = outside(tmp_path)
    proto = onnx.load(path, load_external_data=False)
    weight(proto).external_data.add(key="location", value="../secret")
    path.write_bytes(proto.SerializeToString())
    refused(path, "external data say 'location' twice")


def test_external_data_of_a_node_are_refused(tmp_path: Path) -> None:
    """A file's SHA-256 would not have them."""
    tensor = TensorProto(dims=[1], data_type=1, name="c", data_location=TensorProto.EXTERNAL)
    tensor.external_data.add(key="location", value="model.onnx")
    change = add_node("Constant", [], ["c"], value=tensor)
    refused(changed(tmp_path / "model.onnx", change), "weight 'c' of a node or an inner graph has external data")


def test_raw_bytes_beside_external_data_are_refused(tmp_path: Path) -> None:
    path = outside(tmp_path)
    proto = onnx.load(path, load_external_data=False)
    weight(proto).raw_data = b"1234"
    path.write_bytes(proto.SerializeToString())
    refused(path, "has external data that are none")


@pytest.mark.parametrize(
    "junk",
    [
        b"\x1b\x1c",  # an empty group: other readers pass over it, to what comes behind
        b"\x00\x00",  # field 0
        b"\xba\x80\x80\x80\x10\x00",  # field 7 once more, in a number of 33 bits
        b"\x3a\x05\x0a",  # a graph that is longer than the file
        b"\x3a\xff\xff\xff\xff\xff\xff\xff\xff\x7f",  # much longer
        b"\x3a" + b"\x80" * 20,  # of a size without end
        b"\x08",  # a number that is missing
        b"\x09\x00",  # likewise, of eight bytes
        b"\x3a\x02\x0a\x7f",  # a node longer than its graph
        b"\x38\x01",  # fine: field 7 as a number is nothing that ONNX knows
    ],
)
def test_bytes_that_readers_could_understand_in_two_ways_are_refused(tmp_path: Path, junk: bytes) -> None:
    path = tmp_path / "model.onnx"
    write_model_file(path)
    path.write_bytes(path.read_bytes() + junk)
    refused(path, "is no ONNX model: ")


def test_an_operator_behind_a_group_is_seen(tmp_path: Path) -> None:
    """What ends a careless walk early must not hide what is behind it."""
    hidden = helper.make_graph([helper.make_node("Mine", [], [], domain="mine")], "hidden", [], [])
    more = onnx.ModelProto(graph=hidden).SerializeToString()
    path = tmp_path / "model.onnx"
    write_model_file(path)
    whole = path.read_bytes()
    path.write_bytes(whole + more)  # protobuf joins graphs that come in pieces
    refused(path, "operator 'Mine' of domain 'mine'")
    path.write_bytes(whole + b"\x1b\x1c" + more)
    refused(path, "is no ONNX model")


def test_an_attribute_of_two_tensors_is_refused(tmp_path: Path) -> None:
    """Protobuf joins them: two of shape (1000,) make one of shape (1000, 1000)."""
    path = tmp_path / "model.onnx"
    write_model_file(path)
    whole = path.read_bytes()
    value = AttributeProto(t=numpy_helper.from_array(np.zeros(1000, np.float32))).SerializeToString()
    for attribute in (value, value * 2):
        node = helper.make_node("Constant", [], ["more"]).SerializeToString() + message(5, attribute)
        path.write_bytes(whole + message(7, message(1, node)))
        if attribute is value:
            check_graph(path)
    refused(path, "an attribute has two tensors in the place of one")


def test_a_graph_of_endless_small_parts_is_given_up(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(b"\x3a" + varint(2_000_000) + b"\x0a\x00" * 1_000_000)
    refused(path, "its graph has more than 524288 parts")


def test_an_edge_file_may_have_many_ids(tmp_path: Path) -> None:
    """Of strings a protobuf keeps each as a part of its own, twice in the graph, and its row as another."""
    model = write_model_file(tmp_path / "m.onnx", num_items=200_000, string_ids=True)
    opened = open_model_file(model.path)
    proto = build_edge_graph(onnx.load(model.path), opened.catalog, None, max_len=opened.max_len, rules=EdgeRules())
    onnx.save(proto, tmp_path / "edge.onnx")
    assert "item_id" in check_graph(tmp_path / "edge.onnx")


def varint(number: int) -> bytes:
    found = bytearray()
    while number >= 0x80:
        found.append(number & 0x7F | 0x80)
        number >>= 7
    return bytes([*found, number])


def message(field: int, content: bytes) -> bytes:
    return varint(8 * field + 2) + varint(len(content)) + content


def test_a_name_that_ends_in_ort_is_no_other_format(tmp_path: Path) -> None:
    path = tmp_path / "model.ort"
    write_model_file(path)
    assert open_model_file(path).catalog.num_items == 40


# Metadata


def catalog_text(**columns: object) -> str:
    """The catalog of 40 items with some columns changed."""
    items = {"item_id": np.arange(40), "provider_index": np.zeros(40, np.int32), "popularity": np.ones(40, np.int64)}
    return table_to_text(pa.table(items | columns))


def bomb(claimed: int, *, honest: bool) -> str:
    """A catalog of a few hundred bytes that says that it is larger, or is."""
    if honest:
        return table_to_text(pa.table({"item_id": np.zeros(1 << 21, np.int64)}))
    data = bytearray(base64.b64decode(catalog_text()))
    real = struct.pack("<q", 40 * 8)
    assert data.count(real) >= 1
    return base64.b64encode(data.replace(real, struct.pack("<q", claimed))).decode()


def words(value: pa.Array) -> str:
    return catalog_text(item_id=value)


LONG = "x" * 100_000


@pytest.mark.parametrize(
    ("properties", "message"),
    [
        (
            {"ipsrec.settings": '{"max_len": 1000000000}'},
            r"max_len is 1000000000, expected a whole number, 1\.\.1048576",
        ),
        ({"ipsrec.settings": '{"max_len": 1' + "0" * 4000 + "}"}, "max_len is 1000.*expected a whole number"),
        ({"ipsrec.model": "ipsrec-c\n\x1b[2J"}, r"model is 'ipsrec-c\\n\\x1b\[2J', expected a name"),
        ({"ipsrec.model": ""}, "model is '', expected a name"),
        ({"ipsrec.history_terms": '{"provider": [1e400], "item": [0]}'}, "metadata is broken"),
        ({"ipsrec.history_terms": '{"provider": ["a"], "item": [0]}'}, "metadata is broken"),
        ({"ipsrec.history_terms": "[[[[1]]]]"}, "metadata is broken"),
        ({"ipsrec.history_terms": '{"provider": [[0, 0]], "item": [0]}'}, r"provider has shape \(1, 2\)"),
        (
            {"ipsrec.catalog": bomb(1 << 50, honest=False)},
            "an Arrow stream unpacks to [0-9]+ bytes, expected 1090560 at",
        ),
        ({"ipsrec.catalog": bomb(-2, honest=False)}, "no whole Arrow stream: a buffer's length is negative"),
        ({"ipsrec.catalog": bomb(1 << 40, honest=False)}, "an Arrow stream unpacks to"),
        ({"ipsrec.providers": bomb(0, honest=True)}, "an Arrow stream unpacks to 16777216 bytes, expected"),
        ({"ipsrec.catalog": words(pa.array([LONG] * 40).dictionary_encode())}, "column 'item_id' is dictionary"),
        ({"ipsrec.catalog": words(pa.array([LONG] * 40, pa.string_view()))}, "column 'item_id' is string_view"),
        ({"ipsrec.catalog": words(pa.array([LONG] * 40))}, "an Arrow stream unpacks to 4000"),
        ({"ipsrec.catalog": words(pa.array([[1]] * 40))}, "column 'item_id' is list"),
        ({"ipsrec.catalog": words(pa.array(np.arange(40) * 0.5))}, "ids of type double"),
        ({"ipsrec.catalog": words(pa.nulls(40))}, "column 'item_id' is null|ids"),
        ({"ipsrec.catalog": words(pa.array([None, *range(39)]))}, "1 null ids"),
        ({"ipsrec.catalog": words(pa.array([7] * 40))}, "id 7 is there twice"),
        ({"ipsrec.catalog": catalog_text(provider_index=np.full(40, 8))}, r"a provider_index lies outside 0\.\.7"),
        ({"ipsrec.catalog": catalog_text(provider_index=np.full(40, -1))}, "a provider_index lies outside"),
        ({"ipsrec.catalog": catalog_text(popularity=np.full(40, -1))}, "popularity -1"),
        ({"ipsrec.catalog": catalog_text(popularity=np.full(40, np.inf))}, "column popularity: found double"),
        ({"ipsrec.catalog": table_to_text(pa.table({"item_id": [1]}))}, "column provider_index is missing"),
        ({"ipsrec.catalog": table_to_text(pa.table({"": []}))}, "metadata is broken"),
    ],
    ids=lambda value: None if isinstance(value, str) else "",
)
def test_metadata_that_could_do_harm_are_refused(tmp_path: Path, properties, message: str) -> None:
    path = tmp_path / "model.onnx"
    write_model_file(path, changed_properties=properties)
    refused(path, message)


def test_a_catalog_of_two_columns_of_one_name_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    items, _ = catalog_to_table(write_model_file(path).catalog)
    two = items.append_column("item_id", items["item_id"])
    write_model_file(path, changed_properties={"ipsrec.catalog": table_to_text(two)})
    refused(path, "metadata is broken")


def test_long_but_honest_ids_are_read(tmp_path: Path) -> None:
    text = words(pa.array([f"{number} " + "x" * 900 for number in range(40)], pa.large_string()))
    path = tmp_path / "model.onnx"
    write_model_file(path, changed_properties={"ipsrec.catalog": text})
    assert open_model_file(path).catalog.num_items == 40
    assert table_from_text(text, most_bytes=1 << 20).num_rows == 40


def test_a_stream_cut_or_changed_anywhere_unpacks_to_no_more_than_is_allowed(rng: np.random.Generator) -> None:
    whole = base64.b64decode(catalog_text())
    for _ in range(400):
        data = bytearray(whole)
        for place in rng.integers(0, len(data), 2):
            data[place] = rng.choice([0, 1, 127, 128, 255])
        try:
            table = table_from_text(base64.b64encode(data).decode(), most_bytes=5000)
        except ValueError:
            continue
        assert table.nbytes <= 5000


# Graphs that compute something else


def replaced_output(name: str, *nodes: onnx.NodeProto, shape: list[object]) -> Callable[[onnx.ModelProto], None]:
    """user_embedding comes from other nodes, which get the real one as `real`."""

    def change(proto: onnx.ModelProto) -> None:
        for node in proto.graph.node:
            node.output[:] = ["real" if one == name else one for one in node.output]
        proto.graph.node.extend(nodes)
        output = next(one for one in proto.graph.output if one.name == name)
        output.CopyFrom(helper.make_tensor_value_info(name, TensorProto.FLOAT, shape))
        proto.graph.initializer.append(numpy_helper.from_array(np.float32(np.nan), "nan"))
        proto.graph.initializer.append(numpy_helper.from_array(np.array([0], np.int64), "first"))

    return change


def node(*arguments, **attributes) -> onnx.NodeProto:
    return helper.make_node(*arguments, **attributes)


@pytest.mark.parametrize(
    ("nodes", "shape", "message"),
    [
        ([node("Mul", ["real", "nan"], ["user_embedding"])], ["batch", 8], "user_embedding has NaN or infinity"),
        (
            [node("Concat", ["real"] * 2, ["user_embedding"], axis=0)],
            ["n", 8],
            r"has shape \(64, 8\), expected \(32, 8\)",
        ),
        ([node("Concat", ["real"] * 2, ["user_embedding"], axis=1)], ["n", "d"], r"has shape \(32, 16\), expected"),
        ([node("Gather", ["real", "first"], ["user_embedding"], axis=0)], ["n", 8], r"has shape \(1, 8\), expected"),
        (
            [node("Shape", ["lengths"], ["n"]), node("Gather", ["real", "n"], ["user_embedding"], axis=0)],
            ["n", 8],
            "the model's graph failed: ",
        ),
    ],
    ids=["NaN", "more rows", "more dims", "fewer rows", "fails"],
)
def test_a_graph_that_computes_something_else_is_refused(tmp_path: Path, nodes, shape, message: str) -> None:
    path = changed(tmp_path / "model.onnx", replaced_output("user_embedding", *nodes, shape=shape))
    histories = Histories(np.array([1, 2], np.int32), np.zeros(2, np.int32), np.array([0, 2]))

    def use(file: Path) -> None:
        encode(open_model_file(file), histories)

    with pytest.raises(ModelFileError, match=message) as error:
        use(path)
    assert str(error.value).isprintable()


@pytest.mark.parametrize(
    ("value", "message"), [(np.nan, "NaN or infinity"), (np.inf, "NaN or infinity")], ids=["NaN", "infinity"]
)
def test_an_item_table_that_is_not_finite_is_refused(tmp_path: Path, value: float, message: str) -> None:
    def change(proto: onnx.ModelProto) -> None:
        table = numpy_helper.to_array(weight(proto)).copy()
        table[3, 2] = value
        weight(proto).raw_data = table.tobytes()

    path = changed(tmp_path / "model.onnx", change)

    def use(file: Path) -> None:
        build_ranker(open_model_file(file), None, top_k=3, keep_seen=False, max_per_provider=None)

    refused(path, message, read=use)


def test_a_table_that_a_node_replaces_is_refused(tmp_path: Path) -> None:
    change = add_node("Neg", ["provider_embeddings"], ["item_embeddings"])
    refused(changed(tmp_path / "model.onnx", change), "ONNX Runtime cannot load it|item_embeddings has shape")


def test_an_input_that_nobody_feeds_is_refused(tmp_path: Path) -> None:
    def change(proto: onnx.ModelProto) -> None:
        proto.graph.input.append(helper.make_tensor_value_info("more", TensorProto.FLOAT, [1]))

    refused(changed(tmp_path / "model.onnx", change), "the model's graph failed: ")


# The fused encoder


@pytest.fixture(scope="module")
def encoder_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_encoder_file(
        tmp_path_factory.mktemp("encoder") / "model.onnx", drawn_model("ipsrec-c", max_len=8, dim=16)
    )


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num_layers": 10**9}, "num_layers is 1000000000"),
        ({"num_layers": 0}, "num_layers is 0"),
        ({"num_layers": "2"}, "num_layers is '2'"),
        ({"num_layers": True}, "num_layers is True"),
        ({"num_heads": 0}, "num_heads is 0"),
        ({"num_heads": 3}, "num_heads is 3"),
        ({"num_heads": -1}, "num_heads is -1"),
        ({"inner_dim": 10**9}, "inner_dim is 1000000000"),
        ({"inner_dim": -8}, "inner_dim is -8"),
        ({"layer_norm_eps": "much"}, "layer_norm_eps is 'much'"),
        ({"layer_norm_eps": -1.0}, "layer_norm_eps is -1.0"),
        ({"max_len": 1 << 20}, "has shapes|history term"),
        ({"co_attention": {}}, "expects: "),
    ],
    ids=lambda value: None if isinstance(value, str) else "",
)
def test_settings_that_the_weights_do_not_bear_out_are_refused_by_the_fused_encoder(
    tmp_path: Path, encoder_file: Path, settings, message: str
) -> None:
    path = tmp_path / "model.onnx"
    proto = onnx.load(encoder_file)
    properties = {entry.key: entry.value for entry in proto.metadata_props}
    properties["ipsrec.settings"] = json.dumps(json.loads(properties["ipsrec.settings"]) | settings)
    helper.set_model_props(proto, properties)
    path.write_bytes(proto.SerializeToString())
    refused(path, message, read=lambda file: open_encoder(open_model_file(file), "fused"))


# All that reads one


def test_inspect_refuses_what_scoring_refuses(tmp_path: Path) -> None:
    path = changed(tmp_path / "model.onnx", add_node("Mine", [], ["y"], domain="mine"))
    refused(path, "operator 'Mine'", read=inspect)


@pytest.mark.parametrize("name", ["ipsrec-c", "ipsrec-s", "sasrec"])
def test_half_precision_as_export_writes_it_is_read(tmp_path: Path, name: str) -> None:
    proto = build_lean_graph(drawn_model(name, max_len=6, num_layers=2))
    onnx.save_model(proto, tmp_path / "model.onnx")
    assert check_graph(tmp_path / "model.onnx")["item_embeddings"] == (301, 64)


def test_a_good_file_tells_the_shapes_of_its_weights(tmp_path: Path) -> None:
    found = check_graph(write_model_file(tmp_path / "model.onnx").path)
    assert found["item_embeddings"] == (41, 8) and found["provider_embeddings"] == (8, 8) and found["one"] == ()
