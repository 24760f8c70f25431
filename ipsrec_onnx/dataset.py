"""The dataset folder that `ipsrec prepare` makes: reads it, and splits its histories by leave-one-out."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from ipsrec_onnx.arrow_check import refuse_broken
from ipsrec_onnx.catalog import Catalog, catalog_from_tables
from ipsrec_onnx.errors import DataError
from ipsrec_onnx.readable import why_unreadable

FORMAT_VERSION = 1
INFO_FILE = "dataset.json"
HISTORIES_FILE = "histories.parquet"
CATALOG_FILE = "catalog.parquet"
PROVIDERS_FILE = "providers.parquet"
HISTORY_COLUMNS = ("user_id", "item_history", "provider_history")

Split = Literal["train", "valid", "test"]
_NEWEST_LEFT_OUT: dict[str, int] = {"train": 2, "valid": 2, "test": 1}


@dataclass(frozen=True, eq=False)
class Dataset:
    """An opened dataset folder.

    Attributes:
        path: the folder.
        info: what dataset.json holds: counts, filters, fingerprint.
        catalog: every item and provider of the dataset; popularity counts training interactions only.
    """

    path: Path
    info: dict[str, Any]
    catalog: Catalog

    @property
    def fingerprint(self) -> str:
        """Hexadecimal SHA-256 of the content: the same data gives the same one, however it was read."""
        return str(self.info["fingerprint"])


def open_dataset(path: str | Path) -> Dataset:
    """Open a dataset folder; histories are read later, by read_histories.

    Raises:
        DataError: the folder is not there, is no dataset, is broken, or was made by a newer version.
    """
    folder = Path(path)
    info = _read_info(folder / INFO_FILE)
    tables = [_read_table(folder / name) for name in (CATALOG_FILE, PROVIDERS_FILE)]
    try:
        catalog = catalog_from_tables(*tables)
    except DataError as error:
        raise DataError(f"{folder}: {error}; make the dataset again with `ipsrec prepare`") from error
    return Dataset(path=folder, info=info, catalog=catalog)


def read_histories(dataset: Dataset) -> pa.Table:
    """Read all histories: user_id, item_history and provider_history (lists of ids, oldest first), sorted by user_id.

    Raises:
        DataError: the file is missing or broken, or lacks a column; a history is no list, or null, or has a null in it;
            or a user's two histories are not equally long.
    """
    path = dataset.path / HISTORIES_FILE
    table = _read_table(path)
    missing = [column for column in HISTORY_COLUMNS if column not in table.column_names]
    if missing:
        raise DataError(f"{path}: column {missing[0]} is missing, found {table.column_names}; make the dataset again")
    table = table.select(HISTORY_COLUMNS)
    _check_histories(table, path)
    return table


def _check_histories(table: pa.Table, path: Path) -> None:
    """Refuse what split_histories and the readers after it rely on not being there."""
    refuse_broken(table["user_id"], where=f"{path}, column user_id")
    for name in ("item_history", "provider_history"):
        column = table[name]
        refuse_broken(column, where=f"{path}, column {name}")
        if not pa.types.is_list(column.type) and not pa.types.is_large_list(column.type):
            raise DataError(f"{path}: column {name} is {column.type}, expected lists of ids; make the dataset again")
        if column.null_count or pc.list_flatten(column).null_count:
            raise DataError(f"{path}: column {name} has a null history or a null in one; make the dataset again")
    uneven = pc.not_equal(*(pc.list_value_length(table[name]).cast(pa.int64()) for name in HISTORY_COLUMNS[1:]))
    row = pc.index(uneven, value=True).as_py()
    if row >= 0:
        raise DataError(
            f"{path}, row {row}, user_id {table['user_id'][row]}: {len(table['item_history'][row])} items, "
            f"{len(table['provider_history'][row])} providers, expected as many of each; make the dataset again"
        )


def split_histories(table: pa.Table, split: Split) -> pa.Table:
    """Split histories by leave-one-out: the last interaction is test, the one before validation, the rest training.

    A user who has no interaction for the split is left out of it, so a target_item is never null: `train` keeps users
    with 3 or more interactions, `valid` with 2 or more, `test` with 1 or more. The history before the target is empty
    for a user with just as many.

    Args:
        table: as read_histories gave it.
        split: which part.

    Returns:
        user_id, item_history and provider_history: the interactions before those that are left out (the newest 2 for
        `train` and `valid`, the newest 1 for `test`); and, not for `train`, target_item: the interaction to foretell,
        which is the one right after the history.

    Raises:
        ValueError: split is none of the three.
    """
    if split not in _NEWEST_LEFT_OUT:
        raise ValueError(f"split is {split!r}, expected one of {sorted(_NEWEST_LEFT_OUT)}")
    parts = [_split_batch(batch, split) for batch in table.to_batches()]
    # An empty table has no batch: its own schema makes one, so that the columns are those of any other.
    return pa.Table.from_batches(parts or [_split_batch(_empty_batch(table.schema), split)])


def _split_batch(batch: pa.RecordBatch, split: Split) -> pa.RecordBatch:
    """split_histories for one batch of Arrow lists."""
    items, providers = batch["item_history"], batch["provider_history"]
    offsets = items.offsets.to_numpy()  # (n + 1,) into items.values
    starts, counts = offsets[:-1].astype(np.int64), np.diff(offsets)
    left_out = _NEWEST_LEFT_OUT[split]
    users = np.flatnonzero(counts >= (left_out + 1 if split == "train" else left_out))
    starts, kept = starts[users], counts[users].astype(np.int64) - left_out
    columns = {
        "user_id": batch["user_id"].take(users),
        "item_history": _take_ranges(items, starts, kept),
        "provider_history": _take_ranges(providers, starts - offsets[0] + providers.offsets[0].as_py(), kept),
    }
    if split != "train":
        columns["target_item"] = items.values.take(pa.array(starts + kept))
    return pa.RecordBatch.from_pydict(columns)


def _take_ranges(lists: pa.Array, starts: np.ndarray, lengths: np.ndarray) -> pa.Array:
    """Build the lists lists.values[starts[b] : starts[b] + lengths[b]]."""
    offsets = np.zeros(len(lengths) + 1, np.int64)
    np.cumsum(lengths, out=offsets[1:])
    rows = np.arange(offsets[-1]) + np.repeat(starts - offsets[:-1], lengths)
    list_class = pa.LargeListArray if pa.types.is_large_list(lists.type) else pa.ListArray
    offset_type = pa.int64() if pa.types.is_large_list(lists.type) else pa.int32()
    return list_class.from_arrays(pa.array(offsets, offset_type), lists.values.take(pa.array(rows)))


def _empty_batch(schema: pa.Schema) -> pa.RecordBatch:
    return pa.RecordBatch.from_arrays([pa.array([], field.type) for field in schema], schema=schema)


def _read_info(path: Path) -> dict[str, Any]:
    """Read dataset.json and check what everything else rests on."""
    reason = why_unreadable(path)
    if reason is not None:
        raise DataError(
            f"{path.parent} is no dataset that can be read: {path.name}: {reason}; make one with `ipsrec prepare`"
        )
    try:
        info = json.loads(path.read_text(encoding="utf-8"))
        version = info["format_version"]
        info["fingerprint"]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise DataError(
            f"{path} is broken ({type(error).__name__}: {error}); make the dataset again with `ipsrec prepare`"
        ) from error
    if version != FORMAT_VERSION:
        mend = "upgrade ipsrec-onnx" if isinstance(version, int) and version > FORMAT_VERSION else "prepare it again"
        raise DataError(f"{path}: format_version {version}, this version reads {FORMAT_VERSION}; {mend}")
    return dict(info)


def _read_table(path: Path) -> pa.Table:
    """Read one Parquet file of a dataset."""
    reason = why_unreadable(path)
    if reason is not None:
        raise DataError(f"{path}: {reason}, so the dataset is not whole; make it again with `ipsrec prepare`")
    try:
        table = pq.read_table(path)
        _ = table.column_names  # where a name is no UTF-8, Python says so only when it is asked for
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path} cannot be read as Parquet ({error}); make the dataset again") from error
    return table
