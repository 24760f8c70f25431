"""From the options of scoring to what every chunk of users is scored by; for the job and for Scorer alike."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa

from ipsrec_onnx.bad_rows import dead_letter_schema
from ipsrec_onnx.candidates import candidates_schema
from ipsrec_onnx.cards import DEFAULT_CARDS, CardOptions
from ipsrec_onnx.filters import AllowedItems
from ipsrec_onnx.item_shards import WHOLE, CatalogShards
from ipsrec_onnx.model_file import ModelFile
from ipsrec_onnx.retrieval import Ranker, build_ranker
from ipsrec_onnx.score_options import ScoreOptions
from ipsrec_onnx.scored_chunk import ScoreRules
from ipsrec_onnx.users import UserColumns


def open_ranker(
    model_file: ModelFile,
    options: ScoreOptions,
    items: AllowedItems,
    *,
    index_cache: str | Path | None,
    cards: CardOptions = DEFAULT_CARDS,
    shards: CatalogShards = WHOLE,
) -> Ranker:
    """Lay out the items for an exact search under the options; cards as check_cards gave them.

    Raises:
        DataError, ExecutionProviderError, ModelFileError: as build_ranker.
    """
    return build_ranker(
        model_file,
        items.allowed,
        top_k=options.top_k,
        keep_seen=options.keep_seen,
        max_per_provider=options.max_per_provider,
        encoder=options.encoder,
        index_cache=index_cache,
        device=options.device,
        cards=cards,
        shards=shards,
    )


def build_rules(
    ranker: Ranker,
    options: ScoreOptions,
    *,
    columns: UserColumns,
    schema: pa.Schema,
    metadata: dict[str, str] | None,
) -> ScoreRules:
    """Gather all that users of one schema are scored by.

    Args:
        ranker: as open_ranker made it of the same options.
        options: of scoring.
        columns: of the users.
        schema: of these columns.
        metadata: of the output's schema.
    """
    candidates, dead_letters = output_schemas(
        ranker.model.catalog.item_ids.type, options, columns=columns, schema=schema, metadata=metadata
    )
    return ScoreRules(
        ranker=ranker,
        columns=columns,
        top_k=options.top_k,
        unknown_items=options.unknown_items,
        cold_users=options.cold_users,
        bad_rows=options.bad_rows,
        schema=candidates,
        dead_letter_schema=dead_letters,
    )


def output_schemas(
    item_id: pa.DataType,
    options: ScoreOptions,
    *,
    columns: UserColumns,
    schema: pa.Schema,
    metadata: dict[str, str] | None,
) -> tuple[pa.Schema, pa.Schema]:
    """Schemas of the candidates and of the rows set aside.

    Args:
        item_id: type of the catalog's ids.
        options: of scoring.
        columns: of the users.
        schema: of these columns.
        metadata: of the candidates' schema.
    """
    user_id = schema.field(columns.user_id).type
    candidates = candidates_schema(
        user_id, item_id, layout=options.layout, metadata=metadata, fingerprints=options.fingerprints
    )
    return candidates, dead_letter_schema(schema)
