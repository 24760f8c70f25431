"""retrieve_proposed(): whatever is proposed, a list that is called certain is the twin's, bit by bit."""

import naive
import numpy as np
import pytest

from ipsrec_kernels.history_items import History, HistoryTerms
from ipsrec_kernels.item_table import build_item_table
from ipsrec_kernels.proposals import UNKNOWN, Proposals
from ipsrec_kernels.proposed import retrieve_proposed
from ipsrec_kernels.ragged import Ragged
from ipsrec_kernels.topk import TILE_USERS

NUM_ITEMS, DIM, MAX_LEN = 400, 12, 6


@pytest.fixture
def rng():
    return np.random.default_rng(20240301)


class Case:
    """A catalog, users and rules; proposals are the best items by plain product, or any."""

    def __init__(self, rng, *, num_users=20, ties=False):
        items = rng.standard_normal((NUM_ITEMS + 1, DIM)).astype(np.float32)
        self.items = np.round(items) if ties else items
        self.item_provider = np.concatenate([[0], np.sort(rng.integers(0, 60, NUM_ITEMS))]).astype(np.int32)
        users = rng.standard_normal((num_users, DIM)).astype(np.float32)
        self.users = np.round(users) if ties else users
        self.allowed = np.ones(NUM_ITEMS + 1, np.bool_)
        self.seen = self.histories = self.providers = self.terms = self.cap = None

    def plain(self, u):
        """Plain score of each item; what may not be recommended, PADDING among it, is -inf."""
        scores = naive.full_scores(self.items, self.item_provider, self.users[u])
        return np.where(self.allowed & (np.arange(NUM_ITEMS + 1) > 0), scores, -np.inf)

    def propose(self, choose):
        """Proposals of the items that choose(u, plain scores) gives; outside is the best of what is left."""
        chosen = [np.asarray(choose(u, self.plain(u)), np.int64) for u in range(len(self.users))]
        items = np.zeros((len(chosen), max((len(one) for one in chosen), default=0) + 2), np.int32)
        outside = np.full(len(chosen), -np.inf, np.float32)
        for u, one in enumerate(chosen):
            items[u, : len(one)] = one
            rest = np.delete(self.plain(u), one)
            outside[u] = (
                np.nextafter(np.float32(rest.max()), np.float32(np.inf)) if np.isfinite(rest).any() else -np.inf
            )
        return Proposals(items, outside)

    def touch(self, proposals, *, few=10**9):
        """Add the items of each history's providers that could score above outside; UNKNOWN where they are many."""
        rows = []
        for u, outside in enumerate(proposals.outside):
            own = set(self.providers[u]) - {0}
            scores = naive.full_scores(
                self.items, self.item_provider, self.users[u], self.histories[u], self.providers[u],
                self.terms[0], np.zeros(MAX_LEN),
            )  # fmt: skip
            row = [i for i in range(1, NUM_ITEMS + 1) if self.item_provider[i] in own and scores[i] > outside]
            row = [i for i in row if self.allowed[i]]
            rows.append(row if len(row) <= few else [UNKNOWN])
        touched = np.zeros((len(rows), max((len(row) for row in rows), default=0) + 1), np.int32)
        for u, row in enumerate(rows):
            touched[u, : len(row)] = row
        return proposals._replace(touched=touched)

    def run(self, proposals, top_k, *, big_provider=512):
        history = terms = None
        if self.terms is not None:
            values, offsets = naive.ragged(self.histories)
            history = History(values, naive.ragged(self.providers)[0], offsets)
            terms = HistoryTerms(*self.terms)
        return retrieve_proposed(
            build_item_table(self.items, self.item_provider, allowed=self.allowed, big_provider=big_provider),
            self.users,
            proposals,
            top_k=top_k,
            seen=None if self.seen is None else Ragged(*naive.ragged(self.seen)),
            history=history,
            terms=terms,
            max_per_provider=self.cap,
        )

    def want(self, u, top_k):
        terms = () if self.terms is None else (self.histories[u], self.providers[u], *self.terms)
        return naive.best_items(
            naive.full_scores(self.items, self.item_provider, self.users[u], *terms),
            self.item_provider,
            top_k=top_k,
            allowed=self.allowed,
            seen=() if self.seen is None else self.seen[u],
            max_per_provider=self.cap,
        )

    def check(self, proposals, top_k, *, big_provider=512):
        """Certain lists are right; gives how many there are."""
        lists, certain = self.run(proposals, top_k, big_provider=big_provider)
        assert certain.dtype == np.bool_
        for u in np.flatnonzero(certain):
            want = self.want(u, top_k)
            assert lists.counts[u] == len(want)
            assert lists.item_index[u].tolist() == [item for item, _ in want] + [0] * (top_k - len(want))
            assert lists.scores[u, : len(want)].tolist() == [score for _, score in want]
        return int(certain.sum())

    def with_rules(self, rng, *, provider_terms, item_terms):
        """Seen items, histories with terms and a cap for each user."""
        lengths = rng.integers(0, MAX_LEN + 1, len(self.users))
        self.histories = [rng.integers(1, NUM_ITEMS + 1, length).tolist() for length in lengths]
        self.providers = [self.item_provider[one].tolist() for one in self.histories]
        self.terms = (np.array(provider_terms, np.float64), np.array(item_terms, np.float64))
        self.seen = [rng.integers(1, NUM_ITEMS + 1, rng.integers(0, 30)).tolist() for _ in range(len(self.users))]
        return self


def best(count):
    return lambda u, scores: np.argsort(-scores, kind="stable")[:count]


@pytest.mark.parametrize("num_users", [0, 1, TILE_USERS, TILE_USERS + 1])
def test_the_best_items_give_certain_lists(rng, num_users):
    case = Case(rng, num_users=num_users)
    assert case.check(case.propose(best(30)), 20) == num_users


def test_too_few_proposals_are_never_certain(rng):
    case = Case(rng)
    assert case.check(case.propose(best(19)), 20) == 0
    assert case.check(case.propose(best(0)), 20) == 0


def test_everything_proposed_is_certain_however_short_the_list(rng):
    case = Case(rng)
    case.allowed[:] = False
    case.allowed[[3, 7, 200]] = True
    assert case.check(case.propose(lambda u, scores: [200, 3, 7]), 20) == 20


def test_nothing_to_recommend_gives_empty_lists_that_are_certain(rng):
    case = Case(rng)
    case.allowed[:] = False
    assert case.check(case.propose(lambda u, scores: []), 5) == 20


def test_a_search_that_failed_is_not_certain(rng):
    case = Case(rng)
    items = case.propose(best(100)).items
    assert case.check(Proposals(items, np.full(20, np.inf, np.float32)), 20) == 0
    assert case.check(Proposals(items, np.full(20, np.nan, np.float32)), 20) == 0


def test_an_equal_score_outside_could_come_first(rng):
    case = Case(rng, ties=True)
    proposals = case.propose(best(40))
    exact = Proposals(proposals.items, np.nextafter(proposals.outside, np.float32(-np.inf)))
    found = case.check(exact, 40)
    assert found < 20  # 40 of 400 scores of a few values: the last one has equals outside


def test_any_proposals_under_all_rules(rng):
    for cap in (None, 1, 3):
        case = Case(rng, num_users=60).with_rules(
            rng, provider_terms=rng.standard_normal(MAX_LEN), item_terms=rng.standard_normal(MAX_LEN)
        )
        case.cap = cap
        case.allowed = rng.random(NUM_ITEMS + 1) < 0.8
        for big_provider in (1, 8, 512):
            wide = case.propose(best(200))
            assert case.check(wide, 10, big_provider=big_provider) > 50
            assert case.check(case.touch(wide), 10, big_provider=big_provider) > 50
            assert case.check(case.touch(wide, few=3), 10, big_provider=big_provider) > 50
            narrow = case.propose(lambda u, scores: rng.choice(np.flatnonzero(np.isfinite(scores)), 100, replace=False))
            case.check(narrow, 10, big_provider=big_provider)


def test_seen_items_make_room_for_others_or_make_the_list_uncertain(rng):
    case = Case(rng)
    case.seen = [best(25)(u, case.plain(u)).tolist() for u in range(20)]
    assert case.check(case.propose(best(35)), 10) == 20
    assert case.check(case.propose(best(30)), 10) == 0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"items": np.zeros((3, 4), np.int32)}, "proposals are of 3 and 20 users, expected 20"),
        ({"outside": np.zeros(3, np.float32)}, "proposals are of 20 and 3 users"),
        ({"items": np.full((20, 4), NUM_ITEMS + 1, np.int32)}, "is 401, expected 0..400"),
        ({"items": np.zeros((20, 4), np.int64)}, "proposals.items is int64"),
        ({"touched": np.zeros((3, 4), np.int32)}, r"proposals.touched has shape \(3, 4\), expected \(20, 1 or more\)"),
        ({"touched": np.zeros((20, 0), np.int32)}, r"proposals.touched has shape \(20, 0\)"),
        ({"touched": np.full((20, 1), -2, np.int32)}, "is -2, expected -1..400"),
    ],
)
def test_proposals_of_something_else_are_refused(rng, change, message):
    case = Case(rng)
    with pytest.raises(ValueError, match=message):
        case.run(case.propose(best(5))._replace(**change), 5)
