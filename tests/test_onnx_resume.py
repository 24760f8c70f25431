"""A job that is killed goes on to the same bytes; another one does not take its place by accident."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
import signal
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import crashes
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from model_files import write_model_file
from other_user import run_as_nobody

from ipsrec_onnx import user_parts
from ipsrec_onnx.errors import DataError
from ipsrec_onnx.score_rules import open_ranker
from ipsrec_onnx.scoring import score


@dataclass(frozen=True)
class Job:
    """A job, and what it writes when nobody disturbs it."""

    arguments: dict[str, Any]
    expected: dict[str, bytes]
    seconds: float

    def in_folder(self, folder: Path, **changes: Any) -> dict[str, Any]:
        """The same job with its output in another folder."""
        folder.mkdir(exist_ok=True)
        name = str(self.arguments["output"]).rstrip("/").rsplit("/", 1)[-1]
        slash = "/" if str(self.arguments["output"]).endswith("/") else ""
        return {**self.arguments, "output": f"{folder}/{name}{slash}", **changes}


def like_purchases() -> pa.Table:
    """Interactions of 3,000 users of Amazon's kind of lengths: five for most, hundreds for some."""
    rng = np.random.default_rng(0)
    lengths = np.minimum(4 + rng.zipf(1.9, 3000), 500)
    user_id = np.repeat(np.arange(3000), lengths)
    return pa.table({"user_id": [f"U{user}" for user in user_id], "item_id": rng.integers(0, 10**6, len(user_id))})


@pytest.fixture(scope="module", params=["candidates.parquet", "candidates/"])
def job(request: pytest.FixtureRequest, real_data: Path | None, tmp_path_factory: pytest.TempPathFactory) -> Job:
    """3,000 users in two files, some rows malformed; histories are those of Amazon Toys and Games, or like them."""
    folder = tmp_path_factory.mktemp("job")
    if real_data is None:
        interactions = like_purchases()
    else:
        interactions = pq.read_table(real_data / "amazon-toys-brand" / "interactions.parquet")
    users = interactions.group_by("user_id", use_threads=False).aggregate([("item_id", "list")]).slice(0, 3000)
    lists = users["item_id_list"].combine_chunks()
    model = write_model_file(folder / "model.onnx", num_items=100, max_len=50, dim=16)
    known = model.catalog.item_ids
    items = known.take(pa.array(lists.values.to_numpy() % len(known)))
    nobody = pa.array(np.arange(len(users)) % 97 == 5)
    history = pa.ListArray.from_arrays(lists.offsets, items, mask=nobody)
    users = pa.table({"user_id": users["user_id"], "item_history": history})
    (folder / "users").mkdir()
    pq.write_table(users.slice(0, 1700), folder / "users" / "a.parquet", row_group_size=900)
    pq.write_table(users.slice(1700), folder / "users" / "b.parquet", row_group_size=130)
    arguments = {
        "model": str(model.path),
        "source": str(folder / "users"),
        "output": f"{folder}/whole/{request.param}",
        "top_k": 10,
        "bad_rows": "divert",
        "threads": 1,
    }
    (folder / "whole").mkdir()
    assert crashes.run(crashes.server(), crashes.score_in_parts, arguments) == 0
    expected = crashes.everything(folder / "whole")
    started = time.perf_counter()
    assert crashes.run(crashes.server(), crashes.score_in_parts, {**arguments, "overwrite": True}) == 0
    seconds = time.perf_counter() - started
    assert crashes.everything(folder / "whole") == expected
    return Job(arguments, expected, seconds)


@pytest.mark.parametrize("threads", [1, 4])
def test_after_25_kills_at_random_moments_the_bytes_are_the_same(job: Job, tmp_path: Path, threads: int) -> None:
    rng = np.random.default_rng(threads)
    context, killed, resumed = crashes.server(), 0, 0
    for number in range(25):
        folder = tmp_path / str(number)
        arguments = job.in_folder(folder, threads=threads, resume=True)
        code = crashes.run(context, crashes.score_in_parts, arguments, kill_after_s=rng.uniform(0.02, job.seconds))
        killed += code == -signal.SIGKILL
        resumed += any(path.match("*.job/parts/*.parquet") for path in folder.rglob("*"))
        assert crashes.run(context, crashes.score_in_parts, arguments) == 0
        assert crashes.everything(folder) == job.expected
    assert killed > 5 and resumed > 0  # else nothing was tried


@pytest.mark.parametrize("kind", ["before", "after"])
def test_after_a_kill_at_each_change_of_a_name_the_bytes_are_the_same(job: Job, tmp_path: Path, kind: str) -> None:
    context = crashes.server()
    for step in range(200):
        folder = tmp_path / f"{step}"
        arguments = job.in_folder(folder, resume=True)
        code = crashes.run(context, crashes.killed_at_step, arguments, step, kind)
        if code == 0:
            break
        assert code == -signal.SIGKILL
        assert crashes.run(context, crashes.score_in_parts, arguments) == 0
        assert crashes.everything(folder) == job.expected, f"step {step}"
    assert 20 < step < 199


@pytest.mark.parametrize("kind", ["before", "after"])
def test_after_a_kill_while_four_threads_write_the_bytes_are_the_same(job: Job, tmp_path: Path, kind: str) -> None:
    context = crashes.server()
    for step in (3, 9, 14, 18):
        folder = tmp_path / f"{step}"
        arguments = job.in_folder(folder, resume=True, threads=4)
        assert crashes.run(context, crashes.killed_at_step, arguments, step, kind, 4) == -signal.SIGKILL
        assert crashes.run(context, crashes.score_in_parts, arguments, 4) == 0
        assert crashes.everything(folder) == job.expected, f"step {step}"


@pytest.mark.parametrize("kind", ["before", "after"])
def test_a_replaced_output_is_the_old_or_the_new_one(job: Job, tmp_path: Path, kind: str) -> None:
    """Killed at each change of a name; a manifest never speaks of the other one."""
    context = crashes.server()
    old = job.in_folder(tmp_path / "old", top_k=3)
    assert crashes.run(context, crashes.score_in_parts, old) == 0
    before = crashes.everything(tmp_path / "old")
    manifest = Path(str(old["output"]).rstrip("/")).name + ".manifest.json"
    for step in range(200):
        folder = tmp_path / f"{step}"
        folder.mkdir()
        for name, content in before.items():
            (folder / name).parent.mkdir(exist_ok=True)
            (folder / name).write_bytes(content)
        arguments = job.in_folder(folder, resume=True, overwrite=True)
        code = crashes.run(context, crashes.killed_at_step, arguments, step, kind)
        seen = {name: content for name, content in crashes.everything(folder).items() if not name.startswith(".")}
        if manifest in seen:
            assert seen in (before, job.expected)
        if code == 0:
            break
        assert crashes.run(context, crashes.score_in_parts, arguments) == 0
        assert crashes.everything(folder) == job.expected, f"step {step}"
    assert 20 < step < 199


def unfinished(job: Job, folder: Path, **changes: Any) -> dict[str, Any]:
    """Kill a job after some parts; gives its arguments."""
    arguments = job.in_folder(folder, **changes)
    assert crashes.run(crashes.server(), crashes.killed_at_step, arguments, 10, "after") == -signal.SIGKILL
    return arguments


def test_an_unfinished_output_is_refused_with_the_way_out(job: Job, tmp_path: Path) -> None:
    arguments = unfinished(job, tmp_path / "o")
    before = crashes.everything(tmp_path / "o")
    with pytest.raises(DataError, match=r"an unfinished job is there, \d+ parts done; go on with --resume, or"):
        score(**arguments)
    assert crashes.everything(tmp_path / "o") == before
    assert crashes.run(crashes.server(), crashes.score_in_parts, {**arguments, "overwrite": True}) == 0
    assert crashes.everything(tmp_path / "o") == job.expected


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"top_k": 11}, "its options.top_k is 10, asked for is 11"),
        ({"keep_seen": True}, "its options.keep_seen is false, asked for is true"),
        ({"model": "other"}, "its model_sha256 is"),
        ({"source": "other"}, r"its input\[0\]\.\w+ is"),
        ({"deny_items": "other"}, "its allowed_items_sha256 is null"),
        ({"output": "other"}, "its output is "),
    ],
)
def test_another_job_does_not_go_on(job: Job, tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    arguments = unfinished(job, tmp_path / "o")
    other = {
        "model": write_model_file(tmp_path / "m.onnx", num_items=100, max_len=50, dim=16, seed=1).path,
        "source": tmp_path / "users",
        "deny_items": tmp_path / "deny.txt",
    }
    (tmp_path / "users").mkdir()
    for name in ("a", "b"):
        rows = pq.read_table(Path(arguments["source"]) / f"{name}.parquet")
        pq.write_table(rows.slice(1), tmp_path / "users" / f"{name}.parquet")
    known = pq.read_table(Path(arguments["source"]) / "a.parquet")["item_history"][0].as_py()[0]
    (tmp_path / "deny.txt").write_text(f"{known}\n")
    other["output"] = arguments["output"].rstrip("/") + ("" if arguments["output"].endswith("/") else "/")
    changes = {name: other[name] if value == "other" else value for name, value in changes.items()}
    before = crashes.everything(tmp_path / "o")
    with pytest.raises(DataError, match=message + ".*or start over with --overwrite"):
        score(**{**arguments, "resume": True, **changes})
    assert crashes.everything(tmp_path / "o") == before


def test_two_jobs_on_one_output_the_second_is_refused(job: Job, tmp_path: Path) -> None:
    arguments = unfinished(job, tmp_path / "o")
    (lock,) = (tmp_path / "o").glob(".*.job/lock")
    held = os.open(lock, os.O_RDWR)
    fcntl.flock(held, fcntl.LOCK_EX)  # as a running job does; the one that was killed has let go
    try:
        for options in ({}, {"resume": True}, {"overwrite": True}):
            with pytest.raises(DataError, match="another job is writing it; wait for its end, or choose another name"):
                score(**arguments, **options)
    finally:
        os.close(held)
    assert crashes.run(crashes.server(), crashes.score_in_parts, {**arguments, "resume": True}) == 0
    assert crashes.everything(tmp_path / "o") == job.expected


def test_a_finished_job_has_nothing_to_do(job: Job, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(user_parts, "PART_ROWS", crashes.PART_ROWS)
    monkeypatch.setattr("ipsrec_onnx.score_run.CHUNK_ROWS", crashes.CHUNK_ROWS)
    arguments = job.in_folder(tmp_path / "o", resume=True)
    first = score(**arguments)
    assert first.resumed_rows == 0 and crashes.everything(tmp_path / "o") == job.expected
    monkeypatch.setattr("ipsrec_onnx.job_rules.open_ranker", None)  # it is not even built
    again = score(**arguments)
    assert (again.counts, again.resumed_rows) == (first.counts, 3000)
    assert crashes.everything(tmp_path / "o") == job.expected
    with pytest.raises(DataError, match="exists already"):
        score(**{**arguments, "top_k": 3})


def test_the_manifest_accounts_for_every_row_and_byte(job: Job) -> None:
    (name,) = (name for name in job.expected if name.endswith(".manifest.json"))
    manifest = json.loads(job.expected[name])
    counts = manifest["counts"]
    assert counts["rows_in"] == 3000 == counts["rows_out"] + counts["rows_diverted"]
    assert counts["diverted_by_reason"] == {"item_history is null": counts["rows_diverted"]} and counts["rows_diverted"]
    assert counts["truncated_histories"] > 0
    folder = "candidates/" if str(job.arguments["output"]).endswith("/") else ""
    entries = [(folder + entry["file"], entry) for entry in manifest["candidates"]]
    entries.append((manifest["bad_rows"]["file"], manifest["bad_rows"]))
    assert {path for path, _ in entries} | {name} == set(job.expected)
    rows = 0
    for path, entry in entries:
        content = job.expected[path]
        assert (entry["bytes"], entry["sha256"]) == (len(content), hashlib.sha256(content).hexdigest())
        rows += entry["rows"]
    assert rows == 3000


def test_parts_are_the_rows_of_the_file(job: Job, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the form: the same users, in order, with the same lists."""
    for name, content in job.expected.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(content)
    alone = score(**{**job.arguments, "output": tmp_path / "one.parquet"})
    assert alone.counts.rows_in == 3000
    output = tmp_path / str(job.arguments["output"]).rstrip("/").rsplit("/", 1)[-1]
    assert pq.read_table(output).equals(pq.read_table(tmp_path / "one.parquet"))


def test_input_that_was_written_again_is_another_input(job: Job, tmp_path: Path) -> None:
    shutil.copytree(job.arguments["source"], tmp_path / "users")
    arguments = unfinished(job, tmp_path / "o", source=str(tmp_path / "users"))
    os.utime(tmp_path / "users" / "b.parquet", ns=(1, 1))
    with pytest.raises(DataError, match=r"its input\[1\].mtime_ns is \d+, asked for is 1;"):
        score(**{**arguments, "resume": True})


def test_input_that_changes_meanwhile_is_refused(job: Job, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copytree(job.arguments["source"], tmp_path / "users")

    def build_and_change(*positional: Any, **named: Any) -> Any:
        rows = pq.read_table(tmp_path / "users" / "b.parquet")
        pq.write_table(pa.concat_tables([rows, rows]), tmp_path / "users" / "b.parquet")
        return open_ranker(*positional, **named)

    monkeypatch.setattr("ipsrec_onnx.job_rules.open_ranker", build_and_change)
    with pytest.raises(DataError, match=r"b\.parquet: changed while the job ran"):
        score(**job.in_folder(tmp_path / "o", source=str(tmp_path / "users")))
    assert all(name.startswith(".") for name in crashes.everything(tmp_path / "o"))  # the part of the other file


def test_an_error_leaves_finished_parts_alone(job: Job, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(user_parts, "PART_ROWS", 100)
    monkeypatch.setattr("ipsrec_onnx.score_run.CHUNK_ROWS", 50)
    bad = pa.table({"user_id": [1] * 5000, "item_history": pa.array([[1]] * 4999 + [None], pa.list_(pa.int64()))})
    pq.write_table(bad, tmp_path / "bad.parquet")
    arguments = job.in_folder(tmp_path / "o", source=str(tmp_path / "bad.parquet"), bad_rows="error")
    with pytest.raises(DataError, match="item_history is null"):
        score(**arguments)
    left = crashes.everything(tmp_path / "o")
    assert all(name.startswith(".") and not name.endswith(".tmp") for name in left)
    assert sum("/parts/part-" in name for name in left) == 49


def test_a_part_that_the_disk_has_damaged_is_found(job: Job, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(user_parts, "PART_ROWS", crashes.PART_ROWS)
    arguments = unfinished(job, tmp_path / "o", resume=True)
    part = min((tmp_path / "o").glob(".*/parts/*.parquet"))
    content = bytearray(part.read_bytes())
    column = pq.read_metadata(part).row_group(0).column(0)
    content[column.data_page_offset + column.total_compressed_size // 2] ^= 1
    part.write_bytes(content)
    with pytest.raises(DataError, match=rf"{part.name}: this part of an unfinished job cannot be read"):
        score(**arguments)


def test_a_manifest_that_somebody_has_changed_is_one_line(
    job: Job, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(user_parts, "PART_ROWS", crashes.PART_ROWS)
    arguments = job.in_folder(tmp_path / "o", resume=True)
    assert crashes.run(crashes.server(), crashes.score_in_parts, arguments) == 0
    (path,) = (tmp_path / "o").glob("*.manifest.json")
    manifest = json.loads(path.read_text())
    manifest["counts"]["rows_in"] = -1
    path.write_text(json.dumps(manifest))
    with pytest.raises(DataError, match=r"its manifest is broken .*--overwrite"):
        score(**arguments)


@pytest.mark.parametrize("what", ["a lost part", "a longer file", "a foreign manifest"])
def test_an_output_that_is_not_as_its_manifest_says_is_not_finished(job: Job, tmp_path: Path, what: str) -> None:
    arguments = job.in_folder(tmp_path / "o", resume=True)
    assert crashes.run(crashes.server(), crashes.score_in_parts, arguments) == 0
    output = Path(arguments["output"])
    part = min(output.iterdir()) if output.is_dir() else output
    if what == "a lost part":
        part.unlink()
    elif what == "a longer file":
        part.write_bytes(part.read_bytes() + b"x")
    else:
        output.with_name(f"{output.name}.manifest.json").write_text('{"format_version": 1}')
    with pytest.raises(DataError, match="exists already"):
        score(**arguments)
    again = {**arguments, "overwrite": True}
    assert crashes.run(crashes.server(), crashes.score_in_parts, again) == 0
    assert crashes.everything(tmp_path / "o") == job.expected


@pytest.mark.parametrize("resume", [False, True])
def test_what_somebody_makes_meanwhile_is_not_replaced(
    job: Job, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, resume: bool
) -> None:
    arguments = job.in_folder(tmp_path / "o", resume=resume)
    output = Path(arguments["output"])

    def build_and_disturb(*positional: Any, **named: Any) -> Any:
        if str(arguments["output"]).endswith("/"):
            output.mkdir()
            (output / "thesis.txt").write_text("mine")
        else:
            output.write_text("mine")
        return open_ranker(*positional, **named)

    monkeypatch.setattr("ipsrec_onnx.job_rules.open_ranker", build_and_disturb)
    with pytest.raises(DataError, match="exists already"):
        score(**arguments)
    assert ((output / "thesis.txt") if output.is_dir() else output).read_text() == "mine"


def test_a_folder_of_something_else_is_never_replaced(job: Job, tmp_path: Path) -> None:
    for name in ("thesis.txt", "part-1.parquet", "part-00000-000000000000.parquet/thesis.txt"):
        path = tmp_path / "o" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("mine")
        with pytest.raises(DataError, match="is no part of candidates, so it is not replaced"):
            score(**{**job.arguments, "output": f"{tmp_path}/o/", "overwrite": True})
        assert path.read_text() == "mine"
        shutil.rmtree(tmp_path / "o")


def test_a_folder_with_an_input_in_it_is_never_replaced(job: Job, tmp_path: Path) -> None:
    source = tmp_path / "users" / "part-00000-000000000000.parquet"
    source.parent.mkdir()
    shutil.copy(Path(job.arguments["source"]) / "a.parquet", source)
    with pytest.raises(DataError, match="one of the input's files lies in it; choose another name"):
        score(**{**job.arguments, "source": str(source.parent), "output": f"{source.parent}/", "overwrite": True})
    assert source.exists()


@pytest.mark.parametrize("output", ["", ".", "/", "./"])
def test_a_name_that_is_none_is_refused(job: Job, output: str) -> None:
    with pytest.raises(DataError, match="has no name of its own"):
        score(**{**job.arguments, "output": output, "overwrite": True})


def test_old_malformed_rows_go_with_their_manifest(job: Job, tmp_path: Path) -> None:
    arguments = job.in_folder(tmp_path / "o")
    score(**arguments)
    good = pq.read_table(Path(arguments["source"]) / "a.parquet").slice(0, 5)
    pq.write_table(good, tmp_path / "good.parquet")
    score(**{**arguments, "source": tmp_path / "good.parquet", "bad_rows": "error", "overwrite": True})
    assert not any("bad_rows" in name for name in crashes.everything(tmp_path / "o"))


def test_a_folder_without_rights_is_one_line(job: Job, tmp_path: Path) -> None:
    arguments = unfinished(job, tmp_path / "o")
    done = run_as_nobody(
        "from ipsrec_onnx.errors import DataError\nfrom ipsrec_onnx.scoring import score\n"
        f"try: score(**{ ({**arguments, 'resume': True})!r})\nexcept DataError as error: print(error)\n",
        tmp_path / "o",
    )
    assert "cannot be written" in done.stdout and done.stdout.count("\n") == 1, done.stderr
