"""The GPUs of a job: each has the model and the catalog, chunks of users go to the one that has the fewest in work."""

from __future__ import annotations

import math
import threading
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final, Literal, Protocol, get_args

import numpy as np
import numpy.typing as npt

from ipsrec_kernels.proposals import Proposals, join_proposals
from ipsrec_kernels.weighed_providers import WeighedProviders
from ipsrec_onnx.encoding import PaddedBatch, padded_batches, refuse_no_numbers
from ipsrec_onnx.errors import OutOfMemoryError
from ipsrec_onnx.histories import Histories
from ipsrec_onnx.model_file import ModelFile

SearchName = Literal["auto", "cpu", "triton", "onnx"]

# Rows of a batch on a GPU: from 4,096 on an H100 gains little (docs/gpu.md), and a batch that is not full is filled up.
_BATCH: Final = 4096
_STEP: Final = 32  # items that a shard is asked for are rounded up to this: shapes repeat


@dataclass(frozen=True)
class CardOptions:
    """Which GPUs, and what searches on them; candidates are the same with each.

    Attributes:
        gpus: their numbers.
        search: "auto" takes "triton" where torch and triton are installed and can use the GPU, else "onnx"; "cpu" lets
            the GPUs encode alone.

    Raises:
        ValueError: no GPU, one twice, or a search that is none.
    """

    gpus: tuple[int, ...] = (0,)
    search: SearchName = "auto"

    def __post_init__(self) -> None:
        if not self.gpus or min(self.gpus) < 0 or len(set(self.gpus)) < len(self.gpus):
            raise ValueError(f"gpus are {self.gpus}, expected one number or more, from 0, each once")
        if self.search not in get_args(SearchName):
            raise ValueError(f"search is {self.search!r}, expected one of {get_args(SearchName)}")


DEFAULT_CARDS: Final = CardOptions()


class EncodingCard(Protocol):
    """What one GPU does for a job that the CPU searches for; threads share it."""

    def encode(self, batches: Iterable[PaddedBatch], num_users: int) -> npt.NDArray[np.float32]:
        """Encode the users of batches that hold rows 0..num_users - 1; (num_users, dim) float32."""


class Card(EncodingCard, Protocol):
    """What one GPU does for a job; threads share it."""

    def propose(
        self, batches: Iterable[PaddedBatch], num_users: int, *, fetch: int, weighed: WeighedProviders | None
    ) -> tuple[npt.NDArray[np.float32], Proposals]:
        """Encode them and propose about `fetch` items for each, and perhaps what history terms may bring up."""

    def propose_again(
        self, user_embedding: npt.NDArray[np.float32], *, fetch: int, weighed: WeighedProviders | None
    ) -> Proposals:
        """Propose for (n, dim) float32 users."""


class SearchCard(Protocol):
    """What one GPU does that has some shards of a catalog; threads share it."""

    def search(
        self,
        user_embedding: npt.NDArray[np.float32],
        *,
        fetch: int,
        weighed: WeighedProviders | None,
        every_group: bool,
    ) -> Proposals:
        """Propose for (n, dim) float32 users; every_group where a first search was not enough."""


class EncodingCards:
    """The GPUs of a job that the CPU searches for."""

    def __init__(self, model: ModelFile, cards: Mapping[int, EncodingCard]) -> None:
        """Take the opened GPUs, by number."""
        self._model, self._encoding, self._widths = model, cards, card_widths(model.max_len)
        self._lock, self._in_work = threading.Lock(), dict.fromkeys(cards, 0)

    def encode(self, histories: Histories) -> npt.NDArray[np.float32]:
        """Compute the user embedding of each history, as encoding.encode does.

        Raises:
            ModelFileError: the graph fails, or gives NaN or infinity.
            OutOfMemoryError: a GPU's memory ran out.
        """
        batches = self._batches(histories)
        with self._turn() as number:
            user_embedding = self._encoding[number].encode(batches, len(histories.lengths))
        refuse_no_numbers(self._model, user_embedding)
        return user_embedding

    def _batches(self, histories: Histories) -> list[PaddedBatch]:
        return list(padded_batches(histories, self._widths, batch_size=_BATCH))

    @contextmanager
    def _turn(self) -> Iterator[int]:
        """Number of the GPU with the fewest chunks in work, which has one more while the block runs."""
        with turn(self._lock, self._in_work, self._in_work) as number:
            yield number


class Cards(EncodingCards):
    """The GPUs of a job.

    Attributes:
        search: what searches, "triton" or "onnx".
    """

    def __init__(self, model: ModelFile, cards: Mapping[int, Card], *, search: SearchName) -> None:
        """Take the opened GPUs, by number, and the name of what searches on them."""
        super().__init__(model, cards)
        self._cards, self.search = cards, search

    def propose(
        self, histories: Histories, *, fetch: int, weighed: WeighedProviders | None
    ) -> tuple[npt.NDArray[np.float32], Proposals]:
        """Compute user embeddings and propose items for them; raises as encode."""
        batches = self._batches(histories)
        with self._turn() as number:
            found = self._cards[number].propose(batches, len(histories.lengths), fetch=fetch, weighed=weighed)
        refuse_no_numbers(self._model, found[0])
        return found

    def propose_again(
        self, user_embedding: npt.NDArray[np.float32], *, fetch: int, weighed: WeighedProviders | None
    ) -> Proposals:
        """Propose items for users that are encoded; raises as encode."""
        with self._turn() as number:
            return self._cards[number].propose_again(user_embedding, fetch=fetch, weighed=weighed)

    def fetched(self, fetch: int) -> int:
        """Items that are held for each user while `fetch` are proposed."""
        return fetch


class ShardedCards(EncodingCards):
    """The GPUs of a job that share a catalog: some encode, each searches what it has of the items.

    Attributes:
        search: as of Cards.
    """

    def __init__(
        self,
        model: ModelFile,
        encoding: Mapping[int, EncodingCard],
        searching: Mapping[int, SearchCard],
        *,
        search: SearchName,
    ) -> None:
        """Take what encodes and what searches, by number of the GPU: at least one of each."""
        super().__init__(model, encoding)
        self._searching, self.search = searching, search
        self._searches = dict.fromkeys(searching, 0)

    def propose(
        self, histories: Histories, *, fetch: int, weighed: WeighedProviders | None
    ) -> tuple[npt.NDArray[np.float32], Proposals]:
        """Compute user embeddings and propose items for them; raises as encode."""
        user_embedding = self.encode(histories)
        return user_embedding, self._proposed(user_embedding, fetch, weighed, every_group=False)

    def propose_again(
        self, user_embedding: npt.NDArray[np.float32], *, fetch: int, weighed: WeighedProviders | None
    ) -> Proposals:
        """Propose items for users that are encoded; raises as encode."""
        return self._proposed(user_embedding, fetch, weighed, every_group=True)

    def fetched(self, fetch: int) -> int:
        """Items that are held for each user while `fetch` are proposed: of all GPUs, and once more put together."""
        return 2 * len(self._searching) * self._share(fetch)

    def _share(self, fetch: int) -> int:
        """Items to fetch of each GPU: its share if the best are spread by chance, and four standard deviations more.

        Where they are not, more users are searched for again.
        """
        share = -(-fetch // len(self._searching))
        return min(fetch, -(-(share + 4 * math.isqrt(share)) // _STEP) * _STEP)

    def _proposed(
        self,
        user_embedding: npt.NDArray[np.float32],
        fetch: int,
        weighed: WeighedProviders | None,
        *,
        every_group: bool,
    ) -> Proposals:
        """Ask one GPU after the other, always that with the fewest searches in work; other threads keep the others."""
        parts: list[Proposals] = []
        left = set(self._searching)
        while left:
            with turn(self._lock, self._searches, left) as number:
                left.remove(number)
                card, share = self._searching[number], self._share(fetch)
                parts.append(card.search(user_embedding, fetch=share, weighed=weighed, every_group=every_group))
        return join_proposals(parts)


@contextmanager
def turn(lock: threading.Lock, in_work: dict[int, int], among: Iterable[int]) -> Iterator[int]:
    """Number of the GPU among some with the fewest chunks in work, which has one more while the block runs."""
    with lock:
        number = min(among, key=in_work.__getitem__)
        in_work[number] += 1
    try:
        with memory_of_gpu(number):
            yield number
    finally:
        with lock:
            in_work[number] -= 1


@contextmanager
def memory_of_gpu(number: int) -> Iterator[None]:
    """Say of torch's error that memory ran out, and whose.

    Raises:
        OutOfMemoryError: so it did.
    """
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":  # torch is not imported here
            said = str(error).partition(". ")[0].splitlines()[0]
            raise OutOfMemoryError(
                f"GPU {number}: its memory ran out ({said}); free it, or take a GPU with more (--gpus)"
            ) from error
        raise


def card_widths(max_len: int) -> npt.NDArray[np.int64]:
    """Widths of the buckets on a GPU, ascending: quarters of max_len. More would leave more batches half full."""
    return np.unique([-(-max_len * quarters // 4) for quarters in (1, 2, 3, 4)])
