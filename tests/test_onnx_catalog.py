"""What a catalog refuses to be read from."""

from __future__ import annotations

import contextlib

import numpy as np
import pyarrow as pa
import pytest

from ipsrec_onnx.catalog import catalog_from_tables, catalog_to_table, table_from_text, table_to_text
from ipsrec_onnx.errors import DataError


def items(**columns: object) -> pa.Table:
    return pa.table({"item_id": [10, 11, 12], "provider_index": [1, 0, 2], "popularity": [5, 0, 7]} | columns)


PROVIDERS = pa.table({"provider_id": ["a", "b"]})


@pytest.mark.parametrize("integer", [pa.int8(), pa.uint32(), pa.int64()])
def test_numbers_of_any_integer_type_are_read(integer):
    columns = {name: pa.array(items()[name].to_pylist(), integer) for name in ("provider_index", "popularity")}
    catalog = catalog_from_tables(items(**columns), PROVIDERS)
    assert catalog.item_provider.tolist() == [0, 1, 0, 2] and catalog.item_provider.dtype == np.int32
    assert catalog.popularity.tolist() == [0, 5, 0, 7] and catalog.popularity.dtype == np.int64


@pytest.mark.parametrize(
    ("column", "values", "message"),
    [
        ("provider_index", [1, 0, 2**40], "column provider_index: a number does not fit into int32"),
        ("provider_index", [1, 0, -1], "a provider_index lies outside"),
        ("provider_index", [1, 0, 3], "a provider_index lies outside"),
        ("provider_index", [1, None, 2], "column provider_index: found int64 with 1 nulls, expected integers"),
        ("provider_index", ["1", "0", "2"], "column provider_index: found string"),
        ("popularity", [1.5, 0.0, 2.0], "column popularity: found double"),
        ("popularity", [1, None, 2], "column popularity: found int64 with 1 nulls"),
        ("popularity", pa.array([1, 2, 2**63], pa.uint64()), "column popularity: a number does not fit into int64"),
        ("popularity", [1, -2, 2], "popularity -2, expected 0 or more"),
        ("popularity", [[1], [], []], "column popularity: found list"),
    ],
)
def test_numbers_that_would_become_others_are_refused(column, values, message):
    with pytest.raises(DataError, match=message):
        catalog_from_tables(items(**{column: values}), PROVIDERS)


def test_both_id_tables_can_be_built_before_threads_share_them():
    catalog = catalog_from_tables(items(), PROVIDERS)
    catalog.build_tables()
    assert {"item_table", "provider_table"} <= set(vars(catalog))
    with pytest.raises(DataError, match=r"provider id: .*twice"):
        catalog_from_tables(items(), pa.table({"provider_id": ["a", "a"]})).build_tables()


def test_text_that_is_cut_or_changed_anywhere_gives_a_value_error_or_a_table(rng):
    text = table_to_text(catalog_to_table(catalog_from_tables(items(), PROVIDERS))[0])
    assert table_from_text(text, most_bytes=1 << 20).num_rows == 3
    for length in range(len(text)):
        with contextlib.suppress(ValueError):
            table_from_text(text[:length], most_bytes=1 << 20)
    for place in range(len(text)):
        changed = text[:place] + chr(rng.integers(32, 127)) + text[place + 1 :]
        with contextlib.suppress(ValueError):
            table_from_text(changed, most_bytes=1 << 20)


def test_text_whose_strings_are_no_utf8_is_refused():
    offsets = pa.py_buffer(np.array([0, 2], np.int64))
    broken = pa.Array.from_buffers(pa.large_string(), 1, [None, offsets, pa.py_buffer(b"\xff\xfe")])
    with pytest.raises(ValueError, match=r"no whole Arrow stream: .*UTF8"):
        table_from_text(table_to_text(pa.table({"provider_id": broken})), most_bytes=1 << 20)
