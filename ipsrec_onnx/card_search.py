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
from ipsrec_onnx.cards import Cards
from ipsrec_onnx.histories import Histories
from ipsrec_onnx.stage_times import StageTimes

_SPARE: Final = 28  # items beyond top_k: what fp16 cannot tell apart at the end of a list of a hundred
_WIDER: Final = 4  # times as many in the second search
_MOST_SPARE: Final = 4096
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

    def to_json(self) -> dict[str, Any]:
        """JSON values."""
        return asdict(self)


class CardSearch:
    """Searches for the users of a job; worker threads share it.

    What is fetched for each user grows while many have to be searched for again; the lists do not depend on it.
    """

    def __init__(self, cards: Cards, *, top_k: int) -> None:
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
        every = np.ones(len(histories.lengths), np.bool_)
        fetch = self._fetch(num_seen)
        with times.stage("encode"):
            user_embedding, proposals = self._cards.propose(histories, fetch=fetch, weighed=weighed)
        with times.stage("retrieve"):
            lists, certain = from_proposals(every, user_embedding, proposals)
            again = ~certain
            on_cpu = np.zeros_like(again)
            if again.any():
                some = None if weighed is None else WeighedProviders(weighed.providers[again], weighed.terms[again])
                proposals = self._cards.propose_again(user_embedding[again], fetch=_WIDER * fetch, weighed=some)
                found, certain = from_proposals(again, user_embedding[again], proposals)
                fill_lists(lists, again, found)
                on_cpu[again] = ~certain
            if on_cpu.any():
                fill_lists(lists, on_cpu, by_cpu(on_cpu, user_embedding[on_cpu]))
        self._count(len(again), int(again.sum()), int(on_cpu.sum()))
        return lists

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
