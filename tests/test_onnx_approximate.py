"""Approximate search: exact scores, all rules, and the recall that was asked for."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from model_files import TinyModel, write_model_file

from ipsrec_kernels.item_table import build_item_table
from ipsrec_onnx.approximate import build_approximate_index, propose
from ipsrec_onnx.errors import DataError
from ipsrec_onnx.histories import Histories
from ipsrec_onnx.score_report import ScoreReport
from ipsrec_onnx.scoring import score

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


@pytest.mark.parametrize("rule", ["seen", "provider"])
def test_a_list_is_short_only_where_nothing_more_is_allowed(model, users, tmp_path, rule):
    ids = np.random.default_rng(2).permutation(model.catalog.item_ids.to_numpy())
    histories = users["item_history"].to_pylist()
    histories[300] = ids[: -30 if rule == "seen" else 5].tolist()  # all but 30 items are seen, and not in the sample
    some = users.set_column(1, "item_history", pa.array(histories))
    options = {"keep_seen": rule == "provider", "max_per_provider": 1 if rule == "provider" else None}
    exact_report, exact = run(model, some, tmp_path, **options)
    report, found = run(model, some, tmp_path, approximate=0.01, **options)
    assert [len(items) for items in found["item_ids"]] == [len(items) for items in exact["item_ids"]]
    assert report.counts == exact_report.counts and report.approximate.measured < 1.0
    if rule == "seen":
        assert found["item_ids"][300] == exact["item_ids"][300]


def test_recall_is_measured_on_known_users_however_small_the_first_files_are(model, users, tmp_path):
    (tmp_path / "users").mkdir()
    nobody = users.slice(0, 3).set_column(1, "item_history", pa.array([[]] * 3, pa.list_(pa.int64())))
    for name, part in (("a", nobody), ("b", users.slice(0, 7)), ("c", users.slice(7))):
        pq.write_table(part, tmp_path / "users" / f"{name}.parquet")
    recall = run(model, users, tmp_path, approximate=0.9)[0].approximate
    assert recall.users == 256
    assert score(model.path, tmp_path / "users", tmp_path / "p", top_k=20, approximate=0.9).approximate == recall
    again = score(model.path, tmp_path / "users", tmp_path / "p", top_k=20, approximate=0.9, resume=True)
    assert again.resumed_rows == again.counts.rows_in and again.approximate == recall


def test_sliced_histories_propose_the_items_of_their_own_providers(model):
    catalog = model.catalog
    table = build_item_table(
        np.random.default_rng(3).normal(size=(catalog.num_items + 1, 4)).astype(np.float32),
        catalog.item_provider,
        allowed=None,
    )
    index = replace(build_approximate_index(table), probes=1)
    providers = np.array([1, 2, 3, 0, 5], np.int32)
    weighed = Histories(np.arange(11, 16, dtype=np.int32), providers, np.array([1, 3, 5], np.int64))
    near = propose(index, table, np.ones((2, 4), np.float32), weighed=weighed)
    for user, (items, own) in enumerate([({12, 13}, [2, 3]), ({14, 15}, [5])]):
        proposed = set(near.values[near.offsets[user] : near.offsets[user + 1]].tolist())
        wanted = items | set(np.flatnonzero(np.isin(catalog.item_provider, own)).tolist())
        assert wanted <= proposed and len(proposed - wanted) <= 1


def test_cold_users_get_the_popular_items(model, users, tmp_path):
    _, exact = run(model, users, tmp_path)
    _, found = run(model, users, tmp_path, approximate=0.5)
    cold = [u for u, status in enumerate(exact["status"]) if status == "cold"]
    assert cold
    assert all(found["item_ids"][u] == exact["item_ids"][u] for u in cold)


def test_threads_and_chunks_change_no_byte(model, users, tmp_path, monkeypatch):
    run(model, users, tmp_path, approximate=0.9, threads=1)
    before = (tmp_path / "o.parquet").read_bytes()
    monkeypatch.setattr("ipsrec_onnx.score_run._LEAST_CHUNK_ROWS", 16)
    run(model, users, tmp_path, approximate=0.9, threads=3)
    assert (tmp_path / "o.parquet").read_bytes() == before


def test_candidates_of_a_user_are_no_search(model, users, tmp_path):
    with pytest.raises(DataError, match="--candidates-column only are always scored exactly; leave one of the two out"):
        run(model, users, tmp_path, candidates_column="only", approximate=0.5)
    assert not (tmp_path / "o.parquet").exists()


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
