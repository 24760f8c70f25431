"""Scores one user without a table: Python ids in, Python ids out, the list that the user's row would get in a job."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from ipsrec_kernels.ragged import Ragged
from ipsrec_onnx.bad_rows import FINE, find_bad_lists
from ipsrec_onnx.candidates import STATUS_COLD, STATUS_SCORED
from ipsrec_onnx.catalog import Catalog
from ipsrec_onnx.errors import DataError
from ipsrec_onnx.histories import map_histories
from ipsrec_onnx.id_lists import IdLists, id_lists
from ipsrec_onnx.ids import find_ids
from ipsrec_onnx.in_memory import Ids, arrow_ids
from ipsrec_onnx.retrieval import ColdUsers, Ranker, rank_users
from ipsrec_onnx.scored_chunk import UnknownItems, refuse_cold_user, refuse_unknown_item
from ipsrec_onnx.stage_times import StageTimes

PLACE = "user"  # what messages call it

_NO = np.zeros(1, np.bool_)


class UserList(NamedTuple):
    """What one user gets; the columns of the output's row.

    Attributes:
        status: "scored", or "cold": no item of the history is known to the model.
        item_ids: best first.
        scores: of each, as float32 has it.
    """

    status: str
    item_ids: list[int] | list[str]
    scores: list[float]


def score_user(
    ranker: Ranker,
    item_history: Ids,
    provider_history: Ids | None,
    candidates: Ids | None,
    *,
    unknown_items: UnknownItems,
    cold_users: ColdUsers,
) -> UserList:
    """Rank items for one user.

    Args:
        ranker: the model and the rules of ranking.
        item_history: item ids, oldest first.
        provider_history: the provider of each; None takes the catalog's.
        candidates: the only items to choose from; None for all that are allowed.
        unknown_items: drop an item id that the catalog does not know from the history, or refuse it.
        cold_users: what a user without a known item gets.

    Raises:
        DataError: the lists are malformed, or the rules refuse them.
        ModelFileError: the graph fails, or gives another shape, NaN or infinity.
    """
    catalog = ranker.model.catalog
    lists = {"item_history": _one_list(item_history, catalog.item_ids.type, "item_history")}
    if provider_history is not None:
        lists["provider_history"] = _one_list(provider_history, catalog.provider_ids.type, "provider_history")
    if candidates is not None:
        lists["candidates"] = _one_list(candidates, catalog.item_ids.type, "candidates")
    pair = None if provider_history is None else ("item_history", "provider_history")
    reason, reasons = find_bad_lists(lists, same_lengths=pair)
    if reason[0] != FINE:
        raise DataError(f"{PLACE}: {reasons[reason[0] - 1]}; mend the list, or leave the user out")
    items = lists["item_history"]
    mapped = map_histories(items, lists.get("provider_history"), catalog)
    if unknown_items == "error" and len(mapped.unknown_items):
        refuse_unknown_item(f"{PLACE}, item_history", items.ids[int(mapped.unknown_items[0])])
    if cold_users == "error" and not len(mapped.known.items):
        refuse_cold_user(PLACE)
    choice = None
    if candidates is not None:
        choice = Ragged(find_ids(catalog.item_table, lists["candidates"].ids), lists["candidates"].offsets)
    ranking = rank_users(
        ranker,
        mapped.known,
        candidates=choice,
        cold_users="empty" if cold_users == "empty" else "popular",
        times=StageTimes(),
    )
    item_index, scores, counts = ranking.lists
    return UserList(
        STATUS_COLD if ranking.cold[0] else STATUS_SCORED,
        _ids_of(catalog, item_index[0, : counts[0]]),
        scores[0, : counts[0]].tolist(),
    )


def _one_list(ids: Ids, kind: pa.DataType, column: str) -> IdLists:
    """Bring one list to IdLists, by the checks of a column with one row."""
    where = f"{PLACE}, {column}"
    if ids is None:
        lists = pa.nulls(1, pa.large_list(kind))
    else:
        values = arrow_ids(ids, where=where)
        if pa.types.is_string(values.type) and kind == pa.large_string():  # what Arrow makes of Python's strings
            values = values.cast(kind)
        if values.type == kind:  # all that could be wrong with such a list is a null, which its reader looks for
            return IdLists(values, np.array([0, len(values)]), _NO, _NO)
        lists = pa.LargeListArray.from_arrays(pa.array([0, len(values)], pa.int64()), values)
    return id_lists(lists, kind=kind, where=where)


def _ids_of(catalog: Catalog, item_index: npt.NDArray[np.int32]) -> list[int] | list[str]:
    """The caller's ids of some items; of a whole array of int64 at once, which is faster than Arrow's scalars."""
    rows = item_index - np.int32(1)
    if pa.types.is_int64(catalog.item_ids.type):
        ids: list[int] = catalog.item_ids.to_numpy()[rows].tolist()
        return ids
    strings: list[str] = catalog.item_ids.take(pa.array(rows)).to_pylist()
    return strings
