"""Fingerprints of users: a number for what a list is made of, one for whose it is; defined in docs/incremental.md."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from ipsrec_kernels.fingerprint import FINGERPRINT_VERSION, mix_lists, mix_words, string_words
from ipsrec_onnx.errors import DataError
from ipsrec_onnx.id_lists import IdLists
from ipsrec_onnx.ids import string_buffers

FINGERPRINT_COLUMN: Final = "history_fingerprint"
FINGERPRINT_KEY: Final = "ipsrec.history_fingerprint"  # in the schema's metadata: the version of the definition


def history_fingerprints(lists: Iterable[IdLists]) -> npt.NDArray[np.uint64]:
    """Fingerprint what the lists of some users hold, whether the model knows it or not.

    Args:
        lists: (n lists) without nulls, of each column: one column or more, in the order of UserColumns.names.

    Returns:
        (n,) uint64.
    """
    states: npt.NDArray[np.uint64] | None = None
    for column in lists:
        if states is None:
            states = np.full(len(column.lengths), FINGERPRINT_VERSION, np.uint64)
        states = mix_lists(states, _id_words(column.ids), column.offsets)
    return np.zeros(0, np.uint64) if states is None else states


def user_fingerprints(user_id: pa.Array) -> npt.NDArray[np.uint64]:
    """(n,) uint64 for (n,) user ids of a type that check_user_type allows, without nulls."""
    words = _id_words(_plain_users(user_id))
    return mix_words(np.full(len(words), FINGERPRINT_VERSION, np.uint64), words)


def user_keys(users: npt.NDArray[np.uint64], histories: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    """(n,) uint64: both fingerprints of each user in one."""
    return mix_words(users, histories)


def check_user_type(user_id: pa.DataType, *, where: str) -> None:
    """Refuse user ids that cannot be looked for in a previous output.

    Raises:
        DataError: they are neither integers nor strings, nor anything else that is one run of bytes or bits.
    """
    try:
        _plain_users(pa.array([], user_id))
    except (pa.ArrowException, TypeError) as error:
        raise DataError(
            f"{where}: user ids of type {user_id} cannot be looked for in a previous output; cast the column to an "
            "integer or a string, or score without --since"
        ) from error


def _plain_users(user_id: pa.Array) -> pa.Array:
    """Bring user ids to int64 or large_string.

    Raises:
        pa.ArrowException, TypeError: their type has neither.
    """
    if pa.types.is_dictionary(user_id.type):
        user_id = user_id.dictionary_decode()
    kind = user_id.type
    if pa.types.is_uint64(kind) or (pa.types.is_temporal(kind) and kind.bit_width == 64):
        return user_id.view(pa.int64())
    if pa.types.is_temporal(kind) and kind.bit_width == 32:
        return user_id.view(pa.int32()).cast(pa.int64())
    if pa.types.is_integer(kind) or pa.types.is_boolean(kind):
        return user_id.cast(pa.int64())
    if pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind):
        return user_id.cast(pa.large_string())
    # Bytes need not be UTF-8: they are looked at as strings, not made strings.
    return user_id.cast(pa.large_binary()).view(pa.large_string())


def _id_words(ids: pa.Array) -> npt.NDArray[np.uint64]:
    """(n,) uint64 of (n,) int64 or large_string ids, or a dictionary of these: an int64 itself, a string's hash."""
    if pa.types.is_dictionary(ids.type):  # each word is hashed once
        return np.asarray(_id_words(ids.dictionary)[ids.indices.to_numpy()])
    if pa.types.is_int64(ids.type):
        return np.asarray(ids.to_numpy()).view(np.uint64)
    return string_words(*string_buffers(ids))
