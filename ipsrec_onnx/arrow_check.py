"""Checks that Arrow arrays are what they say, before anything follows their offsets.

Arrow itself builds sound arrays, also from broken Parquet. But a table may come from elsewhere, by the C data interface
or from buffers, and neither Arrow's own functions nor a kernel look at an offset twice.
"""

from __future__ import annotations

import pyarrow as pa

from ipsrec_onnx.errors import DataError


def refuse_broken(column: pa.Array | pa.ChunkedArray, *, where: str) -> None:
    """Check that buffers are as long as lengths, offsets and indices ask, and that offsets rise or stay.

    Costs a pass over offsets and indices, not over bytes: strings need not be UTF-8.

    Args:
        column: of any type, sliced or not.
        where: file and column, for the message.

    Raises:
        DataError: something does not fit.
    """
    try:
        for array in column.chunks if isinstance(column, pa.ChunkedArray) else [column]:
            array.validate()  # first: of buffers that are too short nothing else may be asked
            _check_contents(array)
    except pa.ArrowException as error:
        reason = str(error).splitlines()[0]
        raise DataError(f"{where}: the column is broken ({reason}); write the file or table again") from error


def _check_contents(array: pa.Array) -> None:
    """Look at all offsets and indices.

    Raises:
        pa.ArrowException: one is wrong.
    """
    kind = array.type
    if pa.types.is_dictionary(kind):
        _check_contents(array.dictionary)
        whole = pa.DictionaryArray.from_arrays(array.indices, pa.nulls(len(array.dictionary)), safe=False)
        whole.validate(full=True)
    elif pa.types.is_list(kind) or pa.types.is_large_list(kind):
        # The offsets alone: Arrow's check of a list goes on into all values, and into UTF-8 where these are strings.
        hollow = pa.list_(pa.null()) if pa.types.is_list(kind) else pa.large_list(pa.null())
        nothing = pa.nulls(len(array.values))
        type(array).from_buffers(
            hollow, len(array), array.buffers()[:2], array.null_count, array.offset, [nothing]
        ).validate(full=True)
        if len(array):
            first, last = array.offsets[0].as_py(), array.offsets[-1].as_py()
            _check_contents(array.values.slice(first, last - first))
    elif pa.types.is_string(kind) or pa.types.is_large_string(kind):
        array.view(pa.binary() if pa.types.is_string(kind) else pa.large_binary()).validate(full=True)
    elif pa.types.is_string_view(kind):
        array.view(pa.binary_view()).validate(full=True)
    elif not pa.types.is_primitive(kind):
        array.validate(full=True)
