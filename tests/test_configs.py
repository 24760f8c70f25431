from __future__ import annotations

import shlex
from pathlib import Path

import pytest

from ipsrec_cli.prepare import prepare
from ipsrec_experiment.plan import read_plan
from ipsrec_train.config import read_config

FOLDER = Path(__file__).resolve().parents[1] / "configs"
PAPER = {"tmall": 20, "twitch": 50, "wechat": 100}


@pytest.mark.parametrize("path", sorted(FOLDER.glob("*.toml")), ids=lambda path: path.stem)
def test_config_loads(path):
    read_config(path, model=None, variant=None, changes={})


def test_best_config_is_the_winning_row_of_the_experiment():
    best = read_config(FOLDER / "ipsrec-best.toml", model=None, variant=None, changes={})
    assert best == read_plan(FOLDER / "experiments" / "amazon-toys.toml").row("IPSRec-C recommended").config()


@pytest.mark.parametrize(("name", "max_len"), PAPER.items())
def test_config_of_the_paper_has_the_settings_of_section_3_3(name, max_len):
    config = read_config(FOLDER / f"{name}.toml", model=None, variant=None, changes={})
    settings, training = config.settings, config.training
    assert config.model == "ipsrec-c"
    assert settings.variant == "paper"
    assert (settings.max_len, settings.dim, settings.num_layers, settings.num_heads) == (max_len, 64, 2, 2)
    assert (settings.contrastive_weight, settings.temperature) == (0.1, 1.0)
    assert (training.batch_size, training.learning_rate) == (256, 0.001)


@pytest.mark.parametrize("name", PAPER)
def test_prepare_command_in_a_config_of_the_paper_is_one(name):
    lines = (FOLDER / f"{name}.toml").read_text().splitlines()
    start = next(number for number, line in enumerate(lines) if "ipsrec prepare" in line)
    command = " ".join(line.removeprefix("#").strip().removesuffix("\\") for line in lines[start : start + 2])
    context = prepare.make_context("prepare", shlex.split(command)[2:])
    assert context.params["input_format"] == name
    assert context.params["merge_repeats"] == (name == "tmall")
    bounds = [context.params[f"{end}_{what}_interactions"] for what in ("user", "item") for end in ("min", "max")]
    assert bounds == [5, 100, 5, 100]
