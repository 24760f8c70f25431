from __future__ import annotations

import errno
import hashlib
import json
import shutil
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pyarrow as pa
import pytest
import torch
from naive_training import NaiveModel
from safetensors.torch import load_file, save_file
from training_data import MAX_LEN, build_graph_once, make_dataset, make_run

from ipsrec_export import export as module
from ipsrec_export import external_data, weight_storage
from ipsrec_export.export import export
from ipsrec_onnx.catalog import catalog_to_table, table_from_text, table_to_text
from ipsrec_onnx.dataset import open_dataset
from ipsrec_onnx.errors import DataError, ModelFileError
from ipsrec_onnx.model_file import open_model_file
from ipsrec_onnx.onnx_proto import external_data_files
from ipsrec_onnx.onnx_rewrite import INT8
from ipsrec_train.batches import load_histories
from ipsrec_train.run import load_model, open_run


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """The run folder that every test here exports."""
    return make_run(tmp_path_factory.mktemp("trained"))


@pytest.fixture(autouse=True)
def one_graph(monkeypatch):
    """The graph of the run is built once; all else is done at each export."""
    monkeypatch.setattr(module, "build_graph", build_graph_once)


@pytest.fixture
def in_two_files(monkeypatch):
    """As if a protobuf held nothing at all."""
    monkeypatch.setattr(external_data, "LARGEST_IN_ONE_FILE", 0)


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def users_of(path, trained):
    """user_embedding of some validation users by the model file, and by the float64 twin of the trained model."""
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    model, _ = load_model(open_run(trained))
    histories = load_histories(open_dataset(trained.parent / "dataset"), "valid")
    twin, found, expected = NaiveModel(model), [], []
    for user in range(8):
        items = histories.values[histories.offsets[user] : histories.offsets[user + 1]][-MAX_LEN:]
        providers = model.item_provider.numpy()[items]
        feed = {
            "item_history": items[None],
            "provider_history": providers[None].astype(np.int32),
            "lengths": np.array([len(items)], np.int32),
        }
        found.append(session.run(["user_embedding"], feed)[0][0])
        expected.append(twin.user(items.tolist(), providers.tolist()))
    return np.array(found), np.array(expected)


def assert_scores_as_trained(path, trained):
    found, expected = users_of(path, trained)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


def test_the_file_has_everything_that_scoring_needs(trained, tmp_path):
    report = export(trained, tmp_path / "model.onnx")
    assert names(tmp_path) == ["model.onnx"]
    assert report.output == tmp_path / "model.onnx"
    assert report.bytes_written == (tmp_path / "model.onnx").stat().st_size
    assert report.gate.passed
    opened = open_model_file(tmp_path / "model.onnx")
    run = open_run(trained)
    model, catalog = load_model(run)
    assert opened.model == "ipsrec-c"
    assert opened.settings == run.info["settings"]
    assert opened.max_len == MAX_LEN
    np.testing.assert_array_equal(opened.item_embeddings, model.item_embeddings().detach().numpy())
    for found, expected in zip(catalog_to_table(opened.catalog), catalog_to_table(catalog), strict=True):
        assert found.equals(expected)
    terms = model.history_terms
    np.testing.assert_array_equal(opened.history_terms.provider, terms.provider_weights().detach().numpy())
    np.testing.assert_array_equal(opened.history_terms.item, terms.item_weights().detach().numpy())
    assert opened.gate == json.loads(json.dumps(report.gate.as_metadata()))
    assert opened.training["dataset_fingerprint"] == open_dataset(trained.parent / "dataset").fingerprint
    assert opened.training["best"] == run.best
    assert opened.training["epochs_trained"] == len(run.metrics)
    assert opened.training["seed"] == run.info["training"]["seed"]
    assert opened.training["versions"]["torch"] == torch.__version__
    assert opened.training["versions"]["onnx"] == onnx.__version__
    assert_scores_as_trained(tmp_path / "model.onnx", trained)


def test_plain_onnxruntime_can_read_the_metadata(trained, tmp_path):
    export(trained, tmp_path / "model.onnx")
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx", providers=["CPUExecutionProvider"])
    texts = session.get_modelmeta().custom_metadata_map
    parts = {"format_version", "model", "settings", "catalog", "providers", "history_terms", "training", "gate"}
    parts |= {"weights"}  # which initializer is which weight
    assert set(texts) == {f"ipsrec.{part}" for part in parts}
    assert texts["ipsrec.format_version"] == "1"
    assert json.loads(texts["ipsrec.settings"])["max_len"] == MAX_LEN
    assert json.loads(texts["ipsrec.gate"])["passed"] is True
    assert len(json.loads(texts["ipsrec.history_terms"])["provider"]) == MAX_LEN
    items = table_from_text(texts["ipsrec.catalog"], most_bytes=1 << 20)
    assert items.column_names == ["item_id", "provider_index", "popularity"]


def test_the_gate_saw_the_validation_users_of_the_dataset(trained, tmp_path):
    report = export(trained, tmp_path / "model.onnx")
    assert report.gate.validation_users == len(load_histories(open_dataset(trained.parent / "dataset"), "valid"))
    assert report.gate.ndcg_pytorch == pytest.approx(open_run(trained).best["ndcg@10"], rel=1e-9)


def test_a_file_moved_alone_to_another_folder_opens(trained, tmp_path):
    (tmp_path / "made").mkdir()
    (tmp_path / "moved").mkdir()
    export(trained, tmp_path / "made" / "model.onnx")
    moved = shutil.move(tmp_path / "made" / "model.onnx", tmp_path / "moved" / "other name.onnx")
    shutil.rmtree(tmp_path / "made")
    assert open_model_file(moved).dim == 8
    assert_scores_as_trained(moved, trained)


def test_a_large_model_has_its_weights_beside_it_and_both_move_together(trained, tmp_path, in_two_files):
    (tmp_path / "made").mkdir()
    (tmp_path / "moved").mkdir()
    report = export(trained, tmp_path / "made" / "model.onnx")
    graph, data = names(tmp_path / "made")
    digest = hashlib.sha256((tmp_path / "made" / data).read_bytes()).hexdigest()
    assert (graph, data) == ("model.onnx", f"model.onnx.{digest[:12]}.data")
    assert external_data_files(tmp_path / "made" / graph) == [data]
    sizes = {path.name: path.stat().st_size for path in (tmp_path / "made").iterdir()}
    assert report.bytes_written == sum(sizes.values())
    model, _ = load_model(open_run(trained))
    assert sizes[data] >= 4 * model.items.weight.numel()
    for name in sizes:
        shutil.move(tmp_path / "made" / name, tmp_path / "moved" / name)
    shutil.rmtree(tmp_path / "made")
    opened = open_model_file(tmp_path / "moved" / "model.onnx")
    np.testing.assert_array_equal(opened.item_embeddings, model.item_embeddings().detach().numpy())
    assert_scores_as_trained(tmp_path / "moved" / "model.onnx", trained)
    (tmp_path / "moved" / data).unlink()
    with pytest.raises(ModelFileError):
        open_model_file(tmp_path / "moved" / "model.onnx")


def test_one_file_and_two_hold_the_same_model(trained, tmp_path, monkeypatch):
    export(trained, tmp_path / "one.onnx")
    monkeypatch.setattr(external_data, "LARGEST_IN_ONE_FILE", 0)
    export(trained, tmp_path / "two.onnx")
    found = [users_of(tmp_path / f"{name}.onnx", trained)[0] for name in ("one", "two")]
    np.testing.assert_array_equal(*found)


def test_overwriting_a_large_model_with_a_small_one_leaves_no_old_weights(trained, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(external_data, "LARGEST_IN_ONE_FILE", 0)
        export(trained, tmp_path / "model.onnx")
    export(trained, tmp_path / "model.onnx", overwrite=True)
    assert names(tmp_path) == ["model.onnx"]
    assert_scores_as_trained(tmp_path / "model.onnx", trained)


def test_an_existing_output_is_refused_without_overwrite(trained, tmp_path):
    (tmp_path / "model.onnx").write_text("precious")
    with pytest.raises(DataError, match=r"model.onnx exists already; .* --overwrite"):
        export(trained, tmp_path / "model.onnx")
    assert (tmp_path / "model.onnx").read_text() == "precious"
    export(trained, tmp_path / "model.onnx", overwrite=True)
    assert_scores_as_trained(tmp_path / "model.onnx", trained)


def test_a_file_that_only_looks_like_the_weights_is_kept(trained, tmp_path, in_two_files):
    precious = ["model.onnx.data", "model.onnx.backup.data", "other.onnx.0123456789ab.data"]
    for name in precious:
        (tmp_path / name).write_text("precious")
    export(trained, tmp_path / "model.onnx")
    export(trained, tmp_path / "model.onnx", overwrite=True)
    assert len(names(tmp_path)) == len(precious) + 2
    assert {(tmp_path / name).read_text() for name in precious} == {"precious"}


class Killed(BaseException):
    """Stands for a kill: the process does nothing more."""


@pytest.mark.parametrize("renames", range(3))
def test_a_kill_between_the_renames_leaves_the_old_model_or_the_new(trained, tmp_path, monkeypatch, renames):
    """The old and the new model differ in their weights alone, both in external data."""
    monkeypatch.setattr(external_data, "LARGEST_IN_ONE_FILE", 0)
    path = tmp_path / "model.onnx"
    write_old_model(trained, path)
    old = users_of(path, trained)[0]
    done = []

    def rename(real):
        def renamed(source, target):
            if Path(target).parent == tmp_path and source.suffix == ".tmp" and Path(target).suffix != ".tmp":
                if len(done) == renames:
                    raise Killed
                done.append(target)
            return real(source, target)

        return renamed

    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", rename(Path.replace))
        patch.setattr(Path, "unlink", lambda self, missing_ok=False: None)  # the dead clean nothing up
        try:
            export(trained, path, overwrite=True)
        except Killed:
            assert len(done) == renames < 2
    found = users_of(path, trained)[0]
    if renames < 2:
        np.testing.assert_array_equal(found, old)
    else:
        assert_scores_as_trained(path, trained)


def write_old_model(trained, path):
    """A model file of other weights under the same name."""
    run = shutil.copytree(trained, path.parent / "old run")
    weights = load_file(run / "model.safetensors")
    weights["items.weight"] *= 1.5
    save_file(weights, run / "model.safetensors")
    export(run, path, dataset=trained.parent / "dataset")
    shutil.rmtree(run)


def test_the_data_of_the_replaced_model_go_and_those_of_a_failed_export_too(trained, tmp_path, monkeypatch):
    monkeypatch.setattr(external_data, "LARGEST_IN_ONE_FILE", 0)
    path = tmp_path / "model.onnx"
    write_old_model(trained, path)
    before = {name: (tmp_path / name).read_bytes() for name in names(tmp_path)}
    replace = Path.replace

    def no_room(source, target):
        if Path(target) == path:
            raise OSError(errno.ENOSPC, "No space left on device")
        return replace(source, target)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", no_room)
        with pytest.raises(DataError, match="no space is left"):
            export(trained, path, overwrite=True)
    assert {name: (tmp_path / name).read_bytes() for name in names(tmp_path)} == before
    export(trained, path, overwrite=True)
    assert len(names(tmp_path)) == 2
    assert not set(names(tmp_path)) & (set(before) - {"model.onnx"})
    assert_scores_as_trained(path, trained)


def test_metadata_count_for_what_one_file_holds(trained, tmp_path, monkeypatch):
    export(trained, tmp_path / "one.onnx")
    proto = onnx.load(tmp_path / "one.onnx")
    weights = sum(len(tensor.raw_data) for tensor in proto.graph.initializer)
    monkeypatch.setattr(external_data, "LARGEST_IN_ONE_FILE", weights + 10)
    export(trained, tmp_path / "two.onnx")
    assert len(names(tmp_path)) == 3


def wrong_table(proto):
    table = next(tensor for tensor in proto.graph.initializer if tensor.name == "item_embeddings")
    values = onnx.numpy_helper.to_array(table).copy()
    values[-1, -1] = np.nextafter(values[-1, -1], np.float32(9))
    table.CopyFrom(onnx.numpy_helper.from_array(values, "item_embeddings"))


def wrong_terms(proto):
    terms = json.loads(proto.metadata_props[5].value)
    terms["item"][-1] += 1e-12
    onnx.helper.set_model_props(proto, properties(proto) | {"ipsrec.history_terms": json.dumps(terms)})


def wrong_catalog(proto):
    items = table_from_text(properties(proto)["ipsrec.catalog"], most_bytes=1 << 20)
    popularity = pa.array(items["popularity"].to_numpy()[::-1])
    text = table_to_text(items.set_column(2, "popularity", popularity))
    onnx.helper.set_model_props(proto, properties(proto) | {"ipsrec.catalog": text})


def properties(proto):
    found = {entry.key: entry.value for entry in proto.metadata_props}
    return found


@pytest.mark.parametrize(
    ("change", "what"),
    [(wrong_table, "item_embeddings"), (wrong_terms, "history terms"), (wrong_catalog, "catalog")],
)
def test_a_file_that_holds_anything_else_than_the_run_is_refused(trained, tmp_path, monkeypatch, change, what):
    """The graph encodes as PyTorch does: only what lies beside it is wrong."""
    real = module.add_metadata

    def add_wrong(proto, **parts):
        real(proto, **parts)
        change(proto)

    monkeypatch.setattr(module, "add_metadata", add_wrong)
    with pytest.raises(ModelFileError, match=f"export: {what} in the file differ from those of the run"):
        export(trained, tmp_path / "model.onnx")
    assert names(tmp_path) == []


def wrong_int8_table(proto):
    table = next(tensor for tensor in proto.graph.initializer if tensor.name == "item_embeddings" + INT8)
    values = onnx.numpy_helper.to_array(table).copy()
    values[-1, -1] -= np.sign(values[-1, -1]) or 1
    table.CopyFrom(onnx.numpy_helper.from_array(values, table.name))


def test_an_int8_table_that_is_not_the_one_that_was_tried_is_refused(trained, tmp_path, monkeypatch):
    real = module.add_metadata

    def add_wrong(proto, **parts):
        real(proto, **parts)
        wrong_int8_table(proto)

    monkeypatch.setattr(module, "add_metadata", add_wrong)
    with pytest.raises(ModelFileError, match="item_embeddings in the file differ from those of the run"):
        export(trained, tmp_path / "model.onnx", precision="int8", max_ndcg_drop=1)
    assert names(tmp_path) == []


def test_an_int8_table_that_is_rounded_wrongly_is_refused(trained, tmp_path, monkeypatch):
    """Though the file holds what rounding gave."""
    real = weight_storage._round_for_products
    monkeypatch.setattr(weight_storage, "_round_for_products", lambda steps, met: np.roll(real(steps, met), 1, axis=1))
    with pytest.raises(ModelFileError, match="item_embeddings in the file differ from those of the run"):
        export(trained, tmp_path / "model.onnx", precision="int8", max_ndcg_drop=1)
    assert names(tmp_path) == []


def test_a_draft_is_never_scored_with(trained, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "set_gate", lambda proto, gate: None)
    export(trained, tmp_path / "model.onnx")
    with pytest.raises(ModelFileError, match="did not pass the gate"):
        open_model_file(tmp_path / "model.onnx")


@pytest.mark.parametrize("limit", [0, 2**31])
def test_names_as_long_as_the_disk_allows(trained, tmp_path, monkeypatch, limit):
    monkeypatch.setattr(external_data, "LARGEST_IN_ONE_FILE", limit)
    longest = "m" * (255 - (len(".0123456789ab.data") if limit == 0 else 0))
    export(trained, tmp_path / longest)
    assert open_model_file(tmp_path / longest).gate["passed"]
    with pytest.raises(DataError, match="the name is too long"):
        export(trained, tmp_path / f"{longest}m")
    assert len(names(tmp_path)) == 1 + (limit == 0)


def other_weights(model):
    """The graph as built, and then the model changes: as an exporter that gets something wrong."""
    graph = build_graph_once(model)
    with torch.no_grad():
        model.encoder.get_parameter("item_fusion.0.output.weight").mul_(1.1)
    return graph


def broken_encoder(change):
    real = module._encoder

    def open_encoder(written):
        encode = real(written)
        return lambda *arrays: change(encode(*arrays))

    return open_encoder


def swapped(users):
    return users[::-1].copy()


def not_a_number(users):
    return users * np.float32("nan")


@pytest.mark.parametrize("limit", [0, 2**31])
@pytest.mark.parametrize(
    ("name", "replacement"),
    [
        ("build_graph", other_weights),
        ("_encoder", broken_encoder(swapped)),
        ("_encoder", broken_encoder(not_a_number)),
    ],
    ids=["other weights", "users swapped", "NaN"],
)
def test_nothing_is_written_where_the_gate_is_not_passed(trained, tmp_path, monkeypatch, name, replacement, limit):
    monkeypatch.setattr(external_data, "LARGEST_IN_ONE_FILE", limit)
    monkeypatch.setattr(module, name, replacement)
    (tmp_path / "model.onnx").write_text("the model of yesterday")
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    figures = r"embedding error \S+ \(at most 1e-04\), top-100 overlap [0-9.]+ \(at least 0.999\), .*NDCG@10 change"
    with pytest.raises(ModelFileError, match=figures):
        export(trained, tmp_path / "model.onnx", overwrite=True)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before
    with pytest.raises(ModelFileError, match=figures):
        export(trained, tmp_path / "new.onnx")
    assert names(tmp_path) == ["model.onnx"]


def test_an_interrupted_export_leaves_nothing(trained, tmp_path, monkeypatch):
    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(module, "run_gate", interrupted)
    with pytest.raises(KeyboardInterrupt):
        export(trained, tmp_path / "model.onnx")
    assert names(tmp_path) == []


def test_a_moved_dataset_is_given_by_its_folder_and_another_is_refused(trained, tmp_path):
    run = shutil.copytree(trained, tmp_path / "run")
    moved = shutil.copytree(trained.parent / "dataset", tmp_path / "moved")
    info = json.loads((run / "run.json").read_text())
    info["dataset"]["path"] = str(tmp_path / "absent")
    (run / "run.json").write_text(json.dumps(info))
    with pytest.raises(DataError, match=f"its dataset is no longer at {tmp_path / 'absent'}; say where it is with"):
        export(run, tmp_path / "model.onnx")
    other = make_dataset(tmp_path, np.random.default_rng(5))
    with pytest.raises(DataError, match=r"fingerprint [0-9a-f]{12}, the run .* learned from [0-9a-f]{12}"):
        export(run, tmp_path / "model.onnx", dataset=other)
    assert not (tmp_path / "model.onnx").exists()
    assert export(run, tmp_path / "model.onnx", dataset=moved).gate.passed


def test_a_folder_that_is_no_run_is_refused(tmp_path):
    with pytest.raises(DataError, match=r"is no finished training run: it has no run\.json"):
        export(tmp_path, tmp_path / "model.onnx")
