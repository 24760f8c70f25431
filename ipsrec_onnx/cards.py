"""The GPUs of a job: each has the model and the catalog, chunks of users go to the one that has the fewest in work."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final, Literal, Protocol, get_args

import numpy as np
import numpy.typing as npt

from ipsrec_kernels.proposals import Proposals
from ipsrec_kernels.weighed_providers import WeighedProviders
from ipsrec_onnx.encoding import PaddedBatch, padded_batches, refuse_no_numbers
from ipsrec_onnx.errors import OutOfMemoryError
from ipsrec_onnx.histories import Histories
from ipsrec_onnx.model_file import ModelFile

SearchName = Literal["auto", "cpu", "triton", "onnx"]

# Rows of a batch on a GPU: from 4,096 on an H100 gains little (docs/gpu.md), and a batch that is not full is filled up.
_BATCH: Final = 4096


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
        with self._lock:
            number = min(self._in_work, key=self._in_work.__getitem__)
            self._in_work[number] += 1
        try:
            with memory_of_gpu(number):
                yield number
        finally:
            with self._lock:
                self._in_work[number] -= 1


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
