from __future__ import annotations

import dataclasses
import json
import os
import re
import subprocess
import sys

import click
import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from training_data import make_dataset

from ipsrec_cli.main import main
from ipsrec_cli.train import train as train_command
from ipsrec_train.config import read_config
from ipsrec_train.settings import MODEL_SETTINGS, VARIANTS

SMALL = ["--max-len", 10, "--dim", 16, "--num-layers", 1, "--inner-dim", 32, "--dropout", 0.2]
SMALL += ["--batch-size", 64, "--learning-rate", 0.01, "--threads", 1]


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    return make_dataset(tmp_path_factory.mktemp("data"), np.random.default_rng(2))


def ipsrec(*arguments: object) -> int:
    """Run the command line; its exit code."""
    with pytest.raises(SystemExit) as stop:
        main([str(argument) for argument in arguments])
        raise SystemExit(0)
    return int(stop.value.code or 0)


def train(dataset, output, *options, epochs=2):
    return ipsrec("train", "--dataset", dataset, "--output", output, *SMALL, "--epochs", epochs, *options)


def run_info(output):
    return json.loads((output / "run.json").read_text())


def test_summary_is_on_stdout_and_progress_on_stderr(dataset, tmp_path, capfd):
    assert train(dataset, tmp_path / "run") == 0
    out, err = capfd.readouterr()
    assert out.startswith(f"{tmp_path / 'run'}: ipsrec-c (recommended), best of 2 epochs is ")
    assert "validation NDCG@10 0." in out
    assert out.count("\n") == 1
    assert [line.split(":")[0] for line in err.splitlines()] == ["epoch 1", "epoch 2"]


def test_json_is_one_object_and_quiet_is_quiet(dataset, tmp_path, capfd):
    assert train(dataset, tmp_path / "run", "--json", "--quiet", "--model", "ipsrec-s", "--variant", "paper") == 0
    out, err = capfd.readouterr()
    report = json.loads(out)
    assert set(report) == {"output", "model", "settings", "best"}
    assert (report["output"], report["model"]) == (str(tmp_path / "run"), "ipsrec-s")
    assert report["settings"]["variant"] == "paper"
    assert report["best"]["epoch"] in (1, 2)
    assert err == ""


def test_every_option_reaches_the_run(dataset, tmp_path, capfd):
    options = {
        "--num-heads": 4,
        "--contrastive-weight": 0.3,
        "--temperature": 0.7,
        "--co-attention": "keys_values",
        "--patience": 3,
        "--stop-metric": "mrr@10",
        "--seed": 11,
        "--schedule": "linear",
        "--warmup-steps": 2,
        "--average": 0.5,
        "--negatives": 40,
        "--precision": "bf16",
        "--batch-parts": 2,
        "--newest-windows": 3,
        "--validate-every": 2,
    }
    flat = [part for pair in options.items() for part in pair]
    assert train(dataset, tmp_path / "run", *flat, "--no-compile", "--variant", "released", epochs=1) == 0
    info = run_info(tmp_path / "run")
    expected = {
        "variant": "released",
        "max_len": 10,
        "dim": 16,
        "num_layers": 1,
        "num_heads": 4,
        "inner_dim": 32,
        "dropout": 0.2,
        "contrastive_weight": 0.3,
        "temperature": 0.7,
        "co_attention": "keys_values",
        "history_terms": "none",
    }
    assert {name: info["settings"][name] for name in expected} == expected
    assert info["training"] == {
        "batch_size": 64,
        "learning_rate": 0.01,
        "epochs": 1,
        "patience": 3,
        "stop_metric": "mrr@10",
        "seed": 11,
        "schedule": "linear",
        "warmup_steps": 2,
        "average": 0.5,
        "negatives": 40,
        "precision": "bf16",
        "batch_parts": 2,
        "newest_windows": 3,
        "validate_every": 2,
        "compile": False,
    }


def test_a_compiled_encoder_is_refused_on_a_cpu(dataset, tmp_path, capfd):
    assert train(dataset, tmp_path / "run", "--compile") == 1
    assert "settings: compile is for device cuda; leave it out on a CPU" in capfd.readouterr().err
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("model", "options"),
    [
        ("gru4rec", {"--hidden-dim": 12}),
        ("caser", {"--window": 4, "--horizontal-filters": 3, "--vertical-filters": 2}),
        ("sr-gnn", {"--steps": 2}),
    ],
)
def test_options_of_the_baselines_reach_the_run(dataset, tmp_path, capfd, model, options):
    command = ["train", "--dataset", dataset, "--output", tmp_path / "run", "--model", model, "--quiet"]
    flat = [part for pair in options.items() for part in pair]
    assert ipsrec(*command, "--max-len", 10, "--dim", 8, "--threads", 1, "--epochs", 1, *flat) == 0
    settings = run_info(tmp_path / "run")["settings"]
    assert {f"--{name.replace('_', '-')}": value for name, value in settings.items()}.items() >= options.items()


def said_default(text, model, variant):
    """What "[default: ...]" says of one model: "0.5; gru4rec 0.3, caser 0.4" or "on in recommended, else off"."""
    general, _, of_models = text.partition("; ")
    for part in of_models.split(", "):
        if part.startswith(f"{model} "):
            return part.removeprefix(f"{model} ")
    for part in general.split(", "):
        value, _, variants = part.partition(" in ")
        if not variants or variant in variants.split(" and "):
            return value.removeprefix("else ")
    raise AssertionError(f"{text!r} says nothing of {model} {variant}")


@pytest.mark.parametrize(
    ("model", "variant"),
    [*(("ipsrec-c", variant) for variant in VARIANTS), *((model, None) for model in list(MODEL_SETTINGS)[1:])],
)
def test_help_names_the_defaults_that_hold(model, variant):
    """Each "[default: ...]" is what a run without options has: one value, or one for each variant or model."""
    config = read_config(None, model=model, variant=variant, changes={})
    holds = {**dataclasses.asdict(config.settings), **dataclasses.asdict(config.training)}
    default = read_config(None, model=None, variant=None, changes={})
    holds |= {"model": default.model, "variant": default.settings.variant}
    options = {option.name: option for option in train_command.params if isinstance(option, click.Option)}
    code_only = {"layer_norm_eps", "initializer_std"} & set(holds)
    assert set(holds) - set(options) == code_only
    variant = variant or ("recommended" if model == "ipsrec-s" else None)
    for name in set(holds) - code_only:
        said = re.search(r"\[default: (.+)\]", options[name].help or "")
        assert said, f"--{name} names no default"
        text = said_default(said[1], model, variant)
        given = {True: "on", False: "off"}[holds[name]] if isinstance(holds[name], bool) else holds[name]
        assert type(given)(text) == given, f"--{name}: help says {text}, the default of {model} {variant} is {given}"


@pytest.mark.parametrize("terms", ["none", "seen", "all"])
@pytest.mark.parametrize("on", [True, False])
def test_parts_of_a_variant_can_be_turned_on_and_off(dataset, tmp_path, capfd, on, terms):
    flags = ("--history-terms", terms, "--provider-in-item" if on else "--no-provider-in-item")
    variant = "paper" if on else "recommended"
    assert train(dataset, tmp_path / "run", *flags, "--variant", variant, epochs=1) == 0
    settings = run_info(tmp_path / "run")["settings"]
    assert (settings["history_terms"], settings["provider_in_item"]) == (terms, on)
    assert ("history_terms.provider" in load_file(tmp_path / "run" / "model.safetensors")) == (terms == "all")


def test_options_win_over_the_config_file(dataset, tmp_path, capfd):
    config = tmp_path / "config.toml"
    config.write_text(
        'model = "ipsrec-s"\nvariant = "paper"\n[settings]\ndim = 32\nnum_heads = 4\n[training]\nepochs = 1\nseed = 5\n'
    )
    command = ["train", "--dataset", dataset, "--output", tmp_path / "run", "--config", config, "--quiet"]
    assert ipsrec(*command, *SMALL) == 0
    info = run_info(tmp_path / "run")
    assert info["model"] == "ipsrec-s"
    assert (info["settings"]["dim"], info["settings"]["num_heads"], info["settings"]["variant"]) == (16, 4, "paper")
    assert (info["training"]["epochs"], info["training"]["seed"]) == (1, 5)


def test_resume_gives_the_same_weights_as_one_go(dataset, tmp_path, capfd):
    assert train(dataset, tmp_path / "straight", epochs=3) == 0
    assert train(dataset, tmp_path / "run", epochs=1) == 0
    capfd.readouterr()
    assert train(dataset, tmp_path / "run", "--resume", epochs=3) == 0
    _, err = capfd.readouterr()
    assert err.splitlines()[0] == "going on after epoch 1"
    weights = [load_file(tmp_path / name / "model.safetensors") for name in ("straight", "run")]
    assert all(torch.equal(tensor, weights[1][name]) for name, tensor in weights[0].items())


def test_refusals_are_one_line_and_exit_code_1(dataset, tmp_path, capfd):
    assert train(dataset, tmp_path / "run", epochs=1) == 0
    for options, words in (
        ([], "--overwrite"),
        (["--resume", "--seed", 3], "the run to resume has seed 0, now it is 3"),
        (["--overwrite", "--dim", 15], "dim 15 does not split into 2 heads"),
        (["--overwrite", "--seed", -1], "seed is -1"),
        (["--overwrite", "--seed", 2**64], f"seed is {2**64}, expected at most"),
        (["--overwrite", "--average", 1], "average is 1.0"),
        (["--overwrite", "--negatives", -1], "negatives is -1"),
        (["--overwrite", "--model", "gru4rec"], "gru4rec has no setting 'inner_dim'; it has "),
        (["--overwrite", "--learning-rate", 0], "learning_rate is 0.0"),
        (["--overwrite", "--window", 5], "ipsrec-c has no setting 'window'; it has "),
        (["--overwrite", "--model", "sasrec", "--variant", "paper"], "sasrec has no variants, found 'paper'"),
    ):
        capfd.readouterr()
        assert train(dataset, tmp_path / "run", *options, epochs=1) == 1
        out, err = capfd.readouterr()
        assert out == ""
        assert err.startswith("ipsrec: ")
        assert err.count("\n") == 1
        assert words in err
    assert train(dataset, tmp_path / "run", "--overwrite", epochs=1) == 0


@pytest.mark.slow
def test_of_several_processes_one_talks(dataset, tmp_path):
    script = tmp_path / "worker.py"
    script.write_text("from ipsrec_cli.main import main\nmain()\n", encoding="utf-8")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", str(script)]
    options = ["--dataset", dataset, "--output", tmp_path / "run", *SMALL, "--epochs", 1, "--json"]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path)), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [*command, "train", *map(str, options)], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["output"] == str(tmp_path / "run")
    assert done.stderr.count("epoch 1") == 1


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_cuda_is_refused_where_it_is_not(dataset, tmp_path, capfd):
    assert train(dataset, tmp_path / "run", "--device", "cuda") == 1
    assert "use --device cpu" in capfd.readouterr().err


def test_wrong_usage_is_exit_code_2(dataset, tmp_path, capfd):
    assert ipsrec("train", "--dataset", dataset) == 2
    for wrong in (
        ["--model", "bert4rec"],
        ["--history-terms", "some"],
        ["--variant", "published"],
        ["--dim", "wide"],
        ["--threads", 0],
        ["--resume", "--overwrite"],
        ["--config", tmp_path / "absent.toml"],
    ):
        assert train(dataset, tmp_path / "run", *wrong) == 2
    assert not (tmp_path / "run").exists()
