"""Encodes histories into user embeddings, so that a user's bits do not depend on who else is encoded."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from typing import Final, Literal, NamedTuple, get_args

import numpy as np
import numpy.typing as npt

from ipsrec_kernels.pack import pack_histories
from ipsrec_onnx.errors import ExecutionProviderError, ModelFileError
from ipsrec_onnx.histories import Histories
from ipsrec_onnx.model_file import ModelFile
from ipsrec_onnx.session import run_session

# One batch size for every session call: matrix kernels choose their summation by shape, so that a user's last bits
# could change with the size of the batch. Small, for a batch that is not full is filled up with padding rows; 128 rows
# are 2 to 20% faster at widths up to 8, and no faster above.
ENCODE_BATCH: Final = 32

_APART: Final = 1e-4  # share of the largest number of the vectors by which two float32 encoders may differ
EncoderName = Literal["onnxruntime", "fused"]
Encoder = Callable[[Histories], npt.NDArray[np.float32]]  # (n histories), none empty -> (n, dim)


def check_encoder(name: str, device: str) -> None:
    """Refuse an encoder that is none, or that does not run on the device.

    Raises:
        ValueError: there is no such encoder.
        ExecutionProviderError: it does not run on the device.
    """
    if name not in get_args(EncoderName):
        raise ValueError(f"encoder is {name!r}, expected one of {get_args(EncoderName)}")
    if name == "fused" and device != "cpu":
        raise ExecutionProviderError(
            f"--encoder fused runs on the CPU, found --device {device}; leave one of the two out"
        )


def open_encoder(model: ModelFile, name: EncoderName) -> Encoder:
    """Choose what computes the user embeddings; worker threads share it.

    Args:
        model: the opened model file.
        name: "onnxruntime" runs the file's graph; "fused" runs kernels of our own on the file's weights.

    Raises:
        ModelFileError: there are no kernels of our own for this model, or they give other vectors than its graph.
    """
    if name == "onnxruntime":
        return functools.partial(encode, model)
    from ipsrec_onnx.fused_encoder import encode_fused, open_fused_encoder  # its kernels take time to load

    fused = functools.partial(encode_fused, open_fused_encoder(model))
    histories = _probe_histories(model)
    expected = encode(model, histories)
    apart, allowed = np.abs(fused(histories) - expected).max(), _APART * np.abs(expected).max()
    if not apart <= allowed:
        raise ModelFileError(
            f"model {model.path}: the fused encoder is {apart:.1e} away from ONNX Runtime on this machine, at most "
            f"{allowed:.1e} expected; leave --encoder fused out, and report it"
        )
    return fused


def _probe_histories(model: ModelFile) -> Histories:
    """A history of each of a few lengths, of items from all over the catalog."""
    rng = np.random.default_rng(0)
    lengths = np.unique([1, min(2, model.max_len), (model.max_len + 1) // 2, model.max_len])
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    items = rng.integers(1, model.catalog.num_items + 1, offsets[-1]).astype(np.int32)
    return Histories(items, model.catalog.item_provider[items], offsets)


def bucket_lens(max_len: int) -> npt.NDArray[np.int64]:
    """Widths of the buckets: 1 to 8, then four to each doubling (10, 12, 14, 16, 20, 24, ...), and max_len; ascending.

    A user's bucket is the narrowest that holds the user's own history: no neighbour has a say in it. Steps of at most
    a quarter keep padding small; few widths keep ONNX Runtime's memory plans, and batches that are not full, few.
    """
    widths = {*range(1, 9), max_len}
    step = 2
    while 4 * step < max_len:
        widths |= {(4 + quarter) * step for quarter in range(1, 5)}
        step *= 2
    return np.array(sorted(width for width in widths if width <= max_len), np.int64)


def encode(model: ModelFile, histories: Histories) -> npt.NDArray[np.float32]:
    """Compute the user embedding of each history.

    Args:
        model: the opened model file.
        histories: (n histories) none of them empty; the model sees the last max_len items of each.

    Returns:
        (n, dim) float32.

    Raises:
        ModelFileError: the graph fails, or gives another shape, NaN or infinity.
    """
    user_embedding = np.empty((len(histories.lengths), model.dim), np.float32)
    for batch in padded_batches(histories, bucket_lens(model.max_len), batch_size=ENCODE_BATCH):
        feed = {**batch.inputs(), **model.given}
        encoded = np.asarray(run_session(model.session, ["user_embedding"], feed)[0])  # (ENCODE_BATCH, D)
        if encoded.shape != (ENCODE_BATCH, model.dim):
            raise ModelFileError(
                f"model {model.path}: user_embedding has shape {encoded.shape}, expected "
                f"({ENCODE_BATCH}, {model.dim}); export it again"
            )
        user_embedding[batch.rows] = encoded[: len(batch.rows)]
    refuse_no_numbers(model, user_embedding)
    return user_embedding


def refuse_no_numbers(model: ModelFile, user_embedding: npt.NDArray[np.float32]) -> None:
    """Refuse vectors that no list can be made of.

    Raises:
        ModelFileError: there is NaN or infinity.
    """
    if not np.isfinite(user_embedding).all():
        raise ModelFileError(f"model {model.path}: a user_embedding has NaN or infinity; train or export again")


class PaddedBatch(NamedTuple):
    """Some users as the graph takes them.

    Attributes:
        rows: (n,) int64, which histories these are; n up to B, padding rows follow.
        item_history: (B, bucket_len) int32.
        provider_history: (B, bucket_len) int32.
        lengths: (B,) int32.
    """

    rows: npt.NDArray[np.int64]
    item_history: npt.NDArray[np.int32]
    provider_history: npt.NDArray[np.int32]
    lengths: npt.NDArray[np.int32]

    def inputs(self) -> dict[str, npt.NDArray[np.int32]]:
        """By the names of the graph's inputs."""
        return {name: array for name, array in self._asdict().items() if name != "rows"}


def padded_batches(histories: Histories, widths: npt.NDArray[np.int64], *, batch_size: int) -> Iterator[PaddedBatch]:
    """Pack users bucket by bucket, each batch of one shape: who shares it with a user does not change its bits.

    Args:
        histories: (n histories) none of them empty.
        widths: of the buckets, ascending; the last one is max_len, and of longer histories the newest items are taken.
        batch_size: rows of each batch.
    """
    bucket = np.searchsorted(widths, np.minimum(histories.lengths, widths[-1]))
    for number in np.unique(bucket):
        users = np.flatnonzero(bucket == number)
        shape = {"bucket_len": int(widths[number]), "batch_size": batch_size}
        for first in range(0, len(users), batch_size):
            rows = users[first : first + batch_size]
            item_history, lengths = pack_histories(histories.items, histories.offsets, rows, **shape)
            provider_history, _ = pack_histories(histories.providers, histories.offsets, rows, **shape)
            yield PaddedBatch(rows, item_history, provider_history, lengths)
