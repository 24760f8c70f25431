"""Finds the Parquet files that an input names: a file, a folder, a pattern such as data/dt=*/part-*.parquet, or a URI.

Folders called key=value, between the input's root and a file, are Hive partitions: Spark, DuckDB, Polars and pandas
read them as columns. They are kept as they are spelt, for a folder output to have the same ones.
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterator, Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import NamedTuple
from urllib.parse import unquote

import pyarrow as pa
import pyarrow.fs as pafs

from ipsrec_onnx.errors import DataError
from ipsrec_onnx.uris import is_uri, open_file_system, shown, store_errors

_PARTITION = re.compile(r"[^=]+=.*", re.DOTALL)
_WILDCARD, _WILDCARD_OF_URI = re.compile(r"[*?[]"), re.compile(r"[*[]")  # a URI's ? begins its query


class FoundFile(NamedTuple):
    """A Parquet file of an input.

    Attributes:
        path: in its file system.
        name: path below the input's root.
        partition: the key=value folders of its name, joined by slashes; "" without any.
        size: in bytes.
        mtime_ns: when it was last written, nanoseconds since 1970; None where the file system does not know.
    """

    path: str
    name: str
    partition: str
    size: int
    mtime_ns: int | None


def find_files(source: str | Path) -> tuple[pafs.FileSystem, list[FoundFile]]:
    """Resolve an input to its file system and its files there, in the order of their paths.

    The root is the folder that is asked for or, of a pattern, the folder above its first name with a wildcard.

    Args:
        source: a file, a folder or a pattern, or a URI of one. In a pattern, `*` is anything within a name, `?` one
            character (in no URI), `[ab]` one of these, and `**` any number of folders. What matches and is a folder
            stands for the Parquet files below it. What exists under the very name is no pattern.

    Raises:
        DataError: nothing is there, or a pipe or device; or it cannot be opened.
    """
    try:
        with store_errors(source) if is_uri(source) else contextlib.nullcontext():
            found = _literal(source)
            return _matching(source) if found is None else found
    except UnicodeError as error:
        raise DataError(
            f"input {shown(source)}: its name, or that of a file in it, is no UTF-8 ({error}); rename the file"
        ) from error
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"input {shown(source)}: cannot be opened ({error}); check the path") from error


def is_partition(name: str) -> bool:
    """Is this the name of a key=value folder?"""
    return _PARTITION.fullmatch(name) is not None


def _literal(source: str | Path) -> tuple[pafs.FileSystem, list[FoundFile]] | None:
    """The files of a source that is there under its very name; None for a pattern.

    Raises:
        DataError: it is neither there nor a pattern; or it is a pipe or a device.
    """
    pattern = _is_pattern(source)
    file_system, root = _open(os.fspath(source))
    info = file_system.get_file_info(root)
    if info.type == pafs.FileType.NotFound:
        if pattern:
            return None
        raise DataError(f"input {shown(source)}: there is no such file or folder; check the path")
    if info.type == pafs.FileType.Unknown:  # opening a pipe would wait for a writer for ever
        raise DataError(
            f"input {shown(source)}: it is a pipe or a device, expected a Parquet file, a folder or a URI; Parquet is "
            "not read from front to back, so write a file first"
        )
    if info.type == pafs.FileType.File:
        return file_system, [_found(info, root.rsplit("/", 1)[-1])]
    below = [(entry, name) for entry, name in _entries(file_system, root) if _is_users_file(entry, name)]
    if not below:
        raise DataError(f"input {shown(source)}: the folder has no *.parquet file; give a folder that has some")
    return file_system, [_found(entry, "/".join(name)) for entry, name in below]


def _matching(source: str | Path) -> tuple[pafs.FileSystem, list[FoundFile]]:
    """The files that match a pattern.

    Raises:
        DataError: there are none.
    """
    root, patterns = _split_pattern(os.fspath(source))
    file_system, folder = _open(root)
    if file_system.get_file_info(folder).type != pafs.FileType.Directory:
        raise DataError(f"input {shown(source)}: there is no folder {shown(root)}; check the path")
    found = [
        _found(entry, "/".join(name))
        for entry, name in _entries(file_system, folder)
        if (patterns[-1] != "**" and _matches(name, patterns))
        or any(_matches(name[:depth], patterns) and _is_users_file(entry, name[depth:]) for depth in range(len(name)))
    ]
    if not found:
        raise DataError(
            f"input {shown(source)}: no Parquet file below {shown(root)} matches; check the pattern ([ itself is "
            "written [[])"
        )
    return file_system, found


def _open(path: str) -> tuple[pafs.FileSystem, str]:
    return open_file_system(path) if is_uri(path) else (pafs.LocalFileSystem(), path)


def _entries(file_system: pafs.FileSystem, root: str) -> Iterator[tuple[pafs.FileInfo, list[str]]]:
    """All files below a folder with the names on the way to them, in the order of their paths."""
    entries = file_system.get_file_info(pafs.FileSelector(root, recursive=True))
    for entry in sorted(entries, key=lambda entry: str(entry.path)):
        if entry.type == pafs.FileType.File:
            yield entry, entry.path[len(root) :].lstrip("/").split("/")


def _is_users_file(entry: pafs.FileInfo, name: Sequence[str]) -> bool:
    """Is this a file to read, where a folder above it was asked for?"""
    return entry.extension == "parquet" and not any(map(_is_hidden, name))


def _is_hidden(name: str) -> bool:
    """Is this another tool's note (_SUCCESS, _metadata), or unfinished? Spark, too, reads folders such as _day=1."""
    return name.startswith(".") or (name.startswith("_") and not is_partition(name))


def _found(entry: pafs.FileInfo, name: str) -> FoundFile:
    folders = name.split("/")[:-1]
    return FoundFile(entry.path, name, "/".join(filter(is_partition, folders)), entry.size, entry.mtime_ns)


def _is_pattern(source: str | Path) -> bool:
    text = os.fspath(source)
    wildcard, path = (_WILDCARD_OF_URI, text.partition("?")[0]) if is_uri(text) else (_WILDCARD, text)
    return wildcard.search(path) is not None


def _split_pattern(source: str) -> tuple[str, list[str]]:
    """Split a pattern into its root, up to the first name with a wildcard, and the patterns of the names below.

    Of a URI, the root is one, with the query if there is any; a %20 in the patterns is a space, as in the root.
    """
    uri = is_uri(source)
    path, mark, query = source.partition("?") if uri else (source, "", "")
    fixed = (_WILDCARD_OF_URI if uri else _WILDCARD).split(path, maxsplit=1)[0]
    root = fixed[: fixed.rfind("/") + 1]
    patterns = [name for name in path[len(root) :].split("/") if name]
    if uri:
        return root + mark + query, [unquote(name) for name in patterns]
    return root or ".", patterns


def _matches(names: Sequence[str], patterns: Sequence[str]) -> bool:
    """Do the names of a path match the patterns, one each, or any number of them a `**`?"""
    at = _with_no_folders({0}, patterns)
    for name in names:
        after = set()
        for number in at:
            if number == len(patterns):
                continue
            pattern = patterns[number]
            if _is_hidden(name) and not pattern.startswith(name[0]):  # as in a shell
                continue
            if pattern == "**":
                after.add(number)
            elif fnmatchcase(name, pattern):
                after.add(number + 1)
        at = _with_no_folders(after, patterns)
    return len(patterns) in at


def _with_no_folders(at: set[int], patterns: Sequence[str]) -> set[int]:
    """The places in a pattern that are reached, with those behind each `**` that stands for nothing."""
    reached = set(at)
    for number in range(len(patterns)):
        if number in reached and patterns[number] == "**":
            reached.add(number + 1)
    return reached
