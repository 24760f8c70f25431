"""How fast is the whole job with SASRec, against three libraries that recommend with theirs?

    python benchmarks/peers/make_environments.py --folder .venv-peers
    python benchmarks/bench_peers.py --folder .bench --environments .venv-peers

Synthetic users and items of WeChat's size, 64 wide, 2 layers, 2 heads, max_len 100, top-100. Ours is `ipsrec score` as
a process on all users, in float32, with everything counted: start, model, Parquet in and out, ids, seen items left out.
Each peer is a process of its own that has its model and, but for RecTools, padded tensors ready; the docstrings in
peers/ say what is timed. Ours with an inner width of 64 stands beside the peers that have no wider one. Everything in
turn, five rounds. RecBole has our weights: its lists must be ours before anything is timed.
"""

from __future__ import annotations

import argparse
import functools
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from jobs import TOP_K, Jobs, first_users
from limits import Limits, cpu_model
from peers.make_environments import PEERS
from rounds import ROUNDS, in_turn, print_json, ratio_in_rounds
from synthetic import SIZES, make_world, users_file
from synthetic_model import make_model, model_file

from ipsrec_kernels.padding import PADDING
from ipsrec_onnx.ids import find_ids, plain_ids

SIZE = "wechat"
PEER_USERS = {"rectools": 1024, "recbole": 1024, "replay": 2048}
COMPARED = 256  # users whose lists are compared with RecBole's
LEAST_OVERLAP = 0.999


class Peer:
    """A peer's script in its environment; a context manager.

    Args:
        name: of the peer, and of its environment's folder.
        environments: folder that make_environments.py made.
        data: the .npz file.
        threads: of the peer.
    """

    def __init__(self, name: str, environments: Path, data: Path, *, threads: int) -> None:
        script = Path(__file__).parent / "peers" / f"{name}_sasrec.py"
        python = environments / name / "bin" / "python"
        if not python.is_file():
            sys.exit(f"bench_peers: no {python}; make it with benchmarks/peers/make_environments.py")
        command = [str(python), str(script), "--data", str(data)]
        command += ["--users", str(PEER_USERS[name]), "--threads", str(threads)]
        self.name = name
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.said: dict[str, Any] = json.loads(self._answer())

    def __enter__(self) -> Peer:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._process.communicate()  # closes its stdin, which ends it

    def run(self, way: str) -> None:
        """Let the peer do one job."""
        assert self._process.stdin is not None
        self._process.stdin.write(way + "\n")
        self._process.stdin.flush()
        self._answer()

    def _answer(self) -> str:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            sys.exit(f"bench_peers: {self.name} ended; see its error above")
        return line


def main() -> None:
    """Measure, print a table and one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", type=Path, required=True, help="Where the synthetic data lie, or will.")
    parser.add_argument("--environments", type=Path, default=Path(".venv-peers"))
    parser.add_argument("--peers", default=",".join(PEERS))
    parser.add_argument("--encoders", default="onnxruntime,fused", help="Of ours.")
    parser.add_argument("--users", type=int, default=SIZES[SIZE].users, help="Users of our jobs.")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch, Limits(arguments.threads) as limits:
        print_json(run(arguments, Path(scratch), limits))


def run(arguments: argparse.Namespace, scratch: Path, limits: Limits) -> dict[str, Any]:
    """Start the peers one after the other, each beside ours, and time them in turn."""
    everyone = users_file(arguments.folder, SIZE, users=arguments.users)
    models = {inner: model_file(arguments.folder, SIZE, model="sasrec", inner_dim=inner) for inner in (256, 64)}
    data = write_data(arguments.folder, scratch, everyone, models[256], threads=arguments.threads)
    print(f"{cpu_model()}, {arguments.threads} threads; ours: {arguments.users:,} users a job")
    figures: dict[str, Any] = {"size": SIZE, "users": arguments.users, "threads": arguments.threads, "peers": {}}
    for name in arguments.peers.split(","):
        with Peer(name, arguments.environments, data, threads=arguments.threads) as peer:
            if peer.said.get("overlap", 1.0) < LEAST_OVERLAP:
                sys.exit(f"bench_peers: {name} has {peer.said['overlap']:.4f} of our lists, expected {LEAST_OVERLAP}")
            print(f"{name}: {json.dumps(peer.said)}")
            figures["peers"][name] = beside_ours(peer, models, everyone, arguments, scratch, limits)
    return figures


def beside_ours(
    peer: Peer,
    models: dict[int, Path],
    everyone: Path,
    arguments: argparse.Namespace,
    scratch: Path,
    limits: Limits,
) -> dict[str, Any]:
    """Time a peer's ways and ours in turn; rates, and ours over theirs at the peer's own inner width."""
    ways = {way: functools.partial(peer.run, way) for way in peer.said["ways"]}
    widths = sorted(set(peer.said["inner"].values()))
    for encoder in arguments.encoders.split(","):
        jobs = Jobs(
            scratch / "candidates.parquet",
            {"top_k": TOP_K, "threads": arguments.threads, "overwrite": True, "encoder": encoder},
        )
        for inner in widths:
            jobs.process(models[inner], first_users(everyone, scratch / "one.parquet", 1))
            ways[f"ours, {encoder}, inner {inner}"] = functools.partial(jobs.process, models[inner], everyone)
    times = in_turn(ways, limits, rounds=arguments.rounds)
    counts = {way: peer.said["users"] if way in peer.said["ways"] else arguments.users for way in ways}
    for way, timed in times.items():
        print(
            f"  {way:<28} {counts[way]:>7,} users {timed.median:>7.2f} s {timed.spread(counts[way], ' users/s'):>34}  "
            f"{timed.whole} of {arguments.rounds} on two cores"
        )
    ratios = {}
    for way, inner in peer.said["inner"].items():
        for encoder in arguments.encoders.split(","):
            ours = f"ours, {encoder}, inner {inner}"
            ratios[f"{encoder}/{way}"] = ratio_in_rounds(times[way], times[ours]) * counts[ours] / counts[way]
            print(f"  {ours} against {way}: {ratios[f'{encoder}/{way}']:.2f}x")
    rates = {way: counts[way] / timed.median for way, timed in times.items()}
    return {**peer.said, "users_per_s": rates, "ratios": ratios, "samples": {w: t.to_json() for w, t in times.items()}}


def write_data(folder: Path, scratch: Path, everyone: Path, model: Path, *, threads: int) -> Path:
    """Write what the peers need as one .npz: our weights, histories, and our lists with seen items kept."""
    world = make_world(SIZES[SIZE])
    users = pq.read_table(everyone).slice(0, max(*PEER_USERS.values(), COMPARED)).combine_chunks()
    lists = users["item_history"].chunk(0)
    values = find_ids(world.catalog.item_table, plain_ids(lists.flatten(), where="item_history")).astype(np.int64)
    offsets = lists.offsets.to_numpy().astype(np.int64)
    assert (values != PADDING).all()
    some = first_users(everyone, scratch / "some.parquet", COMPARED)
    jobs = Jobs(scratch / "ours.parquet", {"top_k": TOP_K, "threads": threads, "overwrite": True, "keep_seen": True})
    ids = pq.read_table(jobs.in_process("some", model, some))["item_ids"].combine_chunks().flatten()
    expected = find_ids(world.catalog.item_table, plain_ids(ids, where="item_ids")).reshape(COMPARED, TOP_K)
    net = make_model(world, model="sasrec", history_terms="none")
    weights = {name: tensor.numpy() for name, tensor in net.state_dict().items()}
    path = scratch / "peers.npz"
    np.savez(path, values=values, offsets=offsets - offsets[0], expected=expected, **weights)
    return path


if __name__ == "__main__":
    main()
