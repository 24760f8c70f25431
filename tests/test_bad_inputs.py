"""Over a hundred kinds of bad input: one line that says where, what was found and what to do; nothing left behind.

A message is the whole line; "..." in it stands for what a library says. Of wrong usage, exit code 2, the last line
counts: what is above it is how the command is used.
"""

from __future__ import annotations

import re
import shutil
import stat
from pathlib import Path

import numpy as np
import onnxruntime
import pyarrow as pa
import pytest
from bad_inputs import (
    COMMANDS,
    Spoil,
    change,
    entry,
    folder_at,
    good_folder,
    graph,
    new,
    options,
    outside,
    parquet,
    pipe,
    properties,
    unfinished,
    users,
    weights,
    without,
)

from ipsrec_cli.main import main

INT_LISTS = pa.list_(pa.int64())


def no_cuda(folder: Path) -> list[str]:
    """Ask for a GPU where there is none."""
    if "CUDAExecutionProvider" in onnxruntime.get_available_providers():
        pytest.skip("this onnxruntime has CUDA")
    return ["--device", "cuda"]


# name: command, what spoils it, message, exit code
BAD_INPUTS: dict[str, tuple[str, Spoil, str, int]] = {
    # users: the file
    "input missing": (
        "score",
        without("users.parquet"),
        "input {folder}/users.parquet: there is no such file or folder; check the path",
        1,
    ),
    "input empty": (
        "score",
        change("users.parquet", lambda data: b""),
        "{folder}/users.parquet: cannot be read as Parquet (...); write the file again",
        1,
    ),
    "input truncated": (
        "score",
        change("users.parquet", lambda data: data[:-100]),
        "{folder}/users.parquet: cannot be read as Parquet (...); write the file again",
        1,
    ),
    "input is text": (
        "score",
        new("users.parquet", "user_id,item_history\n1,2\n"),
        "{folder}/users.parquet: cannot be read as Parquet (...); write the file again",
        1,
    ),
    "input is zeros": (
        "score",
        change("users.parquet", lambda data: bytes(len(data))),
        "{folder}/users.parquet: cannot be read as Parquet (...); write the file again",
        1,
    ),
    "input has its footer alone": (
        "score",
        change("users.parquet", lambda data: b"PAR1" + data[-900:]),
        "{folder}/users.parquet: cannot be read as Parquet (...); write the file again",
        1,
    ),
    "input has broken pages": (
        "score",
        change("users.parquet", lambda data: data[:4] + bytes(500) + data[504:]),
        "{folder}/users.parquet, row group 0: cannot be read (...); the file is broken, write it again",
        1,
    ),
    "input footer is longer than the file": (
        "score",
        change("users.parquet", lambda data: data[:-8] + b"\xff\xff\xff\x7fPAR1"),
        "{folder}/users.parquet: cannot be read as Parquet (...); write the file again",
        1,
    ),
    "input is encrypted": (
        "score",
        change("users.parquet", lambda data: data[:-4] + b"PARE"),
        "{folder}/users.parquet: cannot be read as Parquet (...); write the file again",
        1,
    ),
    "input is a pipe": (
        "score",
        pipe("users.parquet"),
        "input {folder}/users.parquet: it is a pipe or a device, expected a Parquet file, a folder or a "
        "URI; Parquet is not read from front to back, so write a file first",
        1,
    ),
    "input is a device": (
        "score",
        options("--input", "/dev/zero"),
        "input /dev/zero: it is a pipe or a device, expected a Parquet file, a folder or a URI; Parquet "
        "is not read from front to back, so write a file first",
        1,
    ),
    "input is an empty folder": (
        "score",
        folder_at("users.parquet"),
        "input {folder}/users.parquet: the folder has no *.parquet file; give a folder that has some",
        1,
    ),
    "input is a URI of nobody": (
        "score",
        options("--input", "gopher://users"),
        "gopher://users: neither pyarrow nor fsspec knows gopher://; expected a path, or a URI such as ...",
        1,
    ),
    "input is a pattern of nothing": (
        "score",
        options("--input", "{folder}/day=*/*.parquet"),
        "input {folder}/day=*/*.parquet: no Parquet file below {folder}/ matches; check the pattern ([ itself is "
        "written [[])",
        1,
    ),
    "input is a pattern in no folder": (
        "score",
        options("--input", "{folder}/none/*.parquet"),
        "input {folder}/none/*.parquet: there is no folder {folder}/none/; check the path",
        1,
    ),
    "input is a broken link": (
        "score",
        lambda folder: (folder / "link").symlink_to("nowhere") or ["--input", "{folder}/link"],
        "input {folder}/link: there is no such file or folder; check the path",
        1,
    ),
    "input files disagree": (
        "score",
        lambda folder: [
            *folder_at("many")(folder),
            *parquet("many/a.parquet", {"user_id": [1], "item_history": [[1]]})(folder),
            *parquet("many/b.parquet", {"user_id": ["1"], "item_history": [[1]]})(folder),
            *("--input", "{folder}/many"),
        ],
        "{folder}/many/b.parquet: columns user_id string, item_history list<element: int64>, but "
        "{folder}/many/a.parquet has user_id int64, item_history list<element: int64>; write all files of"
        " a folder with the same columns and types",
        1,
    ),
    # users: the columns
    "no user column": (
        "score",
        users(item_history=[[1]]),
        "{folder}/users.parquet: column user_id is missing, found ['item_history']; name another column by its option",
        1,
    ),
    "no item column": (
        "score",
        users(user_id=[1], items=[[1]]),
        "{folder}/users.parquet: column item_history is missing, found ['user_id', 'items']; name another"
        " column by its option",
        1,
    ),
    "no provider column of that name": (
        "score",
        options("--provider-column", "seller"),
        "{folder}/users.parquet: column seller is missing, found ['user_id', 'item_history', "
        "'provider_history', 'choice']; name another column by its option",
        1,
    ),
    "no candidates column of that name": (
        "score",
        options("--candidates-column", "pool"),
        "{folder}/users.parquet: column pool is missing, found ['user_id', 'item_history', "
        "'provider_history', 'choice']; name another column by its option",
        1,
    ),
    "column there twice": (
        "score",
        lambda folder: (
            pa.parquet.write_table(
                pa.Table.from_arrays(
                    [pa.array([1]), pa.array([[1]]), pa.array([[2]])], ["user_id", *["item_history"] * 2]
                ),
                folder / "users.parquet",
            )
            or []
        ),
        "{folder}/users.parquet: column item_history is there 2 times, found ['user_id', 'item_history', "
        "'item_history']; name another column by its option",
        1,
    ),
    "column for two purposes": (
        "score",
        options("--user-column", "item_history"),
        "{folder}/users.parquet: one column is named for two purposes: ['item_history', 'item_history', "
        "'provider_history']; name each its own",
        1,
    ),
    "items are no lists": (
        "score",
        users(user_id=[1], item_history=[5]),
        "{folder}/users.parquet, column item_history: found type int64, expected a list of int64 ids; "
        "make it one list a row",
        1,
    ),
    "items are nested lists": (
        "score",
        users(user_id=[1], item_history=[[[1, 2]]]),
        "{folder}/users.parquet, column item_history: ids of type list<element: int64>, expected an "
        "integer or string type; cast the column",
        1,
    ),
    "items are floats": (
        "score",
        users(user_id=[1], item_history=[[1.0]]),
        "{folder}/users.parquet, column item_history: ids of type double, expected an integer or string "
        "type; cast the column",
        1,
    ),
    "items are booleans": (
        "score",
        users(user_id=[1], item_history=[[True]]),
        "{folder}/users.parquet, column item_history: ids of type bool, expected an integer or string "
        "type; cast the column",
        1,
    ),
    "items are strings": (
        "score",
        users(user_id=[1], item_history=[["1001"]]),
        "{folder}/users.parquet, column item_history: found ids of type string, expected int64 as in the "
        "model's catalog; cast the column",
        1,
    ),
    "items are binary": (
        "score",
        users(user_id=[1], item_history=[[b"1001"]]),
        "{folder}/users.parquet, column item_history: ids of type binary, expected an integer or string "
        "type; cast the column",
        1,
    ),
    "items are a dictionary of strings": (
        "score",
        users(user_id=[1], item_history=pa.array([["a"]], pa.list_(pa.dictionary(pa.int8(), pa.string())))),
        "{folder}/users.parquet, column item_history: found ids of type dictionary<values=string, "
        "indices=int8, ordered=0>, expected int64 as in the model's catalog; cast the column",
        1,
    ),
    "items are dates": (
        "score",
        users(user_id=[1], item_history=pa.array([[1]], pa.list_(pa.date32()))),
        "{folder}/users.parquet, column item_history: ids of type date32[day], expected an integer or "
        "string type; cast the column",
        1,
    ),
    "items are decimals": (
        "score",
        users(user_id=[1], item_history=pa.array([[1]], pa.list_(pa.decimal128(20)))),
        "{folder}/users.parquet, column item_history: ids of type decimal128(20, 0), expected an integer "
        "or string type; cast the column",
        1,
    ),
    "items are a map": (
        "score",
        users(user_id=[1], item_history=pa.array([[(1, 2)]], pa.map_(pa.int64(), pa.int64()))),
        "{folder}/users.parquet, column item_history: found type map<int64, int64 ('item_history')>, "
        "expected a list of int64 ids; make it one list a row",
        1,
    ),
    "items are a struct": (
        "score",
        users(user_id=[1], item_history=[{"item": 1}]),
        "{folder}/users.parquet, column item_history: found type struct<item: int64>, expected a list of "
        "int64 ids; make it one list a row",
        1,
    ),
    "providers are of another kind": (
        "score",
        users(user_id=[1], item_history=[[1]], provider_history=[["seller"]]),
        "{folder}/users.parquet, column provider_history: found ids of type string, expected int64 as in "
        "the model's catalog; cast the column",
        1,
    ),
    "candidates are of another kind": (
        "score",
        lambda folder: [*users(user_id=[1], item_history=[[1]], pool=[["x"]])(folder), "--candidates-column", "pool"],
        "{folder}/users.parquet, column pool: found ids of type string, expected int64 as in the model's "
        "catalog; cast the column",
        1,
    ),
    # users: the rows
    "user id is null": (
        "score",
        users(user_id=[1, None], item_history=[[1], [2]]),
        "{folder}/users.parquet, row group 0, row 1: user_id is null; mend the row, or set such rows "
        "aside with --bad-rows divert",
        1,
    ),
    "list is null": (
        "score",
        users(user_id=[1, 2, 3], item_history=[[1], [2], None]),
        "{folder}/users.parquet, row group 0, row 2: item_history is null; mend the row, or set such rows"
        " aside with --bad-rows divert",
        1,
    ),
    "item is null": (
        "score",
        users(user_id=[1], item_history=[[1, None]]),
        "{folder}/users.parquet, row group 0, row 0: item_history holds a null; mend the row, or set such"
        " rows aside with --bad-rows divert",
        1,
    ),
    "provider is null": (
        "score",
        users(user_id=[1], item_history=[[1]], provider_history=pa.array([[None]], INT_LISTS)),
        "{folder}/users.parquet, row group 0, row 0: provider_history holds a null; mend the row, or set "
        "such rows aside with --bad-rows divert",
        1,
    ),
    "provider list is null": (
        "score",
        users(user_id=[1], item_history=[[1]], provider_history=pa.array([None], INT_LISTS)),
        "{folder}/users.parquet, row group 0, row 0: provider_history is null; mend the row, or set such "
        "rows aside with --bad-rows divert",
        1,
    ),
    "item id beyond int64": (
        "score",
        users(user_id=[1], item_history=pa.array([[2**63]], pa.list_(pa.uint64()))),
        "{folder}/users.parquet, row group 0, row 0: item_history holds an id beyond int64; mend the row,"
        " or set such rows aside with --bad-rows divert",
        1,
    ),
    "more items than providers": (
        "score",
        users(user_id=[1], item_history=[[1, 2]], provider_history=[[1]]),
        "{folder}/users.parquet, row group 0, row 0: item_history and provider_history are of different "
        "lengths; mend the row, or set such rows aside with --bad-rows divert",
        1,
    ),
    "fewer items than providers": (
        "score",
        users(user_id=[1], item_history=pa.array([[]], INT_LISTS), provider_history=[[1]]),
        "{folder}/users.parquet, row group 0, row 0: item_history and provider_history are of different "
        "lengths; mend the row, or set such rows aside with --bad-rows divert",
        1,
    ),
    "candidates are null": (
        "score",
        lambda folder: [
            *users(user_id=[1], item_history=[[1]], pool=pa.array([None], INT_LISTS))(folder),
            *("--candidates-column", "pool"),
        ],
        "{folder}/users.parquet, row group 0, row 0: pool is null; mend the row, or set such rows aside "
        "with --bad-rows divert",
        1,
    ),
    "unknown item is an error": (
        "score",
        lambda folder: [*users(user_id=[9], item_history=[[-7]])(folder), "--unknown-items", "error"],
        "{folder}/users.parquet, row group 0, row 0, column item_history: item id -7 is not in the "
        "model's catalog; mend the row, or drop such items with --unknown-items drop",
        1,
    ),
    "cold user is an error": (
        "score",
        lambda folder: [*users(user_id=[9], item_history=[[2**62]])(folder), "--cold-users", "error"],
        "{folder}/users.parquet, row group 0, row 0: user_id 9 has no item that the model knows; leave "
        "the user out, or choose --cold-users popular or empty",
        1,
    ),
    "cold user of no UTF-8": (
        "score",
        lambda folder: [
            *users({}, user_id=pa.array([b"\xff"]), item_history=pa.array([[]], INT_LISTS))(folder),
            *("--cold-users", "error"),
        ],
        "{folder}/users.parquet, row group 0, row 0: user_id b'\\xff' has no item that the model knows; "
        "leave the user out, or choose --cold-users popular or empty",
        1,
    ),
    # allow lists and deny lists
    "allow list missing": (
        "score",
        options("--allow-items", "{folder}/none.txt"),
        "item list {folder}/none.txt: cannot be read (...); give a Parquet or UTF-8 text file",
        1,
    ),
    "allow list empty": (
        "score",
        new("a.txt", "", "--allow-items", "{folder}/a.txt"),
        "allow list {folder}/a.txt: it holds no id, expected one or more; leave the option out",
        1,
    ),
    "allow list unknown": (
        "score",
        new("a.txt", "-1\n-2\n", "--allow-items", "{folder}/a.txt"),
        "allow list {folder}/a.txt: none of its 2 ids is in the model's catalog; check its ids",
        1,
    ),
    "allow list of words": (
        "score",
        new("a.txt", "1001\nbread\n", "--allow-items", "{folder}/a.txt"),
        "item list {folder}/a.txt, line 2: 'bread' is no int64, as the catalog's ids are; mend it",
        1,
    ),
    "allow list of floats": (
        "score",
        new("a.txt", "1001.0\n", "--allow-items", "{folder}/a.txt"),
        "item list {folder}/a.txt, line 1: '1001.0' is no int64, as the catalog's ids are; mend it",
        1,
    ),
    "allow list beyond int64": (
        "score",
        new("a.txt", "9" * 30, "--allow-items", "{folder}/a.txt"),
        "item list {folder}/a.txt, line 1: '999999999999999999999999999999' is no int64, as the catalog's"
        " ids are; mend it",
        1,
    ),
    "allow list binary": (
        "score",
        new("a.txt", bytes(range(256)), "--allow-items", "{folder}/a.txt"),
        "item list {folder}/a.txt: cannot be read (...); give a Parquet or UTF-8 text file",
        1,
    ),
    "allow list is a folder": (
        "score",
        folder_at("a.txt", "--allow-items", "{folder}/a.txt"),
        "item list {folder}/a.txt: cannot be read (...); give a Parquet or UTF-8 text file",
        1,
    ),
    "allow list of another column": (
        "score",
        parquet("a.parquet", {"user": [1], "sku": [2]}, "--allow-items", "{folder}/a.parquet"),
        "item list {folder}/a.parquet: columns ['user', 'sku'], expected one of them named item_id; name "
        "the column of ids so",
        1,
    ),
    "allow list of another type": (
        "score",
        parquet("a.parquet", {"item_id": ["1001"]}, "--allow-items", "{folder}/a.parquet"),
        "item list {folder}/a.parquet, column item_id: ids of type string, the catalog has int64; cast the column",
        1,
    ),
    "allow list with a null": (
        "score",
        parquet("a.parquet", {"item_id": [1001, None]}, "--allow-items", "{folder}/a.parquet"),
        "item list {folder}/a.parquet, column item_id: 1 null ids, expected none; remove these rows",
        1,
    ),
    "deny list of everything": (
        "score",
        new("d.txt", "\n".join(map(str, range(1000, 1400))), "--deny-items", "{folder}/d.txt"),
        "deny list {folder}/d.txt: it holds every item, so none is left to recommend; shorten it",
        1,
    ),
    "deny list truncated": (
        "score",
        new("d.parquet", b"PAR1\x15\x04", "--deny-items", "{folder}/d.parquet"),
        "item list {folder}/d.parquet: cannot be read (...); give a Parquet or UTF-8 text file",
        1,
    ),
    # the output
    "output exists": (
        "score",
        new("o.parquet", "mine"),
        "output {folder}/o.parquet exists already; choose another name, or replace it with --overwrite",
        1,
    ),
    "manifest exists": (
        "score",
        new("o.parquet.manifest.json", "{}"),
        "output {folder}/o.parquet.manifest.json exists already; choose another name, or replace it with --overwrite",
        1,
    ),
    "output is the input": (
        "score",
        options("--output", "{folder}/users.parquet", "--overwrite"),
        "output {folder}/users.parquet is one of the input's files; choose another name",
        1,
    ),
    "output is the model": (
        "score",
        options("--output", "{folder}/model.onnx", "--overwrite"),
        "output {folder}/model.onnx is the model file; choose another name",
        1,
    ),
    "output is a folder": (
        "score",
        folder_at("o.parquet", "--overwrite"),
        "output {folder}/o.parquet is a folder, expected the name of a file; choose another name, or end "
        "it with / for a folder of parts",
        1,
    ),
    "output is a folder of others": (
        "score",
        options("--output", "{folder}/dataset/", "--overwrite"),
        "output {folder}/dataset: the folder there holds 'histories.parquet', which is no part of "
        "candidates, so it is not replaced; choose another name",
        1,
    ),
    "output is a pipe": (
        "score",
        pipe("o.parquet", "--overwrite"),
        "output {folder}/o.parquet is a device or a pipe, expected a file or folder; choose another name",
        1,
    ),
    "output has no name": (
        "score",
        options("--output", ""),
        "output '.' has no name of its own; name a file or folder in it",
        1,
    ),
    "output's name is too long": (
        "score",
        options("--output", "{folder}/" + "o" * 300),
        "output {folder}/...: the name is too long; choose a shorter one",
        1,
    ),
    "output's folder is missing": (
        "score",
        options("--output", "{folder}/none/o.parquet"),
        "output {folder}/none/o.parquet: folder {folder}/none is not there; make the folder first, or choose another",
        1,
    ),
    "output's folder is a file": (
        "score",
        options("--output", "{folder}/model.onnx/o.parquet"),
        "output {folder}/model.onnx/o.parquet: folder {folder}/model.onnx is a file; make the folder "
        "first, or choose another",
        1,
    ),
    "output in an unwritable folder": (
        "score",
        options("--output", "/proc/o.parquet"),
        "output /proc/o.parquet: cannot be written (No such file or directory); choose another folder",
        1,
    ),
    # an unfinished job
    "unfinished job": (
        "score",
        unfinished(),
        "output {folder}/o.parquet: an unfinished job is there, 1 parts done; go on with --resume, or "
        "start over with --overwrite",
        1,
    ),
    "resume with another option": (
        "score",
        unfinished("--resume", "--top-k", "7"),
        "output {folder}/o.parquet: the unfinished job there is another one: its options.top_k is 100, "
        "asked for is 7; give what it was begun with, or start over with --overwrite",
        1,
    ),
    "resume with another model": (
        "score",
        unfinished("--resume", then=properties(model="sasrec")),
        'output {folder}/o.parquet: the unfinished job there is another one: its model_sha256 is "...", '
        'asked for is "..."; give what it was begun with, or start over with --overwrite',
        1,
    ),
    "resume with another input": (
        "score",
        unfinished("--resume", then=users(user_id=[1], item_history=[[1]])),
        'output {folder}/o.parquet: the unfinished job there is another one: its columns is ["user_id", '
        '"item_history", "provider_history"], asked for is ["user_id", "item_history"]; give what it was '
        "begun with, or start over with --overwrite",
        1,
    ),
    "resume with a broken description": (
        "score",
        unfinished("--resume", then=lambda f: new(f"{next(f.glob('.o*.job')).name}/job.json", "{")(f)),
        "{folder}/.o.parquet....job/job.json: cannot be read (...); remove the folder "
        "{folder}/.o.parquet....job, it is an unfinished job",
        1,
    ),
    "resume with a broken manifest": (
        "score",
        unfinished("--resume", then=lambda f: new(f"{next(f.glob('.o*.job')).name}/manifest.json", b"\xff")(f)),
        "{folder}/.o.parquet....job/manifest.json: cannot be read (...); remove the folder "
        "{folder}/.o.parquet....job, it is an unfinished job",
        1,
    ),
    "resume with broken counts": (
        "score",
        unfinished("--resume", then=entry(".o*.job/manifest.json", lambda value: value["counts"].update(rows_in="1"))),
        "output {folder}/o.parquet: its manifest is broken (rows_in is '1', expected a count); start over "
        "with --overwrite",
        1,
    ),
    # the model file
    "model missing": (
        "score",
        without("model.onnx"),
        "model {folder}/model.onnx: there is no such file; give the .onnx file that `ipsrec export` wrote",
        1,
    ),
    "model empty": (
        "score",
        change("model.onnx", lambda data: b""),
        "{folder}/model.onnx is no ONNX model: ...; give the file that `ipsrec export` wrote",
        1,
    ),
    "model truncated": (
        "score",
        change("model.onnx", lambda data: data[: len(data) // 2]),
        "{folder}/model.onnx is no ONNX model: ...; give the file that `ipsrec export` wrote",
        1,
    ),
    "model is no ONNX": (
        "score",
        options("--model", "{folder}/users.parquet"),
        "{folder}/users.parquet is no ONNX model: ...; give the file that `ipsrec export` wrote",
        1,
    ),
    "model is a folder": (
        "inspect",
        folder_at("model.onnx"),
        "model {folder}/model.onnx: it is a folder; give the .onnx file that `ipsrec export` wrote",
        1,
    ),
    "model is a pipe": (
        "inspect",
        pipe("model.onnx"),
        "model {folder}/model.onnx: it is a device or a pipe, no regular file; give the .onnx file that "
        "`ipsrec export` wrote",
        1,
    ),
    "model of others": (
        "inspect",
        graph(lambda proto: proto.ClearField("metadata_props")),
        "model {folder}/model.onnx: an ONNX model without ipsrec.* metadata, so it is none of ours; give "
        "the file that `ipsrec export` wrote",
        1,
    ),
    "model of other inputs": (
        "score",
        graph(lambda proto: proto.graph.output.pop(1)),
        "model {folder}/model.onnx: its metadata is broken: the graph has {'user_embedding': "
        "('tensor(float)', 2)}, expected {'user_embedding': ('tensor(float)', 2), 'item_embeddings': "
        "('tensor(float)', 2)}; export it again",
        1,
    ),
    "model of an unknown operator": (
        "score",
        graph(lambda proto: setattr(proto.graph.node[-1], "op_type", "Launch")),
        "model {folder}/model.onnx: ONNX Runtime cannot load it: ...; if it has a .data file, keep that "
        "beside it, or else export it again",
        1,
    ),
    "model of a newer version": (
        "score",
        properties(format_version="99"),
        "model {folder}/model.onnx: format version 99, this ipsrec-onnx reads up to 1; upgrade ipsrec-onnx",
        1,
    ),
    "model of no version": (
        "score",
        properties(format_version="one"),
        "model {folder}/model.onnx: format version 'one', expected a number, 1 or more; export it again",
        1,
    ),
    "settings are no JSON": (
        "score",
        properties(settings="{"),
        "model {folder}/model.onnx: its metadata is broken: ipsrec.settings: ...; export it again",
        1,
    ),
    "settings are a list": (
        "score",
        properties(settings="[]"),
        "model {folder}/model.onnx: its metadata is broken: ipsrec.settings is no JSON object; export it again",
        1,
    ),
    "max_len is negative": (
        "score",
        properties(settings='{"max_len": -1}'),
        "model {folder}/model.onnx: its metadata is broken: max_len is -1, expected a whole number, "
        "1..1048576; export it again",
        1,
    ),
    "max_len is missing": (
        "score",
        properties(settings="{}"),
        "model {folder}/model.onnx: its metadata is broken: max_len is missing; export it again",
        1,
    ),
    "catalog is missing": (
        "score",
        properties(catalog=None),
        "model {folder}/model.onnx: its metadata is broken: ipsrec.catalog is missing; export it again",
        1,
    ),
    "catalog is no base64": (
        "score",
        properties(catalog="?"),
        "model {folder}/model.onnx: its metadata is broken: ...; export it again",
        1,
    ),
    "catalog is of another size": (
        "score",
        weights("item_embeddings", lambda table: np.concatenate([table, table[:3]])),
        "model {folder}/model.onnx: its metadata is broken: item_embeddings has 44 rows, expected 41 for "
        "the catalog; export it again",
        1,
    ),
    "history terms are of another length": (
        "score",
        properties(history_terms='{"provider": [1], "item": [1]}'),
        "model {folder}/model.onnx: its metadata is broken: history term provider has shape (1,), "
        "expected (6,) finite numbers; export it again",
        1,
    ),
    "history terms are NaN": (
        "score",
        properties(history_terms='{"provider": [NaN], "item": [1]}'),
        "model {folder}/model.onnx: its metadata is broken: ipsrec.history_terms: ...; export it again",
        1,
    ),
    "weights are NaN": (
        "score",
        weights("item_embeddings", lambda table: table * np.float32("nan")),
        "model {folder}/model.onnx: item_embeddings[1] has NaN or infinity, expected finite numbers; "
        "train or export again",
        1,
    ),
    "gate failed": (
        "score",
        properties(gate='{"passed": false}'),
        "model {folder}/model.onnx: it did not pass the gate of `ipsrec export`; export it again",
        1,
    ),
    "gate says yes in words": (
        "score",
        properties(gate='{"passed": "yes"}'),
        "model {folder}/model.onnx: it did not pass the gate of `ipsrec export`; export it again",
        1,
    ),
    "external data missing": (
        "score",
        graph(outside),
        "model {folder}/model.onnx: weight 'item_embeddings' lies in 'weights.data': there is no such file; keep its "
        "external data beside it",
        1,
    ),
    # wrong usage
    "top-k is 0": ("score", options("--top-k", "0"), "Invalid value for '--top-k': 0 is not in the range x>=1.", 2),
    "top-k is a word": (
        "score",
        options("--top-k", "all"),
        "Invalid value for '--top-k': 'all' is not a valid integer range.",
        2,
    ),
    "device without its execution provider": (
        "score",
        no_cuda,
        "--device cuda: CUDAExecutionProvider is not in this onnxruntime, which has ...; use --device "
        "cpu, or mend it with: ...",
        1,
    ),
    "threads are negative": (
        "score",
        options("--threads", "-1"),
        "Invalid value for '--threads': -1 is not in the range x>=1.",
        2,
    ),
    "unknown layout": (
        "score",
        options("--layout", "wide"),
        "Invalid value for '--layout': 'wide' is not one of 'list', 'long'.",
        2,
    ),
    "unknown device": (
        "doctor",
        options("--device", "tpu"),
        "Invalid value for '--device': 'tpu' is not one of 'cpu', 'cuda'.",
        2,
    ),
    "unknown option": ("score", options("--fast"), "No such option '--fast'.", 2),
    "recall above 1": (
        "score",
        options("--approximate", "recall=1.5"),
        "Invalid value for '--approximate': 'recall=1.5' is not recall=R with R above 0, at most 1; try recall=0.99",
        2,
    ),
    "fused on CUDA": (
        "score",
        options("--encoder", "fused", "--device", "cuda"),
        "--encoder fused runs on the CPU, found --device cuda; leave one of the two out",
        1,
    ),
    "approximate among candidates": (
        "score",
        options("--approximate", "recall=0.9", "--candidates-column", "choice"),
        "--approximate: the candidates of --candidates-column choice are always scored exactly; leave one"
        " of the two out",
        1,
    ),
    "index cache is a file": (
        "score",
        options("--index-cache", "{folder}/model.onnx"),
        "index cache {folder}/model.onnx: cannot be made (...); name a folder whose parent is there",
        1,
    ),
    # other commands
    "dataset missing": (
        "evaluate",
        without("dataset"),
        "{folder}/dataset is no dataset that can be read: dataset.json: there is no such file; make one "
        "with `ipsrec prepare`",
        1,
    ),
    "dataset is a file": (
        "evaluate",
        options("--dataset", "{folder}/users.parquet"),
        "{folder}/users.parquet is no dataset that can be read: dataset.json: there is no such file; make"
        " one with `ipsrec prepare`",
        1,
    ),
    "dataset.json is no JSON": (
        "evaluate",
        new("dataset/dataset.json", "{"),
        "{folder}/dataset/dataset.json is broken (...); make the dataset again with `ipsrec prepare`",
        1,
    ),
    "dataset of a newer version": (
        "evaluate",
        entry("dataset/dataset.json", lambda value: value.update(format_version=9)),
        "{folder}/dataset/dataset.json: format_version 9, this version reads 1; upgrade ipsrec-onnx",
        1,
    ),
    "dataset without histories": (
        "evaluate",
        without("dataset/histories.parquet"),
        "{folder}/dataset/histories.parquet: there is no such file, so the dataset is not whole; make it "
        "again with `ipsrec prepare`",
        1,
    ),
    "histories truncated": (
        "evaluate",
        change("dataset/histories.parquet", lambda data: data[:-9]),
        "{folder}/dataset/histories.parquet cannot be read as Parquet (...); make the dataset again",
        1,
    ),
    "histories are uneven": (
        "evaluate",
        parquet("dataset/histories.parquet", {"user_id": [1], "item_history": [[1]], "provider_history": [[1, 2]]}),
        "{folder}/dataset/histories.parquet, row 0, user_id 1: 1 items, 2 providers, expected as many of "
        "each; make the dataset again",
        1,
    ),
    "dataset's catalog without items": (
        "train",
        parquet("dataset/catalog.parquet", {"item": [1]}),
        "{folder}/dataset: catalog: column item_id is missing, found ['item']; make the dataset again "
        "with `ipsrec prepare`",
        1,
    ),
    "interactions missing": (
        "prepare",
        without("interactions.parquet"),
        "input {folder}/interactions.parquet is not there; name a Parquet or CSV file, or a folder of them",
        1,
    ),
    "interactions empty": (
        "prepare",
        change("interactions.parquet", lambda data: b""),
        "{folder}/interactions.parquet is empty (0 bytes); expected a parquet file of interactions",
        1,
    ),
    "interactions without items": (
        "prepare",
        parquet("interactions.parquet", {"user_id": [1]}),
        "{folder}/interactions.parquet: column item_id is missing, found ['user_id']; name the right one "
        "with --item-column",
        1,
    ),
    "interactions of floats": (
        "prepare",
        parquet(
            "interactions.parquet",
            {"user_id": [1.5], "item_id": [1], "provider_id": [1], "timestamp": [1]},
        ),
        "{folder}/interactions.parquet: column user_id is Float64, expected an integer or string type for"
        " ids; cast the column",
        1,
    ),
    "interactions with a null": (
        "prepare",
        parquet(
            "interactions.parquet",
            {"user_id": [1, None], "item_id": [1, 2], "provider_id": [1, 2], "timestamp": [1, 2]},
        ),
        "{folder}/interactions.parquet, column user_id, row 1: null, expected none (1 null in all); remove these rows",
        1,
    ),
    "nothing left after the filter": (
        "prepare",
        options("--min-item-interactions", "50"),
        "{folder}/interactions.parquet: nothing is left of 3 interactions after the filter; lower "
        "--min-user-interactions or --min-item-interactions, or raise the upper bounds",
        1,
    ),
    "config is no TOML": (
        "train",
        new("c.toml", "= 1", "--config", "{folder}/c.toml"),
        "{folder}/c.toml cannot be read as TOML: ...",
        1,
    ),
    "config has an unknown table": (
        "train",
        new("c.toml", "[trainig]", "--config", "{folder}/c.toml"),
        "{folder}/c.toml: unknown name 'trainig', expected model, variant, [settings] and [training]",
        1,
    ),
    "config has a wrong type": (
        "train",
        new("c.toml", '[settings]\ndim = "wide"', "--config", "{folder}/c.toml"),
        "{folder}/c.toml: a value is of the wrong type: dim is 'wide', expected int",
        1,
    ),
    "config missing": (
        "train",
        options("--config", "{folder}/none.toml"),
        "Invalid value for '--config': File '{folder}/none.toml' does not exist.",
        2,
    ),
    "resume and overwrite": (
        "train",
        options("--resume", "--overwrite"),
        "--resume goes on with a run, --overwrite throws it away: give one of them",
        2,
    ),
    "run folder of others": (
        "train",
        options("--output", "{folder}/dataset", "--overwrite"),
        "output {folder}/dataset: the folder there has no run.json, so it is no run; choose another name",
        1,
    ),
    "checkpoint missing": (
        "export",
        without("run"),
        "{folder}/run is no finished training run: it has no run.json; make one with `ipsrec train`",
        1,
    ),
    "checkpoint without weights": (
        "export",
        without("run/model.safetensors"),
        "{folder}/run is no finished training run: it has no model.safetensors; make one with `ipsrec train`",
        1,
    ),
    "checkpoint's weights truncated": (
        "export",
        change("run/model.safetensors", lambda data: data[:50]),
        "{folder}/run/model.safetensors: the weights cannot be read into this model: ...; train it again",
        1,
    ),
    "checkpoint is a pickle": (
        "export",
        new("run/model.safetensors", b"\x80\x04\x95\x05\x00K\x01."),
        "{folder}/run/model.safetensors: the weights cannot be read into this model: ...; train it again",
        1,
    ),
    "checkpoint's run.json is a list": (
        "export",
        new("run/run.json", "[]"),
        "{folder}/run/run.json: found list, expected a JSON object; train it again",
        1,
    ),
    "checkpoint of an unknown model": (
        "export",
        entry("run/run.json", lambda value: value.update(model="bert4rec")),
        "{folder}/run/run.json: model 'bert4rec' is not known, expected one of ipsrec-c, ipsrec-s, "
        "sasrec, gru4rec, caser, sr-gnn; train it again",
        1,
    ),
    "checkpoint without metrics": (
        "export",
        new("run/metrics.jsonl", "{}\n"),
        "{folder}/run/metrics.jsonl needs a line with epoch for each epoch, and ndcg@10 in one of them; train it again",
        1,
    ),
    "plan is no TOML": (
        "experiment",
        new("plan.toml", "[[rows"),
        "plan {folder}/plan.toml is no TOML: ...; mend that line",
        1,
    ),
    "plan without rows": (
        "experiment",
        new("plan.toml", 'reference = "A"\n'),
        "plan {folder}/plan.toml: found no [[rows]], expected one or more",
        1,
    ),
    "plan missing": (
        "experiment",
        options("--plan", "{folder}/none.toml"),
        "Invalid value for '--plan': File '{folder}/none.toml' does not exist.",
        2,
    ),
}


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("good") / "folder"
    folder.mkdir()
    good_folder(folder)
    return folder


def contents(folder: Path) -> dict[str, bytes | str]:
    """Every file by its bytes, everything else by its kind."""
    found: dict[str, bytes | str] = {}
    for path in sorted(folder.rglob("*")):
        mode = path.lstat().st_mode
        found[str(path.relative_to(folder))] = path.read_bytes() if stat.S_ISREG(mode) else stat.filemode(mode)
    return found


def test_there_are_a_hundred_kinds() -> None:
    assert len(BAD_INPUTS) >= 100


@pytest.mark.parametrize("name", BAD_INPUTS)
def test_bad_input_is_refused_in_one_line_and_leaves_nothing_behind(
    good: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str], name: str
) -> None:
    command, spoil, message, code = BAD_INPUTS[name]
    folder = tmp_path / "f"
    shutil.copytree(good, folder)
    words = [*COMMANDS[command].split(), *spoil(folder)]
    before = contents(folder)
    capfd.readouterr()
    with pytest.raises(SystemExit) as stop:
        main([command, *(word.replace("{folder}", str(folder)) for word in words)])
    out, err = capfd.readouterr()
    lines = err.replace(str(folder), "{folder}").splitlines()
    assert stop.value.code == code
    assert out == ""
    pattern = ".*".join(re.escape(part) for part in message.split("..."))
    assert re.fullmatch(("ipsrec: " if code == 1 else "Error: ") + pattern, lines[-1]), lines[-1]
    assert code == 2 or len(lines) == 1
    assert contents(folder) == before
