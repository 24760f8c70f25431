from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from experiment_data import PLAN, make_plan, write_cells, write_plan
from training_data import USERS, make_dataset

from ipsrec_experiment.experiment import EXPERIMENT_FILE, experiment
from ipsrec_onnx.dataset import open_dataset
from ipsrec_onnx.errors import DataError
from ipsrec_onnx.evaluation import evaluate

TIMES = ("epoch_s", "training_s", "model_bytes")  # the file holds the seconds of the best epoch


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    return make_dataset(tmp_path_factory.mktemp("data"), np.random.default_rng(2))


def without_times(report):
    """A report as a repetition must give it."""
    if isinstance(report, dict):
        return {name: without_times(part) for name, part in report.items() if name not in TIMES}
    return [without_times(part) for part in report] if isinstance(report, list) else report


def read_report(folder):
    return json.loads((folder / "report.json").read_text())


@pytest.fixture(scope="module")
def straight(dataset, tmp_path_factory):
    """An experiment of two rows, one seed, in one go."""
    folder = tmp_path_factory.mktemp("straight")
    plan = write_plan(folder)
    result = experiment(dataset, folder / "report", plan=plan, seeds=1, jobs=2, quiet=True)
    assert (result.cells, result.missing, result.failures) == (2, 0, [])
    return folder / "report"


@pytest.mark.slow
def test_figures_are_those_of_evaluate_on_the_exported_file(straight, dataset):
    report = read_report(straight)
    assert [row["name"] for row in report["rows"]] == ["A", "B + terms"]
    for row, slug in zip(report["rows"], ("a", "b-terms"), strict=True):
        for protocol in ("kept", "excluded"):
            for split in ("test", "valid"):
                model = straight / "cells" / slug / "seed-0" / "model.onnx"
                expected = evaluate(model, dataset, split=split, exclude_seen=protocol == "excluded", threads=1)
                found = {name: metric["mean"] for name, metric in row["metrics"][split][protocol].items()}
                assert found == expected.metrics
        assert row["parameters"] > 0
        assert len(row["curve"]["mean"]) == row["epochs"] == 3


@pytest.mark.slow
def test_a_second_run_does_nothing_and_gives_the_same_report(straight, dataset):
    before = (straight / "report.json").read_bytes()
    runs = {path: path.stat().st_mtime_ns for path in (straight / "cells").rglob("*") if path.is_file()}
    result = experiment(dataset, straight, plan=straight.parent / "plan.toml", seeds=1, jobs=2, quiet=True)
    assert (result.cells, result.missing) == (2, 0)
    assert (straight / "report.json").read_bytes() == before
    assert {path: path.stat().st_mtime_ns for path in runs} == runs


@pytest.mark.slow
def test_a_killed_experiment_leaves_no_process_and_goes_on_to_the_same_report(straight, dataset, tmp_path):
    folder = tmp_path / "report"
    plan = straight.parent / "plan.toml"
    command = ["experiment", "--dataset", dataset, "--output", folder, "--plan", plan, "--seeds", 1, "--jobs", 2]
    program = f"from ipsrec_cli.main import main; main({[str(part) for part in [*command, '--quiet']]!r})"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    for stop, code in ((signal.SIGTERM, 143), (signal.SIGKILL, -9)):
        process = subprocess.Popen([sys.executable, "-c", program], env=environment)
        wait_for(lambda: cells_at_work(folder) and any(folder.glob("runs/*/*/metrics.jsonl")))
        process.send_signal(stop)
        assert process.wait(60) == code
        wait_for(lambda: not cells_at_work(folder))
    result = experiment(dataset, folder, plan=plan, seeds=1, jobs=2, quiet=True)
    assert (result.cells, result.missing, result.failures) == (2, 0, [])
    assert without_times(read_report(folder)) == without_times(read_report(straight))


def wait_for(happened, *, seconds=60.0):
    until = time.monotonic() + seconds
    while not happened():
        assert time.monotonic() < until, "it did not happen"
        time.sleep(0.02)


def cells_at_work(folder):
    """Processes whose log lies in the folder."""
    logs = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            logs += [process for link in (process / "fd").iterdir() if str(link.readlink()).startswith(str(folder))]
        except OSError:  # it has ended, or is somebody else's
            continue
    return logs


@pytest.mark.slow
def test_a_row_that_cannot_be_trained_is_one_line_and_the_others_go_on(dataset, tmp_path):
    text = PLAN.replace(
        "num_layers = 1, inner_dim = 16 }\n\n",
        "num_layers = 1, inner_dim = 16 }\ntraining = { learning_rate = 1e30 }\n\n",
        1,
    )
    result = experiment(dataset, tmp_path / "report", plan=write_plan(tmp_path, text), seeds=1, jobs=2, quiet=True)
    assert (result.cells, result.missing) == (1, 1)
    (failure,) = result.failures
    assert failure.title == "A, seed 0"
    assert "\n" not in failure.reason and "learning-rate" in failure.reason
    assert failure.log.is_file()
    report = read_report(tmp_path / "report")
    assert [row["name"] for row in report["rows"]] == ["B + terms"]
    assert report["best_baseline"] == {"kept": None, "excluded": None}
    assert (tmp_path / "report" / "report.html").is_file()


@pytest.fixture
def finished(dataset, tmp_path):
    """A folder whose two cells are there, without a training; and its plan."""
    plan = make_plan(tmp_path)
    opened = open_dataset(dataset)
    folder = tmp_path / "report"
    folder.mkdir()
    write_cells(folder, plan, opened, users=USERS, seeds={"A": 1, "B + terms": 1})
    identity = {"format_version": 1, "dataset_fingerprint": opened.fingerprint, "tune": 0, **plan.to_json()}
    (folder / EXPERIMENT_FILE).write_text(json.dumps(identity))
    return folder, tmp_path / "plan.toml"


def test_a_finished_folder_is_reported_without_running_anything(finished, dataset):
    folder, plan = finished
    result = experiment(dataset, folder, plan=plan, seeds=1, quiet=True)
    assert (result.cells, result.missing, result.failures) == (2, 0, [])
    assert not (folder / "runs").exists()
    again = experiment(dataset, folder, plan=plan, seeds=3, report_only=True, quiet=True)
    assert (again.cells, again.missing) == (2, 4)


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("dim = 8", "dim = 16", "row 'A': changes was {'dim': 8}, now it is {'dim': 16}"),
        ('model = "ipsrec-s"', 'model = "ipsrec-c"', "row 'B \\+ terms': model was ipsrec-s, now it is ipsrec-c"),
        (PLAN[PLAN.rindex("[[rows]]") :], "", "row 'B \\+ terms' is no longer in the plan"),
    ],
)
def test_another_plan_is_refused(finished, dataset, old, new, words):
    folder, plan = finished
    write_plan(plan.parent, PLAN.replace(old, new))
    for report_only in (False, True):
        with pytest.raises(DataError, match=words):
            experiment(dataset, folder, plan=plan, seeds=1, report_only=report_only, quiet=True)
    with pytest.raises(DataError, match="--overwrite"):
        experiment(dataset, folder, plan=plan, seeds=1, quiet=True)
    assert (folder / "cells" / "a" / "seed-0" / "cell.json").is_file()


def test_other_tuning_and_other_data_are_refused(finished, dataset, tmp_path):
    folder, plan = finished
    with pytest.raises(DataError, match="tune was 0, now it is 3"):
        experiment(dataset, folder, plan=plan, seeds=1, tune=3, quiet=True)
    identity = json.loads((folder / EXPERIMENT_FILE).read_text())
    (folder / EXPERIMENT_FILE).write_text(json.dumps({**identity, "tune": 3}))
    write_plan(plan.parent, PLAN.replace("[0.1, 0.3]", "[0.1, 0.2]"))
    with pytest.raises(DataError, match=r"row 'A': search was {'dropout': \[0.1, 0.3\]}, now it is"):
        experiment(dataset, folder, plan=plan, seeds=1, tune=3, quiet=True)
    (tmp_path / "other").mkdir()
    other = make_dataset(tmp_path / "other", np.random.default_rng(5))
    with pytest.raises(DataError, match="dataset_fingerprint was"):
        experiment(other, folder, plan=plan, seeds=1, quiet=True)


def test_how_a_row_is_shown_may_change_and_rows_may_be_added(finished, dataset):
    folder, plan = finished
    more = PLAN[PLAN.rindex("[[rows]]") :].replace("B + terms", "C")
    write_plan(
        plan.parent, PLAN.replace('table = "beyond"', 'table = "paper"').replace('["A", "Counting"]', '["A"]') + more
    )
    result = experiment(dataset, folder, plan=plan, models=["A", "B + terms"], seeds=1, quiet=True)
    assert result.cells == 2
    assert read_report(folder)["rows"][1]["tables"] == ["paper"]


def test_two_experiments_do_not_work_in_one_folder(finished, dataset):
    import fcntl

    folder, plan = finished
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(DataError, match="another `ipsrec experiment` is at work"):
            experiment(dataset, folder, plan=plan, seeds=1, quiet=True)
        assert experiment(dataset, folder, plan=plan, seeds=1, report_only=True, quiet=True).cells == 2


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"seeds": 0}, "--seeds is 0, expected 1 or more"),
        ({"jobs": 0}, "--jobs is 0"),
        ({"threads": 0}, "--threads is 0"),
        ({"tune": -1}, "--tune is -1, expected 0 or more"),
        ({"paper_figures": "toys"}, "--paper-figures is 'toys'"),
        ({"models": ["caser"]}, "no row and no model is called 'caser'"),
        ({"report_only": True}, "there is no experiment to report"),
    ],
)
def test_what_makes_no_sense_is_refused_before_anything_is_made(dataset, tmp_path, changes, words):
    with pytest.raises(DataError, match=words):
        experiment(dataset, tmp_path / "report", plan=write_plan(tmp_path), quiet=True, **changes)
    assert not (tmp_path / "report").exists()


def test_a_folder_that_is_no_experiment_is_not_touched(dataset, tmp_path):
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter").write_text("mine")
    for overwrite in (False, True):
        with pytest.raises(DataError, match="it is no experiment"):
            experiment(dataset, tmp_path / "thesis", plan=write_plan(tmp_path), overwrite=overwrite, quiet=True)
    with pytest.raises(DataError, match="is a file"):
        experiment(dataset, tmp_path / "plan.toml", plan=write_plan(tmp_path), quiet=True)
    assert (tmp_path / "thesis" / "chapter").read_text() == "mine"
