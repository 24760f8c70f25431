"""How much time does `ipsrec score --since` save, when a share of the users has changed, in order and shuffled?

    python benchmarks/bench_since.py --size twitch --folder .bench --users 100001

Users and a model file of one of the paper's sizes (synthetic.py), top-100. The previous output is of the same users
before a share of them took one item more. In turn, each round: the whole job, and the job with --since for each share,
with the users in the order of the previous output and shuffled. All outputs are compared with whole jobs first. A ratio
is that of one round, so that both are of one phase of the machine. The floor is the share itself.
"""

from __future__ import annotations

import argparse
import functools
import platform
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from jobs import TOP_K
from limits import cpu_model
from rounds import in_turn, print_json
from synthetic import SIZES, users_file
from synthetic_model import model_file

from ipsrec_onnx.model_file import open_model_file
from ipsrec_onnx.score_report import ScoreReport
from ipsrec_onnx.scoring import score

SHARES = (0.0, 0.01, 0.1, 0.5)
ROW_GROUP = 8192


def main() -> None:
    """Measure one size, print a table and one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", choices=list(SIZES), default="twitch")
    parser.add_argument("--folder", type=Path, required=True, help="Where the synthetic data lie, or will.")
    parser.add_argument("--users", type=int, help="All of the size by default.")
    parser.add_argument("--encoder", choices=["onnxruntime", "fused"], default="onnxruntime")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    print(f"{cpu_model()}, {arguments.threads} threads, Python {platform.python_version()}, pyarrow {pa.__version__}")
    with tempfile.TemporaryDirectory() as scratch:
        print_json(run(arguments, Path(scratch)))


def run(arguments: argparse.Namespace, scratch: Path) -> dict[str, Any]:
    """Make the data, compare the bytes, time all ways in turn."""
    users = arguments.users or SIZES[arguments.size].users
    source = users_file(arguments.folder, arguments.size, users=users)
    model = model_file(arguments.folder, arguments.size)
    options: dict[str, Any] = {"top_k": TOP_K, "threads": arguments.threads, "encoder": arguments.encoder}
    options |= {"fingerprints": True, "overwrite": True}
    previous, out = scratch / "previous.parquet", scratch / "out.parquet"
    score(model, source, previous, **options)
    ways: dict[str, Callable[[], ScoreReport]] = {
        "whole job": functools.partial(score, model, source, scratch / "whole.parquet", **options)
    }
    carried: dict[str, float] = {}
    for order in ("in order", "shuffled"):
        for share in SHARES:
            name = f"{share:.0%} changed, {order}"
            changed = scratch / f"{name}.parquet"
            write_changed(source, changed, model, share=share, shuffled=order == "shuffled")
            since = functools.partial(score, model, changed, out, since=previous, **options)
            carried[name] = since().carried_users / users
            since_bytes = out.read_bytes()
            score(model, changed, out, **options)
            if since_bytes != out.read_bytes():
                raise SystemExit(f"bench_since: {name}: the bytes are not those of a whole job")
            ways[name] = since
    timed = in_turn(ways, None, rounds=arguments.rounds)
    whole = timed["whole job"]
    print(f"{arguments.size}, {users:,} users; whole job {whole.median:.1f} s, {users / whole.median:,.0f} users/s")
    print(f"{'':<26} {'carried over':>12} {'seconds':>8} {'of the whole job':>24}")
    figures: dict[str, Any] = {"users": users, "whole": whole.to_json()}
    for name, share in carried.items():
        ratios = sorted(a / b for a, b in zip(timed[name].seconds, whole.seconds, strict=True))
        middle = float(np.median(ratios))
        spread = f"{middle:.1%} [{ratios[0]:.1%}..{ratios[-1]:.1%}]"
        print(f"{name:<26} {share:>12.1%} {timed[name].median:>8.2f} {spread:>24}")
        figures[name] = {"carried": share, "ratio": middle, "ratios": ratios, **timed[name].to_json()}
    return figures


def write_changed(source: Path, target: Path, model: Path, *, share: float, shuffled: bool, seed: int = 0) -> None:
    """Write the users with one item more for a share of them, drawn at random; their providers are the catalog's."""
    rng = np.random.default_rng(seed)
    table, catalog = pq.read_table(source).combine_chunks(), open_model_file(model).catalog
    count = table.num_rows
    more = np.zeros(count, np.int64)
    more[rng.permutation(count)[: round(share * count)]] = 1
    index = rng.integers(1, catalog.num_items + 1, count)
    provider = catalog.item_provider[index]
    columns = {"user_id": table["user_id"]}
    for name, ids, added in (
        ("item_history", catalog.item_ids, index),
        ("provider_history", catalog.provider_ids, provider),
    ):
        lists = table[name].chunk(0)
        offsets = lists.offsets.to_numpy().astype(np.int64)
        lengths = np.diff(offsets) + more
        new_offsets = np.concatenate([[0], np.cumsum(lengths)])
        # Values stay in their order; what is added to user b comes after the old ones of b.
        old, added_ids = lists.values, ids.take(pa.array(added[more == 1] - 1))
        place = np.empty(int(new_offsets[-1]), np.int64)
        is_new = np.zeros(len(place), np.bool_)
        is_new[new_offsets[1:][more == 1] - 1] = True
        place[~is_new] = np.arange(len(old))
        place[is_new] = len(old) + np.arange(int(more.sum()))
        values = pa.concat_arrays([old, added_ids.cast(old.type)]).take(pa.array(place))
        columns[name] = pa.ListArray.from_arrays(pa.array(new_offsets.astype(np.int32)), values)
    changed = pa.table(columns)
    if shuffled:
        changed = changed.take(pa.array(rng.permutation(count)))
    pq.write_table(changed, target, compression="zstd", row_group_size=ROW_GROUP)


if __name__ == "__main__":
    main()
