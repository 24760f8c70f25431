"""Says which engine scores a job: this process, or a Ray cluster, and how much of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

from ipsrec_onnx.cards import DEFAULT_CARDS
from ipsrec_onnx.errors import EngineError
from ipsrec_onnx.score_options import check_positive
from ipsrec_onnx.session import Device

EngineName = Literal["local", "ray"]


@dataclass(frozen=True)
class RayOptions:
    """Which cluster, and how much of it.

    Attributes:
        address: of a running cluster, "auto" for the one that this machine is part of; None starts Ray on this machine
            alone, and ends it after the job.
        workers: sessions side by side; None for one a machine, or one for each gpus_per_worker GPUs.
        gpus_per_worker: GPUs of a worker, with device "cuda".

    Raises:
        ValueError: a number below 1.
    """

    address: str | None = None
    workers: int | None = None
    gpus_per_worker: int = 1

    def __post_init__(self) -> None:
        check_positive("workers", self.workers)
        check_positive("gpus_per_worker", self.gpus_per_worker)

    def gpus(self, device: Device) -> tuple[int, ...]:
        """Numbers of a worker's GPUs, as the worker sees them; none where the CPU scores."""
        return tuple(range(self.gpus_per_worker)) if device == "cuda" else ()


def check_engine(engine: EngineName, options: RayOptions, gpus: Sequence[int]) -> RayOptions | None:
    """Give the options of Ray, or None for a job in this process.

    Args:
        engine: "local" or "ray".
        options: of Ray.
        gpus: numbers of GPUs, as a job in this process has them.

    Raises:
        EngineError: options of Ray are given for another engine, or the other way round.
        ValueError: the engine is unknown.
    """
    if engine not in get_args(EngineName):
        raise ValueError(f"engine is {engine!r}, expected one of {get_args(EngineName)}")
    if engine == "ray":
        if tuple(gpus) != DEFAULT_CARDS.gpus:
            raise EngineError("--gpus numbers the GPUs of this machine, found --engine ray; use --gpus-per-worker")
        return options
    if options != RayOptions():
        raise EngineError(
            "--address, --workers and --gpus-per-worker are about a cluster, found --engine local; add --engine ray, "
            "or leave them out"
        )
    return None
