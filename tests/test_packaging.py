"""The built wheel, outside the checkout, on a machine that has only what scoring needs."""

from __future__ import annotations

import os
import subprocess
import sys
import venv
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from model_files import write_model_file

ROOT = Path(__file__).resolve().parents[1]

pytestmark = pytest.mark.slow


def run(*command: object, cwd: Path) -> subprocess.CompletedProcess[str]:
    """Run a command without the checkout on its path."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    return subprocess.run([str(part) for part in command], cwd=cwd, env=environment, capture_output=True, text=True)


@pytest.fixture(scope="module")
def scoring_machine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An environment with the wheel and its `cpu` extra, nothing else; gives its bin folder."""
    folder = tmp_path_factory.mktemp("wheel")
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet"]
    built = run(*pip, "wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", folder, ROOT, cwd=folder)
    assert built.returncode == 0, built.stderr
    (wheel,) = folder.glob("ipsrec_onnx-*.whl")
    venv.create(folder / "venv", with_pip=True)
    bin_folder = folder / "venv" / "bin"
    install = [bin_folder / "python", "-m", "pip", "--disable-pip-version-check", "--quiet", "install"]
    installed = run(*install, "--constraint", ROOT / "constraints.txt", f"{wheel}[cpu]", cwd=folder)
    assert installed.returncode == 0, installed.stderr
    return bin_folder


def test_the_base_and_cpu_install_has_nothing_of_training_and_experiments(scoring_machine, tmp_path):
    for module in ("torch", "onnx", "polars", "pandas", "optuna", "matplotlib", "jinja2", "scipy"):
        refused = run(scoring_machine / "python", "-c", f"import {module}", cwd=tmp_path)
        assert f"No module named '{module}'" in refused.stderr


def test_it_scores_with_a_model_file_alone_in_a_folder(scoring_machine, tmp_path):
    model = write_model_file(tmp_path / "ipsrec_c.onnx", num_items=40)
    ids = model.catalog.item_ids.to_pylist()
    pq.write_table(
        pa.table({"user_id": ["a", "b"], "item_history": pa.array([ids[:3], []], pa.list_(pa.int64()))}),
        tmp_path / "users.parquet",
    )
    command = [scoring_machine / "ipsrec", "score", "--model", "ipsrec_c.onnx", "--input", "users.parquet"]
    done = run(*command, "--output", "candidates.parquet", "--top-k", "5", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    candidates = pq.read_table(tmp_path / "candidates.parquet")
    assert candidates["user_id"].to_pylist() == ["a", "b"]
    assert candidates["status"].to_pylist() == ["scored", "cold"]
    assert [len(items) for items in candidates["item_ids"].to_pylist()] == [5, 5]
    assert not set(candidates["item_ids"][0].as_py()) & set(ids[:3])


def test_a_command_that_needs_an_extra_says_which(scoring_machine, tmp_path):
    (tmp_path / "run").mkdir()
    refused = run(scoring_machine / "ipsrec", "export", "--checkpoint", "run", "--output", "m.onnx", cwd=tmp_path)
    assert refused.returncode == 1
    assert refused.stderr.count("\n") == 1
    assert "pip install -c constraints.txt '.[train]'" in refused.stderr


def test_doctor_finds_nothing_wrong_there(scoring_machine, tmp_path):
    done = run(scoring_machine / "ipsrec", "doctor", cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_wheel_holds_the_templates_of_the_reports_and_the_graph_of_the_search(scoring_machine):
    (folder,) = (scoring_machine.parent / "lib").glob("python*/site-packages/ipsrec_onnx")
    files = {path.name for path in folder.iterdir()}
    assert {"page_shell.html.j2", "run_report.html.j2", "search_graph.onnx"} <= files


def test_a_report_without_its_extra_is_refused_before_any_work(scoring_machine, tmp_path):
    write_model_file(tmp_path / "m.onnx", num_items=40)
    command = [scoring_machine / "ipsrec", "score", "--model", "m.onnx", "--input", "u.parquet"]
    refused = run(*command, "--output", "o.parquet", "--report", "run.html", cwd=tmp_path)
    assert refused.returncode == 1 and refused.stderr.count("\n") == 1
    assert "pip install -c constraints.txt '.[report]'" in refused.stderr


def test_the_wheel_holds_the_experiments_plan_page_and_figures(scoring_machine):
    (folder,) = (scoring_machine.parent / "lib").glob("python*/site-packages/ipsrec_experiment")
    assert {"paper.toml", "page.html.j2", "paper_figures.json"} <= {path.name for path in folder.iterdir()}
