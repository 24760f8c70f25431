"""Buckets, and that neighbours cannot change a bit of a user's embedding."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from model_files import write_model_file

from ipsrec_onnx.encoding import ENCODE_BATCH, bucket_lens, check_encoder, encode
from ipsrec_onnx.errors import ExecutionProviderError
from ipsrec_onnx.histories import Histories
from ipsrec_onnx.model_file import open_model_file


@pytest.mark.parametrize("max_len", [1, 2, 3, 7, 8, 20, 50, 100, 1000])
def test_buckets_hold_every_length_and_waste_little(max_len: int) -> None:
    widths = bucket_lens(max_len)
    assert widths[-1] == max_len
    assert (np.diff(widths) > 0).all()
    lengths = np.arange(1, max_len + 1)
    assert (widths[np.searchsorted(widths, lengths)] <= 1.25 * lengths).all()


def test_the_contracts_buckets() -> None:
    upper = [10, 12, 14, 16, 20, 24, 28, 32, 40, 48, 56, 64, 80, 96, 100]
    assert bucket_lens(100).tolist() == [1, 2, 3, 4, 5, 6, 7, 8, *upper]


def test_an_embedding_does_not_depend_on_the_company(tmp_path: Path, rng: np.random.Generator) -> None:
    model = open_model_file(write_model_file(tmp_path / "m.onnx", max_len=20).path)
    lengths = rng.integers(1, 40, 5 * ENCODE_BATCH + 3)
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    items = rng.integers(1, 41, offsets[-1]).astype(np.int32)
    histories = Histories(items, rng.integers(0, 8, offsets[-1]).astype(np.int32), offsets)
    together = encode(model, histories)
    for user in range(len(lengths)):
        part = slice(offsets[user], offsets[user + 1])
        alone = Histories(histories.items[part], histories.providers[part], np.array([0, lengths[user]]))
        assert encode(model, alone).tobytes() == together[user].tobytes()


def test_newest_keeps_the_last_items() -> None:
    histories = Histories(np.arange(1, 7, dtype=np.int32), np.zeros(6, np.int32), np.array([0, 1, 1, 6]))
    newest = histories.newest(3)
    assert newest.items.tolist() == [1, 4, 5, 6]
    assert newest.offsets.tolist() == [0, 1, 1, 4]
    assert histories.without_empty().offsets.tolist() == [0, 1, 6]


def test_an_encoder_that_is_none_or_not_on_the_device_is_refused() -> None:
    with pytest.raises(ValueError, match="expected one of"):
        check_encoder("torch", "cpu")
    with pytest.raises(ExecutionProviderError, match="--encoder fused runs on the CPU"):
        check_encoder("fused", "cuda")
