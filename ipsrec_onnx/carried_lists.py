"""Finds the lists of unchanged users in an earlier output, so that they need not be scored again.

In memory is a key of each earlier user, sorted, and where that user stands: 16 bytes. Lists are read a row group at a
time, and the last groups are kept. A list that is not found is no harm: scoring the user gives the same bytes. So a
group is read only for users enough that scoring them would take longer.
"""

from __future__ import annotations

import contextlib
import threading
from collections import OrderedDict
from collections.abc import Iterator
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from ipsrec_kernels.best_list import BestLists, empty_lists
from ipsrec_kernels.padding import PADDING
from ipsrec_onnx.broken_work import describe_error
from ipsrec_onnx.catalog import Catalog
from ipsrec_onnx.errors import DataError
from ipsrec_onnx.fingerprints import FINGERPRINT_COLUMN, user_fingerprints, user_keys
from ipsrec_onnx.id_lists import id_lists
from ipsrec_onnx.ids import find_ids

KEPT_GROUPS: Final = 4  # row groups that are kept, beside one for each thread that reads
KEY_BYTES: Final = 24  # of an earlier user while keys are sorted; 16 afterwards
# A group is read if one in so many of its users is wanted: scoring a user takes many times as long as reading one.
_READ_FOR: Final = 32
# Or if so large a share of a chunk stands in it: a small chunk of users in their old order wants little of a group,
# and the next chunk wants the same group.
_CHUNK_SHARE: Final = 4


class PreviousFile(NamedTuple):
    """A file of candidates, and the rows that it has."""

    path: str
    rows: int


@dataclass(frozen=True)
class PreviousOutput:
    """An earlier output whose lists are what a job would give again; can be pickled.

    Attributes:
        name: as it was asked for.
        files: of its candidates, in their order.
    """

    name: str
    files: tuple[PreviousFile, ...]

    @property
    def num_rows(self) -> int:
        """Users in it."""
        return sum(file.rows for file in self.files)


class _Group(NamedTuple):
    """A row group of an earlier output.

    Attributes:
        users: (n,) uint64, fingerprints of the user ids.
        histories: (n,) uint64, those of the histories.
        items: (N,) int32 item_index, lists end to end, best first.
        scores: (N,) float32.
        offsets: (n + 1,) int64; list b is items[offsets[b]:offsets[b + 1]].
    """

    users: npt.NDArray[np.uint64]
    histories: npt.NDArray[np.uint64]
    items: npt.NDArray[np.int32]
    scores: npt.NDArray[np.float32]
    offsets: npt.NDArray[np.int64]


class _Place(NamedTuple):
    """Where a row group stands."""

    file: PreviousFile
    row_group: int


class Carried(NamedTuple):
    """What was found.

    Attributes:
        users: (n,) bool, whose lists are there.
        lists: (n) these lists; empty for the others.
    """

    users: npt.NDArray[np.bool_]
    lists: BestLists


@dataclass(frozen=True, eq=False)
class CarriedLists:
    """Looks users up in an earlier output; made by open_carried_lists, shared by the worker threads.

    Attributes:
        name: of the earlier output.
        keys: (n,) uint64, ascending: user_keys of each user.
        rows: (n,) int64, the row of each, counted through all files.
        group_starts: (groups + 1,) int64, the row at which each row group begins.
        places: of the groups.
        catalog: of the model.
        top_k: length of the lists, never above the number of items.
        footers: of the files, by path: reading one again for each row group would take longer than the group.
    """

    name: str
    keys: npt.NDArray[np.uint64]
    rows: npt.NDArray[np.int64]
    group_starts: npt.NDArray[np.int64]
    places: list[_Place]
    catalog: Catalog
    top_k: int
    footers: dict[str, pq.FileMetaData]
    _groups: OrderedDict[int, Future[_Group]] = field(default_factory=OrderedDict)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def find(self, user_id: pa.Array, histories: npt.NDArray[np.uint64]) -> Carried:
        """Find the lists of some users.

        Args:
            user_id: (n,) ids.
            histories: (n,) uint64, as history_fingerprints gives them.

        Raises:
            DataError: the earlier output is broken, or no longer what it was.
        """
        users = user_fingerprints(user_id)
        lists, found = empty_lists(len(users), self.top_k), np.zeros(len(users), np.bool_)
        wanted, rows = self._known_rows(user_keys(users, histories))
        group = np.searchsorted(self.group_starts, rows, side="right") - 1
        for number, count in zip(*np.unique(group, return_counts=True), strict=True):
            if not self._worth_reading(int(number), int(count), len(users)):
                continue
            here, earlier = group == number, self._group(int(number))
            these, those = wanted[here], rows[here] - self.group_starts[number]
            same = (earlier.users[those] == users[these]) & (earlier.histories[those] == histories[these])
            found[these[same]] = True
            _copy_lists(earlier, those[same], lists, these[same])
        return Carried(found, lists)

    def _known_rows(self, keys: npt.NDArray[np.uint64]) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        """Which of some users have a key of the earlier output, and the first row that has it."""
        at = np.searchsorted(self.keys, keys)
        there = at < len(self.keys)
        there[there] = self.keys[at[there]] == keys[there]
        return np.flatnonzero(there), self.rows[at[there]]

    def _worth_reading(self, number: int, count: int, num_users: int) -> bool:
        """Is reading a group cheaper than scoring `count` users of it, out of a chunk of num_users?"""
        with self._lock:
            if number in self._groups:
                return True
        rows = int(self.group_starts[number + 1] - self.group_starts[number])
        return count * _READ_FOR >= rows or count * _CHUNK_SHARE >= num_users

    def _group(self, number: int) -> _Group:
        """A row group, kept or read; two threads that want one read it once."""
        with self._lock:
            kept = self._groups.get(number)
            mine = kept is None
            if kept is None:
                kept = self._groups[number] = Future()
                while len(self._groups) > KEPT_GROUPS:
                    self._groups.popitem(last=False)
            self._groups.move_to_end(number)
        if mine:
            try:
                kept.set_result(self._read_group(number))
            except BaseException as error:
                kept.set_exception(error)
        return kept.result()

    def _read_group(self, number: int) -> _Group:
        file, row_group = self.places[number]
        where = f"--since {self.name}: {file.path}, row group {row_group}"
        columns = ["user_id", "item_ids", "scores", FINGERPRINT_COLUMN]
        with _readable(where), pq.ParquetFile(file.path, metadata=self.footers[file.path]) as parquet:
            table = parquet.read_row_group(row_group, columns=columns, use_threads=False)
        rows = int(self.group_starts[number + 1] - self.group_starts[number])
        scores = _one_array(table["scores"])
        ids = id_lists(_one_array(table["item_ids"]), kind=self.catalog.item_ids.type, where=f"{where}, item_ids")
        if table.num_rows != rows or ids.null_lists.any() or ids.ids.null_count or table["user_id"].null_count:
            raise _changed(where)
        items = find_ids(self.catalog.item_table, ids.ids)
        values = scores.values.slice(scores.offsets[0].as_py(), len(items)).to_numpy(zero_copy_only=False)
        longest = int(ids.lengths.max(initial=0))
        if PADDING in items or longest > self.top_k or not np.array_equal(np.diff(scores.offsets), ids.lengths):
            raise _changed(where)
        users = user_fingerprints(_one_array(table["user_id"]))
        histories = _one_array(table[FINGERPRINT_COLUMN]).to_numpy()
        return _Group(users, histories, items, values, ids.offsets)


def open_carried_lists(previous: PreviousOutput, catalog: Catalog, *, top_k: int) -> CarriedLists:
    """Read the keys of an earlier output.

    Args:
        previous: as open_previous gave it.
        catalog: of the model, the same as then.
        top_k: length of the lists, never above the number of items.

    Raises:
        DataError: a file is broken, or no longer what it was.
    """
    keys = np.empty(previous.num_rows, np.uint64)
    places: list[_Place] = []
    starts, footers = [0], {}
    for file in previous.files:
        with _readable(f"--since {previous.name}: {file.path}"):
            footers[file.path] = pq.read_metadata(file.path)
        for row_group, (users, histories) in enumerate(_fingerprints(previous, file)):
            stop = starts[-1] + len(users)
            if stop > len(keys):
                raise _changed(f"--since {previous.name}: {file.path}")
            keys[starts[-1] : stop] = user_keys(users, histories)
            starts.append(stop)
            places.append(_Place(file, row_group))
    if starts[-1] != len(keys):
        raise _changed(f"--since {previous.name}")
    rows = np.argsort(keys, kind="stable")
    return CarriedLists(
        name=previous.name,
        keys=keys[rows],
        rows=rows,
        group_starts=np.array(starts, np.int64),
        places=places,
        catalog=catalog,
        top_k=top_k,
        footers=footers,
    )


def _fingerprints(
    previous: PreviousOutput, file: PreviousFile
) -> Iterator[tuple[npt.NDArray[np.uint64], npt.NDArray[np.uint64]]]:
    """Fingerprints of users and of histories, row group by row group."""
    where = f"--since {previous.name}: {file.path}"
    with _readable(where), pq.ParquetFile(file.path) as parquet:
        missing = {"user_id", "item_ids", "scores", FINGERPRINT_COLUMN} - set(parquet.schema_arrow.names)
        if missing or parquet.schema_arrow.field(FINGERPRINT_COLUMN).type != pa.uint64():
            raise _changed(where)
        for row_group in range(parquet.num_row_groups):
            table = parquet.read_row_group(row_group, columns=["user_id", FINGERPRINT_COLUMN], use_threads=False)
            if table["user_id"].null_count or table[FINGERPRINT_COLUMN].null_count:
                raise _changed(where)
            yield user_fingerprints(_one_array(table["user_id"])), _one_array(table[FINGERPRINT_COLUMN]).to_numpy()


def _one_array(column: pa.ChunkedArray) -> pa.Array:
    return column.chunk(0) if column.num_chunks == 1 else pa.concat_arrays([pa.array([], column.type), *column.chunks])


def _copy_lists(group: _Group, rows: npt.NDArray[np.int64], lists: BestLists, users: npt.NDArray[np.int64]) -> None:
    """Write the lists of some rows of a group to those of some users."""
    counts = group.offsets[rows + 1] - group.offsets[rows]
    there = np.arange(lists.item_index.shape[1]) < counts[:, None]  # (users, top_k)
    positions = (group.offsets[rows][:, None] + np.arange(there.shape[1]))[there]
    for whole, values in ((lists.item_index, group.items), (lists.scores, group.scores)):
        some = np.zeros(there.shape, whole.dtype)
        some[there] = values[positions]
        whole[users] = some
    lists.counts[users] = counts


@contextlib.contextmanager
def _readable(where: str) -> Iterator[None]:
    """Name what is read.

    Raises:
        DataError: it cannot be read.
        OutOfMemoryError: there is no memory for it.
    """
    try:
        yield
    except MemoryError as error:
        raise describe_error(error, where=where) from error
    except (pa.ArrowException, OSError, ValueError) as error:
        raise DataError(f"{where}: cannot be read ({error}); score without --since") from error


def _changed(where: str) -> DataError:
    return DataError(f"{where}: it is not as the job that wrote it left it; score without --since")
