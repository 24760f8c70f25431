from __future__ import annotations

import dataclasses

import pytest

from ipsrec_onnx.errors import DataError
from ipsrec_train.settings import VARIANT_DEFAULTS, VARIANTS, IPSRecSettings, settings_for


def test_defaults_are_the_papers_and_of_the_recommended_variant():
    settings = IPSRecSettings()
    assert settings == settings_for("recommended", {})
    assert (settings.dim, settings.num_layers, settings.num_heads, settings.inner_dim) == (64, 2, 2, 256)
    assert settings.provider_in_item
    assert settings.history_terms


@pytest.mark.parametrize("variant", ["paper", "released"])
def test_the_papers_variants_add_nothing_of_ours(variant):
    settings = settings_for(variant, {})
    assert settings.variant == variant
    assert settings.contrastive_weight == 0.1
    assert not settings.provider_in_item
    assert not settings.history_terms


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_change_wins_over_the_variant_and_none_is_no_change(variant):
    settings = settings_for(variant, {"contrastive_weight": 0.25, "history_terms": True, "dim": None, "max_len": 7})
    assert settings.contrastive_weight == 0.25
    assert settings.history_terms
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
        ({"hidden_size": 64}, "unknown name 'hidden_size', expected one of co_attention, "),
    ],
)
def test_a_setting_that_makes_no_sense_is_refused(change, message):
    with pytest.raises(DataError, match=message):
        settings_for("paper", change)


def test_an_unknown_variant_is_refused():
    with pytest.raises(DataError, match="variant 'published', expected one of recommended, paper, released"):
        IPSRecSettings(variant="published")
