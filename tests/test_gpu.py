"""What only a GPU can show; `pytest -m gpu` runs it all, where torch and onnxruntime-gpu have CUDA."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from model_files import write_model_file
from test_onnx_onnx_search import KINDS, check_law, make
from training_data import make_interactions

from ipsrec_onnx.doctor import doctor
from ipsrec_onnx.onnx_search import OnnxSearch
from ipsrec_onnx.scoring import score
from ipsrec_onnx.session import available_execution_providers, place_on_device
from ipsrec_train.prepare import prepare
from ipsrec_train.settings import MODEL_SETTINGS, settings_for
from ipsrec_train.train import train
from ipsrec_train.training_settings import TrainingSettings

pytestmark = pytest.mark.gpu

needs_torch = pytest.mark.skipif(not torch.cuda.is_available(), reason="torch finds no GPU")
needs_onnxruntime = pytest.mark.skipif(
    "CUDAExecutionProvider" not in available_execution_providers(), reason="onnxruntime has no CUDA"
)


@needs_torch
@pytest.mark.parametrize("model", MODEL_SETTINGS)
def test_training_on_the_gpu_learns_what_it_learns_on_the_cpu(model, tmp_path, rng):
    pq.write_table(make_interactions(rng), tmp_path / "interactions.parquet")
    prepare(tmp_path / "interactions.parquet", tmp_path / "dataset", min_user_interactions=3, min_item_interactions=1)
    settings = settings_for(model, None, {"dim": 16, "max_len": 10, "dropout": 0.0})
    losses = {}
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
        losses[device] = [line["loss"] for line in run.metrics]
    np.testing.assert_allclose(losses["cuda"], losses["cpu"], rtol=2e-3)


@needs_onnxruntime
def test_scoring_on_the_gpu_gives_the_lists_of_the_cpu(tmp_path, rng):
    model = write_model_file(tmp_path / "model.onnx", num_items=2_000, dim=64, max_len=50)
    ids = model.catalog.item_ids.to_numpy()
    histories = [rng.choice(ids, rng.integers(0, 80)).tolist() for _ in range(500)]
    users = Path(tmp_path / "users.parquet")
    pq.write_table(
        pa.table({"user_id": np.arange(500), "item_history": pa.array(histories, pa.list_(pa.int64()))}), users
    )
    lists = {}
    for device in ("cpu", "cuda"):
        score(model.path, users, tmp_path / f"{device}.parquet", device=device)  # type: ignore[arg-type]
        lists[device] = pq.read_table(tmp_path / f"{device}.parquet")
    # This model only adds float32 numbers, so that both devices give the same bits.
    assert lists["cuda"].equals(lists["cpu"])


@needs_onnxruntime
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dim", [64, 100])
def test_no_item_that_the_search_by_onnx_leaves_out_is_above_the_bound(kind, dim, rng):
    embeddings, users = make(kind, rng, 200_000, dim)
    allowed = rng.random(200_001) < 0.9
    proposals = OnnxSearch(embeddings, allowed, device="cuda").propose(users, fetch=128)
    check_law(embeddings, allowed, users, proposals, fetch=128)


@needs_onnxruntime
def test_most_lists_of_the_search_by_onnx_are_certain(rng):
    embeddings = rng.standard_normal((200_001, 64)).astype(np.float32)
    users = rng.standard_normal((1_100, 64)).astype(np.float32)
    search = OnnxSearch(embeddings, None, device="cuda")
    proposals = search.propose(users, fetch=128)
    products = check_law(embeddings, None, users, proposals, fetch=128)
    last = np.partition(products[:, 1:], -100, axis=1)[:, -100]
    assert (last > proposals.outside).mean() >= 0.99
    placed = search.propose_on_device(place_on_device(users, device="cuda"), fetch=128)
    np.testing.assert_array_equal(placed.outside, proposals.outside)


@needs_onnxruntime
def test_doctor_finds_cuda():
    assert doctor("cuda")["problems"] == []
