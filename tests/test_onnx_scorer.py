"""Scorer against the job: the same lists, the same refusals but for the place, for tables and for one user."""

from __future__ import annotations

import pickle
import re
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from model_files import TinyModel, write_model_file
from test_onnx_scoring import bad_users, random_users

from ipsrec_onnx import Scorer
from ipsrec_onnx.errors import DataError, ExecutionProviderError, IpsrecError, ModelFileError, OutOfMemoryError
from ipsrec_onnx.scoring import score


@pytest.fixture
def model(tmp_path: Path) -> TinyModel:
    return write_model_file(tmp_path / "model.onnx")


@pytest.fixture
def users(model: TinyModel, rng: np.random.Generator) -> pa.Table:
    return random_users(model, rng, 150)


def by_the_job(folder: Path, model: TinyModel, users: pa.Table, **options: Any) -> tuple[pa.Table, Any]:
    pq.write_table(users, folder / "u.parquet")
    report = score(model.path, folder / "u.parquet", folder / "o.parquet", overwrite=True, **options)
    return pq.read_table(folder / "o.parquet"), report.counts


def expect_as_the_job(folder: Path, model: TinyModel, users: pa.Table, table: Any = None, **options: Any) -> None:
    expected, counts = by_the_job(folder, model, users, **options)
    scored = Scorer(model.path, **options).score(users if table is None else table)
    scored.candidates.validate(full=True)
    assert scored.candidates.schema.equals(expected.schema)
    assert scored.candidates.equals(expected)
    assert scored.counts == counts


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_tables_and_single_users_give_what_the_job_gives(tmp_path: Path, data: st.DataObject) -> None:
    draw = data.draw
    seed = draw(st.integers(0, 2**32 - 1), label="seed")
    rng = np.random.default_rng(seed)
    model = write_model_file(
        tmp_path / "m.onnx",
        num_items=draw(st.sampled_from([1, 2, 40, 300]), label="num_items"),
        max_len=draw(st.sampled_from([1, 6, 20]), label="max_len"),
        dim=draw(st.sampled_from([1, 8, 64]), label="dim"),
        string_ids=draw(st.booleans(), label="string_ids"),
        with_history_terms=draw(st.booleans(), label="terms"),
        seed=seed % 1000,
    )
    users = random_users(model, rng, draw(st.integers(0, 30), label="users"))
    if draw(st.booleans(), label="catalog's providers"):
        users = users.drop_columns("provider_history")
    options: dict[str, Any] = {
        "top_k": draw(st.sampled_from([1, 10, 1000]), label="top_k"),
        "keep_seen": draw(st.booleans(), label="keep_seen"),
        "cold_users": draw(st.sampled_from(["popular", "empty"]), label="cold_users"),
        "max_per_provider": draw(st.sampled_from([None, 1, 2]), label="max_per_provider"),
        "candidates_column": draw(st.sampled_from([None, "choice"]), label="candidates"),
    }
    if draw(st.booleans(), label="deny"):
        denied = draw(st.sets(st.sampled_from(model.catalog.item_ids.to_pylist()), max_size=20), label="deny list")
        if len(denied) < model.catalog.num_items:
            (tmp_path / "deny.txt").write_text("\n".join(map(str, denied)), encoding="utf-8")
            options["deny_items"] = tmp_path / "deny.txt"
    expect_as_the_job(tmp_path, model, users, **options)
    expect_as_the_job(tmp_path, model, users, layout="long", **options)
    scorer, rows = Scorer(model.path, **options), by_the_job(tmp_path, model, users, **options)[0].to_pylist()
    for user, row in zip(users.to_pylist(), rows, strict=True):
        candidates = user["choice"] if options["candidates_column"] else None
        one = scorer.score_one(user["item_history"], user.get("provider_history"), candidates=candidates)
        assert {"user_id": user["user_id"], **one._asdict()} == row


def test_a_chunked_table_of_slices_gives_the_same_rows(tmp_path: Path, model: TinyModel, users: pa.Table) -> None:
    pieces = [users.slice(0, 0), users.slice(0, 1), users.slice(1, 70), users.slice(71)]
    expect_as_the_job(tmp_path, model, users, pa.concat_tables(pieces), threads=2)
    expect_as_the_job(tmp_path, model, users.slice(30, 50))


def test_a_large_table_gives_the_same_rows_with_any_threads(
    tmp_path: Path, model: TinyModel, users: pa.Table, monkeypatch: pytest.MonkeyPatch
) -> None:
    many = pa.concat_tables([users] * 8)
    for chunk_bytes in (1 << 23, 1000):  # the second one: some users a chunk
        monkeypatch.setattr("ipsrec_onnx.in_memory._CHUNK_BYTES", chunk_bytes)
        for threads in (1, 2, 5):
            expect_as_the_job(tmp_path, model, many, threads=threads)


def test_a_table_without_users_gives_no_rows(tmp_path: Path, model: TinyModel, users: pa.Table) -> None:
    for nobody in (users.slice(0, 0), users.schema.empty_table()):
        expect_as_the_job(tmp_path, model, nobody)


@pytest.mark.parametrize("string_ids", [False, True])
def test_frames_of_other_libraries_are_tables(tmp_path: Path, rng: np.random.Generator, string_ids: bool) -> None:
    model = write_model_file(tmp_path / "m.onnx", string_ids=string_ids)
    users = random_users(model, rng, 40)
    expected = Scorer(model.path).score(users).candidates.to_pylist()

    def given(table: Any) -> list[Any]:
        return list(Scorer(model.path).score(table).candidates.to_pylist())

    assert given(users.combine_chunks().to_batches()[0]) == expected
    assert given(pa.RecordBatchReader.from_batches(users.schema, users.to_batches())) == expected
    pl = pytest.importorskip("polars")
    assert given(pl.from_arrow(users)) == expected
    categories = [pl.col(name).cast(pl.List(pl.Categorical)) for name in ("item_history", "provider_history")]
    if string_ids:
        assert given(pl.from_arrow(users).with_columns(categories)) == expected
    pytest.importorskip("pandas")
    assert given(users.to_pandas()) == expected


@pytest.mark.parametrize("make", [pa.list_, pa.list_view, pa.large_list_view])
def test_lists_of_string_views_are_lists_of_strings(tmp_path: Path, make: Any) -> None:
    model = write_model_file(tmp_path / "m.onnx", string_ids=True)
    ids = model.catalog.item_ids.to_pylist()
    rows = [ids[:3], None, [], ["an id of more than twelve bytes"], ids[5:7]]
    scorer = Scorer(model.path, bad_rows="divert")
    expected = scorer.score(pa.table({"user_id": range(5), "item_history": pa.array(rows)}))
    views = pa.array(rows, make(pa.string_view()))
    found = scorer.score(pa.table({"user_id": range(5), "item_history": pa.chunked_array([views[:2], views[2:]])}))
    assert found.candidates.equals(expected.candidates)
    assert found.counts == expected.counts


def test_eight_threads_share_one_scorer(model: TinyModel, users: pa.Table) -> None:
    scorer = Scorer(model.path, top_k=10, threads=2)
    tables = [users.slice(first, 40) for first in range(0, 100, 5)]
    rows = users.to_pylist()

    def one(user: dict[str, Any]) -> Any:
        return scorer.score_one(user["item_history"], user["provider_history"])

    expected_tables, expected_rows = list(map(scorer.score, tables)), list(map(one, rows))
    with ThreadPoolExecutor(8) as pool:
        found_tables, found_rows = pool.map(scorer.score, tables * 3), pool.map(one, rows * 3)
        assert list(found_tables) == expected_tables * 3
        assert list(found_rows) == expected_rows * 3


def test_malformed_rows_come_back_with_their_reason(model: TinyModel) -> None:
    users, reasons = bad_users(model)
    candidates, bad_rows, counts = Scorer(model.path, bad_rows="divert").score(users)
    assert candidates["user_id"].to_pylist() == [1, 5, 9]
    originals = users.to_pylist()
    assert bad_rows.to_pylist() == [{"row": row, "reason": reason, **originals[row]} for row, reason in reasons.items()]
    assert (counts.rows_in, counts.rows_out, counts.rows_diverted) == (9, 3, 6)


def refusal(work: Any) -> tuple[type[Exception], str]:
    with pytest.raises((IpsrecError, ValueError)) as refused:
        work()
    assert "\n" not in str(refused.value)
    return refused.type, str(refused.value)


def test_rows_are_refused_as_by_the_job_but_for_the_place(tmp_path: Path, model: TinyModel) -> None:
    users, reasons = bad_users(model)
    item = model.catalog.item_ids.to_pylist()[0]
    history = pa.list_(pa.int64())
    unknown = pa.table({"user_id": [1, 2], "item_history": pa.array([[item], [item, -77]], history)})
    tables: list[tuple[pa.Table, dict[str, Any]]] = [
        *((users.take([0, 4, row]), {}) for row in reasons),
        (unknown, {"unknown_items": "error"}),
        (unknown.set_column(1, "item_history", pa.array([[item], [-7]], history)), {"cold_users": "error"}),
        (unknown.drop_columns("user_id"), {}),
        (unknown.drop_columns("item_history"), {}),
        (unknown.append_column("user_id", unknown["user_id"]), {}),
        (unknown, {"candidates_column": "choice"}),
        (unknown, {"provider_column": "item_history"}),
        (unknown.set_column(1, "item_history", pa.array([["x"], []])), {}),
        (unknown.set_column(1, "item_history", pa.array([[1.5], []])), {}),
        (unknown.set_column(1, "item_history", pa.array([1, 2])), {}),
    ]
    for table, options in tables:
        pq.write_table(table, tmp_path / "u.parquet")
        job = refusal(lambda: score(model.path, tmp_path / "u.parquet", tmp_path / "o", **options))  # noqa: B023
        kind, message = refusal(lambda: Scorer(model.path, **options).score(table))  # noqa: B023
        place = re.compile(rf"^{re.escape(str(tmp_path / 'u.parquet'))}(, row group 0)?")
        assert (kind, message) == (job[0], place.sub("table", job[1]))
        assert message.startswith("table")


@pytest.mark.parametrize(
    "options",
    [
        {"top_k": 0},
        {"max_per_provider": 0},
        {"threads": 0},
        {"layout": "wide"},
        {"bad_rows": "drop"},
        {"unknown_items": "keep"},
        {"cold_users": "none"},
        {"encoder": "torch"},
        {"encoder": "fused"},
        {"encoder": "fused", "device": "cuda"},
        {"allow_items": "no such file"},
    ],
)
def test_options_are_refused_as_by_the_job(
    tmp_path: Path, model: TinyModel, users: pa.Table, options: dict[str, Any]
) -> None:
    pq.write_table(users, tmp_path / "u.parquet")
    job = refusal(lambda: score(model.path, tmp_path / "u.parquet", tmp_path / "o", **options))
    assert refusal(lambda: Scorer(model.path, **options)) == job


def test_a_model_that_cannot_be_used_is_refused_when_it_is_opened(tmp_path: Path) -> None:
    with pytest.raises(ModelFileError, match="no such file"):
        Scorer(tmp_path / "none.onnx")
    with pytest.raises((ExecutionProviderError, ModelFileError)):
        Scorer(write_model_file(tmp_path / "m.onnx", gate={"passed": False}).path)


@pytest.mark.parametrize("table", [None, [1, 2], {"user_id": [1]}, "users.parquet"])
def test_what_is_no_table_is_refused(model: TinyModel, table: Any) -> None:
    with pytest.raises(DataError, match=r"^table: found a \w+, expected a pyarrow Table .* pyarrow.table\(\)$"):
        Scorer(model.path).score(table)


@pytest.mark.parametrize("string_ids", [False, True])
def test_item_lists_may_be_ids(tmp_path: Path, rng: np.random.Generator, string_ids: bool) -> None:
    model = write_model_file(tmp_path / "m.onnx", string_ids=string_ids)
    users, items = random_users(model, rng, 30), model.catalog.item_ids.to_pylist()
    for name, ids in (("allow", items[:9]), ("deny", items[5:9])):
        (tmp_path / name).write_text("\n".join(map(str, ids)), encoding="utf-8")
    expected = Scorer(model.path, allow_items=tmp_path / "allow", deny_items=tmp_path / "deny").score(users)
    for form in (list, tuple, pa.array, np.array, iter):
        found = Scorer(model.path, allow_items=form(items[:9]), deny_items=form(items[5:9])).score(users)
        assert found == expected
    assert Scorer(model.path, deny_items=[]).score(users) == Scorer(model.path).score(users)
    for lists, message in (
        ({"allow_items": []}, "allow list in memory: it holds no id, expected one or more"),
        ({"deny_items": items}, "deny list in memory: it holds every item, so none is left"),
        ({"allow_items": [1.5]}, "item list in memory: ids of type double, expected an integer or string"),
        ({"allow_items": [1 if string_ids else "x"]}, "item list in memory: ids of type .*, the catalog has"),
        ({"allow_items": [*items, None]}, "item list in memory: 1 null ids, expected none"),
        ({"allow_items": b"x"}, "item list in memory: found one bytes, expected a list of ids"),
        ({"allow_items": [1, "x"]}, "item list in memory: Arrow cannot take the ids"),
    ):
        with pytest.raises(DataError, match=message):
            Scorer(model.path, **lists)


@pytest.mark.parametrize("string_ids", [False, True])
def test_one_user_may_come_in_any_form(tmp_path: Path, string_ids: bool) -> None:
    model = write_model_file(tmp_path / "m.onnx", string_ids=string_ids)
    scorer, items = Scorer(model.path), model.catalog.item_ids.to_pylist()[:5]
    expected = scorer.score_one(items)
    assert expected.status == "scored" and len(expected.item_ids) == len(expected.scores) == 35
    assert {type(item) for item in expected.item_ids} == {str if string_ids else int}
    assert {type(score) for score in expected.scores} == {float}
    pl = pytest.importorskip("polars")
    for form in (tuple, np.array, pa.array, lambda ids: pa.chunked_array([ids[:2], ids[2:]]), pl.Series, iter):
        assert scorer.score_one(form(items)) == expected
    if string_ids:
        assert scorer.score_one(pa.array(items).dictionary_encode()) == expected
        assert scorer.score_one(pl.Series(items, dtype=pl.Categorical)[:4]) == scorer.score_one(items[:4])
    else:
        assert scorer.score_one(np.array(items, np.uint16)) == expected


def test_one_user_may_have_a_length_and_a_seen_rule_of_its_own(model: TinyModel) -> None:
    items = model.catalog.item_ids.to_pylist()[:5]
    scorer = Scorer(model.path, top_k=7)
    for top_k in (1, 7, 40, 10**6):
        for keep_seen in (False, True):
            expected = Scorer(model.path, top_k=top_k, keep_seen=keep_seen).score_one(items)
            assert scorer.score_one(items, top_k=top_k, keep_seen=keep_seen) == expected
    assert scorer.score_one([]) == scorer.score_one([-1]) == scorer.score_one([], [], candidates=None)
    assert scorer.score_one([]).status == "cold"
    assert Scorer(model.path, cold_users="empty").score_one([]) == ("cold", [], [])
    assert scorer.score_one(items, candidates=[]) == ("scored", [], [])


def test_one_user_is_refused_with_what_is_wrong(model: TinyModel) -> None:
    item = model.catalog.item_ids.to_pylist()[0]
    scorer = Scorer(model.path, unknown_items="error", cold_users="error", bad_rows="divert")
    for lists, message in (
        ((None,), "user: item_history is null; mend the list, or leave the user out"),
        (([item, None],), "user: item_history holds a null"),
        ((np.array([item, 2**63], np.uint64),), "user: item_history holds an id beyond int64"),
        (([item, 2**70],), "user, item_history: Arrow cannot take the ids"),
        (([item], []), "user: item_history and provider_history are of different lengths"),
        (([item], [None]), "user: provider_history holds a null"),
        (([item], None, [None]), "user: candidates holds a null"),
        (("abc",), "user, item_history: found one str, expected a list of ids"),
        ((7,), "user, item_history: Arrow cannot take the ids"),
        (([1.0],), "user, item_history: ids of type double, expected an integer or string type"),
        (([item, "x"],), "user, item_history: Arrow cannot take the ids"),
        ((["x"],), "user, item_history: found ids of type string, expected int64 as in the model's catalog"),
        (([item, -77],), "user, item_history: item id -77 is not in the model's catalog; .*--unknown-items drop"),
        (([],), "user has no item that the model knows; leave the user out, or choose --cold-users popular or empty"),
    ):
        candidates = lists[2] if len(lists) > 2 else None
        with pytest.raises(DataError, match="^" + message):
            scorer.score_one(*lists[:2], candidates=candidates)
    with pytest.raises(ValueError, match="top_k is 0, expected 1 or more"):
        scorer.score_one([item], top_k=0)


@pytest.mark.parametrize("threads", [1, 2])
def test_work_that_breaks_down_says_where_as_in_a_job(
    model: TinyModel, users: pa.Table, monkeypatch: pytest.MonkeyPatch, threads: int
) -> None:
    def broken(*_: Any, **__: Any) -> None:
        raise MemoryError("malloc of size 99 failed")

    scorer = Scorer(model.path, threads=threads)
    monkeypatch.setattr("ipsrec_onnx.scored_chunk.rank_users", broken)
    monkeypatch.setattr("ipsrec_onnx.one_user.rank_users", broken)
    with pytest.raises(OutOfMemoryError, match=r"^table, rows 0 to \d+: memory ran out \(MemoryError: malloc of size"):
        scorer.score(pa.concat_tables([users] * 8))
    with pytest.raises(OutOfMemoryError, match=r"^user: memory ran out \(MemoryError: malloc of size 99 failed\)"):
        scorer.score_one([])


def test_a_scorer_is_not_pickled(model: TinyModel) -> None:
    with pytest.raises(TypeError, match="make one in each process"):
        pickle.dumps(Scorer(model.path))


def test_importing_the_package_loads_neither_onnxruntime_nor_kernels() -> None:
    loaded = "sorted({'numba', 'onnxruntime', 'pyarrow', 'numpy'} & set(sys.modules))"
    script = f"import sys, ipsrec_onnx; print({loaded}); from ipsrec_onnx import Scorer; print({loaded})"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == ["[]", "['numba', 'numpy', 'onnxruntime', 'pyarrow']"]
    with pytest.raises(ImportError, match="Scorers"):
        exec("from ipsrec_onnx import Scorers")  # noqa: S102
