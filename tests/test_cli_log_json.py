"""`--log-json`: one JSON object a line on stderr, and nothing else there, errors and stops among them."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from model_files import TinyModel, write_model_file
from test_onnx_scoring import random_users

from ipsrec_cli.main import main


@pytest.fixture
def job(tmp_path: Path, rng: np.random.Generator) -> list[str]:
    model: TinyModel = write_model_file(tmp_path / "model.onnx")
    pq.write_table(random_users(model, rng, 60), tmp_path / "users.parquet")
    paths = {"model": model.path, "input": tmp_path / "users.parquet", "output": tmp_path / "o.parquet"}
    return ["score", *(str(word) for name, path in paths.items() for word in (f"--{name}", path)), "--log-json"]


def run(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> tuple[int, list[dict[str, object]]]:
    """Run the command line: exit code, events."""
    with pytest.raises(SystemExit) as stop:
        main(arguments)
    return int(str(stop.value.code)), [json.loads(line) for line in capsys.readouterr().err.splitlines()]


def test_a_job_logs_its_beginning_its_parts_and_its_end(job: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("faiss")
    code, events = run([*job, "--top-k", "7", "--approximate", "recall=0.9"], capsys)
    assert code == 0
    names = [event["event"] for event in events]
    assert names == ["job_begun", "note", "job_planned", "progress", "part_done", "job_done"]
    assert all(event["level"] == "info" and str(event["time"]).endswith("+00:00") for event in events)
    begun, _, planned, progress, part, done = events
    assert begun["rows"] == 60 and begun["options"]["top_k"] == 7 and begun["model"] == job[2]  # type: ignore[index]
    assert int(str(planned["memory_bytes"])) <= int(str(planned["memory_limit_bytes"]))
    assert (progress["done"], progress["total"]) == (60, 60)
    shares = progress["stage_shares"]
    assert isinstance(shares, dict) and sum(shares.values()) == pytest.approx(1.0, abs=0.01)
    assert part["part"] == "part-00000-000000000000.parquet"
    assert (done["rows_in"], done["rows_out"]) == (60, 60)


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["--input", "nowhere"], 1, "input nowhere: there is no such file or folder; check the path"),
        (["--top-k", "0"], 2, "Invalid value for '--top-k': 0 is not in the range x>=1."),
        (["--nonsense"], 2, "No such option"),
        (["--max-memory", "1MB"], 1, "memory: the job needs at least"),
    ],
)
def test_an_error_is_a_json_line_with_the_exit_code(
    job: list[str], capsys: pytest.CaptureFixture[str], arguments: list[str], code: int, message: str
) -> None:
    found, events = run([*job, *arguments], capsys)
    assert (found, events[-1]["exit_code"], events[-1]["level"]) == (code, code, "error")
    assert str(events[-1]["message"]).startswith(message)


def test_quiet_leaves_the_error_alone(job: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert run([*job, "--quiet"], capsys) == (0, [])
    _, events = run([*job, "--quiet"], capsys)
    assert [event["event"] for event in events] == ["error"] and "exists already" in str(events[0]["message"])
