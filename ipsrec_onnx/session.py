"""Opens ONNX Runtime sessions: the one file that names execution providers."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import onnxruntime

from ipsrec_onnx.errors import DefectError, ExecutionProviderError, ModelFileError
from ipsrec_onnx.versions import how_to_install

Device = Literal["cpu", "cuda"]

_EXECUTION_PROVIDER = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}
_ERRORS_ONLY = 3
_EXTERNAL_DATA_FOLDER = "session.model_external_initializers_file_folder_path"
# What ONNX Runtime raises when the file, and not the machine, is at fault.
_NO_MODEL = {"InvalidProtobuf", "InvalidArgument"}
_MODEL_AT_FAULT = {"InvalidGraph", "NoSuchFile", "NoModel"}


def available_execution_providers() -> list[str]:
    """Execution providers that the installed onnxruntime was built with, best first.

    Raises:
        ExecutionProviderError: of onnxruntime only an empty folder is left.
    """
    if not hasattr(onnxruntime, "InferenceSession"):
        # Python imports a folder without __init__.py, too: what removing one of the two wheels leaves of the other.
        folder = next(iter(onnxruntime.__path__))
        raise ExecutionProviderError(
            f"the onnxruntime at {folder} is not whole, as after removing one of two installed wheels; mend it with: "
            f"pip uninstall -y onnxruntime onnxruntime-gpu && {how_to_install('cpu', or_else='gpu')}"
        )
    return list(onnxruntime.get_available_providers())


def refuse_missing(device: Device) -> None:
    """Say early that a device's execution provider is not there.

    Raises:
        ExecutionProviderError: so it is, or onnxruntime is broken.
    """
    if _EXECUTION_PROVIDER[device] not in available_execution_providers():
        raise ExecutionProviderError(_missing(device))


def open_session(
    path: str | Path,
    *,
    device: Device,
    graph: bytes | None = None,
    card: int = 0,
    stream: int | None = None,
    profile: Path | None = None,
) -> onnxruntime.InferenceSession:
    """Open a session that worker threads share; each of its runs stays on the thread that calls it.

    One thread a run: the threads of a job are its workers, and a sum that is split among threads could differ in its
    last bit from one machine to the next. On a GPU float32 is float32, and not TF32, which is ONNX Runtime's default.

    Args:
        path: of the model file.
        device: where it runs.
        graph: run this in place of the file's; external data are still looked for beside the file.
        card: number of the GPU.
        stream: handle of a CUDA stream that all runs are queued on; None for one of ONNX Runtime's own. Not 0, CUDA's
            default stream: to ONNX Runtime that means none was given, and it would not wait for what is queued there.
        profile: how the file begins to which ONNX Runtime writes what ran where and how long; None writes none.

    Raises:
        ModelFileError: the file is no ONNX model.
        ExecutionProviderError: onnxruntime is broken, or the device's execution provider is not there or did not start.
    """
    refuse_missing(device)
    wanted = _EXECUTION_PROVIDER[device]
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.inter_op_num_threads = 1
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.add_session_config_entry("session.inter_op.allow_spinning", "0")
    options.add_session_config_entry("session.load_model_format", "ONNX")  # else a file named .ort is read otherwise
    if profile is not None:
        options.enable_profiling = True
        options.profile_file_prefix = str(profile)
    options.log_severity_level = _ERRORS_ONLY
    onnxruntime.set_default_logger_severity(_ERRORS_ONLY)
    if device == "cuda" and hasattr(onnxruntime, "preload_dlls"):
        with contextlib.redirect_stdout(sys.stderr):  # it prints what it misses, and stdout is for data
            onnxruntime.preload_dlls(directory="")  # CUDA's libraries, where pip packages brought them
    order: list[Any] = [wanted]
    if device == "cuda":
        settings = {"device_id": str(card), "use_tf32": "0"}
        if stream is not None:
            settings["user_compute_stream"] = str(stream)
        order = [(wanted, settings), _EXECUTION_PROVIDER["cpu"]]
    if graph is not None:
        options.add_session_config_entry(_EXTERNAL_DATA_FOLDER, str(Path(path).resolve().parent))
    model = str(path) if graph is None else graph
    try:
        session = onnxruntime.InferenceSession(model, options, providers=order, enable_fallback=0)
    except Exception as error:  # ONNX Runtime's errors have no common base but Exception
        if type(error).__name__ in _NO_MODEL:
            raise ModelFileError(
                f"{path} is no ONNX model: {_first_line(error)}; give the file that `ipsrec export` wrote"
            ) from error
        if device == "cpu" or type(error).__name__ in _MODEL_AT_FAULT:
            raise ModelFileError(
                f"model {path}: ONNX Runtime cannot load it: {_first_line(error)}; if it has a .data file, keep that "
                "beside it, or else export it again"
            ) from error
        raise ExecutionProviderError(f"--device {device}: {wanted} did not start: {_first_line(error)}") from error
    if session.get_providers()[0] != wanted:
        raise ExecutionProviderError(
            f"--device {device}: {wanted} did not start, only {session.get_providers()} did; "
            "`ipsrec doctor --device cuda` says why"
        )
    return session


def run_session(session: onnxruntime.InferenceSession, outputs: list[str], feed: dict[str, Any]) -> list[Any]:
    """Run a session; an error of the graph becomes a ModelFileError.

    Args:
        session: as open_session gave it.
        outputs: names of the graph's outputs to compute.
        feed: input name -> NumPy array.

    Raises:
        ModelFileError: the graph fails.
        MemoryError: memory ran out.
    """
    with _readable_errors():
        found = list(session.run(outputs, feed))
    return found


def run_bound(session: onnxruntime.InferenceSession, binding: Any, *, wait: bool) -> None:
    """Run a session on inputs and outputs that lie on its device.

    Args:
        session: as open_session gave it.
        binding: session.io_binding() with all of them bound.
        wait: for the outputs; without, they are there when what is queued on the session's stream is done.

    Raises:
        ModelFileError: the graph fails.
        MemoryError: memory ran out, the device's, too.
    """
    run_options = onnxruntime.RunOptions()
    if not wait:
        run_options.add_run_config_entry("disable_synchronize_execution_providers", "1")
    with _readable_errors():
        session.run_with_iobinding(binding, run_options)
        if wait:
            binding.synchronize_outputs()


@contextlib.contextmanager
def _readable_errors() -> Iterator[None]:
    """Turn what ONNX Runtime raises in a run into errors of this project."""
    try:
        yield
    except Exception as error:
        if _is_out_of_memory(error):
            raise MemoryError(_first_line(error)) from error
        raise ModelFileError(f"the model's graph failed: {_first_line(error)}; export it again") from error


def place_on_device(array: npt.NDArray[Any], *, device: Device, card: int = 0) -> onnxruntime.OrtValue:
    """Copy an array to where a device's sessions read it.

    Raises:
        MemoryError: the device has no room for it.
        ExecutionProviderError: the device cannot be used.
    """
    try:
        return onnxruntime.OrtValue.ortvalue_from_numpy(np.ascontiguousarray(array), device, card)
    except Exception as error:
        if _is_out_of_memory(error):
            raise MemoryError(_first_line(error)) from error
        raise ExecutionProviderError(
            f"--device {device}: {array.nbytes:,} bytes cannot be copied to device {card}: {_first_line(error)}; "
            f"`ipsrec doctor --device {device}` says why"
        ) from error


def run_on_device(
    session: onnxruntime.InferenceSession,
    outputs: list[str],
    feed: Mapping[str, npt.NDArray[Any] | onnxruntime.OrtValue],
) -> list[npt.NDArray[Any]]:
    """Run a graph of our own where its inputs lie; only the outputs come back.

    Args:
        session: as open_session gave it; not to be run by two threads at once.
        outputs: names of the graph's outputs to compute.
        feed: input name -> what place_on_device gave, or a NumPy array that the graph reads on the CPU.

    Raises:
        MemoryError: memory ran out, that of the device or the machine's.
        DefectError: the graph fails.
    """
    try:
        binding = session.io_binding()
        for name, value in feed.items():
            if isinstance(value, np.ndarray):
                binding.bind_cpu_input(name, value)
            else:
                binding.bind_ortvalue_input(name, value)
        for name in outputs:
            binding.bind_output(name, "cpu")
        session.run_with_iobinding(binding)
        return [value.numpy() for value in binding.get_outputs()]
    except Exception as error:
        if _is_out_of_memory(error):
            raise MemoryError(_first_line(error)) from error
        raise DefectError(f"ONNX Runtime failed in a graph of ours: {_first_line(error)}") from error


def _missing(device: str) -> str:
    return (
        f"--device {device}: {_EXECUTION_PROVIDER[device]} is not in this onnxruntime, which has "
        f"{available_execution_providers()}; use --device cpu, or mend it with: "
        f"pip uninstall -y onnxruntime && {how_to_install('gpu')}"
    )


def _is_out_of_memory(error: Exception) -> bool:
    """ONNX Runtime has no class of its own for this; a package without CUDA says that it cannot allocate, too."""
    text = str(error)
    found = any(words in text for words in ("bad_alloc", "allocate memory", "out of memory"))
    return found and "using this package" not in text


def _first_line(error: Exception) -> str:
    """The reason without ONNX Runtime's codes and the file's name before it."""
    lines = str(error).strip().splitlines()
    reason = lines[0].rpartition("failed:")[2].strip() if lines else type(error).__name__
    return "".join(one if one.isprintable() else "?" for one in reason)  # a file's names may drive a terminal
