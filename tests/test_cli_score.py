"""`ipsrec score`: what it prints, and what it refuses with one line."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from model_files import TinyModel, write_model_file
from test_onnx_scoring import expect_naive, random_users

from ipsrec_cli.main import main


@pytest.fixture
def model(tmp_path: Path) -> TinyModel:
    return write_model_file(tmp_path / "model.onnx")


@pytest.fixture
def users(tmp_path: Path, model: TinyModel, rng: np.random.Generator) -> pa.Table:
    users = random_users(model, rng, 60)
    pq.write_table(users, tmp_path / "users.parquet")
    return users


def run(*arguments: str | Path) -> int:
    """Run the command line and give its exit code."""
    try:
        main([str(argument) for argument in arguments])
    except SystemExit as stop:
        return int(stop.code or 0)
    return 0


def test_score_writes_candidates_and_says_so(
    tmp_path: Path, model: TinyModel, users: pa.Table, capsys: pytest.CaptureFixture[str]
) -> None:
    paths = ("--model", model.path, "--input", tmp_path / "users.parquet", "--output", tmp_path / "o.parquet")
    assert run("score", *paths, "--top-k", "8", "--max-per-provider", "2", "--candidates-column", "choice") == 0
    out, err = capsys.readouterr()
    assert "users written" in out and "60" in out
    assert "60 of 60 users" in err
    expect_naive(model, users, tmp_path / "o.parquet", top_k=8, max_per_provider=2, candidates_column="choice")


def test_score_gives_json_alone_on_stdout_and_is_silent_when_quiet(
    tmp_path: Path, model: TinyModel, users: pa.Table, capsys: pytest.CaptureFixture[str]
) -> None:
    paths = ("--model", model.path, "--input", tmp_path / "users.parquet", "--output", tmp_path / "o.parquet")
    assert run("score", *paths, "--json", "--quiet", "--bad-rows", "divert", "--layout", "long", "--threads", "1") == 0
    out, err = capsys.readouterr()
    report = json.loads(out)
    assert err == ""
    assert (report["rows_in"], report["rows_out"], report["rows_diverted"]) == (60, 60, 0)
    assert pq.read_table(report["bad_rows"]).num_rows == 0


Prepare = Callable[[Path, TinyModel], list[str]]


def with_users(**columns: pa.Array | list[object]) -> Prepare:
    """Write users of these columns."""

    def prepare(folder: Path, model: TinyModel) -> list[str]:
        pq.write_table(pa.table(dict(columns)), folder / "users.parquet")
        return []

    return prepare


def with_bytes(change: Callable[[bytes], bytes], name: str = "users.parquet") -> Prepare:
    """Break a good file."""

    def prepare(folder: Path, model: TinyModel) -> list[str]:
        (folder / name).write_bytes(change((folder / name).read_bytes()))
        return []

    return prepare


def with_model(**changed: str) -> Prepare:
    """Change the metadata of the model file."""

    def prepare(folder: Path, model: TinyModel) -> list[str]:
        write_model_file(model.path, changed_properties={f"ipsrec.{name}": value for name, value in changed.items()})
        return []

    return prepare


def with_file(name: str, text: str, *options: str) -> Prepare:
    """Write one more file, and name it in the options."""

    def prepare(folder: Path, model: TinyModel) -> list[str]:
        (folder / name).write_text(text, encoding="utf-8")
        return [option.replace("{folder}", str(folder)) for option in options]

    return prepare


def with_strings(*, user_id: list[bytes], item_history: list[bytes], options: list[str]) -> Prepare:
    """A model of string ids, and users of one item each whose strings may be no UTF-8."""

    def prepare(folder: Path, model: TinyModel) -> list[str]:
        write_model_file(model.path, string_ids=True)
        items = pa.ListArray.from_arrays(pa.array(range(len(user_id) + 1), pa.int32()), not_utf8(item_history))
        pq.write_table(pa.table({"user_id": not_utf8(user_id), "item_history": items}), folder / "users.parquet")
        return options

    return prepare


def not_utf8(values: list[bytes]) -> pa.Array:
    """Strings that Arrow takes as they are."""
    binary = pa.array(values, pa.binary())
    return pa.Array.from_buffers(pa.string(), len(binary), binary.buffers())


def with_pipe(option: str) -> Prepare:
    """A pipe that nobody writes to."""

    def prepare(folder: Path, model: TinyModel) -> list[str]:
        os.mkfifo(folder / "pipe")
        return [option, str(folder / "pipe")]

    return prepare


def with_copy(source: str, target: str, *options: str) -> Prepare:
    """Copy a file, and name it in the options."""

    def prepare(folder: Path, model: TinyModel) -> list[str]:
        (folder / target).write_bytes((folder / source).read_bytes())
        return [option.replace("{folder}", str(folder)) for option in options]

    return prepare


def with_external_data(name: str, *options: str) -> Prepare:
    """Move the weights of the model file to one beside it."""

    def prepare(folder: Path, model: TinyModel) -> list[str]:
        proto = onnx.load(model.path)
        onnx.save_model(proto, model.path, save_as_external_data=True, location=name, size_threshold=0)
        return [option.replace("{folder}", str(folder)) for option in options]

    return prepare


def with_item_lists(**counts: int) -> Prepare:
    """Allow or deny so many items, the first of the catalog."""

    def prepare(folder: Path, model: TinyModel) -> list[str]:
        options = []
        for name, count in counts.items():
            ids = model.catalog.item_ids.to_pylist()[:count]
            (folder / f"{name}.txt").write_text("\n".join(map(str, ids)), encoding="utf-8")
            options += [f"--{name}-items", str(folder / f"{name}.txt")]
        return options

    return prepare


def with_parquet_list(**columns: list[int]) -> Prepare:
    """Deny the items of a Parquet file."""

    def prepare(folder: Path, model: TinyModel) -> list[str]:
        pq.write_table(pa.table(dict(columns)), folder / "deny.parquet")
        return ["--deny-items", str(folder / "deny.parquet")]

    return prepare


def with_options(*options: str) -> Prepare:
    return lambda folder, model: [option.replace("{folder}", str(folder)) for option in options]


REFUSALS: dict[str, tuple[Prepare, str]] = {
    "missing column": (
        with_users(user_id=[1], items=[[1]]),
        "users.parquet: column item_history is missing, found ['user_id', 'items']",
    ),
    "column twice": (with_options("--user-column", "item_history"), "one column is named for two purposes"),
    "no lists": (with_users(user_id=[1], item_history=[1]), "column item_history: found type int64, expected a list"),
    "lists of floats": (with_users(user_id=[1], item_history=[[1.5]]), "ids of type double, expected an integer or"),
    "ids of the wrong kind": (
        with_users(user_id=[1], item_history=[["a"]]),
        "found ids of type string, expected int64",
    ),
    "id too large": (
        with_users(user_id=[1], item_history=pa.array([[2**64 - 1]], pa.list_(pa.uint64()))),
        "row group 0, row 0: item_history holds an id beyond int64; mend the row, or set such rows aside",
    ),
    "uneven lists": (
        with_users(user_id=[1, 2], item_history=[[1], [1, 2]], provider_history=[[1], [1]]),
        "row group 0, row 1: item_history and provider_history are of different lengths",
    ),
    "provider column that is not there": (
        with_options("--provider-column", "sellers"),
        "users.parquet: column sellers is missing",
    ),
    "null user": (with_users(user_id=[1, None], item_history=[[1], [2]]), "row group 0, row 1: user_id is null"),
    "null list": (with_users(user_id=[1, 2], item_history=[[1], None]), "row group 0, row 1: item_history is null"),
    "null item": (with_users(user_id=[1], item_history=[[1, None]]), "row group 0, row 0: item_history holds a null"),
    "unknown item": (with_options("--unknown-items", "error"), "is not in the model's catalog"),
    "cold user": (with_options("--cold-users", "error"), "has no item that the model knows"),
    "unknown item that is not UTF-8": (
        with_strings(user_id=[b"u"], item_history=[b"\xff1"], options=["--unknown-items", "error"]),
        "row 0, column item_history: item id '\ufffd1' is not in the model's catalog",
    ),
    "cold user that is not UTF-8": (
        with_strings(user_id=[b"\xffu"], item_history=[b"1"], options=["--cold-users", "error"]),
        "row 0: user_id '\ufffdu' has no item that the model knows",
    ),
    "empty file": (
        with_bytes(lambda _: b""),
        "users.parquet: cannot be read as Parquet (Parquet file size is 0 bytes)",
    ),
    "truncated file": (with_bytes(lambda data: data[:-200]), "users.parquet: cannot be read as Parquet"),
    "broken pages": (with_bytes(lambda data: data[:4] + bytes(300) + data[304:]), "row group 0: cannot be read"),
    "no such input": (
        with_options("--input", "{folder}/none.parquet"),
        "none.parquet: there is no such file or folder",
    ),
    "input is a pipe": (with_pipe("--input"), "pipe: it is a pipe or a device, expected a Parquet file"),
    "input is a device": (with_options("--input", "/dev/null"), "input /dev/null: it is a pipe or a device"),
    "input of a name that is no UTF-8": (
        with_copy("users.parquet", os.fsdecode(b"\xff.parquet"), "--input", "{folder}"),
        "input {folder}: its name, or that of a file in it, is no UTF-8",
    ),
    "unknown URI": (with_options("--input", "gopher://x/y"), "gopher://x/y: neither pyarrow nor fsspec knows"),
    "no such model": (with_options("--model", "{folder}/none.onnx"), "none.onnx: there is no such file"),
    "no model": (with_options("--model", "{folder}/users.parquet"), "users.parquet is no ONNX model"),
    "newer model": (with_model(format_version="2"), "format version 2, this ipsrec-onnx reads up to 1; upgrade"),
    "gate not passed": (with_model(gate='{"passed": false}'), "did not pass the gate"),
    "broken catalog": (with_model(catalog="AAAA"), "its metadata is broken"),
    "no such folder": (with_options("--output", "{folder}/none/o.parquet"), "none is not there; make the folder first"),
    # Not even root may make a file there.
    "unwritable folder": (with_options("--output", "/sys/o.parquet"), "cannot be written"),
    "existing output": (with_file("o.parquet", "mine"), "o.parquet exists already; choose another name, or replace"),
    "existing dead letters": (
        with_file("o.parquet.bad_rows.parquet", "mine", "--bad-rows", "divert"),
        "o.parquet.bad_rows.parquet exists already",
    ),
    "output is the input": (
        with_options("--output", "{folder}/users.parquet", "--overwrite"),
        "users.parquet is one of the input's files",
    ),
    "output is the model": (
        with_options("--output", "{folder}/model.onnx", "--overwrite"),
        "output {folder}/model.onnx is the model file; choose another name",
    ),
    "output is the model's data": (
        with_external_data("model.onnx.0a1b.data", "--output", "{folder}/model.onnx.0a1b.data", "--overwrite"),
        "model.onnx.0a1b.data is the model's external data",
    ),
    "report is the model's data": (
        with_external_data("weights", "--report", "{folder}/weights", "--overwrite"),
        "weights is the model's external data",
    ),
    "output is the allow list": (
        with_file("a.txt", "1", "--allow-items", "{folder}/a.txt", "--output", "{folder}/a.txt", "--overwrite"),
        "a.txt is the allow list",
    ),
    "output is the deny list": (
        with_file("d.txt", "1", "--deny-items", "{folder}/d.txt", "--output", "{folder}/d.txt", "--overwrite"),
        "d.txt is the deny list",
    ),
    "dead letters are the input": (
        with_copy(
            "users.parquet",
            "o.parquet.bad_rows.parquet",
            *("--input", "{folder}/o.parquet.bad_rows.parquet", "--bad-rows", "divert", "--overwrite"),
        ),
        "o.parquet.bad_rows.parquet is one of the input's files",
    ),
    "output is a folder": (with_options("--output", "{folder}", "--overwrite"), "is a folder, expected the name of a"),
    "no such allow list": (
        with_options("--allow-items", "{folder}/none.txt"),
        "item list {folder}/none.txt: cannot be",
    ),
    "allow list of strangers": (with_file("a.txt", "-1\n-2", "--allow-items", "{folder}/a.txt"), "none of its 2 ids"),
    "deny list of all that is allowed": (
        with_item_lists(allow=3, deny=5),
        "deny.txt: it holds every item of the allow list {folder}/allow.txt, so none is left",
    ),
    "deny list of everything": (with_item_lists(deny=40), "deny.txt: it holds every item, so none is left"),
    "item list of several columns": (
        with_parquet_list(user_id=[1], item=[2]),
        "deny.parquet: columns ['user_id', 'item'], expected one of them named item_id",
    ),
    "deny list of words": (
        with_file("d.txt", "12\napple", "--deny-items", "{folder}/d.txt"),
        "d.txt, line 2: 'apple' is no int64",
    ),
}


@pytest.mark.parametrize("case", REFUSALS)
def test_a_refusal_is_one_line_and_leaves_nothing_behind(
    tmp_path: Path, model: TinyModel, users: pa.Table, capsys: pytest.CaptureFixture[str], case: str
) -> None:
    prepare, message = REFUSALS[case]
    arguments: dict[str, str] = {
        "--model": str(model.path),
        "--input": str(tmp_path / "users.parquet"),
        "--output": str(tmp_path / "o.parquet"),
    }
    more = prepare(tmp_path, model)
    before = {path: path.read_bytes() for path in tmp_path.iterdir() if path.is_file()}
    assert run("score", *(part for pair in arguments.items() for part in pair), "--quiet", *more) == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("ipsrec: ") and err.count("\n") == 1
    assert message.replace("{folder}", str(tmp_path)) in err
    assert {path: path.read_bytes() for path in tmp_path.iterdir() if path.is_file()} == before


def test_cuda_is_never_a_quiet_fall_to_cpu(
    tmp_path: Path, model: TinyModel, users: pa.Table, capsys: pytest.CaptureFixture[str]
) -> None:
    if "CUDAExecutionProvider" in onnxruntime.get_available_providers():
        pytest.skip("this onnxruntime has CUDA")
    before = sorted(tmp_path.iterdir())
    paths = ("--model", model.path, "--input", tmp_path / "users.parquet", "--output", tmp_path / "o.parquet")
    assert run("score", *paths, "--device", "cuda") == 1
    err = capsys.readouterr().err
    assert "CUDAExecutionProvider is not in this onnxruntime" in err and "CPUExecutionProvider" in err
    assert err.count("\n") == 1
    assert sorted(tmp_path.iterdir()) == before


def test_a_wrong_option_is_wrong_usage(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("score", "--top-k", "0") == 2


@pytest.mark.parametrize("value", ["0.99", "recall=0", "recall=2", "recall=x", "precision=0.5", ""])
def test_approximate_takes_a_recall_and_nothing_else(
    tmp_path: Path, model: TinyModel, users: pa.Table, capsys: pytest.CaptureFixture[str], value: str
) -> None:
    paths = ("--model", model.path, "--input", tmp_path / "users.parquet", "--output", tmp_path / "o.parquet")
    assert run("score", *paths, "--approximate", value) == 2
    assert "try recall=0.99" in " ".join(capsys.readouterr().err.split())
    assert not (tmp_path / "o.parquet").exists()


def test_an_approximate_job_says_what_recall_it_has(
    tmp_path: Path, model: TinyModel, users: pa.Table, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("faiss", reason="--approximate needs the extra `approximate`")
    paths = ("--model", model.path, "--input", tmp_path / "users.parquet", "--output", tmp_path / "o.parquet")
    assert run("score", *paths, "--approximate", "recall=0.9", "--json") == 0
    out, err = capsys.readouterr()
    recall = json.loads(out)["approximate"]
    assert recall["target"] == 0.9 <= recall["measured"] <= 1.0
    assert "approximate search: recall" in err


def test_the_report_says_where_the_time_went(
    tmp_path: Path, model: TinyModel, users: pa.Table, capsys: pytest.CaptureFixture[str]
) -> None:
    paths = ("--model", model.path, "--input", tmp_path / "users.parquet", "--output", tmp_path / "o.parquet")
    assert run("score", *paths, "--json", "--quiet") == 0
    cpu_s = json.loads(capsys.readouterr().out)["cpu_s"]
    assert set(cpu_s) == {"read", "map", "encode", "retrieve", "lay_out", "write"}
    assert all(seconds > 0 for seconds in cpu_s.values())


def test_the_fused_encoder_is_refused_on_a_gpu(
    tmp_path: Path, model: TinyModel, users: pa.Table, capsys: pytest.CaptureFixture[str]
) -> None:
    paths = ("--model", model.path, "--input", tmp_path / "users.parquet", "--output", tmp_path / "o.parquet")
    assert run("score", *paths, "--encoder", "fused", "--device", "cuda") == 1
    assert "--encoder fused runs on the CPU" in capsys.readouterr().err


def test_an_index_cache_is_made_once_and_changes_no_byte(
    tmp_path: Path, model: TinyModel, users: pa.Table, capsys: pytest.CaptureFixture[str]
) -> None:
    paths = ("--model", model.path, "--input", tmp_path / "users.parquet", "--overwrite", "--output")
    assert run("score", *paths, tmp_path / "plain.parquet") == 0
    for _ in range(2):
        assert run("score", *paths, tmp_path / "cached.parquet", "--index-cache", tmp_path / "cache") == 0
        assert (tmp_path / "cached.parquet").read_bytes() == (tmp_path / "plain.parquet").read_bytes()
    (entry,) = (tmp_path / "cache").iterdir()
    (entry / "panels.npy").write_bytes(b"")
    capsys.readouterr()
    assert run("score", *paths, tmp_path / "cached.parquet", "--index-cache", tmp_path / "cache") == 1
    assert "delete that folder" in capsys.readouterr().err
