"""retrieve() against its twin, bit by bit."""

from concurrent.futures import ThreadPoolExecutor

import naive
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ipsrec_kernels.cpu import runnable_paths
from ipsrec_kernels.history_items import History, HistoryTerms
from ipsrec_kernels.item_table import BIG_PROVIDER, build_item_table
from ipsrec_kernels.quantise import BLOCK_ITEMS
from ipsrec_kernels.ragged import Ragged
from ipsrec_kernels.topk import TILE_USERS, retrieve

BOUNDED = settings(max_examples=100, deadline=None, derandomize=True)
ULP = 2.0**-23
MAX_LEN = 6


@pytest.fixture
def rng():
    return np.random.default_rng(20240229)


class Case:
    """One catalog and some users, with every filter that may apply to them."""

    def __init__(self, items, users, *, item_provider=None, allowed=None, seen=None, candidates=None, cap=None):
        num_items = len(items)
        self.items = np.concatenate([np.full((1, items.shape[1]), np.nan), items]).astype(np.float32)
        self.items[0] = 7.0  # the padding row would win if it were ever looked at
        self.users = users.astype(np.float32)
        providers = np.arange(num_items) // 3 if item_provider is None else np.asarray(item_provider)
        self.item_provider = np.concatenate([[0], providers]).astype(np.int32)
        self.allowed = allowed
        self.seen = seen
        self.candidates = candidates
        self.cap = cap
        self.history = None
        self.terms = None

    def with_history(self, histories, providers, provider_terms, item_terms):
        self.history = (histories, providers)
        self.terms = (np.array(provider_terms, np.float64), np.array(item_terms, np.float64))
        return self

    def run(self, top_k, users=None, path=None, big_provider=BIG_PROVIDER):
        """retrieve() for all users, or some of them."""
        users = np.arange(len(self.users)) if users is None else users
        history = terms = None
        if self.history is not None:
            values, offsets = naive.ragged([self.history[0][u] for u in users])
            history = History(values, naive.ragged([self.history[1][u] for u in users])[0], offsets)
            terms = HistoryTerms(*self.terms)
        return retrieve(
            build_item_table(
                self.items, self.item_provider, allowed=self.allowed, path=path, big_provider=big_provider
            ),
            self.users[users],
            top_k=top_k,
            seen=None if self.seen is None else Ragged(*naive.ragged([self.seen[u] for u in users])),
            history=history,
            terms=terms,
            candidates=None if self.candidates is None else Ragged(*naive.ragged([self.candidates[u] for u in users])),
            max_per_provider=self.cap,
        )

    def want(self, u, top_k):
        terms = () if self.history is None else (self.history[0][u], self.history[1][u], *self.terms)
        return naive.best_items(
            naive.full_scores(self.items, self.item_provider, self.users[u], *terms),
            self.item_provider,
            top_k=top_k,
            allowed=self.allowed,
            seen=() if self.seen is None else self.seen[u],
            candidates=None if self.candidates is None else self.candidates[u],
            max_per_provider=self.cap,
        )

    def check(self, top_k):
        """Every list equals its twin's: items, score bits, count, and the end of the row; on every path the same."""
        item_index, scores, counts = first = self.run(top_k)
        ways = [{"path": path} for path in runnable_paths()[1:]]
        if self.terms is not None:
            ways += [{"path": path, "big_provider": least} for path in runnable_paths() for least in (1, 20)]
        for way in ways:
            for other, one in zip(self.run(top_k, **way), first, strict=True):
                assert other.tobytes() == one.tobytes(), way
        assert item_index.shape == scores.shape == (len(self.users), top_k)
        assert (item_index.dtype, scores.dtype, counts.dtype) == (np.int32, np.float32, np.int32)
        for u in range(len(self.users)):
            want = self.want(u, top_k)
            assert counts[u] == len(want)
            assert item_index[u].tolist() == [item for item, _ in want] + [0] * (top_k - len(want))
            np.testing.assert_array_equal(scores[u, : len(want)], np.array([score for _, score in want], np.float32))
            assert not scores[u, len(want) :].any()
        return item_index, scores, counts


@pytest.mark.parametrize("dim", [1, 7, 8, 64, 100])
@pytest.mark.parametrize("num_items", [1, BLOCK_ITEMS - 1, BLOCK_ITEMS, BLOCK_ITEMS + 1, 700])
def test_random_embeddings(rng, dim, num_items):
    case = Case(rng.standard_normal((num_items, dim)), rng.standard_normal((9, dim)))
    for top_k in (1, 10, num_items, num_items + 5):
        case.check(top_k)


@pytest.mark.parametrize("num_users", [0, 1, 3, 4, 5, TILE_USERS, TILE_USERS + 1])
def test_any_number_of_users(rng, num_users):
    Case(rng.standard_normal((300, 5)), rng.standard_normal((num_users, 5))).check(4)


def test_no_items_give_empty_lists():
    item_index, scores, counts = Case(np.zeros((0, 4)), np.ones((3, 4))).check(5)
    assert not item_index.any()
    assert not scores.any()
    assert not counts.any()


@pytest.mark.parametrize(
    ("items", "user"),
    [
        (np.ones((500, 8)), np.ones(8)),
        (np.zeros((500, 8)), np.ones(8)),
        (np.ones((500, 8)), np.zeros(8)),
        (-np.ones((500, 8)), np.ones(8)),
        (np.full((500, 8), 1e-45), np.ones(8)),
        (np.full((500, 8), 1e-45), np.full(8, 1e-45)),
        (np.full((500, 8), 3e38), np.full(8, 3e38)),
        (np.full((500, 8), 3e38), np.full(8, -3e38)),
    ],
    ids=["equal", "zero items", "zero user", "negative", "denormal", "vanishing", "overflow", "negative overflow"],
)
def test_all_ties_go_to_the_smallest_item_index(items, user):
    item_index, _, _ = Case(items, user[None]).check(300)
    assert item_index[0].tolist() == list(range(1, 301))


@pytest.mark.parametrize("norm", [1e-44, 1e-38, 1e-20, 1e9, 1e18, 1e19, 3e19, 1e30, 1e38])
def test_norms_of_any_size(rng, norm):
    directions = rng.standard_normal((400, 16)).clip(-3, 3)
    Case(directions * norm, rng.standard_normal((6, 16)).clip(-3, 3) * norm).check(20)
    Case(directions * norm, rng.standard_normal((6, 16)).clip(-3, 3)).check(20)
    mixed = np.where(rng.random(400) < 0.5, norm, 1.0)[:, None]
    Case(directions * mixed, rng.standard_normal((6, 16)).clip(-3, 3)).check(20)


@pytest.mark.parametrize("sign", [1, -1], ids=["to +inf", "to -inf"])
def test_float32_sums_that_overflow_on_the_way_are_scored_exactly(rng, sign):
    items = rng.standard_normal((400, 8))
    items[:, 0] = items[:, 1] = 1e25  # +1e40 and -1e40 cancel in float64, float32 stays at +-inf or NaN
    users = rng.standard_normal((5, 8)) * 1e3
    users[:, 0], users[:, 1] = sign * 1e15, -sign * 1e15
    _, scores, _ = Case(items, users).check(30)
    assert np.isfinite(scores).all()


def test_sums_that_vanish_in_float32_on_the_way_are_scored_exactly():
    # 8 products of 0.3 * 2^-149 each underflow to 0 in float32; their float64 sum rounds to 2 * 2^-149.
    items = np.full((300, 8), 0.3 * 2.0**-74)
    items[:BLOCK_ITEMS] = np.eye(8)[0] * 2.0**-74  # a full list before the others come
    _, scores, _ = Case(items, np.full((1, 8), 2.0**-75)).check(40)
    assert scores[0, 0] == 2 * 2.0**-149


def test_differences_below_the_error_of_the_float32_scan_decide(rng):
    users = rng.standard_normal((6, 64)).astype(np.float32)
    for u in users.astype(np.float64):
        base = rng.standard_normal(64)
        base -= u * (base @ u) / (u @ u)  # nothing but rounding and noise is left of the inner product
        case = Case(base + 1e-7 * rng.standard_normal((700, 64)), users)
        for top_k in (20, 350):
            case.check(top_k)


def test_scores_beyond_float32_are_infinite_and_ranked():
    items = np.array([[1e30], [-1e30], [1e38], [0.0], [-1e38], [2.0]])
    item_index, scores, _ = Case(items, np.array([[1e10]])).check(6)
    assert item_index[0].tolist() == [1, 3, 6, 4, 2, 5]
    assert scores[0].tolist() == [np.inf, np.inf, np.float32(2e10), 0, -np.inf, -np.inf]


def test_scores_one_float32_step_apart_are_ranked_by_score(rng):
    steps = rng.permutation(600)
    Case((1.0 + steps * ULP)[:, None], np.ones((1, 1))).check(50)
    Case(-(1.0 + steps * ULP)[:, None], np.ones((1, 1))).check(50)


def test_sums_that_round_to_the_same_score_are_ties(rng):
    # The second dim moves the float64 sum by less than half a float32 step, the float32 scan not at all.
    items = np.stack([np.ones(600), rng.permutation(600) * ULP / 2000], axis=1)
    item_index, _, _ = Case(items, np.ones((1, 2))).check(40)
    assert item_index[0].tolist() == list(range(1, 41))


def test_items_that_cancel_are_ranked_by_what_is_left(rng):
    items = rng.integers(-2, 3, (500, 3)) * [1.0, 2.0**-20, 2.0**-30]
    users = np.array([[1.0, 1.0, 1.0], [2.0**24, 1.0, 2.0**20], [-1.0, 2.0**20, 1.0]])
    Case(items, users).check(25)


def test_rising_scores_replace_the_whole_list_again_and_again():
    Case(np.arange(1000.0)[:, None], np.array([[1.0], [-1.0]])).check(7)


def test_seen_items_are_left_out(rng):
    items, users = rng.standard_normal((300, 8)), rng.standard_normal((4, 8))
    everything = list(range(300, 0, -1))
    seen = [everything, [], everything[1:] * 2, [5, 0, 999, 5]]
    _, _, counts = Case(items, users, seen=seen).check(10)
    assert counts.tolist() == [0, 10, 1, 10]


def test_only_allowed_items_are_recommended(rng):
    allowed = np.zeros(301, np.bool_)
    allowed[[0, 7, 130, 300]] = True
    item_index, _, counts = Case(rng.standard_normal((300, 8)), rng.standard_normal((4, 8)), allowed=allowed).check(10)
    assert counts.tolist() == [3] * 4
    assert set(item_index.ravel().tolist()) == {0, 7, 130, 300}


def test_candidates_are_the_only_choice(rng):
    allowed = rng.random(301) < 0.7
    seen = [[1, 2, 3]] * 4
    candidates = [[], [3, 9, 9, 0, 8, 8], [1, 2, 3], list(range(300, 0, -1))]
    items, users = rng.standard_normal((300, 8)), rng.standard_normal((4, 8))
    Case(items, users, seen=seen, candidates=candidates, allowed=allowed).check(10)


@pytest.mark.parametrize("cap", [1, 2, 5, 1000])
def test_a_provider_gets_no_more_than_its_share(rng, cap):
    item_provider = np.sort(rng.integers(0, 12, 400))
    case = Case(rng.standard_normal((400, 6)), rng.standard_normal((7, 6)), item_provider=item_provider, cap=cap)
    for top_k in (1, 10, 60, 500):
        item_index, _, _ = case.check(top_k)
        for found in item_index:
            providers = case.item_provider[found[found > 0]]
            assert np.bincount(providers, minlength=12)[1:].max() <= cap


@pytest.mark.parametrize("order", [1, -1], ids=["rising", "falling"])
def test_a_capped_list_survives_any_order_of_scores(order):
    items = np.arange(500.0)[::order, None]
    Case(items, np.ones((1, 1)), item_provider=np.arange(500) % 7 + 1, cap=3).check(12)
    Case(items, np.ones((1, 1)), item_provider=np.arange(500) // 100 + 1, cap=3).check(12)


@pytest.mark.parametrize("weights", [(1.0, 1.0), (-1.0, 0.5), (0.0, -2.0), (1e30, -1e30), (-1e-30, 1e-30)])
def test_history_terms_are_part_of_the_score(rng, weights):
    num_items, num_users = 400, 8
    item_provider = np.arange(num_items) // 20  # provider 0: 20 items without one
    histories = [rng.integers(1, num_items + 1, rng.integers(0, MAX_LEN + 1)).tolist() for _ in range(num_users)]
    providers = [[int(item_provider[item - 1]) for item in one] for one in histories]
    case = Case(rng.standard_normal((num_items, 8)), rng.standard_normal((num_users, 8)), item_provider=item_provider)
    case.with_history(histories, providers, weights[0] * rng.random(MAX_LEN), weights[1] * rng.random(MAX_LEN))
    for top_k in (1, 30, 500):
        case.check(top_k)
    case.seen = histories
    case.check(30)


@pytest.mark.parametrize("weights", [(1.0, 1.0), (-1.0, 1.0), (1e4, 0.0), (1e-30, 1e30)])
@pytest.mark.parametrize("cap", [None, 3])
def test_a_provider_with_many_items_is_scanned_apart_and_exactly(rng, weights, cap):
    item_provider = np.repeat([1, 2, 0], [BIG_PROVIDER, BIG_PROVIDER - 1, 500])
    case = Case(rng.standard_normal((len(item_provider), 8)), rng.standard_normal((14, 8)), item_provider=item_provider)
    assert build_item_table(case.items, case.item_provider, allowed=None).big_providers.tolist() == [1]
    histories = [rng.integers(1, len(item_provider) + 1, MAX_LEN).tolist() for _ in range(13)] + [[]]
    providers = [case.item_provider[one].tolist() for one in histories]
    case.with_history(histories, providers, weights[0] * rng.random(MAX_LEN), weights[1] * rng.random(MAX_LEN))
    case.seen, case.cap = [one[::2] for one in histories], cap
    for top_k in (1, 50, 1000):
        case.check(top_k)


@pytest.mark.parametrize("term", [1e8, -1e8, 1e-8])
def test_near_ties_under_a_large_term_are_told_apart(rng, term):
    # What float32 keeps of the threshold of a sum is coarser than the differences that decide.
    items = (1.0 + rng.permutation(900) * ULP)[:, None] * np.ones(8)
    case = Case(items, np.ones((3, 8)) * [[1.0], [-1.0], [0.01]], item_provider=np.ones(900, np.int32))
    case.with_history([[5], [6, 7], []], [[1], [1, 1], []], np.full(MAX_LEN, term), np.zeros(MAX_LEN))
    for top_k in (1, 40):
        case.check(top_k)


def test_a_history_may_name_unknown_items_and_providers(rng):
    case = Case(rng.standard_normal((50, 4)), rng.standard_normal((2, 4)))
    case.with_history([[0, 7, 99, 7], [50]], [[3, 0, 99, 1], [0]], np.ones(MAX_LEN), np.arange(MAX_LEN) - 2.0)
    case.check(20)


@pytest.mark.parametrize("cap", [None, 1])
def test_ties_with_items_that_terms_touched_go_to_the_smaller_item_index(cap):
    # Items 8 and 9 are scored before the scan: they must yield to equal ones that come later and are smaller.
    case = Case(np.ones((200, 1)), np.ones((2, 1)), item_provider=np.arange(200) // 10 + 1, cap=cap)
    case.with_history([[9, 8], []], [[0, 0], []], np.zeros(MAX_LEN), np.zeros(MAX_LEN))
    item_index, _, _ = case.check(2)
    assert item_index[0].tolist() == ([1, 2] if cap is None else [1, 11])


def test_an_entry_counts_by_its_age():
    case = Case(np.zeros((4, 1)), np.ones((1, 1)), item_provider=[1, 1, 2, 0])
    case.with_history([[3, 1]], [[2, 1]], [10.0, 1.0, 0.0], [0.25, 0.5, 0.0])
    item_index, scores, _ = case.check(4)
    assert item_index[0].tolist() == [1, 2, 3, 4]
    assert scores[0].tolist() == [10.25, 10.0, 1.5, 0.0]


VALUES = {
    "normal": lambda rng, shape: rng.standard_normal(shape),
    "few levels": lambda rng, shape: rng.integers(-1, 2, shape),
    "near ties": lambda rng, shape: 1.0 + rng.integers(-2, 3, shape) * ULP,
    "any size": lambda rng, shape: rng.choice([-1.0, 1.0], shape) * 10.0 ** rng.integers(-44, 38, shape),
    "huge": lambda rng, shape: rng.choice([-1e18, 0, 1e18, 1e19, 3e38], shape),
    "cancelling": lambda rng, shape: rng.choice([-1.0, 1.0, -(2.0**24), 2.0**24, 2.0**-24], shape),
    "tiny": lambda rng, shape: rng.choice([-1e-45, 1e-45, 1e-40, 1e-38, 0.0], shape),
    "negative": lambda rng, shape: -rng.random(shape),
}


@st.composite
def cases(draw):
    """Any mix of sizes, kinds of numbers and filters; the numbers themselves come from a drawn seed."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    num_items = draw(st.sampled_from([1, 2, 20, 127, 128, 129, 300]))
    num_users = draw(st.integers(1, 6))
    dim = draw(st.sampled_from([1, 2, 7, 8, 9, 16]))
    num_providers = draw(st.sampled_from([1, 3, 40]))
    item_provider = rng.integers(draw(st.integers(0, 1)), num_providers + 1, num_items)

    def lists(longest):
        return [rng.integers(0, num_items + 1, rng.integers(0, longest + 1)).tolist() for _ in range(num_users)]

    case = Case(
        VALUES[draw(st.sampled_from(sorted(VALUES)))](rng, (num_items, dim)),
        VALUES[draw(st.sampled_from(sorted(VALUES)))](rng, (num_users, dim)),
        item_provider=item_provider if draw(st.booleans()) else np.sort(item_provider),
        allowed=rng.random(num_items + 1) < 0.6 if draw(st.booleans()) else None,
        seen=lists(num_items) if draw(st.booleans()) else None,
        candidates=lists(60) if draw(st.integers(0, 3)) == 0 else None,
        cap=draw(st.sampled_from([None, 1, 2, 9])),
    )
    if draw(st.booleans()):
        histories = lists(MAX_LEN)
        providers = [case.item_provider[one].tolist() for one in histories]
        if draw(st.booleans()):  # the caller's own providers, which need not be the catalog's
            providers = [rng.integers(0, num_providers + 2, len(one)).tolist() for one in histories]
        scale = 10.0 ** rng.integers(-30, 30)
        case.with_history(histories, providers, *(rng.standard_normal((2, MAX_LEN)) * scale))
    return case, draw(st.sampled_from([1, 2, 10, 50, 400]))


@BOUNDED
@given(drawn=cases())
def test_any_case_equals_its_twin(drawn):
    case, top_k = drawn
    case.check(top_k)


@BOUNDED
@given(drawn=cases(), data=st.data())
def test_a_list_is_the_same_alone_and_in_any_batch(drawn, data):
    case, top_k = drawn
    together = case.run(top_k)
    users = data.draw(st.lists(st.integers(0, len(case.users) - 1), min_size=1, max_size=9))
    for mine, theirs in zip(case.run(top_k, users=users), together, strict=True):
        assert mine.tobytes() == theirs[users].tobytes()


def test_threads_that_share_a_table_find_the_same(rng):
    case = Case(rng.standard_normal((600, 16)), rng.standard_normal((40, 16)), seen=[[1, 2, 3]] * 40)
    alone = case.run(20)
    with ThreadPoolExecutor(4) as threads:
        for found in threads.map(case.run, [20] * 8):
            assert all(mine.tobytes() == theirs.tobytes() for mine, theirs in zip(found, alone, strict=True))


def test_wrong_arguments_are_refused(rng):
    items, item_provider = rng.standard_normal((5, 4)).astype(np.float32), np.zeros(5, np.int32)
    table = build_item_table(items, item_provider, allowed=None)
    users = np.ones((2, 4), np.float32)
    plain = {"top_k": 3, "seen": None, "history": None, "terms": None, "candidates": None, "max_per_provider": None}
    none = Ragged(np.zeros(0, np.int32), np.zeros(3, np.int64))
    terms = HistoryTerms(np.ones(2), np.ones(2))
    long_history = History(np.ones(3, np.int32), np.ones(3, np.int32), np.array([0, 3, 3], np.int64))
    for message, changes in (
        ("top_k is 0, expected 1 or more", {"top_k": 0}),
        ("max_per_provider is 0, expected 1 or more", {"max_per_provider": 0}),
        ("terms are given without a history", {"terms": terms}),
        ("a history has 3 entries, the terms 2 ages", {"terms": terms, "history": long_history}),
        ("terms.item has NaN", {"terms": terms._replace(item=np.array([np.nan])), "history": long_history}),
        ("seen has 1 lists, expected 2", {"seen": none._replace(offsets=np.zeros(2, np.int64))}),
        (r"candidates.values\[0\] is 5, expected 0\.\.4", {"candidates": _one_list(5)}),
        (r"seen.values\[0\] is -1", {"seen": _one_list(-1)}),
    ):
        with pytest.raises(ValueError, match=message):
            retrieve(table, users, **{**plain, **changes})
    with pytest.raises(ValueError, match="user_embedding has 3 dims, the items have 4"):
        retrieve(table, users[:, :3], **plain)
    with pytest.raises(ValueError, match=r"user_embedding\[1\] has NaN or infinity"):
        retrieve(table, np.array([[1, 1, 1, 1], [1, np.inf, 1, 1]], np.float32), **plain)


def _one_list(value):
    return Ragged(np.array([value], np.int32), np.array([0, 1, 1], np.int64))


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_table_with_nan_or_infinity_is_refused(bad):
    items = np.ones((5, 4), np.float32)
    items[3, 2] = bad
    with pytest.raises(ValueError, match=r"item_embeddings\[3\] has NaN or infinity"):
        build_item_table(items, np.zeros(5, np.int32), allowed=None)
    items[[0, 3]] = items[[3, 0]]  # the padding row is not read
    build_item_table(items, np.zeros(5, np.int32), allowed=None)


def test_a_table_whose_parts_do_not_fit_is_refused():
    items = np.ones((5, 4), np.float32)
    with pytest.raises(ValueError, match="item_provider has 4 entries, expected 5"):
        build_item_table(items, np.zeros(4, np.int32), allowed=None)
    with pytest.raises(ValueError, match="allowed has 6 entries, expected 5"):
        build_item_table(items, np.zeros(5, np.int32), allowed=np.ones(6, np.bool_))
    with pytest.raises(ValueError, match=r"item_provider\[2\] is -1"):
        build_item_table(items, np.array([0, 0, -1, 0, 0], np.int32), allowed=None)
    with pytest.raises(ValueError, match=r"item_embeddings has shape \(5, 0\)"):
        build_item_table(items[:, :0], np.zeros(5, np.int32), allowed=None)
