"""What a worker does with one chunk of users: check its rows, map the ids, rank, lay out the output rows."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Literal, NoReturn

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from ipsrec_kernels.padding import PADDING
from ipsrec_kernels.ragged import Ragged
from ipsrec_onnx.arrow_check import refuse_broken
from ipsrec_onnx.bad_rows import FINE, dead_letters, find_bad_rows, refuse_bad_rows
from ipsrec_onnx.candidates import candidate_rows
from ipsrec_onnx.card_search import fill_lists
from ipsrec_onnx.carried_lists import CarriedLists
from ipsrec_onnx.errors import DataError
from ipsrec_onnx.fingerprints import FINGERPRINT_COLUMN, history_fingerprints
from ipsrec_onnx.histories import Histories, MappedHistories, map_histories
from ipsrec_onnx.id_lists import IdLists, id_lists, range_positions
from ipsrec_onnx.ids import find_ids
from ipsrec_onnx.retrieval import ColdUsers, Ranker, Ranking, rank_users
from ipsrec_onnx.score_counts import ScoreCounts, count_lengths
from ipsrec_onnx.stage_times import StageTimes
from ipsrec_onnx.user_chunks import UserChunk
from ipsrec_onnx.users import UserColumns

UnknownItems = Literal["drop", "error"]
BadRows = Literal["error", "divert"]


@dataclass(frozen=True, eq=False)
class ScoreRules:
    """What every chunk of a job is scored by; shared by the worker threads.

    Attributes:
        ranker: the model and the rules of ranking.
        columns: names of the input's columns.
        top_k: length of the lists that was asked for.
        unknown_items: drop an item id that the catalog does not know, or refuse it.
        cold_users: what a user without a known item gets.
        bad_rows: refuse a malformed row, or set it aside.
        schema: of the output.
        dead_letter_schema: of the rows set aside.
        carried: finds the lists of users who are not scored again; None where all are.
    """

    ranker: Ranker
    columns: UserColumns
    top_k: int
    unknown_items: UnknownItems
    cold_users: ColdUsers
    bad_rows: BadRows
    schema: pa.Schema
    dead_letter_schema: pa.Schema
    carried: CarriedLists | None = None


@dataclass(frozen=True, eq=False)
class ScoredChunk:
    """What a chunk gives.

    Attributes:
        rows: of the output.
        dead_letters: its malformed rows.
        counts: the account of it.
        times: where the worker's time went.
        carried_users: whose lists were carried over.
    """

    rows: pa.Table
    dead_letters: pa.Table
    counts: ScoreCounts
    times: StageTimes
    carried_users: int = 0


def score_chunk(chunk: UserChunk, rules: ScoreRules) -> ScoredChunk:
    """Score one chunk.

    Raises:
        DataError: a malformed row, an unknown item or a cold user that the rules refuse; names file, row group and row.
    """
    columns, catalog = rules.columns, rules.ranker.model.catalog
    times = StageTimes()
    with times.stage("map"):
        lists, rows, dead = _take_apart(chunk, rules)
        provider_lists = None if columns.provider_history is None else lists[columns.provider_history]
        mapped = map_histories(lists[columns.item_history], provider_lists, catalog)
        if rules.unknown_items == "error":
            _refuse_unknown_items(chunk, mapped, lists[columns.item_history], rows, columns.item_history)
        if rules.cold_users == "error":
            _refuse_cold_users(chunk, mapped, rows)
        candidates = None
        if columns.candidates is not None:
            given = lists[columns.candidates]
            candidates = Ragged(find_ids(catalog.item_table, given.ids), given.offsets)
        user_id = chunk.rows.column(0).take(pa.array(rows))
        fingerprints = None
        if FINGERPRINT_COLUMN in rules.schema.names:
            fingerprints = history_fingerprints(lists[column] for column in columns.names[1:])
    carried_users = 0
    if rules.carried is None or fingerprints is None:
        ranking = _rank(rules, mapped.known, candidates, times=times)
    else:
        ranking, carried_users = _rank_changed(
            rules, rules.carried, user_id, fingerprints, mapped.known, candidates, times=times
        )
    with times.stage("lay_out"):
        laid_out = candidate_rows(user_id, ranking, catalog.item_ids, schema=rules.schema, fingerprints=fingerprints)
    return ScoredChunk(
        rows=laid_out,
        dead_letters=dead,
        counts=ScoreCounts(
            rows_in=chunk.rows.num_rows,
            rows_out=len(rows),
            rows_diverted=dead.num_rows,
            diverted_by_reason=dict(sorted(Counter(dead["reason"].to_pylist()).items())),
            cold_users=int(ranking.cold.sum()),
            truncated_histories=int((mapped.known.lengths > rules.ranker.model.max_len).sum()),
            short_lists=int((ranking.lists.counts < rules.top_k).sum()),
            history_items=len(lists[columns.item_history].ids),
            unknown_items=len(mapped.unknown_items),
            unknown_providers=mapped.num_unknown_providers,
            unknown_candidates=0 if candidates is None else int(np.count_nonzero(candidates.values == PADDING)),
            history_lengths=count_lengths(mapped.known.lengths),
        ),
        times=times,
        carried_users=carried_users,
    )


def _rank(rules: ScoreRules, known: Histories, candidates: Ragged | None, *, times: StageTimes) -> Ranking:
    cold_users: Literal["popular", "empty"] = "empty" if rules.cold_users == "empty" else "popular"
    return rank_users(rules.ranker, known, candidates=candidates, cold_users=cold_users, times=times)


def _rank_changed(
    rules: ScoreRules,
    carried: CarriedLists,
    user_id: pa.Array,
    fingerprints: npt.NDArray[np.uint64],
    known: Histories,
    candidates: Ragged | None,
    *,
    times: StageTimes,
) -> tuple[Ranking, int]:
    """Rank those users alone whose lists are not in the earlier output, and count the others.

    All arguments are of the same users.
    """
    with times.stage("read"):
        there, lists = carried.find(user_id, fingerprints)
    if not there.all():
        some = None
        if candidates is not None:
            starts, lengths = candidates.offsets[:-1][~there], np.diff(candidates.offsets)[~there]
            positions, offsets = range_positions(starts, lengths)
            some = Ragged(candidates.values[positions], offsets)
        fill_lists(lists, ~there, _rank(rules, known.of_users(~there), some, times=times).lists)
    return Ranking(lists, known.lengths == 0), int(there.sum())


def known_histories(chunk: UserChunk, rules: ScoreRules) -> Histories:
    """Map the histories of one chunk's good rows, as score_chunk does.

    Raises:
        DataError: a malformed row that the rules refuse.
    """
    columns = rules.columns
    lists, _, _ = _take_apart(chunk, rules)
    provider_lists = None if columns.provider_history is None else lists[columns.provider_history]
    return map_histories(lists[columns.item_history], provider_lists, rules.ranker.model.catalog).known


def _take_apart(chunk: UserChunk, rules: ScoreRules) -> tuple[dict[str, IdLists], npt.NDArray[np.int64], pa.Table]:
    """Split a chunk into its good rows and its malformed ones.

    Returns:
        lists: of the good rows, by column.
        rows: (n,) int64, the good rows' numbers in the chunk.
        dead: the malformed rows, as they go to the dead letters.
    """
    columns, catalog = rules.columns, rules.ranker.model.catalog
    refuse_broken(chunk.rows.column(0), where=f"{chunk.where()}, column {columns.user_id}")
    lists: dict[str, IdLists] = {}
    for column in columns.names[1:]:
        ids = catalog.provider_ids if column == columns.provider_history else catalog.item_ids
        lists[column] = id_lists(chunk.rows[column], kind=ids.type, where=f"{chunk.where()}, column {column}")
    pair = None if columns.provider_history is None else (columns.item_history, columns.provider_history)
    reason, reasons = find_bad_rows(chunk, lists, same_lengths=pair)
    good = reason == FINE
    if rules.bad_rows == "error":
        refuse_bad_rows(chunk, reason, reasons)
    if not good.all():
        lists = {column: column_lists.keep(good) for column, column_lists in lists.items()}
    return lists, np.flatnonzero(good), dead_letters(chunk, reason, reasons, schema=rules.dead_letter_schema)


def _refuse_unknown_items(
    chunk: UserChunk, mapped: MappedHistories, items: IdLists, rows: npt.NDArray[np.int64], column: str
) -> None:
    if len(mapped.unknown_items):
        position = int(mapped.unknown_items[0])
        row = int(rows[np.searchsorted(items.offsets, position, side="right") - 1])
        refuse_unknown_item(f"{chunk.where(row)}, column {column}", items.ids[position])


def refuse_unknown_item(where: str, item_id: pa.Scalar) -> NoReturn:
    """Raise the DataError of an item that the catalog does not know."""
    raise DataError(
        f"{where}: item id {_shown(item_id)} is not in the model's catalog; mend the row, or drop such items with "
        "--unknown-items drop"
    )


def _refuse_cold_users(chunk: UserChunk, mapped: MappedHistories, rows: npt.NDArray[np.int64]) -> None:
    cold = np.flatnonzero(mapped.known.lengths == 0)
    if len(cold):
        row = int(rows[cold[0]])
        refuse_cold_user(f"{chunk.where(row)}: user_id {_shown(chunk.rows.column(0)[row])}")


def refuse_cold_user(who: str) -> NoReturn:
    """Raise the DataError of a user without a known item."""
    raise DataError(
        f"{who} has no item that the model knows; leave the user out, or choose --cold-users popular or empty"
    )


def _shown(value: pa.Scalar) -> str:
    """An id as a message shows it. A file's strings need not be UTF-8."""
    if isinstance(value, pa.DictionaryScalar):
        value = value.value
    if isinstance(value, pa.StringScalar | pa.LargeStringScalar):
        return repr(value.as_buffer().to_pybytes().decode(errors="replace"))
    return repr(value.as_py())
