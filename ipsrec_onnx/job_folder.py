"""The folder in which a job keeps what is done, so that a job that was killed can go on; hidden, beside its output.

    .candidates.parquet.1f0c2a77.job/
        job.json          what the job is: model, input, options, versions
        parts/            candidates of finished parts, one Parquet file each, below the folders of their partitions
        bad_rows/         their malformed rows, where these are set aside
        manifest.json     there once all is done, and what is left is to give the files their names
        lock              held by the job that works here

A file gets its name only when it is whole and on the disk: so whatever has a name is done. The lock is held for as
long as the job lives, and the kernel lets go of it when the process ends, however it ends.
"""

from __future__ import annotations

import contextlib
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TypeAlias

from ipsrec_onnx.atomic import hidden_name, make_folders, readable_errors, refuse_existing, sync
from ipsrec_onnx.errors import DataError, EngineError
from ipsrec_onnx.job_description import refuse_unfinished
from ipsrec_onnx.job_lock import LOCK, held_folder
from ipsrec_onnx.output_paths import LocalPaths, OutputPaths, StorePaths, part_files, refuse_other_folder
from ipsrec_onnx.store_job_folder import (
    StoreJobFolder,
    open_part_writer,
    open_store_job,
    refuse_unfinished_store_job,
    remove_finished_store_job,
)

_DESCRIPTION, _MANIFEST, _PARTS, _BAD_ROWS = "job.json", "manifest.json", "parts", "bad_rows"
_OLD = "replaced"  # an old output folder, until the new one has its place


class LocalJobFolder:
    """The files of one job; made by open_job_folder.

    Attributes:
        path: the folder.
        targets: where the results go.
        finished: have all files their names?
    """

    def __init__(self, path: Path, targets: LocalPaths) -> None:
        self.path, self.targets, self.finished = path, targets, False

    def make(self) -> None:
        """Make the folder, and those that parts lie in."""
        for path in (self.path, self.path / _PARTS, self.path / _BAD_ROWS):
            path.mkdir(exist_ok=True)

    def make_partition(self, partition: str) -> None:
        """Make the folders of a partition; make() comes before it.

        Raises:
            OSError: the job's folders are not there any more.
        """
        for name in (_PARTS, *(() if self.targets.bad_rows is None else (_BAD_ROWS,))):
            make_folders(self.path / name / partition, within=self.path / name)

    def part(self, name: str) -> Path:
        """Where the candidates of a part lie once they are done."""
        return self.path / _PARTS / name

    def bad_rows_part(self, name: str) -> Path:
        """Where the malformed rows of a part lie; there before its candidates are."""
        return self.path / _BAD_ROWS / name

    @property
    def whole(self) -> Path:
        """The candidates of all parts in one file, where that is asked for."""
        return self.path / "candidates.parquet"

    @property
    def whole_bad_rows(self) -> Path:
        """The malformed rows of all parts."""
        return self.path / "bad_rows.parquet"

    def look(self) -> None:
        """See what other processes have done by now: a disk says so at any time."""

    def num_done(self) -> int:
        """How many parts are done."""
        return len(part_files(self.path / _PARTS))

    def manifest(self) -> dict[str, Any] | None:
        """The manifest, where everything is done but giving the files their names; None before.

        Raises:
            DataError: it is broken.
        """
        return _read_json(self.path / _MANIFEST)

    def commit(self, manifest: dict[str, Any], *, overwrite: bool) -> None:
        """Say that all files are whole, and give them their names, the manifest last.

        Raises:
            DataError: as finish.
        """
        sync(self.path)
        _write_json(self.path / _MANIFEST, manifest)
        self.finish(overwrite=overwrite)

    def finish(self, *, overwrite: bool) -> None:
        """Give whole files their names; may be broken off and begun again at any point.

        Raises:
            DataError: somebody has made an output meanwhile, and it is not to be replaced.
        """
        targets = self.targets
        moves = [(self.path / _PARTS if targets.as_folder else self.whole, targets.candidates)]
        if targets.bad_rows is not None:
            moves.insert(0, (self.whole_bad_rows, targets.bad_rows))
        waiting = [(source, target) for source, target in moves if source.exists()]  # the others have their names
        _remove_unfinished(self.path / _PARTS)  # of a worker that has outlived its driver
        for _, target in waiting:
            refuse_existing(target, overwrite=overwrite)
        if targets.candidates in (target for _, target in waiting):
            refuse_other_folder(targets)
        _remove_old_account(targets)
        for source, target in waiting:
            if target.is_dir():
                target.rename(self.path / _OLD)
            source.replace(target)
        sync(targets.candidates.parent)
        (self.path / _MANIFEST).replace(targets.manifest)
        sync(targets.manifest.parent)
        self.finished = True


JobFolder: TypeAlias = LocalJobFolder | StoreJobFolder


def job_folder_path(targets: LocalPaths) -> Path:
    """The hidden folder of a job with these results."""
    return hidden_name(targets.candidates, "job")


def open_worker_folder(path: Path | None, targets: OutputPaths) -> JobFolder:
    """Open a job that another process holds, to write parts of it.

    Args:
        path: of the job's folder; None where it is in a store.
        targets: where the results go.
    """
    if isinstance(targets, StorePaths):
        return open_part_writer(targets)
    return LocalJobFolder(path or job_folder_path(targets), targets)


def refuse_other_job(folder: JobFolder, description: dict[str, Any]) -> None:
    """Have a worker stop whose job is not there: its driver may have died, and another job may have begun.

    Raises:
        EngineError: the folder is not there, or holds another job.
    """
    if isinstance(folder, StoreJobFolder):
        found = (folder.path / _DESCRIPTION).read_json()
    else:
        found = _read_description(folder.path)
    if found != description:
        raise EngineError(
            f"output {folder.targets.candidates}: a worker finds {'no' if found is None else 'another'} job there; "
            "give an output that all machines share, and that no other job writes"
        )


@contextlib.contextmanager
def open_job_folder(
    targets: OutputPaths, description: dict[str, Any], *, resume: bool, overwrite: bool
) -> Iterator[JobFolder]:
    """Begin a job, or go on with one that was broken off, and keep all others from its output meanwhile.

    When the block ends with an error, what is done stays for --resume; a folder without a finished part goes.

    Args:
        targets: where the results go.
        description: what the job is, as JSON; a job goes on only with the same.
        resume: go on with an unfinished job; begin one where there is none.
        overwrite: throw an unfinished job away that may not go on.

    Raises:
        DataError: another process has the output; an unfinished job is there and may neither go on nor be thrown away;
            or the disk is full.
    """
    if isinstance(targets, StorePaths):
        with open_store_job(targets, description, resume=resume, overwrite=overwrite) as stored:
            yield stored
        return
    path = job_folder_path(targets)
    with readable_errors(targets.candidates), held_folder(path, output=targets.candidates):
        folder = LocalJobFolder(path, targets)
        found = _read_description(path)
        if found is not None and not (resume and found == description):
            if not overwrite:
                done = LocalJobFolder(path, targets).num_done()
                refuse_unfinished(str(targets.candidates), found, description, done=done, resume=resume)
            found = None
        try:
            if found is None:
                _begin_anew(path, targets)
                _write_json(path / _DESCRIPTION, description)
            if folder.manifest() is None:
                folder.make()
            _remove_unfinished(path)
            yield folder
        finally:
            if folder.finished or (folder.manifest() is None and not folder.num_done()):
                _remove(path)


def remove_finished_job(targets: OutputPaths, description: dict[str, Any]) -> None:
    """Remove what is left of a job that was killed when all its results had their names already."""
    if isinstance(targets, StorePaths):
        remove_finished_store_job(targets, description)
        return
    path = job_folder_path(targets)
    if path.exists():
        with readable_errors(targets.candidates), held_folder(path, output=targets.candidates):
            if _read_description(path) in (description, None):
                _remove(path)


def refuse_unfinished_job(targets: OutputPaths) -> None:
    """Say early, before any work, that another job has the output, or an unfinished one is in the way.

    Raises:
        DataError: so it is.
    """
    if isinstance(targets, StorePaths):
        refuse_unfinished_store_job(targets)
        return
    path = job_folder_path(targets)
    if _read_description(path) is not None:
        with held_folder(path, output=targets.candidates):
            pass
        done = LocalJobFolder(path, targets).num_done()
        refuse_unfinished(str(targets.candidates), {}, {}, done=done, resume=False)


def _read_description(path: Path) -> dict[str, Any] | None:
    """What the job in a folder is; None where there is none, or it has not begun."""
    return _read_json(path / _DESCRIPTION)


def _read_json(path: Path) -> dict[str, Any] | None:
    """A JSON object of an unfinished job; None where the file is not there, empty for another JSON value."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(
            f"{path}: cannot be read ({error}); remove the folder {path.parent}, it is an unfinished job"
        ) from error
    return dict(found) if isinstance(found, dict) else {}


def _begin_anew(path: Path, targets: LocalPaths) -> None:
    """Throw an unfinished job away, but for the lock; an output that it was about to replace comes back."""
    if (path / _OLD).exists() and not targets.candidates.exists():
        (path / _OLD).rename(targets.candidates)
    for name in (_MANIFEST, _DESCRIPTION):  # first what says that there is something
        (path / name).unlink(missing_ok=True)
    sync(path)
    for entry in path.iterdir():
        if entry.is_dir():
            shutil.rmtree(entry)
        elif entry.name != LOCK:
            entry.unlink()


def _remove_unfinished(path: Path) -> None:
    """Remove files that were never whole; a folder of such a name is a partition."""
    for unfinished in path.rglob("*.tmp"):
        if not unfinished.is_dir():
            unfinished.unlink(missing_ok=True)


def _remove(path: Path) -> None:
    """Remove a folder that is held; what says what it is, and that it is held, at last."""
    for entry in path.iterdir():
        if entry.is_dir():
            shutil.rmtree(entry, ignore_errors=True)
        elif entry.name not in (_DESCRIPTION, LOCK):
            entry.unlink()
    for name in (_DESCRIPTION, LOCK):
        (path / name).unlink(missing_ok=True)
    with contextlib.suppress(OSError):  # another job may be about to begin in it
        path.rmdir()


def _remove_old_account(targets: LocalPaths) -> None:
    """An old manifest says nothing of the new candidates; nor do its malformed rows, where there are no new ones."""
    try:
        old = json.loads(targets.manifest.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        old = None
    name = f"{targets.candidates.name}.bad_rows.parquet"
    if targets.bad_rows is None and isinstance(old, dict) and (old.get("bad_rows") or {}).get("file") == name:
        targets.candidates.with_name(name).unlink(missing_ok=True)
    targets.manifest.unlink(missing_ok=True)


def _write_json(path: Path, value: dict[str, Any]) -> None:
    """Write a JSON file that is whole or not there."""
    temporary = path.with_name(f"{path.name}.tmp")
    temporary.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")
    sync(temporary)
    temporary.replace(path)
    sync(path.parent)
