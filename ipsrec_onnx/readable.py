"""Why a file cannot be read, found out at the border instead of in the middle of a library."""

from __future__ import annotations

import stat
from pathlib import Path


def why_unreadable(path: Path) -> str | None:
    """Look at a file and read its first byte.

    Returns:
        What is wrong, as the middle of a message; None for a file that can be read.
    """
    try:
        mode = path.stat().st_mode
        if stat.S_ISDIR(mode):
            return "it is a folder"
        if not stat.S_ISREG(mode):  # opening a pipe would wait for its other end
            return "it is a device or a pipe, no regular file"
        with path.open("rb") as file:
            file.read(1)
    except (FileNotFoundError, NotADirectoryError):
        return "there is no such file"
    except OSError as error:
        return f"it cannot be read ({error.strerror})"
    return None
