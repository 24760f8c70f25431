from __future__ import annotations

import copy
import json
import re

import numpy as np
import pytest
from experiment_data import PLAN, make_plan, write_cells
from training_data import USERS, make_dataset

from ipsrec_experiment.paper_figures import DATA_SETS, paper_figures
from ipsrec_experiment.plan import read_plan
from ipsrec_experiment.report import build_report, write_report
from ipsrec_experiment.tables import decimal, interval, overall_table, p_value, percent, settings_table
from ipsrec_experiment.wording import (
    curves_key,
    groups_key,
    leading_rows,
    metrics_key,
    read_curves,
    read_groups,
    read_metrics,
    settings_note,
    summary,
    what_ran,
)
from ipsrec_experiment.wording import tests_note as note_on_tests
from ipsrec_onnx.dataset import open_dataset
from ipsrec_onnx.errors import DataError


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    return open_dataset(make_dataset(tmp_path_factory.mktemp("data"), np.random.default_rng(3)))


@pytest.fixture(scope="module")
def written(dataset, tmp_path_factory):
    """A folder with a report of two rows, of 2 seeds and 1; and what report.json holds."""
    folder = tmp_path_factory.mktemp("report")
    plan = make_plan(folder)
    write_cells(folder, plan, dataset, users=USERS, seeds={"A": 2, "B + terms": 1})
    report = write_report(folder, plan, plan.rows, dataset, command="ipsrec experiment", paper_data_set=None)
    return folder, plan, report


def test_report_json_has_the_mean_and_spread_of_the_cells(written, dataset):
    folder, _, report = written
    assert json.loads((folder / "report.json").read_text()) == report
    first = report["rows"][0]
    values = [
        json.loads((folder / "cells" / "a" / f"seed-{seed}" / "cell.json").read_text())["metrics"]["test"]["kept"][
            "hr@5"
        ]
        for seed in (0, 1)
    ]
    metric = first["metrics"]["test"]["kept"]["hr@5"]
    assert metric["values"] == values
    assert metric["mean"] == pytest.approx(sum(values) / 2)
    assert metric["std"] == pytest.approx(abs(values[0] - values[1]) / 2**0.5)
    assert [row["seeds"] for row in report["rows"]] == [[0, 1], [0]]
    assert report["rows"][1]["metrics"]["test"]["kept"]["hr@5"]["std"] is None
    assert report["what"]["dataset"]["fingerprint"] == dataset.fingerprint
    assert report["rows"][0]["curve"]["epochs"] == [2, 4, 6]
    assert report["rows"][0]["curve"]["mean"] == pytest.approx([0.15, 0.17, 0.16])
    assert report["rows"][0]["curve"]["low"] == pytest.approx([0.1, 0.12, 0.11])


def test_the_same_cells_give_the_same_bytes(written, dataset, tmp_path):
    folder, plan, _ = written
    before = {name: (folder / name).read_bytes() for name in ("report.json", "report.md", "report.html")}
    write_report(folder, plan, plan.rows, dataset, command="ipsrec experiment", paper_data_set=None)
    assert {name: (folder / name).read_bytes() for name in before} == before


def test_the_page_needs_nothing_from_elsewhere_and_is_small(written):
    text = (written[0] / "report.html").read_text()
    assert not re.search(r"<script|<link|<img|<iframe|@import", text)
    loaded = re.findall(r"(?:src|href)\s*=\s*[\"']([^\"']*)", text) + re.findall(r"url\(([^)]*)\)", text)
    assert loaded
    assert all(address.startswith("#") for address in loaded)
    names = re.findall(r'\bid="([^"]*)"', text)
    assert len(names) == len(set(names))
    assert {address[1:] for address in loaded} <= set(names)
    assert len(text) < 1_000_000
    assert text.count("<svg") == text.count('role="img"') == 4
    assert ">B + terms</text>" in text  # text stays text
    assert "prefers-color-scheme: dark" in text and "@media print" in text


def test_every_table_is_in_markdown_and_page(written):
    folder, _, report = written
    markdown, page = (folder / "report.md").read_text(), (folder / "report.html").read_text()
    best = report["rows"][1]["metrics"]["test"]["excluded"]["ndcg@10"]["mean"]
    for text in (markdown, page):
        for words in (
            "B + terms",
            "Counting",
            decimal(best),
            "Overall results",
            "Ablation",
            "1 seed",
            "2 seeds",
            "no correction",
        ):
            assert words in text, words
    assert f"{len(report['comparisons'])} paired two-sided t-tests over {USERS} test users" in markdown
    for table in re.findall(r"(?:^\|.*\n)+", markdown, flags=re.MULTILINE):
        assert len({line.count("|") for line in table.splitlines()}) == 1


def test_best_is_bold_the_best_baseline_underlined_and_improvement_is_over_it(dataset, tmp_path):
    plan = make_plan(tmp_path)
    write_cells(tmp_path, plan, dataset, users=USERS, seeds={"A": 1, "B + terms": 1})
    report = build_report(tmp_path, plan, plan.rows, dataset, command="", paper_data_set=None)
    report["rows"][1]["tables"] = ["paper"]
    ours, theirs = (report["rows"][at]["metrics"]["test"]["kept"]["ndcg@10"]["mean"] for at in (1, 0))
    first, second = overall_table(report).rows
    assert (first[6].best, first[6].best_baseline, first[6].notes) == (False, True, ())
    assert (second[6].best, second[6].best_baseline, second[6].notes) == (True, False, (percent(ours / theirs - 1),))


def test_leading_rows_are_few_and_end_with_counting(written):
    assert leading_rows(written[2]) == ["A", "B + terms", "Counting"]


def test_the_best_row_is_drawn_though_it_stands_in_no_other_list(written):
    report = copy.deepcopy(written[2])
    report["rows"][1]["tables"] = ["ablation"]
    assert leading_rows(report) == ["A", "B + terms", "Counting"]


def test_a_curve_peaks_at_its_epoch_and_not_at_its_validation(written):
    report = written[2]
    assert read_curves(report).startswith("Highest validation NDCG@10: A, .1700 at epoch 4; lowest peak: B + terms, ")
    assert "bands from the worst" in curves_key(report)
    mixed = copy.deepcopy(report)
    mixed["rows"][1]["curve"]["metric"] = "mrr@10"
    assert read_curves(mixed) == (
        "Rows stop by different metrics (NDCG@10, MRR@10): compare only curves of the same one."
    )


def test_the_text_without_plots_speaks_of_no_line_or_bar(written):
    text = (written[0] / "report.md").read_text()
    assert not re.search("dashed|band|drawn|Bars|dot", text)
    page = (written[0] / "report.html").read_text()
    assert metrics_key(written[2]) in page and groups_key(written[2]) == ""


def test_the_floor_says_what_it_counts_and_how_far_the_best_row_is_from_it(written):
    report = written[2]
    best, floor = report["rows"][1]["metrics"]["test"], report["counting"]["metrics"]["test"]
    (line,) = [line for line in summary(report) if line.startswith("Counting")]
    for protocol in ("kept", "excluded"):
        ours, theirs = best[protocol]["ndcg@10"]["mean"], floor[protocol]["ndcg@10"]["mean"]
        assert f"{decimal(theirs)} (the best row: {percent(ours / theirs - 1)})" in line
    assert "the validation items too, which no row trains on" in line


def test_what_ran_says_which_rows_are_missing(written, dataset):
    folder, plan, report = written
    assert dict(what_ran(report))["cells"] == "3 in 2 rows, 1 to 2 seeds each"
    absent = make_plan(folder, PLAN + PLAN[PLAN.rindex("[[rows]]") :].replace("B + terms", "C")).rows
    more = build_report(folder, plan, absent, dataset, command="", paper_data_set=None)
    assert dict(what_ran(more))["cells"] == "3 in 2 rows, 1 to 2 seeds each; 1 more row has none yet"


def test_settings_that_tuning_chose_are_not_called_those_of_every_row(written):
    report = copy.deepcopy(written[2])
    assert settings_note(report).startswith("As the plan gives them; nothing was tuned here.")
    assert "learning_rate 0.01" in settings_note(report)
    trials = [{"number": at, "changes": {"learning_rate": rate}, "value": rate} for at, rate in enumerate((0.1, 0.2))]
    report["tuning"] = {"A": {"chosen": {"learning_rate": 0.2}, "trials": trials}}
    note = settings_note(report)
    assert "(2 a row)" in note and "1 row was not tuned" in note and "learning_rate" not in note
    first, second = ([figure.text for figure in row] for row in settings_table(report).rows)
    assert "learning_rate" not in first[2] and first[3] == "learning_rate 0.2"
    assert "learning_rate 0.01" in second[2] and second[3] == "not tuned"


@pytest.mark.parametrize("baseline", [False, True])
def test_one_row_of_one_seed_that_finds_nothing_is_reported_in_true_words(dataset, tmp_path, baseline):
    text = PLAN[: PLAN.rindex("[[rows]]")].replace("baseline = true", f"baseline = {str(baseline).lower()}")
    plan = make_plan(tmp_path, text.replace('name = "A"', 'name = "$A_1$ <b> | $"').replace('reference = "A"', ""))
    write_cells(tmp_path, plan, dataset, users=USERS, seeds={plan.rows[0].name: 1}, good=0.0)
    report = write_report(tmp_path, plan, plan.rows, dataset, command="", paper_data_set=None)
    for name in ("report.md", "report.html"):
        text = (tmp_path / name).read_text()
        assert not re.search("nan|inf%|None|standard deviation over seeds\\. The dashed|t-test", text)
    assert read_metrics(report) == "With seen items kept, no row finds anything."
    assert read_groups(report, "length") == "Seen items excluded."
    assert not metrics_key(report).startswith("Bars") and "bands" not in curves_key(report)
    assert note_on_tests(report).startswith("0 paired two-sided t-tests over")
    assert ("best baseline" in note_on_tests(report)) == baseline
    assert ">$A_1$ &lt;b&gt; | $</text>" in (tmp_path / "report.html").read_text()


def test_a_best_row_below_its_reference_and_a_reference_that_finds_nothing_are_said_so(written):
    report = copy.deepcopy(written[2])
    figures = report["groups"]["length"]["ndcg@10"]["excluded"]
    first, *others = figures["A"]
    figures["A"][first] = 0.0
    for name in others:
        figures["A"][name], figures["B + terms"][name] = 0.4, 0.3
    said = read_groups(report, "length")
    assert said.count("-25.0%") == len(others)
    assert said.endswith(f" A finds nothing here: {first}.")
    for test in report["comparisons"]:
        test.update(difference=None, low=None, high=None, p=None)
    assert not any(line.startswith("Against") for line in summary(report))
    assert note_on_tests(report).startswith("0 paired")


def test_an_experiment_without_a_cell_has_no_report(dataset, tmp_path):
    plan = make_plan(tmp_path)
    with pytest.raises(DataError, match="no cell is finished yet"):
        build_report(tmp_path, plan, plan.rows, dataset, command="", paper_data_set=None)


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda place: (place / "cell.json").write_text("{"), "cell.json is broken"),
        (lambda place: (place / "cell.json").write_text('{"dataset_fingerprint": "other"}'), "of dataset other"),
        (lambda place: (place / "ranks.npz").write_bytes(b"no"), "ranks.npz is broken"),
        (lambda place: (place / "ranks.npz").unlink(), "ranks.npz is broken"),
        (lambda place: (place / "ranks.npz").write_bytes((place / "ranks.npz").read_bytes()[:-30]), "ranks.npz is bro"),
    ],
)
def test_a_broken_cell_is_refused_by_name(dataset, tmp_path, damage, words):
    plan = make_plan(tmp_path)
    write_cells(tmp_path, plan, dataset, users=USERS, seeds={"A": 1, "B + terms": 0})
    damage(tmp_path / "cells" / "a" / "seed-0")
    with pytest.raises(DataError, match=words):
        build_report(tmp_path, plan, plan.rows, dataset, command="", paper_data_set=None)


def test_the_papers_figures_stand_beside_the_rows_that_it_has():
    names = [row.name for row in read_plan(None).rows]
    for data_set in DATA_SETS:
        rows = paper_figures(data_set, names)["rows"]
        assert set(rows) == {name for name in names if "paper" in name or "released" in name} | {
            "GRU4Rec",
            "Caser",
            "SASRec",
            "SR-GNN",
        }
        assert all(set(rows[name]) == {"hr@5", "mrr@5", "ndcg@5"} for name in rows if "w/o CL" in name)
    tmall = paper_figures("tmall", names)["rows"]
    assert tmall["SASRec"]["ndcg@10"] == 0.0599
    assert tmall["IPSRec-C released"]["hr@5"] == 0.0760
    assert paper_figures(None, names) is None
    with pytest.raises(DataError, match="expected one of tmall, twitch, wechat"):
        paper_figures("toys", names)


def test_small_numbers_are_readable():
    assert [decimal(value) for value in (0.0667, 0.0, 1.0, -0.05)] == [".0667", ".0000", "1.0000", "-.0500"]
    assert [percent(value) for value in (0.055, -0.00001, -0.07, None)] == ["+5.5%", "0.0%", "-7.0%", ""]
    assert [p_value(value) for value in (0.0312, 2e-5, 0.0, None)] == [
        ".031",
        "2e-05",
        "< 1e-99",
        "no test",
    ]
    assert [interval(0.033, 0.077), interval(None, None)] == ["+3.3, +7.7%", ""]
