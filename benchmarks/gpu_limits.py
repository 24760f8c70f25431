"""What can this GPU do at most, right now: multiply matrices, move memory, and talk to the host?

    python benchmarks/gpu_limits.py

Products of square matrices with random numbers in fp16, bf16, TF32 and float32; the product of the scan, with its
logits written, which a search that writes no logits does not have to stay below; copies and fills on the device; copies
from and to the host. Each is the median of seven samples by the device's clock, with lowest and highest. All other
benchmarks of the GPU are to be held against these.

    python benchmarks/gpu_limits.py --device cpu --tiny

proves the script where there is no GPU. Its figures mean nothing.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from gpu_machine import Clock, Samples, device_samples, machine
from rounds import print_json
from synthetic import DIM, SIZES

# Name -> dtype, and whether float32 may be cut to TF32.
KINDS = {
    "fp16": (torch.float16, False),
    "bf16": (torch.bfloat16, False),
    "tf32": (torch.float32, True),
    "fp32": (torch.float32, False),
}
SCAN_USERS = 1024


class Shapes(NamedTuple):
    """How much is multiplied and moved."""

    square: int
    items: int
    copy_bytes: int
    host_bytes: int


FULL = Shapes(8192, -(-SIZES["tmall"].items // 256) * 256, 1 << 32, 1 << 29)
TINY = Shapes(128, 2048, 1 << 20, 1 << 20)


def main() -> None:
    """Measure all, print a table and one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument("--tiny", action="store_true")
    arguments = parser.parse_args()
    names = machine(arguments.device)
    print(", ".join(f"{name} {value}" for name, value in names.items()))
    figures: dict[str, Any] = {"benchmark": "gpu_limits", "device": arguments.device, "machine": names}
    figures |= measure(arguments.device, TINY if arguments.tiny else FULL)
    print_json(figures)


def measure(device: str, shapes: Shapes) -> dict[str, Any]:
    """Print a row for each limit, and give name -> median, low and high."""
    clock = Clock(device)
    found: dict[str, Any] = {}

    def note(name: str, amount: float, unit: str, work: Callable[[], object], calls: int = 3) -> None:
        rates = Samples.of([amount / seconds for seconds in device_samples(clock, work, calls=calls)])
        found[f"{name}_{unit}"] = rates._asdict()
        print(f"{name + '_' + unit:<36} {rates.write(',.1f'):>34}", flush=True)

    for kind in KINDS:
        note(f"gemm_{kind}", 2 * shapes.square**3 / 1e12, "tflop_per_s", product(device, kind, shapes.square))
    for kind in ("fp16", "tf32", "fp32"):
        work = product(device, kind, SCAN_USERS, DIM, shapes.items)
        note(f"scan_{kind}", SCAN_USERS, "users_per_s", work)
    source, target = (torch.ones(shapes.copy_bytes, dtype=torch.uint8, device=device) for _ in range(2))
    note("copy", 2 * shapes.copy_bytes / 1e12, "tb_per_s", lambda: target.copy_(source))
    note("fill", shapes.copy_bytes / 1e12, "tb_per_s", lambda: target.fill_(3))
    if device == "cuda":
        there = source[: shapes.host_bytes]
        for memory in ("pinned", "pageable"):
            here = torch.ones(shapes.host_bytes, dtype=torch.uint8, pin_memory=memory == "pinned")
            gigabytes = shapes.host_bytes / 1e9
            note(f"h2d_{memory}", gigabytes, "gb_per_s", lambda here=here: there.copy_(here, non_blocking=True))  # type: ignore[misc]
            note(f"d2h_{memory}", gigabytes, "gb_per_s", lambda here=here: here.copy_(there, non_blocking=True))  # type: ignore[misc]
    return found


def product(
    device: str, kind: str, rows: int, dims: int | None = None, columns: int | None = None
) -> Callable[[], Any]:
    """Work that multiplies (rows, dims) with (columns, dims), each row of these contiguous; square by default."""
    dtype, tf32 = KINDS[kind]
    left = torch.randn(rows, dims or rows, device=device).to(dtype)
    right = torch.randn(columns or rows, dims or rows, device=device).to(dtype)
    out = torch.empty(len(left), len(right), device=device, dtype=dtype)

    def work() -> torch.Tensor:
        torch.backends.cuda.matmul.allow_tf32 = tf32
        return torch.mm(left, right.T, out=out)

    return work


def gemm_flop_per_s(device: str, *, square: int = FULL.square) -> float:
    """Median rate of a product in fp16, for benchmarks that are held against it."""
    seconds = device_samples(Clock(device), product(device, "fp16", square), calls=3)
    return 2 * square**3 / Samples.of(seconds).median


if __name__ == "__main__":
    main()
