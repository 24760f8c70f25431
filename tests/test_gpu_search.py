"""The search on a GPU, in Triton's interpreter: nothing that it leaves out scores above what it says.

tests/test_gpu.py asks the same of a GPU.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import naive
import numpy as np
import pytest
import torch

from ipsrec_gpu import search as search_module
from ipsrec_gpu.scan_table import TILE_ITEMS, TILE_USERS, lay_out_items, lay_out_users, table_exponent
from ipsrec_gpu.search import Search
from ipsrec_kernels.proposals import UNKNOWN


@pytest.fixture
def rng():
    return np.random.default_rng(20260)


@pytest.fixture
def small_catalogs_are_sampled(monkeypatch):
    """Let a few thousand items take the way of a million."""
    monkeypatch.setattr(search_module, "_DENSE_GROUPS", 8)
    monkeypatch.setattr(search_module, "_SAMPLE_GROUP", 4)
    monkeypatch.setattr(search_module, "_WINDOW", 2048)


def embeddings_of(rng, kind, num_items, dim):
    items = rng.standard_normal((num_items + 1, dim)).astype(np.float32)
    if kind == "norms over decades":
        items *= np.exp(2 * rng.standard_normal((num_items + 1, 1))).astype(np.float32)
    elif kind == "clusters in order":
        items = (items[rng.integers(0, 40, num_items + 1)] + 0.1 * items)[
            np.argsort(rng.integers(0, 40, num_items + 1))
        ]
    elif kind == "all negative":
        items = np.abs(items)
    elif kind == "equal":
        items[:] = items[1]
    elif kind == "small":
        items *= np.float32(1e-30)
    elif kind == "large":
        items *= np.float32(1e30)
    elif kind == "zeros":
        items[:] = 0
    return items


def users_of(rng, kind, num_users, dim):
    users = rng.standard_normal((num_users, dim)).astype(np.float32)
    return -np.abs(users) if kind == "all negative" else users


def check_law(items, by_norm, users, *, fetch, top_k, every_group=False):
    """Propose, and compare with every exact score; gives the share of users whose list is certain."""
    search = Search(torch.from_numpy(items), torch.from_numpy(by_norm), torch.zeros(len(items), dtype=torch.long))
    found = search.propose(torch.from_numpy(users), fetch=fetch, every_group=every_group)
    assert found.touched is None
    proposed, outside = found.items.numpy(), found.outside.numpy()
    assert (proposed.dtype, outside.dtype) == (np.int32, np.float32)
    assert len(proposed) == len(outside) == len(users)
    certain = 0
    for u in range(len(users)):
        exact = naive.full_scores(items, np.zeros(len(items), np.int32), users[u]).astype(np.float64)
        own = proposed[u][proposed[u] > 0]
        assert len(np.unique(own)) == len(own)
        assert np.isin(own, by_norm).all()
        left = np.setdiff1d(by_norm, own)
        assert not len(left) or exact[left].max() <= outside[u]
        best = np.sort(exact[by_norm])[::-1][: min(top_k, len(by_norm))]
        certain += (
            bool(best[-1] > outside[u] or outside[u] == -np.inf)
            and np.isin(by_norm[exact[by_norm] >= best[-1]], own).all()
        )
    return certain / max(1, len(users))


def by_norm_of(items, allowed=None):
    order = np.argsort(-np.linalg.norm(items.astype(np.float64), axis=1), kind="stable")
    return order[(order > 0) & (True if allowed is None else allowed[order])]


@pytest.mark.parametrize("dim", [1, 8, 64, 100])
@pytest.mark.parametrize("num_items", [1, 2, TILE_ITEMS - 1, TILE_ITEMS, TILE_ITEMS + 1])
def test_few_items(rng, num_items, dim):
    items, users = embeddings_of(rng, "gaussian", num_items, dim), users_of(rng, "gaussian", 5, dim)
    assert check_law(items, by_norm_of(items), users, fetch=num_items, top_k=num_items) == 1.0
    check_law(items, by_norm_of(items), users, fetch=1, top_k=1)


@pytest.mark.parametrize("num_users", [1, TILE_USERS, TILE_USERS + 1])
def test_any_number_of_users(rng, num_users):
    items, users = embeddings_of(rng, "gaussian", 300, 16), users_of(rng, "gaussian", num_users, 16)
    assert check_law(items, by_norm_of(items), users, fetch=32, top_k=10) > 0.95


@pytest.mark.parametrize("every_group", [False, True])
@pytest.mark.parametrize(
    ("kind", "least_certain"),
    [
        ("gaussian", 0.95),
        ("norms over decades", 0.95),
        ("clusters in order", 0.9),
        ("all negative", 0.0),
        ("equal", 0.0),
        ("small", 0.95),
        ("large", 0.95),
        ("zeros", 0.0),
    ],
)
def test_all_kinds_of_embeddings_through_the_threshold(
    rng, small_catalogs_are_sampled, kind, least_certain, every_group
):
    items, users = embeddings_of(rng, kind, 3000, 64), users_of(rng, kind, 24, 64)
    certain = check_law(items, by_norm_of(items), users, fetch=32, top_k=12, every_group=every_group)
    assert certain >= least_certain


def test_items_that_may_not_be_recommended_are_not_proposed(rng, small_catalogs_are_sampled):
    items, users = embeddings_of(rng, "gaussian", 2500, 32), users_of(rng, "gaussian", 10, 32)
    allowed = rng.random(2501) < 0.7
    assert check_law(items, by_norm_of(items, allowed), users, fetch=32, top_k=12) > 0.8


@pytest.mark.parametrize("room_of", [8, 500])
def test_items_of_the_historys_providers_reach_the_cut_or_are_left_out(rng, small_catalogs_are_sampled, room_of):
    items, users = embeddings_of(rng, "gaussian", 2600, 32), users_of(rng, "gaussian", 12, 32)
    allowed = rng.random(2601) < 0.9
    item_provider = np.concatenate([[0], np.sort(rng.integers(0, 30, 2600))])
    item_provider[item_provider == 29] = 28  # 29 is a provider without an item, and has no number any more
    providers = np.array([rng.permutation(29)[:4] for _ in range(12)], np.int32)
    providers[3] = 0
    terms = (8 * rng.standard_normal((12, 4)) * (providers > 0)).astype(np.float32)
    by_norm = by_norm_of(items, allowed)
    found = Search(*(torch.from_numpy(part) for part in (items, by_norm, item_provider))).propose(
        torch.from_numpy(users), fetch=room_of, weighed=(torch.from_numpy(providers), torch.from_numpy(terms))
    )
    touched, outside = found.touched.numpy(), found.outside.numpy()
    assert touched.shape == (12, 2 * room_of)
    for u in range(12):
        exact = naive.full_scores(items, np.zeros(len(items), np.int32), users[u]).astype(np.float64)
        full, own = exact.copy(), np.zeros(len(items), np.bool_)
        for provider, term in zip(providers[u], terms[u], strict=True):
            of_provider = (item_provider == provider) & (provider > 0) & allowed
            of_provider[0] = False
            full[of_provider] += float(term)
            own |= of_provider
        wanted = np.flatnonzero(own & (full > outside[u]))
        if touched[u, 0] == UNKNOWN:
            assert len(wanted) > room_of  # a bound is a little wide, not twice
            continue
        listed = touched[u][touched[u] > 0]
        assert len(np.unique(listed)) == len(listed)
        assert own[listed].all()
        assert np.isin(wanted, listed).all()
    assert (touched[:, 0] == UNKNOWN).any() == (room_of == 8)


def test_no_provider_at_all_touches_nothing(rng):
    items, users = embeddings_of(rng, "gaussian", 200, 16), users_of(rng, "gaussian", 3, 16)
    search = Search(*(torch.from_numpy(part) for part in (items, by_norm_of(items), np.zeros(201, np.int64))))
    nothing = torch.zeros((3, 0), dtype=torch.int32), torch.zeros((3, 0))
    assert not search.propose(torch.from_numpy(users), fetch=10, weighed=nothing).touched.any()


def test_a_score_below_the_smallest_float32_is_not_taken_for_nothing(rng):
    items = (-3e18 * (1 + rng.random((1001, 64)))).astype(np.float32)
    search = Search(*(torch.from_numpy(part) for part in (items, by_norm_of(items), np.zeros(1001, np.int64))))
    outside = search.propose(torch.full((2, 64), 3e18), fetch=32).outside
    assert outside.isfinite().all()  # -inf would say that all items are proposed
    nothing_left = search.propose(torch.full((2, 64), 3e18), fetch=1000).outside
    assert (nothing_left == -torch.inf).all()


def test_items_far_below_the_largest_keep_a_bound(rng):
    items = (1e-12 * rng.standard_normal((1001, 8))).astype(np.float32)
    items[:, 0], items[17] = 0, [1e38, 0, 0, 0, 0, 0, 0, 0]
    users = np.array([[0, 1, 1, 1, 1, 1, 1, 1], [0, 3, 1, 0, 0, 0, 0, -1]], np.float32)
    exact = users.astype(np.float64) @ items.astype(np.float64).T
    search = Search(*(torch.from_numpy(part) for part in (items, by_norm_of(items), np.zeros(1001, np.int64))))
    found = search.propose(torch.from_numpy(users), fetch=160)
    for u in range(2):
        left = np.setdiff1d(np.arange(1, 1001), found.items[u].numpy())
        assert exact[u, left].max() <= found.outside[u]


def test_a_user_of_zeros_is_uncertain_and_its_neighbours_are_not(rng):
    items, users = embeddings_of(rng, "gaussian", 400, 16), users_of(rng, "gaussian", 3, 16)
    users[1] = 0
    assert check_law(items, by_norm_of(items), users, fetch=40, top_k=20) == pytest.approx(2 / 3)


def test_users_of_all_sizes_share_a_block(rng):
    items = embeddings_of(rng, "gaussian", 500, 32)
    users = users_of(rng, "gaussian", 40, 32) * (10.0 ** rng.integers(-37, 37, (40, 1))).astype(np.float32)
    assert check_law(items, by_norm_of(items), users, fetch=40, top_k=20) == 1.0


def test_the_bound_holds_for_every_item_and_user(rng):
    """What fp16 products can be, whatever order they are added in and wherever bits are cut."""
    items = embeddings_of(rng, "norms over decades", 700, 24)
    users = users_of(rng, "gaussian", 30, 24)
    table, chosen = torch.from_numpy(items), torch.arange(1, 701)
    laid_out = lay_out_items(table, chosen, exponent=table_exponent(table, chosen))
    scan_users = lay_out_users(torch.from_numpy(users))
    exact = users.astype(np.float64) @ items[1:].astype(np.float64).T
    unscaled = 2.0 ** -(scan_users.exponents[:30].numpy()[:, None] + laid_out.exponent)
    scanned = (scan_users.users[:30].double() @ laid_out.items[:700].double().T).numpy() * unscaled
    tile = np.arange(700) // TILE_ITEMS
    bound = scan_users.norms[:30, None].double() * laid_out.tile_errors[tile].double()
    bound = (bound + scan_users.errors[:30, None].double() * laid_out.tile_norms[tile].double()).numpy() * unscaled
    assert (np.abs(scanned - exact) <= bound).all()
    # and it is not so wide that it would say nothing
    lengths = np.linalg.norm(users, axis=1)[:, None] * np.array(
        [np.linalg.norm(items[1:][tile == one], axis=1).max() for one in tile]
    )
    assert (bound <= 2.0**-9 * lengths).all()


def test_places_behind_the_last_item_hold_copies_of_others(rng):
    table = torch.from_numpy(embeddings_of(rng, "gaussian", 130, 8))
    chosen = torch.arange(1, 131)
    laid_out = lay_out_items(table, chosen, exponent=table_exponent(table, chosen))
    assert laid_out.num_tiles == 2
    assert laid_out.item_at[:130].tolist() == chosen.tolist()
    assert not laid_out.item_at[130:].any()
    assert torch.equal(laid_out.items[130], laid_out.items[129])
    assert torch.equal(laid_out.items[131], laid_out.items[128])


@pytest.mark.slow
def test_the_kernels_compile_for_gpus_that_are_not_here(tmp_path):
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment |= {"TRITON_CACHE_DIR": str(tmp_path), "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(
        [sys.executable, Path(__file__).with_name("compiled_kernels.py"), "scan", "80", "90"],
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    found = json.loads(done.stdout)
    assert len(found) == 24
    for kernel, used in found.items():
        assert used["stack"] <= (32 if kernel.endswith("sm_80") else 0), kernel  # a few registers more, once a tile
        assert used["local"] == 0, kernel
        assert used["vector_loads"] > 0, kernel
        assert used["shared"] <= (99 << 10 if kernel.endswith("sm_80") else 227 << 10), kernel
