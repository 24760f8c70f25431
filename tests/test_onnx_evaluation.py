"""evaluate against an independent implementation of the metrics, and against the reference scoring."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from model_files import TinyModel, write_model_file
from naive_scoring import naive_score_user
from ranx import Qrels, Run
from ranx import evaluate as ranx_evaluate

from ipsrec_onnx.catalog import catalog_to_table
from ipsrec_onnx.errors import DataError
from ipsrec_onnx.evaluation import evaluate
from ipsrec_onnx.histories import Histories
from ipsrec_onnx.retrieval import Ranker, Ranking, rank_users


def write_dataset(folder: Path, model: TinyModel, histories: list[list[int]], providers: list[list[int]]) -> Path:
    """A dataset folder as `ipsrec prepare` makes it, of raw ids."""
    folder.mkdir()
    items, provider_table = catalog_to_table(model.catalog)
    pq.write_table(items, folder / "catalog.parquet")
    pq.write_table(provider_table, folder / "providers.parquet")
    kind = pa.list_(pa.int64())
    table = pa.table(
        {
            "user_id": np.arange(len(histories)),
            "item_history": pa.array(histories, kind),
            "provider_history": pa.array(providers, kind),
        }
    )
    pq.write_table(table, folder / "histories.parquet", row_group_size=50)
    (folder / "dataset.json").write_text(json.dumps({"format_version": 1, "fingerprint": "f" * 64}), encoding="utf-8")
    return folder


def random_histories(
    model: TinyModel, rng: np.random.Generator, num_users: int
) -> tuple[list[list[int]], list[list[int]]]:
    """Histories of 1 to 12 items, some unknown to the model, with the providers of their items."""
    item_ids = model.catalog.item_ids.to_pylist()
    provider_of = dict(zip(item_ids, model.catalog.item_provider[1:].tolist(), strict=True))
    provider_ids = [-1, *model.catalog.provider_ids.to_pylist()]
    histories = [rng.choice([*item_ids, -3], rng.integers(1, 13)).tolist() for _ in range(num_users)]
    return histories, [[provider_ids[provider_of.get(item, 0)] for item in history] for history in histories]


@pytest.mark.parametrize("split", ["test", "valid"])
@pytest.mark.parametrize("exclude_seen", [False, True])
def test_metrics_equal_ranx_over_the_reference_scoring(
    tmp_path: Path, rng: np.random.Generator, split: str, exclude_seen: bool
) -> None:
    model = write_model_file(tmp_path / "m.onnx")
    histories, providers = random_histories(model, rng, 200)
    dataset = write_dataset(tmp_path / "d", model, histories, providers)
    cutoffs = (1, 5, 10, 30)
    report = evaluate(
        model.path, dataset, split="test" if split == "test" else "valid", cutoffs=cutoffs, exclude_seen=exclude_seen
    )
    left_out = 1 if split == "test" else 2
    relevant, ranked = {}, {}
    for user, (items, own) in enumerate(zip(histories, providers, strict=True)):
        if len(items) < left_out:
            continue
        before = slice(0, len(items) - left_out)
        _, ids, _ = naive_score_user(model, items[before], own[before], top_k=30, keep_seen=not exclude_seen)
        relevant[str(user)] = {str(items[-left_out]): 1}
        # Scores of ranx decide the order: ours fall with the rank, so that ties stay as they are.
        ranked[str(user)] = {str(item): float(-rank) for rank, item in enumerate(ids)} or {"none": 0.0}
    names = {
        f"{theirs}@{cutoff}": f"{ours}@{cutoff}"
        for theirs, ours in (("hit_rate", "hr"), ("mrr", "mrr"), ("ndcg", "ndcg"))
        for cutoff in cutoffs
    }
    expected = ranx_evaluate(Qrels(relevant), Run(ranked), list(names))
    assert report.users == len(relevant)
    assert 0 < report.metrics["hr@5"] < 1
    for theirs, ours in names.items():
        assert report.metrics[ours] == pytest.approx(expected[theirs], abs=1e-9), ours


def test_the_report_counts_cold_users_and_unknown_targets(tmp_path: Path) -> None:
    model = write_model_file(tmp_path / "m.onnx")
    a, b = model.catalog.item_ids.to_pylist()[:2]
    p = model.catalog.provider_ids.to_pylist()[0]
    dataset = write_dataset(tmp_path / "d", model, [[a], [a, b], [-3, a], [a, -3]], [[p], [p, p], [p, p], [p, p]])
    report = evaluate(model.path, dataset)
    assert (report.users, report.cold_users, report.unknown_targets) == (4, 2, 1)
    assert report.dataset_fingerprint == "f" * 64
    assert evaluate(model.path, dataset, split="valid").users == 3


def test_metrics_do_not_depend_on_threads(tmp_path: Path, rng: np.random.Generator) -> None:
    model = write_model_file(tmp_path / "m.onnx")
    dataset = write_dataset(tmp_path / "d", model, *random_histories(model, rng, 500))
    assert evaluate(model.path, dataset, threads=1).metrics == evaluate(model.path, dataset, threads=4).metrics


def test_long_cutoffs_make_small_chunks_and_the_same_metrics(
    tmp_path: Path, rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = write_model_file(tmp_path / "m.onnx")
    dataset = write_dataset(tmp_path / "d", model, *random_histories(model, rng, 60))
    expected = evaluate(model.path, dataset, cutoffs=(40,)).metrics
    most = 0

    def counted(ranker: Ranker, histories: Histories, **options: Any) -> Ranking:
        nonlocal most
        most = max(most, len(histories.lengths))
        return rank_users(ranker, histories, **options)

    monkeypatch.setattr("ipsrec_onnx.evaluation.rank_users", counted)
    monkeypatch.setattr("ipsrec_onnx.retrieval._CHUNK_CANDIDATES", 300)
    assert evaluate(model.path, dataset, cutoffs=(40,), threads=1).metrics == expected
    assert most == 300 // 40


def test_a_dataset_of_another_kind_of_ids_is_refused(tmp_path: Path, rng: np.random.Generator) -> None:
    model = write_model_file(tmp_path / "m.onnx")
    dataset = write_dataset(tmp_path / "d", model, *random_histories(model, rng, 5))
    histories = dataset / "histories.parquet"
    strings = write_model_file(tmp_path / "s.onnx", string_ids=True)
    with pytest.raises(DataError, match="column item_history: found ids of type int64, expected large_string"):
        evaluate(strings.path, dataset)
    pq.write_table(pa.table({"user_id": [1], "item_history": [1], "provider_history": [1]}), histories)
    with pytest.raises(DataError, match="column item_history is int64, expected lists of ids"):
        evaluate(model.path, dataset)
    lists = pa.array([[2**63, 1, 3]], pa.list_(pa.uint64()))
    pq.write_table(pa.table({"user_id": [1], "item_history": lists, "provider_history": lists}), histories)
    with pytest.raises(DataError, match="column item_history: found an id beyond int64"):
        evaluate(model.path, dataset)
    with pytest.raises(DataError, match="is no dataset"):
        evaluate(model.path, tmp_path)
    with pytest.raises(ValueError, match="cutoffs are"):
        evaluate(model.path, dataset, cutoffs=())
