"""What a job keeps in a store, where nothing can be renamed and nobody can hold a lock: the twin of job_folder.py.

    candidates/                               the output, or candidates.parquet
        part-00000-000000000000.parquet       under their final names at once
    .candidates.1f0c2a77.job/
        job.json                              what the job is: model, input, options, versions
        records/parts/part-...parquet.json    what is done: rows, bytes, SHA-256 and counts of each part
        parts/                                parts of an output that is one file
        bad_rows/                             malformed rows of the parts, where these are set aside
        manifest.json                         there once all is done
    candidates.manifest.json                  the last thing that is written, and the first that --overwrite removes

An object appears whole or not at all. One of a part's name may be of an older output: only what has a record is done.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ipsrec_onnx.atomic import hidden_name
from ipsrec_onnx.errors import DataError
from ipsrec_onnx.job_description import refuse_unfinished
from ipsrec_onnx.object_store import StorePath
from ipsrec_onnx.output_paths import StorePaths, refuse_outputs
from ipsrec_onnx.stored_file import StoredFile

_DESCRIPTION, _MANIFEST, _RECORDS, _PARTS, _BAD_ROWS = "job.json", "manifest.json", "records", "parts", "bad_rows"


class StoreJobFolder:
    """The files of one job in a store; other processes may be given it and write parts.

    Attributes:
        path: the hidden folder.
        targets: where the results go.
        finished: is the manifest in its place?
    """

    def __init__(self, path: StorePath, targets: StorePaths) -> None:
        self.path, self.targets, self.finished = path, targets, False
        self._done: frozenset[str] = frozenset()
        self.look()

    def look(self) -> None:
        """List what is done by now, by whatever process."""
        self._done = frozenset((self.path / _RECORDS).files())

    def make_partition(self, partition: str) -> None:
        """A store has no folders."""

    def part(self, name: str) -> StoredFile:
        """Where the candidates of a part lie once they are done."""
        folder = self.targets.candidates if self.targets.as_folder else self.path / _PARTS
        return self._file(folder / name, f"{_PARTS}/{name}")

    def bad_rows_part(self, name: str) -> StoredFile:
        """Where the malformed rows of a part lie; there before its candidates are."""
        return self._file(self.path / _BAD_ROWS / name, f"{_BAD_ROWS}/{name}")

    @property
    def whole(self) -> StoredFile:
        """The candidates of all parts in one file, where that is asked for."""
        return self._file(self.targets.candidates, "candidates.parquet")

    @property
    def whole_bad_rows(self) -> StoredFile:
        """The malformed rows of all parts."""
        return self._file(self.targets.bad_rows_name, "bad_rows.parquet")

    def num_done(self) -> int:
        """How many parts are done."""
        self.look()
        return sum(name.startswith(f"{_PARTS}/") for name in self._done)

    def manifest(self) -> dict[str, Any] | None:
        """The manifest, where everything is done but putting it in its place; None before."""
        return (self.path / _MANIFEST).read_json()

    def commit(self, manifest: dict[str, Any], *, overwrite: bool) -> None:
        """Say that all files are whole, and put the manifest in its place.

        Raises:
            DataError: as finish.
        """
        (self.path / _MANIFEST).write_json(manifest)
        self.finish(overwrite=overwrite)

    def finish(self, *, overwrite: bool) -> None:
        """Put the manifest in its place; may be broken off and begun again at any point.

        Args:
            overwrite: replace a manifest that somebody has put there meanwhile.

        Raises:
            DataError: there is one, and it is not to be replaced; or a file is not in the store as it was written.
        """
        manifest, target = self.manifest() or {}, self.targets.manifest
        if not overwrite and target.exists():
            raise DataError(f"output {target}: somebody has made it meanwhile; choose another name, or --overwrite")
        refuse_changed_files(manifest, self.targets)
        target.write_json(manifest)
        self.finished = True

    def _file(self, place: StorePath, name: str) -> StoredFile:
        return StoredFile(place, self.path / _RECORDS / f"{name}.json", done=f"{name}.json" in self._done)


def store_job_path(targets: StorePaths) -> StorePath:
    """The hidden folder of a job with these results."""
    candidates = targets.candidates
    return candidates.with_name(hidden_name(Path(candidates.name), "job").name)


@contextlib.contextmanager
def open_store_job(
    targets: StorePaths, description: dict[str, Any], *, resume: bool, overwrite: bool
) -> Iterator[StoreJobFolder]:
    """Begin a job, or go on with one that was broken off; arguments and errors are open_job_folder's.

    Nobody else is kept from the output: two jobs on it at a time are the caller's to avoid.
    """
    path = store_job_path(targets)
    found = (path / _DESCRIPTION).read_json()
    if found is not None and not (resume and found == description):
        if not overwrite:
            done = StoreJobFolder(path, targets).num_done()
            refuse_unfinished(str(targets.candidates), found, description, done=done, resume=resume)
        found = None
    if found is None:
        refuse_outputs(targets, overwrite=overwrite)
        _begin_anew(path, targets)
        (path / _DESCRIPTION).write_json(description)
    folder = StoreJobFolder(path, targets)
    try:
        yield folder
    finally:
        with contextlib.suppress(DataError):  # the results are there, or the error that brought us here matters more
            nothing_done = folder.manifest() is None and not folder.num_done()
            if nothing_done and not folder.finished:  # parts without a record would be in the way of the next job
                targets.candidates.remove()
            if nothing_done or folder.finished:
                path.remove()


def open_part_writer(targets: StorePaths) -> StoreJobFolder:
    """Open a job that another process has begun, to write parts of it."""
    return StoreJobFolder(store_job_path(targets), targets)


def remove_finished_store_job(targets: StorePaths, description: dict[str, Any]) -> None:
    """Remove what is left of a job that was killed when its manifest was in its place already."""
    path = store_job_path(targets)
    if (path / _DESCRIPTION).read_json() in (description, None):
        path.remove()


def refuse_unfinished_store_job(targets: StorePaths) -> None:
    """Say early, before any work, that an unfinished job is in the way.

    Raises:
        DataError: so it is.
    """
    path = store_job_path(targets)
    if (path / _DESCRIPTION).exists():
        done = StoreJobFolder(path, targets).num_done()
        refuse_unfinished(str(targets.candidates), {}, {}, done=done, resume=False)


def refuse_changed_files(manifest: dict[str, Any], targets: StorePaths) -> None:
    """Refuse an output whose files are not as its manifest says, as far as names and sizes show.

    Raises:
        DataError: a file is missing, has another size, or is there without being in the manifest.
    """
    expected = {entry["file"]: entry["bytes"] for entry in manifest["candidates"]}
    candidates = targets.candidates
    found = candidates.files() if targets.as_folder else {candidates.name: candidates.info().size}
    if targets.bad_rows is not None:
        expected[targets.bad_rows.name] = manifest["bad_rows"]["bytes"]
        found[targets.bad_rows.name] = targets.bad_rows.info().size
    for name in sorted(expected.keys() | found.keys()):
        if expected.get(name) != found.get(name):
            raise DataError(
                f"output {candidates}: {name} has {found.get(name)} bytes in the store, expected {expected.get(name)}; "
                "does another job write there? start over with --overwrite"
            )


def _begin_anew(path: StorePath, targets: StorePaths) -> None:
    """Remove an old output and an unfinished job; first what says that there is something."""
    old = (targets.manifest.read_json() or {}).get("bad_rows")
    targets.manifest.remove()
    (path / _DESCRIPTION).remove()
    path.remove()
    targets.candidates.remove()
    bad_rows = targets.bad_rows_name
    if targets.bad_rows is not None or (isinstance(old, dict) and old.get("file") == bad_rows.name):
        bad_rows.remove()
