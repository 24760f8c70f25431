"""`ipsrec experiment`; what it does is in test_experiment_experiment.py."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from experiment_data import PLAN, write_plan
from test_cli_train import ipsrec
from test_experiment_experiment import finished
from training_data import make_dataset

__all__ = ["finished"]  # the fixture


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    return make_dataset(tmp_path_factory.mktemp("data"), np.random.default_rng(2))


def test_summary_and_json_say_what_is_there(finished, dataset, capfd):
    folder, plan = finished
    command = ["experiment", "--dataset", dataset, "--output", folder, "--plan", plan, "--report-only"]
    assert ipsrec(*command, "--seeds", 2) == 0
    out, err = capfd.readouterr()
    assert out == f"{folder}: 2 cells done, 2 missing; see report.md or report.html\n"
    assert err == ""
    assert ipsrec(*command, "--seeds", 1, "--models", "A,ipsrec-s", "--json") == 0
    assert json.loads(capfd.readouterr().out) == {"output": str(folder), "cells": 2, "missing": 0, "failures": []}


def test_the_report_names_the_command_without_the_places_of_files(finished, dataset, monkeypatch):
    folder, plan = finished
    assert ipsrec("experiment", "--dataset", dataset, "--output", folder, "--plan", plan, "--seeds", 1, "--quiet") == 0
    command = json.loads((folder / "report.json").read_text())["what"]["command"]
    options = "--seeds 1 --jobs 1 --threads 1 --device cpu --output REPORT"
    expected = f"ipsrec experiment --dataset dataset --plan plan.toml {options}"
    assert command == expected
    assert ipsrec("experiment", "--dataset", dataset, "--output", folder, "--plan", plan, "--report-only") == 0
    assert json.loads((folder / "report.json").read_text())["what"]["command"] == expected
    monkeypatch.chdir(folder)
    again = ["--plan", Path("..") / plan.name, "--seeds", 1, "--paper-figures", "tmall", "--quiet"]
    assert ipsrec("experiment", "--dataset", dataset, "--output", folder, *again) == 0
    command = json.loads((folder / "report.json").read_text())["what"]["command"]
    assert command == expected.replace(" --output", " --paper-figures tmall --output")


def test_refusals_are_one_line_and_exit_code_1(finished, dataset, capfd):
    folder, plan = finished
    write_plan(plan.parent, PLAN.replace("dim = 8", "dim = 9"))
    assert ipsrec("experiment", "--dataset", dataset, "--output", folder, "--plan", plan) == 1
    out, err = capfd.readouterr()
    assert out == ""
    assert err.startswith("ipsrec: ") and err.count("\n") == 1


def test_wrong_usage_is_exit_code_2(finished, dataset, tmp_path):
    folder, plan = finished
    command = ["experiment", "--dataset", dataset, "--output", folder, "--plan", plan]
    for wrong in (
        ["--report-only", "--overwrite"],
        ["--paper-figures", "toys"],
        ["--plan", tmp_path / "absent.toml"],
        ["--seeds", "many"],
    ):
        assert ipsrec(*command, *wrong) == 2
