"""score against a brute-force reference, and the laws that its output obeys."""

from __future__ import annotations

import json
import os
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from model_files import TinyModel, write_model_file
from naive_scoring import naive_score_user

from ipsrec_onnx.errors import DataError
from ipsrec_onnx.row_writer import RowWriter
from ipsrec_onnx.scoring import score
from ipsrec_onnx.user_chunks import read_chunks
from ipsrec_onnx.user_parts import plan_parts
from ipsrec_onnx.users import UserColumns, open_users


def random_users(model: TinyModel, rng: np.random.Generator, num_users: int, *, longest: int = 14) -> pa.Table:
    """Histories with repeats, unknown items and providers, empty ones, and candidates."""
    items = model.catalog.item_ids.to_pylist()
    providers = model.catalog.provider_ids.to_pylist()
    strings = isinstance(items[0], str)
    items += ["no such item", ""] if strings else [-5, 7]
    providers += ["no such provider"] if strings else [-1]

    def pick(ids: list[Any], length: int) -> list[Any]:
        return [ids[row] for row in rng.integers(0, len(ids), length)]

    lengths = rng.integers(0, longest + 1, num_users)
    histories = [pick(items, length) for length in lengths]
    if num_users:
        histories[0] = [items[-1]]  # cold, but not empty
        lengths[0] = 1
    kind = pa.string() if strings else pa.int64()
    return pa.table(
        {
            "user_id": pa.array(rng.integers(0, 10**9, num_users)),
            "item_history": pa.array(histories, pa.list_(kind)),
            "provider_history": pa.array([pick(providers, length) for length in lengths], pa.list_(kind)),
            "choice": pa.array([pick(items, rng.integers(0, 20)) for _ in range(num_users)], pa.list_(kind)),
        }
    )


def expect_naive(model: TinyModel, users: pa.Table, output: Path, **options: Any) -> None:
    """Compare an output, user by user, as sets and in order, with the reference."""
    candidates_column = options.pop("candidates_column", None)
    rows = pq.read_table(output)
    assert rows["user_id"].to_pylist() == users["user_id"].to_pylist()
    providers = users.column_names.count("provider_history")
    for number, (user, row) in enumerate(zip(users.to_pylist(), rows.to_pylist(), strict=True)):
        expected = naive_score_user(
            model,
            user["item_history"],
            user["provider_history"] if providers else None,
            candidates=user[candidates_column] if candidates_column else None,
            **options,
        )
        assert (row["status"], row["item_ids"]) == expected[:2], f"user {number}"
        assert row["scores"] == expected[2], f"user {number}"


@pytest.fixture
def model(tmp_path: Path) -> TinyModel:
    return write_model_file(tmp_path / "model.onnx")


@pytest.fixture
def users(model: TinyModel, rng: np.random.Generator) -> pa.Table:
    return random_users(model, rng, 150)


@pytest.mark.parametrize("string_ids", [False, True])
@pytest.mark.parametrize("with_history_terms", [False, True])
@pytest.mark.parametrize("own_providers", [False, True])
def test_score_equals_the_brute_force_reference(
    tmp_path: Path, rng: np.random.Generator, string_ids: bool, with_history_terms: bool, own_providers: bool
) -> None:
    model = write_model_file(tmp_path / "m.onnx", string_ids=string_ids, with_history_terms=with_history_terms)
    users = random_users(model, rng, 120)
    if not own_providers:
        users = users.drop_columns("provider_history")
    pq.write_table(users, tmp_path / "users.parquet")
    score(model.path, tmp_path / "users.parquet", tmp_path / "out.parquet", top_k=10, threads=2)
    expect_naive(model, users, tmp_path / "out.parquet", top_k=10)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_score_equals_the_reference_under_any_filters(tmp_path: Path, data: st.DataObject) -> None:
    draw = data.draw
    seed = draw(st.integers(0, 2**32 - 1), label="seed")
    rng = np.random.default_rng(seed)
    num_items = draw(st.sampled_from([1, 2, 9, 40, 300]), label="num_items")
    model = write_model_file(
        tmp_path / "m.onnx",
        num_items=num_items,
        max_len=draw(st.sampled_from([1, 3, 6, 20]), label="max_len"),
        dim=draw(st.sampled_from([1, 5, 8, 64]), label="dim"),
        string_ids=draw(st.booleans(), label="string_ids"),
        with_history_terms=draw(st.booleans(), label="terms"),
        seed=seed % 1000,
    )
    users = random_users(model, rng, draw(st.integers(0, 40), label="users"))
    pq.write_table(users, tmp_path / "u.parquet", row_group_size=draw(st.sampled_from([1, 7, 100]), label="row group"))
    items = model.catalog.item_ids.to_pylist()
    options: dict[str, Any] = {
        "top_k": draw(st.sampled_from([1, 3, 10, 1000]), label="top_k"),
        "keep_seen": draw(st.booleans(), label="keep_seen"),
        "cold_users": draw(st.sampled_from(["popular", "empty"]), label="cold_users"),
        "max_per_provider": draw(st.sampled_from([None, 1, 2]), label="max_per_provider"),
        "candidates_column": draw(st.sampled_from([None, "choice"]), label="candidates"),
    }
    lists: dict[str, set[Any]] = {}
    paths: dict[str, Path] = {}
    for name in ("allow", "deny"):
        if draw(st.booleans(), label=name):
            chosen = draw(st.sets(st.sampled_from(items), min_size=1, max_size=20), label=f"{name} list")
            lists[name] = chosen
            paths[f"{name}_items"] = tmp_path / f"{name}.txt"
            paths[f"{name}_items"].write_text("\n".join(str(item) for item in chosen), encoding="utf-8")
    paths["output"] = tmp_path / "o.parquet"
    if not lists.get("allow", set(items)) - lists.get("deny", set()):
        with pytest.raises(DataError, match="so none is left to recommend"):
            score(model.path, tmp_path / "u.parquet", overwrite=True, **paths, **options)
        return
    score(model.path, tmp_path / "u.parquet", overwrite=True, threads=2, **paths, **options)
    expect_naive(model, users, tmp_path / "o.parquet", **options, **lists)


def test_bytes_do_not_depend_on_threads_or_row_groups(
    tmp_path: Path, model: TinyModel, rng: np.random.Generator
) -> None:
    users = random_users(model, rng, 20_000)
    outputs = []
    for row_group_size, threads in ((100_000, 1), (100_000, 3), (1_000, 2), (997, 4)):
        pq.write_table(users, tmp_path / "users.parquet", row_group_size=row_group_size)
        score(model.path, tmp_path / "users.parquet", tmp_path / "o", top_k=10, threads=threads, overwrite=True)
        outputs.append((tmp_path / "o").read_bytes())
    assert all(output == outputs[0] for output in outputs)


def test_a_users_list_is_the_same_alone_and_in_any_company(
    tmp_path: Path, model: TinyModel, users: pa.Table, rng: np.random.Generator
) -> None:
    pq.write_table(users, tmp_path / "all.parquet")
    score(model.path, tmp_path / "all.parquet", tmp_path / "o", top_k=10)
    together = pq.read_table(tmp_path / "o").to_pylist()
    for rows in ([3], [0], [140], rng.permutation(150)[:37].tolist()):
        pq.write_table(users.take(rows), tmp_path / "some.parquet")
        score(model.path, tmp_path / "some.parquet", tmp_path / "o", top_k=10, overwrite=True)
        assert pq.read_table(tmp_path / "o").to_pylist() == [together[row] for row in rows]


def test_a_folder_is_read_in_the_order_of_its_names(tmp_path: Path, model: TinyModel, users: pa.Table) -> None:
    folder = tmp_path / "users"
    folder.mkdir()
    pq.write_table(users.slice(0, 60), folder / "part-1.parquet")
    pq.write_table(users.slice(60), folder / "part-2.parquet")
    (folder / "_SUCCESS").touch()
    pq.write_table(users, tmp_path / "one.parquet")
    score(model.path, folder, tmp_path / "a", top_k=5)
    score(model.path, (tmp_path / "one.parquet").as_uri(), tmp_path / "b", top_k=5)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_folders_of_other_tools_are_not_users(tmp_path: Path, model: TinyModel, users: pa.Table) -> None:
    folder = tmp_path / "_users"  # the name of the folder that is asked for says nothing
    for name in ("a/1.parquet", "a/_temporary/2.parquet", ".b/3.parquet", "a/.4.parquet", "a/b/5.parquet"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(users, folder / name)
    report = score(model.path, folder, tmp_path / "o", top_k=1)
    assert report.counts.rows_in == 2 * users.num_rows


@pytest.mark.parametrize("first", ["a", "b"])
def test_providers_in_some_files_of_a_folder_only_are_refused(
    tmp_path: Path, model: TinyModel, users: pa.Table, first: str
) -> None:
    folder = tmp_path / "users"
    folder.mkdir()
    for name in "ab":
        part = users if name == first else users.drop_columns("provider_history")
        pq.write_table(part, folder / f"{name}.parquet")
    with pytest.raises(DataError, match=r"b\.parquet: columns .*; write all files of a folder with the same columns"):
        score(model.path, folder, tmp_path / "o")


@pytest.mark.parametrize("column", ["item_history", "choice"])
def test_long_lists_make_small_chunks_and_the_same_bytes(
    tmp_path: Path, model: TinyModel, users: pa.Table, monkeypatch: pytest.MonkeyPatch, column: str
) -> None:
    pq.write_table(users, tmp_path / "u.parquet", row_group_size=100)
    options: dict[str, Any] = {"top_k": 5, "candidates_column": "choice" if column == "choice" else None}
    score(model.path, tmp_path / "u.parquet", tmp_path / "a", **options)
    most = 40
    monkeypatch.setattr("ipsrec_onnx.memory_plan.MOST_IDS", most)
    opened = open_users(tmp_path / "u.parquet", UserColumns("user_id", column, None, None))
    ids = [
        len(chunk.rows[column].flatten()) + len(chunk.rows["provider_history"].flatten())
        for chunk in read_chunks(opened, plan_parts(opened), chunk_rows=100, chunk_ids=most)
    ]
    assert sum(ids) / len(ids) <= most
    score(model.path, tmp_path / "u.parquet", tmp_path / "b", **options)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_row_groups_of_the_long_layout_do_not_depend_on_the_length_of_the_lists(
    tmp_path: Path, model: TinyModel, rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    pq.write_table(random_users(model, rng, 5_000), tmp_path / "u.parquet")
    monkeypatch.setattr("ipsrec_onnx.retrieval._CHUNK_CANDIDATES", 2_000)  # chunks of 100 users
    score(model.path, tmp_path / "u.parquet", tmp_path / "o", top_k=20, layout="long")
    metadata = pq.ParquetFile(tmp_path / "o").metadata
    rows = [metadata.row_group(group).num_rows for group in range(metadata.num_row_groups)]
    assert rows == [65_536, sum(rows) - 65_536]


def test_writing_the_last_row_group_counts_as_writing(
    tmp_path: Path, model: TinyModel, users: pa.Table, monkeypatch: pytest.MonkeyPatch
) -> None:
    finish = RowWriter.finish

    def slow(writer: RowWriter) -> None:
        started = time.thread_time()
        while time.thread_time() < started + 0.1:
            pass
        finish(writer)

    monkeypatch.setattr(RowWriter, "finish", slow)
    pq.write_table(users, tmp_path / "u.parquet")
    assert score(model.path, tmp_path / "u.parquet", tmp_path / "o", top_k=5).cpu_s["write"] >= 0.1


def test_numbers_beyond_any_list_are_no_limit(tmp_path: Path, model: TinyModel, users: pa.Table) -> None:
    pq.write_table(users, tmp_path / "u.parquet")
    score(model.path, tmp_path / "u.parquet", tmp_path / "a", top_k=40)
    score(model.path, tmp_path / "u.parquet", tmp_path / "b", top_k=10**20, max_per_provider=2**63)
    assert pq.read_table(tmp_path / "a").equals(pq.read_table(tmp_path / "b"))


@pytest.mark.parametrize("parquet", [False, True])
def test_item_lists_may_come_through_a_pipe(tmp_path: Path, model: TinyModel, users: pa.Table, parquet: bool) -> None:
    pq.write_table(users, tmp_path / "u.parquet")
    items = model.catalog.item_ids.to_pylist()[:5]
    content = "\n".join(map(str, items)).encode()
    if parquet:
        sink = pa.BufferOutputStream()
        pq.write_table(pa.table({"any": items}), sink)
        content = sink.getvalue().to_pybytes()
    os.mkfifo(tmp_path / "pipe")
    writer = threading.Thread(target=(tmp_path / "pipe").write_bytes, args=(content,), daemon=True)
    writer.start()
    report = score(model.path, tmp_path / "u.parquet", tmp_path / "o", deny_items=tmp_path / "pipe")
    writer.join(timeout=10)
    assert report.allowed_items == 35
    expect_naive(model, users, tmp_path / "o", top_k=100, deny=set(items))


@pytest.mark.parametrize(
    ("option", "value"),
    [("layout", "wide"), ("unknown_items", "keep"), ("cold_users", "drop"), ("bad_rows", "drop"), ("top_k", 0)],
)
def test_an_impossible_value_is_refused_by_the_name_of_its_option(tmp_path: Path, option: str, value: Any) -> None:
    with pytest.raises(ValueError, match=f"{option} is {value!r}, expected"):
        score(tmp_path / "m", tmp_path / "u", tmp_path / "o", **{option: value})


def test_long_layout_holds_the_same_candidates(tmp_path: Path, model: TinyModel, users: pa.Table) -> None:
    pq.write_table(users, tmp_path / "u.parquet")
    score(model.path, tmp_path / "u.parquet", tmp_path / "list", top_k=7, cold_users="empty")
    score(model.path, tmp_path / "u.parquet", tmp_path / "long", top_k=7, cold_users="empty", layout="long")
    expected = [
        {"user_id": row["user_id"], "rank": rank, "item_id": item, "score": value}
        for row in pq.read_table(tmp_path / "list").to_pylist()
        for rank, (item, value) in enumerate(zip(row["item_ids"], row["scores"], strict=True), start=1)
    ]
    table = pq.read_table(tmp_path / "long")
    assert table.to_pylist() == expected
    assert table.schema.field("rank").type == pa.int32()
    assert table.schema.field("score").type == pa.float32()


def test_the_output_says_what_made_it(tmp_path: Path, model: TinyModel, users: pa.Table) -> None:
    pq.write_table(users, tmp_path / "u.parquet")
    report = score(model.path, tmp_path / "u.parquet", tmp_path / "o", top_k=7)
    file = pq.ParquetFile(tmp_path / "o")
    metadata = file.schema_arrow.metadata
    assert metadata[b"ipsrec.model_sha256"].decode() == report.model_sha256
    assert json.loads(metadata[b"ipsrec.options"])["top_k"] == 7
    column = file.metadata.row_group(0).column(2)
    assert column.compression == "ZSTD"
    assert not column.has_dictionary_page
    assert file.schema_arrow.field("item_ids").type == pa.list_(pa.int64())
    assert file.schema_arrow.field("scores").type == pa.list_(pa.float32())


LIST_TYPES = {
    "list<int32>": lambda lists: pa.array(lists, pa.list_(pa.int32())),
    "list<uint16>": lambda lists: pa.array(lists, pa.list_(pa.uint16())),
    "large_list<int64>": lambda lists: pa.array(lists, pa.large_list(pa.int64())),
    "list_view<int64>": lambda lists: pa.array(lists, pa.list_view(pa.int64())),
    "list<dictionary<int64>>": lambda lists: pa.array(lists, pa.list_(pa.dictionary(pa.int32(), pa.int64()))),
}
STRING_LIST_TYPES = {
    "large_list<large_string>": lambda lists: pa.array(lists, pa.large_list(pa.large_string())),
    "list<string_view>": lambda lists: pa.array(lists, pa.list_(pa.string_view())),
    "list<dictionary<string>>": lambda lists: pa.array(lists, pa.list_(pa.dictionary(pa.int32(), pa.string()))),
}


@pytest.mark.parametrize("kind", [*LIST_TYPES, *STRING_LIST_TYPES])
def test_any_list_type_gives_the_same_candidates(tmp_path: Path, rng: np.random.Generator, kind: str) -> None:
    model = write_model_file(tmp_path / "m.onnx", string_ids=kind in STRING_LIST_TYPES)
    users = random_users(model, rng, 50).select(["user_id", "item_history"])
    lists = [[item for item in row if item != -5] for row in users["item_history"].to_pylist()]
    users = users.set_column(1, "item_history", [(LIST_TYPES | STRING_LIST_TYPES)[kind](lists)])
    pq.write_table(users, tmp_path / "u.parquet")
    score(model.path, tmp_path / "u.parquet", tmp_path / "o", top_k=10)
    expect_naive(model, users, tmp_path / "o", top_k=10)


def test_fixed_size_lists_are_lists(tmp_path: Path, model: TinyModel) -> None:
    items = model.catalog.item_ids.to_pylist()
    users = pa.table({"user_id": [1, 2], "item_history": pa.array([items[:3], items[3:6]], pa.list_(pa.int64(), 3))})
    pq.write_table(users, tmp_path / "u.parquet")
    score(model.path, tmp_path / "u.parquet", tmp_path / "o", top_k=10)
    expect_naive(model, users, tmp_path / "o", top_k=10)


@pytest.mark.parametrize(
    "user_id",
    [
        pa.array(["a", "b", "a"]),
        pa.array(["a", "b", "a"], pa.string_view()),
        pa.array(["a", "b", "a"]).dictionary_encode(),
        pa.array([1, 2, 3], pa.uint8()),
        pa.array([b"1", b"2", b"3"]),
        pa.array([{"shop": 1, "user": 2}] * 3),
        pa.array([1, 2, 3], pa.timestamp("us")),
    ],
    ids=lambda array: str(array.type)[:20],
)
@pytest.mark.parametrize("layout", ["list", "long"])
def test_user_ids_of_any_type_pass_through(tmp_path: Path, model: TinyModel, user_id: pa.Array, layout: Any) -> None:
    users = pa.table({"user_id": user_id, "item_history": [model.catalog.item_ids.to_pylist()[:2]] * 3})
    pq.write_table(users, tmp_path / "u.parquet")
    score(model.path, tmp_path / "u.parquet", tmp_path / "o", top_k=1, layout=layout)
    assert pq.read_table(tmp_path / "o")["user_id"].to_pylist() == user_id.to_pylist()


def test_histories_without_any_element_are_cold(tmp_path: Path, model: TinyModel) -> None:
    pq.write_table(pa.table({"user_id": [1, 2], "item_history": [[], []]}), tmp_path / "u.parquet")
    report = score(model.path, tmp_path / "u.parquet", tmp_path / "o", top_k=3)
    assert report.counts.cold_users == 2
    assert pq.read_table(tmp_path / "o")["status"].to_pylist() == ["cold", "cold"]


def test_no_users_give_no_rows(tmp_path: Path, model: TinyModel, users: pa.Table) -> None:
    pq.write_table(users.slice(0, 0), tmp_path / "u.parquet")
    for layout in ("list", "long"):
        report = score(model.path, tmp_path / "u.parquet", tmp_path / layout, layout=layout)
        assert report.counts.rows_out == 0
        assert pq.read_table(tmp_path / layout).num_rows == 0


def test_columns_have_the_names_that_are_given(tmp_path: Path, model: TinyModel, users: pa.Table) -> None:
    renamed = users.rename_columns(["who", "what", "whose", "choice"])
    pq.write_table(users, tmp_path / "u.parquet")
    pq.write_table(renamed, tmp_path / "r.parquet")
    score(model.path, tmp_path / "u.parquet", tmp_path / "a", top_k=5)
    score(
        model.path,
        tmp_path / "r.parquet",
        tmp_path / "b",
        top_k=5,
        user_column="who",
        item_column="what",
        provider_column="whose",
    )
    assert pq.read_table(tmp_path / "a").equals(pq.read_table(tmp_path / "b"))


def bad_users(model: TinyModel) -> tuple[pa.Table, dict[int, str]]:
    """Rows of which some are malformed, and the reason by row."""
    a, b, c = model.catalog.item_ids.to_pylist()[:3]
    p = model.catalog.provider_ids.to_pylist()[0]
    rows = [
        (1, [a, b], [p, p]),
        (None, [a], [p]),
        (3, None, [p]),
        (4, [a, None], [p, p]),
        (5, [c], [p]),
        (6, [a], None),
        (7, [a], [None]),
        (8, [a, b], [p]),
        (9, [], []),
    ]
    reasons = {
        1: "user_id is null",
        2: "item_history is null",
        3: "item_history holds a null",
        5: "provider_history is null",
        6: "provider_history holds a null",
        7: "item_history and provider_history are of different lengths",
    }
    user_id, items, providers = (list(column) for column in zip(*rows, strict=True))
    lists = pa.list_(pa.int64())
    table = pa.table(
        {"user_id": user_id, "item_history": pa.array(items, lists), "provider_history": pa.array(providers, lists)}
    )
    return table, reasons


def test_malformed_rows_are_diverted_with_their_reason(tmp_path: Path, model: TinyModel) -> None:
    users, reasons = bad_users(model)
    pq.write_table(users, tmp_path / "u.parquet", row_group_size=4)
    report = score(model.path, tmp_path / "u.parquet", tmp_path / "o.parquet", top_k=5, bad_rows="divert")
    assert (report.counts.rows_in, report.counts.rows_out, report.counts.rows_diverted) == (9, 3, 6)
    good = users.take([row for row in range(9) if row not in reasons])
    expect_naive(model, good, tmp_path / "o.parquet", top_k=5)
    dead = pq.read_table(tmp_path / "o.parquet.bad_rows.parquet").to_pylist()
    originals = users.to_pylist()
    assert dead == [
        {"file": "u.parquet", "row_group": row // 4, "row": row % 4, "reason": reason, **originals[row]}
        for row, reason in reasons.items()
    ]


@pytest.mark.parametrize("dictionary", [False, True])
def test_ids_beyond_int64_are_diverted(tmp_path: Path, model: TinyModel, dictionary: bool) -> None:
    item = model.catalog.item_ids.to_pylist()[0]
    lists = pa.array([[item], [], [item, 2**63], [None], [2**63 - 1]], pa.list_(pa.uint64()))
    if dictionary:
        lists = pa.ListArray.from_arrays(lists.offsets, lists.values.dictionary_encode())
    pq.write_table(pa.table({"user_id": range(5), "item_history": lists}), tmp_path / "u.parquet")
    report = score(model.path, tmp_path / "u.parquet", tmp_path / "o", top_k=3, bad_rows="divert")
    assert (report.counts.rows_out, report.counts.unknown_items) == (3, 1)
    dead = pq.read_table(tmp_path / "o.bad_rows.parquet").to_pylist()
    assert [(row["row"], row["reason"]) for row in dead] == [
        (2, "item_history holds an id beyond int64"),
        (3, "item_history holds a null"),
    ]
    assert dead[0]["item_history"] == [item, 2**63]


@pytest.mark.parametrize("bad_row", [1, 2, 3, 5, 6, 7])
def test_a_malformed_row_is_refused_by_file_row_group_and_row(tmp_path: Path, model: TinyModel, bad_row: int) -> None:
    users, reasons = bad_users(model)
    pq.write_table(users.take([0, 4, 8, 0, bad_row, 4]), tmp_path / "u.parquet", row_group_size=3)
    with pytest.raises(DataError, match=rf"u\.parquet, row group 1, row 1: {reasons[bad_row]}; .*--bad-rows divert"):
        score(model.path, tmp_path / "u.parquet", tmp_path / "o.parquet")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model.onnx", "u.parquet"]


def test_the_first_malformed_row_is_named_with_any_threads(tmp_path: Path, model: TinyModel) -> None:
    users, _ = bad_users(model)
    pq.write_table(users.take([0] * 50 + [2] + [0] * 50 + [1] * 20), tmp_path / "u.parquet", row_group_size=7)
    for threads in (1, 4):
        with pytest.raises(DataError, match="row group 7, row 1: item_history is null"):
            score(model.path, tmp_path / "u.parquet", tmp_path / "o", threads=threads)


def test_an_unknown_item_is_refused_on_request(tmp_path: Path, model: TinyModel) -> None:
    item = model.catalog.item_ids.to_pylist()[0]
    pq.write_table(pa.table({"user_id": [1, 2], "item_history": [[item], [item, -77]]}), tmp_path / "u.parquet")
    report = score(model.path, tmp_path / "u.parquet", tmp_path / "o", top_k=3)
    assert (report.counts.history_items, report.counts.unknown_items) == (3, 1)
    with pytest.raises(DataError, match=r"u\.parquet, row group 0, row 1, column item_history: item id -77 is not in"):
        score(model.path, tmp_path / "u.parquet", tmp_path / "p", unknown_items="error")


def test_a_cold_user_is_refused_on_request(tmp_path: Path, model: TinyModel) -> None:
    item = model.catalog.item_ids.to_pylist()[0]
    pq.write_table(pa.table({"user_id": ["a", "b"], "item_history": [[item], [-77]]}), tmp_path / "u.parquet")
    with pytest.raises(DataError, match="row 1: user_id 'b' has no item that the model knows"):
        score(model.path, tmp_path / "u.parquet", tmp_path / "o", cold_users="error")


def test_ids_of_another_kind_than_the_catalogs_are_refused(tmp_path: Path, model: TinyModel) -> None:
    pq.write_table(pa.table({"user_id": [1], "item_history": [["x"]]}), tmp_path / "u.parquet")
    with pytest.raises(DataError, match="column item_history: found ids of type string, expected int64"):
        score(model.path, tmp_path / "u.parquet", tmp_path / "o")


def test_files_of_a_folder_must_agree(tmp_path: Path, model: TinyModel) -> None:
    folder = tmp_path / "users"
    folder.mkdir()
    pq.write_table(pa.table({"user_id": [1], "item_history": [[1]]}), folder / "a.parquet")
    pq.write_table(pa.table({"user_id": ["1"], "item_history": [[1]]}), folder / "b.parquet")
    with pytest.raises(DataError, match=r"b\.parquet: columns user_id string.*a\.parquet has user_id int64"):
        score(model.path, folder, tmp_path / "o")


def test_an_output_never_replaces_its_input(tmp_path: Path, model: TinyModel, users: pa.Table) -> None:
    pq.write_table(users, tmp_path / "u.parquet")
    before = (tmp_path / "u.parquet").read_bytes()
    with pytest.raises(DataError, match="is one of the input's files"):
        score(model.path, tmp_path / "u.parquet", tmp_path / "u.parquet", overwrite=True)
    assert (tmp_path / "u.parquet").read_bytes() == before


def test_allow_and_deny_lists_report_ids_that_the_catalog_lacks(
    tmp_path: Path, model: TinyModel, users: pa.Table
) -> None:
    pq.write_table(users, tmp_path / "u.parquet")
    items = model.catalog.item_ids.to_pylist()
    pq.write_table(pa.table({"x": [1, 2, 3, 4], "item_id": [*items[:3], -9]}), tmp_path / "allow.parquet")
    (tmp_path / "deny.txt").write_text(f"\ufeff{items[0]}\r\n\n -9 \n-10\n", encoding="utf-8")
    report = score(
        model.path,
        tmp_path / "u.parquet",
        tmp_path / "o",
        allow_items=tmp_path / "allow.parquet",
        deny_items=tmp_path / "deny.txt",
    )
    assert (report.allowed_items, report.unknown_allow_items, report.unknown_deny_items) == (2, 1, 2)
    expect_naive(model, users, tmp_path / "o", top_k=100, allow=set(items[:3]), deny={items[0]})


def test_a_real_data_set_gives_each_user_the_same_list_in_any_company(
    tmp_path: Path, shared_data: Path, rng: np.random.Generator
) -> None:
    interactions = pq.read_table(shared_data / "amazon-toys-brand" / "interactions.parquet")
    users = interactions.group_by("user_id", use_threads=False).aggregate([("item_id", "list")])
    users = users.rename_columns({"item_id_list": "item_history"})
    model = write_model_file(tmp_path / "m.onnx", num_items=400, max_len=50, dim=64)
    # The tiny catalog takes over ids of the real one, so that histories are real in length and repetition.
    known = pa.array(model.catalog.item_ids)
    flat = users["item_history"].combine_chunks()
    renumbered = known.take(pa.array(flat.values.to_numpy() % len(known)))
    users = users.set_column(
        users.column_names.index("item_history"), "item_history", [pa.ListArray.from_arrays(flat.offsets, renumbered)]
    )
    pq.write_table(users, tmp_path / "all.parquet")
    score(model.path, tmp_path / "all.parquet", tmp_path / "all", top_k=20, threads=2)
    chosen = np.sort(rng.permutation(users.num_rows)[:300])
    pq.write_table(users.take(chosen), tmp_path / "some.parquet", row_group_size=41)
    score(model.path, tmp_path / "some.parquet", tmp_path / "some", top_k=20, threads=1)
    assert pq.read_table(tmp_path / "some").equals(pq.read_table(tmp_path / "all").take(chosen))
