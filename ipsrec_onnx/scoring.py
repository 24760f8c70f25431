"""The main job: users' histories in Parquet to ranked candidates in Parquet.

    users.parquet --read--> Arrow lists --map ids, pack--> (B, L) --encode--> (B, D) --retrieve--> top-k
                                                                     top-k --write--> candidates.parquet

read is users.py; map is histories.py; pack and encode encoding.py; retrieve retrieval.py; write candidates.py and
row_writer.py; score_chunk goes from read to write for one chunk of users, in a worker thread.
"""

from __future__ import annotations

import contextlib
import functools
import json
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, get_args

from ipsrec_onnx.atomic import refuse_existing
from ipsrec_onnx.bad_rows import dead_letter_schema
from ipsrec_onnx.candidates import Layout, candidates_schema
from ipsrec_onnx.cores import usable_cores
from ipsrec_onnx.errors import DataError
from ipsrec_onnx.filters import AllowedItems, allowed_items
from ipsrec_onnx.model_file import model_file_sha256, open_model_file
from ipsrec_onnx.pipeline import map_in_order
from ipsrec_onnx.progress import show_progress
from ipsrec_onnx.retrieval import ColdUsers, build_ranker
from ipsrec_onnx.score_outputs import OutputFile, open_outputs, refuse_inputs
from ipsrec_onnx.scored_chunk import BadRows, ScoreCounts, ScoreRules, UnknownItems, score_chunk
from ipsrec_onnx.session import Device
from ipsrec_onnx.users import UserColumns, Users, check_id_kinds, open_users, read_chunks

CHUNK_ROWS = 8192  # users of a chunk at most
_LONG_GROUP_ROWS = (
    1 << 16
)  # a row of the long layout is one candidate: groups as small as chunks would swell the footer


@dataclass(frozen=True)
class ScoreReport:
    """What a job did.

    Attributes:
        output: the file of candidates.
        bad_rows: the file of malformed rows; None unless they were to be diverted.
        model_sha256: of the model file.
        counts: the account of rows and ids.
        allowed_items: items that could be recommended.
        unknown_allow_items: ids of the allow list that the catalog does not know.
        unknown_deny_items: likewise of the deny list.
        wall_s: seconds from start to the finished file.
        users_per_s: users read per second of them.
    """

    output: str
    bad_rows: str | None
    model_sha256: str
    counts: ScoreCounts
    allowed_items: int
    unknown_allow_items: int
    unknown_deny_items: int
    wall_s: float
    users_per_s: float

    def to_json(self) -> dict[str, Any]:
        """Give everything as one flat JSON object."""
        report = asdict(self)
        return {**report.pop("counts"), **report}


def score(
    model: str | Path,
    source: str | Path,
    output: str | Path,
    *,
    top_k: int = 100,
    layout: Layout = "list",
    keep_seen: bool = False,
    unknown_items: UnknownItems = "drop",
    cold_users: ColdUsers = "popular",
    bad_rows: BadRows = "error",
    allow_items: str | Path | None = None,
    deny_items: str | Path | None = None,
    max_per_provider: int | None = None,
    candidates_column: str | None = None,
    user_column: str = "user_id",
    item_column: str = "item_history",
    provider_column: str | None = None,
    device: Device = "cpu",
    threads: int | None = None,
    overwrite: bool = False,
    progress: bool = False,
) -> ScoreReport:
    """Rank candidates for every user of a Parquet file; the lists are exact and in the order of the input's rows.

    The bytes of the output depend on the model file, the input's rows and the options, and on nothing else.

    Args:
        model: model file that `ipsrec export` wrote.
        source: users: a Parquet file, a folder of them, or a URI.
        output: Parquet file to write.
        top_k: length of the lists; shorter where nothing more is allowed.
        layout: "list" gives one row per user, "long" one per candidate.
        keep_seen: may an item of the user's history be recommended?
        unknown_items: "drop" item ids that the catalog does not know from histories, or "error" to refuse them.
        cold_users: what a user without a known item gets: "popular" items, an "empty" list, or "error" to refuse.
        bad_rows: "error" refuses a malformed row; "divert" writes it to <output>.bad_rows.parquet with the reason.
        allow_items: Parquet or text file of the only items to recommend.
        deny_items: Parquet or text file of items never to recommend.
        max_per_provider: at most so many items of one provider in a list.
        candidates_column: column of lists, the only items to choose from for each user.
        user_column: column of the user ids, of any type.
        item_column: column of the item histories, oldest first.
        provider_column: column of the provider histories. None takes provider_history, or, where the input has no such
            column, the catalog's provider of each item.
        device: where the model runs.
        threads: worker threads; all usable cores by default.
        overwrite: replace an existing output.
        progress: report progress on stderr.

    Raises:
        DataError: an input is not as the contract asks, or the output cannot be written; nothing is left behind.
        ModelFileError: the model file cannot be used.
        ExecutionProviderError: the device is not there.
        ValueError: an option has a value that it cannot have.
    """
    started = time.perf_counter()
    _check_choice("layout", layout, Layout)
    _check_choice("unknown_items", unknown_items, UnknownItems)
    _check_choice("cold_users", cold_users, ColdUsers)
    _check_choice("bad_rows", bad_rows, BadRows)
    _check_numbers({"top_k": top_k, "max_per_provider": max_per_provider, "threads": threads})
    bad_rows_output = Path(f"{output}.bad_rows.parquet") if bad_rows == "divert" else None
    outputs = [Path(output)] if bad_rows_output is None else [Path(output), bad_rows_output]
    for path in outputs:
        refuse_existing(path, overwrite=overwrite)
    users = open_users(source, UserColumns(user_column, item_column, provider_column, candidates_column))
    refuse_inputs(outputs, users, model=model, allow_items=allow_items, deny_items=deny_items)
    model_file = open_model_file(model, device=device)
    catalog = model_file.catalog
    check_id_kinds(users, item_kind=catalog.item_ids.type, provider_kind=catalog.provider_ids.type)
    items = allowed_items(catalog, allow_items=allow_items, deny_items=deny_items)
    sha256 = model_file_sha256(model)
    options = {
        "top_k": top_k,
        "layout": layout,
        "keep_seen": keep_seen,
        "unknown_items": unknown_items,
        "cold_users": cold_users,
        "bad_rows": bad_rows,
        "allowed_items": items.num_allowed,
        "max_per_provider": max_per_provider,
        "candidates_column": candidates_column,
    }
    rules = ScoreRules(
        ranker=build_ranker(
            model_file, items.allowed, top_k=top_k, keep_seen=keep_seen, max_per_provider=max_per_provider
        ),
        columns=users.columns,
        top_k=top_k,
        unknown_items=unknown_items,
        cold_users=cold_users,
        bad_rows=bad_rows,
        schema=candidates_schema(
            users.schema.field(user_column).type,
            catalog.item_ids.type,
            layout=layout,
            metadata={"ipsrec.model_sha256": sha256, "ipsrec.options": json.dumps(options)},
        ),
        dead_letter_schema=dead_letter_schema(users),
    )
    group_rows = rules.ranker.users_at_once(CHUNK_ROWS) if layout == "list" else _LONG_GROUP_ROWS
    files = [OutputFile(Path(output), rules.schema, group_rows)]
    if bad_rows_output is not None:
        files.append(OutputFile(bad_rows_output, rules.dead_letter_schema, CHUNK_ROWS))
    counts = _score_users(
        users, rules, files, threads=threads or usable_cores(), overwrite=overwrite, progress=progress
    )
    return _report(output, bad_rows_output, sha256, counts, items, wall_s=time.perf_counter() - started)


def _score_users(
    users: Users, rules: ScoreRules, files: list[OutputFile], *, threads: int, overwrite: bool, progress: bool
) -> ScoreCounts:
    """Read, score and write all users; this thread reads and writes, the workers do the rest."""
    counts = ScoreCounts()
    with (
        open_outputs(files, overwrite=overwrite) as write,
        show_progress(users.num_rows, what="users", show=progress) as advance,
    ):
        chunks = read_chunks(users, chunk_rows=rules.ranker.users_at_once(CHUNK_ROWS))
        scored = map_in_order(functools.partial(score_chunk, rules=rules), chunks, threads=threads)
        with contextlib.closing(scored):
            for chunk in scored:
                write(chunk)
                counts += chunk.counts
                advance(chunk.counts.rows_in)
        _check_account(users, counts)
    return counts


def _check_account(users: Users, counts: ScoreCounts) -> None:
    """Refuse to finish an output that lacks a row."""
    if not users.num_rows == counts.rows_in == counts.rows_out + counts.rows_diverted:
        raise DataError(
            f"input {users.source}: {users.num_rows} rows, {counts.rows_in} read, {counts.rows_out} scored and "
            f"{counts.rows_diverted} diverted; did the input change meanwhile? run again"
        )


def _check_choice(name: str, value: str, choices: Any) -> None:
    """Refuse a value that the Literal does not list."""
    if value not in get_args(choices):
        raise ValueError(f"{name} is {value!r}, expected one of {get_args(choices)}")


def _check_numbers(numbers: dict[str, int | None]) -> None:
    for name, number in numbers.items():
        if number is not None and number < 1:
            raise ValueError(f"{name} is {number}, expected 1 or more")


def _report(
    output: str | Path,
    bad_rows_output: Path | None,
    sha256: str,
    counts: ScoreCounts,
    items: AllowedItems,
    *,
    wall_s: float,
) -> ScoreReport:
    return ScoreReport(
        output=str(output),
        bad_rows=None if bad_rows_output is None else str(bad_rows_output),
        model_sha256=sha256,
        counts=counts,
        allowed_items=items.num_allowed,
        unknown_allow_items=items.unknown_allow_items,
        unknown_deny_items=items.unknown_deny_items,
        wall_s=wall_s,
        users_per_s=counts.rows_in / wall_s,
    )
