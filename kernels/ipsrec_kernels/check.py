"""What every face asks of its arrays before a kernel trusts them."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from ipsrec_kernels.array_types import Int64Array


def check_array(name: str, array: Any, *, dtype: type[np.generic], ndim: int = 1) -> npt.NDArray[Any]:
    """Give back a read-only, C-contiguous and aligned view of the array (a copy where it has to be).

    Read-only whatever the caller's array was: Numba compiles a kernel once for each kind of array it meets.

    Raises:
        ValueError: it is no array, or has another dtype or number of axes.
    """
    if not isinstance(array, np.ndarray):
        raise ValueError(f"{name} is a {type(array).__name__}, expected a NumPy array of {np.dtype(dtype)}")
    if array.dtype != dtype or array.ndim != ndim:
        raise ValueError(
            f"{name} is {array.dtype} with {array.ndim} axes, expected {np.dtype(dtype)} with {ndim}; convert it first"
        )
    return read_only(np.require(array, requirements=["C", "A"]))


def read_only(array: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """A view of the same memory that refuses to be written through."""
    view = array.view()
    view.flags.writeable = False
    return view


def check_offsets(name: str, offsets: Any, *, num_values: int) -> Int64Array:
    """Give back int64 offsets that rise (or stay) and lie inside 0..num_values.

    The first may be above 0: a sliced Arrow array shares its values with the whole one.

    Raises:
        ValueError: no offset at all, a fall, or one outside the values.
    """
    checked: Int64Array = check_array(name, offsets, dtype=np.int64)
    if checked.size == 0:
        raise ValueError(f"{name} is empty, expected one offset more than there are lists")
    if checked[0] < 0 or checked[-1] > num_values:
        raise ValueError(f"{name} run from {checked[0]} to {checked[-1]}, expected inside 0..{num_values}")
    falls = checked[1:] < checked[:-1]
    if falls.any():
        raise ValueError(f"{name} fall after list {int(falls.argmax())}, expected to rise or stay")
    return checked


def check_range(name: str, values: npt.NDArray[np.integer[Any]], *, low: int, high: int) -> None:
    """Refuse integers outside low..high (both allowed).

    Raises:
        ValueError: one lies outside; the message names the first.
    """
    if values.size and not (low <= int(values.min()) and int(values.max()) <= high):
        at = int(((values < low) | (values > high)).argmax())
        raise ValueError(f"{name}[{at}] is {values[at]}, expected {low}..{high}")


def check_at_least(name: str, value: int, *, low: int) -> int:
    """Give back an integer of at least `low`.

    Raises:
        ValueError: it is smaller.
    """
    if value < low:
        raise ValueError(f"{name} is {value}, expected {low} or more")
    return int(value)
