"""What only a GPU can show of training; `pytest -m gpu` runs it where torch has CUDA."""

from __future__ import annotations

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from training_data import make_interactions

from ipsrec_train import losses
from ipsrec_train.history_scores import ScoredItems, scored_items
from ipsrec_train.prepare import prepare
from ipsrec_train.settings import MODEL_SETTINGS, settings_for
from ipsrec_train.train import train
from ipsrec_train.training_settings import TrainingSettings

pytestmark = pytest.mark.gpu

needs_torch = pytest.mark.skipif(not torch.cuda.is_available(), reason="torch finds no GPU")


@needs_torch
@pytest.mark.parametrize("model", MODEL_SETTINGS)
def test_training_on_the_gpu_learns_what_it_learns_on_the_cpu(model, tmp_path, rng):
    pq.write_table(make_interactions(rng), tmp_path / "interactions.parquet")
    prepare(tmp_path / "interactions.parquet", tmp_path / "dataset", min_user_interactions=3, min_item_interactions=1)
    settings = settings_for(model, None, {"dim": 16, "max_len": 10, "dropout": 0.0})
    learned = {}
    for device in ("cpu", "cuda"):
        run = train(
            tmp_path / "dataset",
            tmp_path / device,
            model=model,
            settings=settings,
            training=TrainingSettings(epochs=3, batch_size=32),
            device=device,  # type: ignore[arg-type]
            quiet=True,
        )
        learned[device] = [line["loss"] for line in run.metrics]
    np.testing.assert_allclose(learned["cuda"], learned["cpu"], rtol=2e-3)


@needs_torch
@pytest.mark.parametrize(("training", "rtol"), [({"precision": "bf16"}, 0.02), ({"compile": True}, 2e-3)])
def test_fast_training_on_the_gpu_learns_what_plain_training_learns(training, rtol, tmp_path, rng):
    pq.write_table(make_interactions(rng), tmp_path / "interactions.parquet")
    prepare(tmp_path / "interactions.parquet", tmp_path / "dataset", min_user_interactions=3, min_item_interactions=1)
    settings = settings_for("ipsrec-c", None, {"dim": 16, "max_len": 10, "dropout": 0.0})
    learned = []
    for changes in ({}, training):
        run = train(
            tmp_path / "dataset",
            tmp_path / f"run {len(learned)}",
            settings=settings,
            training=TrainingSettings(epochs=3, batch_size=32, **changes),
            device="cuda",
            quiet=True,
        )
        learned.append([line["loss"] for line in run.metrics])
    np.testing.assert_allclose(learned[1], learned[0], rtol=rtol)


@needs_torch
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_the_loss_on_the_gpu_is_that_of_the_cpu_in_one_chunk_and_in_many(precision, monkeypatch):
    generator = torch.Generator().manual_seed(3)
    table, users = torch.randn(5_001, 64, generator=generator), torch.randn(700, 64, generator=generator)
    targets = torch.randint(1, 5_001, (700,), generator=generator)
    columns = scored_items(torch.cat([torch.zeros(1), 1 + torch.arange(5_000) // 13]).long())
    found = {}
    for device, at_once in (("cpu", 2_000_000), ("cuda", 10**9), ("cuda", 10**6)):
        monkeypatch.setitem(losses.SCORES_AT_ONCE, device, at_once)
        leaves = [tensor.to(device).requires_grad_() for tensor in (users, table)]
        there = ScoredItems(*(part.to(device) for part in columns))
        loss = losses.softmax_loss(*leaves, targets.to(device), columns=there, precision=precision)
        loss.backward()
        found[device, at_once] = [part.detach().cpu() for part in (loss, *(leaf.grad for leaf in leaves))]
    for parts in list(found.values())[1:]:
        for part, expected in zip(parts, found["cpu", 2_000_000], strict=True):
            close = {"fp32": (1e-3, 1e-6), "bf16": (0.03, 0.03 * float(expected.abs().max()))}[precision]
            torch.testing.assert_close(part, expected, rtol=close[0], atol=close[1])
