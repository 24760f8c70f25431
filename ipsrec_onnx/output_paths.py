"""Where a scoring job's results go: names that nothing else has, and no file that the job reads."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias
from urllib.parse import unquote

import pyarrow.fs as pafs

from ipsrec_onnx.atomic import follow_link, refuse_existing
from ipsrec_onnx.errors import DataError
from ipsrec_onnx.input_files import is_partition
from ipsrec_onnx.object_store import StorePath, refuse_stored, store_path
from ipsrec_onnx.onnx_proto import external_data_files
from ipsrec_onnx.readable import why_unreadable
from ipsrec_onnx.staging import origin
from ipsrec_onnx.uris import is_uri, local_path, names_folder
from ipsrec_onnx.users import Users

_PART_NAME = re.compile(r"part-\d{5,}-\d{12,}\.parquet")  # as score_outputs.part_name gives it


@dataclass(frozen=True)
class LocalPaths:
    """Where a job's results go on this machine.

    Attributes:
        candidates: a Parquet file, or a folder of them.
        as_folder: which of the two.
        bad_rows: a Parquet file of malformed rows; None unless they are set aside.
        manifest: the JSON account of it all.
    """

    candidates: Path
    as_folder: bool
    bad_rows: Path | None
    manifest: Path

    @property
    def all(self) -> list[Path]:
        """All that are written."""
        return [path for path in (self.candidates, self.bad_rows, self.manifest) if path is not None]


@dataclass(frozen=True, eq=False)
class StorePaths:
    """Where a job's results go in a store.

    Attributes:
        candidates: a Parquet file, or a folder of them.
        as_folder: which of the two.
        bad_rows: a Parquet file of malformed rows; None unless they are set aside.
        manifest: the JSON account of it all.
    """

    candidates: StorePath
    as_folder: bool
    bad_rows: StorePath | None
    manifest: StorePath

    @property
    def all(self) -> list[StorePath]:
        """All that are written."""
        return [path for path in (self.candidates, self.bad_rows, self.manifest) if path is not None]

    @property
    def bad_rows_name(self) -> StorePath:
        """Where malformed rows lie if they are set aside, by this job or an older one."""
        return self.candidates.with_name(f"{self.candidates.name}.bad_rows.parquet")


OutputPaths: TypeAlias = LocalPaths | StorePaths


def output_paths(output: str | Path, *, bad_rows: bool) -> OutputPaths:
    """Name the results of a job; `bad_rows` says whether malformed rows are set aside.

    A name that ends in a slash is a folder's, for there is nothing else that it could be; it has to be a string, for a
    Path drops the slash. A link is followed.

    Raises:
        DataError: as refuse_existing, for a name that could not be written even with overwrite.
    """
    output = local_path(output)
    if is_uri(output):
        return _store_paths(output, bad_rows=bad_rows)
    return paths_on_disk(output, bad_rows=bad_rows)


def paths_on_disk(output: str | Path, *, bad_rows: bool) -> LocalPaths:
    """As output_paths, for a path of this machine."""
    refuse_existing(output, overwrite=True)
    candidates = follow_link(Path(output))
    return LocalPaths(
        candidates=candidates,
        as_folder=str(output).endswith("/"),
        bad_rows=candidates.with_name(f"{candidates.name}.bad_rows.parquet") if bad_rows else None,
        manifest=candidates.with_name(f"{candidates.name}.manifest.json"),
    )


def folder_on_disk(targets: OutputPaths) -> Path:
    """Where big files of a job may lie while it runs: beside the output, or where this machine keeps such files."""
    if isinstance(targets, StorePaths):
        return Path(tempfile.gettempdir())
    return targets.manifest.absolute().parent


def _store_paths(output: str | Path, *, bad_rows: bool) -> StorePaths:
    candidates = store_path(output)
    if not candidates.name:
        raise DataError(f"output {candidates} has no name of its own; name a file or folder in it")
    return StorePaths(
        candidates=candidates,
        as_folder=names_folder(output),
        bad_rows=candidates.with_name(f"{candidates.name}.bad_rows.parquet") if bad_rows else None,
        manifest=candidates.with_name(f"{candidates.name}.manifest.json"),
    )


def refuse_outputs(targets: OutputPaths, *, overwrite: bool) -> None:
    """Say early, before any work, whether the results could be written.

    Raises:
        DataError: as refuse_existing; or what is to be replaced is a folder of something else.
    """
    if isinstance(targets, StorePaths):
        _refuse_stored_outputs(targets, overwrite=overwrite)
        return
    for path in targets.all:
        refuse_existing(path, overwrite=overwrite)
        if path.is_dir() and not (path == targets.candidates and targets.as_folder):
            raise DataError(
                f"output {path} is a folder, expected the name of a file; choose another name, or end it with / for a "
                "folder of parts"
            )
    refuse_other_folder(targets)


def refuse_partitions(targets: OutputPaths, users: Users, columns: list[str]) -> None:
    """Refuse a folder output whose readers would have two columns of one name.

    Raises:
        DataError: a key of the input's key=value folders is a column of the candidates.
    """
    taken = {name.casefold() for name in columns}  # DuckDB and Spark do not look at the case
    if targets.as_folder:
        for file in users.files:
            for folder in filter(None, file.partition.split("/")):
                key = unquote(folder.partition("=")[0])
                if key.casefold() in taken:
                    raise DataError(
                        f"input {users.source}: {file.name} lies in a folder {folder}, and {key} is a column of the "
                        f"candidates, {columns}, so readers of an output folder would mistake one for the other; "
                        "write one file (--output without a slash at its end), or name the folders otherwise"
                    )


def _refuse_stored_outputs(targets: StorePaths, *, overwrite: bool) -> None:
    for path in targets.all:
        is_folder = path == targets.candidates and targets.as_folder
        refuse_stored(path, overwrite=overwrite or is_folder)
        if is_folder and path.is_file():
            raise DataError(f"output {path} is a file, expected a folder or nothing; choose another name")
        if path.is_dir() and not is_folder:
            raise DataError(
                f"output {path} is a folder, expected the name of a file; choose another name, or end it with / for a "
                "folder of parts"
            )
    if targets.as_folder:
        for name in targets.candidates.files():
            if not is_part(name):
                raise _holds_other(targets, name)
            if not overwrite:
                raise DataError(
                    f"output {targets.candidates} exists already; choose another name, or replace it with --overwrite"
                )


def refuse_other_folder(targets: LocalPaths) -> None:
    """Refuse to replace a folder that holds anything but parts of candidates.

    Raises:
        DataError: it does.
    """
    if targets.as_folder and targets.candidates.is_dir():
        for entry in _foreign_entries(targets.candidates):
            raise _holds_other(targets, str(entry.relative_to(targets.candidates)))


def is_part(name: str) -> bool:
    """Is this, below the folder of an output, a part of candidates, perhaps in the folders of partitions?"""
    *folders, file = name.split("/")
    return all(is_partition(folder) for folder in folders) and _PART_NAME.fullmatch(file) is not None


def _holds_other(targets: OutputPaths, name: str) -> DataError:
    return DataError(
        f"output {targets.candidates}: the folder there holds {name!r}, which is no part of candidates, so it is not "
        "replaced; choose another name"
    )


def _foreign_entries(folder: Path) -> Iterator[Path]:
    """What is neither a part nor the folder of a partition that holds nothing else."""
    for entry in folder.iterdir():
        if entry.is_dir() and not entry.is_symlink() and is_partition(entry.name):
            yield from _foreign_entries(entry)
        elif not (entry.is_file() and _PART_NAME.fullmatch(entry.name)):
            yield entry


def part_files(folder: Path | StorePath) -> Sequence[Path | StorePath]:
    """The parts in a folder and in those of partitions below it, in the order of their rows."""
    if isinstance(folder, StorePath):
        names = sorted(filter(is_part, folder.files()), key=lambda name: name.rpartition("/")[2])
        return [folder / name for name in names]
    parts = (path for path in folder.rglob("part-*.parquet") if _PART_NAME.fullmatch(path.name) and path.is_file())
    return sorted(parts, key=lambda path: path.name)


def refuse_report(report: str | Path, targets: OutputPaths, *, overwrite: bool) -> None:
    """Say early, before any work, whether the page of a report could be written.

    Raises:
        DataError: as refuse_existing; or the name is a folder's, one of the results', or lies in their folder.
    """
    path = refuse_existing(report, overwrite=overwrite)
    if path.is_dir():
        raise DataError(f"report {path} is a folder, expected the name of a file; choose another name")
    if isinstance(targets, StorePaths):
        return
    real = path.resolve()
    for target in targets.all:
        if real == target.resolve() or (targets.as_folder and real.is_relative_to(target.resolve())):
            raise DataError(f"report {path}: output {target} is written there; choose another name")


def refuse_inputs(
    targets: OutputPaths,
    users: Users,
    *,
    model: str | Path,
    allow_items: str | Path | None,
    deny_items: str | Path | None,
    report: str | Path | None = None,
    previous: Sequence[Path] = (),
) -> None:
    """Refuse an output, the page of the report among them, that would take the place of an input.

    Raises:
        DataError: an output is an earlier one that is carried over, a users file, the model file or its external data,
            or the allow or deny list.
    """
    if isinstance(targets, StorePaths):
        given = [("the model file", model), ("the allow list", allow_items), ("the deny list", deny_items)]
        _refuse_stored_inputs(targets, users, [*given, *(("what --since carries over", path) for path in previous)])
        return
    inputs = [
        ("the model file", model),
        *(("the model's external data", Path(model).parent / name) for name in _external_data(model)),
        ("the allow list", allow_items),
        ("the deny list", deny_items),
        *(("what --since carries over", path) for path in previous),
    ]
    if isinstance(users.file_system, pafs.LocalFileSystem):
        inputs += [("one of the input's files", file.path) for file in users.files]
    for output in [*targets.all, *([] if report is None else [Path(report)])]:
        for name, path in inputs:
            if path is not None and _same_file(output, path):
                raise DataError(f"output {output} is {name}; choose another name")
            if path is not None and targets.as_folder and Path(path).resolve().is_relative_to(output.resolve()):
                raise DataError(f"output {output}: {name} lies in it; choose another name")


def _refuse_stored_inputs(targets: StorePaths, users: Users, given: Sequence[tuple[str, str | Path | None]]) -> None:
    """Refuse an output in the store that would take the place of an input there."""
    for name, path in given:
        uri = "" if path is None else origin(path)
        for output in targets.all:
            # By their names alone: an input may have been opened with other credentials.
            if is_uri(uri) and f"{store_path(uri).path}/".startswith(f"{output.path}/"):
                raise DataError(f"output {output} is {name}, or holds it; choose another name")
    for file in users.files:
        for output in targets.all:
            place = StorePath(users.file_system, file.path, file.path, "")
            if place.is_in(output):
                raise DataError(f"output {output} is one of the input's files, or holds it; choose another name")


def _external_data(model: str | Path) -> list[str]:
    """Files beside a model that its graph names; none where it cannot be read, for whoever opens it will say why."""
    return external_data_files(model) if why_unreadable(Path(model)) is None else []


def _same_file(output: Path, path: str | Path) -> bool:
    try:
        return output.samefile(path)
    except OSError:  # one of them is not there
        return False
