"""Write the model file of a training run, through the gate."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import onnx

from ipsrec_export.comparison import Encode, Exported, history_terms
from ipsrec_export.contents import refuse_other_contents
from ipsrec_export.edge import write_edge_file
from ipsrec_export.edge_gate import EdgeGateReport
from ipsrec_export.edge_graph import EdgeRules
from ipsrec_export.external_data import no_orphaned_data, refuse_beyond_one_file, remove_with_data, write_graph
from ipsrec_export.gate import BOUNDS, GateReport, run_gate
from ipsrec_export.graph import INPUTS, USER_EMBEDDING, build_graph, build_lean_graph
from ipsrec_export.metadata import NOT_GATED, add_metadata, set_gate
from ipsrec_export.precision import MAX_NDCG_DROP, PrecisionChoice, PrecisionReport, choose_precision, kinds_of
from ipsrec_export.trials import ServerTrial
from ipsrec_export.weight_names import weight_names
from ipsrec_export.weight_storage import drop_node_notes
from ipsrec_onnx.atomic import atomic_file, follow_link, refuse_existing, scratch_folder
from ipsrec_onnx.dataset import open_dataset
from ipsrec_onnx.errors import DataError
from ipsrec_onnx.model_file import ModelFile, Precision, open_model_file, read_model_file
from ipsrec_onnx.session import run_session
from ipsrec_onnx.staging import fetched, staged
from ipsrec_onnx.uris import is_uri
from ipsrec_onnx.versions import package_version
from ipsrec_train.batches import Histories, load_histories
from ipsrec_train.run import Run, load_model, open_run

Profile = Literal["server", "edge"]


@dataclass(frozen=True)
class ExportReport:
    """What `export` wrote.

    Attributes:
        output: the model file.
        bytes_written: its size, external data included.
        gate: how ONNX Runtime compares with PyTorch; stored in a server's file.
        edge_gate: how an edge file compares with `ipsrec score`, stored in it; None for a server's.
        tried: ways of storing the weights, stored in the file; None for a server's in a precision that needs no trial.
    """

    output: Path
    bytes_written: int
    gate: GateReport
    edge_gate: EdgeGateReport | None
    tried: PrecisionReport | None


@staged(inputs=["checkpoint", "dataset"], outputs={"output": None})
def export(
    checkpoint: str | Path,
    output: str | Path,
    *,
    dataset: str | Path | None = None,
    overwrite: bool = False,
    profile: Profile = "server",
    precision: PrecisionChoice = "fp32",
    max_ndcg_drop: float | None = None,
    rules: EdgeRules | None = None,
) -> ExportReport:
    """Export the best epoch of a run to one model file, unless the gate refuses it.

    Args:
        checkpoint: the run folder that training wrote.
        output: the model file to make.
        dataset: where the dataset of the run lies now; None looks where it lay at training.
        overwrite: replace an existing file.
        profile: "server" writes the file that `ipsrec score` takes; "edge" one that takes raw ids and gives raw ids in
            any ONNX Runtime, with no code beside it.
        precision: of the weights; "fp16" of the server is made for CUDA, and passes a gate with wider bounds.
        max_ndcg_drop: how far NDCG@10 of the validation users may fall from float32's, as a share of it; None for .001.
            Not with a server's "fp32" and "fp16", whose gate has bounds of its own.
        rules: what an edge file does with every user; None for EdgeRules(). Only with profile "edge".

    Returns:
        What was written.

    Raises:
        DataError: the run is not complete, its dataset is not there or is another one, the output exists, or the model
            cannot be had in this precision.
        ModelFileError: the gate is not passed, or the file holds anything else than the run; nothing is written.
        ValueError: rules or max_ndcg_drop for a server that takes none, or max_ndcg_drop is no number from 0 on.
    """
    if rules is not None and profile != "edge":
        raise ValueError("rules are of profile edge; `ipsrec score` has its own")
    if max_ndcg_drop is not None and profile == "server" and precision in ("fp32", "fp16"):
        raise ValueError(f"max_ndcg_drop is not for a server's {precision}, whose gate has bounds of its own")
    max_ndcg_drop = MAX_NDCG_DROP if max_ndcg_drop is None else max_ndcg_drop
    target = follow_link(refuse_existing(output, overwrite=overwrite))
    run = open_run(checkpoint)
    validation = _validation_histories(run, dataset)
    with (
        no_orphaned_data(target),
        atomic_file(target, overwrite=overwrite) as temporary,
        scratch_folder(target) as folder,
    ):
        draft = folder / target.name
        gate, tried = _write_server_file(
            run,
            draft,
            validation,
            precision=precision if profile == "server" else "fp32",
            max_ndcg_drop=max_ndcg_drop,
            is_draft=profile == "edge",
        )
        edge_gate = None
        if profile == "edge":
            edge = folder / f"{target.name}.edge"
            edge_gate, tried = write_edge_file(
                edge,
                open_model_file(draft),
                validation,
                rules=rules or EdgeRules(),
                precision=precision,
                max_ndcg_drop=max_ndcg_drop,
            )
            remove_with_data(draft)
            edge.rename(draft)
        parts = list(folder.iterdir())
        bytes_written = sum(part.stat().st_size for part in parts)
        # The data first, the graph last: a kill at any point leaves a graph beside the very data that it names.
        for data in parts:
            if data != draft:
                with atomic_file(target.with_name(data.name), overwrite=True) as temporary_data:
                    data.replace(temporary_data)
        draft.replace(temporary)
    return ExportReport(output=Path(output), bytes_written=bytes_written, gate=gate, edge_gate=edge_gate, tried=tried)


def _write_server_file(
    run: Run,
    draft: Path,
    validation: Histories,
    *,
    precision: PrecisionChoice,
    max_ndcg_drop: float,
    is_draft: bool,
) -> tuple[GateReport, PrecisionReport | None]:
    """Write the file that `ipsrec score` takes, and maybe external data beside it, and gate it.

    One that only an edge file is made of keeps the exporter's notes, which say what weight belongs to what layer.
    """
    model, catalog = load_model(run)
    terms = history_terms(model)
    proto = build_lean_graph(model) if precision == "fp16" else build_graph(model)
    stored: Precision = "fp16" if precision == "fp16" else "fp32"
    tried = items = None
    if precision in ("int8", "auto"):
        refuse_beyond_one_file(proto)
        trial = ServerTrial(proto, catalog, terms, max_len=model.settings.max_len, validation=validation)
        proto, chosen, candidates = choose_precision(trial, precision=precision, max_ndcg_drop=max_ndcg_drop)
        stored, tried = chosen.precision, PrecisionReport(chosen, candidates)
        items = trial.items_as(kinds_of(trial.weights, chosen.precision, chosen.kept))
    weights = weight_names(model.encoder, proto.graph) if stored == "fp32" else None
    if not is_draft:
        drop_node_notes(proto)
    add_metadata(
        proto,
        model=run.info["model"],
        settings=run.info["settings"],
        catalog=catalog,
        history_terms=None if terms is None else {name: part.tolist() for name, part in terms._asdict().items()},
        training=_training(run),
        gate=NOT_GATED,
        weights=weights,
        precision=stored,
        tried=tried,
    )
    write_graph(proto, draft)
    written = read_model_file(draft)
    refuse_other_contents(written, model, catalog, items=items)
    exported = Exported(
        _encoder(written), written.item_embeddings, written.catalog.item_provider, written.history_terms
    )
    gate = run_gate(model, exported, validation, bounds=BOUNDS[stored])
    gate.refuse_unless_passed()
    set_gate(proto, gate.as_metadata())
    onnx.save_model(proto, draft)
    return gate, tried


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
