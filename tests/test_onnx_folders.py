"""Folders and patterns of Parquet: which files are users, and which folders their candidates lie in."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import crashes
import duckdb
import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.fs as pafs
import pyarrow.parquet as pq
import pytest
from model_files import TinyModel, write_model_file
from test_onnx_scoring import random_users

from ipsrec_onnx import input_files, job_description
from ipsrec_onnx.errors import DataError
from ipsrec_onnx.input_files import find_files
from ipsrec_onnx.job_folder import LocalJobFolder
from ipsrec_onnx.output_paths import part_files
from ipsrec_onnx.scoring import score
from ipsrec_onnx.users import UserColumns, open_users

# As Spark writes them: a space as %20, a null as a word of its own. The last two end as files of a job do.
PARTITIONS = (
    "dt=2024-01-01/country=DE",
    "dt=2024-01-01/country=New%20York",
    "dt=2024-01-02/country=a%2Fb",
    "dt=2024-01-02/country=__HIVE_DEFAULT_PARTITION__",
    "dt=2024-01-03/country=%5Bx%5D%2A%3F",
    "dt=2024-01-03/country=part-00000-000000000000.parquet",
    "dt=2024-01-04/country=x.tmp",
)


# The files that a folder of the test of patterns has for users; beside them, it has others.
ALL = ["_d=3/a.parquet", "a.parquet", "b.parquet", "d=1/a.parquet", "d=1/e=5/a.parquet", "d=2/a.parquet"]
ALL += ["d=2/b.parquet", "plain/a.parquet"]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> TinyModel:
    return write_model_file(tmp_path_factory.mktemp("model") / "model.onnx", num_items=100)


@pytest.fixture(scope="module")
def users(model: TinyModel) -> pa.Table:
    users = random_users(model, np.random.default_rng(7), 420)
    return users.set_column(0, "user_id", pa.array(np.arange(420)))


def write_files(folder: Path, users: pa.Table, names: list[str]) -> Path:
    """Share users out to files of these names, in their order."""
    share = -(-len(users) // len(names))
    for number, name in enumerate(names):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(users.slice(number * share, share), folder / name, row_group_size=25)
    return folder


@pytest.fixture
def partitioned(tmp_path: Path, users: pa.Table) -> Path:
    """Two files of thirty users for each partition."""
    names = sorted(f"{partition}/{file}.parquet" for partition in PARTITIONS for file in "ab")
    return write_files(tmp_path / "users", users, names)


def partition_columns(folder: Path) -> list[tuple[Any, ...]]:
    """What DuckDB reads of a folder, Polars and pyarrow agreeing with it: (user_id, dt, country), by user."""
    pattern = str(folder / "**" / "*.parquet")
    query = "SELECT user_id, dt, country FROM read_parquet(?, hive_partitioning = true) ORDER BY user_id"
    found = duckdb.execute(query, [pattern]).fetchall()
    names = ["user_id", "dt", "country"]
    frame = pl.scan_parquet(folder, hive_partitioning=True, try_parse_hive_dates=True).select(names).collect()
    assert sorted(frame.rows(), key=lambda row: row[0]) == found
    rows = sorted(pq.read_table(folder, columns=names).to_pylist(), key=lambda row: row["user_id"])
    assert [(row["user_id"], row["dt"], row["country"]) for row in rows] == [
        (user, str(dt), c) for user, dt, c in found
    ]
    return found


def test_duckdb_polars_and_arrow_read_the_partitions_of_the_input(
    tmp_path: Path, model: TinyModel, partitioned: Path
) -> None:
    score(model.path, partitioned, f"{tmp_path}/o/", top_k=3)
    found = partition_columns(tmp_path / "o")
    assert found == partition_columns(partitioned)
    assert {country for *_, country in found} >= {"New York", "a/b", None} and len(found) == 420
    lists = "SELECT user_id, item_ids, scores FROM read_parquet(?) ORDER BY user_id"
    score(model.path, partitioned, tmp_path / "one.parquet", top_k=3)
    assert (
        duckdb.execute(lists, [f"{tmp_path}/o/**/*.parquet"]).fetchall()
        == duckdb.execute(lists, [f"{tmp_path}/one.parquet"]).fetchall()
    )


def test_parts_lie_below_the_folders_of_the_input_in_the_order_of_the_rows(
    tmp_path: Path, model: TinyModel, partitioned: Path, users: pa.Table
) -> None:
    score(model.path, partitioned, f"{tmp_path}/o/", top_k=3, part_rows=20)
    manifest = json.loads((tmp_path / "o.manifest.json").read_text())
    names = [entry["file"] for entry in manifest["candidates"]]
    assert len(names) == 28
    assert [str(path.relative_to(tmp_path / "o")) for path in part_files(tmp_path / "o")] == names
    files = sorted(str(path.relative_to(partitioned)) for path in partitioned.rglob("*.parquet") if path.is_file())
    assert names == [
        f"{files[number].rsplit('/', 1)[0]}/part-{number:05d}-{first_row:012d}.parquet"
        for number in range(14)
        for first_row in (0, 20)
    ]
    rows = [pq.ParquetFile(tmp_path / "o" / name).read() for name in names]
    assert [len(part) for part in rows] == [20, 10] * 14
    assert pa.concat_tables(rows)["user_id"].to_pylist() == users["user_id"].to_pylist()


def test_names_that_mean_something_elsewhere_are_kept_as_they_are(
    tmp_path: Path, model: TinyModel, users: pa.Table
) -> None:
    folders = ["a=*", "a=[1]", "a=?", "a=..", "a= ", "a=%", "a=é", "a=\n", "a='", "a==", "a.b=1", "_a=1"]
    write_files(tmp_path / "users", users, [f"{folder}/[*].parquet" for folder in folders])
    score(model.path, tmp_path / "users", f"{tmp_path}/o/", top_k=3)
    assert sorted(path.name for path in (tmp_path / "o").iterdir()) == sorted(folders)
    assert sum(pq.ParquetFile(path).metadata.num_rows for path in part_files(tmp_path / "o")) == 420


def test_other_folders_are_not_kept(tmp_path: Path, model: TinyModel, users: pa.Table) -> None:
    names = ["a/x.parquet", "b/c=/deep/y.parquet", "b/c=1/deep/z.parquet", "w=2/=5/v.parquet", "w=2/u.parquet"]
    write_files(tmp_path / "users", users, sorted(names))
    score(model.path, tmp_path / "users", f"{tmp_path}/o/", top_k=3)
    manifest = json.loads((tmp_path / "o.manifest.json").read_text())
    assert [entry["file"].rpartition("/")[0] for entry in manifest["candidates"]] == ["", "c=", "c=1", "w=2", "w=2"]


@pytest.mark.parametrize("step", ["make_partition", "bad_rows_part"])  # each is called once for each part
def test_an_output_folder_that_is_removed_before_a_part_is_not_made_again(
    tmp_path: Path, model: TinyModel, partitioned: Path, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    real, asked = getattr(LocalJobFolder, step), list[str]()

    def removing(folder: LocalJobFolder, name: str) -> Any:
        asked.append(name)
        if len(set(asked)) == 2:  # the second partition, or part
            shutil.rmtree(tmp_path / "out", ignore_errors=True)
        return real(folder, name)

    (tmp_path / "out").mkdir()
    monkeypatch.setattr(LocalJobFolder, step, removing)
    with pytest.raises(DataError, match=r"output \S+/out/o: \S+ was removed while the job wrote it; keep the folder"):
        score(model.path, partitioned, f"{tmp_path}/out/o/", top_k=3, part_rows=60, threads=1)
    assert not (tmp_path / "out").exists()


def test_any_number_of_threads_gives_the_same_folder(tmp_path: Path, model: TinyModel, partitioned: Path) -> None:
    files = {}
    for threads in (1, 2, 5):
        (tmp_path / str(threads)).mkdir()
        score(model.path, partitioned, f"{tmp_path}/{threads}/o/", top_k=3, part_rows=7, threads=threads)
        files[threads] = crashes.everything(tmp_path / str(threads))
    assert len(files[1]) == 14 * 5 + 1
    assert files[1] == files[2] == files[5]


def test_files_without_users_have_no_part(tmp_path: Path, model: TinyModel, users: pa.Table) -> None:
    write_files(tmp_path / "users", users.slice(0, 0), ["d=1/a.parquet", "d=3/a.parquet"])
    score(model.path, tmp_path / "users", f"{tmp_path}/nobody/", top_k=3)
    assert [name for name in crashes.everything(tmp_path / "nobody")] == ["d=1/part-00000-000000000000.parquet"]
    write_files(tmp_path / "users", users.slice(0, 10), ["d=2/a.parquet"])
    score(model.path, tmp_path / "users", f"{tmp_path}/o/", top_k=3)
    assert [name for name in crashes.everything(tmp_path / "o")] == ["d=2/part-00001-000000000000.parquet"]
    assert pq.read_table(tmp_path / "o").num_rows == 10


def test_hundreds_of_files_need_few_handles(tmp_path: Path, model: TinyModel, users: pa.Table) -> None:
    write_files(tmp_path / "users", users, [f"day={day:03d}/x.parquet" for day in range(300)])
    script = (
        "import resource, sys\nfrom ipsrec_onnx.scoring import score\n"
        "resource.setrlimit(resource.RLIMIT_NOFILE, (100, 100))\n"
        "done = score(*sys.argv[1:], top_k=3, threads=4)\nprint(done.counts.rows_out)\n"
    )
    arguments = [str(model.path), str(tmp_path / "users"), f"{tmp_path}/o/"]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    run = subprocess.run(
        [sys.executable, "-c", script, *arguments], env=environment, capture_output=True, text=True, check=False
    )
    assert run.stdout == "420\n", run.stderr
    assert len(crashes.everything(tmp_path / "o")) == 210  # two users a file, and none in the last ninety
    assert pq.read_table(tmp_path / "o")["user_id"].to_pylist() == list(range(420))


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("*.parquet", ["a.parquet", "b.parquet"]),
        ("[b-c].parquet", ["b.parquet"]),
        ("[!b].parquet", ["a.parquet"]),
        ("d=*/*.parquet", ["d=1/a.parquet", "d=2/a.parquet", "d=2/b.parquet"]),
        ("d=*", ["d=1/a.parquet", "d=1/e=5/a.parquet", "d=2/a.parquet", "d=2/b.parquet"]),
        ("d=[2]/", ["d=2/a.parquet", "d=2/b.parquet"]),
        ("*/*/a*", ["d=1/e=5/a.parquet"]),
        ("**/e=*/*.parquet", ["d=1/e=5/a.parquet"]),
        ("**/b.parquet", ["b.parquet", "d=2/b.parquet"]),
        ("**/[ab].parquet", ALL),
        ("**", ALL),
        ("d=1/**", ["a.parquet", "e=5/a.parquet"]),
        ("d=1/**/*", ["a.parquet", "e=5/a.parquet"]),
        ("**/e=5/**/a.parquet", ["d=1/e=5/a.parquet"]),
        ("_*", ["_SUCCESS", "_d=3/a.parquet", "_hidden/a.parquet"]),
        ("*d=3/*", ["_d=3/a.parquet"]),
        ("*hidden/*", []),
        (".*/*.parquet", [".hidden/a.parquet"]),
        ("*.csv", ["c.csv"]),
        ("d=1*2", []),
        ("A.parquet*", []),
    ],
)
@pytest.mark.parametrize("form", ["path", "relative", "uri"])
def test_a_pattern_finds_what_a_shell_would(
    tmp_path: Path, users: pa.Table, monkeypatch: pytest.MonkeyPatch, pattern: str, expected: list[str], form: str
) -> None:
    root = tmp_path / "a folder"
    write_files(root, users, [*ALL, "c.csv", "_SUCCESS", ".hidden/a.parquet", "_hidden/a.parquet"])
    monkeypatch.chdir(root)
    sources = {"path": f"{root}/{pattern}", "relative": pattern, "uri": f"{root.as_uri()}/{pattern}"}
    source = sources[form]
    if expected:
        _, found = find_files(source)
        assert [file.name for file in found] == expected
        assert [file.partition for file in found] == [
            "/".join(part for part in name.split("/")[:-1] if "=" in part) for name in expected
        ]
    else:
        with pytest.raises(DataError, match=r"no Parquet file below .* matches; check the pattern"):
            find_files(source)


def test_a_question_mark_is_one_character_and_begins_the_query_of_a_uri(tmp_path: Path, users: pa.Table) -> None:
    write_files(tmp_path, users, ["a.parquet", "bb.parquet"])
    assert [file.name for file in find_files(f"{tmp_path}/?.parquet")[1]] == ["a.parquet"]
    with pytest.raises(DataError, match="there is no such file or folder"):
        find_files(f"{(tmp_path / 'none').as_uri()}/?.parquet")


def test_what_exists_under_its_very_name_is_no_pattern(tmp_path: Path, users: pa.Table) -> None:
    for name in ("[a]", "a", "*", "b?"):
        write_files(tmp_path / name, users.slice(0, 5), [f"{name}.parquet"])
    for name in ("[a]", "a", "*", "b?"):
        (alone,) = find_files(tmp_path / name / f"{name}.parquet")[1]
        assert alone.name == f"{name}.parquet"
        (below,) = find_files(tmp_path / name)[1]
        assert below.path == str(tmp_path / name / f"{name}.parquet")
    (escaped,) = find_files(tmp_path / "[[]a]" / "*.parquet")[1]
    assert escaped.path == str(tmp_path / "[a]" / "[a].parquet")


def test_a_pattern_without_its_folder_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"none/x-\*\.parquet: there is no folder .*/none/; check the path"):
        find_files(tmp_path / "none" / "x-*.parquet")


def test_partitions_of_a_pattern_begin_below_its_fixed_folders(
    tmp_path: Path, model: TinyModel, partitioned: Path
) -> None:
    score(model.path, f"{partitioned}/dt=2024-01-0[12]/country=*/a.parquet", f"{tmp_path}/o/", top_k=3)
    found = partition_columns(tmp_path / "o")
    assert len(found) == 120 and {str(day) for _, day, _ in found} == {"2024-01-01", "2024-01-02"}
    score(model.path, f"{partitioned}/dt=2024-01-01/country=*/*", f"{tmp_path}/day/", top_k=3)
    assert sorted(path.name for path in (tmp_path / "day").iterdir()) == ["country=DE", "country=New%20York"]


@pytest.mark.parametrize("key", ["status", "STATUS", "user%5Fid"])
def test_a_partition_that_is_a_column_of_the_output_is_refused(
    tmp_path: Path, model: TinyModel, users: pa.Table, key: str
) -> None:
    write_files(tmp_path / "users", users, ["a.parquet", f"{key}=x/b.parquet"])
    with pytest.raises(DataError, match=rf"{key}=x, and .* is a column of the candidates, .*; write one file"):
        score(model.path, tmp_path / "users", f"{tmp_path}/o/", top_k=3)
    assert score(model.path, tmp_path / "users", tmp_path / "o.parquet", top_k=3).counts.rows_out == 420
    if key == "status":  # which the long layout has not
        score(model.path, tmp_path / "users", f"{tmp_path}/o/", top_k=3, layout="long")
        assert (tmp_path / "o" / "status=x").is_dir()


def test_an_old_folder_of_partitions_is_replaced_and_nothing_else(
    tmp_path: Path, model: TinyModel, partitioned: Path
) -> None:
    output = f"{tmp_path}/o/"
    score(model.path, partitioned, output, top_k=3)
    kept = crashes.everything(tmp_path / "o")
    with pytest.raises(DataError, match="exists already"):
        score(model.path, partitioned, output, top_k=3)
    score(model.path, f"{partitioned}/dt=2024-01-01", output, top_k=3, overwrite=True)
    assert sorted(path.name for path in (tmp_path / "o").iterdir()) == ["country=DE", "country=New%20York"]
    score(model.path, partitioned, output, top_k=3, overwrite=True)
    assert crashes.everything(tmp_path / "o") == kept
    for name in ("dt=2024-01-01/thesis.txt", "dt=2024-01-01/country=DE/plain/part-00000-000000000000.parquet"):
        foreign = tmp_path / "o" / name
        foreign.parent.mkdir(exist_ok=True)
        foreign.write_text("mine")
        with pytest.raises(DataError, match=r"'dt=2024-01-01/.*', which is no part of candidates"):
            score(model.path, partitioned, output, top_k=3, overwrite=True)
        assert foreign.read_text() == "mine"
        foreign.unlink()
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "o" / "dt=9").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(DataError, match="'dt=9', which is no part of candidates"):
        score(model.path, partitioned, output, top_k=3, overwrite=True)


@pytest.mark.parametrize("name", ["o/", "o.parquet"])
def test_a_killed_job_goes_on_in_its_partitions(
    tmp_path: Path, model: TinyModel, users: pa.Table, partitioned: Path, name: str
) -> None:
    history = users["item_history"].to_pylist()
    broken = users.set_column(
        1, "item_history", pa.array([None if row % 19 == 3 else history[row] for row in range(420)])
    )
    write_files(partitioned, broken, sorted(f"{partition}/{file}.parquet" for partition in PARTITIONS for file in "ab"))
    job = {"model": model.path, "source": partitioned, "top_k": 3, "bad_rows": "divert", "resume": True}
    context = crashes.server()
    (tmp_path / "whole").mkdir()
    assert crashes.run(context, crashes.score_in_parts, {**job, "output": f"{tmp_path}/whole/{name}"}) == 0
    expected = crashes.everything(tmp_path / "whole")
    assert len(expected) == (14 if name == "o/" else 1) + 2
    for step in (1, 6, 11, 18, 26, 29, 30, 31, 33):
        folder = tmp_path / str(step)
        folder.mkdir()
        arguments = {**job, "output": f"{folder}/{name}"}
        killed = crashes.run(context, crashes.killed_at_step, arguments, step, "after")
        assert killed == -signal.SIGKILL
        assert crashes.run(context, crashes.score_in_parts, arguments) == 0
        assert crashes.everything(folder) == expected, f"step {step}"


def test_parts_have_the_size_that_was_asked_for_and_keep_it(
    tmp_path: Path, model: TinyModel, users: pa.Table, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = write_files(tmp_path / "users", users, ["a.parquet", "b.parquet"])
    for part_rows, expected in ((1, [1] * 420), (209, [209, 1] * 2), (210, [210, 210]), (10**9, [210, 210])):
        score(model.path, source, f"{tmp_path}/{part_rows}/", top_k=1, part_rows=part_rows)
        parts = part_files(tmp_path / str(part_rows))
        assert [pq.read_metadata(path).num_rows for path in parts] == expected
    with monkeypatch.context() as broken:
        broken.setattr(
            "ipsrec_onnx.job_folder.LocalJobFolder.commit", lambda *_, **__: 1 / 0
        )  # all parts are done by then
        with pytest.raises(ZeroDivisionError):
            score(model.path, source, f"{tmp_path}/o/", top_k=1, part_rows=100)
    with pytest.raises(DataError, match="its part_rows is 100, asked for is 8192;"):
        score(model.path, source, f"{tmp_path}/o/", top_k=1, resume=True)
    assert score(model.path, source, f"{tmp_path}/o/", top_k=1, resume=True, part_rows=100).resumed_rows == 420
    with pytest.raises(ValueError, match="part_rows is 0"):
        score(model.path, source, f"{tmp_path}/o/", part_rows=0)


def test_one_file_has_the_same_bytes_whatever_the_parts(tmp_path: Path, model: TinyModel, partitioned: Path) -> None:
    for part_rows in (7, None):
        score(model.path, partitioned, tmp_path / f"{part_rows}.parquet", top_k=3, part_rows=part_rows)
    assert (tmp_path / "7.parquet").read_bytes() == (tmp_path / "None.parquet").read_bytes()


def test_another_file_system_gives_the_same_files(
    tmp_path: Path, model: TinyModel, partitioned: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Their footers are read by several threads; the order is that of the names, and so is the first refusal."""
    score(model.path, partitioned, f"{tmp_path}/here/", top_k=3)
    afar = pafs.SubTreeFileSystem(str(tmp_path), pafs.LocalFileSystem())
    monkeypatch.setattr(input_files, "open_file_system", lambda uri: (afar, uri.removeprefix("afar://")))
    for number, source in enumerate(("afar://users", "afar://users/dt=*/**/*.parquet")):
        score(model.path, source, f"{tmp_path}/afar{number}/", top_k=3)
        assert crashes.everything(tmp_path / f"afar{number}") == crashes.everything(tmp_path / "here")
    for name in ("dt=2024-01-02/country=a%2Fb/b.parquet", "dt=2024-01-03/country=%5Bx%5D%2A%3F/a.parquet"):
        (partitioned / name).write_bytes(b"PAR1")
    with pytest.raises(DataError, match=r"country=a%2Fb/b\.parquet: cannot be read as Parquet"):
        open_users("afar://users", UserColumns("user_id", "item_history", None, None))


def test_the_description_of_many_files_is_bounded(
    tmp_path: Path, model: TinyModel, users: pa.Table, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(job_description, "_MOST_FILES", 3)
    descriptions = []
    for change in (None, "a.parquet", "f.parquet"):
        names = [f"{name}.parquet" for name in "abcdef"]
        source = write_files(tmp_path / "users", users, names)
        for name in names:
            os.utime(source / name, ns=(0, int(name == change)))
        opened = open_users(source, UserColumns("user_id", "item_history", None, None))
        described = job_description.describe_job(
            opened, model_sha256="", options={}, allowed=None, as_folder=True, machine={}
        )
        descriptions.append(described["input"])
    whole, first, last = descriptions
    assert len(whole) == 4 and (whole[3]["files"], whole[3]["rows"]) == (3, 210)
    assert whole[0] != first[0] and whole[1:] == first[1:]
    assert whole[:3] == last[:3] and whole[3]["sha256"] != last[3]["sha256"]


@pytest.mark.ray
@pytest.mark.slow
def test_workers_of_a_cluster_write_the_same_partitions(tmp_path: Path, model: TinyModel, partitioned: Path) -> None:
    for engine in ("local", "ray"):
        (tmp_path / engine).mkdir()
        workers = {"engine": "ray", "workers": 2} if engine == "ray" else {}
        score(model.path, partitioned, f"{tmp_path}/{engine}/o/", top_k=3, part_rows=20, threads=1, **workers)
    assert crashes.everything(tmp_path / "ray") == crashes.everything(tmp_path / "local")
