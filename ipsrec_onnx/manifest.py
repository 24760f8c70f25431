"""The manifest of a finished job: what it was, what it wrote, the account of every row; a resumed one has the same."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from ipsrec_onnx.approximate_recall import Recall
from ipsrec_onnx.errors import DataError
from ipsrec_onnx.job_folder import JobFolder
from ipsrec_onnx.output_paths import OutputPaths, StorePaths
from ipsrec_onnx.part_files import entry_of
from ipsrec_onnx.score_counts import ScoreCounts
from ipsrec_onnx.score_outputs import part_name
from ipsrec_onnx.store_job_folder import refuse_changed_files
from ipsrec_onnx.user_parts import UserPart
from ipsrec_onnx.users import Users

FORMAT_VERSION = 1


def manifest_of(
    folder: JobFolder,
    users: Users,
    parts: list[UserPart],
    *,
    job: dict[str, Any],
    counts: ScoreCounts,
    recall: Recall | None,
    entries: Mapping[UserPart, dict[str, Any]],
) -> dict[str, Any]:
    """Describe what a job has done; its files are whole and do not have their names yet.

    Args:
        folder: of the job.
        users: who was scored.
        parts: as plan_parts gave them.
        job: as it was begun.
        counts: the account.
        recall: how good approximate lists are.
        entries: of a folder's parts that somebody has described already, as part_entry gives them.

    Returns:
        job: as it was begun; counts: the account; approximate: how good its lists are, or None; candidates: a file
        each, with rows, bytes, SHA-256 and, of a folder's parts, the rows of the input that they are of; bad_rows:
        likewise, or None.
    """
    targets = folder.targets
    if targets.as_folder:
        candidates = [entries.get(part) or part_entry(folder, users, part) for part in parts]
    else:
        candidates = [entry_of(folder.whole, name=targets.candidates.name)]
    bad_rows = None if targets.bad_rows is None else entry_of(folder.whole_bad_rows, name=targets.bad_rows.name)
    return {
        "format_version": FORMAT_VERSION,
        "job": job,
        "counts": counts.to_json(),
        "approximate": None if recall is None else recall.to_json(),
        "candidates": candidates,
        "bad_rows": bad_rows,
    }


def part_entry(folder: JobFolder, users: Users, part: UserPart) -> dict[str, Any]:
    """Describe the file of a part that is done, and the rows of the input that it is of."""
    return {
        **entry_of(folder.part(part_name(part)), name=part_name(part)),
        "of": {"file": users.files[part.file].name, "first_row": part.first_row, "rows": part.num_rows},
    }


def read_manifest(targets: OutputPaths) -> dict[str, Any] | None:
    """The manifest of a finished output; None where there is none that can be read, or a file is not as it says."""
    if isinstance(targets, StorePaths):
        return _read_stored_manifest(targets)
    try:
        found = json.loads(targets.manifest.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return None
    if not isinstance(found, dict) or found.get("format_version") != FORMAT_VERSION:
        return None
    try:
        files = {
            targets.candidates / entry["file"] if targets.as_folder else targets.candidates: entry["bytes"]
            for entry in found["candidates"]
        }
        if targets.bad_rows is not None:
            files[targets.bad_rows] = found["bad_rows"]["bytes"]
        whole = all(path.is_file() and path.stat().st_size == size for path, size in files.items())
    except (OSError, KeyError, TypeError, ValueError):
        return None
    return found if whole and {"job", "counts"} <= found.keys() else None


def candidate_bytes(manifest: dict[str, Any]) -> int:
    """Size of all files of candidates."""
    return sum(int(entry["bytes"]) for entry in manifest["candidates"])


def _read_stored_manifest(targets: StorePaths) -> dict[str, Any] | None:
    found = targets.manifest.read_json()
    if found is None or found.get("format_version") != FORMAT_VERSION:
        return None
    try:
        refuse_changed_files(found, targets)
    except (DataError, KeyError, TypeError):
        return None
    return found if {"job", "counts"} <= found.keys() else None


def account(manifest: dict[str, Any], targets: OutputPaths) -> tuple[ScoreCounts, Recall | None]:
    """The counts of a manifest, and how good approximate lists are.

    Raises:
        DataError: somebody has changed it.
    """
    try:
        recall = manifest["approximate"]
        return ScoreCounts.from_json(manifest["counts"]), None if recall is None else Recall.from_json(recall)
    except (KeyError, TypeError, ValueError) as error:
        raise DataError(
            f"output {targets.candidates}: its manifest is broken ({error}); start over with --overwrite"
        ) from error
