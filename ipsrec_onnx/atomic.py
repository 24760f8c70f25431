"""Outputs that are there whole or not at all: written under a temporary name beside the target, then renamed.

A temporary is hidden, and locked for as long as its process lives. One that nobody holds is what a killed process left,
and the next output of that name removes it.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import os
import secrets
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

from ipsrec_onnx.errors import DataError

_NO_ROOM = {errno.ENOSPC: "no space is left", errno.EDQUOT: "the quota is used up", errno.EFBIG: "the file is too big"}
_STALE_S = 60.0  # a younger temporary may belong to a process that is about to lock it


def refuse_existing(path: str | Path, *, overwrite: bool) -> Path:
    """Say early, before any work, whether an output could be written.

    Raises:
        DataError: the target exists and overwrite is False, or is a device or pipe; its name is too long; or its parent
            is no folder or cannot be written to.
    """
    target = Path(path)
    if not target.name:
        raise DataError(f"output {str(target)!r} has no name of its own; name a file or folder in it")
    with readable_errors(target):
        _look_at(target)
        if target.exists() and not target.is_file() and not target.is_dir():
            raise DataError(f"output {target} is a device or a pipe, expected a file or folder; choose another name")
    if os.path.lexists(target) and not overwrite:
        raise DataError(f"output {target} exists already; choose another name, or replace it with --overwrite")
    parent = target.parent
    if not parent.is_dir():
        found = "is a file" if parent.exists() else "is not there"
        raise DataError(f"output {target}: folder {parent} {found}; make the folder first, or choose another")
    if not os.access(parent, os.W_OK | os.X_OK):
        raise DataError(f"output {target}: folder {parent} cannot be written to; choose another, or ask for the right")
    return target


def follow_link(target: Path) -> Path:
    """Where an output is written: a link stays, and what it points to is written, as the shell's `>` does."""
    return Path(os.path.realpath(target)) if target.is_symlink() else target


@contextlib.contextmanager
def atomic_file(path: str | Path, *, overwrite: bool = False) -> Iterator[Path]:
    """Give a temporary name to write to; the file takes the name `path` when the block ends without an error.

    On an error in the block, nothing is left, and an old file of that name stays as it was.

    Args:
        path: the file to make. A link is followed: it stays, and the file that it points to is made or replaced.
        overwrite: replace an existing file.

    Yields:
        A name beside the target; an empty file of that name is there already.

    Raises:
        DataError: as refuse_existing; or the target is a folder; or the disk is full.
    """
    target = refuse_existing(follow_link(refuse_existing(path, overwrite=overwrite)), overwrite=overwrite)
    if target.is_dir():
        raise DataError(f"output {target} is a folder, expected the name of a file; choose another name")
    with readable_errors(target), _temporary(target, as_folder=False) as temporary:
        yield temporary
        sync(temporary)
        refuse_existing(target, overwrite=overwrite)  # somebody may have made it while we wrote
        temporary.replace(target)
    sync(target.parent)


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
    with readable_errors(target), _temporary(target, as_folder=True) as temporary:
        yield temporary
        for part in sorted(temporary.rglob("*")):
            sync(part)
        sync(temporary)
        refuse_existing(target, overwrite=overwrite)  # somebody may have made it while we wrote
        _replace_folder(temporary, target, marker)
    sync(target.parent)


@contextlib.contextmanager
def scratch_folder(target: Path) -> Iterator[Path]:
    """Give an empty hidden folder beside a target, on the same file system, which is gone when the block ends."""
    with readable_errors(target), _temporary(target, as_folder=True) as temporary:
        yield temporary
        _remove(temporary)


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
    # Not a temporary name: until the new folder has taken its place, this is the only one and must not be cleaned up.
    old = target.with_name(f"{_prefix(target)}{secrets.token_hex(4)}.old")
    target.rename(old)
    try:
        temporary.rename(target)
    except BaseException:
        old.rename(target)
        raise
    shutil.rmtree(old, ignore_errors=True)


@contextlib.contextmanager
def _temporary(target: Path, *, as_folder: bool) -> Iterator[Path]:
    """Make a hidden file or folder beside the target and hold it; leave nothing of it when the block fails."""
    _remove_stale(target)
    temporary = target.with_name(f"{_prefix(target)}{secrets.token_hex(4)}.tmp")
    try:
        if as_folder:
            temporary.mkdir()
        else:
            temporary.touch(exist_ok=False)
        with contextlib.ExitStack() as held:
            with contextlib.suppress(OSError):  # a file system without locks: nothing is ever cleaned up there
                held.enter_context(_lock(temporary))
            yield temporary
    except BaseException:
        with contextlib.suppress(OSError):  # the error that brought us here matters more
            _remove(temporary)
        raise


def hidden_name(target: Path, ending: str) -> Path:
    """A hidden name beside a target, always the same for the same target and ending."""
    return target.with_name(f"{_prefix(target)}{ending}")


def _prefix(target: Path) -> str:
    """How the temporary names of a target begin; the target's own name may fill all 255 bytes that a name can have."""
    digest = hashlib.sha256(os.fsencode(target.name)).hexdigest()
    return f".{target.name[:40]}.{digest[:8]}."


def _remove_stale(target: Path) -> None:
    """Remove what killed processes left of this target: old enough, and nobody holds it."""
    with contextlib.suppress(OSError):  # a folder that can be written to but not listed
        for path in target.parent.iterdir():
            if path.name.startswith(_prefix(target)) and path.suffix == ".tmp":
                with contextlib.suppress(OSError):
                    if time.time() - path.stat().st_mtime > _STALE_S:
                        with _lock(path):
                            _remove(path)


@contextlib.contextmanager
def _lock(path: Path) -> Iterator[None]:
    """Hold a file or folder; the kernel lets go of it when the process ends, however it ends.

    Raises:
        OSError: another one holds it, or the file system has no locks.
    """
    descriptor = os.open(path, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    finally:
        os.close(descriptor)


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink()


def _look_at(target: Path) -> None:
    """Raise what keeps us from even looking, such as a name that is too long; that nothing is there is fine."""
    with contextlib.suppress(FileNotFoundError, NotADirectoryError):
        target.lstat()


@contextlib.contextmanager
def readable_errors(target: Path) -> Iterator[None]:
    """Turn the errors of a full or read-only disk into a DataError; others pass: they may be about an input.

    Raises:
        DataError: no room is left; or what the error is about is the target or has a hidden name of it, and it may not
            be written, or is gone.
    """
    try:
        yield
    except OSError as error:
        if error.errno in _NO_ROOM:
            found = _NO_ROOM[error.errno]
            raise DataError(f"output {target}: {found}; make room, or choose another folder") from error
        if error.errno == errno.ENAMETOOLONG and _about(error, target):
            raise DataError(f"output {target}: the name is too long; choose a shorter one") from error
        gone = (errno.ENOENT, errno.ENOTDIR, errno.ESTALE)
        if error.errno in gone and _about(error, target) and not Path(error.filename).parent.is_dir():
            raise DataError(
                f"output {target}: {error.filename} was removed while the job wrote it; keep the folder, and run again"
            ) from error
        if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS, *gone) and _about(error, target):
            raise DataError(f"output {target}: cannot be written ({error.strerror}); choose another folder") from error
        raise


def _about(error: OSError, target: Path) -> bool:
    """Is this error about the target or a temporary of it, rather than about an input?"""
    if not isinstance(error.filename, str | os.PathLike):
        return False
    name = os.fspath(error.filename)
    return name == os.fspath(target) or name.startswith(os.fspath(target.with_name(_prefix(target))))


def make_folders(path: Path, *, within: Path) -> None:
    """Make a folder and those above it within another, each on the disk in the one above; nothing where it is there.

    Raises:
        OSError: the folder that they lie in is not there: who has removed it wants no new one.
    """
    if path != within and not path.is_dir():
        make_folders(path.parent, within=within)
        path.mkdir(exist_ok=True)  # another thread may be faster
        sync(path.parent)


def sync(path: Path) -> None:
    """Have the disk hold a file, or the names in a folder, before the rename that makes them visible."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno != errno.EINVAL:  # some network file systems cannot sync a folder
            raise
    finally:
        os.close(descriptor)
