"""What the GPU benchmarks share: the name of the machine, and a clock for what runs on a device."""

from __future__ import annotations

import os
import platform
import shutil
import statistics
import subprocess
import time
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np
import onnxruntime
import torch
import triton
from rounds import Timed, in_turn

from ipsrec_onnx.machine import cpu_model

ROUNDS = 7


def machine(device: str) -> dict[str, str]:
    """Names and versions that a figure depends on."""
    found = {
        "card": "none, a CPU stands in",
        "driver": "none",
        "cpu": f"{cpu_model()}, {os.cpu_count()} CPUs",
        "python": platform.python_version(),
        "torch": torch.__version__,
        "triton": triton.__version__,
        "onnxruntime": onnxruntime.__version__,
        "numpy": np.__version__,
    }
    if device == "cuda":
        found["card"], found["driver"] = torch.cuda.get_device_name(0), _driver()
    return found


def _driver() -> str:
    if shutil.which("nvidia-smi") is None:
        return "unknown"
    query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader", "--id=0"]
    return subprocess.run(query, capture_output=True, text=True, check=True).stdout.strip()


class Clock:
    """Moments on a device's current stream; on the CPU, where work is done when a call returns, those of the host."""

    def __init__(self, device: str) -> None:
        self.on_gpu = device == "cuda"

    def mark(self) -> Any:
        """Now, in the order of what is queued."""
        if not self.on_gpu:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def wait(self) -> None:
        """Until all that is queued is done."""
        if self.on_gpu:
            torch.cuda.synchronize()

    def seconds(self, earlier: Any, later: Any) -> float:
        """Between two marks, once wait() has returned."""
        return float(earlier.elapsed_time(later) / 1e3 if self.on_gpu else later - earlier)

    def time(self, work: Callable[[], object], *, calls: int = 1) -> float:
        """Seconds of a call, the mean of so many one after the other."""
        first = self.mark()
        for _ in range(calls):
            work()
        last = self.mark()
        self.wait()
        return self.seconds(first, last) / calls


class Samples(NamedTuple):
    """Some figures of one thing.

    Attributes:
        median: of them.
        low: the smallest.
        high: the largest.
    """

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: list[float]) -> Samples:
        """Sum up some figures, one or more."""
        return cls(statistics.median(values), min(values), max(values))

    def write(self, form: str = ",.0f") -> str:
        """Median and range."""
        return f"{self.median:{form}} [{self.low:{form}}..{self.high:{form}}]"


def device_samples(clock: Clock, work: Callable[[], object], *, rounds: int = ROUNDS, calls: int = 1) -> list[float]:
    """Seconds of a call by the device's clock, after two that do not count."""
    clock.time(work, calls=2)
    return [clock.time(work, calls=calls) for _ in range(rounds)]


def in_rounds(
    clock: Clock,
    by_device: Mapping[str, Callable[[], object]],
    by_host: Mapping[str, Callable[[], object]],
    rounds: int,
) -> dict[str, Timed]:
    """Time all ways in turn, once a round.

    Args:
        clock: of the device.
        by_device: ways that torch queues: seconds by the device's own clock.
        by_host: ways that return when they are done, ONNX Runtime's for example, on streams of its own.
        rounds: samples of each way.

    Returns:
        name -> its samples.
    """
    kept: dict[str, list[float]] = {name: [] for name in by_device}

    def timed(name: str) -> Callable[[], None]:
        return lambda: kept[name].append(clock.time(by_device[name]))

    found = in_turn({**{name: timed(name) for name in by_device}, **by_host}, None, rounds=rounds)
    return {name: Timed(kept[name], one.two_thread_ratio) if name in kept else one for name, one in found.items()}
