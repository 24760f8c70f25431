from __future__ import annotations

import datetime
import json
import tempfile
from pathlib import Path

import naive_prepare as naive
import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ipsrec_onnx.dataset import open_dataset, read_histories
from ipsrec_onnx.errors import DataError
from ipsrec_train.codes import CodedInteractions
from ipsrec_train.history_writer import write_histories
from ipsrec_train.prepare import PrepareReport, prepare

EVERYTHING = {"min_user_interactions": 1, "min_item_interactions": 1}


def interactions(*rows: tuple, names: tuple[str, ...] = ("user_id", "item_id", "provider_id", "timestamp")) -> pa.Table:
    return pa.table([list(column) for column in zip(*rows, strict=True)], names=list(names))


def prepared(tmp_path: Path, table: pa.Table, **options) -> tuple[list[dict], PrepareReport]:
    """Prepare a table; the histories as plain rows, and the report."""
    pq.write_table(table, tmp_path / "interactions.parquet")
    report = prepare(tmp_path / "interactions.parquet", tmp_path / "dataset", overwrite=True, **options)
    return read_histories(open_dataset(tmp_path / "dataset")).to_pylist(), report


def refused(tmp_path: Path, table: pa.Table, **options) -> str:
    """Prepare a table that must be refused; the message. Nothing may be left behind."""
    with pytest.raises(DataError) as error:
        prepared(tmp_path, table, **options)
    assert [path.name for path in tmp_path.iterdir()] == ["interactions.parquet"]
    return str(error.value)


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


GOOD = interactions((1, 10, 7, 3), (1, 11, 7, 1), (2, 10, 7, 2))


# The whole, against the naive twin


@st.composite
def inputs(draw: st.DrawFn) -> tuple[list[naive.Interaction], dict[str, int | None]]:
    pairs = st.tuples(st.integers(0, 7), st.integers(0, 7), st.integers(0, 5))
    drawn = draw(st.lists(pairs, min_size=1, max_size=60))
    rows = [naive.Interaction(user, item, item % 3, time) for user, item, time in drawn]
    options: dict[str, int | None] = {}
    for what in ("user", "item"):
        minimum = draw(st.integers(1, 4))
        options[f"min_{what}_interactions"] = minimum
        options[f"max_{what}_interactions"] = draw(st.none() | st.integers(minimum, 8))
    return rows, options


@settings(max_examples=60, deadline=None)
@given(inputs())
def test_dataset_is_that_of_the_naive_twin(drawn):
    rows, options = drawn
    expected, rounds = naive.k_core(
        rows,
        (options["min_user_interactions"], options["max_user_interactions"]),
        (options["min_item_interactions"], options["max_item_interactions"]),
    )
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if not expected:
            assert "nothing is left" in refused(folder, interactions(*rows), **options)
            return
        found, report = prepared(folder, interactions(*rows), **options)
        dataset = open_dataset(folder / "dataset")
    assert found == naive.histories(expected)
    assert report.k_core_rounds == rounds
    assert report.after.interactions == len(expected)
    catalog = dataset.catalog
    providers = [None, *catalog.provider_ids.to_pylist()]
    assert naive.catalog(expected) == [
        (item, providers[index], popularity)
        for item, index, popularity in zip(
            catalog.item_ids.to_pylist(), catalog.item_provider[1:], catalog.popularity[1:], strict=True
        )
    ]


def test_nothing_more_to_remove_from_what_is_left(tmp_path, small_interactions):
    histories, report = prepared(tmp_path, small_interactions, min_user_interactions=25, min_item_interactions=10)
    assert report.k_core_rounds > 1
    users = [len(row["item_history"]) for row in histories]
    items = np.unique(np.concatenate([row["item_history"] for row in histories]), return_counts=True)[1]
    assert min(users) >= 25
    assert items.min() >= 10


def test_everything_stays_with_bounds_of_one(tmp_path, small_interactions):
    _, report = prepared(tmp_path, small_interactions, **EVERYTHING)
    assert report.before == report.after
    assert report.k_core_rounds == 0


# Order


def test_equal_times_keep_the_order_of_the_file(tmp_path):
    table = interactions(*[(1, item, 1, 5) for item in (30, 10, 20)], (1, 40, 1, 4))
    histories, _ = prepared(tmp_path, table, **EVERYTHING)
    assert histories[0]["item_history"] == [40, 30, 10, 20]


def test_equal_times_keep_the_order_of_the_file_in_a_large_input(tmp_path, rng):
    items = rng.permutation(300_000)
    table = pa.table({"user_id": items * 0, "item_id": items, "provider_id": items * 0, "timestamp": items * 0})
    pq.write_table(table, tmp_path / "interactions.parquet", row_group_size=1_000)
    prepare(tmp_path / "interactions.parquet", tmp_path / "dataset", **EVERYTHING)
    histories = read_histories(open_dataset(tmp_path / "dataset"))
    assert np.array_equal(histories["item_history"].combine_chunks().values, items)


def test_equal_times_keep_the_order_of_the_names_of_several_files(tmp_path):
    folder = tmp_path / "parts"
    (folder / "later").mkdir(parents=True)
    for name, item in (("b.parquet", 2), ("a.parquet", 3), ("later/a.parquet", 1)):
        pq.write_table(interactions((1, item, 1, 5)), folder / name)
    (folder / "_SUCCESS").touch()
    (folder / ".hidden.parquet").touch()
    prepare(folder, tmp_path / "dataset", **EVERYTHING)
    histories = read_histories(open_dataset(tmp_path / "dataset"))
    assert histories["item_history"].to_pylist() == [[3, 2, 1]]


def test_columns_of_several_files_are_read_by_name(tmp_path):
    for kind, write in (("csv", pa.csv.write_csv), ("parquet", pq.write_table)):
        folder = tmp_path / kind
        folder.mkdir()
        write(interactions((1, 10, 7, 5)), folder / f"a.{kind}")
        other = interactions((5, "x", 7, 11, 1), names=("timestamp", "note", "provider_id", "item_id", "user_id"))
        write(other, folder / f"b.{kind}")
        prepare(folder, tmp_path / f"{kind}-dataset", **EVERYTHING)
        histories = read_histories(open_dataset(tmp_path / f"{kind}-dataset"))
        assert histories.to_pylist() == [{"user_id": 1, "item_history": [10, 11], "provider_history": [7, 7]}]


@pytest.mark.parametrize(
    "times",
    [
        [datetime.date(2020, 1, 2), datetime.date(2020, 1, 1), datetime.date(2021, 1, 1)],
        [datetime.datetime(2020, 1, 1, 2), datetime.datetime(2020, 1, 1, 1), datetime.datetime(2020, 1, 1, 3)],
        [0.2, -0.5, 1e9],
        pa.array([2, 1, 2**62], pa.uint64()),
        pa.array([2, 1, 3], pa.timestamp("us", tz="Europe/Rome")),
        pa.array([-1, -2, 3], pa.int8()),
    ],
    ids=["date", "datetime", "float", "uint64", "zoned", "int8"],
)
@pytest.mark.parametrize("kind", ["parquet", "csv"])
def test_times_of_every_kind(tmp_path, times, kind):
    table = GOOD.set_column(3, "timestamp", pa.array(times)).set_column(0, "user_id", pa.array([1, 1, 1]))
    path = tmp_path / f"interactions.{kind}"
    if kind == "csv":
        pa.csv.write_csv(table.set_column(1, "item_id", pa.array([20, 10, 30])), path)
    else:
        pq.write_table(table.set_column(1, "item_id", pa.array([20, 10, 30])), path)
    prepare(path, tmp_path / "dataset", **EVERYTHING)
    assert read_histories(open_dataset(tmp_path / "dataset"))["item_history"].to_pylist() == [[10, 20, 30]]


def test_times_beyond_int64_are_ordered(tmp_path):
    times = pa.array([2**63 + 1, 2**63, 2**63 + 2], pa.uint64())
    table = GOOD.set_column(3, "timestamp", times).set_column(0, "user_id", pa.array([1, 1, 1]))
    pq.write_table(table.set_column(1, "item_id", pa.array([20, 10, 30])), tmp_path / "interactions.parquet")
    prepare(tmp_path / "interactions.parquet", tmp_path / "dataset", **EVERYTHING)
    assert read_histories(open_dataset(tmp_path / "dataset"))["item_history"].to_pylist() == [[10, 20, 30]]


# Ids


def test_string_ids_and_other_column_names(tmp_path):
    table = interactions(
        ("ü", "b", "shop", 2), ("ü", "a", "shop", 1), ("a", "b", "shop", 1), names=("who", "what", "seller", "day")
    )
    histories, _ = prepared(
        tmp_path,
        table,
        user_column="who",
        item_column="what",
        provider_column="seller",
        timestamp_column="day",
        **EVERYTHING,
    )
    assert histories == [
        {"user_id": "a", "item_history": ["b"], "provider_history": ["shop"]},
        {"user_id": "ü", "item_history": ["a", "b"], "provider_history": ["shop", "shop"]},
    ]
    assert open_dataset(tmp_path / "dataset").info["id_types"] == dict.fromkeys(
        ("user_id", "item_id", "provider_id"), "string"
    )


@pytest.mark.parametrize("arrow_type", [pa.int32(), pa.uint64(), pa.dictionary(pa.int32(), pa.string()), pa.string()])
def test_ids_become_int64_or_string(tmp_path, arrow_type):
    ids = pa.array(["1", "2", "1"])
    ids = ids.dictionary_encode() if pa.types.is_dictionary(arrow_type) else ids.cast(arrow_type)
    histories, _ = prepared(tmp_path, GOOD.set_column(0, "user_id", ids), **EVERYTHING)
    expected = [1, 2] if pa.types.is_integer(arrow_type) else ["1", "2"]
    assert [row["user_id"] for row in histories] == expected


def test_csv_ids_with_leading_zeros_stay_strings(tmp_path):
    (tmp_path / "i.csv").write_text("user_id,item_id,provider_id,timestamp\n007,1,-3,1\n12,+1,0,2\n")
    prepare(tmp_path / "i.csv", tmp_path / "dataset", **EVERYTHING)
    dataset = open_dataset(tmp_path / "dataset")
    assert read_histories(dataset)["user_id"].to_pylist() == ["007", "12"]
    assert dataset.catalog.item_ids.to_pylist() == ["1", "+1"]
    assert dataset.catalog.provider_ids.to_pylist() == [-3, 0]


# One item, two providers

TORN = interactions(
    (1, 10, 7, 5), (2, 10, 8, 9), (1, 11, 7, 1), (2, 10, 6, 9), (3, 10, 8, 2), (3, 12, 5, 2), (4, 12, 4, 1)
)


def test_item_with_two_providers_is_named(tmp_path):
    message = refused(tmp_path, TORN, **EVERYTHING)
    assert "item 10 has two providers, 6 and 8 (2 such items in all)" in message
    assert "--on-provider-conflict last" in message


def test_last_takes_the_latest_provider_everywhere(tmp_path):
    histories, report = prepared(tmp_path, TORN, on_provider_conflict="last", **EVERYTHING)
    assert report.provider_conflicts == 2
    found = {
        item: provider
        for row in histories
        for item, provider in zip(row["item_history"], row["provider_history"], strict=True)
    }
    assert found == naive.latest_provider([naive.Interaction(*row.values()) for row in TORN.to_pylist()])
    assert found == {10: 6, 11: 7, 12: 5}
    assert open_dataset(tmp_path / "dataset").catalog.provider_ids.to_pylist() == [5, 6, 7]


# Fingerprint


def test_fingerprint_is_the_same_however_the_data_was_stored(tmp_path, small_interactions, rng):
    pq.write_table(small_interactions, tmp_path / "one.parquet")
    pq.write_table(small_interactions, tmp_path / "groups.parquet", row_group_size=7, compression="none")
    pa.csv.write_csv(small_interactions, tmp_path / "text.csv")
    (tmp_path / "parts").mkdir()
    for part, start in enumerate(range(0, 2_000, 300)):
        pq.write_table(small_interactions.slice(start, 300), tmp_path / "parts" / f"{part}.parquet")
    # Another order of the rows is the same data too, as long as rows of one user and time keep theirs.
    order = np.argsort(small_interactions["user_id"].to_numpy(), kind="stable")
    pq.write_table(small_interactions.take(order).select([3, 1, 0, 2]), tmp_path / "sorted.parquet")

    fingerprints = {
        name: prepare(tmp_path / name, tmp_path / f"{name}-dataset").fingerprint
        for name in ("one.parquet", "groups.parquet", "text.csv", "parts", "sorted.parquet")
    }
    assert len(set(fingerprints.values())) == 1, fingerprints


def test_fingerprint_changes_with_one_row(tmp_path):
    rows = [(1, 10, 7, 3), (1, 11, 7, 1), (2, 10, 7, 2)]
    changed = {
        "as it is": rows,
        "another item": [*rows[:2], (2, 11, 7, 2)],
        "another user": [*rows[:2], (3, 10, 7, 2)],
        "another provider": [(user, item, 8, time) for user, item, _, time in rows],
        "another order": [(1, 10, 7, 0), *rows[1:]],
        "one row more": [*rows, rows[0]],
        "string users": [(str(user), item, provider, time) for user, item, provider, time in rows],
        "split otherwise": [(1, 10, 7, 3), (2, 11, 7, 1), (2, 10, 7, 2)],
    }
    fingerprints = {
        name: prepared(tmp_path, interactions(*rows), **EVERYTHING)[1].fingerprint for name, rows in changed.items()
    }
    assert len(set(fingerprints.values())) == len(changed), fingerprints


def test_same_bytes_every_time(tmp_path, small_interactions):
    prepared(tmp_path, small_interactions)
    first = contents(tmp_path / "dataset")
    prepared(tmp_path, small_interactions)
    assert contents(tmp_path / "dataset") == first
    assert set(first) == {"dataset.json", "histories.parquet", "catalog.parquet", "providers.parquet"}


def test_histories_do_not_depend_on_the_chunk(tmp_path, small_interactions, monkeypatch):
    whole, report = prepared(tmp_path, small_interactions)
    for size in (1, 100, 700):
        monkeypatch.setitem(write_histories.__kwdefaults__, "chunk_interactions", size)
        histories, again = prepared(tmp_path, small_interactions)
        assert histories == whole
        assert again.fingerprint == report.fingerprint


def test_batches_give_every_row(tmp_path, monkeypatch):
    monkeypatch.setattr("ipsrec_train.codes.BATCH_ROWS", 3)
    pq.write_table(
        pa.table({"user": pa.array(range(10), pa.uint32()), "item": pa.array(range(10), pa.uint32())}), tmp_path / "c"
    )
    none = pa.array([], pa.int64())
    batches = list(CodedInteractions(tmp_path / "c", none, none, none, 10).user_item_batches())
    assert np.concatenate([user for user, _ in batches]).tolist() == list(range(10))
    assert len(batches) == 4


# Refusals: each names the place and how to mend it


@pytest.mark.parametrize("column", ["user_id", "item_id", "provider_id", "timestamp"])
@pytest.mark.parametrize("kind", ["parquet", "csv"])
def test_null_is_refused_with_its_place(tmp_path, column, kind):
    place = GOOD.column_names.index(column)
    values = GOOD[column].to_pylist()
    table = GOOD.set_column(place, column, pa.array([values[0], values[1], None]))
    folder = tmp_path / "parts"
    folder.mkdir()
    write = pq.write_table if kind == "parquet" else pa.csv.write_csv
    write(GOOD, folder / f"0.{kind}")
    write(table, folder / f"1.{kind}")
    with pytest.raises(DataError, match=rf"1\.{kind}, column {column}, row 2: null, .*1 null in all.*remove"):
        prepare(folder, tmp_path / "dataset")
    assert list(tmp_path.iterdir()) == [folder]


def test_missing_column_is_named_with_the_option(tmp_path):
    message = refused(tmp_path, GOOD.drop_columns("provider_id"))
    assert "column provider_id is missing, found ['user_id', 'item_id', 'timestamp']" in message
    assert "--provider-column" in message


@pytest.mark.parametrize(
    ("column", "values"),
    [
        ("user_id", [1.0, 2.0, 3.0]),
        ("item_id", [True, False, True]),
        ("provider_id", [[1], [2], [3]]),
        ("timestamp", ["a", "b", "c"]),
        ("timestamp", [True, False, True]),
    ],
)
def test_wrong_type_is_refused(tmp_path, column, values):
    table = GOOD.set_column(GOOD.column_names.index(column), column, pa.array(values))
    assert f"column {column} is " in refused(tmp_path, table)


def test_id_beyond_int64_is_refused(tmp_path):
    table = GOOD.set_column(1, "item_id", pa.array([1, 2, 2**63], pa.uint64()))
    assert "9223372036854775808" in refused(tmp_path, table)


def test_nan_time_is_refused_with_its_place(tmp_path):
    message = refused(tmp_path, GOOD.set_column(3, "timestamp", pa.array([1.0, float("nan"), 2.0])))
    assert "column timestamp, row 1: not a number" in message


def test_no_rows_are_refused(tmp_path):
    assert "no rows" in refused(tmp_path, GOOD.slice(0, 0))


def test_nothing_left_is_refused(tmp_path):
    assert "nothing is left of 3 interactions" in refused(tmp_path, GOOD)


def test_impossible_bounds_are_refused(tmp_path):
    assert "max_user_interactions is 3, below" in refused(tmp_path, GOOD, max_user_interactions=3)
    assert "min_item_interactions is 0" in refused(tmp_path, GOOD, min_item_interactions=0)


def test_one_column_for_two_uses_is_refused(tmp_path):
    assert "two uses" in refused(tmp_path, GOOD, provider_column="item_id")


def test_types_that_differ_between_files_are_refused(tmp_path):
    folder = tmp_path / "parts"
    folder.mkdir()
    pq.write_table(GOOD, folder / "0.parquet")
    pq.write_table(GOOD.set_column(0, "user_id", pa.array(["1", "2", "3"])), folder / "1.parquet")
    with pytest.raises(DataError, match=r"1\.parquet: column user_id is String, but Int64 in .*0\.parquet"):
        prepare(folder, tmp_path / "dataset")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("i.parquet", b"", r"i\.parquet is empty \(0 bytes\)"),
        ("i.csv", b"", r"i\.csv is empty \(0 bytes\)"),
        ("i.parquet", b"PAR1 this is none", "cannot be read"),
        ("i.csv", b"user_id,item_id,provider_id,timestamp\n", "no rows"),
        ("i.csv", b"user_id,item_id,provider_id,timestamp\n1,2,3,4,5,6\n", "cannot be read"),
        ("i.csv", b"user_id,item_id,provider_id,timestamp\n1,2,3,\xff\xfe\n", "cannot be read"),
        ("i.csv", b"user_id,item_id,provider_id,timestamp\n1,2,3,soon\n", "column timestamp has values"),
        ("i.csv", b"user_id,item_id,provider_id,timestamp\n1,2,3,4\n1,2,3,2020-01-01\n", "column timestamp has values"),
        ("i.json", b"{}", "ends in none of .parquet"),
    ],
)
def test_broken_file_is_refused(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=message) as error:
        prepare(tmp_path / name, tmp_path / "dataset")
    assert "\n" not in str(error.value)
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_truncated_parquet_is_refused(tmp_path, small_interactions):
    pq.write_table(small_interactions, tmp_path / "i.parquet")
    whole = (tmp_path / "i.parquet").read_bytes()
    (tmp_path / "i.parquet").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DataError, match=r"i\.parquet cannot be read"):
        prepare(tmp_path / "i.parquet", tmp_path / "dataset")


def test_damaged_pages_are_refused_and_leave_nothing(tmp_path, small_interactions):
    pq.write_table(small_interactions, tmp_path / "i.parquet")
    damaged = bytearray((tmp_path / "i.parquet").read_bytes())
    damaged[4:400] = b"\xff" * 396
    (tmp_path / "i.parquet").write_bytes(damaged)
    with pytest.raises(DataError, match=r"i\.parquet cannot be read"):
        prepare(tmp_path / "i.parquet", tmp_path / "dataset")
    assert [path.name for path in tmp_path.iterdir()] == ["i.parquet"]


def test_missing_input_and_folders_without_input_are_refused(tmp_path):
    with pytest.raises(DataError, match="is not there"):
        prepare(tmp_path / "none.parquet", tmp_path / "dataset")
    (tmp_path / "parts").mkdir()
    with pytest.raises(DataError, match=r"no \.parquet or \.csv file"):
        prepare(tmp_path / "parts", tmp_path / "dataset")
    (tmp_path / "parts" / "a.csv").write_text("user_id")
    (tmp_path / "parts" / "a.parquet").write_text("user_id")
    with pytest.raises(DataError, match="both Parquet and CSV"):
        prepare(tmp_path / "parts", tmp_path / "dataset")


def test_existing_output_is_refused_and_kept(tmp_path, small_interactions):
    prepared(tmp_path, small_interactions)
    before = contents(tmp_path / "dataset")
    with pytest.raises(DataError, match=r"exists already; .*--overwrite"):
        prepare(tmp_path / "interactions.parquet", tmp_path / "dataset", **EVERYTHING)
    assert contents(tmp_path / "dataset") == before


def test_failed_overwrite_keeps_the_old_dataset(tmp_path, small_interactions):
    prepared(tmp_path, small_interactions)
    before = contents(tmp_path / "dataset")
    with pytest.raises(DataError, match="nothing is left"):
        prepared(tmp_path, small_interactions, min_user_interactions=10_000)
    assert contents(tmp_path / "dataset") == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["dataset", "interactions.parquet"]


def test_interrupt_leaves_nothing(tmp_path, small_interactions):
    def interrupt(stage: str) -> None:
        if stage.startswith("ordering"):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        prepared(tmp_path, small_interactions, report_stage=interrupt)
    assert [path.name for path in tmp_path.iterdir()] == ["interactions.parquet"]


def test_input_and_output_inside_each_other_are_refused(tmp_path, small_interactions):
    prepared(tmp_path, small_interactions)
    with pytest.raises(DataError, match="which would be replaced"):
        prepare(tmp_path / "dataset" / "histories.parquet", tmp_path / "dataset", overwrite=True)
    with pytest.raises(DataError, match="whose files are read"):
        prepare(tmp_path, tmp_path / "another")


# Real data


def test_toys_stay_as_they_are(shared_data, tmp_path):
    source = shared_data / "amazon-toys-brand" / "interactions.parquet"
    report = prepare(source, tmp_path / "toys")
    counts = {"users": 19_412, "items": 11_924, "providers": 3_033, "interactions": 167_597}
    info = json.loads((tmp_path / "toys" / "dataset.json").read_text())
    assert info["before"] == info["after"] == counts
    assert report.k_core_rounds == 0
    # The source is sorted by user and time, so its columns are the histories end to end.
    histories = read_histories(open_dataset(tmp_path / "toys"))
    expected = pl.read_parquet(source)
    for column in ("item", "provider"):
        values = histories[f"{column}_history"].combine_chunks().values
        assert values.to_pylist() == expected[f"{column}_id"].to_list()


def test_grocery_five_core(shared_data, tmp_path):
    report = prepare(shared_data / "grocery-manufacturer" / "interactions.parquet", tmp_path / "grocery")
    after = report.after
    assert (after.users, after.items, after.providers, after.interactions) == (2_446, 28_008, 2_583, 1_375_309)
    assert report.k_core_rounds == 3
    dataset = open_dataset(tmp_path / "grocery")
    assert dataset.catalog.popularity.sum() == after.interactions - 2 * after.users
