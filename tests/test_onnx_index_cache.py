"""Item tables on disk: equal to built ones, keyed by everything they depend on, loud when broken."""

from __future__ import annotations

import json

import numpy as np
import pytest

from ipsrec_kernels.item_table import build_item_table
from ipsrec_kernels.topk import retrieve
from ipsrec_onnx import index_cache
from ipsrec_onnx.errors import DataError
from ipsrec_onnx.index_cache import cached_item_table, fingerprint

PLAIN = {"seen": None, "history": None, "terms": None, "candidates": None, "max_per_provider": 2}


@pytest.fixture
def parts(rng):
    items = rng.standard_normal((400, 12)).astype(np.float32)
    return items, rng.integers(0, 30, 400).astype(np.int32), rng.random(400) < 0.8


def cached(folder, parts):
    return cached_item_table(folder, parts[0], item_provider=parts[1], allowed=parts[2])


def test_a_stored_table_is_the_built_one_and_finds_the_same(tmp_path, rng, parts, monkeypatch):
    first = cached(tmp_path / "cache", parts)
    monkeypatch.setattr(index_cache, "build_item_table", None)  # from here on it must come from the folder
    second = cached(tmp_path / "cache", parts)
    users = rng.standard_normal((5, 12)).astype(np.float32)
    for table in (first, second):
        built = build_item_table(parts[0], parts[1], allowed=parts[2])
        for mine, theirs in zip(table, built, strict=True):
            np.testing.assert_array_equal(mine, theirs)
        for mine, theirs in zip(
            retrieve(table, users, top_k=9, **PLAIN), retrieve(built, users, top_k=9, **PLAIN), strict=True
        ):
            assert mine.tobytes() == theirs.tobytes()
    assert not second.panels.flags.writeable


def test_a_change_of_any_part_is_another_entry(tmp_path, parts):
    items, providers, allowed = parts
    other_items, other_providers, other_allowed = items.copy(), providers.copy(), ~allowed
    other_items[3, 5] += 1.0
    other_providers[9] += 1
    every = np.ones(400, np.bool_)
    variants = [
        parts,
        (other_items, providers, allowed),
        (items, other_providers, allowed),
        (items, providers, other_allowed),
        (items.reshape(400, 12)[:, :8], providers, allowed),
        (items, providers, every),
    ]
    assert len({fingerprint(*one) for one in variants}) == len(variants)
    assert fingerprint(items, providers, None) == fingerprint(items, providers, every)
    for one in variants:
        cached(tmp_path, one)
    assert len(list(tmp_path.iterdir())) == len(variants)


def _cut(entry):
    panels = entry / "panels.npy"
    panels.write_bytes(panels.read_bytes()[:-100])


def _flip(entry):
    data = bytearray((entry / "item_at.npy").read_bytes())
    data[-1] ^= 0x40
    (entry / "item_at.npy").write_bytes(data)


def _rename(entry):
    described = json.loads((entry / "index.json").read_text())
    described["units"] = described.pop("block_units")
    (entry / "index.json").write_text(json.dumps(described))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (_cut, "cannot be read"),
        (_flip, "item_at.npy is not what was stored"),
        (_rename, "block_units.npy is not what was stored"),
        (lambda entry: (entry / "item_at.npy").unlink(), "cannot be read"),
        (lambda entry: (entry / "index.json").unlink(), "cannot be read"),
        (lambda entry: (entry / "index.json").write_text("{"), "cannot be read"),
        (lambda entry: (entry / "index.json").write_text("[]"), "is not what was stored"),
    ],
    ids=["cut", "flipped bit", "renamed", "missing array", "missing description", "broken description", "a list"],
)
def test_a_broken_entry_is_one_clear_error(tmp_path, parts, damage, message):
    cached(tmp_path, parts)
    (entry,) = tmp_path.iterdir()
    damage(entry)
    with pytest.raises(DataError, match=f"{message}.*delete that folder to have it built again"):
        cached(tmp_path, parts)


def test_something_else_of_that_name_is_never_replaced(tmp_path, parts):
    entry = tmp_path / f"items-{fingerprint(*parts)[:32]}"
    entry.write_text("mine")
    with pytest.raises(DataError, match="is a file or a broken link, expected a folder; move it elsewhere"):
        cached(tmp_path, parts)
    assert entry.read_text() == "mine"


def test_a_cache_folder_that_cannot_be_made_is_said(tmp_path, parts):
    with pytest.raises(DataError, match=r"index cache .* cannot be made"):
        cached(tmp_path / "a" / "b", parts)
    (tmp_path / "file").touch()
    with pytest.raises(DataError, match=r"index cache .* cannot be made"):
        cached(tmp_path / "file", parts)


def test_a_bad_model_is_refused_before_anything_is_stored(tmp_path, parts):
    parts[0][7, 3] = np.nan
    with pytest.raises(ValueError, match=r"item_embeddings\[7\] has NaN"):
        cached(tmp_path / "cache", parts)
    assert not (tmp_path / "cache").exists()


def test_an_entry_that_another_process_stored_meanwhile_is_left_to_its_readers(tmp_path, parts, monkeypatch):
    def build_while_another_stores(*arguments, **named):
        monkeypatch.undo()
        cached(tmp_path, parts)
        (entry,) = tmp_path.iterdir()
        stored.append((entry / "panels.npy").stat().st_ino)
        return build_item_table(*arguments, **named)

    stored = []
    monkeypatch.setattr(index_cache, "build_item_table", build_while_another_stores)
    cached(tmp_path, parts)
    (entry,) = tmp_path.iterdir()
    assert stored == [(entry / "panels.npy").stat().st_ino]
