"""How fast does IPSRec-C train on a GPU, at the sizes of the paper's three data sets, and against plain PyTorch?

    python benchmarks/gpu_training.py

Synthetic histories with the counts of the paper's Table 1 and its max_len (bench_training.py). Steps of `ipsrec train`
over all items, dim 64, Adam: variants recommended and paper, bfloat16 and float32, encoder eager and compiled, scores
turned into gradients by the Triton kernels and by PyTorch's operators. The naive rival trains the same encoder with
F.cross_entropy over all scores at once, in bfloat16 autocast, without history terms; it gets as few windows a step as
--plain-gib allows.

A sample is a window of up to max_len items, and each of its items is a target. Steps of a round follow each other as in
training, and the GPU is waited for at the round's end: medians of the rounds, with lowest and highest. Seconds of an
epoch are extrapolated from the targets a second of the timed steps, without validation. The ceiling is the time of the
three products of users and items alone. Before timing, the losses of all ways on the same states must agree.

    python benchmarks/gpu_training.py --device cpu --sizes tiny --steps 1 --rounds 2

proves the script where there is no GPU: with TRITON_INTERPRET=1 the kernels run in Triton's interpreter. Its figures
mean nothing.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import gc
import json
import platform
import statistics
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np
import torch
from bench_training import SIZES, Size, machine, make_catalog, make_histories, products
from torch.nn import functional as F

from ipsrec_onnx.catalog import Catalog
from ipsrec_train import loop, losses
from ipsrec_train.batches import Histories, Windows
from ipsrec_train.distributed import Workers
from ipsrec_train.history_scores import HistoryEntries, ScoredItems, scored_items
from ipsrec_train.losses import softmax_loss
from ipsrec_train.model import Model
from ipsrec_train.progress import TrainingBar
from ipsrec_train.settings import settings_for
from ipsrec_train.training_settings import TrainingSettings

WARM_UP = 3
PLAIN_BYTES = 14  # of a score in the rival: bfloat16 and its gradient, float32 and its gradient, and their likes
TINY = Size(users=300, items=500, interactions=3_000, providers=40, max_len=20)
COLUMNS = "{:>7} {:>12} {:>5} {:>9} {:>14} {:>8} {:>26} {:>11} {:>10} {:>8} {:>9}"
ROWS: dict[str, Callable[..., Any]] = {"triton": losses._triton_rows, "operators": losses._torch_rows}


class Way(NamedTuple):
    """One way to train; softmax is "triton", "operators" or "cross_entropy", the rival's."""

    variant: str
    precision: str
    compile: bool
    softmax: str


WAYS = [
    Way("recommended", "bf16", False, "cross_entropy"),
    Way("recommended", "bf16", False, "operators"),
    Way("recommended", "bf16", False, "triton"),
    Way("recommended", "bf16", True, "triton"),
    Way("recommended", "fp32", False, "triton"),
    Way("paper", "bf16", False, "cross_entropy"),
    Way("paper", "bf16", False, "operators"),
    Way("paper", "bf16", False, "triton"),
    Way("paper", "bf16", True, "triton"),
    Way("paper", "fp32", False, "triton"),
]


def main() -> None:
    """Time every size and way, print a table and one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sizes", default="tmall,twitch,wechat")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cuda")
    parser.add_argument("--windows", type=int, default=256, help="Windows a step.")
    parser.add_argument("--steps", type=int, default=10, help="Steps of a round.")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--plain-gib", type=float, default=40.0, help="What the rival's scores may take.")
    arguments = parser.parse_args()
    device = torch.device(arguments.device)
    print(f"{machine(device)}, torch {torch.__version__}, Python {platform.python_version()}")
    print(f"{arguments.windows} windows a step, {arguments.rounds} rounds of {arguments.steps} steps after {WARM_UP}")
    print(
        COLUMNS.format(
            *("size", "variant", "dtype", "encoder", "softmax", "windows", "targets/s [low..high]"),
            *("samples/s", "epoch, s", "ceiling", "peak GiB"),
        )
    )
    figures = []
    for name in arguments.sizes.split(","):
        size = {**SIZES, "tiny": TINY}[name]
        figures += [{"size": name, **figure} for figure in run_size(name, size, arguments, device=device)]
    print(json.dumps({"benchmark": "gpu_training", "device": machine(device), "figures": figures}))


def run_size(name: str, size: Size, arguments: argparse.Namespace, *, device: torch.device) -> list[dict[str, Any]]:
    """Time every way at one size."""
    histories = make_histories(np.random.default_rng(0), size)
    catalog = make_catalog(size, histories)
    windows = Windows(histories, max_len=size.max_len, device=device)
    every_target = windows.num_targets(np.arange(len(windows)))
    check_losses(windows, scored_items(torch.from_numpy(catalog.item_provider).long().to(device)))
    figures = []
    for way in WAYS:
        if way.compile and device.type == "cpu":  # takes minutes there, and `ipsrec train` refuses it
            continue
        count = arguments.windows
        if way.softmax == "cross_entropy":
            scores = every_target / len(windows) * size.items  # of a window
            count = max(1, min(count, int(arguments.plain_gib * 2**30 / (PLAIN_BYTES * scores))))
        figure: dict[str, Any] = {**way._asdict(), "windows": count}
        try:
            figure |= time_way(way, size, histories, catalog, count=count, arguments=arguments, device=device)
        except torch.OutOfMemoryError:
            figure["out_of_memory"] = True
        else:
            figure["epoch_s"] = every_target / figure["targets_per_s"]
        gc.collect()
        if device.type == "cuda":
            torch.cuda.empty_cache()
        figures.append(figure)
        print(row_of(name, figure), flush=True)
    return figures


def row_of(name: str, figure: dict[str, Any]) -> str:
    """One line of the table."""
    known = [name, figure["variant"], figure["precision"], "compiled" if figure["compile"] else "eager"]
    known += [figure["softmax"], figure["windows"]]
    if "out_of_memory" in figure:
        return COLUMNS.format(*known, "out of memory", "", "", "", "")
    low, high = figure["targets_per_s_range"]
    peak = figure["peak_bytes"]
    return COLUMNS.format(
        *known,
        f"{figure['targets_per_s']:,.0f} [{low:,.0f}..{high:,.0f}]",
        f"{figure['samples_per_s']:,.0f}",
        f"{figure['epoch_s']:,.0f}",
        f"{figure['ceiling_share']:.2f}",
        "" if peak is None else f"{peak / 2**30:.1f}",
    )


def time_way(
    way: Way,
    size: Size,
    histories: Histories,
    catalog: Catalog,
    *,
    count: int,
    arguments: argparse.Namespace,
    device: torch.device,
) -> dict[str, Any]:
    """Time steps of one way: targets and samples a second, share of the ceiling, peak memory."""
    changes = {"history_terms": "none"} if way.softmax == "cross_entropy" else {}
    settings = settings_for("ipsrec-c", way.variant, {"max_len": size.max_len, **changes})
    net = Model("ipsrec-c", settings, item_provider=catalog.item_provider, num_providers=size.providers).to(device)
    training = TrainingSettings(batch_size=count, precision=way.precision, compile=way.compile)  # type: ignore[arg-type]
    quiet = TrainingBar(quiet=True)
    one = loop.Loop(
        net, learned=histories, catalog=catalog, training=training, device=device, workers=Workers(), bar=quiet
    )
    net.train()
    rng = np.random.default_rng(1)
    speeds, samples = [], []
    wait = functools.partial(torch.cuda.synchronize, device) if device.type == "cuda" else (lambda: None)
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    with softmax_of(way.softmax):
        for steps in [WARM_UP] + [arguments.steps] * arguments.rounds:
            chosen = [rng.choice(len(one.windows), min(count, len(one.windows)), replace=False) for _ in range(steps)]
            targets = sum(one.windows.num_targets(part) for part in chosen)
            wait()
            started = time.perf_counter()
            for part in chosen:
                loss = one.step(part, one.all_items)
            wait()
            seconds = time.perf_counter() - started
            speeds.append(targets / seconds)
            samples.append(sum(map(len, chosen)) / seconds)
    assert torch.isfinite(loss), "training went astray"
    peak = torch.cuda.max_memory_allocated(device) if device.type == "cuda" else None
    del one, net
    speeds, samples = speeds[1:], samples[1:]
    aligned = size._replace(items=-(-size.items // 64) * 64)  # an odd number of columns would be a low ceiling
    products_s = products(aligned, targets // arguments.steps, way.precision, device=device)
    return {
        "targets_per_s": statistics.median(speeds),
        "targets_per_s_range": [min(speeds), max(speeds)],
        "samples_per_s": statistics.median(samples),
        "timed_steps": arguments.steps * arguments.rounds,
        "ceiling_share": products_s / (targets / arguments.steps / statistics.median(speeds)),
        "peak_bytes": peak,
    }


@contextlib.contextmanager
def softmax_of(name: str) -> Iterator[None]:
    """Let training use one of the ways to make gradients of scores."""
    before = losses._rows_on, loop.softmax_loss
    if name == "cross_entropy":
        loop.softmax_loss = plain_loss
    else:
        losses._rows_on = lambda device: ROWS[name]
    try:
        yield
    finally:
        losses._rows_on, loop.softmax_loss = before


def plain_loss(
    users: torch.Tensor,
    table: torch.Tensor,
    targets: torch.Tensor,
    *,
    columns: ScoredItems,
    weights: tuple[torch.Tensor, torch.Tensor] | None = None,
    entries: HistoryEntries | None = None,
    precision: str = "fp32",
) -> torch.Tensor:
    """The rival: every score at once, and autograd."""
    assert columns.all_items
    assert weights is None
    assert entries is None
    with torch.autocast(users.device.type, torch.bfloat16, enabled=precision == "bf16"):
        return F.cross_entropy(users @ table[1:].T, targets - 1)


def check_losses(windows: Windows, columns: ScoredItems) -> None:
    """All ways give the same loss and gradients for the same states, or there is nothing to compare."""
    batch = windows.pack(np.arange(8))
    generator = torch.Generator().manual_seed(0)
    users, table, a, b = (
        torch.randn(*shape, generator=generator).to(windows.device)
        for shape in [(len(batch.targets), 64), (len(columns.items) + 1, 64), (windows.max_len,), (windows.max_len,)]
    )
    for terms in (False, True):
        found: dict[str, list[torch.Tensor]] = {}
        for name in ROWS if terms else [*ROWS, "cross_entropy"]:
            leaves = [tensor.clone().requires_grad_() for tensor in (users, table / 8)]
            with softmax_of(name):
                loss = (plain_loss if name == "cross_entropy" else softmax_loss)(
                    *leaves,
                    batch.targets,
                    columns=columns,
                    weights=(a.abs(), b) if terms else None,
                    entries=batch.entries if terms else None,
                )
            loss.backward()
            found[name] = [loss.detach(), *(leaf.grad for leaf in leaves if leaf.grad is not None)]
        for name, parts in found.items():
            for part, expected in zip(parts, found["operators"], strict=True):
                torch.testing.assert_close(part, expected, rtol=1e-3, atol=1e-6, msg=f"{name}, history terms: {terms}")


if __name__ == "__main__":
    main()
