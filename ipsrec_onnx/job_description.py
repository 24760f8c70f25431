"""Says what a scoring job is, so that an unfinished one goes on only with what it was begun with."""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np
import numpy.typing as npt

from ipsrec_kernels.cpu import has_wide_vectors, runnable_paths
from ipsrec_onnx.user_chunks import plan_parts
from ipsrec_onnx.users import Users
from ipsrec_onnx.versions import package_version

# Other versions may write other bytes: scores with other last bits, lists in other pages.
_PACKAGES = ("ipsrec-onnx", "onnxruntime", "onnxruntime-gpu", "numba", "numpy", "pyarrow", "faiss-cpu")


def describe_job(
    users: Users,
    *,
    model_sha256: str,
    options: dict[str, Any],
    allowed: npt.NDArray[np.bool_] | None,
    as_folder: bool,
    gpu: str | None = None,
) -> dict[str, Any]:
    """Describe a job by all that its bytes depend on, as JSON that a person can read.

    Args:
        users: as open_users gave it; a file is known by its size, the time of its last change and its Parquet metadata.
        model_sha256: of the model file.
        options: by name.
        allowed: (num_items + 1,) items that the lists leave; None where no list was given.
        as_folder: are the candidates a folder of files?
        gpu: kind of the GPUs that encode, which decides about last bits as a CPU's does; None where none does.
    """
    return {
        "model_sha256": model_sha256,
        "options": options,
        "output": "folder" if as_folder else "file",
        "allowed_items_sha256": None if allowed is None else hashlib.sha256(np.packbits(allowed).tobytes()).hexdigest(),
        "columns": users.columns.names,
        "input": [
            {
                "file": file.name,
                "rows": file.num_rows,
                "bytes": file.size,
                "mtime_ns": file.mtime_ns,
                "footer_sha256": file.footer_sha256,
            }
            for file in users.files
        ],
        "parts": len(plan_parts(users)),
        "cpu": {"scan": runnable_paths()[0], "wide_vectors": has_wide_vectors()},
        **({} if gpu is None else {"gpu": gpu}),
        "versions": {name: package_version(name) for name in _PACKAGES},
    }
