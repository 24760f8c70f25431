"""How fast are users read and candidates written, and would other ways or other settings of Parquet be faster?

    python benchmarks/bench_parquet.py --folder .bench
    python benchmarks/bench_parquet.py --folder .bench --short

Reading: user ids and two list columns of a users file of the paper's sizes (--size), by `read_chunks`, which holds one
chunk and reads in one thread, for the workers have the other; against `pyarrow.parquet.read_table` and `iter_batches`
with all threads, and pandas. All read the same ids, which is checked first. MB are those of the ids in memory.

Writing: lists of 100 candidates as `ipsrec score` lays them out, by its row writer and by others' settings; all files
read back the same. `candidate_rows`, the layout before it, is timed apart. Bytes a user are those of the file.
"""

from __future__ import annotations

import argparse
import functools
import platform
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from limits import cpu_model
from rounds import ROUNDS, in_turn, print_json, ratio_in_rounds
from synthetic import SIZES, World, make_world, users_file, zipf_ranks

from ipsrec_kernels.best_list import BestLists
from ipsrec_onnx.candidates import candidate_rows, candidates_schema
from ipsrec_onnx.retrieval import Ranking
from ipsrec_onnx.row_writer import open_row_writer
from ipsrec_onnx.score_run import CHUNK_ROWS
from ipsrec_onnx.user_chunks import read_chunks
from ipsrec_onnx.user_parts import plan_parts
from ipsrec_onnx.users import UserColumns, open_users

USERS = {"tmall": 131_072, "twitch": 65_536, "wechat": 8_192}
COLUMNS = ["user_id", "item_history", "provider_history"]
TOP_K = 100
CHUNKS = 4  # that are written
ITEM_IDS, SCORES = "item_ids.list.element", "scores.list.element"

# Beside the row writer's own: what else could be asked of the writer.
SETTINGS: dict[str, dict[str, Any]] = {
    "zstd, dictionaries": {"use_dictionary": True},
    "zstd level 3": {"compression_level": 3},
    "zstd level -3": {"compression_level": -3},
    "snappy": {"compression": "snappy"},
    "no compression": {"compression": "none"},
    "zstd, ids DELTA_BINARY_PACKED": {"column_encoding": {ITEM_IDS: "DELTA_BINARY_PACKED"}},
    "zstd, scores BYTE_STREAM_SPLIT": {"column_encoding": {SCORES: "BYTE_STREAM_SPLIT"}},
    "zstd, both BYTE_STREAM_SPLIT": {"column_encoding": dict.fromkeys((ITEM_IDS, SCORES), "BYTE_STREAM_SPLIT")},
}


def main() -> None:
    """Time reading and writing, print two tables and one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", type=Path, required=True, help="Where the users file lies, or is made.")
    parser.add_argument("--size", choices=list(SIZES), default="twitch")
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--short", action="store_true", help="A quarter of the users, three rounds.")
    arguments = parser.parse_args()
    users = USERS[arguments.size] // (4 if arguments.short else 1)
    rounds = 3 if arguments.short else arguments.rounds
    print(
        f"{cpu_model()}, Python {platform.python_version()}, pyarrow {pa.__version__} ({pa.cpu_count()} threads), "
        f"pandas {pd.__version__}"
    )
    source = users_file(arguments.folder, arguments.size, users=users, kind="gaussian")
    reading = bench_reading(source, name=arguments.size, rounds=rounds)
    with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
        writing = bench_writing(make_world(SIZES[arguments.size], kind="gaussian"), Path(folder), rounds=rounds)
    print_json({"size": arguments.size, "users": users, "reading": reading, "writing": writing})


def bench_reading(source: Path, *, name: str, rounds: int) -> dict[str, Any]:
    """Read a users file in every way; gives users/s and MB/s of each."""
    ways: dict[str, Callable[[], Any]] = {
        "read_chunks, one thread": lambda: drain(read_ours(source)),
        "iter_batches, one thread": lambda: drain(read_batches(source, use_threads=False)),
        "iter_batches, all threads": lambda: drain(read_batches(source, use_threads=True)),
        "read_table, all threads": lambda: pq.read_table(source, columns=COLUMNS),
        "pandas": lambda: pd.read_parquet(source, columns=COLUMNS),
    }
    table = pq.read_table(source, columns=COLUMNS)
    for batches in (read_ours(source), read_batches(source, use_threads=True)):
        assert pa.Table.from_batches(batches).equals(table)
    frame = ways["pandas"]()
    assert frame["item_history"].map(len).sum() == len(table["item_history"].combine_chunks().values)
    times = in_turn(ways, None, rounds=rounds)
    megabytes = table.nbytes / 1e6
    print(f"\nreading {name}: {table.num_rows:,} users, {megabytes:.0f} MB, file {source.stat().st_size / 1e6:.0f} MB")
    print(f"{'':<34} {'users/s':>34} {'MB/s':>7} {'against ours':>13}")
    figures = {}
    ours = times["read_chunks, one thread"]
    for way, timed in times.items():
        figures[way] = {"users_per_s": table.num_rows / timed.median, "mb_per_s": megabytes / timed.median}
        rate, times_as_fast = figures[way]["mb_per_s"], ratio_in_rounds(ours, timed)
        print(f"{way:<34} {timed.spread(table.num_rows):>34} {rate:>7.0f} {times_as_fast:>12.2f}x")
    return figures


def read_ours(source: Path) -> Iterable[pa.RecordBatch]:
    """As `ipsrec score` reads."""
    users = open_users(source, UserColumns(*COLUMNS, candidates=None))
    return (chunk.rows for chunk in read_chunks(users, plan_parts(users), chunk_rows=CHUNK_ROWS))


def read_batches(source: Path, *, use_threads: bool) -> Iterable[pa.RecordBatch]:
    """Arrow's own way, with its own read-ahead."""
    return pq.ParquetFile(source).iter_batches(CHUNK_ROWS, columns=COLUMNS, use_threads=use_threads)


def drain(batches: Iterable[pa.RecordBatch]) -> int:
    """Take all batches and keep none; gives their rows."""
    return sum(batch.num_rows for batch in batches)


def bench_writing(world: World, folder: Path, *, rounds: int) -> dict[str, Any]:
    """Write candidates in every way; gives users/s, MB/s and bytes a user of each."""
    item_ids = world.catalog.item_ids
    schema = candidates_schema(pa.int64(), item_ids.type, layout="list", metadata={})
    rankings = [some_ranking(world, seed=seed) for seed in range(CHUNKS)]
    user_ids = [pa.array(np.arange(CHUNK_ROWS) + chunk * CHUNK_ROWS) for chunk in range(CHUNKS)]

    def lay_out() -> list[pa.Table]:
        pairs = zip(user_ids, rankings, strict=True)
        return [candidate_rows(user_id, ranking, item_ids, schema=schema) for user_id, ranking in pairs]

    tables = lay_out()
    paths = {name: folder / f"{number}.parquet" for number, name in enumerate(["ours", *SETTINGS])}
    ways: dict[str, Callable[[], Any]] = {"ours": functools.partial(write_ours, tables, paths["ours"], schema=schema)}
    for name, settings in SETTINGS.items():
        ways[name] = functools.partial(write_with, tables, paths[name], schema=schema, settings=settings)
    expected = pa.concat_tables(tables)
    for name, write in ways.items():
        write()
        assert pq.read_table(paths[name]).equals(expected), name
    times = in_turn({**ways, "candidate_rows": lay_out}, None, rounds=rounds)
    users, megabytes = CHUNKS * CHUNK_ROWS, sum(table.nbytes for table in tables) / 1e6
    print(f"\nwriting: {users:,} users, {TOP_K} candidates each, {megabytes:.0f} MB, one thread")
    print(f"{'':<34} {'users/s':>34} {'MB/s':>7} {'bytes a user':>13}")
    figures: dict[str, Any] = {}
    for name, timed in times.items():
        size = paths[name].stat().st_size / users if name in paths else 0.0
        rate = megabytes / timed.median
        figures[name] = {"users_per_s": users / timed.median, "mb_per_s": rate, "bytes_per_user": size}
        label = "ours: zstd, dictionary of status" if name == "ours" else name
        print(f"{label:<34} {timed.spread(users):>34} {rate:>7.0f} {f'{size:.0f}' if size else '':>13}")
    return figures


def some_ranking(world: World, *, seed: int) -> Ranking:
    """Lists of popular items with falling scores, for one chunk of users."""
    rng = np.random.default_rng([seed, 6])
    shape = (CHUNK_ROWS, TOP_K)
    items = world.by_popularity[zipf_ranks(rng, CHUNK_ROWS * TOP_K, world.size.items)]
    scores = -np.sort(-rng.normal(3.0, 0.5, shape).astype(np.float32), axis=1)
    lists = BestLists(items.astype(np.int32).reshape(shape), scores, np.full(CHUNK_ROWS, TOP_K, np.int32))
    return Ranking(lists, np.zeros(CHUNK_ROWS, np.bool_))


def write_ours(tables: list[pa.Table], path: Path, *, schema: pa.Schema) -> None:
    """As `ipsrec score` writes."""
    with open_row_writer(path, schema, group_rows=CHUNK_ROWS) as writer:
        for table in tables:
            writer.write(table)


def write_with(tables: list[pa.Table], path: Path, *, schema: pa.Schema, settings: dict[str, Any]) -> None:
    """The same row groups with other settings; what is not named stays as the row writer has it."""
    with pq.ParquetWriter(path, schema, **{"compression": "zstd", "use_dictionary": ["status"], **settings}) as writer:
        for table in tables:
            writer.write_table(table, row_group_size=CHUNK_ROWS)


if __name__ == "__main__":
    main()
