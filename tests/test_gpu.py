"""What only a GPU can show of scoring; `pytest -m gpu` runs it all, where torch and onnxruntime-gpu have CUDA."""

from __future__ import annotations

import functools
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from encoder_files import drawn_model, random_histories, write_encoder_file
from model_files import write_model_file
from test_onnx_onnx_search import KINDS, check_law, make

from ipsrec_gpu.search import Search
from ipsrec_onnx.cards import CardOptions
from ipsrec_onnx.doctor import doctor, placement_problems
from ipsrec_onnx.encoding import encode
from ipsrec_onnx.histories import Histories
from ipsrec_onnx.machine import gpu_names
from ipsrec_onnx.model_file import open_model_file
from ipsrec_onnx.onnx_search import OnnxSearch
from ipsrec_onnx.placement import find_placement
from ipsrec_onnx.retrieval import build_ranker, rank_users
from ipsrec_onnx.scoring import score
from ipsrec_onnx.session import available_execution_providers, place_on_device
from ipsrec_onnx.stage_times import StageTimes

pytestmark = pytest.mark.gpu

needs_torch = pytest.mark.skipif(not torch.cuda.is_available(), reason="torch finds no GPU")
needs_onnxruntime = pytest.mark.skipif(
    "CUDAExecutionProvider" not in available_execution_providers(), reason="onnxruntime has no CUDA"
)


@needs_torch
@pytest.mark.parametrize("every_group", [False, True])
@pytest.mark.parametrize(
    ("kind", "dim"),
    [*(("gaussian", dim) for dim in (1, 16, 24, 32, 64, 100, 128)), ("norms over decades", 64), ("all negative", 64)],
)
def test_what_the_search_leaves_out_scores_below_what_it_says(kind, dim, every_group):
    generator = torch.Generator("cuda").manual_seed(0)
    items = torch.randn(300_001, dim, device="cuda", generator=generator)
    users = torch.randn(500, dim, device="cuda", generator=generator)
    if kind == "norms over decades":
        items *= torch.exp(torch.randn(300_001, 1, device="cuda", generator=generator))
    elif kind == "all negative":
        items, users = items.abs(), -users.abs()
    by_norm = torch.argsort(-items[1:].norm(dim=1), stable=True) + 1
    nobody = torch.zeros(300_001, dtype=torch.long, device="cuda")
    found = Search(items, by_norm, nobody).propose(users, fetch=128, every_group=every_group)
    exact = users.double() @ items.double().T
    exact[:, 0] = -torch.inf
    best = exact.topk(100, dim=1).values[:, -1]
    left = exact.scatter(1, found.items.long(), -torch.inf)
    assert bool((left.amax(1) <= found.outside.double()).all())
    certain = (best > found.outside.double()).float().mean()
    assert kind == "all negative" or dim == 1 or float(certain) > 0.99


@needs_torch
@needs_onnxruntime
@pytest.mark.parametrize("search", ["triton", "onnx"])
@pytest.mark.parametrize("rules", [{}, {"keep_seen": True}, {"max_per_provider": 2}, {"top_k": 500}])
@pytest.mark.parametrize("with_history_terms", [False, True])
def test_lists_are_those_of_the_cpu_for_the_same_vectors(tmp_path, rng, search, rules, with_history_terms):
    path = write_model_file(
        tmp_path / "model.onnx", num_items=200_000, num_providers=900, dim=64, with_history_terms=with_history_terms
    ).path
    model = open_model_file(path)
    lengths = rng.integers(0, 60, 3_000)
    items = rng.integers(1, 200_001, lengths.sum()).astype(np.int32)
    histories = Histories(items, model.catalog.item_provider[items], np.concatenate([[0], np.cumsum(lengths)]))
    rules = {"top_k": 100, "keep_seen": False, "max_per_provider": None, **rules}
    on_gpu = build_ranker(model, None, **rules, device="cuda", cards=CardOptions(search=search))
    on_cpu = replace(on_gpu, card_search=None)  # encodes on the GPU still
    rank = functools.partial(rank_users, histories=histories, candidates=None, cold_users="popular", times=StageTimes())
    for expected, found in zip(rank(on_cpu).lists, rank(on_gpu).lists, strict=True):
        np.testing.assert_array_equal(found, expected)
    counts = on_gpu.card_search.counts()
    # A third of the items of this model are one and the same: who has it among the best cannot be certain at once.
    assert counts.users == np.count_nonzero(lengths)


@needs_torch
@needs_onnxruntime
@pytest.mark.parametrize("precision", ["fp32", "fp16"])
@pytest.mark.parametrize("name", ["ipsrec-c", "ipsrec-s", "sasrec"])
def test_a_users_vector_depends_neither_on_the_others_nor_on_the_search(tmp_path, rng, name, precision):
    path = write_encoder_file(tmp_path / "model.onnx", drawn_model(name, max_len=20), precision=precision)
    model = open_model_file(path)
    triton, onnx = (
        build_ranker(
            model, None, top_k=5, keep_seen=True, max_per_provider=None, device="cuda", cards=CardOptions(search=search)
        )
        for search in ("triton", "onnx")
    )
    lengths = rng.integers(1, model.max_len + 1, 9_000)
    items = rng.integers(1, model.catalog.num_items + 1, lengths.sum()).astype(np.int32)
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    histories = Histories(items, model.catalog.item_provider[items], offsets)
    together = triton.encode(histories)
    np.testing.assert_array_equal(onnx.encode(histories), together)
    with ThreadPoolExecutor(4) as pool:  # streams, pinned memory and buffers of several callers
        for found in pool.map(lambda _: triton.encode(histories), range(8)):
            np.testing.assert_array_equal(found, together)
    for u in rng.integers(0, 9_000, 20):
        own = items[offsets[u] : offsets[u + 1]]
        alone = triton.encode(Histories(own, model.catalog.item_provider[own], np.array([0, len(own)])))
        np.testing.assert_array_equal(alone[0], together[u])


@needs_torch
@needs_onnxruntime
@pytest.mark.skipif(len(gpu_names()) < 2, reason="there are no two GPUs")
@pytest.mark.parametrize("search", ["triton", "onnx"])
def test_two_gpus_and_the_second_alone_write_what_one_writes(tmp_path, rng, search):
    model = write_model_file(tmp_path / "model.onnx", num_items=20_000, dim=64, max_len=20)
    ids = model.catalog.item_ids.to_numpy()
    histories = [rng.choice(ids, rng.integers(0, 30)).tolist() for _ in range(5_000)]
    pq.write_table(
        pa.table({"user_id": np.arange(5_000), "item_history": pa.array(histories, pa.list_(pa.int64()))}),
        tmp_path / "users.parquet",
    )
    written = set()
    for gpus in ([0], [1], [0, 1]):
        output = tmp_path / f"{'-'.join(map(str, gpus))}.parquet"
        score(model.path, tmp_path / "users.parquet", output, device="cuda", gpus=gpus, search=search)
        written.add(output.read_bytes())
    assert len(written) == 1


@needs_onnxruntime
@pytest.mark.parametrize("search", ["cpu", "onnx", *(["triton"] if torch.cuda.is_available() else [])])
def test_scoring_on_the_gpu_gives_the_lists_of_the_cpu(tmp_path, rng, search):
    model = write_model_file(tmp_path / "model.onnx", num_items=2_000, dim=64, max_len=50)
    ids = model.catalog.item_ids.to_numpy()
    histories = [rng.choice(ids, rng.integers(0, 80)).tolist() for _ in range(500)]
    users = Path(tmp_path / "users.parquet")
    pq.write_table(
        pa.table({"user_id": np.arange(500), "item_history": pa.array(histories, pa.list_(pa.int64()))}), users
    )
    lists = {}
    for device in ("cpu", "cuda"):
        chosen = {"search": search} if device == "cuda" else {}
        score(model.path, users, tmp_path / f"{device}.parquet", device=device, **chosen)  # type: ignore[arg-type]
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


@needs_onnxruntime
@pytest.mark.parametrize("name", ["ipsrec-c", "ipsrec-s", "sasrec"])
@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_every_node_of_an_export_runs_on_the_gpu(name, precision, tmp_path, rng):
    model = drawn_model(name, max_len=12)
    opened = open_model_file(write_encoder_file(tmp_path / "m.onnx", model, precision=precision))
    assert placement_problems("m.onnx", find_placement(opened, "cuda")) == []
    histories = random_histories(np.array([1, 2, 12, 5, 12]), model, rng)
    on_the_cpu = encode(open_model_file(write_encoder_file(tmp_path / "full.onnx", model)), histories)
    on_the_gpu = build_ranker(
        opened, None, top_k=5, keep_seen=True, max_per_provider=None, device="cuda", cards=CardOptions(search="cpu")
    ).encode(histories)
    apart = np.abs(on_the_gpu - on_the_cpu).max() / np.abs(on_the_cpu).max()
    assert apart < 1e-2
