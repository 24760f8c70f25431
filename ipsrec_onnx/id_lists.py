"""Lists of ids, whatever Arrow type a file keeps them in, as one array of ids and the offsets of the lists."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from ipsrec_onnx.arrow_check import refuse_broken
from ipsrec_onnx.errors import DataError
from ipsrec_onnx.ids import id_type


@dataclass(frozen=True, eq=False)
class IdLists:
    """Lists of ids end to end.

    Attributes:
        ids: (N,) Arrow int64 or large_string, or a dictionary of at most N of these, itself without nulls; an id may
            be null until the malformed rows are out.
        offsets: (n + 1,) int64, from 0 to N; list b is ids[offsets[b]:offsets[b + 1]].
        null_lists: (n,) bool, lists that are null rather than empty.
        too_large: (n,) bool, lists with an id beyond int64, which is null among ids.
    """

    ids: pa.Array
    offsets: npt.NDArray[np.int64]
    null_lists: npt.NDArray[np.bool_]
    too_large: npt.NDArray[np.bool_]

    @property
    def lengths(self) -> npt.NDArray[np.int64]:
        """(n,) ids in each list."""
        return np.diff(self.offsets)

    def lists_with_null(self) -> npt.NDArray[np.bool_]:
        """(n,) bool: does the list hold a null id?"""
        if not self.ids.null_count:
            return np.zeros(len(self.offsets) - 1, np.bool_)
        return _lists_with(self.ids.is_null(), self.offsets)

    def keep(self, rows: npt.NDArray[np.bool_]) -> IdLists:
        """Keep the lists that rows, (n,) bool, says."""
        starts, lengths = self.offsets[:-1][rows], self.lengths[rows]
        positions, offsets = range_positions(starts, lengths)
        return IdLists(self.ids.take(pa.array(positions)), offsets, self.null_lists[rows], self.too_large[rows])


def range_positions(
    starts: npt.NDArray[np.int64], lengths: npt.NDArray[np.int64]
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Positions of the ranges starts[b] .. starts[b] + lengths[b], end to end.

    Returns:
        positions: (lengths.sum(),) int64 to take values at.
        offsets: (n + 1,) int64, where each range starts among the positions.
    """
    offsets = np.zeros(len(lengths) + 1, np.int64)
    np.cumsum(lengths, out=offsets[1:])
    return np.arange(offsets[-1], dtype=np.int64) + np.repeat(starts - offsets[:-1], lengths), offsets


def list_id_type(arrow_type: pa.DataType, *, kind: pa.DataType, where: str) -> None:
    """Check that a column holds lists of ids of one kind.

    Args:
        arrow_type: the column's type.
        kind: int64 or large_string, as the catalog has it.
        where: file and column, for the message.

    Raises:
        DataError: no list, or ids of another kind.
    """
    if not _is_list(arrow_type):
        raise DataError(f"{where}: found type {arrow_type}, expected a list of {kind} ids; make it one list a row")
    value_type = arrow_type.value_type
    if pa.types.is_null(value_type):  # every list of the file is empty
        return
    found = id_type(value_type, where=where)
    if found != kind:
        raise DataError(
            f"{where}: found ids of type {value_type}, expected {kind} as in the model's catalog; cast the column"
        )


def id_lists(column: pa.Array, *, kind: pa.DataType, where: str) -> IdLists:
    """Bring a column of lists, of any Arrow list type, to IdLists.

    Args:
        column: (n,) lists of ids; may be a slice of a larger array.
        kind: int64 or large_string, as the catalog has it.
        where: file and column, for the message.

    Raises:
        DataError: as list_id_type; or offsets, indices or buffers are broken.
    """
    list_id_type(column.type, kind=kind, where=where)
    refuse_broken(column, where=where)
    null_lists = np.asarray(column.is_null().to_numpy(zero_copy_only=False))
    if not len(column):
        return IdLists(pa.array([], kind), np.zeros(1, np.int64), null_lists, null_lists)
    ids, offsets = _end_to_end(column)
    if pa.types.is_dictionary(ids.type):
        ids = _fitting_dictionary(ids, kind)
    too_large = np.zeros(len(null_lists), np.bool_)
    if pa.types.is_uint64(ids.type):
        beyond = pc.greater(ids, pa.scalar(np.iinfo(np.int64).max, pa.uint64()))
        too_large = _lists_with(beyond.fill_null(False), offsets)
        ids = pc.if_else(beyond, None, ids)
    if not pa.types.is_dictionary(ids.type) and ids.type != kind:
        ids = ids.cast(kind)
    return IdLists(ids, offsets, null_lists, too_large)


def cast_views(column: pa.Array, plain: pa.DataType, *, where: str) -> pa.Array:
    """Bring a column, which may be broken, to its type without string views.

    Args:
        column: of any type.
        plain: what ids.without_views gives for it.
        where: file and column, for the message.

    Raises:
        DataError: offsets, indices or buffers are broken; a cast would follow them.
    """
    if column.type == plain:
        return column
    refuse_broken(column, where=where)
    return (_lists_of_views(column) if _is_list_view(column.type) else column).cast(plain)


def _lists_of_views(views: pa.Array) -> pa.LargeListArray:
    """Make lists of sound list views; a null stays one, and has no values.

    Not by casting: with pyarrow 26 that reads behind the offsets of the views, and gives a wrong last one.
    """
    null_lists = np.asarray(views.is_null().to_numpy(zero_copy_only=False))
    offsets = np.zeros(len(views) + 1, np.int64)
    np.cumsum(np.where(null_lists, 0, views.sizes.to_numpy()), out=offsets[1:])
    return pa.LargeListArray.from_arrays(pa.array(offsets), views.flatten(), mask=pa.array(null_lists))


def _is_list_view(arrow_type: pa.DataType) -> bool:
    """Is it one of the two kinds of list views?"""
    return bool(pa.types.is_list_view(arrow_type) or pa.types.is_large_list_view(arrow_type))


def _end_to_end(column: pa.Array) -> tuple[pa.Array, npt.NDArray[np.int64]]:
    """Values of sound lists end to end, and the offsets of the lists, from 0; a null list may have some, too."""
    if _is_list_view(column.type):
        column = _lists_of_views(column)
    elif pa.types.is_fixed_size_list(column.type):
        column = column.cast(pa.large_list(column.type.value_type))
    offsets = column.offsets.to_numpy().astype(np.int64)
    values = column.values.slice(offsets[0], offsets[-1] - offsets[0])  # a slice shares the values of the whole array
    return values, offsets - offsets[0]


def _fitting_dictionary(ids: pa.DictionaryArray, kind: pa.DataType) -> pa.Array:
    """Keep a dictionary that saves look-ups: one of no more ids than there are in the lists, no null among them.

    A dictionary of uint64 is given up, too: what lies beyond int64 is found among plain ids.
    """
    words = ids.dictionary
    if len(words) > len(ids) or words.null_count or pa.types.is_uint64(words.type):
        return ids.dictionary_decode()
    return ids if words.type == kind else pa.DictionaryArray.from_arrays(ids.indices, words.cast(kind))


def _lists_with(marks: pa.BooleanArray, offsets: npt.NDArray[np.int64]) -> npt.NDArray[np.bool_]:
    """(n,) bool: does list b, at offsets[b] .. offsets[b + 1], hold a mark?"""
    if not marks.true_count:
        return np.zeros(len(offsets) - 1, np.bool_)
    marks_before = np.zeros(len(marks) + 1, np.int64)
    np.cumsum(marks.to_numpy(zero_copy_only=False), out=marks_before[1:])
    return np.diff(marks_before[offsets]) > 0


def _is_list(arrow_type: pa.DataType) -> bool:
    return bool(
        pa.types.is_list(arrow_type)
        or pa.types.is_large_list(arrow_type)
        or pa.types.is_fixed_size_list(arrow_type)
        or pa.types.is_list_view(arrow_type)
        or pa.types.is_large_list_view(arrow_type)
    )
