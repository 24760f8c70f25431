import naive
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ipsrec_kernels.popular import popular, popular_items
from ipsrec_kernels.ragged import Ragged

BOUNDED = settings(max_examples=100, deadline=None, derandomize=True)


def check(popularity, item_provider, *, top_k, num_users, allowed=None, seen=None, candidates=None, cap=None):
    """Every list equals its twin's; returns what popular() gave."""
    item_index, scores, counts = popular(
        popular_items(popularity, item_provider, allowed=allowed),
        top_k=top_k,
        num_users=num_users,
        seen=None if seen is None else Ragged(*naive.ragged(seen)),
        candidates=None if candidates is None else Ragged(*naive.ragged(candidates)),
        max_per_provider=cap,
    )
    assert item_index.shape == scores.shape == (num_users, top_k)
    assert (item_index.dtype, scores.dtype, counts.dtype) == (np.int32, np.float32, np.int32)
    for u in range(num_users):
        want = naive.best_items(
            popularity.astype(np.float32),
            item_provider,
            top_k=top_k,
            allowed=allowed,
            seen=() if seen is None else seen[u],
            candidates=None if candidates is None else candidates[u],
            max_per_provider=cap,
        )
        assert item_index[u].tolist() == [item for item, _ in want] + [0] * (top_k - len(want))
        assert scores[u].tolist() == [score for _, score in want] + [0] * (top_k - len(want))
        assert counts[u] == len(want)
    return item_index, scores, counts


@BOUNDED
@given(data=st.data(), num_items=st.integers(0, 60), num_users=st.integers(0, 4), top_k=st.sampled_from([1, 5, 80]))
def test_any_case_equals_its_twin(data, num_items, num_users, top_k):
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32 - 1)))
    highest = data.draw(st.sampled_from([1, 5, 1000, 2**40]))

    def lists():
        return [rng.integers(0, num_items + 1, rng.integers(0, 30)).tolist() for _ in range(num_users)]

    check(
        rng.integers(0, highest, num_items + 1),
        rng.integers(0, 6, num_items + 1).astype(np.int32),
        top_k=top_k,
        num_users=num_users,
        allowed=rng.random(num_items + 1) < 0.6 if data.draw(st.booleans()) else None,
        seen=lists() if data.draw(st.booleans()) else None,
        candidates=lists() if data.draw(st.booleans()) else None,
        cap=data.draw(st.sampled_from([None, 1, 3])),
    )


def test_popularity_that_rounds_to_the_same_float32_is_a_tie():
    popularity = np.array([0, 2**24, 2**24 + 1, 2**24 + 2], np.int64)
    item_index, _, _ = check(popularity, np.zeros(4, np.int32), top_k=3, num_users=1)
    assert item_index[0].tolist() == [3, 1, 2]


def test_a_cap_counts_each_provider_of_a_long_list():
    popularity = np.arange(400, dtype=np.int64)
    item_provider = (np.arange(400) % 130).astype(np.int32)  # 0 is "no provider", without a cap
    for top_k in (1, 130, 400):
        check(popularity, item_provider, top_k=top_k, num_users=2, seen=[[399, 398, 3], []], cap=1)


def test_everything_seen_gives_an_empty_list():
    _, _, counts = check(np.arange(6), np.ones(6, np.int32), top_k=3, num_users=2, seen=[[5, 4, 3, 2, 1], [5]])
    assert counts.tolist() == [0, 3]


def test_wrong_arguments_are_refused():
    popularity, item_provider = np.array([0, 5, 9], np.int64), np.zeros(3, np.int32)
    items = popular_items(popularity, item_provider, allowed=None)
    plain = {"top_k": 2, "num_users": 1, "seen": None, "candidates": None, "max_per_provider": None}
    with pytest.raises(ValueError, match="item_provider has 2 entries, popularity 3"):
        popular_items(popularity, item_provider[:2], allowed=None)
    with pytest.raises(ValueError, match="allowed has 2 entries, popularity 3"):
        popular_items(popularity, item_provider, allowed=np.ones(2, np.bool_))
    with pytest.raises(ValueError, match="popularity is int32"):
        popular_items(popularity.astype(np.int32), item_provider, allowed=None)
    with pytest.raises(ValueError, match="top_k is 0, expected 1 or more"):
        popular(items, **{**plain, "top_k": 0})
    with pytest.raises(ValueError, match=r"candidates\.values\[0\] is 3, expected 0\.\.2"):
        popular(items, **{**plain, "candidates": Ragged(np.array([3], np.int32), np.array([0, 1]))})


def test_the_callers_arrays_are_not_written_to():
    allowed = np.ones(3, np.bool_)
    popular_items(np.array([0, 5, 9], np.int64), np.zeros(3, np.int32), allowed=allowed)
    assert allowed.all()
