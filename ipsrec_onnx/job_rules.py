"""What the parts of a job are scored by and written as: the same wherever they are, on this machine or another."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np

from ipsrec_kernels.fingerprint import FINGERPRINT_VERSION
from ipsrec_onnx.approximate_recall import SAMPLE_USERS, Recall, choose_recall
from ipsrec_onnx.cards import CardOptions
from ipsrec_onnx.carried_lists import KEY_BYTES, PreviousOutput, open_carried_lists
from ipsrec_onnx.filters import AllowedItems
from ipsrec_onnx.fingerprints import FINGERPRINT_KEY
from ipsrec_onnx.histories import Histories
from ipsrec_onnx.item_shards import CatalogShards
from ipsrec_onnx.memory_plan import MemoryBound, refuse_big_previous
from ipsrec_onnx.model_file import ModelFile
from ipsrec_onnx.score_options import ScoreOptions
from ipsrec_onnx.score_outputs import RowSchemas
from ipsrec_onnx.score_rules import build_rules, open_ranker, output_schemas
from ipsrec_onnx.score_run import row_schemas
from ipsrec_onnx.scored_chunk import ScoreRules, known_histories
from ipsrec_onnx.user_chunks import read_chunks
from ipsrec_onnx.user_parts import plan_parts
from ipsrec_onnx.users import Users


def job_schemas(
    model_file: ModelFile, sha256: str, options: ScoreOptions, items: AllowedItems, users: Users
) -> RowSchemas:
    """Columns and row groups of what a job writes; nothing is laid out for it.

    Args:
        model_file: by which users are scored.
        sha256: of it.
        options: of scoring.
        items: that may be recommended.
        users: who is scored.
    """
    catalog = model_file.catalog
    candidates, dead_letters = output_schemas(
        catalog.item_ids.type,
        options,
        columns=users.columns,
        schema=users.schema,
        metadata=_made_by(sha256, options, items),
    )
    return row_schemas(candidates, dead_letters, top_k=min(options.top_k, catalog.num_items))


def open_rules(
    model_file: ModelFile,
    sha256: str,
    options: ScoreOptions,
    items: AllowedItems,
    users: Users,
    *,
    cards: CardOptions,
    shards: CatalogShards,
    index_cache: str | Path | None,
    bound: MemoryBound,
    previous: PreviousOutput | None = None,
) -> tuple[ScoreRules, Recall | None]:
    """Lay out the items; where the search is approximate, measure it on the first users.

    Args:
        model_file: by which users are scored.
        sha256: of it.
        options: of scoring.
        items: that may be recommended.
        users: who is scored.
        cards: which GPUs, and what searches on them.
        shards: how the catalog is cut.
        index_cache: folder in which the laid out items are kept from job to job; None lays them out anew.
        bound: memory that the job may have.
        previous: an earlier output whose lists are carried over; None for none.

    Returns:
        rules: what every chunk is scored by.
        recall: how good the lists are; None where the search is exact.

    Raises:
        DataError, ExecutionProviderError, ModelFileError: as build_ranker; or the earlier output is broken, or too big.
        ModuleNotFoundError: faiss, for an approximate search, is not installed.
    """
    ranker = open_ranker(model_file, options, items, index_cache=index_cache, cards=cards, shards=shards)
    metadata = _made_by(sha256, options, items)
    rules = build_rules(ranker, options, columns=users.columns, schema=users.schema, metadata=metadata)
    if previous is not None:
        refuse_big_previous(bound, name=previous.name, num_bytes=KEY_BYTES * previous.num_rows)
        carried = open_carried_lists(previous, model_file.catalog, top_k=ranker.top_k)
        rules = replace(rules, carried=carried)
    if options.approximate is None:
        return rules, None
    index, recall = choose_recall(ranker, _first_histories(users, rules), target=options.approximate)
    return replace(rules, ranker=replace(ranker, approximate=index)), recall


def _made_by(sha256: str, options: ScoreOptions, items: AllowedItems) -> dict[str, str]:
    """What the candidates say of how they were made."""
    return {
        "ipsrec.model_sha256": sha256,
        "ipsrec.options": json.dumps({**asdict(options), "allowed_items": items.num_allowed}),
        **({FINGERPRINT_KEY: str(FINGERPRINT_VERSION)} if options.fingerprints else {}),
    }


def _first_histories(users: Users, rules: ScoreRules) -> Histories:
    """Histories of the first SAMPLE_USERS users with a known item, on which recall is measured."""
    parts: list[Histories] = []
    lengths = np.zeros(0, np.int64)
    for chunk in read_chunks(users, plan_parts(users), chunk_rows=SAMPLE_USERS):
        parts.append(known_histories(chunk, rules).without_empty())
        lengths = np.concatenate([lengths, parts[-1].lengths])
        if len(lengths) >= SAMPLE_USERS:
            break
    nothing = np.zeros(0, np.int32)
    return Histories(
        np.concatenate([nothing, *(part.items for part in parts)]),
        np.concatenate([nothing, *(part.providers for part in parts)]),
        np.concatenate([[0], np.cumsum(lengths[:SAMPLE_USERS])]),
    )
