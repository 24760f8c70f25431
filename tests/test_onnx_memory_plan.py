"""--max-memory: what is planned fits, nothing of it can be seen in the output, and what cannot fit is refused."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from model_files import TinyModel, write_model_file
from test_onnx_scoring import random_users

from ipsrec_cli.options import Size
from ipsrec_onnx import machine_memory, score_run
from ipsrec_onnx.errors import DataError
from ipsrec_onnx.machine_memory import available_memory, resident_memory
from ipsrec_onnx.memory_plan import (
    MOST_IDS,
    ChunkPlan,
    MemoryBound,
    RowSizes,
    memory_bound,
    num_writers,
    plan_chunks,
    refuse_big_model,
)
from ipsrec_onnx.scoring import score
from ipsrec_onnx.users import UserColumns, open_users

SIZES = RowSizes(user_id=8, item_id=8, ids=10.0, top_k=100, group_rows=8192, part_rows=65536, max_len=50, dim=64)


HELD = 700 << 20


def plan(free: int, threads: int = 4, *, fewer: bool = False):  # type: ignore[no-untyped-def]
    bound = MemoryBound(HELD + free, asked=True)
    return bound, plan_chunks(bound, SIZES, held=HELD, most_rows=8192, threads=threads, fewer_threads=fewer)


@given(free=st.integers(400 << 20, 4 << 30), threads=st.integers(1, 8))
def test_a_plan_stays_within_its_bound(free: int, threads: int) -> None:
    try:
        bound, found = plan(free, threads)
    except DataError:
        return
    assert found.peak <= bound.limit
    assert 32 <= found.rows <= 8192 and 1 <= found.ids <= MOST_IDS
    assert found.threads == threads and found.waiting in (threads, 2 * threads)
    assert found.writers <= found.writing <= found.writers + 65536 * (found.writers - 1) // (2 * found.rows)


def test_with_memory_to_spare_chunks_are_as_big_as_they_get() -> None:
    _, found = plan(8 << 30)
    assert (found.rows, found.ids, found.threads, found.waiting) == (8192, MOST_IDS, 4, 8)
    assert (found.writers, found.writing) == (2, 2 + 4)  # half a part is 4 chunks


def test_a_few_threads_write() -> None:
    assert [num_writers(threads) for threads in (1, 2, 3, 4, 7, 8, 64)] == [1, 1, 1, 2, 3, 4, 4]


@pytest.mark.parametrize("threads", [1, 2, 8])
def test_the_plan_counts_what_writers_hold(threads: int) -> None:
    """A chunk of 8,192 lists of 100 has 12 bytes a candidate; a writer has five copies of a row group as big."""
    _, found = plan(8 << 30, threads)
    chunk = 8192 * (100 * 12 + 24)
    parts_begin_together = plan_chunks(
        MemoryBound(8 << 30, asked=True),
        replace(SIZES, part_rows=0),
        held=HELD,
        most_rows=8192,
        threads=threads,
        fewer_threads=False,
    )
    assert found.peak - parts_begin_together.peak == (found.writing - parts_begin_together.writing) * chunk
    assert found.writing - parts_begin_together.writing == 4 * (found.writers - 1)


def test_less_memory_first_makes_chunks_and_writers_fewer_then_chunks_smaller_and_then_threads_fewer() -> None:
    plans = [plan(mib << 20, fewer=True)[1] for mib in range(1024, 260, -8)]
    order = [(found.threads, found.rows, found.waiting, found.writers) for found in plans]
    assert order == sorted(order, reverse=True) and len(set(order)) > 5
    assert all(rows >= 256 for threads, rows, *_ in order if threads > 1)


def test_what_cannot_fit_is_refused_with_what_it_needs() -> None:
    with pytest.raises(
        DataError, match=r"needs at least [\d.]+ [MG]B with 4 threads and --top-k 100, but --max-memory is [\d.]+ [MG]B"
    ):
        plan(10 << 20)
    with pytest.raises(DataError, match=r"with model m.onnx of 5\.00 GB, but --max-memory is 1\.00 GB"):
        refuse_big_model(MemoryBound(10**9, asked=True), path="m.onnx", num_bytes=5 * 10**9)
    with pytest.raises(DataError, match=r"this machine has 1\.00 GB left for it; give a machine with more"):
        refuse_big_model(MemoryBound(10**9, asked=False), path="m.onnx", num_bytes=5 * 10**9)


@pytest.mark.parametrize("layout", ["list", "long"])
def test_the_output_has_the_same_bytes_at_every_limit(
    tmp_path: Path, rng: np.random.Generator, layout: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model: TinyModel = write_model_file(tmp_path / "model.onnx", num_items=300)
    pq.write_table(random_users(model, rng, 3000), tmp_path / "users.parquet", row_group_size=1111)
    plans: list[ChunkPlan] = []

    def noted(bound: MemoryBound, sizes: RowSizes, **named: int) -> ChunkPlan:
        # This process holds what all tests before left to it: plan as if it held nothing.
        plans.append(plan_chunks(bound, sizes, **{**named, "held": 0}))  # type: ignore[arg-type]
        return plans[-1]

    monkeypatch.setattr(score_run, "plan_chunks", noted)
    monkeypatch.setattr("ipsrec_onnx.scoring.refuse_big_model", lambda *_, **__: None)
    monkeypatch.setattr(score_run, "_CHUNKS_PER_THREAD", 1)  # chunks that can get smaller
    files = set()
    for number, limit in enumerate((270 << 20, 280 << 20, 290 << 20, 8 << 30)):
        output = tmp_path / f"{number}.parquet"
        score(
            model.path,
            tmp_path / "users.parquet",
            output,
            top_k=200,
            layout=layout,  # type: ignore[arg-type]
            bad_rows="divert",
            max_memory=limit,
            threads=2,
        )
        files.add(output.read_bytes())
    assert len({(found.rows, found.waiting) for found in plans}) >= 3  # else nothing was tried
    assert len(files) == 1


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("2GB", 2 * 10**9),
        ("800MiB", 800 << 20),
        ("1.5g", 15 * 10**8),
        ("512 M", 512 * 10**6),
        ("1TiB", 1 << 40),
        ("4096", 4096),
        ("7b", 7),
    ],
)
def test_a_size_is_read_as_people_write_it(text: str, size: int) -> None:
    assert Size().convert(text, None, None) == size


@pytest.mark.parametrize("text", ["", "GB", "-1GB", "0", "1.2.3GB", "2 XB", "2GBs", "nan", "1e9", "٣GB", "i", "5ib"])
def test_what_is_no_size_is_refused(text: str) -> None:
    with pytest.raises(Exception, match="is no size; try 2GB or 800MiB"):
        Size().convert(text, None, None)


def test_without_an_option_the_machine_is_the_bound() -> None:
    assert 0 < resident_memory() < memory_bound(None).limit
    assert memory_bound(None).limit <= available_memory()


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({}, sys.maxsize),
        ({"proc/meminfo": "MemTotal: 9 kB\nMemAvailable:    5 kB\n"}, 5 * 1024),
        (
            {
                "proc/meminfo": "MemAvailable:    5000 kB\n",
                "proc/self/cgroup": "0::/job\n",
                "cgroup/job/memory.max": "max\n",
                "cgroup/job/memory.current": "700\n",
                "cgroup/memory.max": "1000\n",
                "cgroup/memory.current": "800\n",
                "cgroup/memory.stat": "anon 700\ninactive_file 50\n",
            },
            250,
        ),
        (
            {
                "proc/meminfo": "MemAvailable:    5000 kB\n",
                "proc/self/cgroup": "5:cpu:/\n4:memory:/docker/abc\n",
                "cgroup/memory/memory.limit_in_bytes": "3000\n",
                "cgroup/memory/memory.usage_in_bytes": "2500\n",
                "cgroup/memory/memory.stat": "total_inactive_file 100\n",
            },
            600,
        ),
        (
            {
                "proc/meminfo": "MemAvailable:    5 kB\n",
                "proc/self/cgroup": "4:memory:/\n",
                "cgroup/memory/memory.limit_in_bytes": "9223372036854771712\n",
                "cgroup/memory/memory.usage_in_bytes": "2500\n",
            },
            5 * 1024,
        ),
    ],
)
def test_the_tightest_limit_counts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, files: dict[str, str], expected: int
) -> None:
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    monkeypatch.setattr(machine_memory, "_PROC", tmp_path / "proc")
    monkeypatch.setattr(machine_memory, "_CGROUPS", tmp_path / "cgroup")
    assert available_memory() == expected


def test_the_longest_row_group_counts(tmp_path: Path) -> None:
    table = pa.table({"user_id": [1, 2, 3, 4], "item_history": [[1], [2], [3] * 50, [4] * 70]})
    pq.write_table(table, tmp_path / "users.parquet", row_group_size=2)
    users = open_users(tmp_path / "users.parquet", UserColumns("user_id", "item_history", None, None))
    assert users.most_ids_of_a_row == 60
