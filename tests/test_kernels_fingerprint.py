import itertools

import naive
import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ipsrec_kernels.fingerprint import mix_lists, mix_words, string_words
from ipsrec_onnx.fingerprints import history_fingerprints, user_fingerprints
from ipsrec_onnx.id_lists import id_lists

INT64 = np.iinfo(np.int64)
BOUNDED = settings(max_examples=60, deadline=None, derandomize=True)
INTS = st.integers(INT64.min, INT64.max) | st.integers(-3, 3)
STRINGS = st.text(max_size=20)


def fingerprints(*columns, kind):
    """Of columns of lists."""
    arrays = [pa.array(column, pa.list_(kind)) for column in columns]
    ids = pa.int64() if pa.types.is_integer(kind) else pa.large_string()
    return history_fingerprints(id_lists(array, kind=ids, where="here") for array in arrays)


@BOUNDED
@given(data=st.data(), ids=st.sampled_from(["int64", "string"]), num_columns=st.integers(1, 3))
def test_fingerprints_are_those_of_the_slow_twin(data, ids, num_columns):
    elements = INTS if ids == "int64" else STRINGS
    rows = data.draw(st.lists(st.tuples(*[st.lists(elements, max_size=6)] * num_columns), max_size=8))
    columns = [[row[number] for row in rows] for number in range(num_columns)]
    found = fingerprints(*columns, kind=pa.int64() if ids == "int64" else pa.string())
    assert found.dtype == np.uint64
    assert found.tolist() == [naive.history_fingerprint(row) for row in rows]


def test_the_definition_stays_as_it_is():
    """Numbers that lie in users' files: when these change, FINGERPRINT_VERSION does."""
    assert fingerprints([[], [1, 2, 3]], kind=pa.int64()).tolist() == PINNED_INTS
    assert fingerprints([["", "item 1", "a long item id"]], kind=pa.string()).tolist() == PINNED_STRINGS


PINNED_INTS = [10451216379200822465, 18283258009843326564]
PINNED_STRINGS = [3089347142689183340]


def test_order_lengths_and_columns_matter():
    rows = [
        ([1, 2], [3]),
        ([1], [2, 3]),
        ([1, 2, 3], []),
        ([], [1, 2, 3]),
        ([2, 1], [3]),
        ([1, 2], [3, 3]),
        ([3], [1, 2]),
        ([0], [0]),
        ([0, 0], []),
        ([], []),
    ]
    found = fingerprints([row[0] for row in rows], [row[1] for row in rows], kind=pa.int64())
    assert len(set(found.tolist())) == len(rows)
    assert fingerprints([[]], kind=pa.int64()) != fingerprints([[]], [[]], kind=pa.int64())


def test_a_million_short_histories_of_small_ids_have_a_million_fingerprints():
    pairs = np.array(list(itertools.product(range(100), repeat=3)), np.int64)
    states = np.ones(len(pairs), np.uint64)
    offsets = np.arange(0, 3 * len(pairs) + 1, 3)
    found = mix_lists(states, pairs.ravel().view(np.uint64), offsets)
    assert len(np.unique(found)) == len(pairs)
    assert len(np.unique(found >> np.uint64(16))) > len(pairs) - 20  # 48 bits of a million: .002 collisions expected


def test_an_id_counts_by_its_value_whatever_the_column_keeps_it_in():
    lists = [[1, 2, 3], [], [2, 2]]
    expected = fingerprints(lists, kind=pa.int64())
    np.testing.assert_array_equal(fingerprints(lists, kind=pa.int16()), expected)
    words = [[str(one) for one in row] for row in lists]
    plain = pa.array(words, pa.list_(pa.string()))
    coded = pa.ListArray.from_arrays(plain.offsets, plain.values.dictionary_encode())
    sliced = pa.concat_arrays([plain, plain]).slice(3)
    for column in (plain, coded, sliced):
        found = history_fingerprints([id_lists(column, kind=pa.large_string(), where="here")])
        np.testing.assert_array_equal(found, fingerprints(words, kind=pa.string()))


@pytest.mark.parametrize(
    ("user_id", "same"),
    [
        (pa.array([1, 2], pa.int32()), pa.array([1, 2], pa.int64())),
        (pa.array([2**64 - 1, 5], pa.uint64()), pa.array([-1, 5], pa.int64())),
        (pa.array(["a", "b"], pa.string()).dictionary_encode(), pa.array(["a", "b"], pa.large_string())),
        (pa.array([b"a", b"\xff"], pa.binary()), pa.array([b"a", b"\xff"], pa.large_binary())),
        (pa.array([b"aa", b"ab"], pa.binary(2)), pa.array([b"aa", b"ab"], pa.binary())),
        (pa.array([3, 4], pa.timestamp("us", "UTC")), pa.array([3, 4], pa.int64())),
        (pa.array([3, 4], pa.date32()), pa.array([3, 4], pa.int64())),
    ],
)
def test_user_ids_of_many_types_have_fingerprints(user_id, same):
    np.testing.assert_array_equal(user_fingerprints(user_id), user_fingerprints(same))
    assert len(set(user_fingerprints(user_id).tolist())) == 2


def test_user_fingerprints_are_those_of_the_slow_twin():
    for ids in ([1, -1, 0], ["", "user", "a user with a long name"]):
        assert user_fingerprints(pa.array(ids)).tolist() == [naive.user_fingerprint(one) for one in ids]
    assert user_fingerprints(pa.array([], pa.int64())).shape == (0,)


def test_arrays_that_do_not_fit_are_refused():
    words, states = np.zeros(3, np.uint64), np.zeros(2, np.uint64)
    with pytest.raises(ValueError, match="3 words, expected 2"):
        mix_words(states, words)
    with pytest.raises(ValueError, match="1 lists, expected 2"):
        mix_lists(states, words, np.array([0, 3]))
    with pytest.raises(ValueError, match=r"expected inside 0\.\.3"):
        mix_lists(states, words, np.array([0, 1, 4]))
    with pytest.raises(ValueError, match="offsets fall"):
        string_words(np.zeros(3, np.uint8), np.array([0, 2, 1]))
