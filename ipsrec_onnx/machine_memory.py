"""How much memory this process may have: what the machine has left, or what a container allows."""

from __future__ import annotations

import sys
from pathlib import Path

_PROC = Path("/proc")
_CGROUPS = Path("/sys/fs/cgroup")
_PAGE_CACHE = ("inactive_file", "total_inactive_file")  # of v2 and v1: counted as used, and given up when asked for
_UNLIMITED = 1 << 60  # cgroup v1 says "no limit" by a number around 2 ** 63


def resident_memory() -> int:
    """Bytes of memory that this process has now; 0 where the system does not say."""
    return _field(_PROC / "self" / "status", "VmRSS") or 0


def held_memory(mapped_bytes: int) -> int:
    """Bytes that this process has now and the system cannot take; 0 where the system does not say.

    Args:
        mapped_bytes: of files that arrays are mapped from: pages of theirs are given up where memory is short. Those of
            libraries are counted, for they are always needed.
    """
    kinds = (_field(_PROC / "self" / "status", name) or 0 for name in ("RssAnon", "RssShmem"))
    return max(sum(kinds), resident_memory() - mapped_bytes)


def peak_memory() -> int:
    """Bytes of memory that this process has had at most, since it began; 0 where the system does not say."""
    return _field(_PROC / "self" / "status", "VmHWM") or 0


def available_memory() -> int:
    """Bytes that this process may have in all, with what it has now: what is free on the machine and in its cgroups.

    Where the system does not say (it is no Linux), there is no limit that we know of.
    """
    free = [_field(_PROC / "meminfo", "MemAvailable"), *(_left(*cgroup) for cgroup in _cgroups())]
    known = [number for number in free if number is not None]
    return resident_memory() + min(known) if known else sys.maxsize


def _left(folder: Path, limit_name: str, used_name: str) -> int | None:
    """Bytes that a cgroup has left; None without a limit."""
    limit, used = _number(folder / limit_name), _number(folder / used_name)
    if limit is None or used is None or limit > _UNLIMITED:
        return None
    statistics = _lines(folder / "memory.stat")
    cache = max((int(words[1]) for words in statistics if words[0] in _PAGE_CACHE), default=0)
    return max(0, limit - used + cache)


def _cgroups() -> list[tuple[Path, str, str]]:
    """The cgroups of this process and all above them: (folder, file of the limit, file of what is used)."""
    found = []
    for words in _lines(_PROC / "self" / "cgroup", separator=":"):
        if len(words) < 3 or (words[1] and "memory" not in words[1].split(",")):
            continue
        root, names = (
            (_CGROUPS / "memory", ("memory.limit_in_bytes", "memory.usage_in_bytes"))
            if words[1]
            else (_CGROUPS, ("memory.max", "memory.current"))
        )
        inside = root / words[2].lstrip("/")
        # In a container the path may be the host's, of which only the root can be seen.
        folders = {root, inside, *(parent for parent in inside.parents if root in parent.parents)}
        found += [(folder, *names) for folder in sorted(folders)]
    return found


def _field(path: Path, name: str) -> int | None:
    """A field of a file of /proc whose numbers are in kB, in bytes."""
    for words in _lines(path):
        if words[0] == f"{name}:":
            return int(words[1]) * 1024
    return None


def _number(path: Path) -> int | None:
    words = next(iter(_lines(path)), ["max"])
    return int(words[0]) if words[0].isdecimal() else None


def _lines(path: Path, separator: str | None = None) -> list[list[str]]:
    """The words of each line; nothing where there is no such file."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, ValueError):
        return []
    return [line.split(separator, 2) for line in text.splitlines() if line.strip()]
