"""A folder in which every command works, and ways to spoil one thing in it."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import onnx
import pyarrow as pa
import pyarrow.parquet as pq
from fuzz_targets import write_dataset, write_run
from model_files import write_model_file
from onnx import numpy_helper
from test_onnx_scoring import random_users

from ipsrec_onnx.job_folder import LocalJobFolder
from ipsrec_onnx.scoring import score

# Spoils one thing in a good folder; gives options to add to the command line.
Spoil = Callable[[Path], list[str]]

COMMANDS = {
    "score": "--model {folder}/model.onnx --input {folder}/users.parquet --output {folder}/o.parquet --quiet",
    "evaluate": "--model {folder}/model.onnx --dataset {folder}/dataset --quiet",
    "inspect": "{folder}/model.onnx",
    "doctor": "",
    "prepare": "--input {folder}/interactions.parquet --output {folder}/new --quiet",
    "train": "--dataset {folder}/dataset --output {folder}/new --epochs 1 --threads 1 --quiet",
    "export": "--checkpoint {folder}/run --output {folder}/new.onnx --dataset {folder}/dataset",
    "experiment": "--dataset {folder}/dataset --output {folder}/new --plan {folder}/plan.toml --quiet",
}


def good_folder(folder: Path) -> None:
    """Write everything that the commands above read."""
    model = write_model_file(folder / "model.onnx")
    users = random_users(model, np.random.default_rng(1), 20)
    pq.write_table(users, folder / "users.parquet")
    items = model.catalog.item_ids.to_pylist()
    providers = model.catalog.item_provider[1:].clip(1) + 49
    columns = {"user_id": [1, 2], "item_history": [items[:5], items[5:9]]}
    histories = pa.table({**columns, "provider_history": [providers[:5].tolist(), providers[5:9].tolist()]})
    write_dataset(folder / "dataset", model.catalog, histories)
    write_run(folder / "run", model.catalog)
    names = ("user_id", "item_id", "provider_id", "timestamp")
    pq.write_table(pa.table({name: [1, 2, 3] for name in names}), folder / "interactions.parquet")
    (folder / "plan.toml").write_text('reference = "A"\n[[rows]]\nname = "A"\ntable = "paper"\nmodel = "sasrec"\n')


def options(*words: str) -> Spoil:
    """Other options alone."""
    return lambda folder: list(words)


def users(metadata: dict[str, str] | None = None, /, **columns: Any) -> Spoil:
    """Other users."""

    def spoil(folder: Path) -> list[str]:
        pq.write_table(pa.table(columns).replace_schema_metadata(metadata), folder / "users.parquet")
        return []

    return spoil


def change(name: str, how: Callable[[bytes], bytes], *words: str) -> Spoil:
    """Other bytes in a file."""

    def spoil(folder: Path) -> list[str]:
        (folder / name).write_bytes(how((folder / name).read_bytes()))
        return list(words)

    return spoil


def new(name: str, content: str | bytes, *words: str) -> Spoil:
    """One more file, or another in its place."""

    def spoil(folder: Path) -> list[str]:
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(content.encode() if isinstance(content, str) else content)
        return list(words)

    return spoil


def parquet(name: str, columns: dict[str, Any], *words: str) -> Spoil:
    """One more Parquet file, or another in its place."""

    def spoil(folder: Path) -> list[str]:
        pq.write_table(pa.table(columns), folder / name)
        return list(words)

    return spoil


def without(name: str, *words: str) -> Spoil:
    """A file or folder fewer."""

    def spoil(folder: Path) -> list[str]:
        shutil.rmtree(folder / name) if (folder / name).is_dir() else (folder / name).unlink()
        return list(words)

    return spoil


def folder_at(name: str, *words: str) -> Spoil:
    """A folder where a file is expected."""

    def spoil(folder: Path) -> list[str]:
        (folder / name).unlink(missing_ok=True)
        (folder / name).mkdir()
        return list(words)

    return spoil


def pipe(name: str, *words: str) -> Spoil:
    """A pipe that nobody writes to."""

    def spoil(folder: Path) -> list[str]:
        (folder / name).unlink(missing_ok=True)
        os.mkfifo(folder / name)
        return list(words)

    return spoil


def properties(**changed: str | None) -> Spoil:
    """Other metadata of the model file; None takes an entry away."""

    def spoil(folder: Path) -> list[str]:
        write_model_file(
            folder / "model.onnx", changed_properties={f"ipsrec.{name}": value for name, value in changed.items()}
        )
        return []

    return spoil


def graph(how: Callable[[onnx.ModelProto], Any]) -> Spoil:
    """Another graph in the model file."""

    def spoil(folder: Path) -> list[str]:
        proto = onnx.load(folder / "model.onnx")
        how(proto)
        onnx.save(proto, folder / "model.onnx")
        return []

    return spoil


def weights(name: str, how: Callable[[np.ndarray], np.ndarray]) -> Spoil:
    """Other weights in the graph."""

    def change_weights(proto: onnx.ModelProto) -> None:
        weight = next(tensor for tensor in proto.graph.initializer if tensor.name == name)
        weight.CopyFrom(numpy_helper.from_array(how(numpy_helper.to_array(weight).copy()), name))

    return graph(change_weights)


def outside(proto: onnx.ModelProto) -> None:
    """Say that the item table lies in a file beside the model file, which is not there."""
    tensor = proto.graph.initializer[0]
    tensor.ClearField("raw_data")
    tensor.data_location = onnx.TensorProto.EXTERNAL
    entry = tensor.external_data.add()
    entry.key, entry.value = "location", "weights.data"


def entry(name: str, how: Callable[[dict[str, Any]], Any], *words: str) -> Spoil:
    """Another value in a JSON file; a * in the name stands for what is not known before."""

    def spoil(folder: Path) -> list[str]:
        path = next(folder.glob(name))
        value = json.loads(path.read_text())
        how(value)
        path.write_text(json.dumps(value))
        return list(words)

    return spoil


def unfinished(*words: str, then: Spoil | None = None) -> Spoil:
    """A job on the output that was broken off when all was scored; and then something more."""

    def spoil(folder: Path) -> list[str]:
        stop = mock.patch.object(LocalJobFolder, "finish", side_effect=InterruptedError)
        with stop, contextlib.suppress(InterruptedError):
            score(folder / "model.onnx", folder / "users.parquet", folder / "o.parquet", threads=1)
        assert list(folder.glob(".o.parquet.*.job"))
        return [*words, *(then(folder) if then is not None else [])]

    return spoil
