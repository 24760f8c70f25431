"""What `fuzz.py` throws bytes at: small real files, what reads them, and what must hold of a result.

A target either gives a result, which is checked, or raises an IpsrecError; a folder that was refused is as before. Two
targets take one file of a folder: the first byte of an input says which one it stands for.
"""

from __future__ import annotations

import base64
import contextlib
import json
import random
import shutil
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from fuzz_mutations import Mutate, mutate_bytes, mutate_model, mutate_parquet
from model_files import TinyModel, write_model_file
from test_onnx_scoring import random_users

from ipsrec_export import metadata
from ipsrec_onnx.catalog import Catalog, catalog_to_table
from ipsrec_onnx.dataset import Dataset, open_dataset, read_histories, split_histories
from ipsrec_onnx.errors import IpsrecError
from ipsrec_onnx.evaluation import evaluate
from ipsrec_onnx.filters import allowed_items
from ipsrec_onnx.model_file import open_model_file
from ipsrec_onnx.scoring import score

TOP_K = 5


@dataclass
class Target:
    """Something that reads bytes.

    Attributes:
        seeds: good inputs, which mutations start from.
        run: reads one input; raises AssertionError for a result that cannot be right.
        mutate: the mutations that know the format, beside those of bytes.
    """

    seeds: list[bytes]
    run: Callable[[bytes], None]
    mutate: list[Mutate] = field(default_factory=list)

    def make(self, rng: random.Random) -> bytes:
        """One spoilt input."""
        return self.spoil(rng.choice(self.seeds), rng)

    def spoil(self, data: bytes, rng: random.Random) -> bytes:
        """Change an input, mostly in a way that knows the format."""
        if self.mutate and rng.random() < 0.7:
            return rng.choice(self.mutate)(data, rng)
        return mutate_bytes(data, rng, others=self.seeds)


def _users_files(model: TinyModel) -> list[bytes]:
    """Small users files: plain, with pages of their own kinds, with other list types, with malformed rows."""
    rng = np.random.default_rng(3)
    table = random_users(model, rng, 12, longest=8)
    bad = pa.table(
        {
            "user_id": pa.array([1, None, 3, 4], pa.int32()),
            "item_history": pa.array([[1001], [5], None, [7, None]], pa.large_list(pa.int64())),
        }
    )
    words = pa.table(
        {
            "user_id": ["a", "b"],
            "item_history": pa.array([["x", "y"], []], pa.list_(pa.string())),
        }
    )
    dictionary = pa.table(
        {
            "user_id": pa.array(["a", "b", "a"]).dictionary_encode(),
            "item_history": pa.array([[1001, 1002], [], [7]], pa.list_(pa.uint32())),
        }
    )
    return [
        _parquet(table, compression="none", use_dictionary=False),
        _parquet(table, compression="snappy", row_group_size=5),
        _parquet(table, compression="zstd", data_page_version="2.0", write_page_index=True),
        _parquet(table.select(["user_id", "item_history"]), compression="none", column_encoding="DELTA_BINARY_PACKED"),
        _parquet(bad, compression="none"),
        _parquet(words, compression="none"),
        _parquet(dictionary, compression="none", store_schema=False),
    ]


def _parquet(table: pa.Table, **options: Any) -> bytes:
    sink = pa.BufferOutputStream()
    if "column_encoding" in options:
        options["use_dictionary"] = False
    pq.write_table(table, sink, **options)
    return bytes(sink.getvalue())


def parquet_target(folder: Path) -> Target:
    """Users files through score."""
    model = write_model_file(folder / "model.onnx")
    return Target(_users_files(model), lambda data: _score_users(folder, model.path, data), [mutate_parquet])


def _score_users(folder: Path, model: Path, data: bytes) -> None:
    (folder / "users.parquet").write_bytes(data)
    choice = zlib.crc32(data)  # the options belong to the input, so that its file repeats the run
    _score(
        folder,
        model,
        layout="list" if choice % 4 else "long",
        bad_rows="divert" if choice // 4 % 2 else "error",
        candidates_column="choice" if choice // 8 % 4 == 0 else None,
        max_per_provider=1 if choice // 32 % 4 == 0 else None,
    )


def _score(folder: Path, model: Path, *, resume: bool = False, layout: str = "list", **options: Any) -> None:
    """Score users.parquet; check the account, the lists, and that nothing else is left behind."""
    before = {path.name for path in folder.iterdir()}
    output = folder / "o.parquet"
    try:
        report = score(
            model, folder / "users.parquet", output, top_k=TOP_K, threads=1, resume=resume, layout=layout, **options
        )
    except IpsrecError:
        assert resume or {path.name for path in folder.iterdir()} == before, "a refusal leaves files behind"
        raise
    try:
        counts = report.counts
        assert counts.rows_in == counts.rows_out + counts.rows_diverted, "rows are lost"
        assert counts.rows_diverted == sum(counts.diverted_by_reason.values()), "reasons do not add up"
        rows = pq.read_table(output)
        if report.bad_rows is not None:
            assert pq.read_metadata(report.bad_rows).num_rows == counts.rows_diverted
        if layout == "list":
            assert rows.num_rows == counts.rows_out, "the output has not the rows of the account"
            _check_lists(rows, set(open_model_file(model).catalog.item_ids.to_pylist()))
        manifest = json.loads(Path(report.manifest).read_text(encoding="utf-8"))
        assert manifest["counts"]["rows_in"] == counts.rows_in
    finally:
        for path in folder.iterdir():
            if path.name not in before:
                shutil.rmtree(path) if path.is_dir() else path.unlink()


def _check_lists(rows: pa.Table, item_ids: set[Any]) -> None:
    for status, items, scores in zip(
        *(rows[name].to_pylist() for name in ("status", "item_ids", "scores")), strict=True
    ):
        assert status in ("scored", "cold")
        assert len(items) == len(scores) <= TOP_K
        assert len(set(items)) == len(items) and item_ids.issuperset(items), "not items of the catalog, each once"
        assert not np.isnan(scores).any(), "a score is no number"  # inf is one beyond float32
        assert scores == sorted(scores, reverse=True), "scores are not sorted"


def model_target(folder: Path) -> Target:
    """Model files through score, on good users."""
    seeds = []
    for number, options in enumerate(({}, {"string_ids": True}, {"with_history_terms": False, "num_items": 12})):
        plain = mock.patch.object(metadata, "table_to_text", _plain_text)
        with plain if number == 1 else contextlib.nullcontext():
            model = write_model_file(folder / "model.onnx", dim=4, **options)  # type: ignore[arg-type]
        seeds.append(model.path.read_bytes())
    users = random_users(write_model_file(folder / "model.onnx"), np.random.default_rng(3), 6, longest=8)
    pq.write_table(users, folder / "users.parquet")
    return Target(seeds, lambda data: _score_model(folder, data), [mutate_model])


def _plain_text(table: pa.Table) -> str:
    """table_to_text without compression, so that mutations reach the arrays."""
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    return base64.b64encode(sink.getvalue()).decode("ascii")


def _score_model(folder: Path, data: bytes) -> None:
    (folder / "model.onnx").write_bytes(data)
    _score(folder, folder / "model.onnx")


def items_target(folder: Path) -> Target:
    """Allow lists and deny lists, Parquet and text, of numbers and of strings."""
    models = [write_model_file(folder / "model.onnx", string_ids=strings) for strings in (False, True)]
    seeds = []
    for model in models:
        ids = model.catalog.item_ids[:9]
        seeds.append("\n".join(map(str, ids.to_pylist())).encode())
        seeds.append(_parquet(pa.table({"item_id": ids}), compression="none"))
    seeds.append(_parquet(pa.table({"item_id": models[0].catalog.item_ids.dictionary_encode(), "n": range(40)})))

    def run(data: bytes) -> None:
        (folder / "items").write_bytes(data)
        choice = zlib.crc32(data)
        catalog = models[choice % 2].catalog
        files = {"allow_items": None, "deny_items": None}
        files["allow_items" if choice // 2 % 2 else "deny_items"] = folder / "items"  # type: ignore[assignment]
        found = allowed_items(catalog, **files)
        assert found.allowed is not None and found.allowed.shape == (catalog.num_items + 1,)
        assert 0 < found.num_allowed == int(found.allowed.sum()) and not found.allowed[0]

    return Target(seeds, run, [mutate_parquet])


def dataset_target(folder: Path) -> Target:
    """One file of a dataset folder, read, split, and evaluated with a model."""
    model = write_model_file(folder / "model.onnx")
    good = folder / "dataset"
    write_dataset(good, model.catalog, random_users(model, np.random.default_rng(5), 15, longest=8))
    names = sorted(path.name for path in good.iterdir())
    contents = {name: (good / name).read_bytes() for name in names}

    def run(data: bytes) -> None:
        name = names[data[0] % len(names)] if data else names[0]
        for other, content in contents.items():
            (good / other).write_bytes(data[1:] if other == name else content)
        dataset: Dataset = open_dataset(good)
        histories = read_histories(dataset)
        for split in ("train", "valid", "test"):
            assert split_histories(histories, split).num_rows <= histories.num_rows  # type: ignore[arg-type]
        report = evaluate(model.path, good, threads=1)
        assert 0 <= report.users <= histories.num_rows
        assert all(0.0 <= value <= 1.0 for value in report.metrics.values())

    return Target(_marked(contents, names), run, [_after_mark(mutate_parquet)])


def write_dataset(folder: Path, catalog: Catalog, users: pa.Table) -> None:
    """A dataset as `prepare` lays it out, without its torch."""
    folder.mkdir(exist_ok=True)
    items, providers = catalog_to_table(catalog)
    options: dict[str, Any] = {"compression": "none"}
    pq.write_table(items, folder / "catalog.parquet", **options)
    pq.write_table(providers, folder / "providers.parquet", **options)
    pq.write_table(
        users.select(["user_id", "item_history", "provider_history"]), folder / "histories.parquet", **options
    )
    info = {"format_version": 1, "fingerprint": "0" * 64, "users": users.num_rows}
    (folder / "dataset.json").write_text(json.dumps(info), encoding="utf-8")


def job_target(folder: Path) -> Target:
    """What an unfinished job left behind, in the way of --resume: a broken description never changes the bytes."""
    from ipsrec_onnx.job_folder import LocalJobFolder

    model = write_model_file(folder / "model.onnx", num_items=12, dim=4)
    pq.write_table(random_users(model, np.random.default_rng(3), 6, longest=8), folder / "users.parquet")
    arguments = (model.path, folder / "users.parquet", folder / "o.parquet")
    stop = mock.patch.object(LocalJobFolder, "finish", side_effect=InterruptedError)
    with stop, contextlib.suppress(InterruptedError):
        score(*arguments, top_k=TOP_K, threads=1)
    job = next(folder.glob(".o.parquet.*.job"))
    kept = {path.relative_to(folder).as_posix(): path.read_bytes() for path in job.rglob("*") if path.is_file()}
    shutil.rmtree(job)
    score(*arguments, top_k=TOP_K, threads=1)
    expected = (folder / "o.parquet").read_bytes()
    (folder / "o.parquet").unlink()
    (folder / "o.parquet.manifest.json").unlink()
    names = sorted(name for name in kept if not name.endswith("lock"))
    description, manifest = (f"{job.name}/{name}.json" for name in ("job", "manifest"))

    def run(data: bytes) -> None:
        spoilt = names[data[0] % len(names)] if data else description
        shutil.rmtree(job, ignore_errors=True)
        for name, content in kept.items():
            if name == manifest and spoilt != manifest:
                continue  # with its manifest a job is done, and nothing else of it is read again
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes(data[1:] if name == spoilt else content)
        before = {path.name for path in folder.iterdir()}
        try:
            score(*arguments, top_k=TOP_K, threads=1, resume=True)
            if spoilt == description:
                assert (folder / "o.parquet").read_bytes() == expected, "a resumed job wrote other bytes"
        finally:
            for path in folder.iterdir():
                if path.name not in before:
                    path.unlink()

    return Target(_marked(kept, names), run, [_after_mark(mutate_parquet)])


def write_run(folder: Path, catalog: Catalog) -> None:
    """A finished training run, without the training."""
    import torch

    from ipsrec_train.model import Model
    from ipsrec_train.run import Learning, Progress, run_info, save_model, save_progress, start_run
    from ipsrec_train.settings import settings_for
    from ipsrec_train.training_settings import TrainingSettings

    settings = settings_for("ipsrec-c", None, {"max_len": 6, "dim": 4, "num_layers": 1, "inner_dim": 4})
    model = Model("ipsrec-c", settings, item_provider=catalog.item_provider, num_providers=catalog.num_providers)
    dataset = Dataset(folder.parent / "dataset", {"fingerprint": "0" * 64}, catalog)
    training = TrainingSettings(epochs=1)
    start_run(folder, run_info("ipsrec-c", settings, training, dataset, device="cpu"), catalog)
    save_model(folder, model)
    progress = Progress(1, [{"epoch": 1, training.stop_metric: 0.5}])
    save_progress(folder, Learning(model, torch.optim.Adam(model.parameters()), None), progress)


def checkpoint_target(folder: Path) -> Target:
    """One file of a training run, loaded as `export` does."""
    from ipsrec_train.run import load_model, open_run

    run_folder = folder / "run"
    write_run(run_folder, write_model_file(folder / "model.onnx", num_items=12).catalog)
    contents = {path.name: path.read_bytes() for path in run_folder.iterdir() if path.name != "resume.safetensors"}
    names = sorted(contents)

    def run(data: bytes) -> None:
        name = names[data[0] % len(names)] if data else names[0]
        for other, content in contents.items():
            (run_folder / other).write_bytes(data[1:] if other == name else content)
        opened = open_run(run_folder)
        loaded, catalog = load_model(opened)
        assert opened.best["epoch"] is not None
        assert loaded.items.weight.shape[0] == catalog.num_items + 1

    return Target(_marked(contents, names), run, [_after_mark(mutate_parquet)])


def config_target(folder: Path) -> Target:
    """TOML of `train --config`."""
    from ipsrec_train.config import read_config

    seeds = [path.read_bytes() for path in sorted((Path(__file__).parents[1] / "configs").rglob("*.toml"))]

    def run(data: bytes) -> None:
        (folder / "config.toml").write_bytes(data)
        read_config(folder / "config.toml", model=None, variant=None, changes={})

    return Target(seeds, run)


def _marked(contents: dict[str, bytes], names: Sequence[str]) -> list[bytes]:
    return [bytes([number]) + contents[name] for number, name in enumerate(names)]


def _after_mark(mutate: Mutate) -> Mutate:
    return lambda data, rng: data[:1] + mutate(data[1:], rng)


TARGETS: dict[str, Callable[[Path], Target]] = {
    "parquet": parquet_target,
    "model": model_target,
    "items": items_target,
    "dataset": dataset_target,
    "job": job_target,
    "checkpoint": checkpoint_target,
    "config": config_target,
}
