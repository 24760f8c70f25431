"""Opens ONNX Runtime sessions: the one file that names execution providers."""

from __future__ import annotations

import contextlib
import sys
from pathlib import Path
from typing import Any, Literal

import onnxruntime

from ipsrec_onnx.errors import ExecutionProviderError, ModelFileError
from ipsrec_onnx.versions import how_to_install

Device = Literal["cpu", "cuda"]

_EXECUTION_PROVIDER = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}
_ERRORS_ONLY = 3
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


def open_session(path: str | Path, *, device: Device) -> onnxruntime.InferenceSession:
    """Open a session that worker threads share; each of its runs stays on the thread that calls it.

    One thread a run: the threads of a job are its workers, and a sum that is split among threads could differ in its
    last bit from one machine to the next.

    Raises:
        ModelFileError: the file is no ONNX model.
        ExecutionProviderError: onnxruntime is broken, or the device's execution provider is not there or did not start.
    """
    wanted = _EXECUTION_PROVIDER[device]
    if wanted not in available_execution_providers():
        raise ExecutionProviderError(_missing(device))
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.inter_op_num_threads = 1
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.add_session_config_entry("session.inter_op.allow_spinning", "0")
    options.add_session_config_entry("session.load_model_format", "ONNX")  # else a file named .ort is read otherwise
    options.log_severity_level = _ERRORS_ONLY
    onnxruntime.set_default_logger_severity(_ERRORS_ONLY)
    if device == "cuda" and hasattr(onnxruntime, "preload_dlls"):
        with contextlib.redirect_stdout(sys.stderr):  # it prints what it misses, and stdout is for data
            onnxruntime.preload_dlls(directory="")  # CUDA's libraries, where pip packages brought them
    order = [wanted] if device == "cpu" else [wanted, _EXECUTION_PROVIDER["cpu"]]
    try:
        session = onnxruntime.InferenceSession(str(path), options, providers=order, enable_fallback=0)
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
    try:
        return list(session.run(outputs, feed))
    except Exception as error:
        if "bad_alloc" in str(error) or "allocate memory" in str(error):  # it has no class of its own for this
            raise MemoryError(_first_line(error)) from error
        raise ModelFileError(f"the model's graph failed: {_first_line(error)}; export it again") from error


def _missing(device: str) -> str:
    return (
        f"--device {device}: {_EXECUTION_PROVIDER[device]} is not in this onnxruntime, which has "
        f"{available_execution_providers()}; use --device cpu, or mend it with: "
        f"pip uninstall -y onnxruntime && {how_to_install('gpu')}"
    )


def _first_line(error: Exception) -> str:
    """The reason without ONNX Runtime's codes and the file's name before it."""
    lines = str(error).strip().splitlines()
    reason = lines[0].rpartition("failed:")[2].strip() if lines else type(error).__name__
    return "".join(one if one.isprintable() else "?" for one in reason)  # a file's names may drive a terminal
