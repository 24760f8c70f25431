"""The files that a scoring job writes: none is a file that it reads, and all are whole or not there."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import pyarrow as pa
import pyarrow.fs as pafs

from ipsrec_onnx.atomic import atomic_file
from ipsrec_onnx.errors import DataError
from ipsrec_onnx.row_writer import open_row_writer
from ipsrec_onnx.scored_chunk import ScoredChunk
from ipsrec_onnx.users import Users


def refuse_inputs(
    outputs: list[Path],
    users: Users,
    *,
    model: str | Path,
    allow_items: str | Path | None,
    deny_items: str | Path | None,
) -> None:
    """Refuse an output that would take the place of an input.

    Raises:
        DataError: an output is a users file, the model file or its external data, or the allow or deny list.
    """
    inputs = [
        ("the model file", model),
        ("the model's external data", f"{model}.data"),
        ("the allow list", allow_items),
        ("the deny list", deny_items),
    ]
    if isinstance(users.file_system, pafs.LocalFileSystem):
        inputs += [("one of the input's files", file.path) for file in users.files]
    for output in outputs:
        for name, path in inputs:
            if path is not None and _same_file(output, path):
                raise DataError(f"output {output} is {name}; choose another name")


def _same_file(output: Path, path: str | Path) -> bool:
    try:
        return output.samefile(path)
    except OSError:  # one of them is not there
        return False


class OutputFile(NamedTuple):
    """A file to write: where, its columns, and the rows of each row group but the last."""

    path: Path
    schema: pa.Schema
    group_rows: int


@contextlib.contextmanager
def open_outputs(files: list[OutputFile], *, overwrite: bool) -> Iterator[Callable[[ScoredChunk], None]]:
    """Open the candidates and, where asked for, the dead letters.

    Args:
        files: of candidates; then of dead letters, unless malformed rows are refused.
        overwrite: replace existing files.

    Yields:
        What writes a scored chunk. When the block ends without an error, the files get their names, the candidates
        last; on an error, nothing is left.
    """
    with contextlib.ExitStack() as stack:
        # The stack unwinds from below: all files are whole before any has its name.
        temporaries = [stack.enter_context(atomic_file(file.path, overwrite=overwrite)) for file in files]
        writers = [
            stack.enter_context(open_row_writer(temporary, file.schema, group_rows=file.group_rows))
            for temporary, file in zip(temporaries, files, strict=True)
        ]

        def write(chunk: ScoredChunk) -> None:
            for writer, rows in zip(writers, (chunk.rows, chunk.dead_letters), strict=False):
                writer.write(rows)

        yield write
