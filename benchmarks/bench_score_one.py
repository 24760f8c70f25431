"""How long does one user take, one at a time, on one thread?

    python benchmarks/bench_score_one.py --size twitch --history-terms all --folder .bench
    python benchmarks/bench_score_one.py --model .demo/ipsrec_c.onnx
    python benchmarks/bench_score_one.py --short

Three ways, in turn for each 50 users, so that each has the caches to itself and the same phases of the machine:

- naive: what one would write without this package: look the ids up in a dict, run the file's graph for the one user (a
  batch of one, no padding), multiply with the whole item table in NumPy, set what was seen to -inf, argpartition, sort
  the best, ids from an array. It leaves history terms out.
- onnxruntime: `Scorer(model).score_one(history)`.
- fused: `Scorer(model, encoder="fused").score_one(history)`; left out where there are no kernels for the model.

Top-100, seen items left out; NumPy's product has one thread, as everything here. Users are drawn: lengths are
lognormal (median 10, sigma 0.9, 1 to 200), items by their popularity in the model file. Before timing, the two encoders
must give like scores, and the naive way the same items where the model has no history terms: 0.99 of them, for its sums
are float32.

In the JSON, for each model: p50_ms, p95_ms and p99_ms of each way over all users; the same of the thread's processor
time (cpu_p50_ms, ...), which does not count how long a shared machine lets the thread wait; and WAY_vs_naive, the
median over users of naive's time divided by the way's: above 1, the way is faster.
"""

# ruff: noqa: E402 - NumPy reads the number of its threads when it is loaded

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

for library in ("OPENBLAS", "OMP", "MKL"):
    os.environ[f"{library}_NUM_THREADS"] = "1"

import numpy as np
import onnxruntime
import pyarrow as pa
from limits import cpu_model
from rounds import print_json
from synthetic import SIZES

from ipsrec_onnx import Scorer
from ipsrec_onnx.errors import ModelFileError
from ipsrec_onnx.model_file import ModelFile, open_model_file

TOP_K = 100
WARM_UP = 20
TURN = 50
CLOSE = 1e-4  # relative, of the scores of two encoders
SAME_ITEMS = 0.99

Way = Callable[[list[Any]], tuple[list[Any], list[float]]]


def main() -> None:
    """Time each model; print a table a model and one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, action="append", default=[], help="a model file; may be repeated")
    parser.add_argument("--size", choices=sorted(SIZES), help="a synthetic one, made once; wechat where none is named")
    parser.add_argument("--history-terms", choices=["none", "seen", "all"], default="none", help="of the synthetic one")
    parser.add_argument("--folder", type=Path, default=Path(".bench"), help="of the synthetic one")
    parser.add_argument("--users", type=int, default=2000)
    parser.add_argument("--short", action="store_true", help="a tenth of the users")
    arguments = parser.parse_args()
    files = list(arguments.model)
    if arguments.size or not files:
        from synthetic_model import model_file  # needs torch

        size = arguments.size or "wechat"
        files.append(model_file(arguments.folder, size, history_terms=arguments.history_terms))
    print(f"{cpu_model()}, 1 thread, top-{TOP_K}, onnxruntime {onnxruntime.__version__}, numpy {np.__version__}")
    figures: dict[str, Any] = {"benchmark": "score_one", "threads": 1, "top_k": TOP_K}
    for file in files:
        figures[file.stem] = run(file, users=arguments.users // (10 if arguments.short else 1))
    print_json(figures)


def run(file: Path, *, users: int) -> dict[str, Any]:
    """Time all ways of one model; gives quantiles and ratios."""
    model = open_model_file(file)
    histories = drawn_histories(model, users + WARM_UP)
    ways: dict[str, Way] = {"naive": naive_way(model), "onnxruntime": scorer_way(Scorer(file, threads=1))}
    try:
        ways["fused"] = scorer_way(Scorer(file, encoder="fused", threads=1))
    except ModelFileError as error:
        print(f"fused left out: {error}")
    compare(ways, histories[:WARM_UP], exact_items=model.history_terms is None)
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    cpu_s: dict[str, list[float]] = {name: [] for name in ways}
    for first in range(WARM_UP, len(histories), TURN):
        for name, way in ways.items():
            for history in histories[first : first + TURN]:
                started, cpu_started = time.perf_counter(), time.thread_time()
                way(history)
                cpu_s[name].append(time.thread_time() - cpu_started)
                seconds[name].append(time.perf_counter() - started)
    return report(file, model, seconds, cpu_s)


def naive_way(model: ModelFile) -> Way:
    """The first script that comes to mind, for one user."""
    item_ids = model.catalog.item_ids.to_pylist()
    index_of = {item_id: row for row, item_id in enumerate(item_ids, start=1)}
    table, item_provider, session = model.item_embeddings, model.catalog.item_provider, model.session

    def way(history: list[Any]) -> tuple[list[Any], list[float]]:
        seen = np.array([index_of[item_id] for item_id in history if item_id in index_of], np.int32)
        newest = seen[-model.max_len :]
        feed = {
            "item_history": newest[None],
            "provider_history": item_provider[newest][None],
            "lengths": np.array([len(newest)], np.int32),
        }
        scores = table @ session.run(["user_embedding"], feed)[0][0]  # (num_items + 1,)
        scores[0] = -np.inf
        scores[seen] = -np.inf
        best = np.argpartition(-scores, TOP_K)[:TOP_K]
        best = best[np.argsort(-scores[best])]
        return [item_ids[row - 1] for row in best], scores[best].tolist()

    return way


def scorer_way(scorer: Scorer) -> Way:
    """What is measured."""

    def way(history: list[Any]) -> tuple[list[Any], list[float]]:
        found = scorer.score_one(history, top_k=TOP_K)
        return found.item_ids, found.scores

    return way


def drawn_histories(model: ModelFile, users: int) -> list[list[Any]]:
    """Histories of item ids, as Python has them."""
    rng = np.random.default_rng(0)
    lengths = np.clip(rng.lognormal(np.log(10), 0.9, users), 1, 200).astype(np.int64)
    popularity = model.catalog.popularity[1:].astype(np.float64) + 1.0  # what training never met counts, too
    rows = rng.choice(len(popularity), lengths.sum(), p=popularity / popularity.sum())
    ids = model.catalog.item_ids.take(pa.array(rows)).to_pylist()
    stops = np.cumsum(lengths)
    return [ids[stop - length : stop] for stop, length in zip(stops, lengths, strict=True)]


def compare(ways: dict[str, Way], histories: list[list[Any]], *, exact_items: bool) -> None:
    """Warm up, and check that the ways answer the same question."""
    shared: list[float] = []
    for history in histories:
        lists = {name: way(history) for name, way in ways.items()}
        items, scores = lists["onnxruntime"]
        assert len(items) == TOP_K
        if "fused" in lists:
            apart = np.abs(np.subtract(lists["fused"][1], scores)).max()
            assert apart <= CLOSE * np.abs(scores).max(), f"scores of the two encoders are {apart} apart"
        shared.append(len(set(items) & set(lists["naive"][0])) / TOP_K)
    assert not exact_items or np.mean(shared) >= SAME_ITEMS, f"naive has {np.mean(shared)} of the items"


def report(
    file: Path, model: ModelFile, seconds: dict[str, list[float]], cpu_s: dict[str, list[float]]
) -> dict[str, Any]:
    """Print one model; gives its figures."""
    terms = "no" if model.history_terms is None else "with"
    print(f"\n{file.stem}: {model.catalog.num_items:,} items, max_len {model.max_len}, {terms} history terms")
    print(f"{'':<12} {'ms: p50':>8} {'p95':>8} {'p99':>8} {'CPU: p50':>8} {'p95':>8} {'p99':>8} {'naive / it':>10}")
    figures: dict[str, Any] = {"items": model.catalog.num_items, "users": len(seconds["naive"])}
    for name, taken in seconds.items():
        quantiles = {
            f"{clock}p{share}_ms": 1e3 * float(np.percentile(times, share))
            for clock, times in (("", taken), ("cpu_", cpu_s[name]))
            for share in (50, 95, 99)
        }
        ratio = float(np.median(np.divide(seconds["naive"], taken)))
        print(f"{name:<12} " + " ".join(f"{ms:>8.2f}" for ms in quantiles.values()) + f" {ratio:>10.2f}")
        figures[name] = quantiles
        if name != "naive":
            figures[f"{name}_vs_naive"] = ratio
    return figures


if __name__ == "__main__":
    main()
