"""Lists of parts of a catalog, put together: those of the whole, and of a slow twin, bit by bit."""

import functools
import itertools

import naive
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ipsrec_kernels.best_list import BestLists, empty_lists
from ipsrec_kernels.history_items import History, HistoryTerms
from ipsrec_kernels.item_table import build_item_table, items_by_norm
from ipsrec_kernels.merge import list_floors, merge_lists
from ipsrec_kernels.quantise import BLOCK_ITEMS
from ipsrec_kernels.ragged import Ragged
from ipsrec_kernels.topk import retrieve

BOUNDED = settings(max_examples=60, deadline=None, derandomize=True)
MAX_LEN = 4


def as_lists(rows, top_k):
    """[(item, score), ...] of each user -> BestLists."""
    lists = empty_lists(len(rows), top_k)
    for u, row in enumerate(rows):
        lists.counts[u] = len(row)
        for at, (item, score) in enumerate(row):
            lists.item_index[u, at], lists.scores[u, at] = item, score
    return lists


def as_rows(lists):
    return [
        list(zip(items[:count].tolist(), scores[:count].tolist(), strict=True))
        for items, scores, count in zip(*lists, strict=True)
    ]


def assert_same(found, expected):
    for mine, theirs in zip(found, expected, strict=True):
        assert mine.dtype == theirs.dtype
        assert mine.tobytes() == theirs.tobytes()


@BOUNDED
@given(st.data())
def test_merged_lists_are_those_of_the_twin(data):
    top_k, cap = data.draw(st.integers(1, 6)), data.draw(st.sampled_from([None, 1, 2, 9]))
    rng = np.random.default_rng(data.draw(st.integers(0, 1 << 30)))
    num_items = data.draw(st.integers(1, 20))
    provider = np.concatenate([[0], rng.integers(0, 4, num_items)]).astype(np.int32)
    parts = []
    of_part = rng.integers(0, 2, num_items + 1)
    for part in (0, 1):
        rows = []
        for _ in range(3):
            scores = rng.integers(-2, 3, num_items + 1).astype(np.float32)  # many ties
            only = [item for item in range(1, num_items + 1) if of_part[item] == part]
            rows.append(naive.best_items(scores, provider, top_k=top_k, candidates=only, max_per_provider=cap))
        parts.append(rows)
    found = merge_lists(*(as_lists(rows, top_k) for rows in parts), provider, max_per_provider=cap)
    expected = [
        naive.merge_lists(one, other, provider, top_k=top_k, max_per_provider=cap)
        for one, other in zip(*parts, strict=True)
    ]
    assert_same(found, as_lists(expected, top_k))


@pytest.mark.parametrize("count", [0, 1, 3])
def test_nothing_and_something_is_something(count):
    rows = [[(item, 1.0) for item in range(1, count + 1)]]
    provider = np.zeros(9, np.int32)
    some, nothing = as_lists(rows, 3), as_lists([[]], 3)
    for pair in ((some, nothing), (nothing, some)):
        assert_same(merge_lists(*pair, provider, max_per_provider=1), some)
    assert merge_lists(empty_lists(0, 3), empty_lists(0, 3), provider, max_per_provider=None).counts.shape == (0,)


def test_infinite_scores_and_ties_go_to_the_smaller_item():
    inf = float("inf")
    one, other = as_lists([[(5, inf), (7, 0.0), (8, -inf)]], 3), as_lists([[(2, inf), (6, 0.0), (3, -inf)]], 3)
    provider = np.zeros(9, np.int32)
    assert as_rows(merge_lists(one, other, provider, max_per_provider=None)) == [[(2, inf), (5, inf), (6, 0.0)]]


def test_floors_are_the_last_scores_of_full_lists():
    lists = as_lists([[(1, 3.0), (2, 2.0)], [(1, 3.0)], []], 2)
    np.testing.assert_array_equal(list_floors(lists), np.array([2.0, -np.inf, -np.inf], np.float32))


def test_lists_of_other_shapes_are_refused():
    with pytest.raises(ValueError, match=r"lists are of shapes \(1, 2\) and \(1, 3\), expected one shape"):
        merge_lists(empty_lists(1, 2), empty_lists(1, 3), np.zeros(3, np.int32), max_per_provider=None)
    with pytest.raises(ValueError, match="max_per_provider is 0, expected 1 or more"):
        merge_lists(empty_lists(1, 2), empty_lists(1, 2), np.zeros(3, np.int32), max_per_provider=0)


def search_parts(items, provider, users, bounds, rules, *, allowed=None, floors=True, **layout):
    """retrieve() of one part of the catalog after the other, merged."""
    lists = None
    for first, stop in itertools.pairwise(bounds):
        table = build_item_table(items, provider, allowed=allowed, items=range(first, stop), **layout)
        floor = None if lists is None or not floors else list_floors(lists)
        found = retrieve(table, users, **rules, floors=floor)
        lists = (
            found if lists is None else merge_lists(lists, found, provider, max_per_provider=rules["max_per_provider"])
        )
    return lists


@BOUNDED
@given(st.data())
def test_parts_of_a_catalog_give_the_lists_of_the_whole(data):
    """Under all rules at once; with floors and without; ties, and providers, across parts."""
    draw = data.draw
    rng = np.random.default_rng(draw(st.integers(0, 1 << 30)))
    num_items, num_users, dim = draw(st.integers(1, 40)), 4, draw(st.sampled_from([1, 3, 8]))
    items = rng.integers(-1, 2, (num_items + 1, dim)).astype(np.float32)
    users = rng.integers(-1, 2, (num_users, dim)).astype(np.float32)
    provider = rng.integers(0, 5, num_items + 1).astype(np.int32)
    provider[0] = 0
    allowed = None if draw(st.booleans()) else rng.random(num_items + 1) < draw(st.sampled_from([0.0, 0.3, 0.9]))
    seen = [rng.integers(1, num_items + 1, rng.integers(0, 6)) for _ in range(num_users)]
    histories = [one[:MAX_LEN] for one in seen]
    terms = HistoryTerms(*rng.integers(-2, 3, (2, MAX_LEN)).astype(np.float64)) if draw(st.booleans()) else None
    choice = None
    if draw(st.booleans()):
        choice = Ragged(*naive.ragged([rng.integers(0, num_items + 1, rng.integers(0, 30)) for _ in range(num_users)]))
    values, offsets = naive.ragged(histories)
    rules = {
        "top_k": draw(st.integers(1, num_items + 2)),
        "seen": Ragged(*naive.ragged(seen)) if draw(st.booleans()) else None,
        "history": History(values, provider[values], offsets),
        "terms": terms,
        "candidates": choice,
        "max_per_provider": draw(st.sampled_from([None, 1, 3])),
    }
    layout = {"big_provider": draw(st.sampled_from([1, 4, 512]))}
    cuts = draw(st.lists(st.integers(1, num_items + 1), max_size=4))
    bounds = [1, *sorted(cuts), num_items + 1]  # some parts may be empty
    expected = retrieve(build_item_table(items, provider, allowed=allowed, **layout), users, **rules)
    for floors in (True, False):
        found = search_parts(items, provider, users, bounds, rules, allowed=allowed, floors=floors, **layout)
        assert_same(found, expected)
    for u in range(num_users):
        own = () if terms is None else (histories[u].tolist(), provider[histories[u]].tolist(), *terms)
        best = naive.best_items(
            naive.full_scores(items, provider, users[u], *own),
            provider,
            top_k=rules["top_k"],
            allowed=allowed,
            seen=() if rules["seen"] is None else seen[u],
            candidates=None if choice is None else choice.values[choice.offsets[u] : choice.offsets[u + 1]],
            max_per_provider=rules["max_per_provider"],
        )
        assert as_rows(BestLists(*(part[u : u + 1] for part in expected))) == [best]


@pytest.mark.parametrize("count", [1, 2, 3, 7])
@pytest.mark.parametrize("cap", [None, 2])
def test_many_items_in_parts(rng, count, cap):
    """Several blocks in a part, lists longer than a part's share, and users by the tile."""
    num_items = 9 * BLOCK_ITEMS + 5
    items = rng.standard_normal((num_items + 1, 24)).astype(np.float32)
    users = rng.standard_normal((200, 24)).astype(np.float32)
    provider = rng.integers(0, 90, num_items + 1).astype(np.int32)
    rules = {"top_k": 300, "seen": None, "history": None, "terms": None, "candidates": None, "max_per_provider": cap}
    bounds = np.linspace(1, num_items + 1, count + 1).astype(int).tolist()
    expected = retrieve(build_item_table(items, provider, allowed=None), users, **rules)
    assert_same(search_parts(items, provider, users, bounds, rules), expected)


def test_floors_leave_out_what_is_below_them_and_keep_equal_scores(rng):
    items = np.concatenate([[0], np.arange(1, 11), np.arange(1, 11)]).astype(np.float32)[:, None]
    table = build_item_table(items, np.zeros(21, np.int32), allowed=None)
    rules = {"seen": None, "history": None, "terms": None, "candidates": None, "max_per_provider": None}
    find = functools.partial(retrieve, table, np.ones((2, 1), np.float32), top_k=5, **rules)
    found = find(floors=np.array([9.0, 11.0], np.float32))
    assert as_rows(found) == [[(10, 10.0), (20, 10.0), (9, 9.0), (19, 9.0)], []]
    with pytest.raises(ValueError, match="floors are of 1 users or have NaN, expected a number for each of 2"):
        find(floors=np.zeros(1, np.float32))
    with pytest.raises(ValueError, match="floors are of 2 users or have NaN"):
        find(floors=np.array([np.nan, 0], np.float32))


def test_a_part_has_its_own_items_alone_and_looks_at_no_others(rng):
    items = rng.standard_normal((21, 8)).astype(np.float32)
    provider = rng.integers(0, 3, 21).astype(np.int32)
    items[:5] = items[10:] = np.nan
    table = build_item_table(items, provider, allowed=None, items=range(5, 10))
    assert sorted(items_by_norm(table).tolist()) == [5, 6, 7, 8, 9]
    assert np.flatnonzero(table.allowed).tolist() == [5, 6, 7, 8, 9]
    items[7, 3] = np.inf
    with pytest.raises(ValueError, match=r"item_embeddings\[7\] has NaN or infinity"):
        build_item_table(items, provider, allowed=None, items=range(5, 10))


@pytest.mark.parametrize("items", [range(4), range(1, 5), range(3, 2), range(1, 4, 2)])
def test_parts_outside_of_the_catalog_are_refused(items):
    with pytest.raises(ValueError, match=r"items are range\(.*\), expected a range inside 1..3"):
        build_item_table(np.ones((4, 2), np.float32), np.zeros(4, np.int32), allowed=None, items=items)
