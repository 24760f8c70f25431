"""Write the model file of a training run, through the gate."""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx

from ipsrec_export.comparison import Encode, Exported, history_terms
from ipsrec_export.contents import refuse_other_contents
from ipsrec_export.gate import BOUNDS, GateReport, run_gate
from ipsrec_export.graph import INPUTS, USER_EMBEDDING, build_graph, build_lean_graph
from ipsrec_export.metadata import NOT_GATED, add_metadata, metadata_bytes, set_gate
from ipsrec_export.weight_names import weight_names
from ipsrec_onnx.atomic import atomic_file, follow_link, refuse_existing, scratch_folder
from ipsrec_onnx.dataset import open_dataset
from ipsrec_onnx.errors import DataError
from ipsrec_onnx.model_file import ModelFile, Precision, read_model_file
from ipsrec_onnx.onnx_proto import external_data_files
from ipsrec_onnx.readable import why_unreadable
from ipsrec_onnx.session import run_session
from ipsrec_onnx.staging import fetched, staged
from ipsrec_onnx.uris import is_uri
from ipsrec_onnx.versions import package_version
from ipsrec_train.batches import Histories, load_histories
from ipsrec_train.run import Run, load_model, open_run

# A protobuf message ends at 2 GiB; the nodes and the gate's verdict need far less than the rest.
LARGEST_IN_ONE_FILE = 2**31 - 2**26


@dataclass(frozen=True)
class ExportReport:
    """What `export` wrote.

    Attributes:
        output: the model file.
        bytes_written: its size, external data included.
        gate: the verdict that is stored in it.
    """

    output: Path
    bytes_written: int
    gate: GateReport


@staged(inputs=["checkpoint", "dataset"], outputs={"output": None})
def export(
    checkpoint: str | Path,
    output: str | Path,
    *,
    dataset: str | Path | None = None,
    overwrite: bool = False,
    precision: Precision = "fp32",
) -> ExportReport:
    """Export the best epoch of a run to one model file, unless the gate refuses it.

    Args:
        checkpoint: the run folder that training wrote.
        output: the model file to make.
        dataset: where the dataset of the run lies now; None looks where it lay at training.
        overwrite: replace an existing file.
        precision: of the encoder's weights; "fp16" is made for CUDA, and passes a gate with wider bounds.

    Returns:
        What was written.

    Raises:
        DataError: the run is not complete, its dataset is not there or is another one, the output exists, or the model
            cannot be had in this precision.
        ModelFileError: the gate is not passed, or the file holds anything else than the run; nothing is written.
    """
    target = follow_link(refuse_existing(output, overwrite=overwrite))
    run = open_run(checkpoint)
    model, catalog = load_model(run)
    validation = _validation_histories(run, dataset)
    proto = build_graph(model) if precision == "fp32" else build_lean_graph(model)
    terms = history_terms(model)
    add_metadata(
        proto,
        model=run.info["model"],
        settings=run.info["settings"],
        catalog=catalog,
        history_terms=None if terms is None else {name: part.tolist() for name, part in terms._asdict().items()},
        training=_training(run),
        gate=NOT_GATED,
        weights=weight_names(model.encoder, proto.graph) if precision == "fp32" else None,
        precision=precision,
    )
    with (
        _no_orphaned_data(target),
        atomic_file(target, overwrite=overwrite) as temporary,
        scratch_folder(target) as folder,
    ):
        draft = folder / target.name
        data = _write_draft(proto, draft)
        written = read_model_file(draft)
        refuse_other_contents(written, model, catalog)
        exported = Exported(
            _encoder(written), written.item_embeddings, written.catalog.item_provider, written.history_terms
        )
        gate = run_gate(model, exported, validation, bounds=BOUNDS[precision])
        gate.refuse_unless_passed()
        set_gate(proto, gate.as_metadata())
        onnx.save_model(proto, draft)
        bytes_written = sum(part.stat().st_size for part in folder.iterdir())
        # The data first, the graph last: a kill at any point leaves a graph beside the very data that it names.
        if data is not None:
            with atomic_file(target.with_name(data.name), overwrite=True) as temporary_data:
                data.replace(temporary_data)
        draft.replace(temporary)
    return ExportReport(output=Path(output), bytes_written=bytes_written, gate=gate)


def _write_draft(proto: onnx.ModelProto, path: Path) -> Path | None:
    """Write the graph and check it; weights go to external data where one file cannot hold them.

    External data is named after its content, so that a graph never meets the weights of another. After that the weights
    are no longer in `proto`, and saving it again writes the graph alone.

    Returns:
        The file of external data; None where there is none.
    """
    weights = sum(len(tensor.raw_data) for tensor in proto.graph.initializer)
    if weights + metadata_bytes(proto) <= LARGEST_IN_ONE_FILE:
        onnx.save_model(proto, path)
        onnx.checker.check_model(path)
        return None
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
    return data


@contextlib.contextmanager
def _no_orphaned_data(target: Path) -> Iterator[None]:
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


def _encoder(written: ModelFile) -> Encode:
    """The written graph, as the gate calls it."""

    def encode(
        items: npt.NDArray[np.int32], providers: npt.NDArray[np.int32], lengths: npt.NDArray[np.int32]
    ) -> npt.NDArray[np.float32]:
        feed = dict(zip(INPUTS, (items, providers, lengths), strict=True))
        return np.asarray(run_session(written.session, [USER_EMBEDDING], feed)[0])

    return encode


def _validation_histories(run: Run, path: str | Path | None) -> Histories:
    """The validation split of the dataset that a run learned from."""
    trained = run.info["dataset"]
    where = path if path is not None else trained["path"]
    if path is None and not is_uri(where) and not Path(where).is_dir():
        raise DataError(f"{run.path}: its dataset is no longer at {where}; say where it is with --dataset")
    with fetched(where) as folder:
        dataset = open_dataset(folder)
        if dataset.fingerprint != trained["fingerprint"]:
            raise DataError(
                f"dataset {where}: fingerprint {dataset.fingerprint[:12]}, the run {run.path} learned from "
                f"{trained['fingerprint'][:12]}; give the dataset of the run with --dataset"
            )
        return load_histories(dataset, "valid")


def _training(run: Run) -> dict[str, Any]:
    """Where the weights come from."""
    versions = {**run.info["versions"], **{name: package_version(name) for name in ("onnx", "onnxscript")}}
    return {
        "dataset_fingerprint": run.info["dataset"]["fingerprint"],
        **run.info["training"],
        **run.info.get("machine", {}),
        "epochs_trained": len(run.metrics),
        "best": run.best,
        "versions": {**versions, "onnxruntime": package_version("onnxruntime")},
    }
