"""From Arrow columns of lists to histories of indices: the same whatever the columns' types, slices and chunks."""

import naive
import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ipsrec_kernels.pack import pack_histories
from ipsrec_onnx.catalog import Catalog
from ipsrec_onnx.histories import map_histories
from ipsrec_onnx.id_lists import id_lists
from ipsrec_onnx.ids import find_ids

BOUNDED = settings(max_examples=60, deadline=None, derandomize=True)
ITEMS = {pa.int64(): [70, -5, 2**62, 0, 9], pa.large_string(): ["", "b", "b\0", "a long item id", "ä"]}
PROVIDERS = {pa.int64(): [1, 2], pa.large_string(): ["p", "q"]}
KINDS = sorted(ITEMS, key=str)
UNKNOWN = {pa.int64(): -1, pa.large_string(): "unknown"}
ITEM_PROVIDER = [0, 1, 1, 2, 0, 2]

# How a file may hold lists of one kind: the value types that bring no loss for these ids, in each list type.
VALUE_TYPES = {
    pa.int64(): [pa.int64(), pa.dictionary(pa.int8(), pa.int64()), pa.dictionary(pa.uint16(), pa.int64())],
    pa.large_string(): [pa.string(), pa.large_string(), pa.dictionary(pa.int32(), pa.string())],
}
LIST_TYPES = [pa.list_, pa.large_list]
VARIANTS = [
    pytest.param(kind, value, make, id=f"{kind}-{value}-{make.__name__}")
    for kind in KINDS
    for value in VALUE_TYPES[kind]
    for make in LIST_TYPES
]


def catalog_of(kind):
    num_items = len(ITEMS[kind])
    return Catalog(
        item_ids=pa.array(ITEMS[kind], kind),
        provider_ids=pa.array(PROVIDERS[kind], kind),
        item_provider=np.array(ITEM_PROVIDER, np.int32),
        popularity=np.zeros(num_items + 1, np.int64),
    )


def column_of(lists, value_type, make_list):
    """Dictionary values cannot be given as Python lists everywhere: cast the values, keep the offsets."""
    plain = value_type.value_type if pa.types.is_dictionary(value_type) else value_type
    column = pa.array(lists, make_list(plain))
    if plain == value_type:
        return column
    values = column.values.dictionary_encode().cast(value_type)
    of_lists = pa.ListArray if make_list is pa.list_ else pa.LargeListArray
    return of_lists.from_arrays(column.offsets, values)


def read(column, kind):
    return id_lists(column, kind=kind, where="file, column")


def mapped_lists(mapped):
    known = mapped.known
    return naive.unragged(known.items, known.offsets), naive.unragged(known.providers, known.offsets)


@pytest.mark.parametrize(("kind", "value_type", "make_list"), VARIANTS)
@BOUNDED
@given(data=st.data())
def test_histories_are_mapped_as_a_loop_maps_them(kind, value_type, make_list, data):
    item, provider = (st.sampled_from([*ids[kind], UNKNOWN[kind]]) for ids in (ITEMS, PROVIDERS))
    lists = data.draw(st.lists(st.lists(st.tuples(item, provider), max_size=6), max_size=6))
    start = data.draw(st.integers(0, len(lists)))
    both = [[[pair[at] for pair in one] for one in lists] for at in (0, 1)]
    items, providers = (read(column_of(one, value_type, make_list).slice(start), kind) for one in both)
    want_items, want_providers, unknown, lost = naive.map_histories(
        *(one[start:] for one in both), ITEMS[kind], PROVIDERS[kind]
    )
    mapped = map_histories(items, providers, catalog_of(kind))
    assert mapped_lists(mapped) == (want_items, want_providers)
    assert (mapped.unknown_items.tolist(), mapped.num_unknown_providers) == (unknown, lost)
    assert mapped.known.items.dtype == mapped.known.providers.dtype == np.int32

    without = map_histories(items, None, catalog_of(kind))
    assert mapped_lists(without) == (want_items, [[ITEM_PROVIDER[item] for item in one] for one in want_items])
    assert without.num_unknown_providers == 0


@pytest.mark.parametrize(("kind", "value_type", "make_list"), VARIANTS)
def test_chunks_give_the_same_bytes_as_the_whole(rng, kind, value_type, make_list):
    ids = [*ITEMS[kind], UNKNOWN[kind]]
    lists = [[ids[at] for at in rng.integers(0, len(ids), size)] for size in rng.integers(0, 40, 200)]
    column, catalog = column_of(lists, value_type, make_list), catalog_of(kind)

    def packed(some):
        known = map_histories(read(some, kind), None, catalog).known
        rows = np.arange(len(known.lengths))
        shape = {"bucket_len": 20, "batch_size": max(1, len(rows))}
        both = (pack_histories(stream, known.offsets, rows, **shape)[0] for stream in (known.items, known.providers))
        return np.stack(list(both), axis=1)[: len(rows)]

    whole = packed(column)
    for chunk_rows in (1, 7, 64, 199):
        parts = [packed(column.slice(first, chunk_rows)) for first in range(0, 200, chunk_rows)]
        assert np.concatenate(parts).tobytes() == whole.tobytes()


@pytest.mark.parametrize("kind", KINDS, ids=str)
@pytest.mark.parametrize("length", [0, 19, 20, 21])
def test_newest_keeps_exactly_max_len(kind, length):
    known = map_histories(read(pa.array([ITEMS[kind][:1] * length + ITEMS[kind][1:2]]), kind), None, catalog_of(kind))
    newest = known.known.newest(20)
    assert newest.items.tolist() == ([1] * length + [2])[-20:]
    assert newest.offsets.tolist() == [0, min(length + 1, 20)]


def test_a_catalog_that_knows_nothing_leaves_empty_histories():
    catalog = Catalog(pa.array([], pa.int64()), pa.array([], pa.int64()), np.zeros(1, np.int32), np.zeros(1, np.int64))
    mapped = map_histories(read(pa.array([[1, 2], [], [3]]), pa.int64()), None, catalog)
    assert mapped_lists(mapped) == ([[], [], []], [[], [], []])
    assert mapped.unknown_items.tolist() == [0, 1, 2]


def test_nulls_are_seen_in_lists_and_in_dictionaries():
    plain = pa.array([[70, None], None, [9], []])
    words = pa.DictionaryArray.from_arrays(pa.array([0, 1, 0, None], pa.int32()), pa.array([70, None]))
    in_words = pa.ListArray.from_arrays(pa.array([0, 2, 3, 4]), words)
    for column, with_null, null_lists in (
        (plain, [True, False, False, False], [False, True, False, False]),
        (in_words, [True, False, True], [False, False, False]),
    ):
        lists = read(column, pa.int64())
        assert lists.lists_with_null().tolist() == with_null
        assert lists.null_lists.tolist() == null_lists
        kept = lists.keep(~lists.lists_with_null())
        found = find_ids(catalog_of(pa.int64()).item_table, kept.ids)
        assert found.tolist() == ([5] if column is plain else [1])


def test_a_short_dictionary_is_looked_up_word_by_word_and_a_long_one_is_not():
    words = pa.array(["b", "ä", "unknown"])
    indices = pa.array([2, 0, 1, 0, 0], pa.int16())
    column = pa.ListArray.from_arrays(pa.array([0, 5]), pa.DictionaryArray.from_arrays(indices, words))
    short, long = read(column, pa.large_string()), read(column.slice(0, 0), pa.large_string())
    assert pa.types.is_dictionary(short.ids.type)
    assert not pa.types.is_dictionary(long.ids.type)
    assert find_ids(catalog_of(pa.large_string()).item_table, short.ids).tolist() == [0, 2, 5, 2, 2]
    kept = short.keep(np.array([True]))
    assert find_ids(catalog_of(pa.large_string()).item_table, kept.ids).tolist() == [0, 2, 5, 2, 2]


def test_an_id_beyond_int64_is_seen_in_a_dictionary():
    words = pa.array([70, 2**63], pa.uint64())
    column = pa.ListArray.from_arrays(
        pa.array([0, 1, 3]), pa.DictionaryArray.from_arrays(pa.array([0, 1, 0], pa.int8()), words)
    )
    lists = read(column, pa.int64())
    assert lists.too_large.tolist() == [False, True]
    assert lists.ids.to_pylist() == [70, None, 70]
