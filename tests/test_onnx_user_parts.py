"""How the users of a job are cut into parts, read, and put into the batches of a cluster's workers."""

from __future__ import annotations

import heapq
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.fs as pafs
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ipsrec_onnx import user_chunks
from ipsrec_onnx.user_chunks import read_chunks
from ipsrec_onnx.user_parts import PART_ROWS, UserPart, cut_into_batches, plan_parts, users_of_a_part
from ipsrec_onnx.users import UserColumns, Users, UsersFile, open_users


def users_of(*num_rows: int) -> Users:
    """Users files of which nothing counts but how many rows they have."""
    files = [UsersFile(str(number), str(number), "", rows, (), 0, None, "") for number, rows in enumerate(num_rows)]
    return Users("users", pafs.LocalFileSystem(), files, UserColumns("u", "i", None, None), pa.schema([]))


@pytest.mark.parametrize(
    ("num_rows", "part_rows", "num_parts"),
    [
        (0, 8_192, 1),
        (1, 8_192, 1),
        (8_192, 8_192, 1),
        (8_193, 8_192, 2),
        (64 * 8_192, 8_192, 64),
        (64 * 8_192 + 1, 16_384, 33),
        (885_760, 16_384, 55),
        (1_771_520, 32_768, 55),
        (64 * PART_ROWS, PART_ROWS, 64),
        (10**9, PART_ROWS, 15_259),
    ],
)
def test_a_job_has_parts_enough_for_many_workers_and_none_above_the_most(
    num_rows: int, part_rows: int, num_parts: int
) -> None:
    assert users_of_a_part(users_of(num_rows), None) == part_rows
    parts = plan_parts(users_of(num_rows))
    assert len(parts) == num_parts and sum(part.num_rows for part in parts) == num_rows


def test_the_size_of_parts_is_that_of_all_files_together_or_what_is_asked_for() -> None:
    users = users_of(300_000, 0, 300_000, 5)
    assert [(part.file, part.num_rows) for part in plan_parts(users)] == [
        *[(0, 16_384)] * 18, (0, 5_088), *[(2, 16_384)] * 18, (2, 5_088), (3, 5),
    ]  # fmt: skip
    assert [part.num_rows for part in plan_parts(users_of(7), 3)] == [3, 3, 1]
    assert users_of_a_part(users_of(7), 10**6) == 10**6


@pytest.mark.parametrize(
    ("num_parts", "workers", "sizes"),
    [
        (1, 1, [1]),
        (1, 9, [1]),
        (40, 1, [16, 16, 8]),  # nobody waits for the only worker
        (54, 2, [14, 10, 8, 6, 4, 3, 3, 2, 1, 1, 1, 1]),
        (9, 4, [2] + [1] * 7),
        (200, 2, [16] * 9 + [14, 11, 8, 6, 5, 3, 3, 2, 1, 1, 1, 1]),
    ],
)
def test_batches_are_large_at_first_and_single_parts_at_last(num_parts: int, workers: int, sizes: list[int]) -> None:
    batches = list(cut_into_batches(num_parts, workers))
    assert [len(batch) for batch in batches] == sizes
    assert [place for batch in batches for place in batch] == list(range(num_parts))


@given(num_parts=st.integers(1, 2_000), workers=st.integers(2, 40))
def test_workers_of_one_speed_are_done_within_one_part_of_each_other(num_parts: int, workers: int) -> None:
    busy = [0] * workers
    for batch in cut_into_batches(num_parts, workers):
        heapq.heapreplace(busy, busy[0] + len(batch))
    assert max(busy) - min(busy) <= 1
    assert sum(busy) == num_parts


@pytest.mark.parametrize(
    ("parts", "rows_read"),
    [
        ([UserPart(0, 0, 100)], 100),
        ([UserPart(0, 130, 100)], 250),  # from the group's first row on, in batches of 50
        ([UserPart(0, 0, 10), UserPart(0, 420, 80)], 500),
        ([UserPart(0, 550, 50)], 100),  # the first group is skipped
        ([UserPart(0, 100, 100), UserPart(0, 500, 100)], 300),
    ],
)
def test_of_a_row_group_nothing_is_read_behind_the_last_row_that_is_wanted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, parts: list[UserPart], rows_read: int
) -> None:
    table = pa.table({"user_id": range(1_000), "item_history": pa.array([[row] for row in range(1_000)])})
    pq.write_table(table, tmp_path / "u.parquet", row_group_size=500)
    users = open_users(tmp_path / "u.parquet", UserColumns("user_id", "item_history", None, None))
    real, read = user_chunks._read_row_group, list[int]()

    def counted(*arguments: Any, **named: Any) -> Iterator[pa.RecordBatch]:
        for batch in real(*arguments, **named):
            read.append(batch.num_rows)
            yield batch

    monkeypatch.setattr(user_chunks, "_read_row_group", counted)
    found = [row for chunk in read_chunks(users, parts, chunk_rows=50) for row in chunk.rows["user_id"].to_pylist()]
    assert found == [row for part in parts for row in range(part.first_row, part.first_row + part.num_rows)]
    assert sum(read) == rows_read
