"""RecBole's atomic files: `<name>.inter`, and `<name>.item` beside it where the provider is a feature of the item.

Fields are separated by tabs; the header gives `field:type`
(RUCAIBox/RecBole:docs/source/user_guide/data/atomic_files.rst).
"""

from __future__ import annotations

import dataclasses
from pathlib import Path

import polars as pl

from ipsrec_onnx.errors import DataError
from ipsrec_train.interaction_files import Columns, readable_errors
from ipsrec_train.interactions import Interactions, LeftOut, stage_interactions, unusable_lines
from ipsrec_train.item_providers import OnProviderConflict, one_provider_each
from ipsrec_train.plain_columns import plain_columns
from ipsrec_train.text_lines import (
    BAD_TIME,
    WRONG_FIELDS,
    choose_file,
    first_line,
    scan_fields,
    text_id_checks,
    why_left_out,
)

# What types a field may have for each use.
_TYPES = {"user_id": ("token",), "item_id": ("token",), "provider_id": ("token",), "timestamp": ("float", "token")}


def read_recbole(source: Path, folder: Path, *, columns: Columns, on_conflict: OnProviderConflict) -> Interactions:
    """Read atomic files. Tokens are int64 or string as in the generic format: int64 if every value is a plain number.

    Args:
        source: the folder of one `.inter` file, or that file; may be packed by gzip.
        folder: for files that are needed until the end.
        columns: names of the fields. The provider is taken from `.inter`, and from `.item` if it is not there.
        on_conflict: what to do with an item that `.item` gives several providers.

    Raises:
        DataError: a file or field is missing, a field is of another type, an item of `.item` has several providers, or
            no line is an interaction.
    """
    path = choose_file(source, "*.inter", "*.inter.gz")
    fields = _header(path)
    for name, field in columns.names.items():
        if name != "provider_id":
            _check_field(fields, field, name, where=path)
    take = {name: field for name, field in columns.names.items() if field in fields}
    table = scan_fields(path, list(fields), take, separator="\t", header=True)
    unusable: tuple[LeftOut, ...] = ()
    conflicts = 0
    if "provider_id" in take:
        _check_field(fields, columns.provider, "provider_id", where=path)
    else:
        providers, unusable, conflicts = _item_providers(path, fields, columns, on_conflict)
        table = table.join(providers, on="item_id", how="left")
    lines = table.select(
        *columns.names,
        "row",
        left_out=why_left_out(
            (WRONG_FIELDS, ~pl.col("fields_fit")),
            *text_id_checks("user_id", "item_id"),
            (BAD_TIME, ~pl.col("timestamp").cast(pl.Float64, strict=False).is_finite()),
            ("no provider", pl.col("provider_id").fill_null("") == ""),
            *text_id_checks("provider_id"),
        ),
    )
    staged = stage_interactions(lines, path, folder, side=unusable, conflicts=conflicts)
    plain = plain_columns(staged.table, where=path, time_column=columns.timestamp)
    typed = staged.table.select(*(expression.alias(name) for name, expression in plain.items()), "row")
    return dataclasses.replace(staged, table=typed)


def _header(path: Path) -> dict[str, str]:
    """Field -> type, in the order of the file."""
    names = first_line(path).split("\t")
    fields = dict(name.rpartition(":")[::2] for name in names)
    if len(fields) != len(names) or "" in fields:
        raise DataError(f"{path}: the first line is {names}, expected different field:type names separated by tabs")
    return fields


def _check_field(fields: dict[str, str], field: str, name: str, *, where: Path) -> None:
    """Make sure that a field is there and of a type that fits its use."""
    if field not in fields:
        flag = f"--{name.removesuffix('_id')}-column"
        raise DataError(f"{where}: field {field} is missing, found {list(fields)}; name the right one with {flag}")
    if fields[field] not in _TYPES[name]:
        raise DataError(
            f"{where}: field {field} is of type {fields[field]}, expected {' or '.join(_TYPES[name])}; name another "
            f"with --{name.removesuffix('_id')}-column"
        )


def _item_providers(
    path: Path, inter_fields: dict[str, str], columns: Columns, on_conflict: OnProviderConflict
) -> tuple[pl.LazyFrame, tuple[LeftOut, ...], int]:
    """item_id and provider_id from the `.item` file; its unusable lines; its items with several providers."""
    name = path.name.removesuffix(".gz").removesuffix(".inter") + ".item"
    items = next((file for file in (path.with_name(name), path.with_name(f"{name}.gz")) if file.exists()), None)
    if items is None:
        raise DataError(
            f"{path}: field {columns.provider} is missing, found {list(inter_fields)}, and there is no {name} "
            "beside it; name the right field with --provider-column"
        )
    fields = _header(items)
    _check_field(fields, columns.item, "item_id", where=items)
    _check_field(fields, columns.provider, "provider_id", where=items)
    take = {"item_id": columns.item, "provider_id": columns.provider}
    with readable_errors(items):
        table = scan_fields(items, list(fields), take, separator="\t", header=True).collect(engine="streaming").lazy()
        fits = pl.col("fields_fit") & (pl.col("item_id") != "")
        rows, first = table.filter(~fits).select(pl.len(), pl.col("row").min()).collect().row(0)
        pairs = table.filter(fits & (pl.col("provider_id") != ""))
        providers, conflicts = one_provider_each(pairs, on_conflict=on_conflict, where=items)
    return providers, unusable_lines(items, rows, first), conflicts
