"""One GPU at work with ONNX Runtime alone: encodes batches of users, searches with a graph of standard operators."""

from __future__ import annotations

import threading
from collections.abc import Iterable
from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime

from ipsrec_kernels.proposals import Proposals
from ipsrec_kernels.weighed_providers import WeighedProviders
from ipsrec_onnx.encoding import PaddedBatch
from ipsrec_onnx.errors import ModelFileError
from ipsrec_onnx.onnx_rewrite import TABLE
from ipsrec_onnx.onnx_search import OnnxSearch
from ipsrec_onnx.session import Device, place_on_device, run_bound

_USER_EMBEDDING = "user_embedding"


class OnnxSearchCard:
    """A part of a catalog on one device, to be searched for users that are encoded elsewhere; threads may share it.

    Args:
        item_embeddings: (num_items + 1, dim) float32.
        allowed: (num_items + 1,) bool, items that may be proposed.
        device: where to search.
        card: number of the GPU.
    """

    def __init__(
        self,
        item_embeddings: npt.NDArray[np.float32],
        allowed: npt.NDArray[np.bool_],
        *,
        device: Device,
        card: int,
    ) -> None:
        self._search = OnnxSearch(item_embeddings, allowed, device=device, card=card)

    def search(
        self,
        user_embedding: npt.NDArray[np.float32],
        *,
        fetch: int,
        weighed: WeighedProviders | None,
        every_group: bool,
    ) -> Proposals:
        """Propose `fetch` items for (n, dim) float32 users, by the plain score; all groups are always looked at."""
        return self._search.propose(user_embedding, fetch=fetch)


class OnnxEncodingCard:
    """A model on one device; threads may share it, its work is done one by one.

    Args:
        session: of the graph with item_embeddings as an input.
        item_embeddings: (num_items + 1, dim) float32; laid on the device once.
        device: of the session.
        card: number of the GPU.
    """

    def __init__(
        self,
        session: onnxruntime.InferenceSession,
        item_embeddings: npt.NDArray[np.float32],
        *,
        device: Device,
        card: int,
    ) -> None:
        self._session, self._device, self._card = session, device, card
        self._table = place_on_device(item_embeddings, device=device, card=card)
        self._dim = item_embeddings.shape[1]
        self._lock = threading.Lock()

    def encode(self, batches: Iterable[PaddedBatch], num_users: int) -> npt.NDArray[np.float32]:
        """Encode the users of batches that hold rows 0..num_users - 1; (num_users, dim) float32."""
        users = np.empty((num_users, self._dim), np.float32)
        for batch in batches:
            with self._lock:
                users[batch.rows] = self._encoded(batch).numpy()[: len(batch.rows)]
        return users

    def _encoded(self, batch: PaddedBatch) -> Any:
        """(B, dim) float32 on the device; rows behind those of the batch mean nothing."""
        binding = self._session.io_binding()
        for name, array in batch.inputs().items():
            binding.bind_cpu_input(name, array)
        binding.bind_ortvalue_input(TABLE, self._table)
        binding.bind_output(_USER_EMBEDDING, self._device, self._card)
        run_bound(self._session, binding, wait=True)
        encoded = binding.get_outputs()[0]
        expected = [len(batch.lengths), self._dim]
        if encoded.shape() != expected:
            raise ModelFileError(f"user_embedding has shape {encoded.shape()}, expected {expected}; export it again")
        return encoded


class OnnxCard(OnnxEncodingCard):
    """A model and its catalog on one device.

    Args:
        session: this and what follows as for OnnxEncodingCard.
        item_embeddings: (num_items + 1, dim) float32.
        allowed: (num_items + 1,) bool, items that may be proposed.
        device: of the session.
        card: number of the GPU.
    """

    def __init__(
        self,
        session: onnxruntime.InferenceSession,
        item_embeddings: npt.NDArray[np.float32],
        allowed: npt.NDArray[np.bool_],
        *,
        device: Device,
        card: int,
    ) -> None:
        super().__init__(session, item_embeddings, device=device, card=card)
        self._search = OnnxSearch(item_embeddings, allowed, device=device, card=card)

    def propose(
        self, batches: Iterable[PaddedBatch], num_users: int, *, fetch: int, weighed: WeighedProviders | None
    ) -> tuple[npt.NDArray[np.float32], Proposals]:
        """Encode users and propose `fetch` items for each, by the plain score: what terms touch is not looked at.

        Vectors come to the host in between: a megabyte for a batch, and padding rows are not searched for.
        """
        users = self.encode(batches, num_users)
        if not np.isfinite(users).all():  # for the caller to refuse
            return users, Proposals(np.zeros((num_users, 1), np.int32), np.full(num_users, np.inf, np.float32))
        return users, self._search.propose(users, fetch=fetch)

    def propose_again(
        self, user_embedding: npt.NDArray[np.float32], *, fetch: int, weighed: WeighedProviders | None
    ) -> Proposals:
        """Propose for (n, dim) float32 users."""
        return self._search.propose(user_embedding, fetch=fetch)
