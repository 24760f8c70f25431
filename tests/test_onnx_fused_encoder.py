"""The fused encoder against ONNX Runtime and PyTorch, its laws, and what it refuses."""

from __future__ import annotations

import copy
import dataclasses
import functools
import json
import os
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pyarrow as pa
import pytest
import torch
from encoder_files import drawn_model, random_histories, write_encoder_file

from ipsrec_kernels.check import read_only
from ipsrec_kernels.encoder import encode_histories
from ipsrec_onnx.encoding import encode, open_encoder
from ipsrec_onnx.errors import ModelFileError
from ipsrec_onnx.fused_encoder import FusedEncoder, encode_fused, fused_difference, open_fused_encoder
from ipsrec_onnx.histories import Histories
from ipsrec_onnx.model_file import read_model_file
from ipsrec_train.model import Model

CLOSE = 2e-5

CASES: list[tuple[str, dict[str, Any]]] = [
    ("sasrec", {}),
    ("sasrec", {"num_layers": 1, "max_len": 5}),
    ("sasrec", {"num_layers": 3, "dim": 24, "num_heads": 1, "inner_dim": 7}),
    ("ipsrec-s", {}),
    ("ipsrec-s", {"variant": "paper", "num_layers": 1, "dim": 50, "num_heads": 5}),
    ("ipsrec-s", {"variant": "released"}),
    ("ipsrec-c", {}),
    ("ipsrec-c", {"co_attention": "keys_values"}),
    ("ipsrec-c", {"variant": "paper", "num_layers": 1, "dim": 40, "num_heads": 4, "inner_dim": 100}),
    ("ipsrec-c", {"variant": "released"}),
    ("ipsrec-c", {"variant": "released", "num_layers": 1, "co_attention": "keys_values"}),
    ("ipsrec-c", {"variant": "released", "num_layers": 3, "co_attention": "keys_values"}),
    ("ipsrec-c", {"variant": "released", "dim": 33, "num_heads": 3}),
]


def opened(name: str, changes: dict[str, Any]) -> tuple[Model, FusedEncoder]:
    """A model and its file; exported once, for that takes seconds."""
    return _opened(name, tuple(changes.items()))


@functools.cache
def _opened(name: str, changes: tuple[tuple[str, Any], ...]) -> tuple[Model, FusedEncoder]:
    model = drawn_model(name, **{"max_len": 40, "num_items": 2000, **dict(changes)})
    with tempfile.TemporaryDirectory() as folder:
        return model, open_fused_encoder(read_model_file(write_encoder_file(Path(folder) / "model.onnx", model)))


@pytest.fixture
def sasrec() -> tuple[Model, FusedEncoder]:
    return opened("sasrec", {})


@pytest.mark.parametrize(("name", "changes"), CASES, ids=str)
def test_it_is_close_to_onnxruntime_and_to_float64(
    name: str, changes: dict[str, Any], rng: np.random.Generator
) -> None:
    model, encoder = opened(name, changes)
    max_len = model.settings.max_len
    histories = random_histories(np.append(np.arange(1, max_len + 1), rng.integers(1, max_len + 1, 40)), model, rng)
    assert fused_difference(encoder, histories, encode) <= CLOSE
    found = encode_fused(encoder, histories)
    assert np.abs(found - in_float64(model, histories)).max() <= CLOSE


@pytest.mark.parametrize("name", ["sasrec", "ipsrec-s", "ipsrec-c"])
def test_the_lists_are_those_of_onnxruntime(name: str, rng: np.random.Generator) -> None:
    model, encoder = opened(name, {})
    histories = random_histories(rng.integers(1, 41, 60), model, rng)
    table = encoder.model.item_embeddings[1:].astype(np.float64)
    expected = encode(encoder.model, histories) @ table.T
    found = encode_fused(encoder, histories) @ table.T
    for ours, theirs in zip(found, expected, strict=True):
        best = np.argsort(-ours, kind="stable")[:100]
        hundredth = np.sort(theirs)[-100]
        near = 4 * CLOSE * np.abs(table).sum(1).max()
        assert (theirs[best] >= hundredth - near).all()
        assert set(np.flatnonzero(theirs > hundredth + near)) <= set(best)


@pytest.mark.parametrize(
    ("name", "changes"), [("sasrec", {}), ("ipsrec-s", {}), ("ipsrec-c", {}), ("ipsrec-c", {"variant": "released"})]
)
def test_a_users_bits_do_not_depend_on_the_company(
    name: str, changes: dict[str, Any], rng: np.random.Generator
) -> None:
    model, encoder = opened(name, changes)
    histories = random_histories(np.append(np.arange(1, 41), rng.integers(1, 41, 60)), model, rng)
    together = encode_fused(encoder, histories)
    everyone = np.arange(len(together))
    for order in (everyone[::-1], rng.permutation(everyone), rng.integers(0, len(together), 30)):
        assert encode_fused(encoder, chosen(histories, order)).tobytes() == together[order].tobytes()
    for user in everyone:
        assert encode_fused(encoder, chosen(histories, everyone[[user]])).tobytes() == together[user].tobytes()


def test_threads_share_an_encoder(sasrec: tuple[Model, FusedEncoder], rng: np.random.Generator) -> None:
    model, encoder = sasrec
    histories = random_histories(rng.integers(1, 41, 500), model, rng)
    alone = encode_fused(encoder, histories).tobytes()
    with ThreadPoolExecutor(4) as pool:
        assert all(found.tobytes() == alone for found in pool.map(lambda _: encode_fused(encoder, histories), range(8)))


def test_a_user_longer_than_a_group_is_encoded(rng: np.random.Generator) -> None:
    model, encoder = opened("ipsrec-s", {"max_len": 250, "num_layers": 1, "dim": 16, "inner_dim": 16})
    histories = random_histories(np.array([250, 3, 249, 97, 1]), model, rng)
    assert fused_difference(encoder, histories, encode) <= CLOSE


def test_arrays_that_may_be_written_to_are_not_compiled_for_again(
    sasrec: tuple[Model, FusedEncoder], rng: np.random.Generator
) -> None:
    model, encoder = sasrec
    histories = random_histories(rng.integers(1, 41, 5), model, rng)
    views = (read_only(part) for part in (histories.items, histories.providers, histories.offsets))
    expected = encode_fused(encoder, Histories(*views)).tobytes()
    compiled = len(encode_histories.signatures)
    assert encode_fused(encoder, histories).tobytes() == expected
    assert len(encode_histories.signatures) == compiled


def test_nobody_is_an_empty_answer(sasrec: tuple[Model, FusedEncoder], rng: np.random.Generator) -> None:
    model, encoder = sasrec
    histories = random_histories(np.array([], np.int64), model, rng)
    assert encode_fused(encoder, histories).shape == (0, 64)
    assert fused_difference(encoder, histories, encode) == 0.0


def test_weights_beside_the_model_are_read(tmp_path: Path, rng: np.random.Generator) -> None:
    model = drawn_model("ipsrec-c", max_len=8, num_layers=1)
    inside = open_fused_encoder(read_model_file(write_encoder_file(tmp_path / "in.onnx", model)))
    path = write_encoder_file(tmp_path / "out.onnx", model, external_data=True)
    assert path.with_name("out.onnx.data").is_file()
    outside = open_fused_encoder(read_model_file(path))
    histories = random_histories(rng.integers(1, 9, 20), model, rng)
    assert encode_fused(inside, histories).tobytes() == encode_fused(outside, histories).tobytes()


def test_histories_that_the_model_cannot_take_are_refused(sasrec: tuple[Model, FusedEncoder]) -> None:
    _, encoder = sasrec
    for lengths, items, words in (
        ([41], np.ones(41), "histories have 41..41 items, expected 1..40"),
        ([1, 0], np.ones(1), "histories have 0..1 items, expected 1..40"),
        ([2], np.array([1, 2001]), "histories.items are 1..2001, expected 0..2000"),
        ([2], np.array([-1, 1]), "histories.items are -1..1, expected 0..2000"),
    ):
        offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
        with pytest.raises(ValueError, match=words):
            encode_fused(encoder, Histories(items.astype(np.int32), items.astype(np.int32), offsets))


def test_fewer_providers_than_items_are_refused(sasrec: tuple[Model, FusedEncoder]) -> None:
    one = np.ones(1, np.int32)
    with pytest.raises(ValueError, match="histories have 2 items, but 1 providers"):
        encode_fused(sasrec[1], Histories(np.ones(2, np.int32), one, np.array([0, 2])))


def test_a_catalog_of_other_providers_is_refused(tmp_path: Path) -> None:
    model = read_model_file(write_encoder_file(tmp_path / "m.onnx", drawn_model("ipsrec-s", max_len=5, num_layers=1)))
    catalog = dataclasses.replace(model.catalog, provider_ids=pa.array(range(21)))
    with pytest.raises(ModelFileError, match="21 provider embeddings, expected 22; export it again"):
        open_fused_encoder(dataclasses.replace(model, catalog=catalog))


def test_other_models_and_older_files_are_refused(tmp_path: Path) -> None:
    other = write_encoder_file(tmp_path / "gru.onnx", drawn_model("gru4rec", max_len=5))
    with pytest.raises(ModelFileError, match="the fused encoder has ipsrec-c, ipsrec-s, sasrec, found gru4rec"):
        open_fused_encoder(read_model_file(other))
    older = write_encoder_file(tmp_path / "older.onnx", drawn_model("sasrec", max_len=5), weights=False)
    with pytest.raises(ModelFileError, match=r"exported by an older version .* export it again"):
        open_fused_encoder(read_model_file(older))


def test_a_model_of_one_position_is_refused(tmp_path: Path) -> None:
    # The exporter folds what such a model adds to an item, and the weights are no longer there one by one.
    path = write_encoder_file(tmp_path / "one.onnx", drawn_model("sasrec", max_len=1))
    with pytest.raises(ModelFileError, match=r"item_input\.position is missing; export it again, or encode with ONNX"):
        open_fused_encoder(read_model_file(path))


def test_broken_weights_are_refused(tmp_path: Path) -> None:
    path = write_encoder_file(tmp_path / "model.onnx", drawn_model("sasrec", max_len=5))
    model = read_model_file(path)
    proto = onnx.load(path)
    names = open_names(proto)
    position, matrix = (find(proto, names[name]) for name in ("item_input.position", "layers.0.inner.weight"))
    for tensor, change, words in (
        (position, {"dims": [5, 32]}, "expected 640 for shape"),
        (matrix, {"dims": [256, 64]}, "inner has shape .256, 64., expected .64, 256."),
        (position, {"data_type": onnx.TensorProto.INT32}, "data type 6, expected 1"),
        (position, {"name": "elsewhere"}, "the graph has no weight 'encoder.item_input.position'"),
        (position, {"raw_data": b"1234"}, "has 4 bytes, expected 1280"),
    ):
        before = onnx.TensorProto()
        before.CopyFrom(tensor)
        for field, value in change.items():
            tensor.ClearField(field)
            if isinstance(value, list):
                getattr(tensor, field).extend(value)
            else:
                setattr(tensor, field, value)
        path.write_bytes(proto.SerializeToString())
        with pytest.raises(ModelFileError, match=words):
            open_fused_encoder(model)
        tensor.CopyFrom(before)


def test_an_encoder_that_differs_from_the_graph_is_refused_before_a_job(tmp_path: Path) -> None:
    path = write_encoder_file(tmp_path / "model.onnx", drawn_model("sasrec", max_len=5))
    assert open_encoder(read_model_file(path), "fused") is not None
    proto = onnx.load(path)
    (entry,) = (entry for entry in proto.metadata_props if entry.key == "ipsrec.weights")
    names = json.loads(entry.value)
    norms = ("layers.0.attention_norm.weight", "layers.0.attention_norm.bias")
    assert set(norms) <= set(names)
    entry.value = json.dumps({**names, norms[0]: names[norms[1]], norms[1]: names[norms[0]]})
    path.write_bytes(proto.SerializeToString())
    with pytest.raises(ModelFileError, match=r"away from ONNX Runtime on this machine.*leave --encoder fused out"):
        open_encoder(read_model_file(path), "fused")


@pytest.mark.parametrize("location", ["../secret", "/etc/hostname", "sub/data"])
def test_weights_outside_the_folder_are_refused(location: str, tmp_path: Path) -> None:
    path = write_encoder_file(tmp_path / "model.onnx", drawn_model("sasrec", max_len=5))
    model = read_model_file(path)
    proto = onnx.load(path)
    tensor = find(proto, open_names(proto)["item_input.position"])
    tensor.ClearField("raw_data")
    tensor.data_location = onnx.TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value=location)
    path.write_bytes(proto.SerializeToString())
    with pytest.raises(ModelFileError, match="expected a file beside the model"):
        open_fused_encoder(model)


@pytest.mark.slow
def test_a_narrower_cpu_comes_close(tmp_path: Path) -> None:
    script = tmp_path / "encode.py"
    script.write_text(
        "import sys, numpy as np\n"
        "from pathlib import Path\n"
        "from encoder_files import drawn_model, random_histories, write_encoder_file\n"
        "from ipsrec_kernels.gemm_tile import ROWS\n"
        "from ipsrec_onnx.fused_encoder import encode_fused, open_fused_encoder\n"
        "from ipsrec_onnx.model_file import read_model_file\n"
        "model = drawn_model('ipsrec-c', max_len=30)\n"
        "encoder = open_fused_encoder(read_model_file(write_encoder_file(Path(sys.argv[1] + '.onnx'), model)))\n"
        "rng = np.random.default_rng(0)\n"
        "np.save(sys.argv[1], encode_fused(encoder, random_histories(rng.integers(1, 31, 50), model, rng)))\n"
        "print(ROWS)\n"
    )
    narrow = {"NUMBA_CPU_NAME": "haswell", "NUMBA_CPU_FEATURES": "+avx,+avx2,+fma,+sse4.2,+popcnt,+bmi,+bmi2,+f16c"}
    for name, settings in (("wide", {}), ("narrow", narrow)):
        environment = {**os.environ, **settings, "PYTHONPATH": os.pathsep.join(sys.path)}
        command = [sys.executable, str(script), str(tmp_path / name)]
        rows = subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout
    assert rows.strip() == "6"
    wide, found = (np.load(tmp_path / f"{name}.npy") for name in ("wide", "narrow"))
    assert np.abs(found - wide).max() <= CLOSE


def in_float64(model: Model, histories: Histories) -> np.ndarray:
    model = copy.deepcopy(model).double()
    torch.set_default_dtype(torch.float64)  # of the masks, too
    try:
        return encode_one_by_one(model, histories)
    finally:
        torch.set_default_dtype(torch.float32)


def encode_one_by_one(model: Model, histories: Histories) -> np.ndarray:
    users = []
    with torch.no_grad():
        for start, stop in zip(histories.offsets[:-1], histories.offsets[1:], strict=True):
            items, providers = (
                torch.from_numpy(part[start:stop]).long()[None] for part in (histories.items, histories.providers)
            )
            users.append(model(items, providers, torch.tensor([stop - start]))[0].numpy())
    return np.stack(users)


def chosen(histories: Histories, users: np.ndarray) -> Histories:
    parts = [slice(*histories.offsets[[user, user + 1]]) for user in users]
    return Histories(
        np.concatenate([histories.items[part] for part in parts]),
        np.concatenate([histories.providers[part] for part in parts]),
        np.concatenate([[0], np.cumsum(histories.lengths[users])]),
    )


def open_names(proto: onnx.ModelProto) -> dict[str, str]:
    (text,) = (entry.value for entry in proto.metadata_props if entry.key == "ipsrec.weights")
    return dict(json.loads(text))


def find(proto: onnx.ModelProto, name: str) -> onnx.TensorProto:
    (tensor,) = (one for one in proto.graph.initializer if one.name == name)
    return tensor
