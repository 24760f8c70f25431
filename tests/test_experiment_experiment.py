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
from ipsrec_experiment.plan import read_plan
from ipsrec_onnx.dataset import open_dataset
from ipsrec_onnx.errors import DataError
from ipsrec_onnx.evaluation import evaluate
from ipsrec_train.train import train

GOOD = ["A", "B + terms"]
# A row between them that cannot be trained, so that what the others do beside it is seen without a training more.
WITH_BAD = PLAN.replace(
    PLAN[PLAN.rindex("[[rows]]") :],
    '[[rows]]\nname = "Bad"\nmodel = "sasrec"\ntraining = { learning_rate = 1e30 }\n\n'
    + PLAN[PLAN.rindex("[[rows]]") :],
)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    return make_dataset(tmp_path_factory.mktemp("data"), np.random.default_rng(2))


def read_report(folder):
    return json.loads((folder / "report.json").read_text())


@pytest.fixture(scope="module")
def killed(dataset, tmp_path_factory):
    """An experiment of three rows, killed twice at work on the first; how each kill ended, and the folder."""
    folder = tmp_path_factory.mktemp("killed")
    plan = write_plan(folder, WITH_BAD)
    folder = folder / "report"
    command = ["experiment", "--dataset", dataset, "--output", folder, "--plan", plan, "--seeds", 1, "--models", "A"]
    program = f"from ipsrec_cli.main import main; main({[str(part) for part in [*command, '--quiet']]!r})"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    codes = []
    for stop in (signal.SIGTERM, signal.SIGKILL):
        process = subprocess.Popen([sys.executable, "-c", program], env=environment)
        wait_for(lambda: cells_at_work(folder) and any(folder.glob("runs/*/*/metrics.jsonl")))
        process.send_signal(stop)
        codes.append(process.wait(60))
        wait_for(lambda: not cells_at_work(folder))
    return codes, folder


@pytest.fixture(scope="module")
def ran(killed, dataset):
    """What that experiment gave back when it went on to its end; its second row cannot be trained."""
    folder = killed[1]
    return experiment(dataset, folder, plan=folder.parent / "plan.toml", seeds=1, jobs=2, quiet=True)


@pytest.fixture(scope="module")
def finished_run(ran):
    """Its folder."""
    return ran.output


@pytest.mark.slow
def test_a_killed_experiment_leaves_no_process_and_goes_on_to_what_an_unbroken_training_gives(
    killed, finished_run, dataset, tmp_path
):
    codes, _ = killed  # waited for until no process was left
    assert codes == [143, -9]
    config = read_plan(finished_run.parent / "plan.toml").row("A").config(seed=0)
    unbroken = train(
        dataset,
        tmp_path / "run",
        model=config.model,
        settings=config.settings,
        training=config.training,
        threads=1,
        quiet=True,
    )
    (run,) = (finished_run / "runs" / "a").iterdir()
    assert (run / "model.safetensors").read_bytes() == (unbroken.path / "model.safetensors").read_bytes()
    (row,) = [row for row in read_report(finished_run)["rows"] if row["name"] == "A"]
    assert row["curve"]["mean"] == [epoch["ndcg@10"] for epoch in unbroken.metrics]


@pytest.mark.slow
def test_a_row_that_cannot_be_trained_is_one_line_and_the_others_go_on(ran):
    assert (ran.cells, ran.missing) == (2, 1)
    (failure,) = ran.failures
    assert failure.title == "Bad, seed 0"
    assert "\n" not in failure.reason and "learning-rate" in failure.reason
    assert failure.log.is_file()
    report = read_report(ran.output)
    assert [row["name"] for row in report["rows"]] == GOOD
    assert (report["what"]["rows"], report["what"]["rows_with_cells"]) == (3, 2)
    assert (ran.output / "report.html").is_file()


@pytest.mark.slow
def test_figures_are_those_of_evaluate_on_the_exported_file(finished_run, dataset):
    report = read_report(finished_run)
    assert [row["name"] for row in report["rows"]] == GOOD
    for row, slug in zip(report["rows"], ("a", "b-terms"), strict=True):
        for protocol in ("kept", "excluded"):
            for split in ("test", "valid"):
                model = finished_run / "cells" / slug / "seed-0" / "model.onnx"
                expected = evaluate(model, dataset, split=split, exclude_seen=protocol == "excluded", threads=1)
                found = {name: metric["mean"] for name, metric in row["metrics"][split][protocol].items()}
                assert found == expected.metrics
        assert row["parameters"] > 0
        assert len(row["curve"]["mean"]) == row["epochs"] == 3


@pytest.mark.slow
def test_a_second_run_does_nothing_and_gives_the_same_report(finished_run, dataset):
    before = read_report(finished_run)
    runs = {path: path.stat().st_mtime_ns for path in (finished_run / "cells").rglob("*") if path.is_file()}
    logs = {path: path.read_bytes() for path in (finished_run / "logs").iterdir()}
    plan = finished_run.parent / "plan.toml"
    result = experiment(dataset, finished_run, plan=plan, models=GOOD, seeds=1, jobs=2, quiet=True)
    assert (result.cells, result.missing, result.failures) == (2, 0, [])
    after = read_report(finished_run)
    assert all(after[name] == before[name] for name in after if name != "what")  # fewer rows were asked for
    assert {path: path.read_bytes() for path in (finished_run / "logs").iterdir()} == logs
    assert {path: path.stat().st_mtime_ns for path in runs} == runs


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
