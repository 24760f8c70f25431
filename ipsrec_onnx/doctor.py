"""Says what this machine can run, and what is wrong with it, as plain data."""

from __future__ import annotations

import ctypes
import os
import platform
import re
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ipsrec_onnx.cores import cgroup_cores, usable_cores
from ipsrec_onnx.errors import ExecutionProviderError
from ipsrec_onnx.staging import staged
from ipsrec_onnx.versions import NOT_INSTALLED, how_to_install, package_version

if TYPE_CHECKING:  # doctor must run where onnxruntime is missing
    from ipsrec_onnx.placement import Placement
    from ipsrec_onnx.session import Device

CPU_WHEEL, GPU_WHEEL = "onnxruntime", "onnxruntime-gpu"

_PACKAGES = ("ipsrec-onnx", "numpy", "numba", "pyarrow", CPU_WHEEL, GPU_WHEEL, "torch", "triton")
_THREAD_LIMITS = ("OMP_NUM_THREADS", "NUMBA_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")


@dataclass(frozen=True)
class Problem:
    """Something that is wrong.

    Attributes:
        what: found and expected.
        mend: what to do.
    """

    what: str
    mend: str


@staged(inputs=["model"])
def doctor(device: Device | None = None, *, model: str | Path | None = None) -> dict[str, Any]:
    """Look at this machine, and at how it runs a model.

    Args:
        device: that the user means to run on; "cuda" looks for why it would not start. None looks at the CPU only.
        model: a model file to run there; None runs none.

    Returns:
        JSON values: versions, execution_providers, cores, thread_limits, numba_cache, and problems, each with "what"
        and "mend"; no problems means that the machine is fine. With "cuda", "gpu_search" says what would search there,
        and what keeps the fastest search from it, which is no problem. With a model, "model" says how many of its nodes
        ran on which execution provider, and which nodes computed shapes on the CPU of a GPU's machine; it is None where
        the device does not start.

    Raises:
        ModelFileError: the model file cannot be used.
    """
    versions = {"python": platform.python_version(), **{name: package_version(name) for name in _PACKAGES}}
    execution_providers, broken = _execution_providers()
    limits = {name: os.environ[name] for name in _THREAD_LIMITS if name in os.environ}
    cache = _numba_cache()
    problems = [
        *wheel_problems(versions),
        *broken,
        *thread_problems(limits, cores=usable_cores(), quota=cgroup_cores()),
        *cache_problems(cache),
    ]
    if device == "cuda" and not broken:
        problems += cuda_problems(versions, execution_providers)
    found: dict[str, Any] = {}
    if device == "cuda" and execution_providers:
        found["gpu_search"] = _gpu_search(1)
    if model is not None:
        found["model"] = None
        if execution_providers:
            found["model"], of_the_model = _run_model(model, device or "cpu")
            problems += of_the_model
    return {
        "versions": versions,
        "execution_providers": execution_providers,
        "cores": {"usable": usable_cores(), "of_the_machine": os.cpu_count(), "cgroup_quota": cgroup_cores()},
        "thread_limits": limits,
        "numba_cache": str(cache),
        **found,
        "problems": [asdict(problem) for problem in problems],
    }


def _gpu_search(dim: int) -> dict[str, str | None]:
    """What would search on a GPU for models of some dim, and what keeps the faster one from it."""
    from ipsrec_onnx.card_opening import why_no_triton

    reason = why_no_triton(dim)
    return {"search": "onnx" if reason else "triton", "why_not_triton": reason}


def _run_model(model: str | Path, device: Device) -> tuple[dict[str, Any] | None, list[Problem]]:
    """What `doctor` says of a model, and what is wrong with how it ran."""
    from ipsrec_onnx.model_file import open_model_file
    from ipsrec_onnx.placement import find_placement

    try:
        opened = open_model_file(model)
        placement = find_placement(opened, device)
    except ExecutionProviderError as error:
        return None, [Problem(str(error), "see the problems above, or use --device cpu")]
    shapes = placement.on_the_cpu(computes_shapes=True) if device == "cuda" else []
    said = {
        "path": str(model),
        "device": device,
        "precision": opened.precision,
        "nodes": placement.nodes,
        "shapes_on_the_cpu": [{"name": run.name, "op_type": run.op_type} for run in shapes],
    }
    return said, placement_problems(model, placement) if device == "cuda" else []


def placement_problems(model: str | Path, placement: Placement) -> list[Problem]:
    """Nodes that the CPU ran in the place of the GPU: each waits for copies there and back."""
    return [
        Problem(
            f"model {model}: node {run.name!r} ({run.op_type}) ran on the CPU, not on the GPU",
            "upgrade onnxruntime-gpu, or export the model again; its results are right, only slow",
        )
        for run in placement.on_the_cpu(computes_shapes=False)
    ]


def wheel_problems(versions: dict[str, str]) -> list[Problem]:
    """Both wheels install the same module, and the one installed last wins; none is no better."""
    installed = [name for name in (CPU_WHEEL, GPU_WHEEL) if versions[name] != NOT_INSTALLED]
    if len(installed) == 2:
        return [
            Problem(
                f"{CPU_WHEEL} {versions[CPU_WHEEL]} and {GPU_WHEEL} {versions[GPU_WHEEL]} are both installed; "
                "they overwrite each other, and CUDA may be gone without a word",
                f"pip uninstall -y {CPU_WHEEL} {GPU_WHEEL} && {how_to_install('gpu', or_else='cpu')}",
            )
        ]
    if not installed:
        return [Problem("no onnxruntime is installed", how_to_install("cpu", or_else="gpu"))]
    return []


def thread_problems(limits: dict[str, str], *, cores: int, quota: float | None) -> list[Problem]:
    """A thread limit that is no number or above the cores, and a quota below them, slow a job down quietly."""
    problems = []
    for name, text in limits.items():
        # OpenMP takes one number for each level of nesting; the first is the one that counts here.
        levels = text.split(",") if name == "OMP_NUM_THREADS" else [text]
        if not all(re.fullmatch(r"\s*0*[1-9][0-9]{0,8}\s*", level) for level in levels):
            problems.append(Problem(f"{name} is {text!r}, expected a number, 1 or more", f"unset {name}"))
        elif int(levels[0]) > cores:
            problems.append(Problem(f"{name} is {text}, but only {cores} cores are usable", f"export {name}={cores}"))
    if quota is not None and quota < cores:
        fitting = max(1, int(quota))
        problems.append(
            Problem(
                f"the container's CPU quota is worth {quota:g} cores, but {cores} are visible: "
                "that many threads would be throttled",
                f"run with --threads {fitting}, or raise the quota",
            )
        )
    return problems


def cache_problems(cache: Path) -> list[Problem]:
    """Without its cache, Numba compiles the kernels anew in every process: most of a minute."""
    if os.access(_nearest_folder(cache), os.W_OK | os.X_OK):
        return []
    return [
        Problem(
            f"Numba cannot write its cache to {cache}, so that every run compiles the kernels anew",
            "set NUMBA_CACHE_DIR to a folder that can be written to",
        )
    ]


def cuda_problems(versions: dict[str, str], execution_providers: list[str]) -> list[Problem]:
    """Why CUDA would not start, the first cause first."""
    if versions[GPU_WHEEL] == NOT_INSTALLED:
        return [
            Problem(
                f"CUDA is asked for, but {GPU_WHEEL} is not installed; execution providers: {execution_providers}",
                f"pip uninstall -y {CPU_WHEEL} && {how_to_install('gpu')}",
            )
        ]
    if "CUDAExecutionProvider" not in execution_providers:
        return [
            Problem(
                f"CUDA is asked for, but this onnxruntime has only {execution_providers}",
                f"pip install --force-reinstall {GPU_WHEEL}",
            )
        ]
    return _driver_problems() or _library_problems()


def _driver_problems() -> list[Problem]:
    """Is there a driver, and does it see a GPU?"""
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError as error:
        return [
            Problem(
                f"the NVIDIA driver is missing: {error}",
                "install the driver; in a container, start it with GPU access (docker run --gpus all)",
            )
        ]
    count = ctypes.c_int(0)
    status = driver.cuInit(0) or driver.cuDeviceGetCount(ctypes.byref(count))
    if status or not count.value:
        visible = os.environ.get("CUDA_VISIBLE_DEVICES")
        return [
            Problem(
                f"the NVIDIA driver sees no GPU (status {status}, CUDA_VISIBLE_DEVICES={visible!r})",
                "see what `nvidia-smi` says, and check CUDA_VISIBLE_DEVICES",
            )
        ]
    return []


def _library_problems() -> list[Problem]:
    """Can onnxruntime's CUDA library be loaded? If not, the loader names the library that it misses."""
    spec = find_spec("onnxruntime")
    if spec is None or spec.origin is None:
        return []
    capi = Path(spec.origin).parent / "capi"
    try:
        ctypes.CDLL(str(capi / "libonnxruntime_providers_shared.so"), mode=os.RTLD_LAZY | os.RTLD_GLOBAL)
        ctypes.CDLL(str(capi / "libonnxruntime_providers_cuda.so"), mode=os.RTLD_LAZY)
        ctypes.CDLL("libcudnn.so.9")
    except OSError as error:
        return [Problem(f"a library that CUDA needs is missing: {error}", "pip install 'onnxruntime-gpu[cuda,cudnn]'")]
    return []


def _execution_providers() -> tuple[list[str], list[Problem]]:
    """What onnxruntime has; and what is wrong with it where it is there, but not whole."""
    if find_spec("onnxruntime") is None:
        return [], []
    mend = f"pip uninstall -y {CPU_WHEEL} {GPU_WHEEL} && {how_to_install('cpu', or_else='gpu')}"
    try:
        from ipsrec_onnx.session import available_execution_providers

        return available_execution_providers(), []
    except (ImportError, ExecutionProviderError) as error:
        return [], [Problem(f"onnxruntime cannot be used: {str(error).partition('; mend')[0]}", mend)]


def _numba_cache() -> Path:
    """Where Numba keeps compiled kernels: a folder asked for, beside the kernels, or the user's cache."""
    asked = os.environ.get("NUMBA_CACHE_DIR")
    if asked:
        return Path(asked)
    spec = find_spec("ipsrec_kernels")
    beside = Path(spec.origin).parent / "__pycache__" if spec and spec.origin else Path.cwd()
    if os.access(_nearest_folder(beside), os.W_OK | os.X_OK):
        return beside
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "numba"


def _nearest_folder(path: Path) -> Path:
    """The folder itself, or the nearest one above it that is there."""
    return next(folder for folder in (path, *path.parents) if folder.exists())
