"""A file of a job that is kept in a store: sent whole, and then a record of it; whatever has a record is done."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from ipsrec_onnx.errors import DataError
from ipsrec_onnx.object_store import StorePath

COUNTS_KEY = "ipsrec.counts"  # in the metadata of each part: what it counts


@dataclass(frozen=True, eq=False)
class StoredFile:
    """Where a file of a job lies in a store, and where its record does.

    An old output may have files of the same names, so that a name alone says nothing; the record also spares reading
    the file again for the manifest.

    Attributes:
        place: of the Parquet file.
        record: JSON: its rows, bytes and SHA-256, and what it counts.
        done: was the record there when the job's files were listed?
    """

    place: StorePath
    record: StorePath
    done: bool

    def __str__(self) -> str:
        return str(self.place)

    def exists(self) -> bool:
        """Was it done when the job's files were listed?"""
        return self.done

    def send(self, file: Path) -> None:
        """Take a Parquet file of this machine over; two processes may do so with the same part.

        Raises:
            DataError: the store refuses or cannot be reached.
        """
        counts = (pq.read_metadata(file).metadata or {}).get(COUNTS_KEY.encode())
        entry = file_entry(file, name=self.place.name)
        self.place.send(file)
        self.record.write_json(entry | {"counts": None if counts is None else json.loads(counts)})

    def read_record(self) -> dict[str, Any]:
        """What the record says.

        Raises:
            DataError: it is not there, or broken.
        """
        found = self.record.read_json()
        if found is None or not {"file", "rows", "bytes", "sha256", "counts"} <= found.keys():
            raise DataError(f"{self.record}: is missing or broken; start over with --overwrite")
        return found


def file_entry(path: Path, *, name: str) -> dict[str, Any]:
    """What a manifest says of a file: file (its name), rows, bytes, sha256."""
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return {
        "file": name,
        "rows": pq.read_metadata(path).num_rows,
        "bytes": path.stat().st_size,
        "sha256": digest,
    }
