"""Arrays in files that are mapped: clean pages, which the system drops where memory is short and reads again."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any, BinaryIO, Final

import numpy as np
import numpy.typing as npt

from ipsrec_kernels.check import read_only
from ipsrec_onnx.atomic import readable_errors
from ipsrec_onnx.onnx_weights import Weight

_BLOCK_BYTES: Final = 1 << 24  # copied at a time


def map_array(array: npt.NDArray[Any], folder: Path) -> npt.NDArray[Any]:
    """Write an array to a file without a name and map it, read-only: it is gone with the last array that maps it.

    So nothing is left behind, not even by a job that is killed. The folder should be on a disk: in one of those that
    systems keep in memory, nothing is won.

    Raises:
        DataError: the folder cannot be written to, or its disk is full.
    """
    with readable_errors(folder), tempfile.TemporaryFile(dir=folder) as file:
        rows = max(1, _BLOCK_BYTES // max(1, array[:1].nbytes))
        for first in range(0, len(array), rows):
            file.write(np.ascontiguousarray(array[first : first + rows]).data)
        return _mapped(file, array.dtype, array.shape, offset=0)


def map_weight(weight: Weight, folder: Path, *, dims: int) -> npt.NDArray[np.float32]:
    """Map a model file's matrix where it lies, or a copy of it, with zeros behind each row, from a file without a name.

    Args:
        weight: of two axes.
        folder: for the copy, as for map_array; needed where rows get longer, or float32 do not lie at multiples of 4.
        dims: width of the rows, as many as the weight's or more.

    Returns:
        (rows, dims) float32, read-only.

    Raises:
        DataError: as map_array.
    """
    rows, width = weight.shape
    with weight.file.open("rb") as source:
        if dims == width and weight.start % 4 == 0:
            return _mapped(source, np.dtype("<f4"), (rows, width), offset=weight.start)
        source.seek(weight.start)
        with readable_errors(folder), tempfile.TemporaryFile(dir=folder) as file:
            at_once = max(1, _BLOCK_BYTES // (4 * dims))
            for first in range(0, rows, at_once):
                block = np.zeros((min(at_once, rows - first), dims), "<f4")
                block[:, :width] = np.fromfile(source, "<f4", len(block) * width).reshape(-1, width)
                file.write(block.data)
            return _mapped(file, np.dtype("<f4"), (rows, dims), offset=0)


def mapped_bytes(*arrays: npt.NDArray[Any]) -> int:
    """Bytes of those of the arrays that are mapped from files; of one memory once."""
    found = {array.ctypes.data: array.nbytes for array in arrays if _is_mapped(array)}
    return sum(found.values())


def _mapped(file: BinaryIO, dtype: np.dtype[Any], shape: tuple[int, ...], *, offset: int) -> npt.NDArray[Any]:
    if 0 in shape:  # no bytes to map
        return read_only(np.zeros(shape, dtype))
    file.flush()
    return read_only(np.memmap(file, dtype, "r", offset, shape).view(np.ndarray))


def _is_mapped(array: npt.NDArray[Any]) -> bool:
    base: Any = array
    while isinstance(base, np.ndarray) and not isinstance(base, np.memmap):
        base = base.base
    return isinstance(base, np.memmap)
