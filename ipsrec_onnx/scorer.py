"""Scorer: a model opened once, for notebooks and services; the same lists and refusals as the job of scoring.py."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

import pyarrow as pa

from ipsrec_onnx.broken_work import broken_work
from ipsrec_onnx.candidates import Layout
from ipsrec_onnx.cards import CardOptions, SearchName
from ipsrec_onnx.cores import usable_cores
from ipsrec_onnx.encoding import EncoderName
from ipsrec_onnx.filters import allowed_items
from ipsrec_onnx.id_lists import cast_views
from ipsrec_onnx.in_memory import PLACE, Ids, arrow_table, table_chunks
from ipsrec_onnx.model_file import open_model_file
from ipsrec_onnx.one_user import PLACE as USER
from ipsrec_onnx.one_user import UserList, score_user
from ipsrec_onnx.pipeline import map_in_order
from ipsrec_onnx.retrieval import ColdUsers
from ipsrec_onnx.score_counts import ScoreCounts
from ipsrec_onnx.score_options import ScoreOptions, check_cards, check_positive
from ipsrec_onnx.score_rules import build_rules, open_ranker
from ipsrec_onnx.score_run import CHUNK_ROWS, score_named_chunk
from ipsrec_onnx.scored_chunk import BadRows, ScoreRules, UnknownItems
from ipsrec_onnx.session import Device
from ipsrec_onnx.staging import staged
from ipsrec_onnx.users import UserColumns, check_id_kinds, present_columns, selected_schema

_LEAST_CHUNK_ROWS = 256  # users that are worth a thread


class Scored(NamedTuple):
    """What `Scorer.score` gives.

    Attributes:
        candidates: what `ipsrec score` writes, one row for each user, or, in the long layout, for each candidate.
        bad_rows: the malformed rows, none of them unless bad_rows is "divert": row (number in the table, from 0),
            reason, and the row's own columns.
        counts: the account of rows and ids.
    """

    candidates: pa.Table
    bad_rows: pa.Table
    counts: ScoreCounts


class Scorer:
    """Scores users of this process with one model file; opening it and laying out the items happens once, here.

    Threads may share one and call it at once: it holds nothing that a call changes. Other processes need their own: it
    is not pickled, and one that was opened before a fork must not be used after it (neither ONNX Runtime nor CUDA
    promise to survive that). There is nothing to close.
    """

    @staged(inputs=["model", "allow_items", "deny_items"], mapped=["index_cache"])
    def __init__(
        self,
        model: str | Path,
        *,
        top_k: int = 100,
        layout: Layout = "list",
        keep_seen: bool = False,
        unknown_items: UnknownItems = "drop",
        cold_users: ColdUsers = "popular",
        bad_rows: BadRows = "error",
        allow_items: str | Path | Ids | None = None,
        deny_items: str | Path | Ids | None = None,
        max_per_provider: int | None = None,
        candidates_column: str | None = None,
        user_column: str = "user_id",
        item_column: str = "item_history",
        provider_column: str | None = None,
        encoder: EncoderName = "onnxruntime",
        index_cache: str | Path | None = None,
        device: Device = "cpu",
        gpus: Sequence[int] = (0,),
        search: SearchName = "auto",
        threads: int | None = None,
    ) -> None:
        """Open a model under the options of `score`, which mean there what they mean here.

        Args:
            model: model file that `ipsrec export` wrote.
            top_k: length of the lists; shorter where nothing more is allowed.
            layout: "list" gives one row per user, "long" one per candidate.
            keep_seen: may an item of the user's history be recommended?
            unknown_items: "drop" item ids that the catalog does not know from histories, or "error" to refuse them.
            cold_users: what a user without a known item gets: "popular" items, an "empty" list, or "error" to refuse.
            bad_rows: "error" refuses a malformed row; "divert" gives it in Scored.bad_rows with the reason.
            allow_items: the only items to recommend: a Parquet or text file of ids, or the ids.
            deny_items: items never to recommend, likewise.
            max_per_provider: at most so many items of one provider in a list.
            candidates_column: column of lists, the only items to choose from for each user; of `score` alone.
            user_column: column of the user ids, of any type.
            item_column: column of the item histories, oldest first.
            provider_column: column of the provider histories. None takes provider_history, or, where a table has no
                such column, the catalog's provider of each item.
            encoder: what computes the user embeddings: "onnxruntime" runs the file's graph, "fused" our own kernels on
                the file's weights, on the CPU. For one user at a time, "fused" is much the faster one.
            index_cache: folder in which the laid out items are kept; None lays them out anew.
            device: where users are encoded and items searched.
            gpus: numbers of the GPUs, with device "cuda".
            search: what searches on them: "triton", "onnx" or "cpu"; "auto" takes the first that the machine can.
            threads: worker threads of one call of `score`; all usable cores by default. 1 stays on the caller's thread,
                as `score_one` always does.

        Raises:
            DataError: an item list is not as it should be.
            ModelFileError: the model file cannot be used.
            ExecutionProviderError: the device is not there.
            ValueError: an option has a value that it cannot have.
        """
        self._options = ScoreOptions(
            top_k=top_k,
            layout=layout,
            keep_seen=keep_seen,
            unknown_items=unknown_items,
            cold_users=cold_users,
            bad_rows=bad_rows,
            max_per_provider=max_per_provider,
            candidates_column=candidates_column,
            approximate=None,
            encoder=encoder,
            device=device,
        )
        cards = check_cards(self._options, CardOptions(tuple(gpus), search))
        check_positive("threads", threads)
        self._threads = threads or usable_cores()
        self._columns = UserColumns(user_column, item_column, provider_column, candidates_column)
        model_file = open_model_file(model)
        items = allowed_items(model_file.catalog, allow_items=allow_items, deny_items=deny_items)
        self._ranker = open_ranker(model_file, self._options, items, index_cache=index_cache, cards=cards)

    def score(self, table: Any) -> Scored:
        """Rank candidates for every user of a table, in the order of its rows; exactly as a job would.

        Args:
            table: a pyarrow Table or RecordBatch, or a frame with Arrow's PyCapsule interface, as those of polars and
                pandas; its columns are those of a users file.

        Returns:
            The candidates, the malformed rows and the account: all three always, so that no row is lost unseen.

        Raises:
            DataError: the table is not as the contract asks, or the options refuse a row; says which.
            ModelFileError: the graph fails, or gives NaN or infinity.
            OutOfMemoryError: memory ran out.
        """
        whole = arrow_table(table)
        columns = present_columns(self._columns, whole.schema, where=PLACE)
        schema = selected_schema(whole.schema, columns, where=PLACE)
        check_id_kinds(schema, columns, self._ranker.model.catalog, where=PLACE)
        rules = build_rules(self._ranker, self._options, columns=columns, schema=schema, metadata=None)
        return self._score(_plain_columns(whole, schema), rules)

    def score_one(
        self,
        item_history: Ids,
        provider_history: Ids | None = None,
        *,
        top_k: int | None = None,
        keep_seen: bool | None = None,
        candidates: Ids | None = None,
    ) -> UserList:
        """Rank candidates for one user: the list that this row would get in a table or a job.

        Args:
            item_history: item ids, oldest first: Python's, or an array.
            provider_history: the provider of each; None takes the catalog's.
            top_k: length of the list, where it is not the Scorer's.
            keep_seen: may an item of the history be recommended? None as the Scorer has it.
            candidates: ids of the only items to choose from; None for all that are allowed.

        Returns:
            status, item_ids and scores, best first.

        Raises:
            DataError: a malformed list, for which there is no place aside, or one that the options refuse.
            ModelFileError: the graph fails, or gives NaN or infinity.
            OutOfMemoryError: memory ran out.
            ValueError: top_k is below 1.
        """
        check_positive("top_k", top_k)
        ranker = self._ranker
        if top_k is not None:
            ranker = replace(ranker, top_k=min(top_k, ranker.model.catalog.num_items))
        if keep_seen is not None:
            ranker = replace(ranker, keep_seen=keep_seen)
        with broken_work(USER):
            return score_user(
                ranker,
                item_history,
                provider_history,
                candidates,
                unknown_items=self._options.unknown_items,
                cold_users=self._options.cold_users,
            )

    def _score(self, rows: pa.Table, rules: ScoreRules) -> Scored:
        """Score the rows chunk by chunk, on the caller's thread where one is enough."""
        fair = max(_LEAST_CHUNK_ROWS, -(-rows.num_rows // self._threads))
        chunks = list(table_chunks(rows, most_rows=self._ranker.chunk_users(min(CHUNK_ROWS, fair))))
        score_rows = functools.partial(score_named_chunk, rules=rules)
        threads = min(self._threads, len(chunks))
        scored = list(map(score_rows, chunks) if threads < 2 else map_in_order(score_rows, chunks, threads=threads))
        dead = pa.concat_tables([rules.dead_letter_schema.empty_table(), *(chunk.dead_letters for chunk in scored)])
        return Scored(
            candidates=pa.concat_tables([rules.schema.empty_table(), *(chunk.rows for chunk in scored)]),
            bad_rows=dead.drop_columns(["file", "row_group"]),  # a table has neither
            counts=sum((chunk.counts for chunk in scored), ScoreCounts()),
        )

    def __reduce__(self) -> NoReturn:
        """Refuse to be pickled: a copy would open the model again behind its caller's back.

        Raises:
            TypeError: always.
        """
        raise TypeError("a Scorer is not pickled, for it holds an open model; make one in each process")


def _plain_columns(table: pa.Table, schema: pa.Schema) -> pa.Table:
    """The columns of a schema that selected_schema gave, without string views; a table from elsewhere may be broken."""
    columns = [
        pa.chunked_array(
            [
                cast_views(chunk, field.type, where=f"{PLACE}, column {field.name}")
                for chunk in table[field.name].chunks
            ],
            field.type,
        )
        for field in schema
    ]
    return pa.Table.from_arrays(columns, schema=schema)
