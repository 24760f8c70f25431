"""Outputs that are there whole or not at all: written under a temporary name beside the target, then renamed."""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

from ipsrec_onnx.errors import DataError

_NO_ROOM = {errno.ENOSPC: "no space is left", errno.EDQUOT: "the quota is used up", errno.EFBIG: "the file is too big"}


def refuse_existing(path: str | Path, *, overwrite: bool) -> Path:
    """Say early, before any work, whether an output could be written.

    Raises:
        DataError: the target exists and overwrite is False, or its parent is no folder or cannot be written to.
    """
    target = Path(path)
    if not target.name:
        raise DataError(f"output {str(target)!r} has no name of its own; name a file or folder in it")
    if os.path.lexists(target) and not overwrite:
        raise DataError(f"output {target} exists already; choose another name, or replace it with --overwrite")
    parent = target.parent
    if not parent.is_dir():
        found = "is a file" if parent.exists() else "is not there"
        raise DataError(f"output {target}: folder {parent} {found}; make the folder first, or choose another")
    if not os.access(parent, os.W_OK | os.X_OK):
        raise DataError(f"output {target}: folder {parent} cannot be written to; choose another, or ask for the right")
    return target


@contextlib.contextmanager
def atomic_file(path: str | Path, *, overwrite: bool = False) -> Iterator[Path]:
    """Give a temporary name to write to; the file takes the name `path` when the block ends without an error.

    On an error in the block, nothing is left, and an old file of that name stays as it was.

    Args:
        path: the file to make.
        overwrite: replace an existing file.

    Yields:
        A name beside the target; an empty file of that name is there already.

    Raises:
        DataError: as refuse_existing; or the target is a folder; or the disk is full.
    """
    target = refuse_existing(path, overwrite=overwrite)
    if target.is_dir():
        raise DataError(f"output {target} is a folder, expected the name of a file; choose another name")
    temporary = _temporary(target)
    with _readable_errors(target), _removed_on_error(temporary, temporary.unlink):
        temporary.touch(exist_ok=False)
        yield temporary
        _sync(temporary)
        refuse_existing(target, overwrite=overwrite)  # somebody may have made it while we wrote
        temporary.replace(target)
    _sync(target.parent)


@contextlib.contextmanager
def atomic_folder(path: str | Path, *, marker: str, overwrite: bool = False) -> Iterator[Path]:
    """Give a temporary folder to fill; it takes the name `path` when the block ends without an error.

    Args:
        path: the folder to make.
        marker: a file that each folder of this kind has. Overwriting deletes the old folder, so one that is
            neither empty nor has the marker is never replaced: it is something else.
        overwrite: replace an existing folder of the same kind.

    Yields:
        An empty folder beside the target.

    Raises:
        DataError: as refuse_existing; or the target is a file, or a folder of another kind; or the disk is full.
    """
    target = refuse_existing(path, overwrite=overwrite)
    _refuse_other_kind(target, marker)
    temporary = _temporary(target)
    with _readable_errors(target), _removed_on_error(temporary, lambda: shutil.rmtree(temporary)):
        temporary.mkdir()
        yield temporary
        for part in sorted(temporary.rglob("*")):
            _sync(part)
        _sync(temporary)
        refuse_existing(target, overwrite=overwrite)  # somebody may have made it while we wrote
        _replace_folder(temporary, target, marker)
    _sync(target.parent)


def _refuse_other_kind(target: Path, marker: str) -> None:
    """A folder can only take the place of an empty one or one of its own kind."""
    if target.is_symlink() or (target.exists() and not target.is_dir()):
        raise DataError(f"output {target} is a file or a link, expected the name of a folder; choose another name")
    if target.is_dir() and not (target / marker).is_file() and any(target.iterdir()):
        raise DataError(
            f"output {target}: the folder there has no {marker}, so it is not replaced; choose another name"
        )


def _replace_folder(temporary: Path, target: Path, marker: str) -> None:
    """Rename temporary to target; an old folder steps aside first and comes back if that fails."""
    if not target.exists():
        temporary.rename(target)
        return
    _refuse_other_kind(target, marker)
    old = _temporary(target)
    target.rename(old)
    try:
        temporary.rename(target)
    except BaseException:
        old.rename(target)
        raise
    shutil.rmtree(old, ignore_errors=True)


def _temporary(target: Path) -> Path:
    """A hidden name that nobody else uses, on the same file system as the target."""
    return target.with_name(f".{target.name}.{secrets.token_hex(4)}.tmp")


@contextlib.contextmanager
def _removed_on_error(temporary: Path, remove: Callable[[], None]) -> Iterator[None]:
    """Leave nothing half-written, also when the block is interrupted."""
    try:
        yield
    except BaseException:
        if temporary.exists():
            with contextlib.suppress(OSError):  # the error that brought us here matters more
                remove()
        raise


@contextlib.contextmanager
def _readable_errors(target: Path) -> Iterator[None]:
    """Turn the errors of a full or read-only disk into a DataError; others pass: they may be about an input."""
    try:
        yield
    except OSError as error:
        if error.errno in _NO_ROOM:
            found = _NO_ROOM[error.errno]
            raise DataError(f"output {target}: {found}; make room, or choose another folder") from error
        if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS) and _about(error, target):
            raise DataError(f"output {target}: cannot be written ({error.strerror}); choose another folder") from error
        raise


def _about(error: OSError, target: Path) -> bool:
    """Is this error about our temporary file or folder, rather than about an input?"""
    prefix = os.fspath(target.with_name(f".{target.name}."))
    return isinstance(error.filename, str | os.PathLike) and os.fspath(error.filename).startswith(prefix)


def _sync(path: Path) -> None:
    """Have the disk hold a file, or the names in a folder, before the rename that makes them visible."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno != errno.EINVAL:  # some network file systems cannot sync a folder
            raise
    finally:
        os.close(descriptor)
