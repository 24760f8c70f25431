"""What does the CPU's part of a search on a GPU cost a user, and how much less is that than searching on the CPU?

    python benchmarks/bench_proposed.py
    python benchmarks/bench_proposed.py --size wechat --kind gaussian

Top-100 of all items, one thread. Proposals are what a GPU would give: the best 135 by the plain score, found by the CPU
before the clock starts. Ways: plain; with 20 seen items a user; with these and history terms, whose items are proposed,
too (as with Triton), or all looked at by the CPU (as with the ONNX graph). Lists have to be those of retrieve(), which
is timed in the same rounds on fewer users. No GPU is needed.
"""

from __future__ import annotations

import argparse
import functools
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
from rounds import ROUNDS, in_turn, print_json, ratio_in_rounds
from synthetic import SIZES, make_world, user_embeddings, zipf_ranks

from ipsrec_kernels.history_items import History, HistoryTerms
from ipsrec_kernels.item_table import ItemTable, build_item_table
from ipsrec_kernels.proposals import Proposals
from ipsrec_kernels.proposed import retrieve_proposed
from ipsrec_kernels.ragged import Ragged
from ipsrec_kernels.topk import retrieve

TOP_K, PROPOSED, SEEN = 100, 135, 20
USERS, SEARCHED = 8192, 512


def main() -> None:
    """Time the ways; print a table and one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", choices=list(SIZES), default="tmall")
    parser.add_argument("--kind", choices=["trained", "gaussian"], default="trained")
    parser.add_argument("--users", type=int, default=USERS)
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    arguments = parser.parse_args()
    world = make_world(SIZES[arguments.size], kind=arguments.kind)
    table = build_item_table(world.embeddings, world.catalog.item_provider, allowed=None)
    users = user_embeddings(world.embeddings, arguments.users, kind=arguments.kind)
    ranks = zipf_ranks(np.random.default_rng(7), arguments.users * SEEN, world.size.items)
    items = world.by_popularity[ranks].astype(np.int32)
    offsets = np.arange(arguments.users + 1) * SEEN
    seen, history = Ragged(items, offsets), History(items, world.catalog.item_provider[items], offsets)
    weights = np.linspace(1.0, 0.1, SEEN)
    plain: dict[str, Any] = {"seen": None, "history": None, "terms": None, "max_per_provider": None}
    rules: dict[str, dict[str, Any]] = {
        "plain": plain,
        "seen": {**plain, "seen": seen},
        "seen, history terms": {**plain, "seen": seen, "history": history, "terms": HistoryTerms(weights, weights)},
    }
    proposals = propose(functools.partial(retrieve, table, users, candidates=None, **plain), top_k=PROPOSED)
    terms = "seen, history terms"
    rules["the same, proposed"] = rules[terms]
    of_providers = touched(functools.partial(retrieve, table, users, candidates=None, **rules[terms]), history, table)
    ways: dict[str, Callable[[], Any]] = {}
    for name, rule in rules.items():
        given = proposals._replace(touched=of_providers) if name == "the same, proposed" else proposals
        work = functools.partial(retrieve_proposed, table, users, given, top_k=TOP_K, **rule)
        lists, certain = work()
        few = min(SEARCHED, arguments.users)
        search = functools.partial(retrieve, table, users[:few], top_k=TOP_K, candidates=None, **first(rule, few))
        expected = search()
        known = certain[:few]
        assert all(np.array_equal(a[:few][known], b[known]) for a, b in zip(lists, expected, strict=True)), name
        ways[name] = work
        ways[f"{name}, the CPU's search"] = search
        print(f"{name}: {certain.mean():.1%} of the lists are certain")
    timed = in_turn(ways, None, rounds=arguments.rounds)
    found: dict[str, Any] = {}
    for name in rules:
        ours, whole = timed[name], timed[f"{name}, the CPU's search"]
        per_user = 1e6 * ours.median / arguments.users
        times_as_fast = ratio_in_rounds(whole, ours) * arguments.users / few
        print(f"{name:22} {per_user:8.1f} us/user, {times_as_fast:6.1f}x the CPU's search")
        found[name] = {"us_per_user": per_user, "against_search": times_as_fast, **ours.to_json()}
    print_json({"benchmark": "proposed", "size": arguments.size, "kind": arguments.kind, **found})


def propose(search: Callable[..., Any], *, top_k: int) -> Proposals:
    """The best items of each user, and what the next one scores at most: the last one's score."""
    started = time.perf_counter()
    found = search(top_k=top_k)
    print(f"proposals made in {time.perf_counter() - started:.1f} s")
    return Proposals(found.item_index, found.scores[:, -1].copy())


def touched(search: Callable[..., Any], history: History, table: ItemTable) -> npt.NDArray[np.int32]:
    """(B, PROPOSED) items of each history's providers that are among the best with terms; 0 fills up."""
    best = search(top_k=PROPOSED).item_index
    providers = history.providers.reshape(len(best), SEEN)
    own = (table.item_provider[best][:, :, None] == providers[:, None, :]).any(axis=2)
    found: npt.NDArray[np.int32] = np.where(own, best, 0)
    return found


def first(rule: dict[str, Any], count: int) -> dict[str, Any]:
    """The rule of the first users."""
    cut = {
        name: part._replace(offsets=part.offsets[: count + 1])
        for name, part in rule.items()
        if hasattr(part, "offsets")
    }
    return {**rule, **cut}


if __name__ == "__main__":
    main()
