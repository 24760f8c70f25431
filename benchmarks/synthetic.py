"""Makes users and model files of the paper's three sizes, out of nothing.

    python benchmarks/synthetic.py --size twitch --folder .bench --model ipsrec-c

Counts are those of the paper's Table 1. Lengths are lognormal (`full` histories have max_len items each), popularity
falls like Zipf's law, histories hold what the catalog offers, with its own providers. Real skew and real embeddings
differ: a figure made with these says so.

Embeddings are of two kinds. `gaussian` has nothing to exploit. `trained` has what training leaves behind, as an
assumption: genres, a spectrum that falls off, and norms that differ, the popular items having the large ones.
"""

from __future__ import annotations

import argparse
import functools
import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from ipsrec_onnx.catalog import Catalog

DIM = 64
Kind = Literal["trained", "gaussian"]
Ids = Literal["int64", "string"]
Lengths = Literal["lognormal", "full"]

_SHORTEST, _LONGEST, _SIGMA = 3, 3000, 0.9  # of the lengths' lognormal
_SKEW = 0.9  # popularity falls as rank ** -_SKEW
_GENRES = 300
_GROUP_ROWS = 8192
_FOLLOWED = 5  # items that a user vector of `trained` is the mean of


@dataclass(frozen=True)
class Size:
    """Counts of a data set (paper, Table 1), and the paper's max_len for it (section 3.3)."""

    users: int
    items: int
    providers: int
    mean_length: float
    max_len: int


SIZES = {
    "tmall": Size(885_760, 1_144_125, 9_998, 8.6, 20),
    "twitch": Size(100_001, 739_992, 162_626, 30.0, 50),
    "wechat": Size(20_001, 96_565, 18_430, 366.0, 100),
}
TINY = Size(160, 600, 40, 8.6, 12)  # proves scripts, measures nothing


def size_of(name: str) -> Size:
    """A size by name; "tiny" is one, too."""
    return TINY if name == "tiny" else SIZES[name]


@dataclass(frozen=True, eq=False)
class World:
    """Everything of a size but its users.

    Attributes:
        size: the counts.
        catalog: items numbered by provider; popularity as Zipf's law has it.
        embeddings: (num_items + 1, DIM) float32, row 0 zeros.
        by_popularity: (num_items,) item_index, the most popular first.
    """

    size: Size
    catalog: Catalog
    embeddings: npt.NDArray[np.float32]
    by_popularity: npt.NDArray[np.int64]


@functools.lru_cache(maxsize=1)
def make_world(size: Size, *, kind: Kind = "trained", ids: Ids = "int64", seed: int = 0) -> World:
    """Make items, providers and embeddings; the same arguments give the same world."""
    embeddings = item_embeddings(size.items, kind=kind, seed=seed)
    rng = np.random.default_rng([seed, 1])
    # The length of a trained item vector says how popular it is; of the others it says nothing.
    liked = np.linalg.norm(embeddings[1:], axis=1) if kind == "trained" else rng.random(size.items)
    by_popularity = np.argsort(-liked, kind="stable") + 1
    popularity = np.zeros(size.items + 1, np.int64)
    share = np.arange(1, size.items + 1) ** -_SKEW
    popularity[by_popularity] = np.rint(size.users * size.mean_length * share / share.sum())
    # Every provider offers an item, and some a few dozen times as many as others: lognormal, as lengths are.
    weights = np.exp(rng.standard_normal(size.providers))
    offered = 1 + rng.multinomial(size.items - size.providers, weights / weights.sum())
    item_provider = np.zeros(size.items + 1, np.int32)
    item_provider[1:] = np.repeat(np.arange(1, size.providers + 1), offered)
    catalog = Catalog(_ids(rng, size.items, ids), _ids(rng, size.providers, ids), item_provider, popularity)
    return World(size, catalog, embeddings, by_popularity)


def item_embeddings(num_items: int, *, kind: Kind, seed: int = 0) -> npt.NDArray[np.float32]:
    """(num_items + 1, DIM) float32; row 0, PADDING, is zeros."""
    rng = np.random.default_rng([seed, 2])
    table = np.zeros((num_items + 1, DIM), np.float32)
    table[1:] = rng.standard_normal((num_items, DIM), dtype=np.float32)
    if kind == "trained":
        genres = rng.standard_normal((_GENRES, DIM), dtype=np.float32)
        table[1:] = (0.8 * genres[rng.integers(0, _GENRES, num_items)] + 0.6 * table[1:]) @ _spectrum(seed)
        norms = np.exp(0.3 * rng.standard_normal((num_items, 1), dtype=np.float32))
        table[1:] *= norms / np.linalg.norm(table[1:], axis=1, keepdims=True)
    return table


def user_embeddings(
    embeddings: npt.NDArray[np.float32], users: int, *, kind: Kind, seed: int = 0
) -> npt.NDArray[np.float32]:
    """(users, DIM) float32 that go with item_embeddings of the same kind and seed, for retrieval alone."""
    rng = np.random.default_rng([seed, 3])
    noise = rng.standard_normal((users, DIM), dtype=np.float32)
    if kind == "gaussian":
        return noise
    by_norm = np.argsort(-np.linalg.norm(embeddings[1:], axis=1), kind="stable") + 1
    taken = by_norm[(len(by_norm) * rng.random((users, _FOLLOWED)) ** 3).astype(np.int64)]
    means: npt.NDArray[np.float32] = embeddings[taken].mean(1) + 0.1 * noise @ _spectrum(seed)
    return np.ascontiguousarray(4 * means, np.float32)


def _spectrum(seed: int) -> npt.NDArray[np.float32]:
    """(DIM, DIM): a spectrum that falls off, turned so that no element stands out."""
    turn, _ = np.linalg.qr(np.random.default_rng([seed, 4]).standard_normal((DIM, DIM)))
    scaled: npt.NDArray[np.float32] = (np.arange(1, DIM + 1)[:, None] ** -0.5 * turn).astype(np.float32)
    return scaled


def history_lengths(rng: np.random.Generator, users: int, mean: float) -> npt.NDArray[np.int64]:
    """(users,) int64, lognormal with this mean before clipping."""
    drawn = np.exp(rng.normal(np.log(mean) - _SIGMA**2 / 2, _SIGMA, users))
    lengths: npt.NDArray[np.int64] = np.clip(drawn.astype(np.int64), _SHORTEST, _LONGEST)
    return lengths


def zipf_ranks(rng: np.random.Generator, count: int, ranks: int) -> npt.NDArray[np.int64]:
    """(count,) int64 in 0..ranks - 1, rank r about as often as (r + 1) ** -_SKEW; the inverse of its integral."""
    power = 1 - _SKEW
    drawn = ((ranks**power - 1) * rng.random(count) + 1) ** (1 / power) - 1
    found: npt.NDArray[np.int64] = np.minimum(drawn.astype(np.int64), ranks - 1)
    return found


def _ids(rng: np.random.Generator, count: int, ids: Ids) -> pa.Array:
    """(count,) distinct ids in random order: no dense range, as real ones are none."""
    numbers = np.unique(rng.integers(0, 2**52, count + count // 50 + 16))
    drawn = pa.array(rng.permutation(numbers)[:count])
    if ids == "int64":
        return drawn
    word, hyphen = (pa.scalar(part, pa.large_string()) for part in ("id", "-"))
    return pc.binary_join_element_wise(word, drawn.cast(pa.large_string()), hyphen)


def users_table(world: World, *, users: int | None = None, lengths: Lengths = "lognormal", seed: int = 0) -> pa.Table:
    """Make user_id, item_history and provider_history, as `ipsrec score` reads them; all users unless fewer are asked.

    A table of fewer users is no part of the table of all. `full` histories have max_len items each.
    """
    rng = np.random.default_rng([seed, 5])
    count = world.size.users if users is None else users
    counts = history_lengths(rng, count, world.size.mean_length)
    if lengths == "full":
        counts = np.full(count, world.size.max_len)
    offsets = pa.array(np.concatenate([[0], np.cumsum(counts)]).astype(np.int32))
    items = world.by_popularity[zipf_ranks(rng, int(counts.sum()), world.size.items)]
    providers = world.catalog.item_provider[items].astype(np.int64)
    columns = {"user_id": pa.array(np.arange(count))}
    for name, ids, index in (
        ("item_history", world.catalog.item_ids, items),
        ("provider_history", world.catalog.provider_ids, providers),
    ):
        columns[name] = pa.ListArray.from_arrays(offsets, ids.take(pa.array(index - 1)))
    return pa.table(columns)


def users_file(
    folder: Path,
    name: str,
    *,
    users: int | None = None,
    kind: Kind = "trained",
    ids: Ids = "int64",
    lengths: Lengths = "lognormal",
) -> Path:
    """Write the users of a size unless they lie there already; the path says what they are."""
    count = size_of(name).users if users is None else users
    path = folder / f"{name}-{kind}-{ids}-{count}{'' if lengths == 'lognormal' else '-full'}.parquet"
    if not path.is_file():
        folder.mkdir(parents=True, exist_ok=True)
        table = users_table(make_world(size_of(name), kind=kind, ids=ids), users=users, lengths=lengths)
        unfinished = path.with_suffix(".unfinished")
        pq.write_table(table, unfinished, compression="zstd", row_group_size=_GROUP_ROWS)
        unfinished.replace(path)
    return path


def main() -> None:
    """Make users and a model file, print one JSON object with their paths."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", choices=list(SIZES), required=True)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--users", type=int, help="Fewer users than the size has.")
    parser.add_argument("--embeddings", choices=get_args(Kind), default="trained")
    parser.add_argument("--ids", choices=get_args(Ids), default="int64")
    parser.add_argument("--model", choices=["sasrec", "ipsrec-s", "ipsrec-c"], help="Make a model file, too.")
    parser.add_argument("--history-terms", choices=["none", "seen", "all"], default="none")
    arguments = parser.parse_args()
    alike: dict[str, Any] = {"kind": arguments.embeddings, "ids": arguments.ids}
    started = time.perf_counter()
    made: dict[str, Any] = {
        "users": str(users_file(arguments.folder, arguments.size, users=arguments.users, **alike)),
        "users_s": time.perf_counter() - started,
    }
    if arguments.model is not None:
        from synthetic_model import model_file

        started = time.perf_counter()
        path = model_file(
            arguments.folder, arguments.size, model=arguments.model, history_terms=arguments.history_terms, **alike
        )
        made |= {"model": str(path), "model_s": time.perf_counter() - started}
    print(json.dumps(made))


if __name__ == "__main__":
    main()
