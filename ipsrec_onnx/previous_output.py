"""Checks that an earlier output can be carried over: whole, with fingerprints, the same job but for its input."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Final

from ipsrec_onnx.atomic import follow_link
from ipsrec_onnx.carried_lists import PreviousFile, PreviousOutput
from ipsrec_onnx.errors import DataError
from ipsrec_onnx.job_description import first_difference
from ipsrec_onnx.manifest import FORMAT_VERSION

# What a job may have of its own: no user's list depends on it.
_OWN: Final = ("input", "output", "part_rows", "parts")


def manifest_path(since: str | Path) -> Path:
    """Where the manifest of an output lies; a link is followed.

    Raises:
        DataError: the path has no name.
    """
    path = follow_link(Path(since))
    if not path.name:
        raise DataError(f"--since {str(since)!r} has no name of its own; give the file or folder of an earlier output")
    return path.with_name(f"{path.name}.manifest.json")


def open_previous(since: str | Path, description: dict[str, Any]) -> PreviousOutput:
    """Find the candidates of an earlier job, by its manifest.

    Args:
        since: the output of that job, a file or a folder.
        description: of the job that wants to carry lists over, as describe_job gave it.

    Raises:
        DataError: the output is not there, not whole, has no fingerprints, or is of another model, other options or
            other versions; names the first difference.
    """
    manifest = _read_manifest(since)
    try:
        found, entries = dict(manifest["job"]), [dict(entry) for entry in manifest["candidates"]]
        files = [(str(entry["file"]), int(entry["rows"]), int(entry["bytes"])) for entry in entries]
        fingerprints = bool(found["options"].get("fingerprints", False))
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise _broken(since, f"{type(error).__name__} {error}") from error
    if not fingerprints:
        raise DataError(
            f"--since {since}: it has no fingerprints of histories; score it with --fingerprints (or --since), or "
            "leave --since out"
        )
    wanted = {name: value for name, value in description.items() if name not in _OWN}
    own = {name: value for name, value in found.items() if name not in _OWN}
    if own != wanted:
        raise DataError(
            f"--since {since}: it is of another job: {first_difference(own, wanted)}; its lists may be others, so "
            "score without --since"
        )
    folder = found.get("output") == "folder"
    return PreviousOutput(str(since), tuple(_file(since, *file, folder=folder) for file in files))


def _file(since: str | Path, name: str, rows: int, size: int, *, folder: bool) -> PreviousFile:
    """A file that a manifest names, with as many bytes as it says."""
    if rows < 0 or Path(name).is_absolute() or ".." in Path(name).parts:
        raise _broken(since, f"it names {name!r} of {rows} rows")
    path = Path(since) / name if folder else Path(since)
    try:
        found = path.stat().st_size if path.is_file() else None
    except OSError as error:
        raise DataError(f"--since {since}: {path} cannot be read ({error}); check the path") from error
    if found != size:
        raise DataError(
            f"--since {since}: {path} has {found if found is not None else 'no'} bytes, its manifest says {size}; give "
            "an output that is whole, or leave --since out"
        )
    return PreviousFile(str(path.absolute()), rows)


def _read_manifest(since: str | Path) -> dict[str, Any]:
    path = manifest_path(since)
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(
            f"--since {since}: its manifest {path} cannot be read ({error}); give the output of a finished job, or "
            "leave --since out"
        ) from error
    if not isinstance(found, dict) or found.get("format_version") != FORMAT_VERSION:
        raise _broken(since, f"expected format_version {FORMAT_VERSION}")
    return found


def _broken(since: str | Path, reason: str) -> DataError:
    return DataError(
        f"--since {since}: its manifest {manifest_path(since)} is broken ({reason}); give the output of a finished "
        "job, or leave --since out"
    )
