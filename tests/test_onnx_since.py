"""score --since: the bytes of a whole job, whatever changed, and a refusal wherever lists could be others."""

from __future__ import annotations

import json
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import crashes
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from model_files import TinyModel, write_model_file
from test_onnx_scoring import random_users

from ipsrec_onnx import carried_lists, user_parts
from ipsrec_onnx.carried_lists import PreviousFile, PreviousOutput, open_carried_lists
from ipsrec_onnx.errors import DataError
from ipsrec_onnx.memory_plan import MemoryBound, refuse_big_previous
from ipsrec_onnx.score_report import ScoreReport
from ipsrec_onnx.scoring import score

NUM_USERS = 700


@pytest.fixture(autouse=True)
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Several parts, row groups and chunks of a few hundred users."""
    monkeypatch.setattr(user_parts, "PART_ROWS", 200)
    monkeypatch.setattr("ipsrec_onnx.score_run.CHUNK_ROWS", 64)


@pytest.fixture(scope="module", params=[False, True], ids=["int64", "string"])
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> TinyModel:
    return write_model_file(tmp_path_factory.mktemp("model") / "model.onnx", string_ids=request.param)


@pytest.fixture
def users(model: TinyModel, rng: np.random.Generator) -> pa.Table:
    """Users with own ids, some with empty histories, some with long ones."""
    table = random_users(model, rng, NUM_USERS)
    return table.set_column(0, "user_id", pa.array([f"user {row}" for row in range(NUM_USERS)]))


def changed(users: pa.Table, column: str, rows: list[int], model: TinyModel) -> pa.Table:
    """The users with one known id more at the end of some lists."""
    ids = model.catalog.provider_ids if column == "provider_history" else model.catalog.item_ids
    lists = users[column].to_pylist()
    for row in rows:
        lists[row] = [*lists[row], ids[row % len(ids)].as_py()]
    return users.set_column(users.schema.get_field_index(column), column, pa.array(lists, users[column].type))


def both(changes: list[int]) -> Callable[[pa.Table, TinyModel], pa.Table]:
    """Add an item and its provider."""

    def change(users: pa.Table, model: TinyModel) -> pa.Table:
        return changed(changed(users, "item_history", changes, model), "provider_history", changes, model)

    return change


def other_provider(users: pa.Table, model: TinyModel) -> pa.Table:
    """Another provider for the newest item of every third user, and the same items."""
    lists = users["provider_history"].to_pylist()
    for row in range(0, len(lists), 3):
        if lists[row]:
            others = [one for one in model.catalog.provider_ids.to_pylist() if one != lists[row][-1]]
            lists[row][-1] = others[row % len(others)]
    return users.set_column(2, "provider_history", pa.array(lists, users["provider_history"].type))


def shuffled(users: pa.Table) -> pa.Table:
    return users.take(pa.array(np.random.default_rng(3).permutation(len(users))))


class Folder:
    """Jobs of one model in a folder."""

    def __init__(self, path: Path, model: TinyModel, **options: Any) -> None:
        self.path, self.model = path, model
        self.options: dict[str, Any] = {"top_k": 10, "threads": 2, "bad_rows": "divert", **options}

    def job(self, name: str, users: pa.Table, **options: Any) -> ScoreReport:
        """Score users to NAME."""
        source = self.path / f"{name.rstrip('/')}.users"
        pq.write_table(users, source, row_group_size=150)
        return score(self.model.path, source, f"{self.path}/{name}", **{**self.options, **options})

    def compare(self, users: pa.Table, *, since: str, name: str = "candidates.parquet") -> ScoreReport:
        """Score users since an earlier output, and whole; both give the same files."""
        files = []
        for kind, options in (("whole", {"fingerprints": True}), ("some", {"since": f"{self.path}/{since}"})):
            (self.path / kind).mkdir(exist_ok=True)
            source = self.path / "users.parquet"
            if kind == "whole":
                pq.write_table(users, source, row_group_size=150)
            done = score(
                self.model.path,
                source,
                f"{self.path}/{kind}/{name}",
                **{**self.options, "overwrite": True, **options},
            )
            files.append(crashes.everything(self.path / kind))
        assert files[0] == files[1]
        return done


FEW, ALL = list(range(0, NUM_USERS, 50)), list(range(NUM_USERS))


@pytest.mark.parametrize("previous", ["previous.parquet", "previous/"])
@pytest.mark.parametrize("name", ["candidates.parquet", "candidates/"])
def test_the_bytes_are_those_of_a_whole_job(
    model: TinyModel, users: pa.Table, tmp_path: Path, previous: str, name: str
) -> None:
    folder = Folder(tmp_path, model)
    folder.job(previous, users, fingerprints=True)
    for changes in ([], FEW, ALL):
        done = folder.compare(both(changes)(users, model), since=previous, name=name)
        assert done.carried_users == NUM_USERS - len(changes)


def test_users_are_found_wherever_they_stand(model: TinyModel, users: pa.Table, tmp_path: Path) -> None:
    folder = Folder(tmp_path, model)
    folder.job("previous/", users, fingerprints=True)
    added = users.slice(0, 40).set_column(0, "user_id", pa.array([f"new {row}" for row in range(40)]))
    for now, at_most in (
        (pa.concat_tables([added, users]), NUM_USERS),
        (pa.concat_tables([users.slice(0, 300), added, users.slice(300)]), NUM_USERS),
        (users.slice(130), NUM_USERS - 130),
        (users.slice(0, 0), 0),
        (users.slice(5, 1), 1),
        (shuffled(users), NUM_USERS),
        (pa.concat_tables([users, users, both(FEW)(users, model)]), 3 * NUM_USERS - len(FEW)),
    ):
        done = folder.compare(now, since="previous/")
        assert 0.7 * at_most <= done.carried_users <= at_most


def test_users_that_were_there_twice_are_right(model: TinyModel, users: pa.Table, tmp_path: Path) -> None:
    """One id with two histories, and one row twice."""
    folder = Folder(tmp_path, model)
    twice = pa.concat_tables([users, both(ALL)(users, model), users.slice(0, 200)])
    folder.job("previous.parquet", twice, fingerprints=True)
    assert folder.compare(users, since="previous.parquet").carried_users >= NUM_USERS - 100
    assert folder.compare(shuffled(twice), since="previous.parquet").carried_users > NUM_USERS


@pytest.mark.parametrize(
    ("change", "options"),
    [
        (other_provider, {}),
        (lambda users, model: changed(users, "choice", FEW, model), {"candidates_column": "choice"}),
        (both(FEW), {"candidates_column": "choice", "cold_users": "empty", "keep_seen": True}),
        (both(FEW), {"max_per_provider": 1, "cold_users": "empty", "top_k": 1000}),
        (both(FEW), {"encoder": "onnxruntime", "keep_seen": True, "threads": 1, "top_k": 1}),
    ],
    ids=["another provider", "other candidates", "candidates", "few of a provider", "keep seen"],
)
def test_with_any_options_the_bytes_are_the_same(
    model: TinyModel,
    users: pa.Table,
    tmp_path: Path,
    change: Callable[[pa.Table, TinyModel], pa.Table],
    options: dict[str, Any],
) -> None:
    folder = Folder(tmp_path, model, **options)
    folder.job("previous.parquet", users, fingerprints=True)
    done = folder.compare(change(users, model), since="previous.parquet")
    assert 0 < done.carried_users < NUM_USERS


def test_malformed_rows_and_item_lists_go_on_as_they_do(model: TinyModel, users: pa.Table, tmp_path: Path) -> None:
    (tmp_path / "deny.txt").write_text("".join(f"{one}\n" for one in model.catalog.item_ids.to_pylist()[:9]))
    folder = Folder(tmp_path, model, deny_items=tmp_path / "deny.txt")
    lists = users["item_history"].to_pylist()
    lists[3], lists[300] = None, [*lists[300][:1], None]
    broken = users.set_column(1, "item_history", pa.array(lists, users["item_history"].type))
    folder.job("previous.parquet", broken, fingerprints=True)
    done = folder.compare(broken, since="previous.parquet")
    # One user of a row group is not worth reading it, unless another thread has just done so.
    assert done.counts.rows_diverted > 1 and done.counts.rows_out - 3 <= done.carried_users <= done.counts.rows_out
    mended = folder.compare(users, since="previous.parquet")
    assert done.counts.rows_out - 3 <= mended.carried_users <= done.counts.rows_out


def test_a_chain_of_jobs_and_a_page_about_one(model: TinyModel, users: pa.Table, tmp_path: Path) -> None:
    folder = Folder(tmp_path, model)
    folder.job("first/", users, fingerprints=True)
    second = both(FEW)(users, model)
    folder.job("second.parquet", second, since=tmp_path / "first")
    third = both([1, 2, 50])(second, model)
    assert folder.compare(third, since="second.parquet").carried_users == NUM_USERS - 3
    folder.job("third/", third, since=tmp_path / "second.parquet", report=tmp_path / "page.html")
    assert (
        f"The lists of {NUM_USERS - 3} users, whose histories have not changed" in (tmp_path / "page.html").read_text()
    )


def test_every_row_group_is_read_once_in_order_and_seldom_for_few(
    model: TinyModel, users: pa.Table, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = Folder(tmp_path, model, threads=1)
    many = pa.concat_tables([users] * 6).set_column(0, "user_id", pa.array(range(6 * NUM_USERS)))
    folder.job("previous.parquet", many, fingerprints=True)
    reads: list[int] = []
    read = carried_lists.CarriedLists._read_group
    monkeypatch.setattr(
        carried_lists.CarriedLists, "_read_group", lambda self, number: (reads.append(number), read(self, number))[1]
    )
    folder.job("in-order.parquet", many, since=tmp_path / "previous.parquet")
    groups = pq.read_metadata(tmp_path / "previous.parquet").num_row_groups
    assert sorted(reads) == list(range(groups)) and groups > 2 * carried_lists.KEPT_GROUPS
    reads.clear()
    monkeypatch.setattr(carried_lists, "_READ_FOR", 8)  # of 64 users, one or two stand in each of 66 groups
    done = folder.job("shuffled.parquet", shuffled(many), since=tmp_path / "previous.parquet")
    assert len(reads) < groups / 4 and done.carried_users < NUM_USERS
    assert folder.compare(shuffled(many), since="previous.parquet").carried_users == done.carried_users


def test_a_killed_job_goes_on_to_the_same_bytes(model: TinyModel, users: pa.Table, tmp_path: Path) -> None:
    folder = Folder(tmp_path, model, threads=1)
    folder.job("previous.parquet", users, fingerprints=True)
    now = both(FEW)(users, model)
    folder.compare(now, since="previous.parquet")
    context = crashes.server()
    # Parts have other numbers of rows in those processes, so the undisturbed job is one of them, too.
    arguments = {
        **folder.options,
        "model": str(model.path),
        "source": str(tmp_path / "users.parquet"),
        "since": str(tmp_path / "previous.parquet"),
    }
    for name in ("undisturbed", "killed"):
        (tmp_path / name).mkdir()
    undisturbed = {**arguments, "output": str(tmp_path / "undisturbed" / "candidates.parquet")}
    assert crashes.run(context, crashes.score_in_parts, undisturbed) == 0
    killed = {**arguments, "output": str(tmp_path / "killed" / "candidates.parquet"), "resume": True}
    assert crashes.run(context, crashes.killed_at_step, killed, 4, "after") == -signal.SIGKILL
    assert crashes.run(context, crashes.score_in_parts, killed) == 0
    assert crashes.everything(tmp_path / "killed") == crashes.everything(tmp_path / "undisturbed")
    assert pq.read_table(tmp_path / "killed" / "candidates.parquet").equals(
        pq.read_table(tmp_path / "whole" / "candidates.parquet")
    )


def refused(folder: Folder, users: pa.Table, message: str, **options: Any) -> None:
    with pytest.raises(DataError, match=message) as error:
        folder.job("now.parquet", users, **{"since": folder.path / "previous.parquet", **options})
    assert "\n" not in str(error.value)
    assert not (folder.path / "now.parquet").exists()


def test_an_output_of_another_job_is_refused(model: TinyModel, users: pa.Table, tmp_path: Path) -> None:
    folder = Folder(tmp_path, model)
    folder.job("previous.parquet", users, fingerprints=True)
    advice = ".*; its lists may be others, so score without --since"
    refused(folder, users, r"its options\.top_k is 10, asked for is 11" + advice, top_k=11)
    refused(folder, users, r"its options\.keep_seen is false, asked for is true" + advice, keep_seen=True)
    refused(folder, users.drop_columns("provider_history"), r"its columns is " + advice)
    (tmp_path / "deny.txt").write_text(f"{model.catalog.item_ids[0].as_py()}\n")
    refused(folder, users, "its allowed_items_sha256 is null" + advice, deny_items=tmp_path / "deny.txt")
    strings = pa.types.is_large_string(model.catalog.item_ids.type)
    folder.model = write_model_file(tmp_path / "other.onnx", seed=1, string_ids=strings)
    refused(folder, users, "its model_sha256 is" + advice)
    folder.model = model
    path = tmp_path / "previous.parquet.manifest.json"
    manifest = json.loads(path.read_text())
    manifest["job"]["versions"]["pyarrow"] = "0.1"
    path.write_text(json.dumps(manifest))
    refused(folder, users, r'its versions\.pyarrow is "0.1", asked for is ' + advice)


def test_an_output_that_is_not_whole_is_refused(model: TinyModel, users: pa.Table, tmp_path: Path) -> None:
    folder = Folder(tmp_path, model)
    refused(folder, users, "its manifest .* cannot be read .*; give the output of a finished job")
    folder.job("previous.parquet", users)
    refused(folder, users, "it has no fingerprints of histories; score it with --fingerprints")
    folder.job("previous.parquet", users, fingerprints=True, overwrite=True)
    path = tmp_path / "previous.parquet.manifest.json"
    whole = path.read_text()
    for text, message in (
        ("{", "cannot be read"),
        ("[]", "is broken .expected format_version 1"),
        ('{"format_version": 1}', "is broken .KeyError 'job'"),
        (
            whole.replace('"file": "previous.parquet"', '"file": "../previous.parquet"'),
            "it names '../previous.parquet'",
        ),
    ):
        path.write_text(text)
        refused(folder, users, message)
    path.write_text(whole)
    content = (tmp_path / "previous.parquet").read_bytes()
    (tmp_path / "previous.parquet").write_bytes(content[:-1])
    refused(folder, users, r"has \d+ bytes, its manifest says \d+; give an output that is whole")
    (tmp_path / "previous.parquet").write_bytes(b"\0" * len(content))
    refused(folder, users, "previous.parquet: cannot be read")
    (tmp_path / "previous.parquet").unlink()
    refused(folder, users, "has no bytes, its manifest says")


def test_candidates_that_somebody_has_changed_are_refused(model: TinyModel, users: pa.Table, tmp_path: Path) -> None:
    folder = Folder(tmp_path, model)
    folder.job("previous.parquet", users, fingerprints=True)
    path = tmp_path / "previous.parquet"
    table = pq.read_table(path)
    unknown = pa.array([[None] * 3] * len(table), table.schema.field("item_ids").type)
    strange = "no such item" if pa.types.is_large_string(model.catalog.item_ids.type) else -7
    stranger = pa.array([[strange]] * len(table), table.schema.field("item_ids").type)
    for other in (
        table.drop_columns("history_fingerprint"),
        table.slice(1),
        table.set_column(2, "item_ids", unknown),
        table.set_column(2, "item_ids", stranger),
        table.set_column(0, "user_id", pa.nulls(len(table), pa.string())),
    ):
        pq.write_table(other, path)
        manifest = json.loads((tmp_path / "previous.parquet.manifest.json").read_text())
        manifest["candidates"][0]["bytes"] = path.stat().st_size
        (tmp_path / "previous.parquet.manifest.json").write_text(json.dumps(manifest))
        refused(folder, users, "it is not as the job that wrote it left it; score without --since", bad_rows="divert")


def test_options_that_exclude_each_other_are_refused(model: TinyModel, users: pa.Table, tmp_path: Path) -> None:
    folder = Folder(tmp_path, model)
    folder.job("previous.parquet", users, fingerprints=True)
    refused(folder, users, "--layout long has no row for a user without candidates", layout="long")
    refused(folder, users, "--approximate chooses how far it searches", approximate=0.9)
    structs = pa.array([{"a": 1}] * NUM_USERS)
    refused(folder, users.set_column(0, "user_id", structs), "user ids of type struct.* cannot be looked for")
    with pytest.raises(DataError, match="is what --since carries over; choose another name"):
        folder.job("previous.parquet", users, since=tmp_path / "previous.parquet", overwrite=True)
    with pytest.raises(DataError, match="--layout long has no row"):
        folder.job("long.parquet", users, layout="long", fingerprints=True)


def test_keys_that_do_not_fit_are_refused_before_they_are_read() -> None:
    with pytest.raises(DataError, match=r"with the keys of --since old, 24\.00 GB.*no --since"):
        refuse_big_previous(MemoryBound(2 << 30, asked=True), name="old", num_bytes=24 * 10**9)


def test_two_users_of_one_key_are_told_apart(model: TinyModel, users: pa.Table, tmp_path: Path) -> None:
    """The key has both fingerprints in one number; where it is equal by chance, both are compared."""
    folder = Folder(tmp_path, model)
    folder.job("previous.parquet", users, fingerprints=True)
    file = PreviousFile(str(tmp_path / "previous.parquet"), NUM_USERS)
    found = open_carried_lists(PreviousOutput("previous", (file,)), model.catalog, top_k=10)
    alike = replace(found, keys=np.zeros(NUM_USERS, np.uint64), rows=np.arange(NUM_USERS))
    rows = pq.read_table(tmp_path / "previous.parquet")
    fingerprints = rows["history_fingerprint"].to_numpy()
    there, lists = found.find(rows["user_id"].combine_chunks(), fingerprints)
    assert there.all() and lists.counts.tolist() == [len(one) for one in rows["item_ids"].to_pylist()]
    there, lists = alike.find(rows["user_id"].combine_chunks(), fingerprints)
    assert not there.any() and not lists.counts.any()
