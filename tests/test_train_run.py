from __future__ import annotations

import json
import resource
import shutil

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from training_data import PROVIDERS, catalog_providers, make_dataset, make_model, small_settings, small_training

from ipsrec_onnx.catalog import catalog_to_table
from ipsrec_onnx.dataset import open_dataset
from ipsrec_onnx.errors import DataError
from ipsrec_train.model import Model
from ipsrec_train.run import (
    Learning,
    Progress,
    load_catalog,
    load_model,
    load_progress,
    open_run,
    save_model,
    save_progress,
)
from ipsrec_train.train import train


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """The folder of a finished run; to be copied before it is broken."""
    folder = tmp_path_factory.mktemp("run")
    dataset = make_dataset(folder, np.random.default_rng(1))
    train(dataset, folder / "run", settings=small_settings(), training=small_training(epochs=2), threads=1, quiet=True)
    return folder / "run"


@pytest.fixture
def run(finished, tmp_path):
    return shutil.copytree(finished, tmp_path / "run")


def one_line(refused: pytest.ExceptionInfo) -> str:
    assert "\n" not in str(refused.value)
    return str(refused.value)


def one_step(model, optimizer):
    loss = sum((parameter * torch.rand_like(parameter)).sum() for parameter in model.parameters())
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()


def test_a_run_folder_has_what_the_docstring_says(run):
    assert sorted(path.name for path in run.iterdir()) == [
        "catalog.parquet",
        "metrics.jsonl",
        "model.safetensors",
        "providers.parquet",
        "resume.safetensors",
        "run.json",
    ]
    opened = open_run(run)
    assert opened.path == run
    assert set(opened.info) == {"model", "settings", "training", "dataset", "machine", "versions"}
    assert opened.metrics == [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [line["epoch"] for line in opened.metrics] == [1, 2]


def test_the_best_epoch_is_the_highest_metric_and_of_equals_the_first(run):
    opened = open_run(run)
    lines = [
        {"epoch": 1, "ndcg@10": 0.2, "mrr@10": 0.9},
        {"epoch": 2, "ndcg@10": 0.4, "mrr@10": 0.1},
        {"epoch": 3, "ndcg@10": 0.4, "mrr@10": 0.2},
    ]
    opened.metrics[:] = lines
    assert opened.best["epoch"] == 2
    opened.info["training"]["stop_metric"] = "mrr@10"
    assert opened.best["epoch"] == 1


def test_a_model_is_rebuilt_from_the_run_alone(run):
    model, catalog = load_model(open_run(run))
    assert not model.training
    assert model.settings == small_settings()
    assert model.items.num_embeddings == catalog.num_items + 1
    np.testing.assert_array_equal(model.item_provider.numpy(), catalog.item_provider)
    assert all(torch.isfinite(parameter).all() for parameter in model.parameters())


def test_the_catalog_of_the_run_is_that_of_its_dataset(run):
    dataset = open_dataset(open_run(run).info["dataset"]["path"])
    for found, expected in zip(catalog_to_table(load_catalog(run)), catalog_to_table(dataset.catalog), strict=True):
        assert found.equals(expected)


def test_going_on_from_saved_progress_gives_the_same_as_never_stopping(tmp_path):
    straight, restored = (make_model("ipsrec-c", small_settings(), seed=seed) for seed in (1, 2))
    optimizers = [torch.optim.Adam(model.parameters(), lr=0.01) for model in (straight, restored)]
    one_step(straight, optimizers[0])
    one_step(straight, optimizers[0])
    progress = Progress(epoch=2, metrics=[{"epoch": 1, "ndcg@10": 0.125}, {"epoch": 2, "ndcg@10": 0.1}])
    save_progress(tmp_path, Learning(straight, optimizers[0], None), progress)
    torch.manual_seed(99)
    one_step(straight, optimizers[0])
    torch.manual_seed(99)
    assert load_progress(tmp_path, Learning(restored, optimizers[1], None)) == progress
    one_step(restored, optimizers[1])
    for name, weight in straight.state_dict().items():
        assert torch.equal(weight, restored.state_dict()[name]), name
    assert (tmp_path / "metrics.jsonl").read_text().splitlines() == [json.dumps(line) for line in progress.metrics]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["metrics.jsonl", "resume.safetensors"]


def test_saving_replaces_the_old_weights(tmp_path, run):
    model, _ = load_model(open_run(run))
    with torch.no_grad():
        model.items.weight += 1.0
    save_model(run, model)
    again, _ = load_model(open_run(run))
    assert torch.equal(again.items.weight, model.items.weight)


@pytest.mark.parametrize("name", ["run.json", "metrics.jsonl", "model.safetensors"])
def test_a_folder_that_is_no_finished_run_is_refused(run, name):
    (run / name).unlink()
    with pytest.raises(DataError, match=f"is no finished training run: it has no {name}; make one with `ipsrec train`"):
        open_run(run)


@pytest.mark.parametrize(
    ("name", "text"),
    [("run.json", "{"), ("run.json", "[1]"), ("metrics.jsonl", '{"epoch": 1\n'), ("metrics.jsonl", "")],
)
def test_a_broken_text_file_of_a_run_is_refused(run, name, text):
    (run / name).write_text(text)
    with pytest.raises(DataError, match=name) as refused:
        open_run(run)
    one_line(refused)


@pytest.mark.parametrize(("name", "value"), [("max_len", [5]), ("dropout", "low"), ("dim", None)])
def test_a_setting_of_a_run_that_is_of_another_type_is_refused(run, name, value):
    opened = open_run(run)
    opened.info["settings"][name] = value
    with pytest.raises(DataError, match=f"run.json: a value is of the wrong type: {name} is ") as refused:
        load_model(opened)
    one_line(refused)


@pytest.mark.parametrize(
    ("name", "value"),
    [("dim", 10**12), ("dim", 10**6), ("max_len", 10**9), ("num_layers", 10**9), ("inner_dim", 10**9), ("dim", 10**30)],
)
def test_settings_that_ask_for_more_than_the_weights_have_take_no_memory(run, name, value):
    opened = open_run(run)
    opened.info["settings"][name] = value
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(DataError, match=r"model\.safetensors: .*; train it again") as refused:
        load_model(opened)
    one_line(refused)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100_000  # kilobytes


@pytest.mark.parametrize("name", ["optimizer.x.exp_avg", "optimizer.0", "optimizer.0.exp_avg.more"])
def test_moments_of_other_names_are_refused(run, name):
    path = run / "resume.safetensors"
    with safe_open(path, framework="pt") as opened:
        metadata = opened.metadata()
    save_file(load_file(path) | {name: torch.zeros(1)}, path, metadata=metadata)
    model = make_model("ipsrec-c", small_settings())
    with pytest.raises(DataError, match=r"training cannot go on from here: .* --overwrite") as refused:
        load_progress(run, Learning(model, torch.optim.Adam(model.parameters()), None))
    one_line(refused)


def test_a_broken_catalog_is_refused(run):
    (run / "catalog.parquet").write_bytes(b"PAR1 no more")
    with pytest.raises(DataError, match="the run's catalog cannot be read") as refused:
        load_model(open_run(run))
    one_line(refused)


def test_a_pickle_in_place_of_weights_is_refused_unread(run, tmp_path):
    class Trap:
        def __reduce__(self):
            return (open, (str(tmp_path / "sprung"), "w"))

    torch.save({"items.weight": Trap()}, run / "model.safetensors")
    with pytest.raises(DataError, match=r"model.safetensors: the weights cannot be read .*; train it again") as refused:
        load_model(open_run(run))
    one_line(refused)
    assert not (tmp_path / "sprung").exists()


def test_weights_of_another_model_are_refused(run):
    other = Model("ipsrec-s", small_settings(), item_provider=catalog_providers(), num_providers=PROVIDERS)
    save_model(run, other)
    with pytest.raises(DataError, match="the weights cannot be read into this model") as refused:
        load_model(open_run(run))
    one_line(refused)


@pytest.mark.parametrize("broken", ["truncated", "pickle", "no metadata", "other model"])
def test_progress_that_cannot_be_read_is_refused(run, broken):
    path = run / "resume.safetensors"
    if broken == "truncated":
        path.write_bytes(path.read_bytes()[:5_000])
    elif broken == "pickle":
        torch.save({"random.cpu": torch.get_rng_state()}, path)
    elif broken == "no metadata":
        save_file({"random.cpu": torch.get_rng_state()}, path)
    model = make_model("ipsrec-s" if broken == "other model" else "ipsrec-c", small_settings())
    with pytest.raises(DataError, match=r"training cannot go on from here: .* --overwrite") as refused:
        load_progress(run, Learning(model, torch.optim.Adam(model.parameters()), None))
    one_line(refused)
