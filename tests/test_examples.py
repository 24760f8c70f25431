"""The demo's make targets, the example without this package, and the benchmark's users file."""

from __future__ import annotations

import os
import re
import runpy
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from model_files import write_model_file

from ipsrec_onnx.model_file import open_model_file

ROOT = Path(__file__).resolve().parents[1]
# What the demo makes, oldest first, between its inputs and the environment.
INPUTS = ["pyproject.toml", "constraints.txt", "examples/grocery/interactions.py", "configs/grocery-demo.toml"]
MADE = ["households.parquet", "dataset/dataset.json", ".trained", "ipsrec_c.onnx", "candidates.parquet"]
STEPS = ["interactions.py", "ipsrec prepare", "ipsrec train", "ipsrec export", "ipsrec score"]


@pytest.mark.skipif(shutil.which("make") is None, reason="make is not installed")
@pytest.mark.parametrize(
    ("removed", "changed", "first"),
    [
        (None, None, None),
        (".demo/households.parquet", None, 0),
        (".demo/dataset/dataset.json", None, 1),
        (".demo/.trained", None, 2),
        (".demo/candidates.parquet", None, 4),
        (None, "examples/grocery/interactions.py", 0),
        (None, "configs/grocery-demo.toml", 2),
        (None, "constraints.txt", None),  # installs anew, and does not train again
    ],
)
def test_demo_redoes_what_is_not_there_or_older_than_its_inputs(
    tmp_path: Path, removed: str | None, changed: str | None, first: int | None
) -> None:
    shutil.copy(ROOT / "Makefile", tmp_path)
    for age, name in enumerate([*INPUTS, ".venv-demo/bin/.installed", *(f".demo/{made}" for made in MADE)]):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
        os.utime(path, (1_000_000 + age, 1_000_000 + age))
    if removed:
        (tmp_path / removed).unlink()
    if changed:
        (tmp_path / changed).touch()
    plan = subprocess.run(["make", "-n", "demo"], cwd=tmp_path, capture_output=True, text=True, check=True).stdout
    done = [step for step in STEPS if step in plan]
    assert done == ([] if first is None else STEPS[first:])
    assert "show_candidates.py" in plan
    assert ("pip install" in plan) == (changed == "constraints.txt")


def plain(model: Path, *item_ids: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(ROOT / "examples" / "plain_onnxruntime.py"), str(model), *map(str, item_ids)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_plain_onnxruntime_keeps_the_last_known_ids(tmp_path: Path) -> None:
    model = write_model_file(tmp_path / "m.onnx", num_items=40)
    ids = model.catalog.item_ids.to_pylist()
    max_len = open_model_file(model.path).settings["max_len"]
    expected = plain(model.path, *ids[-max_len:])
    assert expected.returncode == 0, expected.stderr
    assert plain(model.path, *ids[:-1], "unknown", ids[-1]).stdout == expected.stdout


@pytest.mark.parametrize("item_ids", [[], ["unknown"]])
def test_plain_onnxruntime_says_that_it_knows_no_id(tmp_path: Path, item_ids: list[str]) -> None:
    refused = plain(write_model_file(tmp_path / "m.onnx", num_items=40).path, *item_ids)
    assert refused.returncode == 1
    assert refused.stderr.count("\n") == 1 and "knows none of the" in refused.stderr


def test_the_readme_scores_from_python(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_model_file(tmp_path / "ipsrec_c.onnx")
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), re.DOTALL)
    (code,) = (block for block in blocks if "Scorer(" in block)
    names: dict[str, Any] = {}
    exec(code, names)  # noqa: S102 - it is our own
    assert names["candidates"]["user_id"].to_pylist() == ["ann", "bob"]
    assert names["candidates"]["item_ids"].to_pylist()[0] == names["item_ids"]
    assert len(names["scores"]) == 10


def test_bench_memory_writes_full_row_groups(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(ROOT / "benchmarks")  # where a script finds its neighbours
    model = write_model_file(tmp_path / "model.onnx")
    bench = runpy.run_path(str(ROOT / "benchmarks" / "bench_memory.py"))
    bench["write_users"](tmp_path / "users.parquet", model.path, users=150_000, mean_history=3)
    written = pq.ParquetFile(tmp_path / "users.parquet")
    groups = [written.metadata.row_group(group).num_rows for group in range(written.num_row_groups)]
    assert groups == [65_536, 65_536, 150_000 - 2 * 65_536]
    table = written.read()
    assert table["user_id"].to_pylist() == list(range(150_000))
    lengths = {len(history) for history in table["item_history"].to_pylist()}
    assert lengths == {1, 2, 3, 4, 5}


def test_show_candidates_bears_a_product_without_brand() -> None:
    pl = pytest.importorskip("polars")
    show = runpy.run_path(str(ROOT / "examples" / "grocery" / "show_candidates.py"))
    row = {"item_id": 1, "description": "tea", "size": "", "category": "tea", "brand": None, "manufacturer_id": 7}
    products = pl.DataFrame([row], schema_overrides={"brand": pl.String})
    assert show["as_table"]([1, 2], [0.5, 0.25], products).row_count == 2  # item 2 is no product at all
