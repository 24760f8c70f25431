"""A trained attention encoder rewritten for half precision on a GPU: the same function with fewer, larger steps.

Attention is one node, MultiHeadAttention of ONNX Runtime, without bias inputs: with them, kernels that add a bias and
transpose take a quarter of the time. Three biases need no node at all. That of the keys adds the same number to all
scores of a query, which the softmax does not see; that of the values passes through, for a query's shares sum to 1, and
goes into the output's bias; that of a segment goes into the position embeddings.
"""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ipsrec_onnx.errors import DataError
from ipsrec_train.ipsrec_c import IPSRecC
from ipsrec_train.ipsrec_s import IPSRecS
from ipsrec_train.layers import StreamInput, TransformerLayer
from ipsrec_train.model import Model
from ipsrec_train.sasrec import SASRec

MODELS = ("ipsrec-c", "ipsrec-s", "sasrec")
LARGEST_HALF = 65504.0  # float16 has nothing between this and infinity
# What a mask adds to a score in float16, which has no -1e9. Finite, and its exponential is 0 in float32.
BLOCKED_HALF = -32752.0


class LeanLayer(nn.Module):
    """A trained TransformerLayer for export: takes what that takes, and computes nothing outside of torch.onnx.export.

    Args:
        layer: trained; stays as it is.
        halves: keys are two halves, items and their providers, each in the order of time. Where it is False, a mask
            lets a query look at keys 0..t, or at the first of a history.
    """

    def __init__(self, layer: TransformerLayer, *, halves: bool) -> None:
        super().__init__()
        layer = copy.deepcopy(layer)
        self.num_heads, self.halves = layer.num_heads, halves
        self.query = layer.query
        self.key, self.value = (_without_bias(linear) for linear in (layer.key, layer.value))
        self.output = layer.output
        with torch.no_grad():
            self.output.bias.add_(layer.output.weight.double() @ layer.value.bias.double())
        self.attention_norm, self.feed_forward_norm = layer.attention_norm, layer.feed_forward_norm
        self.inner, self.outer = layer.inner, layer.outer

    def forward(self, at: Tensor, states: Tensor, mask: Tensor) -> Tensor:
        """As TransformerLayer.forward."""
        return self.attend(at, self.query(at), states, mask=mask)

    def attend(self, residual: Tensor, queries: Tensor, keys: Tensor, *, mask: Tensor) -> Tensor:
        """As TransformerLayer.attend; the mask is one of those that encode_last makes.

        One that differs by user is of the newest position, and becomes as many keys as it lets that see, int32 (B,).
        One for all users has 1 for its batch axis, which the exporter knows.
        """
        key_lengths, bias, causal = None, None, 0
        if not isinstance(mask.shape[0], int):
            if self.halves:  # keys in any order give the same: in pairs, those of a history come first
                keys = keys.unflatten(1, (2, -1)).transpose(1, 2).flatten(1, 2)
            key_lengths = (mask.squeeze((1, 2)) == 0).sum(-1, dtype=torch.int32)
        elif self.halves:
            bias = mask.clamp(min=BLOCKED_HALF).to(queries.dtype)
        else:
            causal = 1
        looked = torch.onnx.ops.symbolic(
            "com.microsoft::MultiHeadAttention",
            [queries, self.key(keys), self.value(keys), *_trailing(key_lengths, bias)],
            {"num_heads": self.num_heads, "unidirectional": causal},
            dtype=queries.dtype,
            shape=queries.shape,
            version=1,
        )  # (B, Q, D)
        states = self.attention_norm(residual + self.output(looked))
        closed: Tensor = self.feed_forward_norm(states + self.outer(F.gelu(self.inner(states))))
        return closed


class LeanGraph(nn.Module):
    """What is exported in place of ExportGraph; scores are still made with the float32 item table.

    Args:
        model: a trained model, in evaluation mode.
        dtype: of weights and states inside of the encoder: float16; float32 shows what the rewriting alone changes.

    Raises:
        DataError: the model has no lean form, or a weight is beyond float16.
    """

    def __init__(self, model: Model, *, dtype: torch.dtype = torch.float16) -> None:
        super().__init__()
        encoder = lean_encoder(model)
        providers = model.providers.weight.detach().clone()
        table = model.item_embeddings().detach().clone()
        if dtype == torch.float16:
            _refuse_beyond_half({**encoder.state_dict(), "providers": providers, "items": table})
        self.item_embeddings = nn.Parameter(table, requires_grad=False)
        self.provider_embeddings = nn.Parameter(providers.to(dtype), requires_grad=False)
        self.encoder = encoder.to(dtype)
        self.dtype = dtype

    def forward(self, item_history: Tensor, provider_history: Tensor, lengths: Tensor) -> Tensor:
        """(B, L) int32, (B, L) int32, (B,) int32 -> (B, D) float32 user_embedding."""
        items = F.embedding(item_history, self.item_embeddings).to(self.dtype)  # (B, L, D)
        providers = F.embedding(provider_history, self.provider_embeddings)  # (B, L, D)
        user = self.encoder.encode_last(items, providers, item_history.long(), lengths.long().clamp(min=1))
        return user.float()


def lean_encoder(model: Model) -> IPSRecC | IPSRecS | SASRec:
    """Rewrite a copy of a model's encoder, still in float32.

    Raises:
        DataError: the model is not made of Transformer layers.
    """
    if not isinstance(model.encoder, IPSRecC | IPSRecS | SASRec):
        raise DataError(
            f"export: --precision fp16 has {', '.join(MODELS)}, found {model.name}; export it with --precision fp32"
        )
    encoder = copy.deepcopy(model.encoder)
    halves = isinstance(encoder, IPSRecS) and not encoder.released
    for part in list(encoder.modules()):
        for name, child in part.named_children():
            if isinstance(child, TransformerLayer):
                setattr(part, name, LeanLayer(child, halves=halves))
        if isinstance(part, StreamInput) and part.segment is not None:
            with torch.no_grad():
                part.position.add_(part.segment)
            part.segment = None
    return encoder


def _without_bias(linear: nn.Linear) -> nn.Linear:
    bare = nn.Linear(linear.in_features, linear.out_features, bias=False)
    bare.weight = linear.weight
    return bare


def _trailing(key_lengths: Tensor | None, bias: Tensor | None) -> list[Tensor | None]:
    """Inputs 3 to 5 of MultiHeadAttention, its own bias and what follows the last one given left out."""
    inputs = [None, key_lengths, bias]
    while inputs and inputs[-1] is None:
        inputs.pop()
    return inputs


def _refuse_beyond_half(weights: dict[str, Tensor]) -> None:
    for name, weight in weights.items():
        largest = float(weight.abs().max())
        if LARGEST_HALF < largest < float("inf"):
            raise DataError(
                f"export: weight {name} reaches {largest:.6g}, float16 ends at {LARGEST_HALF:.0f}; "
                "export with --precision fp32"
            )
