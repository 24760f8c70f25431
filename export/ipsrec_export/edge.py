"""Makes the edge file of a model: the graph, its gate and its metadata."""

from __future__ import annotations

from pathlib import Path
from typing import Final

import onnx

from ipsrec_export.edge_gate import EdgeGateReport, run_edge_gate
from ipsrec_export.edge_graph import EdgeRules
from ipsrec_export.external_data import refuse_beyond_one_file
from ipsrec_export.metadata import NOT_GATED, add_edge_metadata, set_gate
from ipsrec_export.precision import PrecisionChoice, PrecisionReport, choose_precision
from ipsrec_export.trials import EdgeTrial
from ipsrec_onnx import Scorer
from ipsrec_onnx.graph_check import check_graph
from ipsrec_onnx.model_file import ModelFile
from ipsrec_onnx.session import open_session
from ipsrec_train.batches import Histories

_BYTES_AN_ID: Final = 32  # of the tables that find an id and give it back, beside the ids themselves


def write_edge_file(
    path: Path,
    model_file: ModelFile,
    validation: Histories,
    *,
    rules: EdgeRules,
    precision: PrecisionChoice,
    max_ndcg_drop: float,
) -> tuple[EdgeGateReport, PrecisionReport]:
    """Write an edge file that recommends what the model file does.

    Args:
        path: of the file to write.
        model_file: the model's file for `ipsrec score`, in float32, its gate passed.
        validation: validation histories of the run.
        rules: for every user.
        precision: of the weights; "auto" takes the smallest file that passes.
        max_ndcg_drop: how far NDCG@10 of the validation users may fall from float32's, as a share of it.

    Returns:
        What is stored in the file: its gate's verdict, and how its weights are stored.

    Raises:
        ModelFileError: a gate is not passed, or the graph is larger than one file can be.
        DataError: float16 does not hold a weight.
    """
    encoder, catalog = onnx.load(model_file.path), model_file.catalog
    refuse_beyond_one_file(encoder, more_bytes=_BYTES_AN_ID * catalog.num_items + 2 * catalog.item_ids.nbytes)
    trial = EdgeTrial(
        encoder,
        catalog,
        model_file.history_terms,
        max_len=model_file.max_len,
        rules=rules,
        validation=validation,
    )
    scorer = Scorer(model_file.path, top_k=rules.top_k, keep_seen=rules.keep_seen)
    # Whatever the weights are stored as, the graph around them is this one.
    exact = open_session(path, device="cpu", graph=trial.build({}).SerializeToString())
    gate = run_edge_gate(exact, scorer, catalog, validation, exact=True)
    gate.refuse_unless_passed()
    proto, chosen, candidates = choose_precision(trial, precision=precision, max_ndcg_drop=max_ndcg_drop)
    tried = PrecisionReport(chosen, candidates)
    add_edge_metadata(proto, model_file, rules=rules, tried=tried, gate=NOT_GATED)
    onnx.save_model(proto, path)
    onnx.checker.check_model(path)
    check_graph(path)
    written = open_session(path, device="cpu")
    if chosen.precision != "fp32":
        gate = run_edge_gate(written, scorer, catalog, validation, exact=False)
        gate.refuse_unless_passed()
    set_gate(proto, gate.as_metadata())
    onnx.save_model(proto, path)
    return gate, tried
