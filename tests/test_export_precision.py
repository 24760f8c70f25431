"""The gate of precisions: what it lets pass, and what it puts back."""

from __future__ import annotations

import copy
import statistics
from dataclasses import replace

import numpy as np
import onnx
import pyarrow as pa
import pytest
from onnx import numpy_helper
from training_data import (
    BASELINES,
    ITEMS,
    MAX_LEN,
    PROVIDERS,
    build_graph_once,
    catalog_providers,
    kind_id,
    make_model,
    small_settings,
)

from ipsrec_export.comparison import history_terms
from ipsrec_export.edge_graph import EdgeRules
from ipsrec_export.graph import ITEM_EMBEDDINGS
from ipsrec_export.precision import choose_precision
from ipsrec_export.trials import EdgeTrial, ServerTrial
from ipsrec_onnx.catalog import Catalog
from ipsrec_onnx.errors import DataError, ModelFileError
from ipsrec_train.batches import Histories

DIM = 16
KINDS = [*((name, None) for name in BASELINES), ("ipsrec-s", "recommended"), ("ipsrec-c", "recommended")]
USERS = 200


def catalog_of(*, string_ids=False):
    rng = np.random.default_rng(3)
    ids = 1_000 + rng.permutation(ITEMS)
    return Catalog(
        item_ids=pa.array([f"é{one}" for one in ids], pa.large_string()) if string_ids else pa.array(ids),
        provider_ids=pa.array(np.arange(PROVIDERS)),
        item_provider=catalog_providers().astype(np.int32),
        popularity=np.concatenate([[0], rng.integers(0, 9, ITEMS)]),
    )


def validation_of(encoder, terms, *, users=USERS):
    """Histories, with targets that the model in float32 often has high in its lists: a small model as if trained."""
    rng = np.random.default_rng(8)
    lengths = rng.integers(0, 2 * MAX_LEN, users)
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    drawn = rng.integers(1, ITEMS + 1, offsets[-1] + users).astype(np.int32)
    histories = Histories(values=drawn[: offsets[-1]], offsets=offsets, targets=drawn[offsets[-1] :])
    if not users:
        return histories
    trial = EdgeTrial(encoder, catalog_of(), terms, max_len=MAX_LEN, rules=EdgeRules(10), validation=histories)
    lists = trial.lists(trial.build({}).SerializeToString())
    targets = histories.targets.copy()
    targets[lengths > 0] = lists[np.arange(len(lists)), rng.integers(0, 10, len(lists))]
    return replace(histories, targets=targets)


_MADE = {}


def trained(kind=("ipsrec-c", "recommended"), *, users=USERS):
    """An encoder, its history terms and validation users; the encoder is the caller's own."""
    if (kind, users) not in _MADE:
        model = make_model(kind[0], small_settings(kind[1], model=kind[0], dim=DIM))
        encoder, terms = build_graph_once(model), history_terms(model)
        _MADE[kind, users] = encoder, terms, validation_of(encoder, terms, users=users)
    encoder, terms, validation = _MADE[kind, users]
    return copy.deepcopy(encoder), terms, validation


def edge_trial(encoder, terms, validation, *, rules=None, string_ids=False):
    rules = rules or EdgeRules(20)
    catalog = catalog_of(string_ids=string_ids)
    return EdgeTrial(encoder, catalog, terms, max_len=MAX_LEN, rules=rules, validation=validation)


def server_trial(encoder, terms, validation):
    return ServerTrial(encoder, catalog_of(), terms, max_len=MAX_LEN, validation=validation)


both_profiles = pytest.mark.parametrize("make", [edge_trial, server_trial], ids=["edge", "server"])


def change_weight(encoder, name, change):
    (tensor,) = (one for one in encoder.graph.initializer if one.name == name)
    array = numpy_helper.to_array(tensor).copy()
    change(array)
    tensor.CopyFrom(numpy_helper.from_array(array, name))


@both_profiles
@pytest.mark.parametrize("kind", KINDS, ids=kind_id)
def test_each_model_gets_smaller_and_its_lists_are_nearly_those_of_float32(kind, make):
    proto, chosen, tried = choose_precision(make(*trained(kind)), precision="auto", max_ndcg_drop=0.05)
    onnx.checker.check_model(proto, full_check=True)
    assert [one.precision for one in tried] == (["fp32", "fp16", "int8"] if make is edge_trial else ["fp32", "int8"])
    assert all(one.passed for one in tried)
    assert chosen.bytes == proto.ByteSize() == min(one.bytes for one in tried) < 0.95 * tried[0].bytes
    assert (tried[0].overlap_at_10, tried[0].overlap_at_100, tried[0].ndcg_change) == (1, 1, 0)
    for one in tried[1:]:
        assert 0.9 < one.overlap_at_10 <= 1
        assert one.latency_ms > 0
        assert one.ndcg_change == pytest.approx(one.ndcg_at_10 / tried[0].ndcg_at_10 - 1)


@both_profiles
def test_the_error_of_a_change_is_that_of_the_users_own_changes(make):
    trial = make(*trained())
    _, _, (before, after) = choose_precision(trial, precision="int8", max_ndcg_drop=1)
    kinds = {weight.name: "int8" for weight in trial.weights}
    gains = []
    for lists in (trial.lists(trial.build(stored).SerializeToString()) for stored in ({}, kinds)):
        tops = [list(row[:10]) for row in lists]
        gains.append(
            [
                1 / np.log2(top.index(target) + 2) if target in top else 0.0
                for top, target in zip(tops, trial.targets, strict=True)
            ]
        )
    users, level = len(trial.targets), statistics.fmean(gains[0])
    assert before.ndcg_at_10 == pytest.approx(level) and before.ndcg_change_error == 0
    changes = [new - old for old, new in zip(*gains, strict=True)]
    assert any(changes)
    assert after.ndcg_change_error == pytest.approx(statistics.stdev(changes) / users**0.5 / level)


@both_profiles
def test_a_row_says_what_was_kept(make):
    _, chosen, tried = choose_precision(make(*trained()), precision="int8", max_ndcg_drop=0.05)
    assert [one.precision for one in tried] == ["fp32", "int8"]
    assert chosen.as_metadata() == {**vars(chosen), "kept": ""}
    kept = replace(chosen, kept={"gru": "fp16", "item_embeddings": "fp32"})
    assert kept.as_metadata()["kept"] == "gru fp16, item_embeddings fp32"


class SpoiledTrial(EdgeTrial):
    """A table whose rows are mixed up where it is stored in int8."""

    def build(self, kinds):
        encoder = self.encoder
        if kinds.get(ITEM_EMBEDDINGS) == "int8":
            self.encoder = copy.deepcopy(encoder)
            change_weight(self.encoder, ITEM_EMBEDDINGS, lambda table: np.random.default_rng(0).shuffle(table[1:]))
        try:
            return super().build(kinds)
        finally:
            self.encoder = encoder


def spoiled_trial():
    encoder, terms, validation = trained()
    return SpoiledTrial(encoder, catalog_of(), terms, max_len=MAX_LEN, rules=EdgeRules(20), validation=validation)


def test_a_spoiled_table_is_refused_in_one_line_with_the_figures_and_what_to_do():
    with pytest.raises(ModelFileError) as error:
        choose_precision(spoiled_trial(), precision="int8")
    message = str(error.value)
    assert "\n" not in message
    assert "--precision int8 is not good enough, so no file is written: NDCG@10 0." in message
    assert "at most -0.10%" in message
    assert "export with --precision auto, or with a larger --max-ndcg-drop" in message


def test_a_spoiled_table_is_put_back_first_and_the_layers_stay_int8():
    _, chosen, tried = choose_precision(spoiled_trial(), precision="auto", max_ndcg_drop=0.05)
    assert chosen.precision == "int8"
    assert chosen.kept == {ITEM_EMBEDDINGS: "fp16"}
    layers_kept = tried[3]  # after fp32, fp16 and int8: what tells that the table is to blame
    assert ITEM_EMBEDDINGS not in layers_kept.kept
    assert len(layers_kept.kept) > 2
    assert not layers_kept.passed


def brittle(encoder, *, largest=3_000):
    """Give an input of a layer that is always 0 a weight so large that int8 has no steps left for the others."""
    norm = "encoder.item_layers.0.attention_norm."
    for part in ("weight", "bias"):
        change_weight(encoder, norm + part, lambda channels: channels.__setitem__(3, 0))
    (inner,) = (
        node.input[1]
        for node in encoder.graph.node
        if node.op_type == "MatMul"
        and any("'encoder.item_layers.0.inner'" in note.value for note in node.metadata_props)
    )
    change_weight(encoder, inner, lambda weight: weight.__setitem__(3, largest))


@both_profiles
def test_the_one_layer_that_cannot_bear_int8_is_put_back_alone(make):
    encoder, terms, _ = trained()
    brittle(encoder)
    validation = validation_of(encoder, terms)
    _, chosen, tried = choose_precision(make(encoder, terms, validation), precision="auto", max_ndcg_drop=0.05)
    assert chosen.precision == "int8"
    assert chosen.kept == {"item_layers.0": "fp16" if make is edge_trial else "fp32"}
    assert not next(one for one in tried if one.precision == "int8" and not one.kept).passed
    with pytest.raises(ModelFileError, match="--precision int8 is not good enough"):
        choose_precision(make(encoder, terms, validation), precision="int8", max_ndcg_drop=0.05)


def test_a_layer_beyond_float16_stays_float32_in_auto_and_fails_where_float16_is_asked_for():
    encoder, terms, _ = trained()
    brittle(encoder, largest=70_000)
    trial = edge_trial(encoder, terms, validation_of(encoder, terms))
    _, chosen, tried = choose_precision(trial, precision="auto", max_ndcg_drop=0.05)
    assert tried[1].kept == chosen.kept == {"item_layers.0": "fp32"}
    assert (tried[1].precision, chosen.precision) == ("fp16", "int8")
    with pytest.raises(DataError, match="float16 ends at 65504"):
        choose_precision(trial, precision="fp16", max_ndcg_drop=0.05)


@both_profiles
def test_without_users_or_targets_nothing_but_float32_passes(make):
    encoder, terms, _ = trained()
    nobody = Histories(np.zeros(0, np.int32), np.zeros(1, np.int64), np.zeros(0, np.int32))
    _, chosen, tried = choose_precision(make(encoder, terms, nobody), precision="auto")
    assert chosen.precision == "fp32"
    assert not any(one.passed for one in tried[1:])
    with pytest.raises(ModelFileError, match="none of 0 validation users has the target in float32's top 10"):
        choose_precision(make(encoder, terms, nobody), precision="int8")


def test_string_ids_get_the_lists_of_int64_ids():
    parts = trained()
    found = [edge_trial(*parts, string_ids=strings) for strings in (False, True)]
    lists = [trial.lists(trial.build(dict.fromkeys([ITEM_EMBEDDINGS], "int8")).SerializeToString()) for trial in found]
    np.testing.assert_array_equal(*lists)
