"""The model file: one .onnx that carries the graph, the weights, the catalog and everything else that scoring needs."""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import numpy.typing as npt
import onnxruntime

from ipsrec_kernels.history_items import HistoryTerms
from ipsrec_onnx.catalog import Catalog, catalog_from_tables, table_from_text
from ipsrec_onnx.errors import DataError, ModelFileError
from ipsrec_onnx.graph_check import check_graph
from ipsrec_onnx.mapped_arrays import map_weight
from ipsrec_onnx.metadata_texts import PREFIX, read_candidates, read_format_version, read_json, read_json_object
from ipsrec_onnx.onnx_proto import external_data_files, initializers
from ipsrec_onnx.onnx_rewrite import INT8, TABLE, graph_with_table_input
from ipsrec_onnx.onnx_weights import find_weights
from ipsrec_onnx.readable import why_unreadable
from ipsrec_onnx.session import open_session, run_session

Precision = Literal["fp32", "fp16", "int8"]

LONGEST_MAX_LEN = 1 << 20  # attention over more needs terabytes
_BYTES_PER_ID = 1 << 10  # of a catalog, for an item or a provider: long names, no more

_INPUTS = {
    "item_history": ("tensor(int32)", 2),
    "provider_history": ("tensor(int32)", 2),
    "lengths": ("tensor(int32)", 1),
}
_OUTPUTS = {"user_embedding": ("tensor(float)", 2), "item_embeddings": ("tensor(float)", 2)}


@dataclass(frozen=True, eq=False)
class ModelFile:
    """An opened model file.

    Attributes:
        path: where it lies.
        format_version: of the metadata.
        model: name of the model, as `ipsrec train --model` has it.
        settings: the model's settings; max_len is among them.
        catalog: items and providers in the order of the embedding tables.
        history_terms: weights by age, each (max_len,) float64, newest first; None for a model without.
        training: dataset fingerprint, seed, epochs, metrics, versions.
        gate: what the comparison of PyTorch with ONNX Runtime found at export.
        precision: of the weights in the file; item_embeddings and user_embedding are float32 in all.
        candidates: the precisions that were tried, a row each; none where that was not asked for.
        item_embeddings: (num_items + 1, dim) float32; scores are dot products with its rows.
        session: computes user_embedding on the CPU; shared by threads.
        given: what each run of it is given beside a batch: item_embeddings, where these are mapped from a file.
    """

    path: Path
    format_version: int
    model: str
    settings: dict[str, Any]
    catalog: Catalog
    history_terms: HistoryTerms | None
    training: dict[str, Any]
    gate: dict[str, Any]
    precision: Precision
    candidates: list[dict[str, Any]]
    item_embeddings: npt.NDArray[np.float32]
    session: onnxruntime.InferenceSession
    given: Mapping[str, npt.NDArray[np.float32]] = field(default_factory=dict)

    @property
    def max_len(self) -> int:
        """Most recent items that the model may see."""
        return int(self.settings["max_len"])

    @property
    def dim(self) -> int:
        """Width of an embedding."""
        return int(self.item_embeddings.shape[1])


def open_model_file(path: str | Path, *, mapped_in: Path | None = None) -> ModelFile:
    """Open a model file and check it.

    Args:
        path: of the file.
        mapped_in: map the item embeddings from the file, or from a copy without a name in this folder, for the session
            and everything else: memory holds none of them. None: all of the file is read.

    Raises:
        ModelFileError: there is no such file, or it cannot be read; it is no ONNX model or none of ours; it is newer
            than this version; its gate was not passed; or its metadata is broken.
        DataError: the copy cannot be written.
        ExecutionProviderError: onnxruntime is broken.
    """
    model_file = read_model_file(path, mapped_in=mapped_in)
    if model_file.gate.get("passed") is not True:
        raise ModelFileError(f"model {path}: it did not pass the gate of `ipsrec export`; export it again")
    return model_file


def read_model_file(path: str | Path, *, mapped_in: Path | None = None) -> ModelFile:
    """Open a model file as open_model_file does, without asking for the gate's verdict: the gate itself needs this."""
    file = Path(path)
    reason = why_unreadable(file)
    if reason is not None:
        raise ModelFileError(f"model {path}: {reason}; give the .onnx file that `ipsrec export` wrote")
    shapes = check_graph(file)
    shape = shapes.get(TABLE, shapes.get(TABLE + INT8))
    if mapped_in is not None and TABLE + INT8 in shapes:
        raise ModelFileError(
            f"model {path}: --catalog-shards maps the item embeddings from the file, where they are int8; export it "
            "with --precision fp32, or score without shards"
        )
    table, graph = None, None
    if mapped_in is not None and shape is not None and len(shape) == 2:
        table = map_weight(find_weights(file, [TABLE])[TABLE], mapped_in, dims=shape[1])
        graph = graph_with_table_input(file, (shape[0], shape[1]), with_metadata=True)
    session = open_session(file, device="cpu", graph=graph)
    try:
        return _read_metadata(file, session, shape, table)
    except (KeyError, TypeError, ValueError, OverflowError, RecursionError, DataError) as error:
        named = f"{error.args[0]} is missing" if isinstance(error, KeyError) else str(error)
        raise ModelFileError(f"model {path}: its metadata is broken: {named}; export it again") from error
    except ModelFileError as error:
        raise ModelFileError(f"model {path}: {error}") from error


def model_file_sha256(path: str | Path) -> str:
    """Hexadecimal SHA-256 of a model file, and after it of the files that its graph names as external data, by name.

    Raises:
        ModelFileError: one of them cannot be read.
    """
    digest = hashlib.sha256()
    for part in (Path(path), *(Path(path).parent / name for name in external_data_files(path))):
        reason = why_unreadable(part)
        if reason is not None:
            raise ModelFileError(f"model {path}: {part}: {reason}; keep its external data beside it")
        with part.open("rb") as file:
            while block := file.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()


def model_file_bytes(path: str | Path) -> int:
    """Bytes of a model file and of the external data beside it, by its name; 0 where there is none."""
    file = Path(path)
    if not file.is_file():
        return 0
    names = (part for part in file.parent.iterdir() if part.name.startswith(file.name) and part.suffix == ".data")
    return sum(part.stat().st_size for part in (file, *names) if part.is_file())


def bytes_to_open(path: str | Path, *, mapped: bool) -> int:
    """Bytes that opening a model file takes; 0 where there is none.

    Of a mapped one all but the item embeddings; weights in int8 count as the float32 that they become.
    """
    num_bytes = model_file_bytes(path)
    if why_unreadable(Path(path)) is not None:
        return num_bytes
    for one in initializers(path):
        if one.name.endswith(INT8):
            num_bytes += 3 * math.prod(one.dims)
        elif mapped and one.name == TABLE:
            num_bytes -= 4 * math.prod(one.dims)
    return max(0, num_bytes)


def _read_metadata(
    path: Path,
    session: onnxruntime.InferenceSession,
    table_shape: tuple[int, ...] | None,
    table: npt.NDArray[np.float32] | None,
) -> ModelFile:
    """Read everything that a file says beside its graph; its errors do not name the file.

    Args:
        path: of the file.
        session: of its graph.
        table_shape: of the initializer item_embeddings, float32 or int8; None where there is none.
        table: itself, where the graph takes it as an input; else the graph gives it.
    """
    texts = session.get_modelmeta().custom_metadata_map
    version = read_format_version(texts)
    if texts.get(PREFIX + "profile", "server") != "server":
        raise ModelFileError(
            "it is of profile edge, for any ONNX Runtime without this package; give the file that `ipsrec export "
            "--profile server` writes"
        )
    _check_graph_ends(session, gives_table=table is None)
    if table_shape is None or len(table_shape) != 2:
        raise ValueError(f"item_embeddings has shape {table_shape} among the weights, expected a table of items")
    parts = {name: read_json_object(texts, name) for name in ("settings", "training", "gate")}
    max_len = parts["settings"]["max_len"]
    if type(max_len) is not int or not 1 <= max_len <= LONGEST_MAX_LEN:
        raise ValueError(f"max_len is {str(max_len)[:30]}, expected a whole number, 1..{LONGEST_MAX_LEN}")
    if not re.fullmatch("[a-z0-9-]{1,40}", texts[PREFIX + "model"]):
        raise ValueError(f"model is {texts[PREFIX + 'model'][:40]!r}, expected a name such as ipsrec-c")
    precision = texts.get(PREFIX + "precision", "fp32")  # files of older versions do not say
    if precision not in get_args(Precision):
        raise ValueError(f"precision is {precision[:40]!r}, expected one of {get_args(Precision)}")
    catalog = _catalog(texts, table_shape[0])
    history_terms = read_json(texts, "history_terms")
    return ModelFile(
        path=path,
        format_version=version,
        model=texts[PREFIX + "model"],
        **parts,
        precision=precision,
        candidates=read_candidates(texts),
        catalog=catalog,
        history_terms=None if history_terms is None else _history_terms(history_terms, max_len),
        item_embeddings=_item_embeddings(session, table_shape) if table is None else table,
        session=session,
        given={} if table is None else {TABLE: table},
    )


def _catalog(texts: Mapping[str, str], num_rows: int) -> Catalog:
    """Read the catalog of an item table with so many rows."""
    most_bytes = (1 << 20) + _BYTES_PER_ID * num_rows
    tables = (table_from_text(texts[PREFIX + name], most_bytes=most_bytes) for name in ("catalog", "providers"))
    catalog = catalog_from_tables(*tables)
    if catalog.num_items == 0:
        raise ValueError("the catalog has no items")
    if num_rows != catalog.num_items + 1:
        raise ValueError(f"item_embeddings has {num_rows} rows, expected {catalog.num_items + 1} for the catalog")
    catalog.build_tables()
    return catalog


def _history_terms(value: dict[str, list[float]], max_len: int) -> HistoryTerms:
    weights = {name: np.asarray(value[name], np.float64) for name in ("provider", "item")}
    for name, array in weights.items():
        if array.shape != (max_len,) or not np.isfinite(array).all():
            raise ValueError(f"history term {name} has shape {array.shape}, expected ({max_len},) finite numbers")
    return HistoryTerms(**weights)


def _check_graph_ends(session: onnxruntime.InferenceSession, *, gives_table: bool) -> None:
    """Refuse a graph with other inputs or outputs than the contract's."""
    outputs = {name: kind for name, kind in _OUTPUTS.items() if gives_table or name != TABLE}
    for nodes, expected in ((session.get_inputs(), _INPUTS), (session.get_outputs(), outputs)):
        found = {node.name: (node.type, len(node.shape)) for node in nodes}
        if any(found.get(name) != kind for name, kind in expected.items()):
            raise ValueError(f"the graph has {found}, expected {expected}")


def _item_embeddings(session: onnxruntime.InferenceSession, shape: tuple[int, ...]) -> npt.NDArray[np.float32]:
    """Read the output table through the graph, which holds whatever the file format is (external data, too)."""
    one = {"item_history": (1, 1), "provider_history": (1, 1), "lengths": (1,)}
    feed = {name: np.full(shape, int(name == "lengths"), np.int32) for name, shape in one.items()}
    table = np.asarray(run_session(session, ["item_embeddings"], feed)[0])
    if table.shape != shape:
        raise ValueError(f"item_embeddings has shape {table.shape}, its weight {shape}")
    return np.ascontiguousarray(table, np.float32)
