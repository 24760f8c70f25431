"""The graph that takes the item table as an input gives what the file's own graph gives."""

import numpy as np
import onnx
import onnxruntime
import pytest
from model_files import write_model_file

from ipsrec_onnx.onnx_proto import BrokenMessageError, external_data_files
from ipsrec_onnx.onnx_rewrite import graph_with_table_input
from ipsrec_onnx.session import open_session


def feed_of(model, rng, *, batch, sequence):
    lengths = rng.integers(1, sequence + 1, batch).astype(np.int32)
    items = rng.integers(1, len(model.item_embeddings), (batch, sequence)).astype(np.int32)
    items[np.arange(sequence)[None, :] >= lengths[:, None]] = 0
    return {"item_history": items, "provider_history": model.catalog.item_provider[items], "lengths": lengths}


@pytest.mark.parametrize("num_items", [1, 40, 300])
def test_the_table_as_an_input_gives_the_same_vectors(tmp_path, rng, num_items):
    model = write_model_file(tmp_path / "model.onnx", num_items=num_items)
    graph = graph_with_table_input(model.path, model.item_embeddings.shape)
    proto = onnx.load_from_string(graph)
    onnx.checker.check_model(proto)
    assert "item_embeddings" not in {tensor.name for tensor in proto.graph.initializer}
    assert [output.name for output in proto.graph.output] == ["user_embedding"]
    assert not proto.metadata_props
    whole, without = open_session(model.path, device="cpu"), open_session(model.path, device="cpu", graph=graph)
    assert {given.name: given.shape for given in without.get_inputs()}["item_embeddings"] == [num_items + 1, 8]
    feed = feed_of(model, rng, batch=5, sequence=6)
    (expected,) = whole.run(["user_embedding"], feed)
    (found,) = without.run(["user_embedding"], {**feed, "item_embeddings": model.item_embeddings})
    np.testing.assert_array_equal(found, expected)


def test_weights_beside_the_file_are_found(tmp_path, rng):
    model = write_model_file(tmp_path / "inside.onnx", num_items=30, num_providers=60)
    path = tmp_path / "outside.onnx"
    onnx.save_model(onnx.load(model.path), path, save_as_external_data=True, location="outside.data")
    assert external_data_files(path) == ["outside.data"]
    graph = graph_with_table_input(path, model.item_embeddings.shape)
    session = open_session(path, device="cpu", graph=graph)
    feed = feed_of(model, rng, batch=3, sequence=4)
    (expected,) = onnxruntime.InferenceSession(str(model.path)).run(["user_embedding"], feed)
    (found,) = session.run(["user_embedding"], {**feed, "item_embeddings": model.item_embeddings})
    np.testing.assert_array_equal(found, expected)


def test_a_file_that_is_no_model_any_more_is_refused(tmp_path):
    path = tmp_path / "model.onnx"
    path.write_bytes(b"\x3a\x7f no message")
    with pytest.raises(BrokenMessageError, match="leaves its message"):
        graph_with_table_input(path, (3, 8))
