"""Reads weights of an ONNX file without the onnx package: float32 initializers, by name.

Their bytes lie in the file, or in files beside it.
"""

from __future__ import annotations

import math
from collections.abc import Collection
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from ipsrec_onnx.errors import ModelFileError
from ipsrec_onnx.onnx_proto import Initializer, initializers
from ipsrec_onnx.readable import why_unreadable

_FLOAT32 = 1  # TensorProto.DataType


class Weight(NamedTuple):
    """Where a float32 weight lies.

    Attributes:
        file: that holds its bytes.
        start: of them in that file.
        shape: as the graph says it; the bytes are as many.
    """

    file: Path
    start: int
    shape: tuple[int, ...]


def read_weights(path: Path, names: Collection[str]) -> dict[str, npt.NDArray[np.float32]]:
    """Read some of a graph's weights.

    Args:
        path: of the model file.
        names: of initializers.

    Returns:
        One array for each name, in the shape that the graph says.

    Raises:
        ModelFileError: as find_weights.
    """
    return {
        name: np.fromfile(weight.file, "<f4", math.prod(weight.shape), offset=weight.start)
        .astype(np.float32, copy=False)
        .reshape(weight.shape)
        for name, weight in find_weights(path, names).items()
    }


def find_weights(path: Path, names: Collection[str]) -> dict[str, Weight]:
    """Look where some of a graph's weights lie.

    Args:
        path: of the model file.
        names: of initializers.

    Raises:
        ModelFileError: one is not there, is not float32, has no bytes, or fewer or more than its shape asks for.
    """
    found = {one.name: one for one in initializers(path) if one.name in names}
    missing = sorted(set(names) - set(found))
    if missing:
        raise ModelFileError(f"model {path}: the graph has no weight {missing[0]!r}; export it again")
    return {name: _find(path, one) for name, one in found.items()}


def _find(path: Path, one: Initializer) -> Weight:
    where = f"model {path}: weight {one.name!r}"
    if one.data_type != _FLOAT32:
        raise ModelFileError(
            f"{where} has ONNX's data type {one.data_type}, expected {_FLOAT32} (float32); export it again"
        )
    if min(one.dims, default=0) < 0:
        raise ModelFileError(f"{where} has shape {one.dims}; export it again")
    file, start, size = path, one.raw.start, len(one.raw)
    if one.location is not None:
        if Path(one.location).name != one.location:
            raise ModelFileError(f"{where} lies in {one.location!r}, expected a file beside the model; export it again")
        file, start = path.parent / one.location, one.offset
        reason = why_unreadable(file)
        if reason is not None:
            raise ModelFileError(f"{where}: {file}: {reason}; keep its external data beside it")
        size = one.length if one.length is not None else file.stat().st_size - start
    count = math.prod(one.dims)
    if size != 4 * count or file.stat().st_size < start + size:
        raise ModelFileError(f"{where} has {size} bytes, expected {4 * count} for shape {one.dims}; export it again")
    return Weight(file, start, one.dims)
