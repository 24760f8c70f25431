from __future__ import annotations

from pathlib import Path

import pytest

from ipsrec_onnx.errors import DataError
from ipsrec_train.config import read_config
from ipsrec_train.settings import CaserSettings, IPSRecSettings
from ipsrec_train.training_settings import TrainingSettings

TEXT = """
model = "ipsrec-s"
variant = "paper"

[settings]
max_len = 20
dropout = 0.1

[training]
learning_rate = 0.002
seed = 5
"""


@pytest.fixture
def write(tmp_path):
    def write(text: str) -> Path:
        path = tmp_path / "config.toml"
        path.write_text(text)
        return path

    return write


def read(path, *, model=None, variant=None, **changes):
    return read_config(path, model=model, variant=variant, changes=changes)


def test_without_a_file_the_defaults_hold():
    config = read(None)
    assert (config.model, config.settings, config.training) == ("ipsrec-c", IPSRecSettings(), TrainingSettings())


def test_a_file_changes_what_it_names_and_its_variant_sets_the_rest(write):
    config = read(write(TEXT))
    assert config.model == "ipsrec-s"
    assert (config.settings.variant, config.settings.max_len, config.settings.dropout) == ("paper", 20, 0.1)
    assert config.settings.contrastive_weight == 0.1
    assert config.settings.history_terms == "none"
    assert config.training == TrainingSettings(learning_rate=0.002, seed=5)


def test_options_win_over_the_file_and_absent_ones_do_not(write):
    config = read(
        write(TEXT), model="ipsrec-c", variant="recommended", max_len=7, dropout=None, seed=9, learning_rate=None
    )
    assert config.model == "ipsrec-c"
    assert (config.settings.variant, config.settings.max_len, config.settings.dropout) == ("recommended", 7, 0.1)
    assert config.settings.history_terms == "all"
    assert (config.training.seed, config.training.learning_rate) == (9, 0.002)


def test_a_file_of_a_baseline_names_its_own_settings(write):
    config = read(write('model = "caser"\n[settings]\nwindow = 5\nhistory_terms = "seen"\n'), dim=32)
    assert config.settings == CaserSettings(window=5, history_terms="seen", dim=32)


def test_an_empty_file_is_the_defaults(write):
    assert read(write("")) == read(None)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("model = 'bert4rec'", "model 'bert4rec' is not known, expected one of ipsrec-c, "),
        ("model = 3", "model is 3, expected a name"),
        ("model = 'sasrec'\nvariant = 'paper'", "sasrec has no variants, found 'paper'"),
        ("model = 'caser'\n[settings]\nnum_heads = 2", "caser has no setting 'num_heads'; it has dim, "),
        ("variant = 3", "variant is 3, expected a name"),
        ("[settings]\nhistory_terms = true", "history_terms is True, expected str"),
        ("[settings]\nvariant = 'paper'", "ipsrec-c has no setting 'variant'"),
        ("modle = 'ipsrec-s'", "unknown name 'modle', expected model, variant"),
        ("variant = 'published'", "variant 'published', expected one of recommended, paper, released"),
        ("[settings]\nwidth = 3", "ipsrec-c has no setting 'width'; it has co_attention, "),
        ("[training]\nlr = 0.1", r"config.toml: unknown name 'lr' in \[training\], expected "),
        ("[settings]\nbatch_size = 3", "ipsrec-c has no setting 'batch_size'"),
        ("[settings]\nmax_len = '20'", "config.toml: a value is of the wrong type"),
        ("[settings]\ndropout = '0.5'", "config.toml: a value is of the wrong type"),
        ("[training]\nlearning_rate = 'fast'", "config.toml: a value is of the wrong type"),
        ("[settings]\nmax_len = 0", "max_len is 0, expected 1 or more"),
        ("[training]\nepochs = 0", "epochs is 0, expected 1 or more"),
        ("[training]\nstop_metric = 'auc'", "stop_metric 'auc', expected ndcg@10 or mrr@10"),
        ("[settings]\ndim = 16.0", "dim"),
        ("[settings]\nmax_len = true", "max_len"),
        ("[settings]\nprovider_in_item = 'no'", "provider_in_item"),
        ("[settings]\nco_attention = 'values'", "co_attention"),
        ("[training]\nseed = 'lucky'", "seed"),
        ("[training]\nseed = -1", "seed"),
        ("[training]\nbatch_size = 2.5", "batch_size"),
        ("settings = 3", "settings"),
        ("max_len = [", "config.toml cannot be read as TOML"),
    ],
)
def test_what_makes_no_sense_is_refused_with_one_line(write, text, message):
    with pytest.raises(DataError, match=message) as refused:
        read(write(text))
    assert "\n" not in str(refused.value)


def test_a_file_that_is_no_text_or_not_there_is_refused(tmp_path):
    (tmp_path / "binary.toml").write_bytes(b"\xff\xfe\x00")
    for name in ("binary.toml", "absent.toml"):
        with pytest.raises(DataError, match=f"{name} cannot be read as TOML"):
            read(tmp_path / name)
