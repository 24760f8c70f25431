"""ONNX Runtime for programs in C++, where this machine has a compiler and the headers."""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path

import onnxruntime
import pytest
from needed import skip_without

ROOT = Path(__file__).resolve().parents[1]
HEADERS = [
    ROOT / ".onnxruntime-cpp" / "include",  # which .ci/run fetches
    Path("/usr/include/onnxruntime"),  # of libonnxruntime-dev
    Path("/usr/local/include/onnxruntime"),
]


def need_onnxruntime_cpp(folder: Path) -> Path:
    """Find ONNX Runtime for C++; the test is skipped where a part is missing.

    It is the folder that ONNXRUNTIME_HOME names. Without it, headers are put together with the library of Python's
    package, which may be newer than they are, and which computes what Python computes.

    Args:
        folder: an empty one, to put them together in.

    Returns:
        A folder with include/ and lib/, as ONNX Runtime's releases have them.
    """
    if shutil.which("c++") is None:
        pytest.skip("there is no C++ compiler")
    if "ONNXRUNTIME_HOME" in os.environ:
        return Path(os.environ["ONNXRUNTIME_HOME"])
    headers = next((path for path in HEADERS if (path / "onnxruntime_cxx_api.h").is_file()), None)
    if headers is None:
        # .ci/run fetches them for a machine that can build the example; C++ is not asked of others.
        without = pytest.skip if shutil.which("cmake") is None else skip_without
        without("ONNX Runtime's C++ headers are missing (libonnxruntime-dev, or ONNXRUNTIME_HOME=FOLDER)")
    library = next((Path(onnxruntime.__file__).parent / "capi").glob("libonnxruntime.so.*"), None)
    if sys.platform != "linux" or library is None:
        pytest.skip("Python's onnxruntime has no library for programs in C++ here (set ONNXRUNTIME_HOME=FOLDER)")
    (folder / "lib").mkdir()
    (folder / "include").symlink_to(headers)
    for name in ("libonnxruntime.so", "libonnxruntime.so.1"):  # for the linker, and for the loader
        (folder / "lib" / name).symlink_to(library)
    return folder
