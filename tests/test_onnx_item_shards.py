"""A catalog in shards: the same lists as whole, the same bytes of a job, and nothing in memory that a file holds."""

from __future__ import annotations

import itertools
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner
from encoder_files import drawn_model, write_encoder_file
from model_files import write_model_file
from test_onnx_scoring import expect_naive, random_users

from ipsrec_cli.main import ipsrec
from ipsrec_kernels.proposals import UNKNOWN, Proposals, join_proposals, proposals_among
from ipsrec_onnx.encoding import encode, open_encoder
from ipsrec_onnx.errors import DataError, ModelFileError
from ipsrec_onnx.histories import Histories
from ipsrec_onnx.item_shards import CatalogShards, lay_out_items, shard_ranges
from ipsrec_onnx.machine_memory import held_memory, resident_memory
from ipsrec_onnx.mapped_arrays import map_array, mapped_bytes
from ipsrec_onnx.model_file import bytes_to_open, model_file_bytes, open_model_file
from ipsrec_onnx.retrieval import build_ranker
from ipsrec_onnx.scoring import score

NUM_ITEMS = 40
COUNTS = [2, 3, 7, NUM_ITEMS, NUM_ITEMS + 5]


@pytest.mark.parametrize("num_items", [0, 1, 2, 10, 41])
@pytest.mark.parametrize("count", [1, 2, 3, 7, 50])
def test_ranges_cut_a_catalog_into_parts_of_like_length(num_items, count):
    ranges = shard_ranges(num_items, count)
    assert list(itertools.chain(*ranges)) == list(range(1, num_items + 1))
    assert len(ranges) == max(1, min(count, num_items))
    lengths = [len(one) for one in ranges]
    assert max(lengths) - min(lengths) <= 1


RULES = [
    {},
    {"keep_seen": True},
    {"max_per_provider": 1},
    {"max_per_provider": 2, "keep_seen": True, "top_k": NUM_ITEMS + 3},
    {"candidates_column": "choice", "max_per_provider": 2},
    {"top_k": 1},
    {"layout": "long"},
    {"cold_users": "empty"},
    {"encoder": "onnxruntime", "bad_rows": "divert", "threads": 1},
]


@pytest.mark.parametrize("rules", RULES, ids=[",".join(rules) or "default" for rules in RULES])
@pytest.mark.parametrize("with_history_terms", [False, True])
def test_a_jobs_bytes_do_not_depend_on_the_shards(tmp_path, rng, rules, with_history_terms):
    model = write_model_file(tmp_path / "m.onnx", num_items=NUM_ITEMS, with_history_terms=with_history_terms)
    users = tmp_path / "users.parquet"
    pq.write_table(random_users(model, rng, 60), users)
    options = {"top_k": 15, **rules}
    score(model.path, users, tmp_path / "whole.parquet", **options)
    expected = (tmp_path / "whole.parquet").read_bytes()
    for count in COUNTS:
        score(model.path, users, tmp_path / "out.parquet", **options, catalog_shards=count, overwrite=True)
        assert (tmp_path / "out.parquet").read_bytes() == expected, count
    left = {path.name for path in tmp_path.iterdir()}
    assert {name for name in left if name.startswith(".")} <= {name for name in left if "whole" in name}


def test_a_job_in_shards_gives_the_lists_of_the_twin(tmp_path, rng):
    model = write_model_file(tmp_path / "m.onnx", num_items=NUM_ITEMS)
    table = random_users(model, rng, 40)
    pq.write_table(table, tmp_path / "users.parquet")
    score(
        model.path,
        tmp_path / "users.parquet",
        tmp_path / "out.parquet",
        top_k=9,
        max_per_provider=2,
        provider_column="provider_history",
        catalog_shards=3,
    )
    expect_naive(model, table, tmp_path / "out.parquet", top_k=9, max_per_provider=2)


@pytest.mark.parametrize("share", [0.0, 0.2, 0.9])
@pytest.mark.parametrize("deny", [False, True])
def test_lists_of_items_hold_in_every_shard(tmp_path, rng, share, deny):
    """Among them shards of which nothing is allowed, and an allow list of one item."""
    model = write_model_file(tmp_path / "m.onnx", num_items=NUM_ITEMS)
    pq.write_table(random_users(model, rng, 30), tmp_path / "users.parquet")
    ids = model.catalog.item_ids.to_pylist()
    chosen = ids[: int(share * len(ids))] or ids[7:8]
    (tmp_path / "list.txt").write_text("".join(f"{one}\n" for one in chosen))
    options = {"deny_items" if deny else "allow_items": tmp_path / "list.txt", "top_k": 12}
    score(model.path, tmp_path / "users.parquet", tmp_path / "whole.parquet", **options)
    for count in (2, 7):
        score(
            model.path, tmp_path / "users.parquet", tmp_path / "o.parquet", **options, catalog_shards=count,
            overwrite=True,
        )  # fmt: skip
        assert (tmp_path / "o.parquet").read_bytes() == (tmp_path / "whole.parquet").read_bytes()


def test_one_item_is_one_shard(tmp_path, rng):
    model = write_model_file(tmp_path / "m.onnx", num_items=1, num_providers=1)
    pq.write_table(random_users(model, rng, 5), tmp_path / "users.parquet")
    for name, count in (("whole", 1), ("cut", 4)):
        score(model.path, tmp_path / "users.parquet", tmp_path / name, top_k=3, catalog_shards=count, keep_seen=True)
    assert (tmp_path / "cut").read_bytes() == (tmp_path / "whole").read_bytes()


def test_no_users_are_no_rows(tmp_path, rng):
    model = write_model_file(tmp_path / "m.onnx")
    pq.write_table(random_users(model, rng, 0), tmp_path / "users.parquet")
    score(model.path, tmp_path / "users.parquet", tmp_path / "out.parquet", catalog_shards=3)
    assert pq.read_metadata(tmp_path / "out.parquet").num_rows == 0


def test_a_job_goes_on_with_other_shards(tmp_path, rng):
    """The manifest of a job in two shards is that of one in three: its bytes are the same."""
    model = write_model_file(tmp_path / "m.onnx")
    pq.write_table(random_users(model, rng, 20), tmp_path / "users.parquet")
    arguments = (model.path, tmp_path / "users.parquet", tmp_path / "out.parquet")
    score(*arguments, catalog_shards=2)
    assert score(*arguments, catalog_shards=3, resume=True).resumed_rows == 20


@pytest.mark.parametrize("dim", [8, 12])
def test_shards_are_kept_in_the_index_cache(tmp_path, rng, dim, monkeypatch):
    model = write_model_file(tmp_path / "m.onnx", dim=dim)
    pq.write_table(random_users(model, rng, 20), tmp_path / "users.parquet")
    score(model.path, tmp_path / "users.parquet", tmp_path / "whole.parquet")
    options = {"catalog_shards": 3, "index_cache": tmp_path / "cache", "overwrite": True}
    for _ in range(2):
        score(model.path, tmp_path / "users.parquet", tmp_path / "out.parquet", **options)
        assert (tmp_path / "out.parquet").read_bytes() == (tmp_path / "whole.parquet").read_bytes()
        assert len(list((tmp_path / "cache").iterdir())) == 3
        monkeypatch.setattr("ipsrec_onnx.index_cache.build_item_table", None)  # now they must come from the folder
    monkeypatch.undo()
    score(model.path, tmp_path / "users.parquet", tmp_path / "out.parquet", **{**options, "catalog_shards": 2})
    assert len(list((tmp_path / "cache").iterdir())) == 5


def external(path: Path, moved: Path) -> Path:
    """The same model with its weights in a file beside it."""
    onnx.save_model(
        onnx.load(path), moved, save_as_external_data=True, location=moved.name + ".data", size_threshold=1000
    )
    return moved


@pytest.mark.parametrize("outside", [False, True])
@pytest.mark.parametrize("dim", [8, 12])
def test_a_mapped_model_is_the_model(tmp_path, rng, dim, outside):
    path = write_model_file(tmp_path / "m.onnx", dim=dim).path
    if outside:
        path = external(path, tmp_path / "outside.onnx")
    plain, mapped = open_model_file(path), open_model_file(path, mapped_in=tmp_path)
    np.testing.assert_array_equal(mapped.item_embeddings, plain.item_embeddings)
    assert mapped_bytes(mapped.item_embeddings) == plain.item_embeddings.nbytes
    assert mapped_bytes(plain.item_embeddings) == 0
    assert (mapped.model, mapped.settings, mapped.gate) == (plain.model, plain.settings, plain.gate)
    lengths = rng.integers(1, 9, 30)
    items = rng.integers(1, 41, lengths.sum()).astype(np.int32)
    histories = Histories(items, plain.catalog.item_provider[items], np.concatenate([[0], np.cumsum(lengths)]))
    assert encode(mapped, histories).tobytes() == encode(plain, histories).tobytes()
    assert bytes_to_open(path, mapped=False) == model_file_bytes(path)
    assert bytes_to_open(path, mapped=True) == model_file_bytes(path) - plain.item_embeddings.nbytes
    assert bytes_to_open(tmp_path / "none.onnx", mapped=True) == 0


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
@pytest.mark.parametrize("name", ["ipsrec-c", "sasrec"])
def test_exported_encoders_give_the_same_vectors_from_a_mapped_table(tmp_path, rng, name, precision):
    path = write_encoder_file(tmp_path / "m.onnx", drawn_model(name, max_len=6), precision=precision)
    plain, mapped = open_model_file(path), open_model_file(path, mapped_in=tmp_path)
    lengths = rng.integers(1, 7, 40)
    items = rng.integers(1, plain.catalog.num_items + 1, lengths.sum()).astype(np.int32)
    histories = Histories(items, plain.catalog.item_provider[items], np.concatenate([[0], np.cumsum(lengths)]))
    encoders = ["onnxruntime", "fused"] if precision == "fp32" else ["onnxruntime"]
    for encoder in encoders:
        vectors = [open_encoder(model, encoder)(histories).tobytes() for model in (plain, mapped)]
        assert vectors[0] == vectors[1], encoder


def test_broken_embeddings_of_any_shard_are_refused_by_their_row(tmp_path):
    path = write_model_file(tmp_path / "m.onnx").path
    proto = onnx.load(path)
    (tensor,) = [one for one in proto.graph.initializer if one.name == "item_embeddings"]
    table = onnx.numpy_helper.to_array(tensor).copy()
    table[33, 2] = np.nan
    tensor.CopyFrom(onnx.numpy_helper.from_array(table, "item_embeddings"))
    onnx.save(proto, path)
    pq.write_table(pa.table({"user_id": [1], "item_history": [[1]]}), tmp_path / "users.parquet")
    with pytest.raises(ModelFileError, match=r"item_embeddings\[33\] has NaN or infinity"):
        score(path, tmp_path / "users.parquet", tmp_path / "out.parquet", catalog_shards=3)


def test_a_model_without_a_table_is_refused_in_both_ways(tmp_path):
    path = write_model_file(tmp_path / "m.onnx").path
    proto = onnx.load(path)
    for tensor in proto.graph.initializer:
        if tensor.name == "item_embeddings":
            tensor.name = "renamed"
    for node in proto.graph.node:
        node.input[:] = ["renamed" if one == "item_embeddings" else one for one in node.input]
    proto.graph.node.append(onnx.helper.make_node("Identity", ["renamed"], ["item_embeddings"]))
    onnx.save(proto, path)
    for folder in (None, tmp_path):
        with pytest.raises(ModelFileError, match="item_embeddings has shape None among the weights"):
            open_model_file(path, mapped_in=folder)


@pytest.mark.parametrize(
    "array",
    [
        np.arange(12, dtype=np.int32).reshape(3, 4)[:, ::2],
        np.zeros((0, 5), np.float32),
        np.zeros(0, np.bool_),
        np.arange(5_000_000, dtype=np.int64),
        np.zeros((2, 3, 4, 5), np.uint8),
    ],
    ids=["strided", "no rows", "nothing", "several blocks", "four axes"],
)
def test_a_mapped_array_is_the_array_and_leaves_no_file(tmp_path, array):
    mapped = map_array(array, tmp_path)
    np.testing.assert_array_equal(mapped, array)
    assert (mapped.dtype, mapped.shape) == (array.dtype, array.shape)
    assert not mapped.flags.writeable
    assert mapped_bytes(mapped, mapped) == array.nbytes
    assert not list(tmp_path.iterdir())


def test_a_folder_that_cannot_be_written_is_one_line(tmp_path):
    with pytest.raises((DataError, FileNotFoundError), match="not-there"):
        map_array(np.ones(3), tmp_path / "not-there")


def test_mapped_pages_are_not_held(tmp_path):
    before = held_memory(0)
    mapped = map_array(np.ones(1 << 24), tmp_path)
    assert mapped.sum() == 1 << 24  # now all pages are resident
    found, resident = held_memory(mapped_bytes(mapped)), resident_memory()
    assert before == pytest.approx(found, abs=32 << 20)
    assert resident - found > 100 << 20


def test_all_tables_of_shards_are_mapped(tmp_path):
    model = open_model_file(write_model_file(tmp_path / "m.onnx", dim=12).path, mapped_in=tmp_path)
    tables = lay_out_items(model, None, shards=CatalogShards(3, tmp_path), index_cache=None)
    assert len({table.item_embeddings.ctypes.data for table in tables}) == 1
    for table in tables:
        for name, array in table._asdict().items():
            if name not in ("item_provider", "dim") and array.size:
                assert mapped_bytes(array) == array.nbytes, name
    ranker = build_ranker(
        model, None, top_k=3, keep_seen=False, max_per_provider=None, shards=CatalogShards(3, tmp_path)
    )
    assert ranker.mapped_bytes > model.item_embeddings.nbytes


def test_an_approximate_search_has_no_shards(tmp_path):
    with pytest.raises(DataError, match="--approximate has one index of the whole catalog in memory, found --catalog-"):
        score("m.onnx", "users.parquet", tmp_path / "out.parquet", approximate=0.9, catalog_shards=2)
    with pytest.raises(ValueError, match="catalog_shards is 0, expected 1 or more"):
        score("m.onnx", "users.parquet", tmp_path / "out.parquet", catalog_shards=0)


def test_the_command_takes_shards(tmp_path, rng):
    model = write_model_file(tmp_path / "m.onnx")
    pq.write_table(random_users(model, rng, 10), tmp_path / "users.parquet")
    arguments = ["score", "--model", str(model.path), "--input", str(tmp_path / "users.parquet"), "--json", "--quiet"]
    for name, more in (("whole.parquet", []), ("cut.parquet", ["--catalog-shards", "2"])):
        done = CliRunner().invoke(ipsrec, [*arguments, "--output", str(tmp_path / name), *more])
        assert done.exit_code == 0, done.output
        assert json.loads(done.stdout)["rows_out"] == 10
    assert (tmp_path / "cut.parquet").read_bytes() == (tmp_path / "whole.parquet").read_bytes()
    assert CliRunner().invoke(ipsrec, [*arguments, "--output", "o", "--catalog-shards", "0"]).exit_code == 2


@pytest.mark.slow
def test_memory_of_a_job_in_shards_holds_no_item(tmp_path):
    """Anonymous memory of two jobs of one big catalog, each in a process of its own: 96 MB of embeddings and more."""
    num_items = 250_000
    model = write_model_file(tmp_path / "m.onnx", num_items=num_items, dim=96, with_history_terms=False)
    pq.write_table(pa.table({"user_id": [1], "item_history": [[1]]}), tmp_path / "users.parquet")
    code = """
import sys
from pathlib import Path
from ipsrec_onnx.item_shards import CatalogShards
from ipsrec_onnx.machine_memory import held_memory
from ipsrec_onnx.model_file import open_model_file
from ipsrec_onnx.retrieval import build_ranker
shards = CatalogShards(int(sys.argv[2]), Path(sys.argv[3]))
model = open_model_file(sys.argv[1], mapped_in=shards.mapped_in)
ranker = build_ranker(model, None, top_k=3, keep_seen=False, max_per_provider=None, shards=shards)
print(held_memory(ranker.mapped_bytes))
"""
    held = [
        int(subprocess.check_output([sys.executable, "-c", code, str(model.path), str(count), str(tmp_path)]))
        for count in (1, 4)
    ]
    assert held[0] - held[1] > 1.5 * model.item_embeddings.nbytes


def test_proposals_of_parts_are_joined():
    one = Proposals(np.array([[1, 2]], np.int32), np.array([0.5], np.float32), np.array([[7, 0]], np.int32))
    other = Proposals(np.array([[5]], np.int32), np.array([0.75], np.float32), np.array([[9]], np.int32))
    joined = join_proposals([one, other])
    assert joined.items.tolist() == [[1, 2, 5]]
    assert joined.outside.tolist() == [0.75]
    assert joined.touched.tolist() == [[7, 0, 9]]
    unknown = join_proposals([one, other._replace(touched=np.array([[UNKNOWN]], np.int32))])
    assert unknown.touched.tolist() == [[UNKNOWN, 0, 0]]
    assert join_proposals([one, other._replace(touched=None)]).touched is None
    among = proposals_among(joined, range(2, 8))
    assert (among.items.tolist(), among.touched.tolist()) == ([[0, 2, 5]], [[7, 0, 0]])
    assert proposals_among(unknown, range(1, 2)).touched[0, 0] == UNKNOWN
