"""How long does one user take on one thread where an edge file runs: in Python, in Node, and in a browser?

    python benchmarks/bench_edge.py --markdown edge.md
    python benchmarks/bench_edge.py --items 100000 --precisions int8
    python benchmarks/bench_edge.py --tiny

Files hold IPSRec-C of the paper's size (64 wide, 2 layers, max_len 50) with history terms and a synthetic catalog of
10^4, 10^5 and 10^6 items, a hundredth as many providers, int64 ids below 2^31; weights are drawn, nothing is trained.
top-100, seen items left out. Graphs are those that `ipsrec export --profile edge` writes, all weights in one precision;
only the metadata beside them is missing. Users are drawn: lengths are lognormal (median 20, sigma 0.9, 1 to 200),
items by popularity.

- torch: the rival, the module itself in PyTorch eager: ids looked up in a dict, the item table made of items and
  providers as the module does, `encode_last`, one product with the whole table, history terms by index_add, what was
  seen to -inf, torch.topk;
- torch-kept: the same with the item table made once, a stronger rival;
- python, node, browser: ONNX Runtime with the edge file; the browser is a headless chromium with WebAssembly.

Each is a process of its own with one thread, timed from a history of ids as text to a list of ids as text or numbers.
They take 20 users in turn. Before timing, all ways must give torch's list: for fp32 the same items but where
float32's sums tie, for the others how many of the items are the same is told (`overlap`).

In the JSON, for each number of items, precision and way: p50_ms, p95_ms and p99_ms; cpu_p50_ms, ... of the process's
time on processors, which a shared machine does not stretch so (a browser does not tell); load_ms, the lowest of a few
processes, to open the file and nothing else; pss_mb and anonymous_mb that the process has more after one user; overlap
with torch's lists; vs_torch and vs_torch_kept, the median over users of a rival's time divided by the way's: above 1,
the way is faster; cpu_vs_torch and cpu_vs_torch_kept, likewise. file_bytes is of the precision.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import Any, get_args

import numpy as np
import onnx
import onnxruntime
import pyarrow as pa
import torch
from edge_workers import (
    NODE_MODULES,
    TURN,
    Worker,
    browser_command,
    node_command,
    python_command,
    quantiles,
    times_in_turn,
)
from limits import cpu_model
from rounds import print_json
from safetensors.torch import save_file
from synthetic import Size, World, make_world
from synthetic_model import make_model

from ipsrec_export.comparison import VALIDATION_USERS
from ipsrec_export.edge_graph import EdgeRules
from ipsrec_export.graph import build_graph
from ipsrec_export.trials import EdgeTrial
from ipsrec_export.weight_storage import Kind
from ipsrec_kernels.history_items import HistoryTerms
from ipsrec_onnx.ids import find_ids
from ipsrec_train.batches import Histories
from ipsrec_train.model import Model

SIZES = (10_000, 100_000, 1_000_000)
ITEMS_A_PROVIDER = 100  # Tmall has 114
MAX_LEN, TOP_K = 50, 100
USERS, WARM_UP = 600, TURN
PROCESSES = 3  # that open each file
RIVALS = ("torch", "torch-kept")
WAYS = ("python", "node", "browser")
SAME_ITEMS = 0.999  # in float32, of the items of all lists


def main() -> None:
    """Time all ways at every size and precision; print a table and one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--items", type=int, action="append", help=f"may be repeated; {', '.join(map(str, SIZES))}")
    parser.add_argument("--precisions", nargs="+", choices=get_args(Kind), default=list(get_args(Kind)))
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=list(WAYS), help="beside PyTorch")
    parser.add_argument("--users", type=int, default=USERS, help="that are timed")
    parser.add_argument("--node-modules", type=Path, default=NODE_MODULES, help="where ONNX Runtime's npm packages are")
    parser.add_argument("--markdown", type=Path, help="write the table there, too")
    parser.add_argument("--keep", type=Path, help="leave the edge files in this folder")
    parser.add_argument("--tiny", action="store_true", help="proves the script, measures nothing")
    arguments = parser.parse_args()
    sizes = [600] if arguments.tiny else arguments.items or list(SIZES)
    users = TURN if arguments.tiny else arguments.users
    about = f"{cpu_model()}, one thread, top-{TOP_K}, onnxruntime {onnxruntime.__version__}, torch {torch.__version__}"
    print(about)
    figures: dict[str, Any] = {"benchmark": "edge", "threads": 1, "top_k": TOP_K, "max_len": MAX_LEN, "users": users}
    for num_items in sizes:
        figures[str(num_items)] = run(num_items, arguments, users=users)
    table = as_markdown(figures, sizes)
    print("\n" + table)
    if arguments.markdown:
        arguments.markdown.write_text(f"{about}\n\n{table}", encoding="utf-8")
    print_json(figures)


def run(num_items: int, arguments: argparse.Namespace, *, users: int) -> dict[str, Any]:
    """All precisions and ways at one size."""
    world = edge_world(num_items)
    net = make_model(world, model="ipsrec-c", history_terms="all")
    histories = drawn_histories(world, WARM_UP + users)
    figures: dict[str, Any] = {"providers": world.catalog.num_providers}
    with tempfile.TemporaryDirectory() as scratch, ExitStack() as stack:
        folder = arguments.keep or Path(scratch)
        folder.mkdir(parents=True, exist_ok=True)
        users_file = folder / f"users-{num_items}.json"
        users_file.write_text(json.dumps([list(map(str, history)) for history in histories]), encoding="utf-8")
        saved = folder / f"net-{num_items}.safetensors"
        about = {"model": net.name, "settings": asdict(net.settings), "top_k": TOP_K, "max_len": MAX_LEN}
        tensors = {
            "item_provider": net.item_provider,
            "item_ids": torch.from_numpy(world.catalog.item_ids.to_numpy().copy()),
        }
        save_file({**net.state_dict(), **tensors}, saved, metadata={"about": json.dumps(about)})
        trial = edge_trial(net, world)
        workers = {}
        for rival in RIVALS:
            figures[rival] = {}
            workers[rival] = opened(python_command(rival, saved, users_file), figures[rival], stack)
        for precision in arguments.precisions:
            model = folder / f"edge-{num_items}-{precision}.onnx"
            kinds: dict[str, Kind] = {weight.name: precision for weight in trial.weights}
            onnx.save(trial.build(kinds), model)
            figures[precision] = {"file_bytes": model.stat().st_size}
            commands = {
                "python": python_command("onnxruntime", model, users_file),
                "node": node_command(model, users_file, modules=arguments.node_modules),
                "browser": browser_command(model, users_file, modules=arguments.node_modules),
            }
            for way in arguments.ways:
                if (command := commands[way]) is None:
                    print(f"{way} left out: it is not installed")
                    continue
                found: dict[str, Any] = {}
                figures[precision][way] = found
                workers[f"{precision} {way}"] = opened(command, found, stack)
        compare(workers, figures)
        times = times_in_turn(workers, first=WARM_UP, count=users)
    for name, taken in times.items():
        precision, _, way = name.rpartition(" ")
        found = figures[precision][way] if precision else figures[way]
        found |= quantiles(taken)
        for rival in RIVALS:
            found[f"vs_{rival.replace('-', '_')}"] = ratio(times[rival]["ms"], taken["ms"])
            if "cpu_ms" in taken:
                found[f"cpu_vs_{rival.replace('-', '_')}"] = ratio(times[rival]["cpu_ms"], taken["cpu_ms"])
    return figures


def ratio(slow: list[float], fast: list[float]) -> float:
    """How many times as fast `fast` is: the median over users."""
    return float(np.median(np.divide(slow, fast)))


def opened(command: Sequence[str | Path], found: dict[str, Any], stack: ExitStack) -> Worker:
    """Start a worker, its file opened a few times before; notes the lowest figures of opening it."""
    openings = []
    for _ in range(PROCESSES - 1):
        with Worker(command) as worker:
            openings.append(worker.opened)
    worker = stack.enter_context(Worker(command))
    openings.append(worker.opened)
    found |= {figure: min(opening[figure] for opening in openings) for figure in worker.opened}
    return worker


def edge_world(num_items: int) -> World:
    """Items, providers and embeddings; ids as databases number them, below 2^31."""
    size = Size(10 * num_items, num_items, max(1, num_items // ITEMS_A_PROVIDER), 20.0, MAX_LEN)
    world = make_world(size)
    rng = np.random.default_rng(6)
    drawn = rng.permutation(np.unique(rng.integers(1, 2**31, num_items + num_items // 50 + 16)))[:num_items]
    return World(
        size,
        type(world.catalog)(
            pa.array(drawn), world.catalog.provider_ids, world.catalog.item_provider, world.catalog.popularity
        ),
        world.embeddings,
        world.by_popularity,
    )


def drawn_histories(world: World, users: int, *, seed: int = 0) -> list[list[int]]:
    """Item ids of users."""
    rng = np.random.default_rng(seed)
    lengths = np.clip(rng.lognormal(np.log(20), 0.9, users), 1, min(200, world.size.items // 3)).astype(np.int64)
    popularity = world.catalog.popularity[1:].astype(np.float64) + 1.0
    rows = rng.choice(len(popularity), lengths.sum(), p=popularity / popularity.sum())
    ids = world.catalog.item_ids.to_numpy()[rows]
    return [part.tolist() for part in np.split(ids, np.cumsum(lengths)[:-1])]


def edge_trial(net: Model, world: World) -> EdgeTrial:
    """What export makes edge files of a model with; other users than those that are timed stand for validation."""
    assert net.history_terms is not None
    terms = HistoryTerms(
        net.history_terms.provider_weights().detach().double().numpy(),
        net.history_terms.item_weights().detach().double().numpy(),
    )
    return EdgeTrial(
        build_graph(net),
        world.catalog,
        terms,
        max_len=MAX_LEN,
        rules=EdgeRules(top_k=TOP_K),
        validation=validation(world),
    )


def validation(world: World) -> Histories:
    """Histories of drawn users, the last item of each the target."""
    drawn = drawn_histories(world, VALIDATION_USERS, seed=1)
    lengths = [len(history) - 1 for history in drawn]
    item_ids = pa.array([item_id for history in drawn for item_id in history[:-1]])
    targets = pa.array([history[-1] for history in drawn])
    table = world.catalog.item_table
    return Histories(
        values=find_ids(table, item_ids),
        offsets=np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64),
        targets=find_ids(table, targets),
    )


def compare(workers: dict[str, Worker], figures: dict[str, Any]) -> None:
    """Warm up, and check the lists against torch's."""
    expected, _ = workers["torch"].lists(0, WARM_UP)
    for name, worker in workers.items():
        if name in RIVALS:
            continue
        precision, way = name.split()
        found, _ = worker.lists(0, WARM_UP)
        assert all(len(items) == TOP_K for items in found), f"{name}: a list is short"
        shared = [len(set(a) & set(b)) / TOP_K for a, b in zip(expected, found, strict=True)]
        figures[precision][way]["overlap"] = float(np.mean(shared))
        assert precision != "fp32" or np.mean(shared) >= SAME_ITEMS, f"{name} has {np.mean(shared)} of torch's items"


def as_markdown(figures: dict[str, Any], sizes: Sequence[int]) -> str:
    """The table of docs/edge.md."""
    lines = [
        "| items | precision | file, MB | runtime | p50, ms | p95, ms | p99, ms | CPU p50, ms "
        "| eager / it | kept / it | load, ms | memory, MB |",
        "|---|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for num_items in sizes:
        of_size = figures[str(num_items)]
        for precision in (*RIVALS, *get_args(Kind)):
            if precision not in of_size:
                continue
            of_precision = of_size[precision]
            name = "PyTorch eager" + (", table kept" if precision == "torch-kept" else "")
            ways = {name: of_precision} if precision in RIVALS else of_precision
            megabytes = f"{of_precision['file_bytes'] / 1e6:.2f}" if "file_bytes" in of_precision else ""
            for way, found in ways.items():
                if way == "file_bytes":
                    continue
                cells = [
                    f"{num_items:,}",
                    "fp32" if precision in RIVALS else precision,
                    megabytes,
                    way,
                    *(f"{found[f'p{share}_ms']:.2f}" for share in (50, 95, 99)),
                    f"{found['cpu_p50_ms']:.2f}" if "cpu_p50_ms" in found else "",
                    f"{found['vs_torch']:.1f}",
                    f"{found['vs_torch_kept']:.1f}",
                    f"{found['load_ms']:.0f}",
                    f"{found['anonymous_mb']:.0f}" if "anonymous_mb" in found else "",
                ]
                lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    for library in ("OPENBLAS", "OMP", "MKL"):
        os.environ.setdefault(f"{library}_NUM_THREADS", "1")  # of the workers, too
    main()
