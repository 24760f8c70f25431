from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from other_user import run_as_nobody

from ipsrec_onnx.atomic import atomic_file, atomic_folder
from ipsrec_onnx.dataset import open_dataset, read_histories, split_histories
from ipsrec_onnx.errors import DataError


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A dataset folder by hand: users with 0 to 4 interactions."""
    path = tmp_path / "dataset"
    path.mkdir()
    pq.write_table(histories(), path / "histories.parquet")
    items = {
        "item_id": [10, 11, 12, 13],
        "provider_index": pa.array([1, 1, 2, 2], pa.int32()),
        "popularity": [2, 1, 0, 0],
    }
    pq.write_table(pa.table(items), path / "catalog.parquet")
    pq.write_table(pa.table({"provider_id": ["a", "b"]}), path / "providers.parquet")
    (path / "dataset.json").write_text(json.dumps({"format_version": 1, "fingerprint": "f00d"}))
    return path


def histories(list_type=pa.list_) -> pa.Table:
    items = [[], [10], [11, 12], [13, 10, 11], [10, 11, 12, 13]]
    providers = [["a" if item < 12 else "b" for item in history] for history in items]
    return pa.table(
        {
            "user_id": [1, 2, 3, 4, 5],
            "item_history": pa.array(items, list_type(pa.int64())),
            "provider_history": pa.array(providers, list_type(pa.large_string())),
        }
    )


def naive_split(table: pa.Table, split: str) -> list[dict]:
    rows = []
    for row in table.to_pylist():
        left_out = 1 if split == "test" else 2
        count = len(row["item_history"])
        if count < (3 if split == "train" else left_out):
            continue
        history = {key: row[key][: count - left_out] for key in ("item_history", "provider_history")}
        target = {} if split == "train" else {"target_item": row["item_history"][count - left_out]}
        rows.append({"user_id": row["user_id"]} | history | target)
    return rows


def test_open_and_read(folder):
    dataset = open_dataset(folder)
    assert dataset.fingerprint == "f00d"
    assert dataset.catalog.num_items == 4
    assert dataset.catalog.item_provider.tolist() == [0, 1, 1, 2, 2]
    assert read_histories(dataset).equals(histories())


@pytest.mark.parametrize("split", ["train", "valid", "test"])
@pytest.mark.parametrize("list_type", [pa.list_, pa.large_list], ids=["list", "large_list"])
def test_split_is_by_position_from_the_end(split, list_type):
    table = histories(list_type)
    found = split_histories(table, split)
    assert found.to_pylist() == naive_split(table, split)
    assert found.schema.field("item_history").type == table.schema.field("item_history").type


def test_test_history_of_one_interaction_is_empty(folder):
    rows = split_histories(histories(), "test").to_pylist()
    assert rows[0] == {"user_id": 2, "item_history": [], "provider_history": [], "target_item": 10}
    assert split_histories(histories(), "valid").to_pylist()[0]["item_history"] == []


@pytest.mark.parametrize("split", ["train", "valid", "test"])
def test_split_of_slices_and_chunks_is_that_of_the_whole(split):
    table = histories()
    expected = naive_split(table, split)
    assert split_histories(pa.concat_tables([table.slice(0, 2), table.slice(2)]), split).to_pylist() == expected
    assert split_histories(table.slice(1), split).to_pylist() == expected
    uneven = table.set_column(2, "provider_history", pa.concat_tables([histories()] * 2)["provider_history"].slice(5))
    assert split_histories(uneven, split).to_pylist() == expected


@pytest.mark.parametrize("split", ["train", "valid", "test"])
def test_split_of_nobody_has_the_same_columns(split):
    found = split_histories(histories().slice(0, 0), split)
    assert found.num_rows == 0
    assert found.schema == split_histories(histories(), split).schema
    no_chunks = histories().schema.empty_table()
    assert split_histories(no_chunks, split).schema == found.schema


def test_split_against_naive_on_random_histories(rng):
    lengths = rng.integers(0, 6, 500)
    items = [rng.integers(0, 50, length).tolist() for length in lengths]
    columns = {"user_id": np.arange(500), "item_history": items, "provider_history": items}
    for split in ("train", "valid", "test"):
        table = pa.table(columns)
        assert split_histories(table, split).to_pylist() == naive_split(table, split)


def test_unknown_split_is_refused():
    with pytest.raises(ValueError, match="'dev', expected one of"):
        split_histories(histories(), "dev")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "is broken"),
        ("[]", "is broken"),
        ('{"format_version": 1}', "is broken"),
        ('{"format_version": 2, "fingerprint": ""}', "format_version 2, this version reads 1; upgrade ipsrec-onnx"),
        ('{"format_version": 0, "fingerprint": ""}', "prepare it again"),
        ("[" * 100_000, "is broken"),
    ],
)
def test_broken_or_other_dataset_json_is_refused(folder, content, message):
    (folder / "dataset.json").write_text(content)
    with pytest.raises(DataError, match=message):
        open_dataset(folder)


def test_missing_and_broken_files_are_refused(folder, tmp_path):
    with pytest.raises(DataError, match=r"is no dataset that can be read: dataset\.json: there is no such file"):
        open_dataset(tmp_path / "elsewhere")
    dataset = open_dataset(folder)
    pq.write_table(histories().drop_columns("provider_history"), folder / "histories.parquet")
    with pytest.raises(DataError, match="column provider_history is missing"):
        read_histories(dataset)
    (folder / "histories.parquet").write_bytes(b"PAR1")
    with pytest.raises(DataError, match=r"histories\.parquet cannot be read as Parquet"):
        read_histories(dataset)
    (folder / "catalog.parquet").unlink()
    with pytest.raises(DataError, match=r"catalog\.parquet: there is no such file, so the dataset is not whole"):
        open_dataset(folder)


def with_column(name, values, arrow_type):
    table = histories()
    return table.set_column(table.column_names.index(name), name, pa.array(values, arrow_type))


INTS, TEXTS = pa.list_(pa.int64()), pa.list_(pa.string())
WHOLE = {name: histories()[name].to_pylist() for name in ("item_history", "provider_history")}


@pytest.mark.parametrize(
    ("table", "message"),
    [
        (
            with_column("provider_history", [*WHOLE["provider_history"][:3], ["b", "a"], ["a"] * 4], TEXTS),
            "row 3, user_id 4: 3 items, 2 providers, expected as many",
        ),
        (
            with_column("provider_history", [*WHOLE["provider_history"][:3], ["b", "a"], ["a"] * 5], TEXTS),
            "row 3, user_id 4: 3 items, 2 providers",  # as many in all
        ),
        (with_column("item_history", [None, *WHOLE["item_history"][1:]], INTS), "column item_history has a null"),
        (with_column("provider_history", [None] * 5, TEXTS), "column provider_history has a null"),
        (with_column("item_history", [[], [None], *WHOLE["item_history"][2:]], INTS), "item_history has a null"),
        (with_column("item_history", [1, 2, 3, 4, 5], pa.int64()), "column item_history is int64, expected lists"),
        (with_column("provider_history", list("abcde"), pa.string()), "column provider_history is string, expected"),
        (with_column("item_history", [{}] * 5, pa.struct([("a", pa.int64())])), "item_history is struct"),
    ],
)
def test_histories_that_do_not_fit_each_other_are_refused(folder, table, message):
    pq.write_table(table, folder / "histories.parquet", row_group_size=2)
    with pytest.raises(DataError, match=f"histories.parquet.*{message}"):
        read_histories(open_dataset(folder))


def test_histories_of_nobody_and_of_large_lists_can_be_read(folder):
    for table in (histories().slice(0, 0), histories(pa.large_list)):
        pq.write_table(table, folder / "histories.parquet")
        assert read_histories(open_dataset(folder)).num_rows == table.num_rows


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody else")
@pytest.mark.parametrize("name", ["dataset.json", "catalog.parquet", "."])
def test_what_may_not_be_read_is_refused(folder, name):
    (folder / name).chmod(0)
    program = f"from ipsrec_onnx.dataset import open_dataset\nopen_dataset({str(folder)!r})"
    done = run_as_nobody(program, folder)
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("ipsrec_onnx.errors.DataError: ") and "it cannot be read (Permission denied)" in last


# Outputs that are there whole or not at all


def test_file_appears_when_whole(tmp_path):
    target = tmp_path / "out.txt"
    with atomic_file(target) as temporary:
        temporary.write_text("half")
        assert not target.exists()
        assert temporary.parent == tmp_path
    assert target.read_text() == "half"
    assert list(tmp_path.iterdir()) == [target]


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_failure_leaves_the_old_file(tmp_path, error):
    target = tmp_path / "out.txt"
    target.write_text("old")
    with pytest.raises(error), atomic_file(target, overwrite=True) as temporary:
        temporary.write_text("half")
        raise error
    assert target.read_text() == "old"
    assert list(tmp_path.iterdir()) == [target]


def test_failure_leaves_no_folder(tmp_path):
    with pytest.raises(RuntimeError), atomic_folder(tmp_path / "out", marker="m") as temporary:
        (temporary / "sub").mkdir()
        (temporary / "sub" / "part").touch()
        raise RuntimeError
    assert not list(tmp_path.iterdir())


def test_existing_output_needs_overwrite(tmp_path):
    target = tmp_path / "out"
    target.write_text("old")
    with pytest.raises(DataError, match=r"exists already; .*--overwrite"), atomic_file(target):
        pass
    with pytest.raises(DataError, match="is a file or a link"), atomic_folder(target, marker="m", overwrite=True):
        pass
    with atomic_file(target, overwrite=True) as temporary:
        temporary.write_text("new")
    assert target.read_text() == "new"


def test_output_made_by_somebody_else_meanwhile_is_kept(tmp_path):
    target = tmp_path / "out"
    with pytest.raises(DataError, match="exists already"), atomic_file(target) as temporary:
        temporary.write_text("mine")
        target.write_text("theirs")
    assert target.read_text() == "theirs"
    assert list(tmp_path.iterdir()) == [target]


def test_folder_is_replaced_only_by_one_of_its_kind(tmp_path):
    target = tmp_path / "out"
    target.mkdir()
    with pytest.raises(DataError, match="is a folder"), atomic_file(target, overwrite=True):
        pass
    with atomic_folder(target, marker="m", overwrite=True) as temporary:  # an empty folder may go
        (temporary / "m").write_text("first")
    with atomic_folder(target, marker="m", overwrite=True) as temporary:
        (temporary / "m").write_text("second")
    assert (target / "m").read_text() == "second"
    with pytest.raises(DataError, match="has no other, so it is not replaced"):
        atomic_folder(target, marker="other", overwrite=True).__enter__()
    assert list(tmp_path.iterdir()) == [target]


def test_parent_that_cannot_take_the_output_is_named(tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    with pytest.raises(DataError, match=r"folder .*nowhere is not there; make the folder"):
        atomic_file(tmp_path / "nowhere" / "out").__enter__()
    with pytest.raises(DataError, match=r"folder .*file is a file"):
        atomic_file(tmp_path / "file" / "out").__enter__()
    monkeypatch.setattr("os.access", lambda *_: False)  # tests may run as root, who may write anywhere
    with pytest.raises(DataError, match="cannot be written to"):
        atomic_folder(tmp_path / "out", marker="m").__enter__()
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_full_disk_is_one_readable_line(tmp_path):
    with pytest.raises(DataError, match=r"output .*out: no space is left; make room"), atomic_file(tmp_path / "out"):
        raise OSError(28, "No space left on device")
    assert not list(tmp_path.iterdir())
    with pytest.raises(FileNotFoundError), atomic_file(tmp_path / "out"):
        (tmp_path / "an input that is not there").read_text()
