"""How fast is exact top-k over the whole catalog, against what others have, and against the sgemm limit?

    python benchmarks/bench_retrieval.py
    python benchmarks/bench_retrieval.py --size twitch --kind gaussian --top-k 10
    python benchmarks/bench_retrieval.py --short

User vectors come ready (synthetic.py). All ways run in turn, in two threads. Peers: ONNX Runtime (MatMul, TopK), torch
(matmul, topk), NumPy (matmul, argpartition), and faiss (IndexFlatIP) and implicit (cpu.topk) where they are installed.
Each gets as many users at once as suits it. Before timing, each peer's k-th score must be ours up to float32 rounding.
The limit is sgemm: a method that multiplies each user with each item in float32 makes at most peak / (2 * dim * items)
users a second. Above 1 means faster than any such method could be.

Costs are the time of ours with one thing more, over ours without: 50 seen items a user, at most 3 items of a provider,
history terms (histories of the size's lengths, the last max_len), and these where the 20,000 most popular items are of
one provider, whom nearly everybody then knows. Each is the median over pairs of samples, one right after the other.
"""

from __future__ import annotations

import argparse
import functools
import platform
import statistics
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numba
import numpy as np
import numpy.typing as npt
import onnxruntime
import torch
from limits import Limits, cpu_model
from retrieval_peers import Scores, make_peers
from rounds import ROUNDS, Timed, in_turn, print_json, ratio_in_rounds
from synthetic import DIM, SIZES, World, history_lengths, make_world, user_embeddings, zipf_ranks

from ipsrec_kernels.cpu import PATHS, Path
from ipsrec_kernels.history_items import History, HistoryTerms
from ipsrec_kernels.item_table import ItemTable, build_item_table
from ipsrec_kernels.ragged import Ragged
from ipsrec_kernels.topk import retrieve

THREADS = 2
USERS = 2 * 768  # for ours
CALL_USERS = 384  # of one call of ours
PEER_USERS = {"onnxruntime": 128, "torch": 128, "numpy": 64, "faiss": 256, "implicit": 128}
SEEN = 50
CAP = 3
LARGEST = 20_000  # items of the provider that nearly everybody knows


def main() -> None:
    """Time ours, peers and filters; print tables and one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", choices=list(SIZES), default="tmall")
    parser.add_argument("--kind", choices=["trained", "gaussian"], default="trained")
    parser.add_argument("--top-k", type=int, default=100)
    parser.add_argument("--path", choices=PATHS, help="How to scan; by default the fastest that this CPU can.")
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--short", action="store_true", help="Three rounds.")
    arguments = parser.parse_args()
    rounds = 3 if arguments.short else arguments.rounds
    world = make_world(SIZES[arguments.size], kind=arguments.kind)
    users = user_embeddings(world.embeddings, USERS, kind=arguments.kind)
    started = time.perf_counter()
    table = build_item_table(world.embeddings, world.catalog.item_provider, allowed=None, path=arguments.path)
    print(
        f"{cpu_model()}, Python {platform.python_version()}, Numba {numba.__version__}, NumPy {np.__version__}, "
        f"ONNX Runtime {onnxruntime.__version__}, torch {torch.__version__}; {world.size.items:,} items x {DIM}, "
        f"{arguments.kind}, top-{arguments.top_k}, {THREADS} threads; index of {index_mb(table):,.0f} MB "
        f"in {time.perf_counter() - started:.1f} s, scanned as {table.panels.dtype}"
    )
    with Limits(THREADS) as limits, ThreadPoolExecutor(THREADS) as pool:
        peers = bench_peers(table, users, pool, limits, top_k=arguments.top_k, rounds=rounds)
        costs = bench_costs(world, table, users, pool, path=arguments.path, top_k=arguments.top_k, rounds=5 * rounds)
    print_json({**peers, **costs, "size": arguments.size, "kind": arguments.kind, "top_k": arguments.top_k})


def index_mb(table: ItemTable) -> float:
    """Megabytes of the index beside the embeddings and providers that the model has anyway."""
    arrays = table._asdict()
    return sum(arrays[name].nbytes for name in arrays if name not in ("item_embeddings", "item_provider", "dim")) / 1e6


def bench_peers(
    table: ItemTable, users: Scores, pool: ThreadPoolExecutor, limits: Limits, *, top_k: int, rounds: int
) -> dict[str, Any]:
    """Time ours against every peer that is there."""
    peers = make_peers(table.item_embeddings[1:], top_k=top_k, threads=THREADS)
    ours = functools.partial(retrieve_all, pool, table, users, plain(top_k))
    scores = ours()
    for name, peer in peers.items():
        found = np.sort(peer(users[: PEER_USERS[name]]), axis=1)[:, ::-1]
        np.testing.assert_allclose(found, scores[: len(found)], rtol=2e-5, atol=1e-5, err_msg=name)
    peaks: list[float] = []  # GFLOP/s, before and after each sample of ours: both then have the same cores
    ways: dict[str, Callable[[], object]] = {
        "sgemm before": lambda: peaks.append(limits.sgemm_gflop_per_s()),
        "ours": ours,
        "sgemm after": lambda: peaks.append(limits.sgemm_gflop_per_s()),
    }
    for name, peer in peers.items():
        ways[name] = functools.partial(peer, users[: PEER_USERS[name]])
    timed = in_turn(ways, limits, rounds=rounds)
    limits_by_round = [
        max(pair) * 1e9 / (2 * DIM * int(table.allowed.sum())) for pair in zip(*[iter(peaks)] * 2, strict=True)
    ]
    shares = [USERS / seconds / limit for seconds, limit in zip(timed["ours"].seconds, limits_by_round, strict=True)]
    limit = statistics.median(limits_by_round)
    counts = {"ours": USERS, **{name: PEER_USERS[name] for name in peers}}
    rates = {name: count / timed[name].median for name, count in counts.items()}
    for name in sorted(rates, key=lambda name: -rates[name]):
        rate = timed[name].spread(counts[name], " users/s")
        print(f"{name:>12} {rate:>34}, {timed[name].whole} of {rounds} with two cores")
    print(f"{'sgemm limit':>12} {limit:,.0f} users/s, ours {statistics.median(shares):.2f} of it, beside each sample")
    best = max(peers, key=lambda name: rates[name])
    share = USERS / PEER_USERS[best]
    return {
        "retrieval_vs_best_peer": ratio_in_rounds(timed[best], timed["ours"]) * share,
        "best_peer": best,
        "retrieval_vs_sgemm_limit": statistics.median(shares),
        "sgemm_limit_shares": shares,
        "users_per_s": rates,
        "two_cores": {name: timed[name].whole for name in rates},
    }


def bench_costs(
    world: World,
    table: ItemTable,
    users: Scores,
    pool: ThreadPoolExecutor,
    *,
    path: Path | None,
    top_k: int,
    rounds: int,
) -> dict[str, float]:
    """Time ours with each filter, and with history terms, against ours without.

    One after the other without a pause, many times: a cost of some percent is less than a phase of the machine, and a
    sample lasts a fifth of a second.
    """
    rng = np.random.default_rng(5)
    seen = histories(world, rng, np.full(USERS, SEEN))
    lengths = np.minimum(history_lengths(rng, USERS, world.size.mean_length), world.size.max_len)
    recent = histories(world, rng, lengths)
    ages = 1.0 / (1.0 + np.arange(world.size.max_len))
    terms = HistoryTerms(ages, ages)
    item_provider = world.catalog.item_provider.copy()
    item_provider[world.by_popularity[:LARGEST]] = 1
    one_large = build_item_table(world.embeddings, item_provider, allowed=None, path=path)

    def history(providers: npt.NDArray[np.int32]) -> History:
        return History(recent.values, providers[recent.values], recent.offsets)

    changes: dict[str, tuple[ItemTable, dict[str, Any]]] = {
        "plain": (table, {}),
        "seen_filter_cost": (table, {"seen": seen}),
        "provider_cap_cost": (table, {"max_per_provider": CAP}),
        "history_terms_cost": (table, {"history": history(table.item_provider), "terms": terms}),
        "large_provider_cost": (one_large, {"history": history(item_provider), "terms": terms}),
    }
    ways = {
        name: functools.partial(retrieve_all, pool, laid_out, users, plain(top_k) | change)
        for name, (laid_out, change) in changes.items()
    }
    costs: dict[str, float] = {}
    for name in list(ways)[1:]:
        pair = {"plain": ways["plain"], name: ways[name]}
        for work in pair.values():
            work()
        timed: dict[str, Timed] = in_turn(pair, None, rounds=rounds)
        costs[name] = ratio_in_rounds(timed[name], timed["plain"]) - 1.0
        print(f"{name:>20} {costs[name]:+7.1%}  {timed[name].spread(USERS, ' users/s')}")
    return costs


def plain(top_k: int) -> dict[str, Any]:
    """What retrieve() is asked for when nothing is filtered."""
    none = dict.fromkeys(("seen", "history", "terms", "candidates", "max_per_provider"))
    return {**none, "top_k": top_k}


def histories(world: World, rng: np.random.Generator, lengths: npt.NDArray[np.int64]) -> Ragged:
    """Histories of these lengths, by popularity."""
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    ranks = zipf_ranks(rng, int(offsets[-1]), world.size.items)
    return Ragged(world.by_popularity[ranks].astype(np.int32), offsets)


def retrieve_all(pool: ThreadPoolExecutor, table: ItemTable, users: Scores, asked: dict[str, Any]) -> Scores:
    """Our lists' scores, (users, top_k), from calls that share the threads."""

    def one(first: int) -> Scores:
        some = slice(first, first + CALL_USERS)
        mine = dict(asked)
        for name in ("seen", "history"):
            if mine[name] is not None:
                mine[name] = mine[name]._replace(offsets=mine[name].offsets[first : first + CALL_USERS + 1])
        return retrieve(table, users[some], **mine).scores

    return np.concatenate(list(pool.map(one, range(0, len(users), CALL_USERS))))


if __name__ == "__main__":
    main()
