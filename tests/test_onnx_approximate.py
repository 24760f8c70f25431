"""Approximate search: exact scores, all rules, and the recall that was asked for."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from model_files import TinyModel, write_model_file

from ipsrec_onnx.errors import DataError
from ipsrec_onnx.scoring import ScoreReport, score

pytest.importorskip("faiss", reason="--approximate needs the extra `approximate`")

NUM_USERS = 400


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> TinyModel:
    return write_model_file(
        tmp_path_factory.mktemp("model") / "m.onnx", num_items=4000, num_providers=300, max_len=6, dim=16
    )


@pytest.fixture(scope="module")
def users(model: TinyModel) -> pa.Table:
    rng = np.random.default_rng(1)
    ids = model.catalog.item_ids.to_numpy()
    histories = [rng.choice(ids, rng.integers(0, 12)).tolist() for _ in range(NUM_USERS)]
    return pa.table({"user_id": np.arange(NUM_USERS), "item_history": histories})


def run(model: TinyModel, users: pa.Table, folder: Path, **options: object) -> tuple[ScoreReport, dict[str, list]]:
    pq.write_table(users, folder / "users.parquet", row_group_size=150)
    report = score(
        model.path, folder / "users.parquet", folder / "o.parquet", overwrite=True, **{"top_k": 20, **options}
    )
    return report, pq.read_table(folder / "o.parquet").to_pydict()


def test_recall_is_what_was_asked_for_and_scores_are_exact(model, users, tmp_path):
    _, exact = run(model, users, tmp_path)
    report, found = run(model, users, tmp_path, approximate=0.9)
    recall = report.approximate
    assert recall is not None and recall.lists > 1 and recall.probes < recall.lists  # it did not look everywhere
    assert 0.9 <= recall.measured < 1.0
    shares = []
    for u in range(NUM_USERS):
        everything = dict(zip(exact["item_ids"][u], exact["scores"][u], strict=True))
        here = dict(zip(found["item_ids"][u], found["scores"][u], strict=True))
        assert all(everything[item] == here[item] for item in everything.keys() & here.keys())
        shares.append(len(everything.keys() & here.keys()) / len(everything))
    assert np.mean(shares) > 0.85  # of users that were not in the sample, too


def test_the_lowest_recall_still_keeps_every_rule(model, users, tmp_path):
    denied = model.catalog.item_ids.to_pylist()[::2]
    (tmp_path / "deny.txt").write_text("\n".join(map(str, denied)))
    options = {"approximate": 0.01, "deny_items": tmp_path / "deny.txt", "max_per_provider": 1}
    _, found = run(model, users, tmp_path, **options)
    provider = dict(zip(model.catalog.item_ids.to_pylist(), model.catalog.item_provider[1:].tolist(), strict=True))
    for items, history in zip(found["item_ids"], users["item_history"].to_pylist(), strict=True):
        assert not set(items) & set(denied) and not set(items) & set(history)
        taken = [provider[item] for item in items if provider[item]]
        assert len(taken) == len(set(taken))


def test_a_history_with_weights_finds_its_providers_items_however_few_lists_are_searched(model, users, tmp_path):
    _, exact = run(model, users, tmp_path, top_k=1, keep_seen=True)
    _, found = run(model, users, tmp_path, top_k=1, keep_seen=True, approximate=0.01)
    provider = dict(zip(model.catalog.item_ids.to_pylist(), model.catalog.item_provider[1:].tolist(), strict=True))
    own = [
        u
        for u, (best, history) in enumerate(zip(exact["item_ids"], users["item_history"].to_pylist(), strict=True))
        if history and (best[0] in history[-6:] or provider[best[0]] in {provider[item] for item in history[-6:]} - {0})
    ]
    assert len(own) > 20
    assert all(found["item_ids"][u] == exact["item_ids"][u] for u in own)


def test_cold_users_get_the_popular_items(model, users, tmp_path):
    _, exact = run(model, users, tmp_path)
    _, found = run(model, users, tmp_path, approximate=0.5)
    cold = [u for u, status in enumerate(exact["status"]) if status == "cold"]
    assert cold
    assert all(found["item_ids"][u] == exact["item_ids"][u] for u in cold)


def test_threads_and_chunks_change_no_byte(model, users, tmp_path, monkeypatch):
    run(model, users, tmp_path, approximate=0.9, threads=1)
    before = (tmp_path / "o.parquet").read_bytes()
    monkeypatch.setattr("ipsrec_onnx.scoring._LEAST_CHUNK_ROWS", 16)
    run(model, users, tmp_path, approximate=0.9, threads=3)
    assert (tmp_path / "o.parquet").read_bytes() == before


def test_candidates_of_a_user_are_all_scored(model, users, tmp_path):
    ids = model.catalog.item_ids.to_pylist()
    given = users.append_column("only", pa.array([ids[u : u + 30] for u in range(NUM_USERS)]))
    _, exact = run(model, given, tmp_path, candidates_column="only")
    _, found = run(model, given, tmp_path, candidates_column="only", approximate=0.5)
    assert found == exact


def test_without_a_user_to_measure_on_it_is_refused(model, users, tmp_path):
    nobody = users.set_column(1, "item_history", pa.array([[]] * NUM_USERS, pa.list_(pa.int64())))
    with pytest.raises(DataError, match="recall cannot be measured"):
        run(model, nobody, tmp_path, approximate=0.9)
    assert not (tmp_path / "o.parquet").exists()


@pytest.mark.parametrize("recall", [0.0, -1.0, 1.5, float("nan")])
def test_a_recall_that_cannot_be_is_refused(model, users, tmp_path, recall):
    with pytest.raises(ValueError, match="above 0, at most 1"):
        run(model, users, tmp_path, approximate=recall)


def test_one_item_left_is_found(model, users, tmp_path):
    only = model.catalog.item_ids.to_pylist()[7]
    (tmp_path / "allow.txt").write_text(str(only))
    report, found = run(model, users, tmp_path, approximate=0.9, allow_items=tmp_path / "allow.txt", keep_seen=True)
    assert report.allowed_items == 1
    assert found["item_ids"] == [[only]] * NUM_USERS
