from __future__ import annotations

import json
import re

import numpy as np
import pytest
from experiment_data import make_plan, write_cells
from training_data import USERS, make_dataset

from ipsrec_experiment.paper_figures import DATA_SETS, paper_figures
from ipsrec_experiment.plan import read_plan
from ipsrec_experiment.report import build_report, write_report
from ipsrec_experiment.tables import decimal, interval, overall_table, p_value, percent
from ipsrec_experiment.wording import leading_rows
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
    assert [p_value(value) for value in (0.0312, 2e-5, None)] == [".031", "2e-05", "no test"]
    assert [interval(0.033, 0.077), interval(None, None)] == ["+3.3, +7.7%", ""]
