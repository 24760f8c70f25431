"""Exact lists with a search on a GPU: it proposes, the CPU scores exactly and says which lists are certain.

Those that are not are searched again, wider; and what is still uncertain (a cap that reaches deep, many equal scores)
by the CPU alone. So lists are those of the CPU, to the last bit, whatever the GPU computes.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from ipsrec_kernels.best_list import BestLists
from ipsrec_kernels.proposals import Proposals
from ipsrec_kernels.weighed_providers import WeighedProviders
from ipsrec_onnx.cards import Cards, ShardedCards
from ipsrec_onnx.histories import Histories
from ipsrec_onnx.stage_times import StageTimes

_SPARE: Final = 28  # items beyond top_k: what fp16 cannot tell apart at the end of a list of a hundred
_WIDER: Final = 4  # times as many in the second search
_MOST_SPARE: Final = 4096
MOST_FETCHED: Final = 1 << 22  # users x items of one search, so that long histories do not multiply memory
BYTES_PER_FETCHED: Final = 16  # of the items that a GPU gives for each: some more are proposed than are fetched
_TOO_MANY_AGAIN: Final = 0.05  # share of users for whom the first search should not have been enough
_STEP: Final = 32  # what is fetched is rounded up to this: shapes repeat

# Users that a mask, (n,) bool, selects, with proposals for them -> their lists, and which of these are certain.
FromProposals = Callable[
    [npt.NDArray[np.bool_], npt.NDArray[np.float32], Proposals], tuple[BestLists, npt.NDArray[np.bool_]]
]
ByCpu = Callable[[npt.NDArray[np.bool_], npt.NDArray[np.float32]], BestLists]


@dataclass(frozen=True)
class SearchCounts:
    """How often a GPU's search was enough.

    Attributes:
        search: "triton" or "onnx".
        users: that were searched for.
        again: of them, for whom one search was not enough.
        on_cpu: of these, for whom the CPU had to search.
    """

    search: str
    users: int
    again: int
    on_cpu: int

    def __add__(self, other: SearchCounts) -> SearchCounts:
        return self._with(other, 1)

    def __sub__(self, other: SearchCounts) -> SearchCounts:
        return self._with(other, -1)

    def _with(self, other: SearchCounts, sign: int) -> SearchCounts:
        users, again, on_cpu = (
            getattr(self, name) + sign * getattr(other, name) for name in ("users", "again", "on_cpu")
        )
        return SearchCounts(self.search, users, again, on_cpu)

    def to_json(self) -> dict[str, Any]:
        """JSON values."""
        return asdict(self)


class CardSearch:
    """Searches for the users of a job; worker threads share it.

    What is fetched for each user grows while many have to be searched for again; the lists do not depend on it.
    """

    def __init__(self, cards: Cards | ShardedCards, *, top_k: int) -> None:
        self._cards, self._top_k = cards, top_k
        self._lock = threading.Lock()
        self._spare = _SPARE
        self._users = self._again = self._on_cpu = 0

    def counts(self) -> SearchCounts:
        """What was counted until now."""
        with self._lock:
            return SearchCounts(self._cards.search, self._users, self._again, self._on_cpu)

    def rank(
        self,
        histories: Histories,
        num_seen: npt.NDArray[np.int64] | None,
        weighed: WeighedProviders | None,
        *,
        from_proposals: FromProposals,
        by_cpu: ByCpu,
        times: StageTimes,
    ) -> BestLists:
        """Rank items for some users, none without a history.

        Args:
            histories: (n) what the model sees of each.
            num_seen: (n,) items that are left out of each list; None for none.
            weighed: (n) the providers of each history; None without terms for them.
            from_proposals: makes exact lists of proposals, under the rules of the job.
            by_cpu: makes exact lists without.
            times: to which encode and retrieve are added; to encode, what it takes to feed the GPU.

        Raises:
            ModelFileError, OutOfMemoryError: as Cards.encode.
        """
        num_users, fetch = len(histories.lengths), self._fetch(num_seen)
        lists, vectors, certain = self._first(histories, weighed, fetch, from_proposals, times)
        again, on_cpu = np.flatnonzero(~certain), np.zeros(num_users, np.bool_)
        at_once = max(1, MOST_FETCHED // self._cards.fetched(_WIDER * fetch))
        with times.stage("retrieve"):
            for first in range(0, len(again), at_once):
                rows = again[first : first + at_once]
                some = None if weighed is None else WeighedProviders(weighed.providers[rows], weighed.terms[rows])
                proposals = self._cards.propose_again(vectors[rows], fetch=_WIDER * fetch, weighed=some)
                users = np.zeros(num_users, np.bool_)
                users[rows] = True
                found, certain = from_proposals(users, vectors[rows], proposals)
                fill_lists(lists, users, found)
                on_cpu[rows[~certain]] = True
            if on_cpu.any():
                fill_lists(lists, on_cpu, by_cpu(on_cpu, vectors[on_cpu]))
        self._count(num_users, len(again), int(on_cpu.sum()))
        return lists

    def _first(
        self,
        histories: Histories,
        weighed: WeighedProviders | None,
        fetch: int,
        from_proposals: FromProposals,
        times: StageTimes,
    ) -> tuple[BestLists, npt.NDArray[np.float32], npt.NDArray[np.bool_]]:
        """Search once: lists, user embeddings, and (n,) bool, which lists are certain; so many users at a time."""
        num_users = len(histories.lengths)
        at_once = max(1, MOST_FETCHED // self._cards.fetched(fetch))
        parts = []
        for first in range(0, num_users, at_once):
            stop = min(first + at_once, num_users)
            some = Histories(histories.items, histories.providers, histories.offsets[first : stop + 1])
            of_some = (
                None if weighed is None else WeighedProviders(weighed.providers[first:stop], weighed.terms[first:stop])
            )
            with times.stage("encode"):
                vectors, proposals = self._cards.propose(some, fetch=fetch, weighed=of_some)
            with times.stage("retrieve"):
                users = np.zeros(num_users, np.bool_)
                users[first:stop] = True
                parts.append((*from_proposals(users, vectors, proposals), vectors))
        if len(parts) == 1:
            return parts[0][0], parts[0][2], parts[0][1]
        lists = BestLists(*(np.concatenate(part) for part in zip(*(part[0] for part in parts), strict=True)))
        return lists, np.concatenate([part[2] for part in parts]), np.concatenate([part[1] for part in parts])

    def _fetch(self, num_seen: npt.NDArray[np.int64] | None) -> int:
        """Items to fetch for each user: nearly all have no more seen items than so many."""
        seen = 0 if num_seen is None else min(int(np.quantile(num_seen, 0.95)), _MOST_SPARE)
        return -(-(self._top_k + self._spare + seen) // _STEP) * _STEP

    def _count(self, users: int, again: int, on_cpu: int) -> None:
        with self._lock:
            self._users += users
            self._again += again
            self._on_cpu += on_cpu
            if again > _TOO_MANY_AGAIN * users:
                self._spare = min(2 * self._spare, _MOST_SPARE)


def fill_lists(lists: BestLists, users: npt.NDArray[np.bool_], part: BestLists) -> None:
    """Write `part`, (m) lists, into the m rows of `lists`, (n), that `users`, (n,) bool, says."""
    for whole, some in zip(lists, part, strict=True):
        whole[users] = some
