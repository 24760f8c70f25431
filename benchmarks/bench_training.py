"""How many targets a second does training take, at the sizes of the paper's three data sets?

    python benchmarks/bench_training.py --device cpu --threads 1

Synthetic histories with the counts of the paper's Table 1 and its max_len: lengths geometric, items Zipf-like,
providers in equal ranges. SASRec, dim 64, 256 windows a step, Adam. In one process: a plain PyTorch loop (right-padded
batches, torch.nn.TransformerEncoder, cross_entropy over all scores at once) and `ipsrec train`'s own steps: all items
in float32 and in bfloat16, and a sample of items; and IPSRec-C with everything that the recommended variant adds.

The plain loop holds targets x items three times; it gets as few windows a step as --plain-gib allows. Before timing,
the losses of both on the same states must agree. The ceiling is the time of the three products of users and items.
"""

from __future__ import annotations

import argparse
import gc
import json
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from ipsrec_kernels.padding import PADDING
from ipsrec_onnx.catalog import Catalog
from ipsrec_train.batches import Batch, Histories, Windows
from ipsrec_train.distributed import Workers
from ipsrec_train.history_scores import ScoredItems, scored_items
from ipsrec_train.loop import Loop
from ipsrec_train.losses import softmax_loss
from ipsrec_train.model import Model
from ipsrec_train.progress import TrainingBar
from ipsrec_train.settings import settings_for
from ipsrec_train.training_settings import TrainingSettings

BATCH = 256
NEGATIVES = 4_096
COLUMNS = "{:>8} {:>34} {:>12} {:>20} {:>10} {:>8} {:>9}"


class Size(NamedTuple):
    """Counts of the paper's Table 1, and its max_len (section 3.3)."""

    users: int
    items: int
    interactions: int
    providers: int
    max_len: int


SIZES = {
    "tmall": Size(885_760, 1_144_125, 7_592_214, 9_998, 20),
    "twitch": Size(100_001, 739_992, 3_051_733, 162_626, 50),
    "wechat": Size(20_001, 96_565, 7_317_882, 18_430, 100),
}


def main() -> None:
    """Time every size and way, print a table and one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sizes", default="tmall,twitch,wechat")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--steps", type=int, default=3, help="Steps that are timed, after one that is not.")
    parser.add_argument("--plain-gib", type=float, default=6.0, help="What the plain loop's scores may take.")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    device = torch.device(arguments.device)
    versions = f"torch {torch.__version__}, Python {platform.python_version()}"
    print(f"{machine(device)}, {versions}, {arguments.threads} threads")
    print(COLUMNS.format("size", "way", "targets/step", "ms/step", "targets/s", "x plain", "x ceiling"))
    figures: dict[str, dict[str, float]] = {}
    for name in arguments.sizes.split(","):
        figures[name] = run_size(name, SIZES[name], device=device, steps=arguments.steps, plain_gib=arguments.plain_gib)
    print(
        json.dumps({"unit": "targets/s", "device": arguments.device, "threads": arguments.threads, "figures": figures})
    )


def run_size(name: str, size: Size, *, device: torch.device, steps: int, plain_gib: float) -> dict[str, float]:
    """Time every way at one size: targets a second."""
    rng = np.random.default_rng(0)
    histories = make_histories(rng, size)
    catalog = make_catalog(size, histories)
    windows = Windows(histories, max_len=size.max_len, device=device)
    columns = scored_items(torch.from_numpy(catalog.item_provider).long().to(device))
    chosen = [rng.permutation(len(windows))[:BATCH] for _ in range(steps + 1)]
    check_losses(windows.pack(chosen[0][:8]), columns, size, device=device)
    speeds: dict[str, float] = {}

    def report(way: str, seconds: list[float], targets: float, products_s: float | None = None) -> None:
        speed = targets / statistics.median(seconds)
        speeds[way] = speed
        spread = f"{1e3 * statistics.median(seconds):.0f} [{1e3 * min(seconds):.0f}..{1e3 * max(seconds):.0f}]"
        against = f"{speed / speeds['plain PyTorch, float32']:.2f}"
        ceiling = "" if products_s is None else f"{statistics.median(seconds) / products_s:.2f}"
        print(COLUMNS.format(name, way, f"{targets:,.0f}", spread, f"{speed:,.0f}", against, ceiling), flush=True)

    targets = statistics.mean(windows.num_targets(part) for part in chosen)
    small = max(1, min(BATCH, int(BATCH * plain_gib * 2**30 / (3 * 4 * targets * size.items))))
    fewer = [part[:small] for part in chosen]
    batches = [padded(histories, windows.ranges[part], size.max_len, device=device) for part in fewer]
    report(
        "plain PyTorch, float32",
        time_plain(size, batches, device=device),
        statistics.mean(windows.num_targets(part) for part in fewer),
    )
    del batches
    ceilings = {kind: products(size, int(targets), kind, device=device) for kind in ("fp32", "bf16")}
    ways = [
        ("SASRec, all items, float32", "sasrec", {}, {"precision": "fp32"}),
        ("SASRec, all items, bfloat16", "sasrec", {}, {"precision": "bf16"}),
        (f"SASRec, {NEGATIVES:,} items, float32", "sasrec", {}, {"negatives": NEGATIVES}),
        ("IPSRec-C recommended, bfloat16", "ipsrec-c", {}, {"precision": "bf16"}),
    ]
    for way, model, changes, training in ways:
        settings = settings_for(model, None, {"max_len": size.max_len, **changes})
        net = Model(model, settings, item_provider=catalog.item_provider, num_providers=size.providers).to(device)
        loop = Loop(
            net,
            learned=histories,
            catalog=catalog,
            training=TrainingSettings(batch_size=BATCH, **training),
            device=device,
            workers=Workers(),
            bar=TrainingBar(quiet=True),
        )
        net.train()

        def step(part: np.ndarray, loop: Loop = loop) -> None:
            drawn = loop.all_items if loop.sampler is None else loop.sampler.draw(rng, loop.model.item_provider)
            loop.step(part, drawn)

        seconds = [timed(lambda part=part: step(part), device) for part in chosen][1:]
        ceiling = None if "negatives" in training else ceilings[training["precision"]]
        report(way, seconds, targets, ceiling)
        del net, loop
        gc.collect()
    return speeds


def make_histories(rng: np.random.Generator, size: Size) -> Histories:
    """Histories of at least 5 items with the counts of a size."""
    lengths = 4 + rng.geometric(1 / (size.interactions / size.users - 4), size.users)
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    skewed = (size.items * rng.random(offsets[-1]) ** 3).astype(np.int64)  # density falls as x^(-2/3)
    shuffled = rng.permutation(size.items).astype(np.int32) + 1
    return Histories(values=shuffled[skewed], offsets=offsets, targets=np.zeros(0, np.int32))


def make_catalog(size: Size, histories: Histories) -> Catalog:
    """Items in ranges of equal size, one a provider."""
    import pyarrow as pa

    item_provider = np.zeros(size.items + 1, np.int32)
    item_provider[1:] = 1 + np.arange(size.items) * size.providers // size.items
    popularity = np.bincount(histories.values, minlength=size.items + 1)
    return Catalog(pa.array(np.arange(size.items)), pa.array(np.arange(size.providers)), item_provider, popularity)


class PlainSASRec(nn.Module):
    """SASRec as one would write it with PyTorch's own modules."""

    def __init__(self, size: Size) -> None:
        super().__init__()
        self.items = nn.Embedding(size.items + 1, 64, padding_idx=PADDING)
        nn.init.normal_(self.items.weight, std=0.02)
        self.positions = nn.Embedding(size.max_len, 64)
        layer = nn.TransformerEncoderLayer(64, 2, 256, 0.5, "gelu", batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.norm, self.dropout = nn.LayerNorm(64), nn.Dropout(0.5)

    def forward(self, items: torch.Tensor) -> torch.Tensor:
        """(B, L) -> (B, L, D)."""
        at = torch.arange(items.shape[1], device=items.device)
        states = self.dropout(self.norm(self.items(items) + self.positions(at)))
        mask = nn.Transformer.generate_square_subsequent_mask(items.shape[1], device=items.device)
        encoded: torch.Tensor = self.encoder(states, mask=mask, is_causal=True)
        return encoded


def padded(
    histories: Histories, ranges: np.ndarray, width: int, *, device: torch.device
) -> tuple[torch.Tensor, torch.Tensor]:
    """Inputs and targets (B, L), right padded to the longest window."""
    longest = min(width, int((ranges[:, 1] - ranges[:, 0]).max()))
    items, targets = (np.zeros((len(ranges), longest), np.int64) for _ in range(2))
    for row, (start, stop) in enumerate(ranges):
        items[row, : stop - start] = histories.values[start:stop]
        targets[row, : stop - start] = histories.values[start + 1 : stop + 1]
    return torch.from_numpy(items).to(device), torch.from_numpy(targets).to(device)


def time_plain(size: Size, batches: list[tuple[torch.Tensor, torch.Tensor]], *, device: torch.device) -> list[float]:
    """Seconds of each step of the plain loop but the first."""
    model = PlainSASRec(size).to(device)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    return [timed(lambda batch=batch: plain_step(model, optimizer, batch), device) for batch in batches][1:]


def plain_step(model: PlainSASRec, optimizer: torch.optim.Optimizer, batch: tuple[torch.Tensor, torch.Tensor]) -> None:
    """One step of the plain loop."""
    items, targets = batch
    states = model(items)[targets > 0]  # (T, D)
    loss = F.cross_entropy(states @ model.items.weight[1:].T, targets[targets > 0] - 1)
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    optimizer.step()


def check_losses(batch: Batch, columns: ScoredItems, size: Size, *, device: torch.device) -> None:
    """Both ways give the same loss for the same states, or there is nothing to compare."""
    generator = torch.Generator().manual_seed(0)
    states = torch.randn(len(batch.targets), 64, generator=generator).to(device)
    table = torch.randn(size.items + 1, 64, generator=generator).to(device) * 0.1
    found = softmax_loss(states, table, batch.targets, columns=columns)
    expected = F.cross_entropy(states @ table[1:].T, batch.targets - 1)
    assert abs(float(found) - float(expected)) < 1e-4 * float(expected), (float(found), float(expected))


def products(size: Size, targets: int, kind: str, *, device: torch.device) -> float:
    """Seconds of the three products of users and items, forward and two backward, and nothing else."""
    number = torch.bfloat16 if kind == "bf16" else torch.float32
    rows = min(targets, 256)
    users, items = (
        torch.randn(rows, 64, device=device).to(number),
        torch.randn(size.items, 64, device=device).to(number),
    )

    scores = torch.empty(rows, size.items, dtype=number, device=device)
    to_users, to_items = torch.empty_like(users), torch.empty_like(items)

    def three() -> None:
        torch.mm(users, items.T, out=scores)
        torch.mm(scores, items, out=to_users)
        torch.mm(scores.T, users, out=to_items)

    return min(timed(three, device) for _ in range(3)) * targets / rows


def timed(work: Callable[[], None], device: torch.device) -> float:
    """Seconds that some work takes."""
    if device.type == "cuda":
        torch.cuda.synchronize()
    started = time.perf_counter()
    work()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - started


def machine(device: torch.device) -> str:
    """What the figures were measured on."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    return next(line.split(":")[1].strip() for line in lines if line.startswith("model name"))


if __name__ == "__main__":
    main()
