"""How should an edge graph find int64 ids: with LabelEncoder, or with a search in the table of ids that it has anyway?

    python benchmarks/bench_edge_lookup.py
    python benchmarks/bench_edge_lookup.py --tiny

Both graphs turn ids into rows and rows back into ids, so both keep the table of ids once:

- label: LabelEncoder of ai.onnx.ml from ids to rows, which keeps ids and rows once more;
- search: 16 branches at a time, in standard operators, and the order that sorts the table.

Ids are drawn below 2^31, which a table keeps in 4 bytes and LabelEncoder in 6, or below 2^52 (`--wide`), 8 and 9.
Users have 50 ids, one in seven unknown. In Python's onnxruntime and, where they are installed, onnxruntime-node; one
thread each; 20 users of a way in turn. Before timing, all ways must find what a dict finds.

In the JSON, for each number of items, way and runtime: p50_ms, p95_ms and p99_ms of one user, load_ms of the file (the
lowest of three processes), pss_mb and anonymous_mb that the process has more afterwards, and file_bytes.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from edge_workers import NODE_MODULES, TURN, Worker, node_command, python_command, quantiles, times_in_turn
from limits import cpu_model
from onnx import TensorProto, helper
from rounds import print_json

from ipsrec_export.edge_graph import OPSET_ML
from ipsrec_export.graph import OPSET
from ipsrec_export.graph_nodes import GraphNodes
from ipsrec_export.id_search import add_id_search
from ipsrec_kernels.padding import PADDING

SIZES = (10_000, 100_000, 1_000_000)
HISTORY = 50
USERS, TINY_USERS = 400, 40
PROCESSES = 3  # that open each file
WAYS = ("label", "search")


def main() -> None:
    """Time both ways at every size; print a table and one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--wide", action="store_true", help="ids that need 8 bytes")
    parser.add_argument("--tiny", action="store_true", help="proves the script, measures nothing")
    parser.add_argument("--node-modules", type=Path, default=NODE_MODULES, help="where onnxruntime-node is")
    arguments = parser.parse_args()
    sizes, users = ((300,), TINY_USERS) if arguments.tiny else (SIZES, USERS)
    print(f"{cpu_model()}, 1 thread, {HISTORY} ids a user, ids below 2^{52 if arguments.wide else 31}")
    print(
        f"{'items':>9} {'way':<7} {'runtime':<7} {'file MB':>8} {'load ms':>8} {'anon. MB':>8} {'p50 ms':>7} {'p95':>7}"
    )
    figures: dict[str, Any] = {"benchmark": "edge_lookup", "history": HISTORY, "wide": arguments.wide}
    for num_items in sizes:
        figures[str(num_items)] = run(num_items, users=users, wide=arguments.wide, modules=arguments.node_modules)
    print_json(figures)


def run(num_items: int, *, users: int, wide: bool, modules: Path) -> dict[str, Any]:
    """Both ways at one size, in both runtimes."""
    rng = np.random.default_rng(0)
    drawn = np.unique(rng.integers(0, 2 ** (52 if wide else 31), num_items + num_items // 50 + 16))
    ids = rng.permutation(drawn)[:num_items]
    histories = rng.choice(ids, (TURN + users, HISTORY))
    histories[:, ::7] = rng.integers(-(2**62), 2**62, histories[:, ::7].shape)
    index_of = {item_id: index for index, item_id in enumerate(ids.tolist(), start=1)}
    expected = [[index_of.get(item_id, PADDING) for item_id in history] for history in histories[:TURN].tolist()]
    figures: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        users_file = Path(folder) / "users.json"
        users_file.write_text(json.dumps([list(map(str, history)) for history in histories.tolist()]), encoding="utf-8")
        workers: dict[str, Worker] = {}
        for way in WAYS:
            model = Path(folder) / f"{way}.onnx"
            onnx.save(lookup_graph(ids, way), model)
            commands = {
                "python": python_command("onnxruntime", model, users_file),
                "node": node_command(model, users_file, modules=modules),
            }
            for runtime, command in commands.items():
                if command is None:
                    continue
                name = f"{way}_{runtime}"
                opened = []
                for _ in range(PROCESSES):
                    with Worker(command) as worker:
                        opened.append(worker.opened)
                figures[name] = {
                    "file_bytes": model.stat().st_size,
                    **{figure: min(one[figure] for one in opened) for figure in opened[0]},
                }
                workers[name] = stack.enter_context(Worker(command))
                item_ids, found = workers[name].lists(0, TURN)
                assert found == expected, f"{name} finds other items"
                known = [[str(ids[index - 1]) if index else "0" for index in indexes] for indexes in expected]
                assert item_ids == known, f"{name} gives other ids back"
        for name, taken in times_in_turn(workers, first=TURN, count=users).items():
            figures[name] |= quantiles(taken)
    for name, found in figures.items():
        way, runtime = name.split("_")
        print(
            f"{num_items:>9,} {way:<7} {runtime:<7} {found['file_bytes'] / 1e6:>8.2f} {found['load_ms']:>8.1f} "
            f"{found['anonymous_mb']:>8.1f} {found['p50_ms']:>7.3f} {found['p95_ms']:>7.3f}"
        )
    return figures


def lookup_graph(ids: npt.NDArray[np.int64], way: str) -> onnx.ModelProto:
    """A graph that finds items, with the names of an edge graph: the rows found are its scores."""
    g = GraphNodes()
    if way == "search":
        found = add_id_search(g, "item_history", ids, table="item_id")
    else:
        found = g.add(
            "LabelEncoder",
            "item_history",
            domain="ai.onnx.ml",
            keys_int64s=ids.tolist(),
            values_int64s=list(range(1, len(ids) + 1)),
            default_int64=PADDING,
        )
        g.narrow_table("item_id", np.concatenate([[0], ids]))
    g.add("Cast", found, to=TensorProto.FLOAT, name="scores")
    g.add("Cast", g.add("Gather", "item_id", found), to=TensorProto.INT64, name="item_ids")
    g.add("Identity", "lengths", name="counts")
    whole, history = TensorProto.INT64, ["users", "history"]
    value = helper.make_tensor_value_info
    inputs = [value("item_history", whole, history), value("lengths", whole, ["users"])]
    outputs = [
        value("item_ids", whole, history),
        value("scores", TensorProto.FLOAT, history),
        value("counts", whole, ["users"]),
    ]
    graph = helper.make_graph(g.nodes, "lookup", inputs, outputs, g.initializers)
    opsets = [helper.make_opsetid("", OPSET), helper.make_opsetid("ai.onnx.ml", OPSET_ML)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=10)


if __name__ == "__main__":
    main()
