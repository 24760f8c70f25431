"""Laws that hold for every user, tested on real histories through a real trained and exported model."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ipsrec_export.export import export
from ipsrec_onnx.dataset import open_dataset, read_histories
from ipsrec_onnx.encoding import encode
from ipsrec_onnx.fused_encoder import MODELS
from ipsrec_onnx.histories import Histories
from ipsrec_onnx.model_file import open_model_file
from ipsrec_onnx.scoring import score
from ipsrec_train.prepare import prepare
from ipsrec_train.settings import settings_for
from ipsrec_train.train import train
from ipsrec_train.training_settings import TrainingSettings

EXAMPLE = Path(__file__).resolve().parents[1] / "examples" / "plain_onnxruntime.py"
NUM_USERS = 600

THIN = {"inner_dim": 32}
OURS = {"provider_in_item": True, "history_terms": "all"}
SMALL: dict[str, dict[str, object]] = {
    "ipsrec-c": THIN,
    "ipsrec-s": THIN,
    "sasrec": {**THIN, **OURS},
    "gru4rec": {"hidden_dim": 32},
    "caser": {"history_terms": "seen"},
    "sr-gnn": OURS,
}

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module", params=list(SMALL))
def model(request: pytest.FixtureRequest, shared_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small model that learned from Amazon Toys and Games for an epoch."""
    folder = tmp_path_factory.mktemp(request.param)
    source = shared_data / "amazon-toys-brand" / "interactions.parquet"
    prepare(source, folder / "dataset", min_item_interactions=20)  # the fewer items, the faster the epoch
    train(
        folder / "dataset",
        folder / "run",
        model=request.param,
        settings=settings_for(request.param, None, {"dim": 16, "dropout": 0.1, **SMALL[request.param]}),
        training=TrainingSettings(epochs=1, learning_rate=5e-3),
        quiet=True,
    )
    export(folder / "run", folder / "model.onnx")
    return folder / "model.onnx"


@pytest.fixture(scope="module")
def users(model: Path) -> pa.Table:
    """Users of the data: the longest histories and, in between, many short ones."""
    histories = read_histories(open_dataset(model.parent / "dataset")).combine_chunks()
    lengths = np.diff(histories["item_history"].combine_chunks().offsets.to_numpy())
    longest = np.argsort(-lengths, kind="stable")[:40]
    others = np.random.default_rng(0).permutation(len(lengths))[: NUM_USERS - 40]
    return histories.take(pa.array(np.unique(np.concatenate([longest, others]))))


def lists_of(model: Path, users: pa.Table, folder: Path, **options: object) -> dict[int, tuple[list[int], list[float]]]:
    """Score a table and give each user's items and scores."""
    source, output = folder / "users.parquet", folder / "candidates.parquet"
    pq.write_table(users, source, row_group_size=int(options.pop("row_group_size", 1000)))
    score(model, source, output, top_k=20, overwrite=True, **options)  # type: ignore[arg-type]
    rows = pq.read_table(output).to_pydict()
    return {
        user: (items, scores)
        for user, items, scores in zip(rows["user_id"], rows["item_ids"], rows["scores"], strict=True)
    }


@pytest.fixture(scope="module")
def together(model: Path, users: pa.Table, tmp_path_factory: pytest.TempPathFactory):
    """All users in one batch: what every other way must give."""
    return lists_of(model, users, tmp_path_factory.mktemp("together"), threads=1)


def test_lists_are_full_and_hold_nothing_seen(together, users):
    histories = dict(zip(users["user_id"].to_pylist(), users["item_history"].to_pylist(), strict=True))
    assert len(together) == len(users)
    for user, (items, scores) in together.items():
        assert len(items) == len(set(items)) == 20
        assert not set(items) & set(histories[user])
        assert scores == sorted(scores, reverse=True)


def test_a_user_alone_gets_the_same_list_and_scores(model, users, together, tmp_path):
    for row in range(0, len(users), 50):
        alone = lists_of(model, users.slice(row, 1), tmp_path, threads=1)
        assert alone == {user: together[user] for user in alone}


@pytest.mark.parametrize(("threads", "row_group_size"), [(1, 7), (2, 100), (4, 50)])
def test_neighbours_row_groups_and_threads_change_nothing(
    model, users, together, tmp_path, monkeypatch, threads, row_group_size
):
    monkeypatch.setattr("ipsrec_onnx.score_run.CHUNK_ROWS", 64)
    shuffled = users.take(pa.array(np.random.default_rng(row_group_size).permutation(len(users))))
    assert lists_of(model, shuffled, tmp_path, threads=threads, row_group_size=row_group_size) == together


def test_neighbours_of_any_length_change_nothing(model, users, together, tmp_path):
    lengths = np.array([len(history) for history in users["item_history"].to_pylist()])
    order = np.argsort(lengths, kind="stable")
    middle = order[len(order) // 2 :][:5]
    for neighbours in (order[:40], order[-40:]):
        rows = np.unique(np.concatenate([middle, neighbours]))
        some = lists_of(model, users.take(pa.array(rows)), tmp_path)
        assert some == {user: together[user] for user in some}


def test_the_output_bytes_depend_on_nothing_but_the_job(model, users, tmp_path, monkeypatch):
    monkeypatch.setattr("ipsrec_onnx.score_run.CHUNK_ROWS", 128)
    written = []
    for threads in (1, 2, 4):
        folder = tmp_path / str(threads)
        folder.mkdir()
        lists_of(model, users, folder, threads=threads)
        written.append((folder / "candidates.parquet").read_bytes())
    assert written[0] == written[1] == written[2]


def test_the_fused_encoder_obeys_the_same_laws(model, users, together, tmp_path, monkeypatch):
    if open_model_file(model).model not in MODELS:
        pytest.skip("the fused encoder has the attention models alone")
    fused = lists_of(model, users, tmp_path, threads=1, encoder="fused")
    for row in range(0, len(users), 150):
        alone = lists_of(model, users.slice(row, 1), tmp_path, threads=1, encoder="fused")
        assert alone == {user: fused[user] for user in alone}
    monkeypatch.setattr("ipsrec_onnx.score_run.CHUNK_ROWS", 64)
    shuffled = users.take(pa.array(np.random.default_rng(0).permutation(len(users))))
    assert lists_of(model, shuffled, tmp_path, threads=3, encoder="fused") == fused
    for user, (_, scores) in fused.items():
        np.testing.assert_allclose(scores, together[user][1], atol=1e-4)


def test_plain_onnxruntime_gives_the_same_user_embedding(model, users, tmp_path):
    alone = tmp_path / "model.onnx"  # the file alone, in an empty folder
    alone.write_bytes(model.read_bytes())
    history = users["item_history"][0].as_py()[-8:]
    command = [sys.executable, str(EXAMPLE), str(alone), *map(str, history)]
    printed = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True).stdout
    found = np.fromstring(printed.split("[")[1].split("]")[0], sep=" ")

    model_file = open_model_file(alone)
    index = {item: row for row, item in enumerate(model_file.catalog.item_ids.to_pylist(), start=1)}
    items = np.array([index[item] for item in history], np.int32)
    histories = Histories(items, model_file.catalog.item_provider[items], np.array([0, len(items)], np.int64))
    np.testing.assert_allclose(found, encode(model_file, histories)[0], atol=2e-6)
