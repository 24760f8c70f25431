"""Lays ranked lists out as rows: the caller's ids again, one row per user or one per candidate."""

from __future__ import annotations

from typing import Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from ipsrec_onnx.fingerprints import FINGERPRINT_COLUMN
from ipsrec_onnx.retrieval import Ranking

Layout = Literal["list", "long"]

STATUS_SCORED, STATUS_COLD = "scored", "cold"


def user_id_type(arrow_type: pa.DataType) -> pa.DataType:
    """Type of user_id in the output: the input's, without dictionary encoding, whose order would depend on chunks."""
    return arrow_type.value_type if pa.types.is_dictionary(arrow_type) else arrow_type


def candidates_schema(
    user_id: pa.DataType,
    item_id: pa.DataType,
    *,
    layout: Layout,
    metadata: dict[str, str] | None,
    fingerprints: bool = False,
) -> pa.Schema:
    """Columns of the output.

    Args:
        user_id: type of the input's user ids.
        item_id: type of the catalog's item ids.
        layout: "list" has one row per user, "long" one per candidate.
        metadata: what made the file, stored in it; None for a table.
        fingerprints: does each row of the layout "list" have the fingerprint of its history?
    """
    columns = {
        "list": [
            ("user_id", user_id_type(user_id)),
            ("status", pa.string()),
            ("item_ids", pa.list_(item_id)),
            ("scores", pa.list_(pa.float32())),
        ],
        "long": [
            ("user_id", user_id_type(user_id)),
            ("rank", pa.int32()),
            ("item_id", item_id),
            ("score", pa.float32()),
        ],
    }
    own = [(FINGERPRINT_COLUMN, pa.uint64())] if fingerprints else []
    return pa.schema([*columns[layout], *own], metadata=metadata)


def candidate_columns(layout: Layout, *, fingerprints: bool = False) -> list[str]:
    """Names of the output's columns."""
    schema = candidates_schema(pa.null(), pa.null(), layout=layout, metadata=None, fingerprints=fingerprints)
    return list(schema.names)


def candidate_rows(
    user_id: pa.Array,
    ranking: Ranking,
    item_ids: pa.Array,
    *,
    schema: pa.Schema,
    fingerprints: npt.NDArray[np.uint64] | None = None,
) -> pa.Table:
    """Lay out the lists of some users as rows of the output.

    Args:
        user_id: (n,) ids of the users.
        ranking: (n) their lists.
        item_ids: (num_items,) the catalog's ids; row r is item_index r + 1.
        schema: as candidates_schema made it.
        fingerprints: (n,) uint64, where the schema has them.

    Returns:
        n rows in the layout "list"; in "long", as many as there are candidates.
    """
    if pa.types.is_dictionary(user_id.type):
        user_id = user_id.dictionary_decode()
    item_index, score, counts = ranking.lists
    there = np.arange(item_index.shape[1]) < counts[:, None]  # (n, top_k)
    ids = item_ids.take(pa.array(item_index[there] - np.int32(1)))
    scores = pa.array(score[there])
    offsets = np.zeros(len(counts) + 1, np.int64)
    np.cumsum(counts, out=offsets[1:])
    if "rank" in schema.names:
        users = np.repeat(np.arange(len(counts)), counts)
        rank = (np.arange(len(users)) - offsets[users] + 1).astype(np.int32)
        columns = [user_id.take(pa.array(users)), pa.array(rank), ids, scores]
    else:
        list_offsets = pa.array(offsets.astype(np.int32))
        status = pa.array([STATUS_SCORED, STATUS_COLD]).take(pa.array(ranking.cold.astype(np.int8)))
        lists = [pa.ListArray.from_arrays(list_offsets, values) for values in (ids, scores)]
        columns = [user_id, status, *lists, *([] if fingerprints is None else [pa.array(fingerprints)])]
    return pa.Table.from_arrays(columns, schema=schema)
