import naive
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ipsrec_kernels.end_to_end import pack_end_to_end, place_histories
from ipsrec_kernels.keep import drop_unknown, keep_newest
from ipsrec_kernels.pack import pack_histories

BOUNDED = settings(max_examples=80, deadline=None, derandomize=True)
HISTORY = st.lists(st.integers(1, 2**31 - 1), max_size=12)


def rows_of(*rows):
    return np.array(rows, np.int64)


@BOUNDED
@given(data=st.data(), histories=st.lists(HISTORY, max_size=8), bucket_len=st.integers(1, 14), spare=st.integers(0, 3))
def test_pack_histories_equals_its_twin(data, histories, bucket_len, spare):
    rows = data.draw(st.lists(st.integers(0, len(histories) - 1), max_size=6)) if histories else []
    batch_size = max(1, len(rows) + spare)
    got = pack_histories(*naive.ragged(histories), rows_of(*rows), bucket_len=bucket_len, batch_size=batch_size)
    want = naive.pack_histories(histories, rows, bucket_len=bucket_len, batch_size=batch_size)
    for mine, theirs in zip(got, want, strict=True):
        assert mine.dtype == np.int32
        np.testing.assert_array_equal(mine, theirs)


@pytest.mark.parametrize(
    ("length", "newest"),
    [(0, [0, 0, 0]), (1, [1, 0, 0]), (3, [1, 2, 3]), (4, [2, 3, 4])],
    ids=["empty", "one", "exactly bucket_len", "one more"],
)
def test_the_newest_items_are_kept_and_padded_on_the_right(length, newest):
    histories = naive.ragged([list(range(1, length + 1))])
    item_history, lengths = pack_histories(*histories, rows_of(0), bucket_len=3, batch_size=2)
    assert item_history.tolist() == [newest, [0, 0, 0]]
    assert lengths.tolist() == [min(length, 3), 0]


def test_offsets_may_start_above_zero():
    values, offsets = naive.ragged([[1, 2], [3], [4, 5, 6]])
    item_history, _ = pack_histories(values, offsets[1:], rows_of(1, 0), bucket_len=2, batch_size=2)
    assert item_history.tolist() == [[5, 6], [3, 0]]


def test_no_histories_give_an_empty_batch():
    item_history, lengths = pack_histories(*naive.ragged([]), rows_of(), bucket_len=4, batch_size=2)
    assert item_history.shape == (2, 4)
    assert not item_history.any()
    assert not lengths.any()


def test_read_only_and_strided_arrays_are_packed():
    values, offsets = naive.ragged([[1, 2, 3], [4]])
    doubled = np.repeat(values, 2)
    doubled.flags.writeable = False
    item_history, _ = pack_histories(doubled[::2], offsets, rows_of(0, 1), bucket_len=3, batch_size=2)
    assert item_history.tolist() == [[1, 2, 3], [4, 0, 0]]


@BOUNDED
@given(histories=st.lists(st.lists(st.tuples(st.integers(0, 2), st.integers(0, 9)), max_size=6), max_size=6))
def test_drop_unknown_equals_its_twin(histories):
    items = [[item for item, _ in one] for one in histories]
    providers = [[provider for _, provider in one] for one in histories]
    values, offsets = naive.ragged(items)
    kept_items, kept_providers, kept_offsets = drop_unknown(values, naive.ragged(providers)[0], offsets)
    want_items, want_providers = naive.drop_unknown(items, providers)
    assert naive.unragged(kept_items, kept_offsets) == want_items
    assert naive.unragged(kept_providers, kept_offsets) == want_providers
    assert kept_offsets[0] == 0
    assert kept_offsets[-1] == len(kept_items)


@BOUNDED
@given(
    histories=st.lists(st.lists(st.integers(1, 99), max_size=40), max_size=8),
    max_len=st.integers(1, 41),
    skipped=st.integers(0, 3),
)
def test_keep_newest_equals_slices_of_lists(histories, max_len, skipped):
    values, offsets = naive.ragged(histories)
    skipped = min(skipped, len(histories))  # as in a sliced array
    rows = histories[skipped:]
    got_items, got_providers, got_offsets = keep_newest(values, values + 1, offsets[skipped:], max_len=max_len)
    assert naive.unragged(got_items, got_offsets) == [one[-max_len:] for one in rows]
    assert naive.unragged(got_providers, got_offsets) == [[value + 1 for value in one[-max_len:]] for one in rows]


@pytest.mark.parametrize("unknown", [[], [0], [59], list(range(60)), list(range(0, 60, 2)), list(range(10, 50))])
def test_unknown_items_are_dropped_wherever_they_stand(unknown):
    items = np.arange(1, 61, dtype=np.int32)
    items[unknown] = 0
    offsets = np.array([0, 0, 20, 20, 41, 60], np.int64)
    lists = naive.unragged(items, offsets)
    got_items, got_providers, got_offsets = drop_unknown(items, items + 5, offsets)
    assert naive.unragged(got_items, got_offsets) == [[item for item in one if item] for one in lists]
    assert naive.unragged(got_providers, got_offsets) == [[item + 5 for item in one if item] for one in lists]


@pytest.mark.parametrize("bucket_len", [1, 15, 16, 17, 33, 100])
def test_wide_and_narrow_rows_hold_nothing_of_their_neighbours(rng, bucket_len):
    histories = [rng.integers(1, 1000, size).tolist() for size in rng.integers(0, 60, 50)]
    rows = rng.permutation(50).tolist() * 2
    got = pack_histories(*naive.ragged(histories), rows_of(*rows), bucket_len=bucket_len, batch_size=110)
    want = naive.pack_histories(histories, rows, bucket_len=bucket_len, batch_size=110)
    for mine, theirs in zip(got, want, strict=True):
        np.testing.assert_array_equal(mine, theirs)


def test_drop_unknown_reads_only_inside_the_offsets():
    items = np.array([9, 0, 7, 0, 9], np.int32)
    got = drop_unknown(items, items + 1, np.array([1, 3, 4], np.int64))
    assert [array.tolist() for array in got] == [[7], [8], [0, 1, 1]]


@BOUNDED
@given(lengths=st.lists(st.integers(1, 9), max_size=40), width=st.integers(9, 12))
def test_pack_end_to_end_is_first_fit_decreasing(lengths, width):
    histories = [[h + 1] * length for h, length in enumerate(lengths)]
    row, column, num_rows = pack_end_to_end(*naive.ragged(histories), width=width)
    want_row, want_column, want_num_rows = naive.pack_end_to_end(histories, width=width)
    assert (row.tolist(), column.tolist(), num_rows) == (want_row, want_column, want_num_rows)
    assert row.dtype == column.dtype == np.int32
    placed = place_histories(*naive.ragged(histories), row, column, num_rows=num_rows, width=width)
    for h, history in enumerate(histories):
        assert placed[row[h], column[h] : column[h] + len(history)].tolist() == history
    assert np.count_nonzero(placed) == sum(lengths)


def test_place_histories_of_the_same_width_equal_packed_rows():
    values, offsets = naive.ragged([[1, 2, 3], [4], [5, 6]])
    alone = np.arange(3, dtype=np.int32), np.zeros(3, np.int32)
    placed = place_histories(values, offsets, *alone, num_rows=3, width=4)
    packed, _ = pack_histories(values, offsets, rows_of(0, 1, 2), bucket_len=4, batch_size=3)
    np.testing.assert_array_equal(placed, packed)


def test_packing_many_histories_leaves_little_padding():
    rng = np.random.default_rng(0)
    lengths = rng.integers(1, 51, 20_000)
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    _, _, num_rows = pack_end_to_end(np.ones(offsets[-1], np.int32), offsets, width=50)
    assert lengths.sum() > 0.99 * num_rows * 50


@pytest.mark.parametrize("lengths", [[0], [2, 5], [3, 0, 1]])
def test_a_history_that_fits_no_row_is_refused(lengths):
    values, offsets = naive.ragged([[1] * length for length in lengths])
    with pytest.raises(ValueError, match=r"history lengths\[\d\] is [05], expected 1\.\.4"):
        pack_end_to_end(values, offsets, width=4)


def test_wrong_arguments_are_refused():
    values, offsets = naive.ragged([[1, 2], [3]])
    with pytest.raises(ValueError, match=r"rows\[1\] is 2, expected 0\.\.1"):
        pack_histories(values, offsets, rows_of(0, 2), bucket_len=2, batch_size=2)
    with pytest.raises(ValueError, match="batch_size is 1, expected 2 or more"):
        pack_histories(values, offsets, rows_of(0, 1), bucket_len=2, batch_size=1)
    with pytest.raises(ValueError, match="bucket_len is 0, expected 1 or more"):
        pack_histories(values, offsets, rows_of(0), bucket_len=0, batch_size=1)
    with pytest.raises(ValueError, match="values is int64"):
        pack_histories(values.astype(np.int64), offsets, rows_of(0), bucket_len=2, batch_size=1)
    with pytest.raises(ValueError, match="offsets fall after list 1"):
        pack_histories(values, np.array([0, 3, 1], np.int64), rows_of(0, 1), bucket_len=2, batch_size=2)
    with pytest.raises(ValueError, match="item_index has 3 entries, provider_index 2"):
        drop_unknown(values, values[:2], offsets)
    with pytest.raises(ValueError, match="max_len is 0, expected 1 or more"):
        keep_newest(values, values, offsets, max_len=0)
    with pytest.raises(ValueError, match=r"offsets run from 0 to 9, expected inside 0\.\.3"):
        pack_histories(values, np.array([0, 9], np.int64), rows_of(0), bucket_len=2, batch_size=1)
    places = np.zeros(2, np.int32), np.array([0, 1], np.int32)
    with pytest.raises(ValueError, match=r"end of history \(column \+ length\)\[0\] is 2, expected 0\.\.1"):
        place_histories(values, offsets, places[0], places[0], num_rows=1, width=1)
    with pytest.raises(ValueError, match=r"row\[0\] is 0, expected 0\.\.-1"):
        place_histories(values, offsets, *places, num_rows=0, width=4)
