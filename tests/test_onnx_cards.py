"""Encoding and searching on GPUs, with the CPU in the place of one: lists are those of the CPU's own search.

All of it runs as on a GPU, streams and pinned memory apart; tests/test_gpu.py runs it on one.
"""

import functools
from dataclasses import replace

import numpy as np
import onnxruntime
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from click.testing import CliRunner
from model_files import write_model_file

from ipsrec_cli.main import ipsrec
from ipsrec_onnx import card_opening, card_search, cards
from ipsrec_onnx.card_opening import choose_search, open_cards, open_sharded_cards
from ipsrec_onnx.card_search import CardSearch
from ipsrec_onnx.cards import CardOptions, Cards, EncodingCards, ShardedCards, card_widths
from ipsrec_onnx.encoding import encode
from ipsrec_onnx.errors import DataError, ExecutionProviderError, ModelFileError, OutOfMemoryError
from ipsrec_onnx.histories import Histories
from ipsrec_onnx.item_shards import CatalogShards
from ipsrec_onnx.model_file import open_model_file
from ipsrec_onnx.retrieval import build_ranker, rank_users
from ipsrec_onnx.scorer import Scorer
from ipsrec_onnx.scoring import score
from ipsrec_onnx.stage_times import StageTimes

MAX_LEN, NUM_ITEMS = 12, 400
SEARCHES = ["triton", "onnx"]


@pytest.fixture(autouse=True)
def the_cpu_stands_in(monkeypatch):
    """Small batches and few programs, and every part of the way to a GPU that can be had without one."""
    monkeypatch.setattr(cards, "_BATCH", 32)
    monkeypatch.setattr("ipsrec_gpu.search._CHUNK", 64)
    monkeypatch.setattr(card_opening, "why_no_triton", lambda dim, gpus: None)


@pytest.fixture
def on_the_cpu(monkeypatch):
    """--device cuda opens cards on the CPU."""
    monkeypatch.setattr("ipsrec_onnx.score_options.refuse_missing", lambda device: None)
    monkeypatch.setattr(
        "ipsrec_onnx.retrieval.open_cards",
        lambda model, table, options, *, device: open_cards(model, table, options, device="cpu"),
    )
    monkeypatch.setattr(
        "ipsrec_onnx.retrieval.open_sharded_cards",
        lambda model, tables, options, *, device: open_sharded_cards(model, tables, options, device="cpu"),
    )


def write_model(path, *, with_history_terms=True, num_items=NUM_ITEMS):
    model = write_model_file(
        path, num_items=num_items, num_providers=40, dim=24, max_len=MAX_LEN, with_history_terms=with_history_terms
    )
    return open_model_file(model.path)


def draw_histories(rng, model, count, *, longest=30):
    lengths = rng.integers(0, longest + 1, count)
    items = rng.integers(1, model.catalog.num_items + 1, lengths.sum()).astype(np.int32)
    return Histories(items, model.catalog.item_provider[items], np.concatenate([[0], np.cumsum(lengths)]))


def rankers(model, allowed=None, *, search, gpus=(0,), **rules):
    """One that searches on the CPU, and one like it with cards."""
    rules = {"top_k": 20, "keep_seen": False, "max_per_provider": None, **rules}
    plain = build_ranker(model, allowed, **rules)
    opened = open_cards(model, plain.table, CardOptions(gpus, search), device="cpu")
    found = CardSearch(opened, top_k=plain.top_k)
    return plain, replace(plain, encode=opened.encode, card_search=found, on_cards=True)


def sharded_rankers(path, allowed=None, *, shards, search, gpus=(0,), **rules):
    """One of the whole catalog that searches on the CPU, and one in shards with cards."""
    rules = {"top_k": 20, "keep_seen": False, "max_per_provider": None, **rules}
    mapped = open_model_file(path, mapped_in=path.parent)
    cut = build_ranker(mapped, allowed, **rules, shards=CatalogShards(shards, path.parent))
    opened = open_sharded_cards(mapped, cut.tables, CardOptions(gpus, search), device="cpu")
    found = CardSearch(opened, top_k=cut.top_k) if isinstance(opened, ShardedCards) else None
    plain = build_ranker(open_model_file(path), allowed, **rules)
    return plain, replace(cut, encode=opened.encode, card_search=found, on_cards=True)


def assert_same_lists(one, other, histories, candidates=None):
    rank = functools.partial(
        rank_users, histories=histories, candidates=candidates, cold_users="popular", times=StageTimes()
    )
    for expected, found in zip(rank(one).lists, rank(other).lists, strict=True):
        np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("search", SEARCHES)
@pytest.mark.parametrize("with_history_terms", [False, True])
@pytest.mark.parametrize(
    "rules",
    [{}, {"keep_seen": True}, {"max_per_provider": 2}, {"top_k": 1}, {"top_k": NUM_ITEMS}],
    ids=["seen items out", "seen items kept", "a cap", "one item", "all items"],
)
def test_lists_are_those_of_the_cpu(tmp_path, rng, search, with_history_terms, rules):
    model = write_model(tmp_path / "model.onnx", with_history_terms=with_history_terms)
    plain, with_cards = rankers(model, search=search, **rules)
    assert_same_lists(plain, with_cards, draw_histories(rng, model, 25))
    counts = with_cards.card_search.counts()
    assert counts.search == search
    assert 0 < counts.users <= 25  # those without a history are not searched for
    assert counts.on_cpu <= counts.again <= counts.users


@pytest.mark.parametrize("search", SEARCHES)
@pytest.mark.parametrize("share", [0.0, 0.01, 0.5])
def test_only_allowed_items_are_listed(tmp_path, rng, search, share):
    model = write_model(tmp_path / "model.onnx")
    allowed = rng.random(NUM_ITEMS + 1) < share
    opened = open_cards(model, build_ranker(model, allowed, top_k=5, keep_seen=False, max_per_provider=None).table,
                        CardOptions(search=search), device="cpu")  # fmt: skip
    if not allowed[1:].any():
        assert not isinstance(opened, Cards)  # nothing to search
        return
    plain, with_cards = rankers(model, allowed, search=search)
    assert_same_lists(plain, with_cards, draw_histories(rng, model, 30))


def test_users_of_two_gpus_get_the_same_lists(tmp_path, rng):
    model = write_model(tmp_path / "model.onnx")
    plain, with_cards = rankers(model, search="triton", gpus=(0, 1))
    for _ in range(3):
        assert_same_lists(plain, with_cards, draw_histories(rng, model, 10))


@pytest.mark.parametrize("search", [*SEARCHES, "cpu"])
def test_vectors_are_those_of_the_cpu_session(tmp_path, rng, search):
    model = write_model(tmp_path / "model.onnx")
    table = build_ranker(model, None, top_k=5, keep_seen=False, max_per_provider=None).table
    opened = open_cards(model, table, CardOptions(search=search), device="cpu")
    assert isinstance(opened, Cards) == (search != "cpu")
    assert isinstance(opened, EncodingCards)
    for count in (1, 31, 32, 33, 100):
        histories = draw_histories(rng, model, count).without_empty()
        np.testing.assert_array_equal(opened.encode(histories), encode(model, histories))


def test_what_is_fetched_grows_while_many_are_searched_again(tmp_path, rng, monkeypatch):
    monkeypatch.setattr(card_search, "_SPARE", 0)
    model = write_model(tmp_path / "model.onnx", with_history_terms=False)
    plain, with_cards = rankers(model, search="triton", max_per_provider=1, top_k=30)
    histories = draw_histories(rng, model, 30, longest=5)
    monkeypatch.setattr(with_cards.card_search, "_spare", 1)
    assert_same_lists(plain, with_cards, histories)
    first = with_cards.card_search.counts()
    assert first.again > 0.05 * first.users
    assert with_cards.card_search._spare == 2


def test_widths_of_buckets_are_few_and_end_at_max_len():
    assert card_widths(20).tolist() == [5, 10, 15, 20]
    assert card_widths(3).tolist() == [1, 2, 3]
    assert card_widths(1).tolist() == [1]
    assert card_widths(50).tolist() == [13, 25, 38, 50]


@pytest.mark.parametrize("search", [*SEARCHES, "cpu"])
@pytest.mark.parametrize("rules", [{}, {"keep_seen": True, "max_per_provider": 3}], ids=["plain", "rules"])
def test_a_whole_job_writes_the_rows_of_the_cpu(tmp_path, rng, on_the_cpu, search, rules):
    model = write_model(tmp_path / "model.onnx")
    ids = model.catalog.item_ids.to_numpy()
    histories = [rng.choice(ids, rng.integers(0, 25)).tolist() for _ in range(40)]
    users = tmp_path / "users.parquet"
    pq.write_table(
        pa.table({"user_id": np.arange(40), "item_history": pa.array(histories, pa.list_(pa.int64()))}), users
    )
    cpu = score(model.path, users, tmp_path / "cpu.parquet", top_k=12, **rules)
    report = score(
        model.path, users, tmp_path / "gpu.parquet", top_k=12, device="cuda", gpus=[0, 1], search=search, **rules
    )
    assert pq.read_table(tmp_path / "gpu.parquet").equals(pq.read_table(tmp_path / "cpu.parquet"))
    assert cpu.gpu_search is None
    assert (report.gpu_search is None) == (search == "cpu")
    if report.gpu_search is not None:
        assert report.to_json()["gpu_search"]["search"] == search
    scorer = Scorer(model.path, top_k=12, device="cuda", search=search, **rules)
    assert scorer.score(pq.read_table(users)).candidates.equals(pq.read_table(tmp_path / "cpu.parquet"))


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"gpus": ()}, ValueError, r"gpus are \(\), expected one number or more"),
        ({"gpus": (0, 0)}, ValueError, r"gpus are \(0, 0\), expected one number or more, from 0, each once"),
        ({"gpus": (-1,)}, ValueError, r"gpus are \(-1,\)"),
        ({"search": "faiss"}, ValueError, "search is 'faiss', expected one of"),
        ({"gpus": (1,), "device": "cpu"}, ExecutionProviderError, "found --device cpu; add --device cuda"),
        ({"search": "onnx", "device": "cpu"}, ExecutionProviderError, "--gpus and --search are about GPUs"),
        ({"search": "onnx", "approximate": 0.9}, DataError, "--approximate searches on the CPU, found --search onnx"),
    ],
)
def test_options_that_exclude_each_other_are_refused(tmp_path, on_the_cpu, options, error, message):
    with pytest.raises(error, match=message):
        score("model.onnx", "users.parquet", tmp_path / "out.parquet", **{"device": "cuda", **options})


def test_a_search_that_cannot_be_had_is_refused_or_not_chosen(monkeypatch):
    monkeypatch.setattr(card_opening, "why_no_triton", lambda dim, gpus: "triton is not installed")
    assert choose_search("auto", dim=64, num_items=10, gpus=(0,)) == "onnx"
    with pytest.raises(
        ExecutionProviderError, match=r"--search triton: triton is not installed; use --search onnx, or"
    ):
        choose_search("triton", dim=64, num_items=10, gpus=(0,))
    monkeypatch.undo()
    assert choose_search("auto", dim=64, num_items=0, gpus=(0,)) == "cpu"
    with pytest.raises(ExecutionProviderError, match="finds no GPU"):
        choose_search("triton", dim=64, num_items=10, gpus=(0,))


@pytest.mark.parametrize("gpus", ["", "0,0", "0,,1", "zero", "-1"])
def test_the_command_line_refuses_gpus_that_are_no_numbers(gpus):
    done = CliRunner().invoke(
        ipsrec, ["score", "--model", "m", "--input", "i", "--output", "o", "--device", "cuda", "--gpus", gpus]
    )
    assert done.exit_code == 2
    assert "is no list of numbers, each once; try 0,1" in done.output


@pytest.mark.parametrize(
    "failure", [MemoryError("no room"), type("OutOfMemoryError", (RuntimeError,), {})("CUDA out. x")]
)
@pytest.mark.parametrize("when", ["__init__", "propose"])
def test_a_gpu_without_room_is_named(tmp_path, rng, monkeypatch, failure, when):
    model = write_model(tmp_path / "model.onnx")

    def fail(*_, **__):
        raise failure

    if when == "__init__":
        monkeypatch.setattr(f"ipsrec_gpu.card.TritonCard.{when}", fail)
        with pytest.raises(OutOfMemoryError, match=r"GPU 3: its memory ran out \((no room|CUDA out)\); free it, or"):
            rankers(model, search="triton", gpus=(3,))
        return
    plain, with_cards = rankers(model, search="triton", gpus=(3,))
    monkeypatch.setattr(f"ipsrec_gpu.card.TritonCard.{when}", fail)
    with pytest.raises(OutOfMemoryError, match="GPU 3: its memory ran out"):
        assert_same_lists(plain, with_cards, draw_histories(rng, model, 3))


def test_gpus_of_several_kinds_are_refused(monkeypatch):
    monkeypatch.setattr(card_opening, "gpu_names", lambda: ["A", "A", "B"])
    assert card_opening.kind_of_gpus((0, 1)) == "A"
    assert card_opening.kind_of_gpus((2,)) == "B"
    with pytest.raises(ExecutionProviderError, match="--gpus: 1 is A, 2 is B; unlike GPUs round user vectors"):
        card_opening.kind_of_gpus((1, 2))


@pytest.mark.parametrize("search", SEARCHES)
def test_few_users_at_a_time_get_the_same_lists(tmp_path, rng, monkeypatch, search):
    monkeypatch.setattr(card_search, "MOST_FETCHED", 500)  # seven users, and two that are searched for again
    model = write_model(tmp_path / "model.onnx")
    plain, with_cards = rankers(model, search=search, max_per_provider=2)
    assert_same_lists(plain, with_cards, draw_histories(rng, model, 25))
    assert with_cards.card_search.counts().again > 0


@pytest.mark.parametrize("search", SEARCHES)
def test_vectors_that_are_none_are_refused_before_anything_is_searched(tmp_path, rng, monkeypatch, search):
    model = write_model(tmp_path / "model.onnx")
    _, with_cards = rankers(model, search=search)
    table = np.full((NUM_ITEMS + 1, 24), np.nan, np.float32)
    card = with_cards.encode.__self__._cards[0]
    if search == "triton":
        card._embeddings = torch.from_numpy(table)
    else:
        card._table = onnxruntime.OrtValue.ortvalue_from_numpy(table)
    with pytest.raises(ModelFileError, match="a user_embedding has NaN or infinity"):
        assert_same_lists(with_cards, with_cards, draw_histories(rng, model, 5))


def test_vectors_of_another_width_are_refused(tmp_path, rng):
    model = write_model(tmp_path / "model.onnx")
    _, with_cards = rankers(model, search="onnx")
    with_cards.encode.__self__._cards[0]._dim = 7
    with pytest.raises(ModelFileError, match=r"has shape \[32, 24\], expected \[32, 7\]; export it again"):
        with_cards.encode(draw_histories(rng, model, 5).without_empty())


def test_a_defect_of_a_card_stays_what_it_is(tmp_path, rng, monkeypatch):
    model = write_model(tmp_path / "model.onnx")
    plain, with_cards = rankers(model, search="triton")
    monkeypatch.setattr("ipsrec_gpu.card.TritonCard.propose", lambda *_, **__: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        assert_same_lists(plain, with_cards, draw_histories(rng, model, 3))


def test_a_gpu_that_is_not_there_is_refused(monkeypatch):
    monkeypatch.setattr("ipsrec_gpu.available.num_gpus", lambda: 2)
    with pytest.raises(ExecutionProviderError, match=r"--gpus: there is no GPU 5, torch finds 2, numbered from 0"):
        card_opening._refuse_missing_gpus((0, 5), "cuda")
    card_opening._refuse_missing_gpus((0, 1), "cuda")


@pytest.mark.parametrize("search", SEARCHES)
@pytest.mark.parametrize("with_history_terms", [False, True])
@pytest.mark.parametrize(("shards", "gpus"), [(2, (0,)), (7, (1, 0, 3))])
def test_lists_of_gpus_that_share_a_catalog_are_those_of_the_cpu(
    tmp_path, rng, search, with_history_terms, shards, gpus
):
    model = write_model(tmp_path / "model.onnx", with_history_terms=with_history_terms)
    plain, cut = sharded_rankers(model.path, search=search, shards=shards, gpus=gpus)
    assert_same_lists(plain, cut, draw_histories(rng, model, 12))
    counts = cut.card_search.counts()
    assert counts.search == search
    assert counts.on_cpu <= counts.again <= counts.users


@pytest.mark.parametrize("search", SEARCHES)
@pytest.mark.parametrize(
    "rules",
    [{"keep_seen": True}, {"max_per_provider": 2}, {"top_k": 1}, {"top_k": NUM_ITEMS}],
    ids=["seen items kept", "a cap", "one item", "all items"],
)
def test_rules_hold_across_gpus_that_share_a_catalog(tmp_path, rng, search, rules):
    model = write_model(tmp_path / "model.onnx")
    plain, cut = sharded_rankers(model.path, search=search, shards=3, gpus=(0, 1), **rules)
    assert_same_lists(plain, cut, draw_histories(rng, model, 20))


@pytest.mark.parametrize("search", [*SEARCHES, "cpu"])
@pytest.mark.parametrize("share", [0.0, 0.004, 0.3])
def test_gpus_without_an_allowed_item_are_left_out(tmp_path, rng, search, share):
    model = write_model(tmp_path / "model.onnx")
    allowed = rng.random(NUM_ITEMS + 1) < share
    allowed[: NUM_ITEMS // 2] = False  # nothing for the first of two GPUs
    plain, cut = sharded_rankers(model.path, allowed, search=search, shards=2, gpus=(0, 1))
    assert (cut.card_search is None) == (search == "cpu" or not allowed.any())
    assert_same_lists(plain, cut, draw_histories(rng, model, 12))


@pytest.mark.parametrize("search", SEARCHES)
def test_the_best_items_may_all_lie_with_one_gpu(tmp_path, rng, search, monkeypatch):
    """Each GPU is asked for its share and some more; where that is too little, users are searched for again."""
    monkeypatch.setattr(card_search, "_STEP", 1)
    monkeypatch.setattr(cards, "_STEP", 1)
    monkeypatch.setattr(card_search, "_SPARE", 4)
    model = write_model(tmp_path / "model.onnx", with_history_terms=False)
    plain, cut = sharded_rankers(model.path, search=search, shards=4, gpus=(0, 1, 2, 3), top_k=40, keep_seen=True)
    monkeypatch.setattr(cards.math, "isqrt", lambda number: 0)
    assert_same_lists(plain, cut, draw_histories(rng, model, 12))
    assert cut.card_search.counts().again > 0


@pytest.mark.parametrize("search", SEARCHES)
def test_few_users_at_a_time_get_the_same_lists_of_shards(tmp_path, rng, monkeypatch, search):
    monkeypatch.setattr(card_search, "MOST_FETCHED", 500)
    model = write_model(tmp_path / "model.onnx")
    plain, cut = sharded_rankers(model.path, search=search, shards=2, gpus=(0, 1), max_per_provider=2)
    assert_same_lists(plain, cut, draw_histories(rng, model, 15))


@pytest.mark.parametrize("failure", [MemoryError("no room")])
def test_a_gpu_without_room_for_its_shards_is_named(tmp_path, rng, monkeypatch, failure):
    model = write_model(tmp_path / "model.onnx")
    plain, cut = sharded_rankers(model.path, search="triton", shards=2, gpus=(4, 5))

    def fail(*_, **__):
        raise failure

    monkeypatch.setattr(cut.encode.__self__._searching[5], "search", fail)
    with pytest.raises(OutOfMemoryError, match="GPU 5: its memory ran out"):
        assert_same_lists(plain, cut, draw_histories(rng, model, 3))
    assert not any(cut.encode.__self__._searches.values())


def test_a_card_has_its_shards_alone(tmp_path):
    model = write_model(tmp_path / "model.onnx")
    _, cut = sharded_rankers(model.path, search="triton", shards=4, gpus=(0, 1))
    held = {
        number: set(card._search.table.item_at[card._search.table.item_at > 0].tolist())
        for number, card in cut.encode.__self__._searching.items()
    }
    assert held == {0: {*range(1, 101), *range(201, 301)}, 1: {*range(101, 201), *range(301, 401)}}
    assert list(cut.encode.__self__._encoding) == [0]


@pytest.mark.parametrize("search", ["auto", *SEARCHES, "cpu"])
def test_a_job_on_gpus_that_share_a_catalog_writes_the_same_bytes(tmp_path, rng, on_the_cpu, search):
    model = write_model(tmp_path / "model.onnx")
    ids = model.catalog.item_ids.to_pylist()
    histories = [[ids[at] for at in rng.integers(0, NUM_ITEMS, length)] for length in rng.integers(0, 25, 40)]
    users = tmp_path / "users.parquet"
    pq.write_table(
        pa.table({"user_id": np.arange(40), "item_history": pa.array(histories, pa.list_(pa.int64()))}), users
    )
    options = {"device": "cuda", "search": search, "gpus": (0, 1), "top_k": 15, "max_per_provider": 3}
    score(model.path, users, tmp_path / "whole.parquet", **options)
    score(model.path, users, tmp_path / "cut.parquet", **options, catalog_shards=3)
    assert (tmp_path / "cut.parquet").read_bytes() == (tmp_path / "whole.parquet").read_bytes()


def test_fewer_shards_than_gpus_are_refused(tmp_path, on_the_cpu):
    with pytest.raises(
        DataError, match="--catalog-shards 2: 3 GPUs share the shards, and some would have none; give 3"
    ):
        score("m.onnx", "u.parquet", tmp_path / "o.parquet", device="cuda", gpus=(0, 1, 2), catalog_shards=2)
