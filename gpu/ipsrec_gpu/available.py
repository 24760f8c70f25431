"""Whether the kernels here can run on this machine."""

from __future__ import annotations

import torch

from ipsrec_gpu.search import LARGEST_DIM


def num_gpus() -> int:
    """GPUs that torch finds; their numbers begin with 0."""
    return torch.cuda.device_count()


def why_unavailable(dim: int) -> str | None:
    """Why a catalog of this dim cannot be searched here; None where it can."""
    if not torch.cuda.is_available():
        return f"torch {torch.__version__} finds no GPU"
    if dim > LARGEST_DIM:
        return f"the model has {dim} dims, the kernels take up to {LARGEST_DIM}"
    return None
