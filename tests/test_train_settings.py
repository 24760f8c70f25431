from __future__ import annotations

import dataclasses

import pytest

from ipsrec_onnx.errors import DataError
from ipsrec_train.settings import (
    MODEL_SETTINGS,
    VARIANT_DEFAULTS,
    VARIANTS,
    IPSRecSettings,
    settings_for,
)
from ipsrec_train.training_settings import TrainingSettings

IPSRECS = ("ipsrec-c", "ipsrec-s")
BASELINES = sorted(set(MODEL_SETTINGS) - set(IPSRECS))


def test_defaults_are_the_papers_and_of_the_recommended_variant():
    settings = IPSRecSettings()
    assert settings == settings_for("ipsrec-c", None, {}) == settings_for("ipsrec-s", "recommended", {})
    assert (settings.dim, settings.num_layers, settings.num_heads, settings.inner_dim) == (64, 2, 2, 256)
    assert settings.provider_in_item
    assert settings.history_terms == "all"
    assert settings.contrastive is None


@pytest.mark.parametrize(
    ("model", "defaults"),
    [
        ("sasrec", {"num_layers": 2, "num_heads": 2, "inner_dim": 256, "dropout": 0.5}),
        ("gru4rec", {"hidden_dim": 128, "num_layers": 1, "dropout": 0.3}),
        ("caser", {"vertical_filters": 8, "horizontal_filters": 16, "dropout": 0.4}),
        ("sr-gnn", {"steps": 1, "dropout": 0.0}),
    ],
)
def test_the_baselines_default_to_what_the_paper_used_and_add_nothing_of_ours(model, defaults):
    settings = settings_for(model, None, {})
    assert settings.dim == 64
    assert {name: getattr(settings, name) for name in defaults} == defaults
    assert not settings.provider_in_item
    assert settings.history_terms == "none"
    assert settings.contrastive is None


@pytest.mark.parametrize("model", MODEL_SETTINGS)
@pytest.mark.parametrize("terms", ["none", "seen", "all"])
def test_every_model_takes_the_provider_in_its_items_and_history_terms(model, terms):
    settings = settings_for(model, None, {"provider_in_item": True, "history_terms": terms})
    assert settings.provider_in_item
    assert settings.history_terms == terms


@pytest.mark.parametrize("variant", ["paper", "released"])
def test_the_papers_variants_add_nothing_of_ours(variant):
    settings = settings_for("ipsrec-c", variant, {})
    assert settings.variant == variant
    assert settings.contrastive_weight == 0.1
    assert settings.contrastive == (0.1, 1.0, variant == "released")
    assert not settings.provider_in_item
    assert settings.history_terms == "none"


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_change_wins_over_the_variant_and_none_is_no_change(variant):
    changes = {"contrastive_weight": 0.25, "history_terms": "seen", "dim": None, "max_len": 7}
    settings = settings_for("ipsrec-s", variant, changes)
    assert settings.contrastive_weight == 0.25
    assert settings.history_terms == "seen"
    assert settings.dim == 64
    assert settings.max_len == 7
    assert settings.provider_in_item == VARIANT_DEFAULTS[variant]["provider_in_item"]


def test_settings_are_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        IPSRecSettings().dim = 3


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"max_len": 0}, "max_len is 0, expected 1 or more"),
        ({"num_layers": -1}, "num_layers is -1"),
        ({"dim": 10, "num_heads": 4}, "dim 10 does not split into 4 heads"),
        ({"dropout": 1.0}, "dropout is 1.0"),
        ({"dropout": -0.1}, "dropout is -0.1"),
        ({"temperature": 0.0}, "temperature is 0.0, expected a finite number above 0"),
        ({"contrastive_weight": -1.0}, "contrastive_weight is -1.0, expected 0 or more"),
        ({"temperature": float("inf")}, "temperature is inf"),
        ({"contrastive_weight": float("nan")}, "contrastive_weight is nan"),
        ({"hidden_size": 64}, "ipsrec-c has no setting 'hidden_size'; it has co_attention, "),
        ({"window": 5}, "ipsrec-c has no setting 'window'; it has co_attention, "),
        ({"variant": "paper"}, "ipsrec-c has no setting 'variant'"),
        ({"history_terms": "some"}, "history_terms 'some', expected one of none, seen, all"),
        ({"history_terms": True}, "history_terms True, expected one of none, seen, all"),
        ({"initializer_std": 0.0}, "initializer_std is 0.0, expected a finite number above 0"),
    ],
)
def test_a_setting_that_makes_no_sense_is_refused(change, message):
    with pytest.raises(DataError, match=message):
        settings_for("ipsrec-c", "paper", change)


@pytest.mark.parametrize(
    ("model", "change", "message"),
    [
        ("sasrec", {"contrastive_weight": 0.1}, "sasrec has no setting 'contrastive_weight'; it has dim, "),
        ("sasrec", {"num_heads": 3}, "dim 64 does not split into 3 heads"),
        ("gru4rec", {"num_heads": 2}, "gru4rec has no setting 'num_heads'; it has dim, "),
        ("gru4rec", {"hidden_dim": 0}, "hidden_dim is 0, expected 1 or more"),
        ("caser", {"window": 0}, "window is 0, expected 1 or more"),
        ("caser", {"vertical_filters": 0}, "vertical_filters is 0, expected 1 or more"),
        ("caser", {"dropout": 1.0}, "dropout is 1.0"),
        ("sr-gnn", {"steps": 0}, "steps is 0, expected 1 or more"),
        ("sr-gnn", {"max_len": 0}, "max_len is 0, expected 1 or more"),
    ],
)
def test_a_model_refuses_what_it_does_not_have_or_cannot_be(model, change, message):
    with pytest.raises(DataError, match=message):
        settings_for(model, None, change)


@pytest.mark.parametrize("model", BASELINES)
def test_only_an_ipsrec_has_variants(model):
    with pytest.raises(DataError, match=f"{model} has no variants, found 'paper'; leave the variant out"):
        settings_for(model, "paper", {})


def test_an_unknown_model_is_refused():
    with pytest.raises(DataError, match="model 'bert4rec' is not known, expected one of ipsrec-c, ipsrec-s, sasrec, "):
        settings_for("bert4rec", None, {})


def test_an_unknown_variant_is_refused():
    with pytest.raises(DataError, match="variant 'published', expected one of recommended, paper, released"):
        IPSRecSettings(variant="published")


def rates(steps, **changes):
    """The learning rate of each step, in units of the highest."""
    training = TrainingSettings(learning_rate=0.5, **changes)
    return [2 * training.learning_rate_at(step, steps=steps) for step in range(steps)]


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, [1, 1, 1, 1, 1, 1]),
        ({"warmup_steps": 4}, [1 / 4, 2 / 4, 3 / 4, 1, 1, 1]),
        ({"schedule": "linear"}, [1, 5 / 6, 4 / 6, 3 / 6, 2 / 6, 1 / 6]),
        ({"schedule": "linear", "warmup_steps": 2}, [1 / 2, 1, 1, 3 / 4, 2 / 4, 1 / 4]),
        ({"schedule": "linear", "warmup_steps": 12}, [1 / 12, 2 / 12, 3 / 12, 4 / 12, 5 / 12, 6 / 12]),
    ],
)
def test_the_learning_rate_rises_and_falls_in_straight_lines(changes, expected):
    assert rates(6, **changes) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"batch_parts": 0}, "batch_parts is 0, expected 1 or more"),
        ({"newest_windows": -1}, "newest_windows is -1, expected 0 or more"),
        ({"warmup_steps": -1}, "warmup_steps is -1, expected 0 or more"),
        ({"negatives": -1}, "negatives is -1, expected 0 or more"),
        ({"validate_every": 0}, "validate_every is 0, expected 1 or more"),
        ({"average": 1.0}, "average is 1.0, expected 0 <= average < 1"),
        ({"average": float("nan")}, "average is nan"),
        ({"schedule": "cosine"}, "schedule 'cosine', expected constant or linear"),
        ({"precision": "fp16"}, "precision 'fp16', expected fp32 or bf16"),
        ({"seed": 2**63}, "seed is 9223372036854775808, expected at most 9223372036854775807"),
    ],
)
def test_a_way_to_train_that_makes_no_sense_is_refused(change, message):
    with pytest.raises(DataError, match=message):
        TrainingSettings(**change)
