"""Whether the kernels here can run on this machine."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import torch
import triton
import triton.language as tl

from ipsrec_gpu.search import LARGEST_DIM

_OLDEST: Final = (8, 0)  # compute capability: before it, tiles do not fit into shared memory


def num_gpus() -> int:
    """GPUs that torch finds; their numbers begin with 0."""
    return torch.cuda.device_count()


def why_unavailable(dim: int, gpus: Sequence[int]) -> str | None:
    """Why a catalog of this dim cannot be searched on some GPUs, those that are there; None where it can."""
    if not torch.cuda.is_available():
        return f"torch {torch.__version__} finds no GPU"
    if dim > LARGEST_DIM:
        return f"the model has {dim} dims, the kernels take up to {LARGEST_DIM}"
    for number in gpus:
        if number >= num_gpus():
            continue  # whoever opens it says so
        found = torch.cuda.get_device_capability(number)
        if found < _OLDEST:
            have, need = (".".join(map(str, one)) for one in (found, _OLDEST))
            return f"GPU {number} has compute capability {have}, the kernels need {need}"
        reason = _why_no_launch(number)
        if reason is not None:
            return reason
    return None


def _why_no_launch(number: int) -> str | None:
    """Why Triton cannot compile and launch a kernel: it needs a C compiler and Python's headers, for one."""
    try:
        with torch.cuda.device(number):
            answer = torch.zeros(1, device="cuda")
            _write_one[(1,)](answer)
            return None if float(answer) == 1.0 else f"a kernel of Triton on GPU {number} gives {float(answer)}, not 1"
    except Exception as error:  # compilers, linkers and drivers raise what they like
        said = str(error).strip().splitlines()
        return f"Triton cannot launch a kernel on GPU {number}: {said[0] if said else type(error).__name__}"


@triton.jit
def _write_one(answer):
    tl.store(answer, 1.0)
