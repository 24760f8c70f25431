"""Writes the histories of the users that stay, ordered by time, in bounded memory."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

from ipsrec_train.codes import CodedInteractions
from ipsrec_train.fingerprint import Fingerprint
from ipsrec_train.k_core import Core
from ipsrec_train.user_ranges import CHUNK_INTERACTIONS, user_ranges

ROW_GROUP_ROWS = 65_536


def write_histories(
    path: Path,
    coded: CodedInteractions,
    core: Core,
    *,
    item_index: npt.NDArray[np.int32],
    item_provider: npt.NDArray[np.uint32],
    fingerprint: Fingerprint,
    chunk_interactions: int = CHUNK_INTERACTIONS,
) -> npt.NDArray[np.int64]:
    """Write one row a user, sorted by user_id: user_id, item_history, provider_history.

    Histories are ordered by time, and equal times by the place of the row in the input.

    Args:
        path: the file to write.
        coded: all interactions.
        core: which users and items stay.
        item_index: (num_items,) item_index in the catalog of each item code; 0 for an item that does not stay.
        item_provider: (num_items,) provider code of each item code.
        fingerprint: takes up users and histories.
        chunk_interactions: how many interactions to hold at once, at least those of one user.

    Returns:
        (kept items + 1,) int64: training interactions of each item_index, that is all but each user's newest two.
    """
    popularity = np.zeros(int(core.items.sum()) + 1, np.int64)
    item_ids = coded.item_ids
    schema = pa.schema(
        {
            "user_id": coded.user_ids.type,
            "item_history": pa.list_(item_ids.type),
            "provider_history": pa.list_(coded.provider_ids.type),
        }
    )
    with pq.ParquetWriter(path, schema, compression="zstd") as writer:
        for first, last in user_ranges(coded, users=core.users, chunk_interactions=chunk_interactions):
            user, item = _sorted_interactions(coded, core, first, last)
            users, lengths = np.unique(user, return_counts=True)
            offsets = np.zeros(len(users) + 1, np.int32)
            np.cumsum(lengths, out=offsets[1:])

            user_ids = coded.user_ids.take(pa.array(users))
            items = item_ids.take(pa.array(item))
            providers = coded.provider_ids.take(pa.array(item_provider[item]))
            columns = [user_ids, pa.ListArray.from_arrays(offsets, items), pa.ListArray.from_arrays(offsets, providers)]
            writer.write_table(pa.Table.from_arrays(columns, schema=schema), row_group_size=ROW_GROUP_ROWS)

            from_newest = np.repeat(offsets[1:], lengths) - np.arange(len(item))  # 1 is the newest
            popularity += np.bincount(item_index[item[from_newest > 2]], minlength=len(popularity))
            fingerprint.add_ids("users", user_ids)
            fingerprint.add_numbers("history lengths", lengths)
            fingerprint.add_numbers("histories", item_index[item])
    return popularity


def _sorted_interactions(
    coded: CodedInteractions, core: Core, first: int, last: int
) -> tuple[npt.NDArray[np.uint32], npt.NDArray[np.uint32]]:
    """The (n,) user and item codes that stay of the users [first, last), by user, time and place in the input."""
    rows = coded.scan().filter((pl.col("user") >= first) & (pl.col("user") < last)).drop("provider")
    kept_items = pl.LazyFrame({"item": np.flatnonzero(core.items).astype(np.uint32)})
    kept_users = pl.LazyFrame({"user": (np.flatnonzero(core.users[first:last]) + first).astype(np.uint32)})
    rows = rows.join(kept_items, on="item", how="semi").join(kept_users, on="user", how="semi")
    table = rows.sort("user", "timestamp", "row").select("user", "item").collect(engine="streaming")
    return table["user"].to_numpy(), table["item"].to_numpy()
