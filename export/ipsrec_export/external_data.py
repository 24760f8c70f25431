"""Weights that one protobuf message cannot hold: written beside the graph, and removed with it."""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
from collections.abc import Iterator
from pathlib import Path

import onnx

from ipsrec_export.metadata import metadata_bytes
from ipsrec_onnx.errors import ModelFileError
from ipsrec_onnx.onnx_proto import external_data_files
from ipsrec_onnx.readable import why_unreadable

# A protobuf message ends at 2 GiB; the nodes and the gate's verdict need far less than the rest.
LARGEST_IN_ONE_FILE = 2**31 - 2**26


def write_graph(proto: onnx.ModelProto, path: Path) -> None:
    """Write the graph and check it; weights go to external data where one file cannot hold them.

    External data is named after its content, so that a graph never meets the weights of another. After that the weights
    are no longer in `proto`, and saving it again writes the graph alone.
    """
    if weight_bytes(proto) + metadata_bytes(proto) <= LARGEST_IN_ONE_FILE:
        onnx.save_model(proto, path)
        onnx.checker.check_model(path)
        return
    unnamed = path.with_name("data")
    onnx.save_model(proto, path, save_as_external_data=True, location=unnamed.name)
    with unnamed.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    data = unnamed.rename(path.with_name(f"{path.name}.{digest[:12]}.data"))
    for tensor in proto.graph.initializer:
        for entry in tensor.external_data:
            if entry.key == "location":
                entry.value = data.name
    onnx.save_model(proto, path)
    onnx.checker.check_model(path)


def refuse_beyond_one_file(proto: onnx.ModelProto, *, more_bytes: int = 0) -> None:
    """Refuse what can only be made of a graph that one protobuf holds: it is serialized in memory.

    Args:
        proto: the graph, its weights in memory.
        more_bytes: that are to be added to it.

    Raises:
        ModelFileError: it is too large.
    """
    found = weight_bytes(proto) + more_bytes
    if found > LARGEST_IN_ONE_FILE:
        raise ModelFileError(
            f"export: in float32, with which every precision is compared, the graph has {found / 1e9:.2f} GB, and one "
            f"file holds {LARGEST_IN_ONE_FILE / 1e9:.2f} GB; export with --profile server --precision fp32, or prepare "
            "the dataset with a larger --min-item-interactions"
        )


def weight_bytes(proto: onnx.ModelProto) -> int:
    """Bytes of a graph's weights; ByteSize fails where they are more than a protobuf holds."""
    return sum(len(tensor.raw_data) for tensor in proto.graph.initializer)


def remove_with_data(path: Path) -> None:
    """Remove a graph and the external data that it names."""
    for part in (*_data_named_by(path), path):
        part.unlink()


@contextlib.contextmanager
def no_orphaned_data(target: Path) -> Iterator[None]:
    """Remove external data that the block leaves without its graph: the old one's where it ends well, else the new."""
    before, replaceable = _data_beside(target), _data_named_by(target)
    try:
        yield
    finally:
        appeared = _data_beside(target) - before
        for data in (replaceable | appeared) - _data_named_by(target):
            data.unlink(missing_ok=True)


def _data_beside(target: Path) -> set[Path]:
    """Files that have the name of external data of this model."""
    if not os.access(target.parent, os.R_OK):  # a folder that can be written to but not listed
        return set()
    name = re.compile(re.escape(target.name) + r"\.[0-9a-f]{12}\.data")
    return {path for path in target.parent.iterdir() if name.fullmatch(path.name)}


def _data_named_by(target: Path) -> set[Path]:
    """Those of them that the graph names; none where there is no graph."""
    named = external_data_files(target) if why_unreadable(target) is None else []
    return {path for path in _data_beside(target) if path.name in named}
