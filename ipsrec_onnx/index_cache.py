"""Item tables kept on disk between jobs: built once for a model and its allow and deny lists, then memory-mapped.

An entry is a folder, one .npy file an array and `index.json`, written whole or not at all. Its name is a fingerprint of
all that the table is made from, so that a stale entry cannot be met. The embeddings and providers themselves are not
stored: they come with the model. An entry whose files do not fit its `index.json` is an error and not rebuilt: a disk
that loses bytes should be heard of. Entries are never removed here; a folder may be deleted at any time.
"""

from __future__ import annotations

import hashlib
import json
import os
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ipsrec_kernels.check import read_only
from ipsrec_kernels.item_table import TABLE_VERSION, ItemTable, build_item_table, choose_path, pad_dims, panel_items
from ipsrec_onnx.atomic import atomic_folder
from ipsrec_onnx.errors import DataError

_MARKER = "index.json"
_FROM_THE_MODEL = ("item_embeddings", "item_provider", "dim")


def cached_item_table(
    folder: str | Path,
    item_embeddings: npt.NDArray[np.float32],
    *,
    item_provider: npt.NDArray[np.int32],
    allowed: npt.NDArray[np.bool_] | None,
    items: range | None = None,
) -> ItemTable:
    """Give the table that build_item_table would make, from the folder if it is there; else build and store it.

    Args:
        folder: where entries lie; made if its parent is there.
        item_embeddings: (num_items + 1, dim) float32.
        item_provider: (num_items + 1,) int32.
        allowed: (num_items + 1,) bool; None allows all.
        items: a shard of the catalog; None for all of it.

    Raises:
        ValueError: as build_item_table.
        DataError: the folder cannot be made or written to, or an entry in it is broken.
    """
    entry = Path(folder) / f"items-{fingerprint(item_embeddings, item_provider, allowed, items)[:32]}"
    if entry.is_dir():
        return _load(entry, item_embeddings, item_provider)
    if os.path.lexists(entry):
        raise DataError(f"index cache entry {entry} is a file or a broken link, expected a folder; move it elsewhere")
    table = build_item_table(item_embeddings, item_provider, allowed=allowed, items=items)
    try:
        Path(folder).mkdir(exist_ok=True)
    except OSError as error:
        raise DataError(
            f"index cache {folder}: cannot be made ({error.strerror}); name a folder whose parent is there"
        ) from error
    _store(table, entry)
    # What was built is memory, and the shards of a catalog together may be more than there is.
    return table if items is None else _load(entry, item_embeddings, item_provider)


def fingerprint(
    item_embeddings: npt.NDArray[np.float32],
    item_provider: npt.NDArray[np.int32],
    allowed: npt.NDArray[np.bool_] | None,
    items: range | None = None,
) -> str:
    """Sha256 of everything that decides what is in a table, this CPU's way of scanning included."""
    path = choose_path(item_embeddings.shape[1], None)
    rows, shard = slice(None), []
    if items is not None:  # how long its list of providers is depends on the whole catalog
        rows, shard = slice(items.start, items.stop), [items.start, items.stop, int(item_provider.max())]
    facts = [TABLE_VERSION, path, panel_items(path), item_embeddings.shape, *shard]
    digest = hashlib.sha256(json.dumps(facts).encode())
    everything = np.ones(len(item_embeddings), np.bool_) if allowed is None else allowed
    for array in (item_embeddings[rows], item_provider[rows], everything[rows]):
        contiguous = np.ascontiguousarray(array)
        digest.update(f"{contiguous.dtype} {contiguous.shape}".encode())
        digest.update(contiguous.view(np.uint8).data)
    return digest.hexdigest()


def _store(table: ItemTable, entry: Path) -> None:
    """Write an entry; one that another process has stored meanwhile stays: a third may be reading it."""
    try:
        with atomic_folder(entry, marker=_MARKER) as temporary:
            described: dict[str, Any] = {}
            for name, array in table._asdict().items():
                if name not in _FROM_THE_MODEL:
                    np.save(temporary / f"{name}.npy", array)
                    described[name] = _describe(array)
            (temporary / _MARKER).write_text(json.dumps(described, indent=1), encoding="utf-8")
    except DataError:
        if not entry.is_dir():
            raise


def _describe(array: npt.NDArray[Any]) -> dict[str, Any]:
    contiguous = np.ascontiguousarray(array)
    return {"dtype": str(array.dtype), "shape": list(array.shape), "crc32": zlib.crc32(contiguous.view(np.uint8).data)}


def _load(entry: Path, item_embeddings: npt.NDArray[np.float32], item_provider: npt.NDArray[np.int32]) -> ItemTable:
    """Map an entry's arrays, each checked against its description: kernels trust what they are given."""
    mend = "delete that folder to have it built again"
    try:
        described = json.loads((entry / _MARKER).read_text(encoding="utf-8"))
        arrays = {
            name: read_only(np.load(entry / f"{name}.npy", mmap_mode="r", allow_pickle=False).view(np.ndarray))
            for name in ItemTable._fields
            if name not in _FROM_THE_MODEL
        }
    except (OSError, ValueError, EOFError) as error:
        raise DataError(f"index cache entry {entry} cannot be read ({error}); {mend}") from error
    for name, array in arrays.items():
        if not isinstance(described, dict) or _describe(array) != described.get(name):
            raise DataError(f"index cache entry {entry}: {name}.npy is not what was stored; {mend}")
    return ItemTable(
        item_embeddings=pad_dims(read_only(np.ascontiguousarray(item_embeddings))),
        item_provider=read_only(np.ascontiguousarray(item_provider)),
        dim=item_embeddings.shape[1],
        **arrays,
    )
