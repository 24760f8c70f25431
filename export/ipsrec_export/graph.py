"""A trained model as an ONNX graph with dynamic batch and sequence axes."""

from __future__ import annotations

import contextlib
import logging
import warnings
from collections.abc import Iterator

import onnx
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ipsrec_export.lean import LeanGraph
from ipsrec_train.model import Model

# Opset 20 is the newest that every ONNX Runtime since 1.17 runs, those for Node and the browser included. From opset 23
# attention is one node instead of a few; on a CPU that gives 3 to 6 percent, and takes the older runtimes away.
OPSET = 20
INPUTS = ("item_history", "provider_history", "lengths")
USER_EMBEDDING, ITEM_EMBEDDINGS = "user_embedding", "item_embeddings"


class ExportGraph(nn.Module):
    """What is exported: the provider folded into the item table, which serves the input and the score alike."""

    def __init__(self, model: Model) -> None:
        super().__init__()
        self.item_embeddings = nn.Parameter(model.item_embeddings().detach().clone(), requires_grad=False)
        self.provider_embeddings = nn.Parameter(model.providers.weight.detach().clone(), requires_grad=False)
        self.encoder = model.encoder

    def forward(self, item_history: Tensor, provider_history: Tensor, lengths: Tensor) -> Tensor:
        """(B, L) int32, (B, L) int32, (B,) int32 -> (B, D) float32 user_embedding."""
        items = F.embedding(item_history, self.item_embeddings)  # (B, L, D)
        providers = F.embedding(provider_history, self.provider_embeddings)  # (B, L, D)
        return self.encoder.encode_last(items, providers, item_history.long(), lengths.long().clamp(min=1))


def build_graph(model: Model) -> onnx.ModelProto:
    """Export a model in evaluation mode, all in float32.

    Returns:
        Inputs item_history and provider_history (batch, sequence) and lengths (batch,), int32, 1 <= sequence <=
        max_len. Outputs user_embedding (batch, dim) and item_embeddings (num_items + 1, dim), float32: the latter is
        an initializer shown as an output, so that any ONNX Runtime can read the table that scores are made with.
    """
    return _export(model, ExportGraph(model))


def build_lean_graph(model: Model, *, dtype: torch.dtype = torch.float16) -> onnx.ModelProto:
    """Export a model in evaluation mode for half precision on a GPU; inputs and outputs as build_graph.

    Args:
        model: one of lean.MODELS.
        dtype: of the weights and states of the encoder; `item_embeddings` and `user_embedding` are float32.

    Raises:
        DataError: another model, or a weight that float16 does not hold.
    """
    return _export(model, LeanGraph(model, dtype=dtype))


def _export(model: Model, graph: nn.Module) -> onnx.ModelProto:
    """Trace a graph that has an `item_embeddings`."""
    # Axes of an example must not be 0 or 1, or torch.export would fix them; any two others do.
    width = min(3, model.settings.max_len)
    example = (
        torch.ones(2, width, dtype=torch.int32),
        torch.ones(2, width, dtype=torch.int32),
        torch.tensor([width, 1], dtype=torch.int32),
    )
    batch = torch.export.Dim("batch", min=1, max=2**20)
    shape = {0: batch}
    if model.settings.max_len > 1:
        shape[1] = torch.export.Dim("sequence", min=1, max=model.settings.max_len)
    with _quiet():
        program = torch.onnx.export(
            graph.eval(),
            example,
            dynamo=True,
            opset_version=OPSET,
            input_names=list(INPUTS),
            output_names=[USER_EMBEDDING],
            dynamic_shapes={"item_history": shape, "provider_history": shape, "lengths": {0: batch}},
            verbose=False,
        )
    if program is None:
        raise RuntimeError("torch.onnx.export gave no program")
    proto = program.model_proto
    table = next(initializer for initializer in proto.graph.initializer if initializer.name == ITEM_EMBEDDINGS)
    proto.graph.output.append(onnx.helper.make_tensor_value_info(ITEM_EMBEDDINGS, table.data_type, table.dims))
    return proto


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """The exporter tells developers of torch many things; none of them helps a user of this project."""
    previous = logging.root.manager.disable
    logging.disable(logging.WARNING)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            yield
        finally:
            logging.disable(previous)
