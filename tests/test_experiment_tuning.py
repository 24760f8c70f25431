from __future__ import annotations

import json
from pathlib import Path

import pytest
from experiment_data import PLAN, make_plan

from ipsrec_experiment.schedule import Schedule
from ipsrec_experiment.tuning import Search, read_choice
from ipsrec_onnx.errors import DataError

GRID = PLAN.replace("dropout = [0.1, 0.3]", "dropout = [0.1, 0.3]\nlearning_rate = [0.01, 0.02]")
WIDE = PLAN.replace("[0.1, 0.3]", "[0.1, 0.2, 0.3, 0.4, 0.5, 0.6]\nlearning_rate = [0.01, 0.02, 0.03, 0.04]")


def worth(changes):
    """A validation metric with one peak."""
    return 0.5 - abs(changes["dropout"] - 0.3) - changes.get("learning_rate", 0.02)


def tune(folder, row, *, trials, stop_after=None):
    """Do trials, or some of them; gives what was tried."""
    search = Search(folder, row, trials=trials)
    tried = []
    while (trial := search.next()) is not None and len(tried) != stop_after:
        tried.append(trial.changes)
        search.tell(trial, worth(trial.changes))
    return tried


def test_a_grid_that_fits_is_tried_once_each_and_the_best_by_validation_is_chosen(tmp_path):
    row = make_plan(tmp_path, GRID).rows[0]
    tried = tune(tmp_path, row, trials=9)
    pairs = [(changes["dropout"], changes["learning_rate"]) for changes in tried]
    assert sorted(pairs) == [(0.1, 0.01), (0.1, 0.02), (0.3, 0.01), (0.3, 0.02)]
    choice = read_choice(tmp_path, row)
    assert choice["chosen"] == {"dropout": 0.3, "learning_rate": 0.01}
    assert [trial["value"] for trial in choice["trials"]] == [worth(changes) for changes in tried]


@pytest.mark.parametrize(("text", "trials"), [(GRID, 4), (WIDE, 7)])
def test_an_interrupted_search_goes_on_as_if_it_had_not_been(tmp_path, text, trials):
    row = make_plan(tmp_path, text).rows[0]
    (tmp_path / "straight").mkdir()
    expected = tune(tmp_path / "straight", row, trials=trials)
    assert len(expected) == trials
    for place in ("told", "asked"):
        folder = tmp_path / place
        folder.mkdir()
        tried = tune(folder, row, trials=trials, stop_after=3)
        if place == "asked":  # stopped in the middle of a trial: it is done again
            Search(folder, row, trials=trials).next()
        assert read_choice(folder, row) is None
        assert tried + tune(folder, row, trials=trials) == expected
        assert read_choice(folder, row) == read_choice(tmp_path / "straight", row)


def test_trials_that_cannot_be_trained_lose_and_all_of_them_are_an_error(tmp_path):
    row = make_plan(tmp_path).rows[0]
    search = Search(tmp_path, row, trials=2)
    search.tell(search.next(), None)
    second = search.next()
    search.tell(second, 0.1)
    assert read_choice(tmp_path, row)["chosen"] == second.changes
    other = make_plan(tmp_path).rows[1]
    search = Search(tmp_path, other, trials=2)
    search.tell(search.next(), None)
    with pytest.raises(DataError, match="none of its 2 trials could be trained"):
        search.tell(search.next(), None)


def test_a_broken_choice_says_how_to_mend_it(tmp_path):
    row = make_plan(tmp_path).rows[0]
    (tmp_path / "a.json").write_text("[]")
    with pytest.raises(DataError, match="remove it, and tuning goes on"):
        read_choice(tmp_path, row)


def make_schedule(tmp_path, *, tune, seeds=2):
    plan = make_plan(tmp_path)
    return Schedule(tmp_path, "data", plan.rows, seeds=seeds, tune=tune, device="cpu", threads=1)


def write_run(task, metrics):
    """A run folder as training leaves it: validation metrics alone."""
    folder = Path(task.job.run)
    folder.mkdir(parents=True)
    info = {"model": "m", "settings": {"variant": "v", "max_len": 1}, "training": {"stop_metric": "ndcg@10"}}
    (folder / "run.json").write_text(json.dumps({**info, "dataset": {"fingerprint": "f"}, "versions": {}}))
    lines = [json.dumps({"epoch": 1 + at, "ndcg@10": value}) for at, value in enumerate(metrics)]
    (folder / "metrics.jsonl").write_text("\n".join(lines) + "\n")
    (folder / "model.safetensors").write_bytes(b"")


def test_trials_only_train_and_validation_alone_decides(tmp_path):
    schedule = make_schedule(tmp_path, tune=2)
    runs, cells = {}, {}
    while (task := schedule.next()) is not None:
        if task.trial is None:
            cells[task.row.name, task.seed] = task.job
            continue
        assert task.job.cell is None  # nothing is exported or evaluated, so that no test item is read
        assert task.seed == task.job.seed == 0
        peak = 0.2 if task.trial.changes["dropout"] == 0.3 else 0.1
        write_run(task, [0.05, peak, 0.01])
        runs[task.row.name, task.trial.changes["dropout"]] = task.job.run
        schedule.done(task)
    assert len(runs) == 4
    for row in schedule.rows:
        assert read_choice(tmp_path / "tuning", row)["chosen"] == {"dropout": 0.3}
        assert [trial["value"] for trial in read_choice(tmp_path / "tuning", row)["trials"]] == [0.1, 0.2]
    assert len(cells) == 4
    for (row, seed), job in cells.items():
        assert job.changes["dropout"] == 0.3
        assert (job.run == runs[row, 0.3]) == (seed == 0)  # the chosen trial is the training of seed 0, done already


def test_seed_0_of_every_row_comes_before_seed_1(tmp_path):
    schedule = make_schedule(tmp_path, tune=0)
    assert schedule.left() == {"A": 2, "B + terms": 2}
    order = []
    while (task := schedule.next()) is not None:
        order.append((task.row.name, task.seed))
    assert order == [("A", 0), ("B + terms", 0), ("A", 1), ("B + terms", 1)]


def test_a_row_whose_trial_crashes_is_left_out_and_the_others_go_on(tmp_path):
    schedule = make_schedule(tmp_path, tune=2)
    first, second = schedule.next(), schedule.next()
    assert (first.row.name, second.row.name) == ("A", "B + terms")
    assert schedule.next() is None  # the next trial of a row depends on the last one
    schedule.failed(first, "killed by signal 9")
    assert schedule.next() is None
    write_run(second, [0.1])
    schedule.done(second)
    assert schedule.next().row.name == "B + terms"
    assert schedule.left() == {"A": 0, "B + terms": 3}
    assert [(failure.title, failure.reason) for failure in schedule.failures] == [
        (first.title, "killed by signal 9"),
    ]
