"""Write the model file of a training run, through the gate."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx

from ipsrec_export.gate import Encode, GateReport, history_terms, run_gate
from ipsrec_export.graph import INPUTS, USER_EMBEDDING, build_graph
from ipsrec_export.metadata import add_metadata
from ipsrec_onnx.atomic import atomic_file, refuse_existing
from ipsrec_onnx.dataset import open_dataset
from ipsrec_onnx.errors import DataError
from ipsrec_onnx.session import open_session, run_session
from ipsrec_onnx.versions import package_version
from ipsrec_train.batches import Histories, load_histories
from ipsrec_train.run import Run, load_model, open_run

# A protobuf message ends at 2 GiB; what the metadata and the nodes add to the weights stays far below the rest.
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


def export(
    checkpoint: str | Path, output: str | Path, *, dataset: str | Path | None = None, overwrite: bool = False
) -> ExportReport:
    """Export the best epoch of a run to one model file, unless the gate refuses it.

    Args:
        checkpoint: the run folder that training wrote.
        output: the model file to make.
        dataset: where the dataset of the run lies now; None looks where it lay at training.
        overwrite: replace an existing file.

    Returns:
        What was written.

    Raises:
        DataError: the run is not complete, its dataset is not there or is another one, or the output exists.
        ModelFileError: the gate is not passed; nothing is written.
    """
    target = refuse_existing(output, overwrite=overwrite)
    refuse_existing(_data_file(target), overwrite=overwrite)
    run = open_run(checkpoint)
    model, catalog = load_model(run)
    validation = _validation_histories(run, dataset)
    proto = build_graph(model)
    with (
        atomic_file(target, overwrite=overwrite) as temporary,
        # A folder of its own: external data is found by the name that it will have beside the finished file.
        TemporaryDirectory(prefix=f".{target.name}.", dir=target.parent) as folder,
    ):
        draft = Path(folder) / target.name
        _write_graph(proto, draft)
        gate = run_gate(model, _encoder(draft), validation)
        gate.refuse_unless_passed()
        terms = history_terms(model)
        add_metadata(
            proto,
            model=run.info["model"],
            settings=run.info["settings"],
            catalog=catalog,
            history_terms=None if terms is None else {name: part.tolist() for name, part in terms._asdict().items()},
            training=_training(run),
            gate=gate.as_metadata(),
        )
        onnx.save_model(proto, draft)
        bytes_written = sum(part.stat().st_size for part in Path(folder).iterdir())
        data, beside = _data_file(draft), _data_file(target)
        if data.is_file():
            with atomic_file(beside, overwrite=True) as temporary_data:
                data.replace(temporary_data)
        else:
            beside.unlink(missing_ok=True)  # of a larger model that had this name
        draft.replace(temporary)
    return ExportReport(output=target, bytes_written=bytes_written, gate=gate)


def _data_file(model_file: Path) -> Path:
    """Where the weights of a model lie that is too large for one protobuf."""
    return model_file.with_name(f"{model_file.name}.data")


def _write_graph(proto: onnx.ModelProto, path: Path) -> None:
    """Write the graph and check it; weights go to external data where one file cannot hold them.

    After that the weights are no longer in `proto`, and saving it again writes the graph alone.
    """
    if sum(len(tensor.raw_data) for tensor in proto.graph.initializer) > LARGEST_IN_ONE_FILE:
        onnx.save_model(proto, path, save_as_external_data=True, location=_data_file(path).name)
    else:
        onnx.save_model(proto, path)
    onnx.checker.check_model(path)


def _encoder(path: Path) -> Encode:
    """The written graph, as the gate calls it."""
    session = open_session(path, device="cpu")

    def encode(
        items: npt.NDArray[np.int32], providers: npt.NDArray[np.int32], lengths: npt.NDArray[np.int32]
    ) -> npt.NDArray[np.float32]:
        feed = dict(zip(INPUTS, (items, providers, lengths), strict=True))
        return np.asarray(run_session(session, [USER_EMBEDDING], feed)[0])

    return encode


def _validation_histories(run: Run, path: str | Path | None) -> Histories:
    """The validation split of the dataset that a run learned from."""
    trained = run.info["dataset"]
    where = Path(path if path is not None else trained["path"])
    if path is None and not where.is_dir():
        raise DataError(f"{run.path}: its dataset is no longer at {where}; say where it is with --dataset")
    dataset = open_dataset(where)
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
        "epochs_trained": len(run.metrics),
        "best": run.best,
        "versions": {**versions, "onnxruntime": package_version("onnxruntime")},
    }
