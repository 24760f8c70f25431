"""`score --report`: its figures against slow twins, when it is refused, and how the page looks in a browser."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from browser import measure, screenshot
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from model_files import TinyModel, write_model_file
from naive_run_report import (
    naive_coverage,
    naive_gini,
    naive_histogram,
    naive_lengths,
    naive_lists,
    naive_lorenz,
    provider_of,
)
from test_onnx_scoring import random_users

from ipsrec_onnx import user_parts
from ipsrec_onnx.concentration import gini, lorenz
from ipsrec_onnx.errors import DataError
from ipsrec_onnx.score_counts import ScoreCounts, count_lengths
from ipsrec_onnx.score_histogram import Histogram
from ipsrec_onnx.score_report import ScoreReport
from ipsrec_onnx.scoring import score
from ipsrec_onnx.throughput import Throughput, users_per_second


def figures_of(page: Path) -> dict[str, Any]:
    """The figures that a page carries."""
    found = re.search(r'<script type="application/json" id="figures">(.*?)</script>', page.read_text(), re.DOTALL)
    assert found
    figures: dict[str, Any] = json.loads(found[1])
    return figures


def report_on(
    folder: Path, model: TinyModel, users: pa.Table, *, output: str = "o.parquet", **options: Any
) -> tuple[ScoreReport, dict[str, Any]]:
    """Score users, and give what was done and the figures of its page."""
    if not (folder / "users.parquet").exists():
        pq.write_table(users, folder / "users.parquet")
    arguments: dict[str, Any] = {"top_k": 8, "report": folder / "run.html", **options}
    done = score(model.path, folder / "users.parquet", f"{folder}/{output}", **arguments)
    return done, figures_of(folder / "run.html")


@pytest.mark.parametrize(
    ("output", "layout", "string_ids"),
    [("o.parquet", "list", True), ("o.parquet", "long", False), ("o/", "list", False), ("o/", "long", True)],
)
def test_the_figures_are_those_of_the_slow_twin(
    tmp_path: Path,
    rng: np.random.Generator,
    monkeypatch: pytest.MonkeyPatch,
    output: str,
    layout: str,
    string_ids: bool,
) -> None:
    monkeypatch.setattr(user_parts, "PART_ROWS", 50)
    model = write_model_file(tmp_path / "m.onnx", string_ids=string_ids, num_items=90, num_providers=9)
    users = random_users(model, rng, 170)
    deny = model.catalog.item_ids.to_pylist()[3:20]
    (tmp_path / "deny.txt").write_text("".join(f"{item}\n" for item in deny))
    done, figures = report_on(
        tmp_path, model, users, output=output, layout=layout, deny_items=tmp_path / "deny.txt", cold_users="popular"
    )
    files = sorted((tmp_path / "o").iterdir()) if output == "o/" else [tmp_path / output]
    lists, provider = naive_lists(files), provider_of(model)
    known = [sum(item in provider for item in history) for history in users["item_history"].to_pylist()]
    allowed = [item for item in provider if item not in deny]
    allowed_providers = sorted({provider[item] for item in allowed} - {0})

    assert len(lists) == 170 and figures["coverage"]["num_lists"] == 170
    warm = [candidates for candidates, length in zip(lists, known, strict=True) if length]
    assert len(warm) < 170
    width, expected = naive_histogram([score for candidates in warm for _, score in candidates], 64)
    scores = figures["scores"]
    assert np.diff(scores["edges"]).tolist() == [width] * len(scores["counts"])
    assert {
        round(edge / width): count for edge, count in zip(scores["edges"], scores["counts"], strict=False) if count
    } == expected
    best = [0] * len(scores["counts"])
    best[scores["best_first"] : scores["best_first"] + len(scores["best_counts"])] = scores["best_counts"]
    for edge, count in zip(scores["edges"], best, strict=False):
        assert count == sum(edge <= candidates[0][1] < edge + width for candidates in warm)

    items, providers = naive_coverage(lists, model)
    coverage = figures["coverage"]
    assert coverage["lists"] == list(range(171))
    assert coverage["items"] == {"allowed": len(allowed), "recommended": items[-1], "curve": items}
    assert coverage["providers"] == {
        "allowed": len(allowed_providers),
        "recommended": providers[-1],
        "curve": providers,
    }

    concentration = figures["concentration"]
    recommended = [provider[item] for candidates in lists for item, _ in candidates]
    in_lists = [recommended.count(one) for one in allowed_providers]
    in_catalog = [sum(provider[item] == one for item in allowed) for one in allowed_providers]
    assert concentration["without_provider"] == recommended.count(0) > 0
    assert concentration["candidates"] == len(recommended)
    for name, shares in (("lists", in_lists), ("catalog", in_catalog)):
        assert concentration[name]["gini"] == pytest.approx(naive_gini(shares))
        x, y = naive_lorenz(shares)
        assert concentration[name]["x"] == pytest.approx(x) and concentration[name]["y"] == pytest.approx(y)
        leaders = sorted(range(len(shares)), key=lambda place: -in_lists[place])[:10]
        assert concentration[name]["leaders_share"] == pytest.approx(
            sum(shares[place] for place in leaders) / sum(shares)
        )
    assert figures["counts"] == done.counts.to_json()
    assert figures["counts"]["history_lengths"] == naive_lengths(known)
    assert figures["counts"]["cold_users"] == known.count(0)
    text = (tmp_path / "run.html").read_text()
    for words in (
        f"{concentration['lists']['gini']:.2f} in the lists, {concentration['catalog']['gini']:.2f} in the catalog",
        f"{items[-1]:,} of {len(allowed):,} items",
        f"{providers[-1]} of {len(allowed_providers)} providers",
        f"Without a known item: {known.count(0)}.",
    ):
        assert words in text, words


@pytest.mark.parametrize("layout", ["list", "long"])
@pytest.mark.parametrize("histories", [[], [[], []], [None, [1]]])
def test_a_job_of_nobody_or_of_cold_users_has_a_report_too(
    tmp_path: Path, histories: list[list[int] | None], layout: str
) -> None:
    model = write_model_file(tmp_path / "m.onnx")
    users = pa.table({"user_id": range(len(histories)), "item_history": pa.array(histories, pa.list_(pa.int64()))})
    for cold_users in ("popular", "empty"):
        options = {"layout": layout, "cold_users": cold_users, "bad_rows": "divert", "overwrite": True}
        done, figures = report_on(tmp_path, model, users, **options)
        assert figures["scores"]["counts"] == []
        with_list = done.counts.rows_out if cold_users == "popular" else 0
        assert figures["coverage"]["num_lists"] == with_list
        text = (tmp_path / "run.html").read_text()
        assert ("No user has a list." in text) == (with_list == 0)
        assert ("The input has no users." in text) == (len(histories) == 0)
        assert ("Malformed rows</h3>" in text) == (None in histories)
        assert text.count("<svg") == text.count("<figure>") == text.count("<figcaption>")


def test_one_user_has_a_report(tmp_path: Path) -> None:
    model = write_model_file(tmp_path / "m.onnx")
    users = pa.table({"user_id": ["a"], "item_history": [model.catalog.item_ids.to_pylist()[:2]]})
    _, figures = report_on(tmp_path, model, users, top_k=1)
    assert sum(figures["scores"]["counts"]) == 1 == figures["coverage"]["items"]["recommended"]


def test_the_bytes_of_the_results_do_not_depend_on_a_report(tmp_path: Path, rng: np.random.Generator) -> None:
    model = write_model_file(tmp_path / "m.onnx")
    users = random_users(model, rng, 60)
    report_on(tmp_path, model, users)
    with_report = (tmp_path / "o.parquet").read_bytes(), (tmp_path / "o.parquet.manifest.json").read_bytes()
    (tmp_path / "run.html").unlink()
    score(model.path, tmp_path / "users.parquet", tmp_path / "o.parquet", top_k=8, overwrite=True)
    assert ((tmp_path / "o.parquet").read_bytes(), (tmp_path / "o.parquet.manifest.json").read_bytes()) == with_report
    assert not (tmp_path / "run.html").exists()


@pytest.mark.parametrize("output", ["o.parquet", "o/"])
def test_a_resumed_job_reports_on_all_lists_and_on_the_time_of_its_own_part(
    tmp_path: Path, rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch, output: str
) -> None:
    monkeypatch.setattr(user_parts, "PART_ROWS", 40)
    model = write_model_file(tmp_path / "m.onnx")
    users = random_users(model, rng, 150)
    _, whole = report_on(tmp_path, model, users, output=output)
    finished = (tmp_path / "run.html").stat()
    done, again = report_on(tmp_path, model, users, output=output, resume=True)
    assert (tmp_path / "run.html").stat().st_ino != finished.st_ino
    assert done.resumed_rows == 150 and again["run"]["cpu_s"] == {}
    assert "The job was finished before this run" in (tmp_path / "run.html").read_text()

    bad = users.to_pylist()
    bad[100]["item_history"] = None
    (tmp_path / "broken").mkdir()
    with pytest.raises(DataError, match="row 100"):
        report_on(tmp_path / "broken", model, pa.Table.from_pylist(bad, users.schema), output=output, threads=1)
    assert not (tmp_path / "broken" / "run.html").exists()

    (tmp_path / "killed").mkdir()
    script = f"""
import os
from ipsrec_onnx import score_outputs, user_parts
from ipsrec_onnx.scoring import score
user_parts.PART_ROWS = 40
write, seen = score_outputs.ScoreOutputs._write_part, []
def write_two(self, part):
    seen.append(part)
    return write(self, part) if len(seen) < 3 else die()
def die():  # in the one thread that writes, after all that came before
    os._exit(9)
    yield
score_outputs.ScoreOutputs._write_part = write_two
folder = {str(tmp_path)!r}
score({str(model.path)!r}, folder + "/users.parquet", folder + "/killed/{output}", top_k=8, threads=2)
"""
    assert subprocess.run([sys.executable, "-c", script], env=_environment()).returncode == 9
    done = score(
        model.path,
        tmp_path / "users.parquet",
        f"{tmp_path}/killed/{output}",
        top_k=8,
        report=tmp_path / "killed" / "run.html",
        resume=True,
    )
    resumed = figures_of(tmp_path / "killed" / "run.html")
    assert done.resumed_rows == 80 and resumed["run"]["samples"][-1][1] == 70
    assert "80 of 150 users were done before" in (tmp_path / "killed" / "run.html").read_text()
    for name in ("counts", "scores", "coverage", "concentration"):
        assert again[name] == resumed[name] == whole[name]


def _environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}


def test_names_with_html_in_them_come_out_as_text(tmp_path: Path) -> None:
    model = write_model_file(tmp_path / "<b>model&.onnx", string_ids=True)
    source = tmp_path / "<script>alert(1)<script>.parquet"
    history: list[list[str] | None] = [None, [model.catalog.item_ids[0].as_py()]]
    column = "</script><img src=x onerror=alert(1)>"
    pq.write_table(pa.table({"user_id": ["<i>", "b"], column: history}), source)
    page = tmp_path / "run.html"
    score(
        model.path,
        source,
        tmp_path / "'\"><u>.parquet",
        item_column=column,
        bad_rows="divert",
        cold_users="empty",
        report=page,
    )
    text = page.read_text()
    for tag in ("<script>", "<b>", "<img", "<u>", "<i>"):
        assert tag not in text, tag
    assert text.count("<script") == text.count("</script") == 1
    assert "Scoring &lt;script&gt;alert(1)&lt;script&gt;.parquet" in text
    assert figures_of(page)["what"]["input"]["columns"] == ["user_id", column]


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("there.html", {}, "output .*there.html exists already; .* --overwrite"),
        ("folder", {"overwrite": True}, "report .*folder is a folder"),
        ("no/such/run.html", {}, "folder .* is not there"),
        ("o.parquet", {}, "report .*o.parquet: output .*o.parquet is written there"),
        ("o.parquet.manifest.json", {"overwrite": True}, "manifest.json is written there"),
        ("o.parquet.bad_rows.parquet", {"bad_rows": "divert"}, "bad_rows.parquet is written there"),
        ("link.html", {"overwrite": True}, "output .*link.html is one of the input's files"),
        ("m.onnx", {"overwrite": True}, "output .*m.onnx is the model file"),
        ("deny.txt", {"overwrite": True}, "output .*deny.txt is the deny list"),
    ],
)
def test_a_report_that_would_take_the_place_of_something_is_refused_before_any_work(
    tmp_path: Path, rng: np.random.Generator, name: str, options: dict[str, Any], message: str
) -> None:
    model = write_model_file(tmp_path / "m.onnx")
    users = random_users(model, rng, 20)
    (tmp_path / "there.html").write_text("mine")
    (tmp_path / "folder").mkdir()
    (tmp_path / "link.html").symlink_to(tmp_path / "users.parquet")
    (tmp_path / "deny.txt").write_text("7\n")
    pq.write_table(users, tmp_path / "users.parquet")
    before = {path.name: path.lstat().st_mtime_ns for path in tmp_path.iterdir()}
    with pytest.raises(DataError, match=message):
        report_on(tmp_path, model, users, report=tmp_path / name, deny_items=tmp_path / "deny.txt", **options)
    assert {path.name: path.lstat().st_mtime_ns for path in tmp_path.iterdir()} == before


def test_a_report_does_not_lie_among_the_candidates(tmp_path: Path, rng: np.random.Generator) -> None:
    model = write_model_file(tmp_path / "m.onnx")
    (tmp_path / "o").mkdir()
    with pytest.raises(DataError, match=r"report .*run.html: output .*/o is written there"):
        report_on(
            tmp_path, model, random_users(model, rng, 20), output="o/", report=tmp_path / "o/run.html", overwrite=True
        )


def test_a_missing_library_is_said_before_any_work(tmp_path: Path, rng: np.random.Generator) -> None:
    model = write_model_file(tmp_path / "m.onnx")
    pq.write_table(random_users(model, rng, 20), tmp_path / "users.parquet")
    script = f"""
import sys
sys.modules["jinja2"] = None  # as if it were not installed
from ipsrec_cli.main import main
folder = {str(tmp_path)!r}
main(["score", "--model", folder + "/m.onnx", "--input", folder + "/users.parquet",
      "--output", folder + "/o.parquet", "--report", folder + "/run.html"])
"""
    refused = subprocess.run([sys.executable, "-c", script], env=_environment(), capture_output=True, text=True)
    assert refused.returncode == 1 and refused.stderr.count("\n") == 1, refused.stderr
    assert "report" in refused.stderr and "'.[report]'" in refused.stderr
    assert {path.name for path in tmp_path.iterdir()} == {"m.onnx", "users.parquet"}


def test_scoring_without_a_report_loads_no_library_of_it(tmp_path: Path, rng: np.random.Generator) -> None:
    script = "import sys, ipsrec_onnx.scoring; sys.exit(bool({'jinja2', 'matplotlib'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", script], env=_environment()).returncode == 0


@settings(max_examples=60, deadline=None)
@given(shares=arrays(np.int64, st.integers(1, 40), elements=st.integers(0, 10**6)))
def test_gini_and_lorenz_equal_their_slow_twins(shares: np.ndarray) -> None:
    if not shares.sum():
        assert gini(shares) is None and lorenz(shares, most=99) == ([], [])
        return
    assert gini(shares) == pytest.approx(naive_gini(shares.tolist()), abs=1e-12)
    x, y = naive_lorenz(shares.tolist())
    assert lorenz(shares, most=99) == (pytest.approx(x), pytest.approx(y))
    few_x, few_y = lorenz(shares, most=8)
    assert set(zip(few_x, few_y, strict=True)) <= set(zip(*lorenz(shares, most=99), strict=True))
    assert (few_x[0], few_y[0], few_x[-1], few_y[-1]) == (0, 0, 1, 1) and len(few_x) <= 9


@settings(max_examples=60, deadline=None)
@given(
    chunks=st.lists(arrays(np.float32, st.integers(0, 30), elements=st.floats(-2000, 2000, width=32)), max_size=5),
    most_bins=st.sampled_from([2, 7, 64]),
)
def test_a_histogram_equals_its_slow_twin_in_whatever_chunks_it_comes(chunks: list[np.ndarray], most_bins: int) -> None:
    histogram = Histogram(most_bins)
    for chunk in chunks:
        histogram.add(chunk)
    numbers = [float(number) for chunk in chunks for number in chunk]
    if not numbers:
        assert len(histogram.counts) == 0
        return
    width, expected = naive_histogram(numbers, most_bins)
    assert histogram.width == width and len(histogram.counts) <= most_bins
    assert {histogram.first + place: count for place, count in enumerate(histogram.counts) if count} == expected


def test_lengths_are_counted_by_range_and_add_up() -> None:
    lengths = [*range(65), 3, 3, 16, 17]
    whole = count_lengths(np.array(lengths))
    assert whole == naive_lengths(lengths)
    halves = [ScoreCounts(history_lengths=count_lengths(np.array(part))) for part in (lengths[40:], lengths[:40])]
    summed = (halves[0] + halves[1]).history_lengths
    assert (summed, list(summed)) == (whole, list(whole))


def test_samples_of_throughput_are_bounded_and_keep_the_speed() -> None:
    throughput = Throughput()
    for step in range(1, 100_001):
        throughput.add_at(step / 10, 5 if step <= 50_000 else 10)
    assert len(throughput.samples) <= 512
    assert throughput.samples[0] == (0.0, 0) and throughput.samples[-1] == (10_000.0, 750_000)
    edges, rates = users_per_second(throughput.samples, most=40)
    assert len(edges) == 41 and edges[-1] == 10_000
    assert rates[:19] == pytest.approx([50] * 19, rel=0.02) and rates[21:] == pytest.approx([100] * 19, rel=0.02)
    assert users_per_second([(0.0, 0)], most=40) == ([0.0], [])


@pytest.fixture(scope="module")
def hard_page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A page with everything that takes room: long names, many ranges of lengths, all kinds of malformed rows."""
    folder = tmp_path_factory.mktemp("page")
    model = write_model_file(folder / f"a-model-with-a-{'very-' * 12}long-name.onnx", num_items=900, num_providers=60)
    rng = np.random.default_rng(4)
    ids = model.catalog.item_ids.to_numpy()
    lengths = [*rng.integers(0, 90, 600), 3000]
    histories: list[list[int | None] | None] = [rng.choice(ids, length).tolist() for length in lengths]
    providers: list[list[int | None] | None] = [[50] * length for length in lengths]
    histories[3], histories[5], providers[9], providers[11] = (
        None,
        [None],
        [50] * 300,
        [None] * len(histories[11] or []),
    )
    users = pa.table(
        {
            "user_id": pa.array([None if row == 7 else row for row in range(len(lengths))]),
            "items_in_the_order_of_purchase": pa.array(histories, pa.list_(pa.int64())),
            "provider_history": pa.array(providers, pa.list_(pa.int64())),
        }
    )
    pq.write_table(users, folder / f"{'x' * 70}.parquet")
    score(
        model.path,
        folder / f"{'x' * 70}.parquet",
        folder / "o.parquet",
        item_column="items_in_the_order_of_purchase",
        bad_rows="divert",
        report=folder / "run.html",
    )
    return folder / "run.html"


@pytest.mark.parametrize("width", [390, 1280])
def test_the_page_is_readable_in_a_browser(hard_page: Path, tmp_path: Path, width: int) -> None:
    seen = measure(hard_page, tmp_path, width=width)
    assert seen["width"] == seen["scroll_width"] == width
    for defect in ("too_wide", "overlapping_blocks", "overlapping_words", "words_outside"):
        assert seen[defect] == [], defect
    assert seen["svgs"] == 8 and seen["unlabelled"] == 0
    assert seen["smallest_text"] > 10.5
    assert seen["headings"][0] == "H1" and seen["headings"].count("H1") == 1 and seen["headings"][1] == "H2"
    assert min(_contrast(*colours) for colours in seen["colours"]) > 4.5
    screenshot(hard_page, tmp_path, tmp_path / "page.png", width=width, height=800)
    assert (tmp_path / "page.png").read_bytes().startswith(b"\x89PNG")


def test_the_measure_sees_what_overflows_and_overlaps(tmp_path: Path) -> None:
    page = tmp_path / "bad.html"
    page.write_text(
        '<!DOCTYPE html><body style="margin: 0"><p style="width: 900px">wide</p><p>one</p>'
        '<p style="margin-top: -30px">two</p>'
        '<svg viewBox="0 0 10 10" width="99"><text font-size="5" x="1" y="5">a</text>'
        '<text font-size="5" x="2" y="6">b</text><text font-size="5" x="9" y="8">out</text></svg></body>'
    )
    seen = measure(page, tmp_path, width=390)
    assert seen["scroll_width"] > 390 and seen["too_wide"] == ["p: wide"]
    assert seen["overlapping_blocks"] == [["p: one", "p: two"]]
    assert seen["overlapping_words"] == [["text: a", "text: b"]] and seen["words_outside"] == ["text: out"]
    assert seen["unlabelled"] == 1


def _contrast(ink: str, paper: str) -> float:
    """As WCAG 2 defines it, from "rgb(r, g, b)"."""

    def luminance(colour: str) -> float:
        parts = [int(part) / 255 for part in re.findall(r"\d+", colour)[:3]]
        linear = [part / 12.92 if part <= 0.03928 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    lighter, darker = sorted((luminance(ink), luminance(paper)), reverse=True)
    return (lighter + 0.05) / (darker + 0.05)
