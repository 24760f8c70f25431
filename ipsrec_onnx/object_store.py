"""Files and folders of a store without renames, such as S3: what is written appears whole or not at all.

A file is made in a scratch folder of this machine and then sent in one piece: a stream that is written to bit by bit
would complete the object when it is closed after an error between two bits.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import pyarrow as pa
import pyarrow.fs as pafs
import pyarrow.parquet as pq

from ipsrec_onnx.atomic import scratch_folder
from ipsrec_onnx.errors import DataError
from ipsrec_onnx.uris import open_file_system, shown, store_errors

# Nothing has to be there before a file is: making a folder would leave an empty object of its name.
_WITHOUT_FOLDERS: Final = (pafs.S3FileSystem, pafs.GcsFileSystem)
_COPIED_BYTES: Final = 1 << 23  # at a time


@dataclass(frozen=True, eq=False)
class StorePath:
    """A place in a store, named as pathlib names one of this machine; other processes can be given it.

    Attributes:
        file_system: that knows it.
        path: there, without a slash at its end.
        uri: the same for people, without query and password.
        query: of the URI, with its question mark.
    """

    file_system: pafs.FileSystem
    path: str
    uri: str
    query: str

    def __str__(self) -> str:
        return f"{self.uri}{self.query}"

    @property
    def name(self) -> str:
        """The last part of its path; empty for a bucket."""
        return self.path.rpartition("/")[2] if "/" in self.path else ""

    def __truediv__(self, name: str) -> StorePath:
        return StorePath(self.file_system, f"{self.path}/{name}", f"{self.uri}/{_quoted(name)}", self.query)

    def with_name(self, name: str) -> StorePath:
        """Give another name in the same folder."""
        folder, uri = self.path.rpartition("/")[0], self.uri.rpartition("/")[0]
        return StorePath(self.file_system, f"{folder}/{name}", f"{uri}/{_quoted(name)}", self.query)

    def is_in(self, folder: StorePath) -> bool:
        """Is this the folder, or does it lie in it?"""
        return self.file_system.equals(folder.file_system) and f"{self.path}/".startswith(f"{folder.path}/")

    def info(self) -> pafs.FileInfo:
        """What is there, by type and size.

        Raises:
            DataError: as all methods that ask the store: it refuses, or cannot be reached.
        """
        with store_errors(str(self)):
            return self.file_system.get_file_info(self.path)

    def exists(self) -> bool:
        """Is there a file, or a folder?"""
        return bool(self.info().type != pafs.FileType.NotFound)

    def is_file(self) -> bool:
        """Is there a file?"""
        return bool(self.info().type == pafs.FileType.File)

    def is_dir(self) -> bool:
        """Is there a folder, which in an object store is any file whose name goes on with a slash?"""
        return bool(self.info().type == pafs.FileType.Directory)

    def files(self) -> dict[str, int]:
        """Bytes of all files below a folder, by their path in it; none where there is no such folder."""
        with store_errors(str(self)):
            entries = self.file_system.get_file_info(pafs.FileSelector(self.path, recursive=True, allow_not_found=True))
        found = {
            entry.path[len(self.path) :].lstrip("/"): entry.size
            for entry in entries
            if entry.type == pafs.FileType.File
        }
        return dict(sorted(found.items()))

    def fetch(self, target: Path) -> None:
        """Copy the file to a file of this machine."""
        with (
            store_errors(str(self)),
            self.file_system.open_input_stream(self.path) as stream,
            target.open("wb") as file,
        ):
            shutil.copyfileobj(stream, file, _COPIED_BYTES)

    def send(self, source: Path) -> None:
        """Make it a copy of a file of this machine, or replace it by that.

        Raises:
            DataError: the store refuses, cannot be reached, or does not have all bytes afterwards.
        """
        # In a thread, where no Ctrl-C comes between the steps: it would leave an empty object.
        with store_errors(str(self)), ThreadPoolExecutor(1) as thread:
            thread.submit(self._send, source).result()
        size, expected = self.info().size, source.stat().st_size
        if size != expected:
            raise DataError(f"output {self}: the store has {size} bytes of {expected}; run again")

    def _send(self, source: Path) -> None:
        content = pa.memory_map(str(source)).read_buffer() if source.stat().st_size else b""
        if not isinstance(self.file_system, _WITHOUT_FOLDERS):
            self.file_system.create_dir(self.path.rpartition("/")[0] or "/", recursive=True)
        with self.file_system.open_output_stream(self.path) as stream:
            stream.write(content)

    def read_json(self) -> dict[str, Any] | None:
        """A JSON object that is kept here; None where there is no file, empty where it holds anything else."""
        with store_errors(str(self)):
            if self.file_system.get_file_info(self.path).type != pafs.FileType.File:
                return None
            with self.file_system.open_input_stream(self.path) as stream:
                text = stream.read()
        try:
            found = json.loads(text)
        except (ValueError, RecursionError):
            return {}
        return dict(found) if isinstance(found, dict) else {}

    def write_json(self, value: dict[str, Any]) -> None:
        """Keep a JSON object here."""
        with scratch_of_this_user() as scratch:
            file = scratch / "value.json"
            file.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")
            self.send(file)

    def remove(self) -> None:
        """Remove the file, or the folder with all that is in it; nothing where there is neither."""
        with store_errors(str(self)), contextlib.suppress(FileNotFoundError):
            kind = self.file_system.get_file_info(self.path).type
            if kind == pafs.FileType.NotFound:
                return
            is_folder = kind == pafs.FileType.Directory
            try:
                (self.file_system.delete_dir if is_folder else self.file_system.delete_file)(self.path)
            except OSError:
                # pyarrow then keeps the folder above as an empty object, and removes those of folders: some servers
                # have no such objects, and refuse when the files themselves have gone.
                if self.files() if is_folder else self.is_file():
                    raise


def open_whole(path: Path | StorePath) -> pq.ParquetFile:
    """Open a Parquet file that is whole, wherever it lies, with the checksums of its pages."""
    if isinstance(path, StorePath):
        return pq.ParquetFile(path.path, filesystem=path.file_system, page_checksum_verification=True)
    return pq.ParquetFile(path, page_checksum_verification=True)


def store_path(uri: str | Path) -> StorePath:
    """Open the place that a URI names; a slash at its end does not count.

    Raises:
        DataError: as open_file_system.
    """
    file_system, path = open_file_system(uri)
    before, mark, query = shown(uri).partition("?")
    return StorePath(file_system, path, before.rstrip("/"), f"{mark}{query}")


def refuse_stored(path: StorePath, *, overwrite: bool) -> None:
    """Say early, before any work, whether a file or folder could be written, as far as looking shows.

    Raises:
        DataError: it exists and overwrite is False; it has no name of its own; its bucket is not there; or the store
            refuses to be asked.
    """
    if not path.name:
        raise DataError(f"output {path} has no name of its own; name a file or folder in it")
    if path.exists() and not overwrite:
        raise DataError(f"output {path} exists already; choose another name, or replace it with --overwrite")
    bucket = path.path.partition("/")[0]
    if bucket:  # where a path begins with a slash, there are no buckets
        with store_errors(str(path)):
            if path.file_system.get_file_info(bucket).type == pafs.FileType.NotFound:
                raise DataError(f"output {path}: there is no bucket {bucket}; make it first, or choose another")


@contextlib.contextmanager
def scratch_of_this_user() -> Iterator[Path]:
    """Give an empty folder of this machine, for this user's eyes alone, which is gone when the block ends.

    It lies in TMPDIR. What a killed process left there is removed by the next one.

    Raises:
        DataError: the disk is full.
    """
    base = Path(tempfile.gettempdir()) / f"ipsrec-{os.getuid()}"
    base.mkdir(mode=0o700, exist_ok=True)
    if base.stat().st_uid != os.getuid() or base.stat().st_mode & 0o077:
        raise DataError(f"{base}: belongs to somebody else, or others may read it; remove it, or set TMPDIR")
    with scratch_folder(base / "scratch") as folder:
        yield folder


def _quoted(name: str) -> str:
    """A name in a URI, without what open_file_system would take for something else."""
    return name.replace("%", "%25").replace("?", "%3F")
