"""Keeps a job's folder for one process at a time; the kernel lets go of it when the process ends, however it ends."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from ipsrec_onnx.errors import DataError

LOCK: Final = "lock"  # the file in the folder that is held


@contextlib.contextmanager
def held_folder(path: Path, *, output: Path) -> Iterator[None]:
    """Make a folder and hold it while the block runs.

    Args:
        path: the folder.
        output: what it is for, for the message.

    Raises:
        DataError: another process holds it.
    """
    lock = path / LOCK
    while True:
        path.mkdir(exist_ok=True)
        try:
            descriptor = os.open(lock, os.O_RDWR | os.O_CREAT, 0o666)
        except FileNotFoundError:  # the job that held it has finished meanwhile, and its folder is gone
            continue
        try:
            if not _lock(descriptor):
                raise DataError(f"output {output}: another job is writing it; wait for its end, or choose another name")
            try:
                still_there = os.path.samestat(os.fstat(descriptor), lock.stat())
            except FileNotFoundError:
                continue
            if still_there:
                yield
                return
        finally:
            os.close(descriptor)


def _lock(descriptor: int) -> bool:
    """Hold a file; False where another process does. A file system without locks lets everybody in."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno not in (errno.ENOTSUP, errno.ENOLCK, errno.ENOSYS):
            raise
    return True
