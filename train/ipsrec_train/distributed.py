"""Several processes that train one model together, as torchrun starts them."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, distributed, nn

from ipsrec_onnx.errors import DataError


@dataclass(frozen=True)
class Workers:
    """The processes of one training.

    Attributes:
        rank: which one this is, 0 the first; it alone writes files and talks.
        size: how many there are.
    """

    rank: int = 0
    size: int = 1

    @property
    def first(self) -> bool:
        """Is this the one that writes?"""
        return self.rank == 0

    def sum_gradients(self, model: nn.Module) -> None:
        """Add up every parameter's gradient over all processes, in place."""
        if self.size > 1:
            gradients = []
            for parameter in model.parameters():
                if parameter.grad is None:  # a process whose share of a batch is empty
                    parameter.grad = torch.zeros_like(parameter)
                gradients.append(parameter.grad)
            flat = torch.cat([gradient.flatten() for gradient in gradients])
            distributed.all_reduce(flat)
            parts = torch.split(flat, [gradient.numel() for gradient in gradients])
            for gradient, part in zip(gradients, parts, strict=True):
                gradient.copy_(part.view_as(gradient))

    def sum_tensor(self, values: Tensor) -> None:
        """Add up a tensor over all processes, in place; nobody waits for a GPU."""
        if self.size > 1:
            distributed.all_reduce(values)

    def sum_array(self, values: npt.NDArray[Any], device: torch.device) -> npt.NDArray[Any]:
        """Add up an array over all processes."""
        if self.size == 1:
            return values
        total = torch.from_numpy(np.ascontiguousarray(values)).to(device)
        self.sum_tensor(total)
        summed: npt.NDArray[Any] = total.cpu().numpy()
        return summed

    def wait(self) -> None:
        """Go on when all processes are here."""
        if self.size > 1:
            distributed.barrier()


def first_process() -> bool:
    """Is this the process that writes and talks? Always where there is one."""
    return not distributed.is_initialized() or distributed.get_rank() == 0


def join_workers(device: str) -> tuple[Workers, torch.device]:
    """Read what torchrun says of this process and join the others; alone without torchrun.

    Args:
        device: "cpu" or "cuda"; with cuda each process of a machine takes the GPU of its local rank.

    Raises:
        DataError: there are more processes on this machine than GPUs.
    """
    size, local = int(os.environ.get("WORLD_SIZE", "1")), int(os.environ.get("LOCAL_RANK", "0"))
    if device == "cuda" and local >= torch.cuda.device_count():
        raise DataError(
            f"device cuda: process {local} of this machine finds {torch.cuda.device_count()} GPUs; "
            "start as many processes as there are GPUs (torchrun --nproc-per-node)"
        )
    place = torch.device("cuda", local) if device == "cuda" else torch.device("cpu")
    if size == 1:
        return Workers(), place
    if place.type == "cuda":
        torch.cuda.set_device(place)  # or every process would wait for the others on the first GPU
    if not distributed.is_initialized():
        distributed.init_process_group("nccl" if device == "cuda" else "gloo")
    return Workers(rank=distributed.get_rank(), size=size), place
