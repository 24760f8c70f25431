"""How fast do raw histories become padded batches of indices, against a Python loop, pandas, NumPy and torch?

    python benchmarks/bench_packing.py
    python benchmarks/bench_packing.py --short
    python benchmarks/bench_packing.py --size wechat --ids string

Each way takes two Arrow list columns of raw ids (items and providers) and gives two right-padded int32 arrays: look up
every id in a catalog of the paper's size, drop the items that it does not know (1 % here), keep the newest max_len.
Users come in chunks of 8,192, as `ipsrec score` reads them, and ours is what it runs then: in two threads that own a
share of the chunks each. The others run once, for the interpreter's lock lets them do no more. pandas frames:
explode, map, group by user, count. NumPy: `Index.get_indexer` of pandas, then masks and one gather. torch: the same
look-up, then `pad_sequence`. Tables are built beforehand by all. All give the same arrays, which is checked first.

Without look-up: `pack_histories` alone, in one thread, a chunk in one batch, against a copy of as many bytes as it
reads (entries, offsets) and writes (rows, lengths).
"""

from __future__ import annotations

import argparse
import functools
import platform
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import numba
import numpy as np
import numpy.typing as npt
import pandas as pd
import pyarrow as pa
import torch
from limits import Limits, cpu_model
from rounds import ROUNDS, Timed, in_turn, print_json, ratio_in_rounds
from synthetic import SIZES, World, make_world, users_table
from torch.nn.utils.rnn import pad_sequence

from ipsrec_kernels.pack import pack_histories
from ipsrec_onnx.catalog import Catalog
from ipsrec_onnx.histories import Histories, map_histories
from ipsrec_onnx.id_lists import IdLists, id_lists
from ipsrec_onnx.score_run import CHUNK_ROWS

USERS = {"tmall": 65_536, "twitch": 32_768, "wechat": 4_096}  # of a thread
THREADS = 2
TURNS = 10  # of ours in a sample: one takes some milliseconds, in which a thread hardly wakes up
FROM_MEMORY = 1 << 26  # bytes, beyond every cache
UNKNOWN = 0.01  # share of item ids that the catalog does not know
RIVALS = {
    "python": "Python loop",
    "pandas": "pandas frames",
    "numpy": "pandas index, NumPy",
    "torch": "torch pad_sequence",
}


class Packed(NamedTuple):
    """Two (B, max_len) int32 arrays, padded on the right with 0."""

    item_history: npt.NDArray[np.int32]
    provider_history: npt.NDArray[np.int32]


class Lookup(NamedTuple):
    """A catalog as the rivals need it."""

    item_dict: dict[Any, int]
    provider_dict: dict[Any, int]
    items: pd.Index
    providers: pd.Index


def main() -> None:
    """Time all ways, print tables and one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", choices=list(SIZES), help="One size; all three by default.")
    parser.add_argument("--ids", choices=["int64", "string"], default="int64")
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--short", action="store_true", help="Tmall's size alone, three rounds.")
    arguments = parser.parse_args()
    rounds = 3 if arguments.short else arguments.rounds
    sizes = [arguments.size] if arguments.size else ["tmall"] if arguments.short else list(SIZES)
    print(
        f"{cpu_model()}, Python {platform.python_version()}, Numba {numba.__version__}, NumPy {np.__version__}, "
        f"pandas {pd.__version__}, torch {torch.__version__}; ids {arguments.ids}, {THREADS} threads"
    )
    figures: dict[str, Any] = {}
    with Limits(THREADS) as limits:
        for size in sizes:
            figures[size] = bench_size(size, limits, ids=arguments.ids, rounds=rounds)
    first = figures[sizes[0]]
    ratios = {f"packing_vs_{name}": first[f"vs_{name}"] for name in RIVALS}
    print_json({**ratios, "packing_copy_share": first["copy_share"], "ids": arguments.ids, "sizes": figures})


def bench_size(name: str, limits: Limits, *, ids: Any, rounds: int) -> dict[str, Any]:
    """Time all ways at one size; gives medians, spreads and ratios."""
    world = make_world(SIZES[name], kind="gaussian", ids=ids)
    users, max_len = USERS[name], world.size.max_len
    shares = [some_chunks(world, users=users, seed=seed) for seed in range(THREADS)]
    lookup = make_lookup(world.catalog)
    packers = {
        "one thread": functools.partial(pack_ours, catalog=world.catalog, max_len=max_len),
        "python": functools.partial(pack_python, lookup=lookup, max_len=max_len),
        "pandas": functools.partial(pack_pandas, lookup=lookup, max_len=max_len),
        "numpy": functools.partial(pack_numpy, lookup=lookup, max_len=max_len),
        "torch": functools.partial(pack_torch, lookup=lookup, max_len=max_len),
    }
    ways: dict[str, Callable[[], list[Packed]]] = {
        way: functools.partial(pack_share, shares[0], packer) for way, packer in packers.items()
    }
    expected = ways["python"]()
    for way, work in ways.items():
        for got, want in zip(work(), expected, strict=True):
            assert all(map(np.array_equal, got, want)) and got[0].dtype == got[1].dtype == np.int32, way
    mapped = map_ours(pa.concat_batches(shares[0]), world.catalog)
    pack, copy, moved = without_lookup(mapped, max_len=max_len)
    with ThreadPoolExecutor(THREADS) as pool:
        ours = functools.partial(pack_share, packer=packers["one thread"])
        turns = {
            "ours": lambda: list(pool.map(ours, TURNS * shares)),
            "one thread": functools.partial(pack_share, TURNS * shares[0], packers["one thread"]),
        }
        turns["ours"]()
        times = in_turn({**ways, **turns, "pack": pack, "copy": copy}, limits, rounds=rounds)
    num_ids = sum(len(chunk["item_history"].values) for chunk in shares[0])
    figures = report(name, times, users=users, num_ids=num_ids, moved=moved)
    return {**figures, "samples": {way: timed.to_json() for way, timed in times.items()}}


def report(name: str, times: dict[str, Timed], *, users: int, num_ids: int, moved: int) -> dict[str, Any]:
    """Print one size; gives its ratios."""
    ours = times["ours"]
    print(f"\n{name}: {users:,} users a thread, {num_ids / users:.1f} items a user, two lists")
    print(f"{'':<22} {'users/s':>38} {'M ids/s':>8} {'ours is':>8}")
    shares = {"ours": TURNS * THREADS, "one thread": TURNS}  # of the users, in a sample
    figures: dict[str, Any] = {"users_per_s": shares["ours"] * users / ours.median}
    for way, label in {"ours": "ours", "one thread": "ours, one thread", **RIVALS}.items():
        count = shares.get(way, 1)
        times_as_fast = ratio_in_rounds(times[way], ours) * shares["ours"] / count
        if way in RIVALS:
            figures[f"vs_{way}"] = times_as_fast
        rate = 2 * num_ids * count / times[way].median / 1e6
        print(f"{label:<22} {times[way].spread(users * count):>38} {rate:>8.1f} {times_as_fast:>7.1f}x")
    share = ratio_in_rounds(times["copy"], times["pack"])
    rates = [moved / times[way].median / 1e9 for way in ("pack", "copy")]
    print(f"without look-up, one thread: {rates[0]:.1f} GB/s; a copy {rates[1]:.1f} GB/s: {share:.2f} of it")
    return {**figures, "copy_share": share}


def some_chunks(world: World, *, users: int, seed: int) -> list[pa.RecordBatch]:
    """Users with some items that no catalog knows, in chunks."""
    table = users_table(world, users=users, seed=seed)
    column = table["item_history"].combine_chunks()
    unknown = np.random.default_rng(seed).random(len(column.values)) < UNKNOWN
    other = pa.scalar(-1 if pa.types.is_integer(column.values.type) else "no item", column.values.type)
    values = pa.compute.if_else(pa.array(unknown), other, column.values)
    table = table.set_column(1, "item_history", pa.ListArray.from_arrays(column.offsets, values))
    chunks = (table.slice(first, CHUNK_ROWS) for first in range(0, users, CHUNK_ROWS))
    return [pa.concat_batches(chunk.to_batches()) for chunk in chunks]


def pack_share(chunks: list[pa.RecordBatch], packer: Callable[[pa.RecordBatch], Packed]) -> list[Packed]:
    """Pack the chunks of one thread."""
    return [packer(chunk) for chunk in chunks]


def make_lookup(catalog: Catalog) -> Lookup:
    """Build what the rivals look ids up in; the first look-up makes pandas build its hash table."""
    dicts = [
        {one: row + 1 for row, one in enumerate(ids.to_pylist())} for ids in (catalog.item_ids, catalog.provider_ids)
    ]
    indexes = [pd.Index(ids.to_pandas()) for ids in (catalog.item_ids, catalog.provider_ids)]
    for index in indexes:
        index.get_indexer(index[:1])
    catalog.build_tables()
    return Lookup(*dicts, *indexes)


def map_ours(rows: pa.RecordBatch, catalog: Catalog) -> Histories:
    """Look up a chunk's ids with this library."""
    items = lists_of(rows, "item_history", catalog.item_ids.type)
    return map_histories(items, lists_of(rows, "provider_history", catalog.provider_ids.type), catalog).known


def lists_of(rows: pa.RecordBatch, column: str, kind: pa.DataType) -> IdLists:
    """A column as this library takes it."""
    return id_lists(rows[column], kind=kind, where=column)


def pack_ours(rows: pa.RecordBatch, *, catalog: Catalog, max_len: int) -> Packed:
    """This library, one thread."""
    known, everyone = map_ours(rows, catalog), np.arange(rows.num_rows)
    shape = {"bucket_len": max_len, "batch_size": rows.num_rows}
    streams = (known.items, known.providers)
    return Packed(*(pack_histories(stream, known.offsets, everyone, **shape)[0] for stream in streams))


def pack_python(rows: pa.RecordBatch, lookup: Lookup, *, max_len: int) -> Packed:
    """Lists and dictionaries."""
    item_rows, provider_rows = [], []
    columns = (rows["item_history"].to_pylist(), rows["provider_history"].to_pylist())
    for items, providers in zip(*columns, strict=True):
        pairs = [
            (lookup.item_dict[item], lookup.provider_dict.get(provider, 0))
            for item, provider in zip(items, providers, strict=True)
            if item in lookup.item_dict
        ][-max_len:]
        padding = [0] * (max_len - len(pairs))
        item_rows.append([item for item, _ in pairs] + padding)
        provider_rows.append([provider for _, provider in pairs] + padding)
    return Packed(np.array(item_rows, np.int32), np.array(provider_rows, np.int32))


def known_streams(rows: pa.RecordBatch, lookup: Lookup) -> tuple[list[npt.NDArray[np.int32]], npt.NDArray[np.int64]]:
    """Look up and drop with pandas and NumPy: the two streams, and the offsets of both."""
    column = rows["item_history"]
    items = lookup.items.get_indexer(plain(column)) + 1
    providers = lookup.providers.get_indexer(plain(rows["provider_history"])) + 1
    known = items != 0
    before = np.concatenate([[0], np.cumsum(known)])
    return [stream[known].astype(np.int32) for stream in (items, providers)], before[column.offsets.to_numpy()]


def plain(column: pa.ListArray) -> Any:
    """The ids of all lists as pandas looks them up."""
    values = column.values
    return values.to_numpy() if pa.types.is_integer(values.type) else values.to_pandas()


def pack_pandas(rows: pa.RecordBatch, lookup: Lookup, *, max_len: int) -> Packed:
    """A long frame with a row for each entry, the newest of each user numbered."""
    long = rows.to_pandas().explode(["item_history", "provider_history"])
    for column, index in (("item_history", lookup.items), ("provider_history", lookup.providers)):
        long[column] = index.get_indexer(long[column].to_numpy(index.dtype)) + 1
    long = long[long["item_history"] != 0]
    long = long[long.groupby(level=0).cumcount(ascending=False) < max_len]
    places = (long.index.to_numpy(), long.groupby(level=0).cumcount().to_numpy())
    packed = [np.zeros((rows.num_rows, max_len), np.int32) for _ in range(2)]
    for out, column in zip(packed, ("item_history", "provider_history"), strict=True):
        out[places] = long[column].to_numpy()
    return Packed(*packed)


def pack_numpy(rows: pa.RecordBatch, lookup: Lookup, *, max_len: int) -> Packed:
    """One gather for the whole chunk."""
    streams, offsets = known_streams(rows, lookup)
    lengths = np.minimum(np.diff(offsets), max_len)
    columns = np.arange(max_len)
    there = columns < lengths[:, None]
    places = (offsets[1:] - lengths)[:, None] + columns
    packed = [np.zeros(there.shape, np.int32) for _ in streams]
    for out, stream in zip(packed, streams, strict=True):
        out[there] = stream[places[there]]
    return Packed(*packed)


def pack_torch(rows: pa.RecordBatch, lookup: Lookup, *, max_len: int) -> Packed:
    """One tensor a history, padded by torch; a last one of max_len entries makes it as wide as that."""
    streams, offsets = known_streams(rows, lookup)
    ends = list(zip(offsets[:-1].tolist(), offsets[1:].tolist(), strict=True))
    packed = []
    for stream in streams:
        tensor = torch.from_numpy(stream)
        histories = [tensor[max(start, stop - max_len) : stop] for start, stop in ends]
        widest = torch.zeros(max_len, dtype=torch.int32)
        packed.append(pad_sequence([*histories, widest], batch_first=True)[:-1].numpy())
    return Packed(*packed)


def without_lookup(known: Histories, *, max_len: int) -> tuple[Callable[[], object], Callable[[], object], int]:
    """What packs indices, what copies as many bytes, and how many these are, read and written.

    Both read what no cache holds, a chunk at a time, and write over what the chunk before has left.
    """
    times = -(-FROM_MEMORY // known.items.nbytes)
    items = np.tile(known.items, times)
    offsets = np.concatenate([[0], np.cumsum(np.tile(known.lengths, times))])
    num_users = len(offsets) - 1
    chunks = [np.arange(first, min(first + CHUNK_ROWS, num_users)) for first in range(0, num_users, CHUNK_ROWS)]
    moved = 4 * (int(np.minimum(np.diff(offsets), max_len).sum()) + num_users * (max_len + 1)) + offsets.nbytes
    source = np.ones((len(chunks), moved // 2 // len(chunks)), np.uint8)
    target = np.zeros_like(source[0])

    def pack() -> None:
        for users in chunks:
            pack_histories(items, offsets, users, bucket_len=max_len, batch_size=len(users))

    def copy() -> None:
        for part in source:
            np.copyto(target, part)

    return pack, copy, moved


if __name__ == "__main__":
    main()
