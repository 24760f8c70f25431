"""The search by an ONNX graph: no bound is too low, on any data; and bounds are narrow where data are ordinary."""

from __future__ import annotations

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import naive
import numpy as np
import pytest

from ipsrec_kernels.padding import PADDING
from ipsrec_onnx import onnx_search
from ipsrec_onnx.errors import DefectError, ExecutionProviderError
from ipsrec_onnx.onnx_search import GRAPH, OnnxSearch
from ipsrec_onnx.search_table import BLOCK, build_search_table
from ipsrec_onnx.session import available_execution_providers, place_on_device

HALF_STEP = 2.0**-11  # of float16, relative
USERS = 9


def gaussian(rng, num_items, dim):
    return rng.standard_normal((num_items, dim)), rng.standard_normal((USERS, dim))


def clustered(rng, num_items, dim):
    """Clusters in the order of item_index, and users near them."""
    centres = rng.standard_normal((num_items // 50 + 1, dim))
    items = centres[np.arange(num_items) // 50] + 0.05 * rng.standard_normal((num_items, dim))
    return items, centres[rng.integers(0, len(centres), USERS)]


def trained_like(rng, num_items, dim):
    """Norms over decades, a few items of a very large one."""
    items, users = gaussian(rng, num_items, dim)
    items *= 10.0 ** rng.uniform(-4, 0, (num_items, 1))
    items[: max(1, num_items // 500)] *= 300
    return items, users


def all_negative(rng, num_items, dim):
    items, users = gaussian(rng, num_items, dim)
    return -np.abs(items) - 0.1, np.abs(users) + 0.1


def all_equal(rng, num_items, dim):
    items, users = gaussian(rng, 1, dim)
    return np.repeat(items, num_items, axis=0), np.repeat(users, USERS, axis=0)


def duplicates(rng, num_items, dim):
    items, users = gaussian(rng, num_items, dim)
    return items[rng.integers(0, max(1, num_items // 40), num_items)], users


def zeros(rng, num_items, dim):
    """Some users and some items."""
    items, users = gaussian(rng, num_items, dim)
    items[::3], users[::2] = 0.0, 0.0
    return items, users


def no_items_but_zeros(rng, num_items, dim):
    return np.zeros((num_items, dim)), gaussian(rng, 1, dim)[1]


def huge(rng, num_items, dim):
    items, users = gaussian(rng, num_items, dim)
    return 1e30 * items, 1e6 * users


def too_huge(rng, num_items, dim):
    """Scores above the largest float32."""
    items, users = gaussian(rng, num_items, dim)
    return 1e30 * items, 1e30 * users


def tiny(rng, num_items, dim):
    items, users = gaussian(rng, num_items, dim)
    return 1e-30 * items, users


def too_tiny(rng, num_items, dim):
    """Scores below the smallest float32, and numbers that are no normal ones."""
    items, users = gaussian(rng, num_items, dim)
    users[::2] *= 1e-10
    return 1e-40 * items, 1e-30 * users


def users_of_all_sizes(rng, num_items, dim):
    items, users = gaussian(rng, num_items, dim)
    return items, users * 10.0 ** np.linspace(-44, 37, USERS)[:, None]


def rounded_down(rng, num_items, dim):
    """All rounding to float16 goes one way, as far as it can, and makes items alike; norms say nothing about them."""
    seen = np.arange(dim) < dim // 2
    items = np.where(seen, 1 + HALF_STEP * rng.uniform(0.9, 0.999, (num_items, dim)), rng.uniform(0, 2, (1, dim)))
    items[:, ~seen] = rng.permuted(items[:, ~seen] * rng.uniform(0.5, 1, (num_items, 1)), axis=1)
    return items, np.tile(np.where(seen, 1 + 0.999 * HALF_STEP, 0.0), (USERS, 1))


def few_bits(rng, num_items, dim):
    """Elements that float16 has hardly a bit for, once scaled."""
    items, users = gaussian(rng, num_items, dim)
    items *= 1e-9
    items[0] = 1.0
    return items, users


def few_bits_of_logits(rng, num_items, dim):
    """Items of which float16 loses nothing, with logits of which it loses most."""
    items, users = gaussian(rng, num_items, dim)
    items = rng.integers(-1, 2, items.shape) * 2.0**-33
    items[0] = dim**-0.5
    return items, np.round(users * 2**8) / 2**8


KINDS = [
    gaussian,
    clustered,
    trained_like,
    all_negative,
    all_equal,
    duplicates,
    zeros,
    no_items_but_zeros,
    huge,
    too_huge,
    tiny,
    too_tiny,
    users_of_all_sizes,
    rounded_down,
    few_bits,
    few_bits_of_logits,
]


def make(kind, rng, num_items, dim):
    """Embeddings (num_items + 1, dim), row 0 what nobody may read, and users, float32."""
    items, users = kind(rng, num_items, dim)
    nothing = np.full((1, dim), np.nan)
    return np.concatenate([nothing, items]).astype(np.float32), users.astype(np.float32)


def check_law(embeddings, allowed, users, proposals, *, fetch):
    """No item twice, none that is not allowed, and none left out above the bound."""
    items, outside = proposals.items, proposals.outside
    assert items.shape == (len(users), fetch) and items.dtype == np.int32
    assert outside.shape == (len(users),) and outside.dtype == np.float32
    may = np.ones(len(embeddings), np.bool_) if allowed is None else allowed.copy()
    may[PADDING] = False
    products = users.astype(np.float64) @ np.nan_to_num(embeddings).astype(np.float64).T
    for row, found in enumerate(items):
        real = found[found != PADDING]
        assert len(set(real.tolist())) == len(real)
        assert may[real].all()
        assert len(real) >= min(fetch, may.sum())
        left_out = may.copy()
        left_out[real] = False
        assert products[row][left_out].max(initial=-np.inf) <= outside[row]
        if not left_out.any():
            assert outside[row] == -np.inf
    return products


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dim", [8, 64, 100])
def test_no_item_that_is_left_out_is_above_the_bound(kind, dim, rng):
    for num_items in (1, 2, 15, 239, 240, 241, 481, 5_003):
        embeddings, users = make(kind, rng, num_items, dim)
        search = OnnxSearch(embeddings, None, device="cpu")
        for fetch in (1, 10, 128):
            check_law(embeddings, None, users, search.propose(users, fetch=fetch), fetch=fetch)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dim", [8, 64, 100])
def test_each_logit_holds_its_score(kind, dim, rng):
    """The bound of logits by itself; in a search, that of the scores in float32 is mostly the larger one."""
    embeddings, users = make(kind, rng, 5_003, dim)
    table = build_search_table(embeddings, allowed=None)
    products, logits, norms = naive.half_logits(
        table.exact_items.reshape(-1, table.exact_items.shape[2])[:, :dim], users
    )
    errors = norms[:, None] * np.repeat(table.block_errors[0], BLOCK).astype(np.float64) + table.logit_absolute
    assert (products <= logits + errors).all()


@pytest.mark.parametrize("share", [0.0, 0.001, 0.3, 0.97])
def test_only_allowed_items_are_proposed(share, rng):
    embeddings, users = make(gaussian, rng, 3_000, 64)
    allowed = rng.random(3_001) < share
    allowed[PADDING] = True  # never is, whatever the caller says
    search = OnnxSearch(embeddings, allowed, device="cpu")
    for fetch in (3, 50):
        check_law(embeddings, allowed, users, search.propose(users, fetch=fetch), fetch=fetch)


def test_the_law_agrees_with_the_slow_twin(rng):
    embeddings, users = make(trained_like, rng, 700, 8)
    allowed = rng.random(701) < 0.8
    items, outside, *_ = OnnxSearch(embeddings, allowed, device="cpu").propose(users, fetch=20)
    for user, found, bound in zip(users, items, outside, strict=True):
        assert naive.best_left_out(embeddings, allowed, user, found.tolist()) <= bound


@pytest.mark.parametrize("num_items", [0, 1, 7])
def test_all_that_is_allowed_is_proposed_where_it_is_no_more_than_asked_for(num_items, rng):
    embeddings, users = make(gaussian, rng, 600, 8)
    allowed = np.zeros(601, np.bool_)
    allowed[rng.choice(600, num_items, replace=False) + 1] = True
    search = OnnxSearch(embeddings, allowed, device="cpu")
    for fetch in (max(num_items, 1), 1_000):
        items, outside, *_ = search.propose(users, fetch=fetch)
        assert (outside == -np.inf).all()
        for found in items:
            assert sorted(found[found != PADDING]) == np.flatnonzero(allowed).tolist()


@pytest.mark.parametrize("num_items", [100, 239, 250])
def test_copies_that_fill_a_block_take_no_place(num_items, rng):
    # Scores are all negative, so that the items of small norms, which the copies are of, are the best ones.
    embeddings, users = make(all_negative, rng, num_items, 8)
    items = OnnxSearch(embeddings, None, device="cpu").propose(users, fetch=num_items - 1).items
    assert (items != PADDING).all()


@pytest.mark.parametrize("kind", [gaussian, trained_like])
def test_lists_of_100_out_of_128_are_certain(kind, rng):
    embeddings, _ = make(kind, rng, 20_000, 64)
    users = rng.standard_normal((1_100, 64)).astype(np.float32)  # more than one run takes
    proposals = OnnxSearch(embeddings, None, device="cpu").propose(users, fetch=128)
    products = check_law(embeddings, None, users, proposals, fetch=128)
    last = np.sort(products[:, 1:], axis=1)[:, -100]
    assert (last > proposals.outside).mean() >= 0.99


def test_what_is_proposed_is_the_best_in_order(rng):
    embeddings, users = make(gaussian, rng, 2_000, 64)
    items = OnnxSearch(embeddings, None, device="cpu").propose(users, fetch=10).items
    products = users.astype(np.float64) @ embeddings[1:].astype(np.float64).T
    np.testing.assert_array_equal(items, np.argsort(-products, axis=1)[:, :10] + 1)


def test_a_user_with_nan_or_infinity_on_the_device_gets_nothing(rng):
    embeddings, users = make(gaussian, rng, 2_000, 8)
    search = OnnxSearch(embeddings, None, device="cpu")
    whole = search.propose(users, fetch=20)
    users[1, 3], users[4, 0], users[6, 7] = np.nan, np.inf, -np.inf
    items, outside, *_ = search.propose_on_device(place_on_device(users, device="cpu"), fetch=20)
    broken = np.isin(np.arange(USERS), [1, 4, 6])
    assert (items[broken] == PADDING).all() and (outside[broken] == np.inf).all()
    np.testing.assert_array_equal(items[~broken], whole.items[~broken])
    np.testing.assert_array_equal(outside[~broken], whole.outside[~broken])


@pytest.mark.parametrize("num_users", [0, 1, 16, 17, 1_024, 1_025, 2_050])
def test_any_number_of_users(num_users, rng):
    embeddings, _ = make(gaussian, rng, 500, 8)
    users = rng.standard_normal((num_users, 8)).astype(np.float32)
    search = OnnxSearch(embeddings, None, device="cpu")
    proposals = search.propose(users, fetch=5)
    check_law(embeddings, None, users, proposals, fetch=5)
    if num_users:
        alone = search.propose(users[-1:], fetch=5)
        np.testing.assert_array_equal(alone.items[0], proposals.items[-1])


def test_runs_are_small_enough_for_the_kernels_counters(rng):
    embeddings, _ = make(gaussian, rng, 500, 100)
    table = OnnxSearch(embeddings, None, device="cpu")._table
    for blocks in (1, 4_768, 200_000):
        large = table._replace(block_errors=np.zeros((1, blocks), np.float32))
        for fetch in (1, 128, 10_000):
            at_once = onnx_search._users_at_once(large, 10**6, fetch)
            assert 1 <= at_once <= 1_024 and at_once & (at_once - 1) == 0
            assert at_once * blocks * 240 < 2**31
            assert at_once == 1 or at_once * fetch * 16 * 104 < 2**31


def test_threads_share_a_search(rng):
    embeddings, _ = make(gaussian, rng, 3_000, 64)
    users = rng.standard_normal((400, 64)).astype(np.float32)
    search = OnnxSearch(embeddings, None, device="cpu")
    alone = search.propose(users, fetch=20)
    with ThreadPoolExecutor(4) as pool:
        parts = list(pool.map(lambda first: search.propose(users[first : first + 50], fetch=20), range(0, 400, 50)))
    np.testing.assert_array_equal(np.concatenate([part.items for part in parts]), alone.items)


def test_the_bound_is_rounded_up():
    numbers = np.array([0.1, 1.0, -0.1, 1e-60, -1e-60, 0.0, 3e38, 1e39, -1e39, -np.inf])
    rounded = onnx_search._rounded_up(numbers)
    assert (rounded.astype(np.float64) >= numbers).all()
    with np.errstate(over="ignore"):
        below = np.nextafter(rounded, np.float32(-np.inf)).astype(np.float64)
    assert (below[:-1] < numbers[:-1]).all()  # the smallest such
    assert rounded[-1] == -np.inf and rounded[-2] > -np.inf


def test_wrong_arguments_are_refused(rng):
    embeddings, users = make(gaussian, rng, 500, 8)
    search = OnnxSearch(embeddings, None, device="cpu")
    with pytest.raises(ValueError, match="fetch is 0, expected 1 or more"):
        search.propose(users, fetch=0)
    with pytest.raises(ValueError, match=r"shape \[9, 4\], expected float32 of \(B, 8\)"):
        search.propose(users[:, :4].copy(), fetch=1)
    with pytest.raises(ValueError, match="user_embedding is float64"):
        search.propose(users.astype(np.float64), fetch=1)
    users[2, 2] = np.inf
    with pytest.raises(ValueError, match=r"user_embedding\[2\] has NaN or infinity"):
        search.propose(users, fetch=1)
    embeddings[7] = np.nan
    with pytest.raises(ValueError, match=r"item_embeddings\[7\] has NaN or infinity"):
        OnnxSearch(embeddings, None, device="cpu")
    with pytest.raises(ValueError, match="allowed has 3 entries, expected 501"):
        OnnxSearch(embeddings, np.ones(3, np.bool_), device="cpu")
    with pytest.raises(
        ValueError, match=r"item_embeddings has shape \(1, 16385\), expected \(num_items \+ 1, 1..16384"
    ):
        OnnxSearch(np.zeros((1, 16_385), np.float32), None, device="cpu")


def test_sums_in_float16_are_refused(rng, monkeypatch):
    embeddings, _ = make(gaussian, rng, 500, 8)
    monkeypatch.setenv("ORT_CUDA_GEMM_OPTIONS", "1")
    with pytest.raises(ExecutionProviderError, match=r"ORT_CUDA_GEMM_OPTIONS is '1'.*unset it"):
        OnnxSearch(embeddings, None, device="cuda")
    monkeypatch.setattr("platform.machine", lambda: "aarch64")
    with pytest.raises(ExecutionProviderError, match="on a aarch64 CPU"):
        OnnxSearch(embeddings, None, device="cpu")


@pytest.mark.skipif("CUDAExecutionProvider" in available_execution_providers(), reason="onnxruntime has CUDA")
def test_a_gpu_that_is_not_there_is_an_error(rng):
    embeddings, _ = make(gaussian, rng, 500, 8)
    with pytest.raises(ExecutionProviderError, match="CUDAExecutionProvider is not in this onnxruntime"):
        OnnxSearch(embeddings, None, device="cuda")
    with pytest.raises(ExecutionProviderError, match=r"16 bytes cannot be copied to device 3: .*`ipsrec doctor"):
        place_on_device(np.zeros(4, np.float32), device="cuda", card=3)


def test_a_graph_that_fails_is_a_defect(rng):
    embeddings, users = make(gaussian, rng, 500, 8)
    search = OnnxSearch(embeddings, None, device="cpu")
    search._placed["item_at"] = place_on_device(np.zeros((1, 16), np.int32), device="cpu")
    with pytest.raises(DefectError, match=r"ONNX Runtime failed in a graph of ours: .*indices element out of"):
        search.propose(users, fetch=20)


def test_the_committed_graph_is_what_its_generator_makes(tmp_path):
    path = tmp_path / "graph.onnx"
    subprocess.run([sys.executable, "-m", "ipsrec_export.search_graph", path], check=True)
    assert path.read_bytes() == GRAPH.read_bytes()
