import struct

import naive
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ipsrec_kernels.id_table import Int64IdTable, StringIdTable, _home, _mix, hash_string

INT64 = np.iinfo(np.int64)
BOUNDED = settings(max_examples=60, deadline=None, derandomize=True)


def int_array(ids):
    return np.array(ids, np.int64)


@BOUNDED
@given(
    ids=st.lists(st.integers(INT64.min, INT64.max) | st.integers(-5, 5), unique=True, max_size=40),
    others=st.lists(st.integers(INT64.min, INT64.max) | st.integers(-5, 5), max_size=40),
)
def test_int64_table_finds_what_a_dict_finds(ids, others):
    wanted = ids + others
    found = Int64IdTable.build(int_array(ids)).find(int_array(wanted))
    assert found.dtype == np.int32
    np.testing.assert_array_equal(found, naive.find_ids(ids, wanted))


@pytest.mark.parametrize("stride", [1, 2**20, 2**40], ids=["consecutive", "low bits equal", "low 40 bits equal"])
def test_int64_table_finds_many_regular_ids(stride):
    ids = np.arange(100_000, dtype=np.int64) * stride - 7
    table = Int64IdTable.build(ids)
    np.testing.assert_array_equal(table.find(ids), np.arange(1, 100_001))
    assert not table.find(ids + 1)[:-1].any() or stride == 1
    assert len(table.slots) >= 2 * len(ids)


@BOUNDED
@given(
    ids=st.lists(st.text(max_size=20), unique=True, max_size=30),
    others=st.lists(st.text(max_size=20), max_size=30),
    before=st.binary(max_size=9),
    after=st.binary(max_size=9),
)
def test_string_table_finds_what_a_dict_finds(ids, others, before, after):
    wanted = others + ids
    table = StringIdTable.build(*naive.string_arrays(ids, before=before, after=after))
    found = table.find(*naive.string_arrays(wanted, before=after, after=before))
    assert found.dtype == np.int32
    np.testing.assert_array_equal(found, naive.find_ids(ids, wanted))


@pytest.mark.parametrize("length", [0, 1, 7, 8, 9, 15, 16, 17, 1000])
def test_strings_that_differ_in_one_byte_are_told_apart(length):
    ids = ["x" * length + end for end in ("", "a", "b", "\0", "\0\0")]
    table = StringIdTable.build(*naive.string_arrays(ids))
    np.testing.assert_array_equal(table.find(*naive.string_arrays(ids)), [1, 2, 3, 4, 5])
    assert table.find(*naive.string_arrays(["x" * length + "c"])) == [0]


def test_strings_of_equal_hash_are_told_apart():
    # The hash takes 8 bytes at a time, so that a second half can undo the difference of a first one.
    first = [struct.pack("<Q", word) for word in (1, 2)]
    states = [_hash_state(half) for half in first]
    second = [struct.pack("<Q", 77), struct.pack("<Q", 77 ^ states[0] ^ states[1])]
    data = np.frombuffer(first[0] + second[0] + first[1] + second[1], np.uint8)
    offsets = int_array([0, 16, 32])
    assert hash_string(data, 0, 16) == hash_string(data, 16, 32)
    assert StringIdTable.build(data, offsets).find(data, offsets).tolist() == [1, 2]
    assert StringIdTable.build(data, offsets[:2]).find(data, offsets).tolist() == [1, 0]
    with pytest.raises(ValueError, match="is there twice"):
        StringIdTable.build(np.tile(data, 2), int_array([0, 16, 32, 48]))


def _hash_state(half):
    """What the hash holds behind the first 8 of 16 bytes."""
    word = np.uint64(int.from_bytes(half, "little"))
    state = _mix(_mix(np.uint64(17)) ^ word)
    return int(state ^ (state >> np.uint64(32)))


def test_a_string_of_a_megabyte_is_found_by_all_of_its_bytes():
    long = b"abc" * 350_000
    ids = [long, long[:-1] + b"d", long[:-1], b"", b"d" + long[1:]]
    offsets = np.cumsum([0] + [len(one) for one in ids]).astype(np.int64)
    data = np.frombuffer(b"".join(ids), np.uint8)
    table = StringIdTable.build(data, offsets)
    assert table.find(data, offsets).tolist() == [1, 2, 3, 4, 5]
    assert table.find(data[1:], int_array([0, len(long) - 1])).tolist() == [0]


@pytest.mark.parametrize("count", [1, 63, 64, 65, 127, 128, 129, 500])
def test_every_row_is_looked_up_whatever_their_number(count):
    numbers = np.arange(40_000, dtype=np.int64) * 7919  # many enough that slots are asked for early
    wanted = np.where(np.arange(count) % 3 == 0, -1, numbers[-count:])
    np.testing.assert_array_equal(Int64IdTable.build(numbers).find(wanted), naive.find_ids(numbers, wanted))
    words = [f"{number:x}" for number in numbers[-1000:]]
    asked = [words[at] if at % 3 else "none" for at in range(count)]
    found = StringIdTable.build(*naive.string_arrays(words)).find(*naive.string_arrays(asked))
    np.testing.assert_array_equal(found, naive.find_ids(words, asked))


def test_a_search_goes_on_at_the_first_slot_behind_the_last():
    num_slots = 4 * 30 + 1
    last = [number for number in range(60_000) if _home(number, num_slots) >= num_slots - 2][:30]
    assert len(last) == 30
    np.testing.assert_array_equal(Int64IdTable.build(int_array(last)).find(int_array(last)), np.arange(1, 31))


def test_a_slice_of_a_string_array_finds_the_same():
    ids = [f"item {n}" for n in range(1000)]
    data, offsets = naive.string_arrays(ids)
    table = StringIdTable.build(data, offsets[300:])
    np.testing.assert_array_equal(table.find(data, offsets[500:601]), np.arange(201, 301))
    assert not table.find(data, offsets[:301]).any()


def test_an_empty_table_finds_nothing():
    nothing = naive.string_arrays([])
    assert Int64IdTable.build(int_array([])).find(int_array([0, 1])).tolist() == [0, 0]
    assert StringIdTable.build(*nothing).find(*naive.string_arrays(["", "a"])).tolist() == [0, 0]
    assert Int64IdTable.build(int_array([5])).find(int_array([])).shape == (0,)
    assert StringIdTable.build(*naive.string_arrays(["a"])).find(*nothing).shape == (0,)


def test_strided_ids_are_found():
    ids = np.arange(20, dtype=np.int64)
    assert Int64IdTable.build(ids[::2]).find(ids[::4]).tolist() == [1, 3, 5, 7, 9]


def test_a_duplicate_is_named_with_its_rows():
    with pytest.raises(ValueError, match=r"id 17 is there twice \(rows 3 and 9\)"):
        Int64IdTable.build(int_array([0, 1, 2, 17, 4, 5, 6, 7, 8, 17, 10, 17]))
    with pytest.raises(ValueError, match=r"id 'Käse' is there twice \(rows 1 and 2\)"):
        StringIdTable.build(*naive.string_arrays(["a", "Käse", "Käse"]))


def test_wrong_arrays_are_refused():
    with pytest.raises(ValueError, match="ids is int32 with 1 axes, expected int64 with 1"):
        Int64IdTable.build(np.zeros(3, np.int32))
    data, offsets = naive.string_arrays(["a", "bc"])
    with pytest.raises(ValueError, match=r"offsets run from 0 to 3, expected inside 0\.\.2"):
        StringIdTable.build(data[:2], offsets)
    with pytest.raises(ValueError, match="offsets fall after list 0"):
        StringIdTable.build(data, offsets[::-1])
    with pytest.raises(ValueError, match="offsets is empty"):
        StringIdTable.build(data, offsets[:0])
