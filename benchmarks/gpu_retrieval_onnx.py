"""How fast is the exact search on a GPU with onnxruntime-gpu alone, against ONNX Runtime's own Gemm and TopK?

    python benchmarks/gpu_retrieval_onnx.py
    python benchmarks/gpu_retrieval_onnx.py --device cpu --items 20000 --rounds 1    # does it work here?

Top-100 of three catalogs (the paper's sizes), users in batches of 1,024 that come from NumPy, synthetic embeddings
(synthetic.py). Ours is OnnxSearch.propose: 128 items a user, each with a bound of all others; scoring them in float64
is a kernel of the CPU's, and not in these figures. The rival is Gemm and TopK in float32 (no TF32), its table on the
device once, its inputs and outputs bound. Both run in turn, in one process and on one thread.

Before timing, the best 100 of what ours proposes must have the rival's scores, up to float32 rounding, and no list that
is certain may miss one. `certified` is the share of users whose list is certain: the 100-th exact score is above the
bound. Ours writes each logit in float16 and reads it once: `logits_gb_per_s` is what that makes, to be held against the
memory of the card.
"""

from __future__ import annotations

import argparse
import functools
import platform
import shutil
import subprocess
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime
from onnx import TensorProto, helper
from rounds import in_turn, print_json, ratio_in_rounds
from synthetic import DIM, SIZES, item_embeddings, user_embeddings

from ipsrec_kernels.proposals import Proposals
from ipsrec_onnx.machine import cpu_model
from ipsrec_onnx.onnx_search import OnnxSearch
from ipsrec_onnx.session import Device, open_session, place_on_device, run_on_device

TOP_K, FETCH, BATCH = 100, 128, 1024

Scores = npt.NDArray[np.float32]


def main() -> None:
    """Time both on each catalog; print a table and one JSON object."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument("--items", type=int, nargs="+", default=sorted(size.items for size in SIZES.values()))
    parser.add_argument("--kinds", nargs="+", choices=["gaussian", "trained"], default=["gaussian", "trained"])
    parser.add_argument("--users", type=int, default=4 * BATCH)
    parser.add_argument("--rounds", type=int, default=7)
    arguments = parser.parse_args()
    if min(arguments.items) <= FETCH:
        parser.error(f"--items are {arguments.items}, expected more than {FETCH}: all would be proposed")
    machine = f"{machine_name(arguments.device)}, Python {platform.python_version()}"
    print(f"{machine}, ONNX Runtime {onnxruntime.__version__}; {DIM} dims, top-{TOP_K} out of {FETCH}, {BATCH} at once")
    figures: dict[str, Any] = {"device": arguments.device, "machine": machine, "onnxruntime": onnxruntime.__version__}
    for items in arguments.items:
        for kind in arguments.kinds:
            embeddings = item_embeddings(items, kind=kind)
            users = user_embeddings(embeddings, arguments.users, kind=kind)
            found = bench(embeddings, users, device=arguments.device, rounds=arguments.rounds)
            figures[f"{items}-{kind}"] = found
            print(
                f"{items:>10,} {kind:>9}: ours {found['ours']} users/s, Gemm and TopK {found['rival']}; "
                f"{found['ratio']:.2f}x, {found['certified']:.2%} certified, {found['logits_gb_per_s']:,.0f} GB/s"
            )
    print_json(figures)


def bench(embeddings: Scores, users: Scores, *, device: Device, rounds: int) -> dict[str, Any]:
    """Check both on these embeddings, then time them."""
    search = OnnxSearch(embeddings, None, device=device)
    rival = make_rival(embeddings, device=device)
    certified = check(embeddings, users, in_batches(lambda some: search.propose(some, fetch=FETCH), users), rival)
    ways: dict[str, Callable[[], object]] = {
        "ours": functools.partial(in_batches, lambda some: search.propose(some, fetch=FETCH), users),
        "rival": functools.partial(in_batches, rival, users),
    }
    for work in ways.values():
        work()
    timed = in_turn(ways, None, rounds=rounds)
    rates = {name: len(users) / timed[name].median for name in ways}
    return {
        **{name: timed[name].spread(len(users)) for name in ways},
        "users_per_s": rates,
        "seconds": {name: timed[name].to_json() for name in ways},
        "ratio": ratio_in_rounds(timed["rival"], timed["ours"]),
        "certified": certified,
        "logits_gb_per_s": rates["ours"] * 2 * 2 * (len(embeddings) - 1) / 1e9,
    }


def in_batches(work: Callable[[Scores], Any], users: Scores) -> list[Any]:
    """What `work` gives for each batch."""
    return [work(users[first : first + BATCH]) for first in range(0, len(users), BATCH)]


def check(
    embeddings: Scores, users: Scores, proposed: list[Proposals], rival: Callable[[Scores], tuple[Scores, Any]]
) -> float:
    """Compare ours with the rival's lists; give the share of ours that is certain."""
    certain = 0
    for batch, proposals in enumerate(proposed):
        items, outside = proposals.items, proposals.outside
        some = users[batch * BATCH : (batch + 1) * BATCH]
        exact = np.stack(
            [
                embeddings[row].astype(np.float64) @ user
                for row, user in zip(items, some.astype(np.float64), strict=True)
            ]
        )
        order = np.argsort(-exact, axis=1, kind="stable")[:, :TOP_K]
        best = np.take_along_axis(exact, order, axis=1)
        scores, places = rival(some)
        tolerance = {"rtol": 2e-5, "atol": 2e-5 * float(np.abs(best).max())}
        np.testing.assert_allclose(scores, best, **tolerance)
        is_certain = best[:, -1] > outside
        for row in np.flatnonzero(is_certain):
            mine = items[row, order[row]]
            missed = np.setdiff1d(places[row] + 1, mine)  # only where float32 cannot tell it from the last one
            apart = best[row, -1] - embeddings[missed].astype(np.float64) @ some[row].astype(np.float64)
            assert (apart >= 0).all(), f"user {row} of batch {batch}: a list that is certain lacks an item"
        certain += int(is_certain.sum())
    return certain / len(users)


def make_rival(embeddings: Scores, *, device: Device) -> Callable[[Scores], tuple[Scores, Any]]:
    """Users (B, DIM) to scores and places (B, TOP_K), all in float32."""
    graph = helper.make_graph(
        [
            helper.make_node("Gemm", ["users", "items"], ["all"], transB=1),
            helper.make_node("TopK", ["all", "k"], ["scores", "places"], axis=1),
        ],
        "top_k",
        [
            helper.make_tensor_value_info("users", TensorProto.FLOAT, ["B", DIM]),
            helper.make_tensor_value_info("items", TensorProto.FLOAT, ["N", DIM]),
        ],
        [
            helper.make_tensor_value_info("scores", TensorProto.FLOAT, ["B", TOP_K]),
            helper.make_tensor_value_info("places", TensorProto.INT64, ["B", TOP_K]),
        ],
        [helper.make_tensor("k", TensorProto.INT64, [1], [TOP_K])],
    )
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "top_k.onnx"
        onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
        session = open_session(path, device=device)
    items = place_on_device(embeddings[1:], device=device)

    def rival(users: Scores) -> tuple[Scores, Any]:
        placed = place_on_device(users, device=device)
        scores, places = run_on_device(session, ["scores", "places"], {"users": placed, "items": items})
        return scores, places

    return rival


def machine_name(device: Device) -> str:
    """The card, or the CPU."""
    if device == "cpu" or shutil.which("nvidia-smi") is None:
        return cpu_model()
    query = ["nvidia-smi", "--query-gpu=name,driver_version", "--format=csv,noheader", "--id=0"]
    return subprocess.run(query, capture_output=True, text=True, check=True).stdout.strip()


if __name__ == "__main__":
    main()
