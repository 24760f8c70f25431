"""One GPU at work: encodes batches of users with a session that is given to it, and searches with kernels of ours.

What is queued runs behind the caller's back on two streams, so that one chunk is encoded while another is searched; a
caller waits for its own results alone, without the lock and without the GIL. On the CPU, for tests, all is at once.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ipsrec_gpu.search import USERS_AT_ONCE, Search
from ipsrec_kernels.proposals import Proposals
from ipsrec_kernels.weighed_providers import WeighedProviders


class Batch(Protocol):
    """Some users as the graph takes them."""

    @property
    def rows(self) -> npt.NDArray[np.int64]:
        """(n,) which users these are; the inputs may have more rows, which mean nothing."""

    def inputs(self) -> Mapping[str, npt.NDArray[np.int32]]:
        """The graph's inputs by name."""


class _SearchingCard:
    """What all cards share: searches queued on a stream of the device.

    Args:
        device: "cuda:0", or "cpu" where TRITON_INTERPRET is set.
    """

    _search: Search

    def __init__(self, device: str) -> None:
        self.device = torch.device(device)
        self._lock = threading.Lock()
        self._search_stream: torch.cuda.Stream | None = None
        if self.device.type == "cuda":
            self._search_stream = torch.cuda.Stream(self.device)

    def search(
        self,
        user_embedding: npt.NDArray[np.float32],
        *,
        fetch: int,
        weighed: WeighedProviders | None,
        every_group: bool,
    ) -> Proposals:
        """Propose about `fetch` items for users that are encoded, (n, dim) float32; the rest as for Search.propose."""
        staged, providers = self._pinned(user_embedding), self._staged_providers(weighed)
        with self._lock, self._searching():
            users = staged.to(self.device, non_blocking=True)
            found, done = self._searched(users, providers, fetch=fetch, every_group=every_group)
        return self._proposals(found, done)[1]

    def _staged_providers(self, weighed: WeighedProviders | None) -> tuple[Tensor, ...]:
        """Providers and terms, or nothing, likewise."""
        return () if weighed is None else tuple(self._pinned(part) for part in weighed)

    def _pinned(self, array: npt.NDArray[Any]) -> Tensor:
        tensor = torch.from_numpy(array)
        return tensor.pin_memory() if self._search_stream else tensor

    def _searched(
        self, users: Tensor, providers: tuple[Tensor, ...], *, fetch: int, every_group: bool
    ) -> tuple[tuple[Tensor, ...], torch.cuda.Event | None]:
        """Users and what Found has, queued on the current stream; they are on the host once the event has come."""
        on_device = [part.to(self.device, non_blocking=True) for part in providers]
        parts = []
        for first in range(0, len(users), USERS_AT_ONCE):
            some = slice(first, first + USERS_AT_ONCE)
            weighed = (on_device[0][some], on_device[1][some]) if on_device else None
            found = self._search.propose(users[some], fetch=fetch, weighed=weighed, every_group=every_group)
            parts.append([part for part in found if part is not None])
        return self._fetched(users, *(torch.cat(part) for part in zip(*parts, strict=True)))

    def _fetched(self, *tensors: Tensor) -> tuple[tuple[Tensor, ...], torch.cuda.Event | None]:
        """Tensors on the host, once the event of the current stream has come."""
        if self._search_stream is None:
            return tensors, None
        hosts = tuple(torch.empty(one.shape, dtype=one.dtype, pin_memory=True) for one in tensors)
        for host, tensor in zip(hosts, tensors, strict=True):
            host.copy_(tensor, non_blocking=True)
        done = torch.cuda.Event(blocking=True)  # or every waiting thread would keep a core busy
        done.record()
        return hosts, done

    def _proposals(
        self, found: tuple[Tensor, ...], done: torch.cuda.Event | None
    ) -> tuple[npt.NDArray[np.float32], Proposals]:
        """Wait for what _searched gave; users and proposals as NumPy arrays."""
        _wait(done)
        user_embedding, *proposed = (tensor.numpy() for tensor in found)
        return user_embedding, Proposals(*proposed)

    def _searching(self) -> contextlib.AbstractContextManager[Any]:
        return torch.cuda.stream(self._search_stream) if self._search_stream else contextlib.nullcontext()


class TritonSearchCard(_SearchingCard):
    """A part of a catalog on one device, to be searched for users that are encoded elsewhere; threads may share it.

    Args:
        item_embeddings: (M, dim) float32, of the items that may be proposed, largest norm first, M of 1 or more; on the
            device while they are laid out.
        item_index: (M,) int32, of each.
        item_provider: (M,) int32 provider_index of each.
        num_providers: of the whole catalog.
        device: as for TritonCard.
    """

    def __init__(
        self,
        item_embeddings: npt.NDArray[np.float32],
        item_index: npt.NDArray[np.int32],
        item_provider: npt.NDArray[np.int32],
        *,
        num_providers: int,
        device: str,
    ) -> None:
        super().__init__(device)
        with self._searching():
            rows = torch.zeros((len(item_index) + 1, item_embeddings.shape[1]), device=self.device)  # 0 is PADDING
            rows[1:].copy_(torch.from_numpy(item_embeddings))
            names, providers = (torch.from_numpy(np.pad(part, (1, 0))) for part in (item_index, item_provider))
            by_norm = torch.arange(1, len(item_index) + 1, device=self.device)
            self._search = Search(rows, by_norm, providers.long().to(self.device), num_providers=num_providers)
            self._search.name_items(names.to(self.device))
        if self._search_stream is not None:
            self._search_stream.synchronize()


class TritonCard(_SearchingCard):
    """A model and its catalog on one device; threads may share it.

    Args:
        item_embeddings: (num_items + 1, dim) float32; laid on the device once, where the graph reads them and the
            search's own copy in fp16 is made of them.
        by_norm: (M,) int32 item_index that may be proposed, largest norm first, M of 1 or more.
        item_provider: (num_items + 1,) int32 provider_index of each item.
        device: "cuda:0", or "cpu" where TRITON_INTERPRET is set.
        open_session: opens the session of the graph with item_embeddings as an input; is told the handle of the stream
            that runs are to be queued on, None on the CPU.
        run: queues a run of such a session on what a binding holds.
    """

    def __init__(
        self,
        item_embeddings: npt.NDArray[np.float32],
        by_norm: npt.NDArray[np.int32],
        item_provider: npt.NDArray[np.int32],
        *,
        device: str,
        open_session: Callable[[int | None], Any],
        run: Callable[[Any, Any], None],
    ) -> None:
        super().__init__(device)
        self._run = run
        self._encode_stream: torch.cuda.Stream | None = None
        if self.device.type == "cuda":
            self._encode_stream = torch.cuda.Stream(self.device)
        with self._encoding():
            self._embeddings = torch.from_numpy(np.array(item_embeddings)).to(self.device)
            indices = (torch.from_numpy(np.array(part)).long().to(self.device) for part in (by_norm, item_provider))
            self._search = Search(self._embeddings, *indices)
            self._session = open_session(self._encode_stream.cuda_stream if self._encode_stream else None)
        if self._encode_stream is not None:
            self._encode_stream.synchronize()

    def encode(self, batches: Iterable[Batch], num_users: int) -> npt.NDArray[np.float32]:
        """Encode users.

        Args:
            batches: of all users; every row of 0..num_users - 1 once.
            num_users: how many there are.

        Returns:
            (num_users, dim) float32.
        """
        staged = [self._staged(batch) for batch in batches]
        with self._lock, self._encoding():
            (user_embedding,), done = self._fetched(self._encoded(staged, num_users))
        _wait(done)
        encoded: npt.NDArray[np.float32] = user_embedding.numpy()
        return encoded

    def propose(
        self, batches: Iterable[Batch], num_users: int, *, fetch: int, weighed: WeighedProviders | None
    ) -> tuple[npt.NDArray[np.float32], Proposals]:
        """Encode users and propose about `fetch` items for each, and what history terms may bring up.

        Args:
            batches: as for encode.
            num_users: likewise.
            fetch: items for each user.
            weighed: (num_users) the providers of their histories; None without history terms.

        Returns:
            (num_users, dim) float32, and (num_users) proposals.
        """
        staged = [self._staged(batch) for batch in batches]
        providers = self._staged_providers(weighed)
        with self._lock:
            with self._encoding():
                users = self._encoded(staged, num_users)
            if self._search_stream is not None and self._encode_stream is not None:
                self._search_stream.wait_stream(self._encode_stream)
                users.record_stream(self._search_stream)
            with self._searching():
                found, done = self._searched(users, providers, fetch=fetch, every_group=False)
        return self._proposals(found, done)

    def propose_again(
        self, user_embedding: npt.NDArray[np.float32], *, fetch: int, weighed: WeighedProviders | None
    ) -> Proposals:
        """Propose for users that are encoded, where a first search was not enough: (n, dim) float32."""
        return self.search(user_embedding, fetch=fetch, weighed=weighed, every_group=True)

    def _staged(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """A batch in memory that a GPU reads by itself."""
        return self._pinned(batch.rows), {name: self._pinned(array) for name, array in batch.inputs().items()}

    def _encoded(self, staged: list[tuple[Tensor, dict[str, Tensor]]], num_users: int) -> Tensor:
        """(num_users, dim) float32, queued on the current stream: torch frees and takes memory in its order."""
        dim = self._embeddings.shape[1]
        users = torch.empty((num_users, dim), device=self.device)
        for rows, inputs in staged:
            arguments = {name: part.to(self.device, non_blocking=True) for name, part in inputs.items()}
            encoded = torch.empty((len(arguments["lengths"]), dim), device=self.device)
            binding = self._session.io_binding()
            for name, tensor in {**arguments, "item_embeddings": self._embeddings}.items():
                binding.bind_input(name, *self._place(tensor))
            binding.bind_output("user_embedding", *self._place(encoded))
            self._run(self._session, binding)
            users.index_copy_(0, rows.to(self.device, non_blocking=True), encoded[: len(rows)])
        return users

    def _place(self, tensor: Tensor) -> tuple[str, int, Any, tuple[int, ...], int]:
        """What ONNX Runtime wants to know of memory that is not its own."""
        kind = np.float32 if tensor.dtype == torch.float32 else np.int32
        return self.device.type, self.device.index or 0, kind, tuple(tensor.shape), tensor.data_ptr()

    def _encoding(self) -> contextlib.AbstractContextManager[Any]:
        return torch.cuda.stream(self._encode_stream) if self._encode_stream else contextlib.nullcontext()


def _wait(done: torch.cuda.Event | None) -> None:
    if done is not None:
        done.synchronize()
