"""Every model of the paper's table, through every command: trained, exported, gated, scored and evaluated."""

from __future__ import annotations

import json

import numpy as np
import onnxruntime
import pyarrow.parquet as pq
import pytest
from naive_training import NaiveModel
from training_data import ITEMS, MAX_LEN, make_dataset

from ipsrec_cli.main import main
from ipsrec_export.gate import BATCH_SIZES
from ipsrec_onnx.dataset import open_dataset, read_histories, split_histories
from ipsrec_onnx.model_file import open_model_file
from ipsrec_train.run import load_model, open_run
from ipsrec_train.settings import MODEL_SETTINGS

TOP_K = 10
TWINS = 6  # users that are computed again in plain loops
SHORT = ["--max-len", MAX_LEN, "--dim", 16, "--epochs", 1, "--batch-size", 64, "--learning-rate", 0.01]
THIN = ["--num-layers", 1, "--inner-dim", 32]
OURS = ["--provider-in-item", "--history-terms"]

# Name of the row, model, and the options that make it.
ROWS = [
    ("gru4rec", "gru4rec", []),
    ("caser", "caser", ["--window", 4]),
    ("sasrec", "sasrec", THIN),
    ("sr-gnn", "sr-gnn", []),
    ("gru4rec with ours", "gru4rec", [*OURS, "all"]),
    ("caser with ours", "caser", [*OURS, "seen"]),
    ("sasrec with ours", "sasrec", [*THIN, *OURS, "all"]),
    ("sr-gnn with ours", "sr-gnn", [*OURS, "seen"]),
    *(
        (f"{model} {variant} {weight}", model, [*THIN, "--variant", variant, "--contrastive-weight", weight])
        for model in ("ipsrec-s", "ipsrec-c")
        for variant, weight in (("paper", 0.1), ("released", 0.1), ("paper", 0), ("released", 0), ("recommended", 0))
    ),
]


def ipsrec(*arguments: object) -> None:
    """Run the command line, which must succeed."""
    with pytest.raises(SystemExit) as stop:
        main([str(argument) for argument in arguments])
        raise SystemExit(0)
    assert not stop.value.code


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    """The dataset, and beside it a users file of the histories before the test items."""
    folder = make_dataset(tmp_path_factory.mktemp("data"), np.random.default_rng(2))
    pq.write_table(split_histories(read_histories(open_dataset(folder)), "test"), folder.parent / "users.parquet")
    return folder


@pytest.fixture(scope="module", params=ROWS, ids=[row[0] for row in ROWS])
def row(request, dataset, tmp_path_factory):
    """A run and its model file, folder/run and folder/model.onnx, and the row that asked for them."""
    _, model, options = request.param
    folder = tmp_path_factory.mktemp("row")
    command = ["train", "--dataset", dataset, "--output", folder / "run", "--model", model, "--quiet", "--threads", 1]
    ipsrec(*command, *SHORT, *options)
    ipsrec("export", "--checkpoint", folder / "run", "--output", folder / "model.onnx")
    return folder, model, [str(option) for option in options]


def test_the_table_has_every_model():
    assert {model for _, model, _ in ROWS} == set(MODEL_SETTINGS)


def test_it_trains_with_what_was_asked_for(row):
    folder, name, options = row
    run = open_run(folder / "run")
    settings = run.info["settings"]
    assert run.info["model"] == name
    assert np.isfinite(run.best["loss"])
    assert settings["max_len"] == MAX_LEN
    ours = "recommended" in options or "--provider-in-item" in options
    assert settings["provider_in_item"] == ours
    assert (settings["history_terms"] != "none") == ours
    if "--contrastive-weight" in options:
        assert settings["contrastive_weight"] == float(options[options.index("--contrastive-weight") + 1])


def test_its_file_takes_any_batch_and_any_sequence(row, rng):
    folder, *_ = row
    session = onnxruntime.InferenceSession(folder / "model.onnx", providers=["CPUExecutionProvider"])
    assert {node.name: node.shape for node in session.get_inputs()} == {
        "item_history": ["batch", "sequence"],
        "provider_history": ["batch", "sequence"],
        "lengths": ["batch"],
    }
    model, _ = load_model(open_run(folder / "run"))
    twin = NaiveModel(model)
    for batch, sequence in ((1, 1), (1, MAX_LEN), (3, 2), (5, 7)):
        items = rng.integers(1, ITEMS + 1, (batch, sequence)).astype(np.int32)
        providers = twin.item_provider[items].astype(np.int32)
        lengths = rng.integers(1, sequence + 1, batch).astype(np.int32)
        feed = {"item_history": items, "provider_history": providers, "lengths": lengths}
        (users,) = session.run(["user_embedding"], feed)
        assert users.shape == (batch, 16)
        seen = items[0, : lengths[0]].tolist()
        np.testing.assert_allclose(users[0], twin.user(seen, twin.item_provider[seen].tolist()), rtol=1e-4, atol=1e-5)


def test_it_passed_the_gate_at_every_shape(row):
    folder, *_ = row
    gate = open_model_file(folder / "model.onnx").gate
    assert gate["passed"]
    assert {cell["batch_size"] for cell in gate["cells"]} == set(BATCH_SIZES)
    assert {cell["lengths"] for cell in gate["cells"]} >= {"1", str(MAX_LEN), "mixed", "empty"}
    assert gate["embedding_error"] < 1e-4


def scored(row, dataset, *options):
    folder, *_ = row
    output = folder / "candidates.parquet"
    command = ["score", "--model", folder / "model.onnx", "--input", dataset.parent / "users.parquet"]
    ipsrec(*command, "--output", output, "--overwrite", *options)
    return pq.read_table(output).to_pylist()


def test_its_lists_are_the_best_of_the_score_in_plain_loops(row, dataset):
    folder, *_ = row
    model, catalog = load_model(open_run(folder / "run"))
    twin, ids = NaiveModel(model), catalog.item_ids.to_pylist()
    users = pq.read_table(dataset.parent / "users.parquet").to_pylist()[:TWINS]
    for user, found in zip(users, scored(row, dataset, "--top-k", TOP_K), strict=False):
        history = [ids.index(item) + 1 for item in user["item_history"]]
        scores = dict(zip(ids, twin.scores(history[-MAX_LEN:]), strict=True))
        for item in user["item_history"]:
            scores.pop(item, None)
        assert len(found["item_ids"]) == TOP_K
        np.testing.assert_allclose(found["scores"], [scores[item] for item in found["item_ids"]], rtol=1e-4, atol=1e-4)
        np.testing.assert_allclose(found["scores"], sorted(scores.values())[: -TOP_K - 1 : -1], rtol=1e-4, atol=1e-4)


def test_its_metrics_are_those_of_its_lists(row, dataset, capfd):
    folder, *_ = row
    lists = scored(row, dataset, "--top-k", ITEMS, "--keep-seen")
    capfd.readouterr()
    ipsrec("evaluate", "--model", folder / "model.onnx", "--dataset", dataset, "--json", "--quiet")
    metrics = json.loads(capfd.readouterr().out)["metrics"]
    targets = pq.read_table(dataset.parent / "users.parquet")["target_item"].to_pylist()
    ranks = [found["item_ids"].index(target) + 1 for found, target in zip(lists, targets, strict=True)]
    gains = [1 / np.log2(rank + 1) if rank <= 10 else 0.0 for rank in ranks]
    assert metrics["ndcg@10"] == pytest.approx(np.mean(gains))
    assert metrics["hr@5"] == pytest.approx(np.mean([rank <= 5 for rank in ranks]))
