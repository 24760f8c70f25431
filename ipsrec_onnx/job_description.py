"""Says what a scoring job is, so that an unfinished one goes on only with what it was begun with."""

from __future__ import annotations

import hashlib
import json
import platform
from collections.abc import Sequence
from typing import Any, NoReturn

import numpy as np
import numpy.typing as npt

from ipsrec_kernels.cpu import has_wide_vectors, runnable_paths
from ipsrec_onnx.card_opening import kind_of_gpus
from ipsrec_onnx.errors import DataError
from ipsrec_onnx.user_parts import plan_parts, users_of_a_part
from ipsrec_onnx.users import Users, UsersFile
from ipsrec_onnx.versions import package_version, sources_sha256

# Other versions may write other bytes: scores with other last bits, lists in other pages.
_PACKAGES = ("ipsrec-onnx", "onnxruntime", "onnxruntime-gpu", "numba", "numpy", "pyarrow", "faiss-cpu")
_GPU_PACKAGES = ("torch", "triton")  # torch brings the CUDA libraries that ONNX Runtime takes
_MOST_FILES = 1000  # described one by one


def describe_job(
    users: Users,
    *,
    model_sha256: str,
    options: dict[str, Any],
    allowed: npt.NDArray[np.bool_] | None,
    as_folder: bool,
    part_rows: int | None = None,
    machine: dict[str, Any],
) -> dict[str, Any]:
    """Describe a job by all that its bytes depend on, as JSON that a person can read.

    Args:
        users: as open_users gave it; a file is known by its size, the time of its last change and its Parquet metadata.
        model_sha256: of the model file.
        options: by name.
        allowed: (num_items + 1,) items that the lists leave; None where no list was given.
        as_folder: are the candidates a folder of files?
        part_rows: users of a part at most; None for what users_of_a_part says.
        machine: that scores, as machine_kind gave it.
    """
    return {
        "model_sha256": model_sha256,
        "options": options,
        "output": "folder" if as_folder else "file",
        "allowed_items_sha256": None if allowed is None else hashlib.sha256(np.packbits(allowed).tobytes()).hexdigest(),
        "columns": users.columns.names,
        "input": _describe_files(users.files),
        "part_rows": users_of_a_part(users, part_rows),
        "parts": len(plan_parts(users, part_rows)),
        **machine,
    }


def machine_kind(gpus: Sequence[int] | None) -> dict[str, Any]:
    """Describe this machine by all that a user's last bits depend on; machines of one kind may share a job.

    Args:
        gpus: numbers of the GPUs that encode, whose kind decides about last bits as a CPU's does; None where none does.

    Raises:
        ExecutionProviderError: the GPUs are of several kinds.
    """
    return {
        "cpu": {"machine": platform.machine(), "scan": runnable_paths()[0], "wide_vectors": has_wide_vectors()},
        **({} if gpus is None else {"gpu": kind_of_gpus(gpus)}),
        "versions": {name: package_version(name) for name in (*_PACKAGES, *(() if gpus is None else _GPU_PACKAGES))},
        "sources_sha256": sources_sha256(),
    }


def refuse_unfinished(
    output: str, found: dict[str, Any], wanted: dict[str, Any], *, done: int, resume: bool
) -> NoReturn:
    """Refuse to touch the unfinished job of an output.

    Args:
        output: for the message.
        found: the unfinished job's description.
        wanted: that of the job that is asked for.
        done: finished parts of the unfinished one.
        resume: was it to go on?

    Raises:
        DataError: always.
    """
    if resume:
        raise DataError(
            f"output {output}: the unfinished job there is another one: {first_difference(found, wanted)}; give what "
            "it was begun with, or start over with --overwrite"
        )
    raise DataError(
        f"output {output}: an unfinished job is there, {done} parts done; go on with --resume, or start over with "
        "--overwrite"
    )


def first_difference(found: Any, wanted: Any, where: str = "") -> str:
    """Name the first entry in which two JSON values differ, with both values."""
    if isinstance(found, dict) and isinstance(wanted, dict):
        for key in [*wanted, *found]:
            if found.get(key) != wanted.get(key):
                return first_difference(found.get(key), wanted.get(key), f"{where}.{key}" if where else key)
    if isinstance(found, list) and isinstance(wanted, list) and len(found) == len(wanted):
        for number, (one, other) in enumerate(zip(found, wanted, strict=True)):
            if one != other:
                return first_difference(one, other, f"{where}[{number}]")
    return f"its {where} is {json.dumps(found)[:200]}, asked for is {json.dumps(wanted)[:200]}"


def _describe_files(files: list[UsersFile]) -> list[dict[str, Any]]:
    """Say of each file what it is known by; of those beyond _MOST_FILES, in one entry at the end."""
    described = [
        {
            "file": file.name,
            "rows": file.num_rows,
            "bytes": file.size,
            "mtime_ns": file.mtime_ns,
            "footer_sha256": file.footer_sha256,
        }
        for file in files
    ]
    more = described[_MOST_FILES:]
    if not more:
        return described
    rest = {
        "files": len(more),
        "rows": sum(file.num_rows for file in files[_MOST_FILES:]),
        "sha256": hashlib.sha256(json.dumps(more).encode()).hexdigest(),
    }
    return [*described[:_MOST_FILES], rest]
