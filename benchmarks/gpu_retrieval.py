"""How fast is the exact search on a GPU, against ONNX Runtime's and torch's products and top-k, and against its GEMM?

    python benchmarks/gpu_retrieval.py
    python benchmarks/gpu_retrieval.py --sweep

Top-100 of the catalogs of the paper's sizes, embeddings of both kinds of synthetic.py. Ways, in turn, seven rounds:

- triton: Search.propose, 8,192 user vectors on the device to proposals on the device, by its own clock.
- triton and lists: the same for 16 times as many users, proposals brought to the host and made exact lists of there by
  retrieve_proposed, in as many threads as there are cores: the search of `ipsrec score`, without encoder and files.
- onnx: OnnxSearch.propose, user vectors and proposals on the host, by the host's clock.
- rival torch: mm and topk in float32, no TF32, 1,024 users at once, by the device's clock.
- rival onnxruntime: Gemm and TopK in float32, use_tf32=0, likewise, inputs and outputs bound on the device, by the
  host's clock.

Before timing, lists of 128 users, from proposals, must be those of the CPU's search, bit by bit. `shares` says for how
many users one search was enough, who was searched for again, and for whom the CPU had to. Times of the parts are
between marks on the device's stream, so that they count what the device waits for the host, too.

With --sweep all settings of the search that could matter are tried with each other, on one catalog; lists that a
setting calls certain are compared with the CPU's. The fastest are printed, with the one in use.

    python benchmarks/gpu_retrieval.py --device cpu --tiny          # with TRITON_INTERPRET=1

proves the script where there is no GPU. Its figures mean nothing.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import itertools
import os
import statistics
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import onnx
import torch
from gpu_limits import gemm_flop_per_s
from gpu_machine import ROUNDS, Clock, Samples, device_samples, in_rounds, machine
from onnx import TensorProto, helper
from rounds import Timed, print_json, ratio_in_rounds
from synthetic import DIM, SIZES, Kind, item_embeddings, user_embeddings

from ipsrec_gpu import search as search_module
from ipsrec_gpu.search import USERS_AT_ONCE, Search
from ipsrec_kernels.best_list import BestLists
from ipsrec_kernels.item_table import ItemTable, build_item_table, items_by_norm
from ipsrec_kernels.proposals import Proposals
from ipsrec_kernels.proposed import retrieve_proposed
from ipsrec_kernels.topk import retrieve
from ipsrec_onnx.onnx_search import OnnxSearch
from ipsrec_onnx.session import Device, open_session, place_on_device, run_bound

Scores = npt.NDArray[np.float32]

TOP_K, FETCH, WIDER = 100, 128, 512  # what card_search.py asks for at first, and again
CHECKED = 128
# What the sweep tries: arguments of propose, what the kernels are compiled for, and constants of search.py.
SWEEP: dict[str, list[int]] = {
    "fetch": [128, 160],
    "users": [4096, 8192, 16384],
    "stages": [2, 3, 4],
    "warps": [4, 8],
    "sample_group": [16, 64, 128],
    "programs": [1, 2, 3],
}
IN_USE = {"fetch": FETCH, "users": USERS_AT_ONCE, "stages": 3, "warps": 4, "sample_group": 64, "programs": 2}
SHOWN = 10
SWEEP_CHECKED = 1024  # users of a setting whose lists are made


class Counts(NamedTuple):
    """How much is searched for at once."""

    users: int
    rival_users: int
    chunks: int
    rounds: int
    checked: int


FULL = Counts(users=8192, rival_users=1024, chunks=16, rounds=ROUNDS, checked=CHECKED)
TINY = Counts(users=24, rival_users=16, chunks=1, rounds=1, checked=24)
TINY_ITEMS = 3000
# A few thousand items take the way of a million, and the interpreter has few programs to run.
TINY_CONSTANTS = {"_DENSE_GROUPS": 8, "_ITEMS_PER_FETCH": 8, "_SAMPLE_GROUP": 4, "_WINDOW": 2048, "_CHUNK": 64}
TINY_SWEEP = {"fetch": [128], "users": [24], "stages": [3], "warps": [4, 8], "sample_group": [4], "programs": [1, 2]}


def main() -> None:
    """Measure every catalog, or sweep one; print tables and one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument("--sizes", default="tmall,twitch,wechat")
    parser.add_argument("--kinds", default="gaussian,trained")
    parser.add_argument("--sweep", action="store_true", help="Try settings of the search on the first size and kind.")
    parser.add_argument("--tiny", action="store_true", help="Few users and items: does the script work?")
    arguments = parser.parse_args()
    names = machine(arguments.device)
    print(", ".join(f"{name} {value}" for name, value in names.items()))
    figures: dict[str, Any] = {"benchmark": "gpu_retrieval", "device": arguments.device, "machine": names}
    counts = TINY if arguments.tiny else FULL
    cases = list(itertools.product(arguments.sizes.split(","), arguments.kinds.split(",")))
    with constants(**(TINY_CONSTANTS if arguments.tiny else {})):
        if arguments.sweep:
            size, kind = cases[0]
            swept = TINY_SWEEP if arguments.tiny else SWEEP
            catalog = Catalog(num_items(size, arguments), kind, max(swept["users"]), arguments.device)
            figures["sweep"] = {"size": size, "kind": kind, **sweep(catalog, swept, counts)}
            print_json(figures)
            return
        gemm = gemm_flop_per_s(arguments.device, **({"square": 128} if arguments.tiny else {}))
        figures["gemm_fp16_tflop_per_s"] = gemm / 1e12
        for size, kind in cases:
            items = num_items(size, arguments)
            print(f"\n{size}, {kind}: {items:,} items, {DIM} dims, top-{TOP_K}")
            catalog = Catalog(items, kind, counts.users, arguments.device)
            figures[f"{size}-{kind}"] = bench(catalog, counts, gemm)
            print_json(figures)  # so that a kill loses one catalog
            del catalog
            if arguments.device == "cuda":
                torch.cuda.empty_cache()


def num_items(size: str, arguments: argparse.Namespace) -> int:
    """Items of a size."""
    return TINY_ITEMS if arguments.tiny else SIZES[size].items


class Catalog:
    """Items and users of one kind, on both sides."""

    def __init__(self, items: int, kind: Kind, users: int, device: Device) -> None:
        self.device: Device = device
        self.clock = Clock(device)
        self.embeddings = item_embeddings(items, kind=kind)
        self.users = user_embeddings(self.embeddings, users, kind=kind)
        item_provider = (np.arange(items + 1) % 1000 + 1).astype(np.int32)
        item_provider[0] = 0
        self.table: ItemTable = build_item_table(self.embeddings, item_provider, allowed=None)
        placed = torch.from_numpy(self.embeddings).to(device)
        by_norm = torch.from_numpy(np.array(items_by_norm(self.table))).long().to(device)
        self.search = Search(placed, by_norm, torch.zeros(len(placed), dtype=torch.long, device=placed.device))
        self.on_device = torch.from_numpy(self.users).to(device)

    def propose(self, users: Scores, *, fetch: int, every_group: bool = False) -> Proposals:
        """Search with Triton from host to host."""
        found = self.search.propose(torch.from_numpy(users).to(self.device), fetch=fetch, every_group=every_group)
        return Proposals(found.items.cpu().numpy(), found.outside.cpu().numpy())

    def lists(self, users: Scores, proposals: Proposals) -> tuple[BestLists, npt.NDArray[np.bool_]]:
        """Exact lists of what is proposed, and which of them are certain."""
        return retrieve_proposed(
            self.table,
            users,
            proposals,
            top_k=TOP_K,
            seen=None,
            history=None,
            terms=None,
            max_per_provider=None,
        )

    def by_cpu(self, users: Scores) -> BestLists:
        """What the lists have to be."""
        none = dict.fromkeys(("seen", "history", "terms", "candidates", "max_per_provider"))
        return retrieve(self.table, users, top_k=TOP_K, **none)


def bench(catalog: Catalog, counts: Counts, gemm: float) -> dict[str, Any]:
    """Check the lists of one catalog, and time all ways to them."""
    search, some = catalog.search, catalog.on_device[: counts.rival_users]
    onnx_search = OnnxSearch(catalog.embeddings, None, device=catalog.device)
    found: dict[str, Any] = {"items": search.num_items}
    found["shares"] = {
        "triton": check(catalog, catalog.propose, functools.partial(catalog.propose, every_group=True), counts),
        "onnx": check(catalog, onnx_search.propose, onnx_search.propose, counts),
    }
    for name, shares in found["shares"].items():
        print(f"  {name}: {', '.join(f'{what} {share:.3%}' for what, share in shares.items())} of the users")
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        by_device = {
            "triton": lambda: search.propose(catalog.on_device[: counts.users], fetch=FETCH),
            "rival torch": torch_rival(catalog, some),
        }
        by_host = {
            "triton and lists": functools.partial(lists_in_threads, catalog, counts, pool),
            "onnx": lambda: onnx_search.propose(catalog.users[: counts.users], fetch=FETCH),
            "rival onnxruntime": onnxruntime_rival(catalog, some),
        }
        for work in [*by_device.values(), *by_host.values()]:
            work()
            catalog.clock.wait()
        timed = in_rounds(catalog.clock, by_device, by_host, counts.rounds)
    users = {name: counts.users for name in timed}
    users |= {"rival torch": counts.rival_users, "rival onnxruntime": counts.rival_users}
    users["triton and lists"] = counts.users * counts.chunks
    found |= rates(timed, users)
    ceiling = gemm / (2 * DIM * search.num_items)
    found["gemm_users_per_s"] = ceiling
    found["share_of_gemm"] = found["users_per_s"]["triton"]["median"] / ceiling
    print(f"  {found['share_of_gemm']:.1%} of the GEMM in fp16, {ceiling:,.0f} users/s")
    found["parts"] = parts(catalog, counts)
    return found


def check(
    catalog: Catalog,
    propose: Callable[..., Proposals],
    propose_again: Callable[..., Proposals],
    counts: Counts,
) -> dict[str, float]:
    """Refuse to time wrong lists; gives the shares of users for whom one search, a second, and the CPU was needed."""
    users = catalog.users[: counts.users]
    lists, certain = catalog.lists(users, propose(users, fetch=FETCH))
    first = BestLists(*(part[: counts.checked].copy() for part in lists))
    first_certain = certain[: counts.checked].copy()
    again = ~certain
    by_cpu = np.zeros_like(again)
    if again.any():
        second, certain = catalog.lists(users[again], propose_again(users[again], fetch=WIDER))
        for whole, part in zip(lists, second, strict=True):
            whole[again] = part
        by_cpu[again] = ~certain
    expected = catalog.by_cpu(users[: counts.checked])
    settled = ~by_cpu[: counts.checked]  # the others are what the CPU gives, by definition
    for checked, right in ((first, first_certain), (lists, settled)):
        for ours, theirs in zip(checked, expected, strict=True):
            np.testing.assert_array_equal(ours[: counts.checked][right], theirs[right])
    return {"certain": 1 - float(again.mean()), "again": float(again.mean()), "by_cpu": float(by_cpu.mean())}


def lists_in_threads(catalog: Catalog, counts: Counts, pool: ThreadPoolExecutor) -> None:
    """Propose for some batches; threads make lists of each as soon as it is on the host."""
    users, on_gpu = catalog.users[: counts.users], catalog.clock.on_gpu
    threads = os.cpu_count() or 1
    step = max(1, -(-counts.users // threads * 4))  # of a call: a batch is shared by a quarter of the threads

    def part(first: int, hosts: list[torch.Tensor], done: torch.cuda.Event | None) -> None:
        if done is not None:
            done.synchronize()
        mine = slice(first, first + step)
        catalog.lists(users[mine], Proposals(hosts[0][mine].numpy(), hosts[1][mine].numpy()))

    waiting = []
    for _ in range(counts.chunks):
        found = catalog.search.propose(catalog.on_device[: counts.users], fetch=FETCH)
        hosts, done = list(found), None
        if on_gpu:
            hosts = [torch.empty(one.shape, dtype=one.dtype, pin_memory=True) for one in found]
            for host, one in zip(hosts, found, strict=True):
                host.copy_(one, non_blocking=True)
            done = torch.cuda.Event(blocking=True)
            done.record()
        waiting += [pool.submit(part, first, hosts, done) for first in range(0, counts.users, step)]
    for one in waiting:
        one.result()


def torch_rival(catalog: Catalog, users: torch.Tensor) -> Callable[[], object]:
    """A product and topk in float32."""
    torch.backends.cuda.matmul.allow_tf32 = False
    items = torch.from_numpy(catalog.embeddings[1:]).to(catalog.device)
    scores = torch.empty(len(users), len(items), device=catalog.device)

    def work() -> object:
        torch.mm(users, items.T, out=scores)
        return torch.topk(scores, TOP_K, dim=1)

    compare(catalog, torch.topk(users @ items.T, TOP_K, dim=1).values.cpu().numpy())
    return work


def onnxruntime_rival(catalog: Catalog, users: torch.Tensor) -> Callable[[], object]:
    """Gemm and TopK in float32."""
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
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "top_k.onnx"
        onnx.save_model(model, path)
        session = open_session(path, device=catalog.device)
    binding = session.io_binding()
    for name, array in (("users", users.cpu().numpy()), ("items", catalog.embeddings[1:])):
        binding.bind_ortvalue_input(name, place_on_device(array, device=catalog.device))
    for name in ("scores", "places"):
        binding.bind_output(name, catalog.device, 0)
    run_bound(session, binding, wait=True)
    compare(catalog, binding.get_outputs()[0].numpy())
    return functools.partial(run_bound, session, binding, wait=True)


def compare(catalog: Catalog, scores: Scores) -> None:
    """Refuse a rival whose scores are others, up to float32 rounding."""
    expected = catalog.by_cpu(catalog.users[: min(len(scores), CHECKED)]).scores
    bound = 2e-5 * float(np.abs(expected).max())
    np.testing.assert_allclose(scores[: len(expected)], expected, rtol=2e-5, atol=bound)


def rates(timed: dict[str, Timed], users: dict[str, int]) -> dict[str, Any]:
    """Print users a second of each way, and how many times as fast as the rivals ours are."""
    found: dict[str, Any] = {"users_per_s": {}, "ratios": {}}
    for name, one in timed.items():
        found["users_per_s"][name] = Samples.of([users[name] / seconds for seconds in one.seconds])._asdict()
    rivals = [name for name in timed if name.startswith("rival")]
    for name, one in timed.items():
        line = f"  {name:<18} {users[name]:>8,} users {one.spread(users[name], ' users/s'):>42}"
        if name not in rivals:
            for rival in rivals:
                ratio = ratio_in_rounds(timed[rival], one) * users[name] / users[rival]
                found["ratios"][f"{name} vs {rival.removeprefix('rival ')}"] = ratio
                line += f"  {ratio:6.1f}x {rival.removeprefix('rival ')}"
        print(line, flush=True)
    return found


class MarkedKernel:
    """A kernel that notes the moments before and after it."""

    def __init__(self, kernel: Any, name: str, clock: Clock, marks: list[tuple[str, Any]]) -> None:
        self.kernel, self.name, self.clock, self.marks = kernel, name, clock, marks

    def __getitem__(self, grid: tuple[int, ...]) -> Callable[..., None]:
        def launch(*arguments: Any, **compiled: Any) -> None:
            self.marks.append((f"before {self.name}", self.clock.mark()))
            self.kernel[grid](*arguments, **compiled)
            self.marks.append((f"after {self.name}", self.clock.mark()))

        return launch


def parts(catalog: Catalog, counts: Counts) -> dict[str, Any]:
    """Milliseconds of each part of a search, between marks around its kernels."""
    clock, users = catalog.clock, catalog.on_device[: counts.users]
    kept: dict[str, list[float]] = {}
    for _ in range(counts.rounds):
        marks: list[tuple[str, Any]] = []
        kernels = ("group_highs", "keep_groups", "keep_items")
        with constants(**{name: MarkedKernel(getattr(search_module, name), name, clock, marks) for name in kernels}):
            marks.append(("start", clock.mark()))
            catalog.search.propose(users, fetch=FETCH)
            marks.append(("end", clock.mark()))
        clock.wait()
        for (name, earlier), (next_name, later) in itertools.pairwise(marks):
            part = PARTS.get((name, next_name), f"{name}, {next_name}")
            kept.setdefault(part, []).append(1e3 * clock.seconds(earlier, later))
    found = {part: Samples.of(milliseconds) for part, milliseconds in kept.items()}
    for part, milliseconds in found.items():
        print(f"    {part:<34} {milliseconds.write('.3f')} ms")
    return {part: milliseconds._asdict() for part, milliseconds in found.items()}


PARTS = {
    ("start", "before group_highs"): "lay out the users",
    ("before group_highs", "after group_highs"): "highs of the sample, or of all",
    ("after group_highs", "before keep_groups"): "threshold",
    ("before keep_groups", "after keep_groups"): "scan",
    ("after keep_groups", "before keep_items"): "best groups",
    ("after group_highs", "before keep_items"): "best groups",
    ("before keep_items", "after keep_items"): "items of the groups",
    ("after keep_items", "end"): "bounds",
}


def sweep(catalog: Catalog, swept: dict[str, list[int]], counts: Counts) -> dict[str, Any]:
    """Time every setting; a setting that fails is no reason to lose the others."""
    expected = catalog.by_cpu(catalog.users[: counts.checked])
    found: list[dict[str, Any]] = []
    for values in itertools.product(*swept.values()):
        setting = dict(zip(swept, values, strict=True))
        try:
            found.append(setting | time_setting(catalog, setting, expected, counts))
        except Exception as error:  # too much shared memory, or a compiler that gives up: Triton has no base class
            reason = str(error).strip().splitlines()
            found.append(setting | {"failed": f"{type(error).__name__}: {reason[0] if reason else ''}"})
        print(setting_line(found[-1]), flush=True)
    timed = sorted((one for one in found if "failed" not in one), key=lambda one: -one["users_per_s"]["median"])
    in_use = [one for one in timed if all(one[name] == value for name, value in IN_USE.items())]
    print(f"{len(timed)} of {len(found)} settings ran; the fastest, and the one in use:")
    for one in timed[:SHOWN] + in_use:
        print(setting_line(one))
    return {"fastest": timed[:SHOWN], "in_use": in_use, "all": found}


def setting_line(one: dict[str, Any]) -> str:
    """A setting and what it gave."""
    setting = ", ".join(f"{name} {one[name]}" for name in SWEEP)
    if "failed" in one:
        return f"  {setting:<76} {one['failed']}"
    return f"  {setting:<76} {one['users_per_s']['median']:>11,.0f} users/s, {one['certain']:.2%} certain"


def time_setting(catalog: Catalog, setting: dict[str, int], expected: BestLists, counts: Counts) -> dict[str, Any]:
    """Users a second of one setting, and the share of certain lists, those of the first users compared."""
    search, users = catalog.search, catalog.on_device[: setting["users"]]
    compiled, programs = search_module._compiled, search.programs

    def compile_for(*arguments: Any) -> dict[str, int]:
        return compiled(*arguments) | {"STAGES": setting["stages"], "num_warps": setting["warps"]}

    processors = (
        torch.cuda.get_device_properties(0).multi_processor_count
        if catalog.clock.on_gpu
        else search_module._MULTIPROCESSORS
    )
    search.programs = setting["programs"] * processors
    try:
        with constants(_compiled=compile_for, _SAMPLE_GROUP=setting["sample_group"]):
            work = functools.partial(search.propose, users, fetch=setting["fetch"])
            result = work()
            some = slice(min(len(users), SWEEP_CHECKED))
            proposals = Proposals(result.items[some].cpu().numpy(), result.outside[some].cpu().numpy())
            lists, certain = catalog.lists(catalog.users[some], proposals)
            right = certain[: counts.checked]
            for ours, theirs in zip(lists, expected, strict=True):
                np.testing.assert_array_equal(ours[: counts.checked][right], theirs[right])
            seconds = device_samples(catalog.clock, work, rounds=counts.rounds)
    finally:
        search.programs = programs
    speeds = Samples.of([len(users) / one for one in seconds])
    return {"users_per_s": speeds._asdict(), "ms": 1e3 * statistics.median(seconds), "certain": float(certain.mean())}


@contextlib.contextmanager
def constants(**changed: Any) -> Iterator[None]:
    """Let search.py have other constants, or kernels, while the block runs."""
    before = {name: getattr(search_module, name) for name in changed}
    for name, value in changed.items():
        setattr(search_module, name, value)
    try:
        yield
    finally:
        for name, value in before.items():
            setattr(search_module, name, value)


if __name__ == "__main__":
    main()
