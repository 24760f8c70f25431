"""Interactions in, dataset folder out: filters, orders, and numbers the items by provider."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from ipsrec_onnx.atomic import atomic_folder
from ipsrec_onnx.catalog import Catalog, catalog_to_table
from ipsrec_onnx.dataset import CATALOG_FILE, FORMAT_VERSION, HISTORIES_FILE, INFO_FILE, PROVIDERS_FILE
from ipsrec_onnx.errors import DataError
from ipsrec_onnx.staging import staged
from ipsrec_onnx.versions import package_version
from ipsrec_train.codes import CodedInteractions, code_interactions, provider_of_items
from ipsrec_train.fingerprint import Fingerprint
from ipsrec_train.format_tmall import Action
from ipsrec_train.formats import InputFormat, read_interactions
from ipsrec_train.history_writer import write_histories
from ipsrec_train.interactions import LeftOut
from ipsrec_train.item_providers import OnProviderConflict
from ipsrec_train.k_core import Bounds, Core, k_core
from ipsrec_train.repeats import merge_repeats as merge

# Inside the dataset folder while it is made: where the dataset has room, so has this.
_SCRATCH_FOLDER = "scratch"


@dataclass(frozen=True)
class Counts:
    """How much of everything."""

    users: int
    items: int
    providers: int
    interactions: int


@dataclass(frozen=True)
class PrepareReport:
    """What prepare did.

    Attributes:
        dataset: the folder that was written.
        left_out: what was left out of the input before anything was counted.
        before: counts of the rest.
        after: counts of the dataset.
        k_core_rounds: how often the filter removed something.
        provider_conflicts: items seen with several providers, settled by `last`.
        fingerprint: hexadecimal SHA-256 of the dataset's content.
    """

    dataset: Path
    left_out: tuple[LeftOut, ...]
    before: Counts
    after: Counts
    k_core_rounds: int
    provider_conflicts: int
    fingerprint: str

    def to_json(self) -> dict[str, Any]:
        """The report as JSON values."""
        return asdict(self) | {"dataset": str(self.dataset)} | _left_out_json(self.left_out)


@staged(inputs=["source"], outputs={"output": INFO_FILE})
def prepare(
    source: str | Path,
    output: str | Path,
    *,
    input_format: InputFormat = "generic",
    user_column: str | None = None,
    item_column: str | None = None,
    provider_column: str | None = None,
    timestamp_column: str | None = None,
    action: Action | None = None,
    merge_repeats: bool = False,
    min_user_interactions: int = 5,
    min_item_interactions: int = 5,
    max_user_interactions: int | None = None,
    max_item_interactions: int | None = None,
    on_provider_conflict: OnProviderConflict = "error",
    overwrite: bool = False,
    report_stage: Callable[[str], None] | None = None,
) -> PrepareReport:
    """Make a dataset folder from interactions, one row each in any order.

    Users and items outside the bounds are removed until nothing changes (k_core). Each user's interactions are ordered
    by time; equal times keep the order of the input: rows as the file has them, several files in the order of their
    names. Leave-one-out is by position in that order (ipsrec_onnx.dataset.split_histories).

    The input streams: memory holds every id once, and a bounded number of interactions. The files written depend on
    the input and the options alone, and the fingerprint on the content alone.

    Args:
        source: a file or folder in the input format; for `generic`, a Parquet or CSV file of interactions, or a folder
            of them (find_interactions).
        output: the dataset folder to make.
        input_format: how the input is laid out (docs/prepare.md). What the format of a public file cannot use is left
            out and counted; `generic` refuses it.
        user_column: whose interaction it is; int64 or string ids, no nulls. Likewise the next two. The four are for
            `generic` (user_id, item_id, provider_id, timestamp unless given) and `recbole` (seller_id for the
            provider) alone.
        item_column: what was taken.
        provider_column: who offers the item. A null is refused: a history without a provider could not be scored.
        timestamp_column: when; an integer, float, or date, in any unit.
        action: for `tmall` alone, which actions are interactions: `buy` (unless given), `click`, or `all`.
        merge_repeats: keep only the latest interaction of a user with an item.
        min_user_interactions: users with fewer are removed; 1 keeps all.
        min_item_interactions: items with fewer are removed; 1 keeps all.
        max_user_interactions: users with more are removed.
        max_item_interactions: items with more are removed.
        on_provider_conflict: an item seen with several providers is refused (`error`), or gets the provider of its
            latest interaction everywhere (`last`). All of the input counts, also what the filter removes later.
        overwrite: replace an existing dataset folder.
        report_stage: is told what is being done, in a few words.

    Raises:
        DataError: an input that is not as described, nothing left by the filter, or an output that cannot be written;
            the message says where, what was found, and how to mend it. Nothing is left at `output` then.
    """
    user_bounds = _bounds("user", min_user_interactions, max_user_interactions)
    item_bounds = _bounds("item", min_item_interactions, max_item_interactions)
    say = report_stage or (lambda _: None)
    with atomic_folder(output, marker=INFO_FILE, overwrite=overwrite) as folder:
        _refuse_nested(Path(source), Path(output))
        say("reading and checking")
        scratch = folder / _SCRATCH_FOLDER
        scratch.mkdir()
        named = {"user": user_column, "item": item_column, "provider": provider_column, "timestamp": timestamp_column}
        found = read_interactions(
            Path(source),
            scratch,
            input_format=input_format,
            columns={use: column for use, column in named.items() if column is not None},
            action=action,
            on_conflict=on_provider_conflict,
        )
        coded = code_interactions(found.table, scratch / "codes.parquet", where=found.source)
        item_provider, conflicts = provider_of_items(coded, on_conflict=on_provider_conflict, where=found.source)
        left_out = found.left_out
        if merge_repeats:
            say("merging repeats")
            merged = merge(coded, scratch / "merged.parquet")
            left_out += (LeftOut("repeat merged", coded.num_rows - merged.num_rows, None),)
            coded = merged

        say("filtering")
        core = k_core(
            coded.user_item_batches,
            len(coded.user_ids),
            len(coded.item_ids),
            user_bounds=user_bounds,
            item_bounds=item_bounds,
        )
        if not core.interactions:
            raise DataError(
                f"{found.source}: nothing is left of {coded.num_rows} interactions after the filter; lower "
                "--min-user-interactions or --min-item-interactions, or raise the upper bounds"
            )

        say("ordering and writing")
        fingerprint = Fingerprint()
        kept, catalog_provider, provider_ids = _number_by_provider(coded, core, item_provider)
        item_index = np.zeros(len(coded.item_ids), np.int32)
        item_index[kept] = np.arange(1, len(kept) + 1)
        popularity = write_histories(
            folder / HISTORIES_FILE,
            coded,
            core,
            item_index=item_index,
            item_provider=item_provider,
            fingerprint=fingerprint,
        )
        catalog = Catalog(coded.item_ids.take(pa.array(kept)), provider_ids, catalog_provider, popularity)
        fingerprint.add_ids("items", catalog.item_ids)
        fingerprint.add_ids("providers", catalog.provider_ids)
        fingerprint.add_numbers("item providers", catalog.item_provider)
        for name, part in zip((CATALOG_FILE, PROVIDERS_FILE), catalog_to_table(catalog), strict=True):
            pq.write_table(part, folder / name, compression="zstd")
        shutil.rmtree(scratch)

        report = PrepareReport(
            dataset=Path(output),
            left_out=left_out,
            before=Counts(len(coded.user_ids), len(coded.item_ids), len(coded.provider_ids), coded.num_rows),
            after=Counts(int(core.users.sum()), catalog.num_items, catalog.num_providers, core.interactions),
            k_core_rounds=core.rounds,
            provider_conflicts=conflicts + found.provider_conflicts,
            fingerprint=fingerprint.hexdigest(),
        )
        info = {
            "format_version": FORMAT_VERSION,
            "created_by": f"ipsrec-onnx {package_version('ipsrec-onnx')}",
            "source": Path(source).name,
            "input": {
                "format": input_format,
                "action": (action or "buy") if input_format == "tmall" else None,
                "merge_repeats": merge_repeats,
            },
            **_info(report, coded, users=user_bounds, items=item_bounds, on=on_provider_conflict),
        }
        (folder / INFO_FILE).write_text(json.dumps(info, indent=2) + "\n", encoding="utf-8")
    return report


def _bounds(what: str, minimum: int, maximum: int | None) -> Bounds:
    if minimum < 1:
        raise DataError(f"min_{what}_interactions is {minimum}, expected 1 (keeps all) or more")
    if maximum is not None and maximum < minimum:
        raise DataError(
            f"max_{what}_interactions is {maximum}, below min_{what}_interactions {minimum}: none could stay; raise it"
        )
    return Bounds(minimum, maximum)


def _refuse_nested(source: Path, output: Path) -> None:
    """Overwriting deletes the old output: never with the input in it. And what lies in an input folder is read."""
    if source.resolve().is_relative_to(output.resolve()):
        raise DataError(f"input {source} lies in the output {output}, which would be replaced; choose another output")
    if output.resolve().is_relative_to(source.resolve()):
        raise DataError(f"output {output} lies in the input {source}, whose files are read; choose another output")


def _number_by_provider(
    coded: CodedInteractions, core: Core, item_provider: npt.NDArray[np.uint32]
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int32], pa.Array]:
    """Number what stays: providers by id, items by provider and then by id.

    Returns:
        kept: (num_items,) item code of item_index 1, 2, ...
        catalog_provider: (num_items + 1,) int32 provider_index of each item_index; 0 for PADDING.
        provider_ids: (num_providers,) id of provider_index 1, 2, ...
    """
    kept = np.flatnonzero(core.items)
    kept = kept[np.argsort(item_provider[kept], kind="stable")]  # codes ascend with the ids
    providers, provider_row = np.unique(item_provider[kept], return_inverse=True)
    catalog_provider = np.zeros(len(kept) + 1, np.int32)
    catalog_provider[1:] = provider_row + 1
    return kept, catalog_provider, coded.provider_ids.take(pa.array(providers))


def _info(report: PrepareReport, coded: CodedInteractions, *, users: Bounds, items: Bounds, on: str) -> dict[str, Any]:
    """What dataset.json says of the content. No time and no folder names: the same input gives the same bytes."""
    return {
        "filters": {
            "min_user_interactions": users.minimum,
            "max_user_interactions": users.maximum,
            "min_item_interactions": items.minimum,
            "max_item_interactions": items.maximum,
        },
        **_left_out_json(report.left_out),
        "before": asdict(report.before),
        "after": asdict(report.after),
        "k_core_rounds": report.k_core_rounds,
        "provider_conflicts": {"settled_by": on, "items": report.provider_conflicts},
        "id_types": {
            "user_id": _type_name(coded.user_ids),
            "item_id": _type_name(coded.item_ids),
            "provider_id": _type_name(coded.provider_ids),
        },
        "fingerprint": report.fingerprint,
    }


def _left_out_json(left_out: tuple[LeftOut, ...]) -> dict[str, Any]:
    """Rows by reason, and where the first one is."""
    return {
        "left_out": {what.reason: what.rows for what in left_out},
        "left_out_first": {what.reason: what.first for what in left_out if what.first is not None},
    }


def _type_name(ids: pa.Array) -> str:
    return "int64" if pa.types.is_int64(ids.type) else "string"
