"""The plain export of a model, as one writes it first: every layer at every position, and then the last one is taken.

It is the rival of the exported graph (bench_encoder.py) and the model of naive_job.py. The weights are those of the
model file that synthetic_model.py makes of the same world, so that vectors and lists can be compared.
"""

from __future__ import annotations

import logging
import warnings
from pathlib import Path

import onnx
import onnxruntime
import torch
from synthetic import SIZES, Ids, Kind, make_world
from synthetic_model import make_model
from torch import Tensor, nn
from torch.nn import functional as F

from ipsrec_export.graph import OPSET
from ipsrec_train.layers import take_last
from ipsrec_train.model import Model
from ipsrec_train.packed import PackedHistories


class PlainGraph(nn.Module):
    """Right-padded histories in, user vectors out; with `scores`, the scores of all items instead.

    Args:
        model: in evaluation mode.
        scores: multiply by the item table in the graph.
    """

    def __init__(self, model: Model, *, scores: bool) -> None:
        super().__init__()
        self.item_embeddings = nn.Parameter(model.item_embeddings().detach().clone(), requires_grad=False)
        self.provider_embeddings = nn.Parameter(model.providers.weight.detach().clone(), requires_grad=False)
        self.encoder = model.encoder
        self.scores = scores

    def forward(self, item_history: Tensor, provider_history: Tensor, lengths: Tensor) -> Tensor:
        """(B, L), (B, L), (B,) int64 -> (B, D), or (B, num_items + 1) scores."""
        items = F.embedding(item_history, self.item_embeddings)  # (B, L, D)
        providers = F.embedding(provider_history, self.provider_embeddings)
        # One segment for all rows: causal attention needs no more where padding stands on the right.
        at = torch.arange(item_history.shape[1]).unsqueeze(0)  # (1, L)
        states, _ = self.encoder(items, providers, PackedHistories(item_history, at, torch.zeros_like(at)))
        user = take_last(states, lengths).squeeze(1)  # (B, D)
        return user @ self.item_embeddings.T if self.scores else user


def plain_file(
    folder: Path, name: str, *, model: str, kind: Kind = "trained", ids: Ids = "int64", scores: bool = False
) -> Path:
    """Export the plain graph of a size unless it lies there already; int64 inputs, both axes dynamic."""
    path = folder / f"{name}-{kind}-{ids}-{model}-plain{'-scores' if scores else ''}.onnx"
    if path.is_file():
        return path
    folder.mkdir(parents=True, exist_ok=True)
    world = make_world(SIZES[name], kind=kind, ids=ids)
    graph = PlainGraph(make_model(world, model=model, history_terms="none"), scores=scores).eval()
    batch = torch.export.Dim("batch", min=1, max=2**20)
    sequence = torch.export.Dim("sequence", min=1, max=world.size.max_len)
    history = {0: batch, 1: sequence}
    example = (torch.ones(2, 3, dtype=torch.int64), torch.ones(2, 3, dtype=torch.int64), torch.tensor([3, 1]))
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    with warnings.catch_warnings():  # the exporter tells developers of torch many things
        warnings.simplefilter("ignore")
        program = torch.onnx.export(
            graph,
            example,
            dynamo=True,
            opset_version=OPSET,
            input_names=["item_history", "provider_history", "lengths"],
            output_names=["scores" if scores else "user_embedding"],
            dynamic_shapes={"item_history": history, "provider_history": history, "lengths": {0: batch}},
            verbose=False,
        )
    assert program is not None
    onnx.save_model(program.model_proto, path)
    return path


def plain_session(path: Path, *, threads: int) -> onnxruntime.InferenceSession:
    """Open a plain graph the plain way: one session, all threads inside of it."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
