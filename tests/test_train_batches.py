from __future__ import annotations

import itertools
from collections import Counter

import naive_training
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import training_data
from training_data import ITEMS, MAX_LEN, make_dataset

from ipsrec_kernels.padding import PADDING
from ipsrec_onnx.dataset import open_dataset, read_histories
from ipsrec_onnx.errors import DataError
from ipsrec_train.batches import Histories, Windows, cut_windows, load_histories, newest_windows


def histories_of(lists):
    offsets = np.concatenate([[0], np.cumsum([len(items) for items in lists])]).astype(np.int64)
    values = np.array([item for items in lists for item in items], np.int32)
    return Histories(values=values, offsets=offsets, targets=np.zeros(0, np.int32))


@pytest.fixture
def lists(rng):
    """No items, one, two, exactly max_len inputs, one more, and many in between."""
    lengths = [0, 1, 2, MAX_LEN, MAX_LEN + 1, MAX_LEN + 2, 2 * MAX_LEN + 1, 2 * MAX_LEN + 2, *rng.integers(0, 45, 60)]
    return [rng.integers(1, ITEMS + 1, length).tolist() for length in lengths]


def batches_in(order, histories, *, max_len=MAX_LEN, batch_size):
    windows = Windows(histories, max_len=max_len, device=torch.device("cpu"))
    for first in range(0, len(order), batch_size):
        chosen = order[first : first + batch_size]
        batch = windows.pack(chosen)
        assert len(batch.targets) == windows.num_targets(chosen)
        yield batch


def batches_of(lists, rng, *, max_len=MAX_LEN, batch_size=16):
    histories = histories_of(lists)
    order = rng.permutation(len(cut_windows(histories.offsets, max_len)))
    return list(batches_in(order, histories, max_len=max_len, batch_size=batch_size))


@pytest.mark.parametrize("max_len", [1, 2, 7, MAX_LEN, 100])
def test_windows_equal_the_naive_ones_and_meet_every_target_once(lists, max_len):
    histories = histories_of(lists)
    windows = cut_windows(histories.offsets, max_len)
    found = [histories.values[first : stop + 1].tolist() for first, stop in windows]
    assert found == [window for items in lists for window in naive_training.windows(items, max_len)]
    lengths = windows[:, 1] - windows[:, 0]
    assert lengths.min() >= 1
    assert lengths.max() == min(max_len, max(map(len, lists)) - 1)
    targets = np.concatenate([np.arange(first, stop) + 1 for first, stop in windows])
    offsets = histories.offsets
    expected = [at for begin, end in itertools.pairwise(offsets) for at in range(begin + 1, end)]
    assert sorted(targets) == expected


def test_the_newest_window_is_full_and_ends_with_the_newest_item():
    (newest, oldest) = cut_windows(np.array([0, 14]), 10)
    assert newest.tolist() == [3, 13]
    assert oldest.tolist() == [0, 3]


@pytest.mark.parametrize("newest", [1, 2, 1_000])
def test_only_the_newest_windows_may_be_kept(lists, newest):
    offsets = histories_of(lists).offsets
    every = cut_windows(offsets, 7)
    user = np.searchsorted(offsets, every[:, 0], side="right") - 1
    from_newest = (offsets[user + 1] - 1 - every[:, 1]) // 7
    kept = cut_windows(offsets, 7, newest=newest)
    assert sorted(map(tuple, kept)) == sorted(map(tuple, every[from_newest < newest]))


def test_no_windows_where_nobody_has_two_items():
    assert cut_windows(np.array([0]), 5).shape == (0, 2)
    assert cut_windows(np.array([0, 1, 1, 2]), 5).shape == (0, 2)


@pytest.mark.parametrize("max_len", [1, 3, MAX_LEN, 64])
@pytest.mark.parametrize("batch_size", [1, 7, 10_000])
def test_an_epoch_has_every_prefix_and_its_target_once(lists, rng, max_len, batch_size):
    found = Counter(
        pair
        for batch in batches_of(lists, rng, max_len=max_len, batch_size=batch_size)
        for pair in training_data.prefixes(batch)
    )
    assert found == Counter(pair for items in lists for pair in naive_training.prefixes(items, max_len))


def test_batches_hold_batch_size_windows_in_the_given_order(lists, rng):
    histories = histories_of(lists)
    windows = cut_windows(histories.offsets, MAX_LEN)
    order = rng.permutation(len(windows))
    batches = list(batches_in(order, histories, batch_size=9))
    sizes = [len(batch.last) for batch in batches]
    assert sizes[:-1] == [9] * (len(batches) - 1)
    assert sum(sizes) == len(windows)
    newest = [batch.histories.item_history.flatten()[batch.last] for batch in batches]
    np.testing.assert_array_equal(torch.cat(newest), histories.values[windows[order, 1] - 1])


def test_newest_says_which_window_is_the_last_of_its_user(lists, rng):
    histories = histories_of([*lists, [], [1], [2, 3]])
    windows = cut_windows(histories.offsets, MAX_LEN)
    users = sum(length >= 2 for length in np.diff(histories.offsets))
    ends = {int(end) - 1 for end in histories.offsets[1:]}
    assert newest_windows(windows, histories.offsets).sum() == users
    assert newest_windows(windows, histories.offsets).tolist() == [int(stop) in ends for stop in windows[:, 1]]
    order = rng.permutation(len(windows))
    first = 0
    for batch in batches_in(order, histories, batch_size=9):
        here = order[first : first + len(batch.last)]
        expected = batch.last[torch.from_numpy(newest_windows(windows, histories.offsets)[here])]
        assert batch.users.tolist() == expected.tolist()
        first += len(here)


def test_rows_say_what_lies_where(lists, rng):
    for batch in batches_of(lists, rng):
        width = batch.histories.item_history.shape[1]
        assert width == MAX_LEN
        real = batch.histories.segments >= 0
        assert ((batch.histories.item_history != PADDING) == real).all()
        assert not batch.histories.positions[~real].any()
        assert sorted(batch.at.tolist()) == torch.nonzero(real.flatten()).flatten().tolist()
        for segment, last in enumerate(batch.last.tolist()):
            at = torch.nonzero(batch.histories.segments.flatten() == segment).flatten()
            assert len(set((at // width).tolist())) == 1  # in one row
            assert (at.diff() == 1).all()
            assert batch.histories.positions.flatten()[at].tolist() == list(range(len(at)))
            assert last == at[-1]
        assert len(batch.last) == int(batch.histories.segments.max()) + 1


def test_rows_are_filled_before_a_new_one_is_begun(rng):
    (batch,) = batches_of([[1, 2, 3, 4, 5]] * 6, rng, max_len=8)  # four inputs each
    assert batch.histories.item_history.shape == (3, 8)
    assert (batch.histories.item_history != PADDING).all()


def test_history_entries_are_the_items_before_each_target_by_age(lists, rng):
    for batch in batches_of(lists, rng):
        items, real = batch.entries.by_age(MAX_LEN)
        assert items.shape == real.shape == (len(batch.targets), MAX_LEN)
        for row, (prefix, _) in enumerate(training_data.prefixes(batch)):
            assert real[row].tolist() == [age < len(prefix) for age in range(MAX_LEN)]
            assert items[row, : len(prefix)].tolist() == list(reversed(prefix))
            assert batch.entries.items[batch.entries.start[row] : batch.entries.stop[row]].tolist() == list(prefix)


def test_a_dataset_is_read_as_item_index(tmp_path, rng):
    dataset = open_dataset(make_dataset(tmp_path, rng))
    ids = read_histories(dataset)["item_history"].to_pylist()
    index_of = {item: row for row, item in enumerate(dataset.catalog.item_ids.to_pylist(), 1)}
    for split, left_out in (("train", 2), ("valid", 2), ("test", 1)):
        histories = load_histories(dataset, split)
        assert len(histories) == len(ids) == training_data.USERS
        bounds = zip(histories.offsets[:-1], histories.offsets[1:], strict=True)
        found = [histories.values[begin:end].tolist() for begin, end in bounds]
        assert found == [[index_of[item] for item in history[:-left_out]] for history in ids]
        if split == "train":
            assert len(histories.targets) == 0
        else:
            assert histories.targets.tolist() == [index_of[history[-left_out]] for history in ids]
    assert max(map(len, ids)) == training_data.LONGEST
    assert min(map(len, ids)) == 3


def test_an_item_that_the_catalog_lacks_is_refused(tmp_path, rng):
    dataset = make_dataset(tmp_path, rng)
    histories = pq.read_table(dataset / "histories.parquet")
    lists = histories["item_history"].combine_chunks()
    items = lists.values.to_numpy().copy()
    items[0] = -5
    broken = type(lists).from_arrays(lists.offsets, pa.array(items))
    pq.write_table(histories.set_column(1, "item_history", broken), dataset / "histories.parquet")
    with pytest.raises(DataError, match="item_history holds 1 items that the catalog does not"):
        load_histories(open_dataset(dataset), "train")
