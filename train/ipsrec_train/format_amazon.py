"""Amazon reviews: item = product, provider = brand.

Two forms. That of S3-Rec (aHuiWang/CIKM2020-S3Rec:data/): `<Name>.txt`, the items of a user in a line, by time, and
`<Name>_item2attributes.json`, the attributes of each item, its brand first. And that of the releases of J. McAuley's
group: reviews or ratings, and metadata (`meta_*`) with the brand of a product; their ids stay strings.

A product without a brand is its own provider, `item:<id>`; a brand is `brand:<brand>`, so that the two cannot meet.
"""

from __future__ import annotations

import itertools
import json
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

from ipsrec_onnx.errors import DataError
from ipsrec_train.interactions import Interactions, LeftOut, stage_interactions, unusable_lines
from ipsrec_train.item_providers import OnProviderConflict, one_provider_each
from ipsrec_train.json_lines import read_objects, text_of
from ipsrec_train.text_lines import (
    BAD_TIME,
    NO_INTEGER,
    WRONG_FIELDS,
    choose_file,
    integer,
    open_lines,
    scan_fields,
    scan_lines,
    text_id_checks,
    why_left_out,
)

_JSON_SUFFIXES = (".json", ".jsonl", ".json.gz", ".jsonl.gz")
_CSV_SUFFIXES = (".csv", ".csv.gz")
_BATCH_ROWS = 1 << 17
_REVIEWS_SCHEMA = pa.schema(
    {"user_id": pa.string(), "item_id": pa.string(), "timestamp": pa.int64(), "row": pa.uint32(), "broken": pa.bool_()}
)

# Ratings have no header: which column is which is told by what its ids look like.
_PRODUCT = re.compile(r"B[0-9A-Z]{9}|[0-9]{9}[0-9X]")
_REVIEWER = re.compile(r"A[0-9A-Z]{9,}")
_ORDERS = {
    "user first": ("user_id", "item_id", "rating", "timestamp"),  # the release of 2014
    "item first": ("item_id", "user_id", "rating", "timestamp"),  # the release of 2018
}
_HEADER = {"user_id": "user_id", "item_id": "parent_asin", "timestamp": "timestamp"}  # the release of 2023
_LOOKED_AT = 1_000  # lines


def read_amazon(source: Path, folder: Path, *, on_conflict: OnProviderConflict) -> Interactions:
    """Read either form, told apart by the files.

    Args:
        source: S3-Rec: `<Name>.txt` with `<Name>_item2attributes.json` beside it, or the folder of one such pair.
            Releases: a folder with one file `meta_*` (JSON lines: asin and brand; parent_asin and store in 2023) and
            one file of reviews (JSON lines: reviewerID, asin, unixReviewTime; user_id, parent_asin, timestamp in 2023)
            or of ratings (CSV without header: user, item, rating, time as in 2014, or item, user, ... as in 2018; with
            the header of 2023). Those of the releases may be packed by gzip.
        folder: for files that are needed until the end.
        on_conflict: what to do with a product that the metadata gives several brands.

    Raises:
        DataError: files are missing or of another form, a product has several brands, or no line is an interaction.
    """
    # A release may have a readme.txt beside it.
    if source.suffix == ".txt" or (any(source.glob("*.txt")) and not any(source.glob("meta*"))):
        return _read_s3rec(source, folder)
    return _read_release(source, folder, on_conflict)


def _read_s3rec(source: Path, folder: Path) -> Interactions:
    """`<Name>.txt` and `<Name>_item2attributes.json`; timestamp = place in the history, from 0."""
    if source.is_dir():  # the attributes tell the name: S3-Rec has <Name>_sample.txt as well
        attributes = choose_file(source, "*_item2attributes*.json")
        name = f"{attributes.stem.replace('_item2attributes', '')}.txt"
        path = choose_file(source / name, name)
    else:
        path = choose_file(source, source.name)
        name = f"{path.stem}_item2attributes.json"
        attributes = choose_file(path.with_name(name), name)
    providers = _s3rec_providers(attributes)
    words = pl.col("line").fill_null("").str.extract_all(r"\S+")
    # A line without items becomes one row, to be counted: what explode makes of an empty list is a setting of polars.
    items = pl.when(words.list.len() > 1).then(words.list.slice(1)).otherwise(pl.concat_list(pl.lit("")))
    lines = (
        scan_lines(path)
        .select("row", user=words.list.first(), item=items, timestamp=pl.int_ranges(items.list.len(), dtype=pl.Int64))
        .explode("item", "timestamp")
        .with_columns(item_id=integer("item"))
        .join(providers, on="item_id", how="left")
        .select(
            "row",
            "item_id",
            "timestamp",
            integer("user").alias("user_id"),
            provider_id=pl.col("provider_id").fill_null(pl.format("item:{}", "item_id")),
            left_out=why_left_out(
                (WRONG_FIELDS, pl.col("item") == ""),
                (NO_INTEGER, integer("user").is_null() | pl.col("item_id").is_null()),
            ),
        )
    )
    return stage_interactions(lines, path, folder)


def _s3rec_providers(path: Path) -> pl.LazyFrame:
    """item_id and provider_id of the items that have a brand.

    The brand is the first attribute, the categories follow. Two first attributes are no brand: the most frequent one,
    which stands for a brand that is missing or rare; and one that stands among the categories of another item, whose
    first attribute it is only because the brand is not there.
    """
    with open_lines(path) as lines:
        try:
            attributes: dict[str, Any] = json.loads(b"".join(lines))
            if not all(isinstance(listed, list) for listed in attributes.values()):
                raise TypeError("an item has no list")
            firsts = {int(item): listed[0] for item, listed in attributes.items() if listed}
            categories = {attribute for listed in attributes.values() for attribute in listed[1:]}
        except (ValueError, TypeError, AttributeError, KeyError) as error:
            raise DataError(f'{path} is not one JSON object of {{"item": [attribute, ...]}}: {error}') from error
    missing = {attribute for attribute, _ in Counter(firsts.values()).most_common(1)}
    brands = {item: first for item, first in firsts.items() if first not in missing | categories}
    providers = [f"brand:{brand}" for brand in brands.values()]
    return pl.LazyFrame(
        {"item_id": list(brands), "provider_id": providers}, schema={"item_id": pl.Int64, "provider_id": pl.String}
    )


def _read_release(source: Path, folder: Path, on_conflict: OnProviderConflict) -> Interactions:
    """Reviews or ratings with metadata."""
    path, metadata = _release_files(source)
    if path.name.lower().endswith(_CSV_SUFFIXES):
        names, take, header = _ratings_order(path)
        table = scan_fields(path, names, take, separator=",", header=header).with_columns(
            timestamp=integer("timestamp"), broken=~pl.col("fields_fit")
        )
        broken = WRONG_FIELDS
    else:
        table, broken = _scan_reviews(path, folder / "reviews.parquet"), "not a JSON object"
    brands, unusable, conflicts = _brands(metadata, on_conflict)
    lines = table.join(brands, on="item_id", how="left").select(
        "row",
        "user_id",
        "item_id",
        "timestamp",
        provider_id=pl.col("provider_id").fill_null(pl.format("item:{}", "item_id")),
        left_out=why_left_out(
            (broken, pl.col("broken")),
            *text_id_checks("user_id", "item_id"),
            (BAD_TIME, pl.col("timestamp").is_null()),
        ),
    )
    return stage_interactions(lines, path, folder, side=unusable, conflicts=conflicts)


def _release_files(source: Path) -> tuple[Path, Path]:
    """The one file of reviews or ratings and the one of metadata."""
    what = "one file meta_*.json or .jsonl and one of reviews or ratings (.json, .jsonl or .csv), all maybe with .gz"
    if not source.is_dir():
        state = "is a file" if source.exists() else "is not there"
        raise DataError(f"input {source} {state}; name the folder that holds {what}, or <Name>.txt in S3-Rec's form")
    files = sorted(path for path in source.iterdir() if path.name.lower().endswith(_JSON_SUFFIXES + _CSV_SUFFIXES))
    metadata = [path for path in files if path.name.startswith("meta")]
    others = [path for path in files if path not in metadata]
    if len(metadata) != 1 or len(others) != 1:
        found = ", ".join(path.name for path in files) or "none of them"
        raise DataError(f"{source}: looked for {what}, found {found}; put the two into a folder of their own")
    return choose_file(others[0]), choose_file(metadata[0])


def _ratings_order(path: Path) -> tuple[tuple[str, ...], dict[str, str], bool]:
    """Names of the columns of a ratings file, our name -> its name, and whether it has a header."""
    with open_lines(path) as lines:
        rows = [
            tuple(line.decode("utf-8", "replace").rstrip("\r\n").removeprefix("\ufeff").split(","))
            for line in itertools.islice(lines, _LOOKED_AT)
        ]
    if rows and all(rows[0].count(name) == 1 for name in _HEADER.values()):
        return rows[0], _HEADER, True
    pairs = [row[:2] for row in rows if len(row) == len(_ORDERS["user first"])]
    counts = {
        order: sum(
            bool(_REVIEWER.fullmatch(pair[names.index("user_id")]) and _PRODUCT.fullmatch(pair[names.index("item_id")]))
            for pair in pairs
        )
        for order, names in _ORDERS.items()
    }
    likely = [order for order, count in counts.items() if count]
    if len(likely) != 1:
        raise DataError(
            f"{path}: cannot tell users from items in the first lines (like {str(rows[:1])[:200]}), expected "
            "user,item,rating,time or item,user,rating,time with Amazon's own ids; give the file a header and use "
            "--format generic"
        )
    return _ORDERS[likely[0]], {name: name for name in _HEADER}, False


def _scan_reviews(path: Path, target: Path) -> pl.LazyFrame:
    """Reviews of JSON lines, by way of a Parquet file: user_id, item_id, timestamp, row and broken (no object)."""
    rows = (
        (*(_review(found) if found is not None else ("", "", None)), number, found is None)
        for number, found in read_objects(path)
    )
    with pq.ParquetWriter(target, _REVIEWS_SCHEMA, compression="lz4") as writer:
        for batch in _batches(rows):
            columns = [
                pa.array(column, field.type)
                for column, field in zip(zip(*batch, strict=True), _REVIEWS_SCHEMA, strict=True)
            ]
            writer.write_table(pa.Table.from_arrays(columns, schema=_REVIEWS_SCHEMA))
    return pl.scan_parquet(target, glob=False)


def _batches(rows: Iterator[tuple[Any, ...]]) -> Iterator[list[tuple[Any, ...]]]:
    while batch := list(itertools.islice(rows, _BATCH_ROWS)):
        yield batch


def _review(found: dict[str, Any]) -> tuple[str, str, int | None]:
    """Who reviewed what, and when: seconds in the releases of 2014 and 2018, milliseconds in that of 2023."""
    old = "reviewerID" in found
    user, item, time = ("reviewerID", "asin", "unixReviewTime") if old else ("user_id", "parent_asin", "timestamp")
    when = found.get(time)
    fits = type(when) is int and -(2**63) <= when < 2**63
    return text_of(found.get(user)), text_of(found.get(item)), when if fits else None


def _brands(path: Path, on_conflict: OnProviderConflict) -> tuple[pl.LazyFrame, tuple[LeftOut, ...], int]:
    """item_id and provider_id of the products that have a brand; unusable lines; products with several brands."""
    items: list[str] = []
    providers: list[str] = []
    rows: list[int] = []
    unusable: list[int] = []
    for number, found in read_objects(path):
        item = text_of(found.get("parent_asin") or found.get("asin")) if found is not None else ""
        if found is None or not item:
            unusable.append(number)
            continue
        brand = text_of(found.get("brand")) or text_of(found.get("store"))  # `store` is what 2023 has
        if brand:
            items.append(item)
            providers.append(f"brand:{brand}")
            rows.append(number)
    pairs = pl.LazyFrame(
        {"item_id": items, "provider_id": providers, "row": rows},
        schema={"item_id": pl.String, "provider_id": pl.String, "row": pl.UInt32},
    )
    brands, conflicts = one_provider_each(pairs, on_conflict=on_conflict, where=path)
    return brands, unusable_lines(path, len(unusable), next(iter(unusable), None)), conflicts
