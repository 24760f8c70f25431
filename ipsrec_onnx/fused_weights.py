"""Packs the weights of a model's Transformer layers for the fused encoder's kernels."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

import numpy as np
import numpy.typing as npt

from ipsrec_kernels.dense import pack_weights, padded
from ipsrec_kernels.encoder_arrays import Layers

Float32Array = npt.NDArray[np.float32]

_PARTS = ("query", "key", "value", "output", "inner", "outer", "attention_norm", "feed_forward_norm")


def pack_layers(
    weights: Mapping[str, Float32Array],
    layers: Sequence[str],
    *,
    parts: Collection[str],
    dim: int,
    num_heads: int,
    inner_dim: int,
) -> Layers:
    """Pack layers of one shape one behind the other.

    Args:
        weights: by name in the encoder's state_dict, matrices as (inputs, outputs).
        layers: their names, what comes before the part in a weight's name.
        parts: "layer.part" of all that is looked at; of the others zeros are packed.
        dim: of a state.
        num_heads: of equal width.
        inner_dim: of the feed-forward.

    Returns:
        The layers in this order.

    Raises:
        KeyError: a weight is missing.
        ValueError: one has another shape.
    """
    packed = []
    for layer in layers:
        names = {f"{part}.{kind}": f"{layer}.{part}" in parts for part in _PARTS for kind in ("weight", "bias")}
        used = {name: weights[f"{layer}.{name}"] if is_used else None for name, is_used in names.items()}
        packed.append(_pack_layer(used, dim, num_heads, inner_dim))
    return Layers(*(np.stack(part) for part in zip(*packed, strict=True)))


def _pack_layer(parts: Mapping[str, Float32Array | None], dim: int, num_heads: int, inner_dim: int) -> Layers:
    """One layer, without the leading axis."""

    def matrix(name: str, inputs: int, outputs: int) -> Float32Array:
        return _shaped(parts[f"{name}.weight"], (inputs, outputs), name)

    def vector(name: str, size: int, kind: str = "bias") -> Float32Array:
        return _shaped(parts[f"{name}.{kind}"], (size,), name)

    states, head, inner = padded(dim), padded(dim // num_heads), padded(inner_dim)
    heads = num_heads * head
    scale = (dim // num_heads) ** -0.5
    query = _spread(matrix("query", dim, dim), num_heads, head) * np.float32(scale)
    key, value = (_spread(matrix(name, dim, dim), num_heads, head) for name in ("key", "value"))
    query_bias, key_bias, value_bias = (
        _spread(vector(name, dim)[None], num_heads, head)[0] for name in ("query", "key", "value")
    )
    output = _spread(matrix("output", dim, dim).T, num_heads, head).T
    by_head = [slice(number * head, (number + 1) * head) for number in range(num_heads)]
    return Layers(
        query=pack_weights(query, rows=states, columns=heads),
        query_bias=query_bias * np.float32(scale),
        key=pack_weights(key, rows=states, columns=heads),
        key_bias=key_bias,
        key_absorbed=np.stack([pack_weights(key[:, at].T, rows=head, columns=states) for at in by_head]),
        value=pack_weights(value, rows=states, columns=heads),
        value_bias=value_bias,
        output=pack_weights(output, rows=heads, columns=states),
        output_bias=lengthened(vector("output", dim), states),
        attention_scale=lengthened(vector("attention_norm", dim, "weight"), states),
        attention_shift=lengthened(vector("attention_norm", dim), states),
        inner=pack_weights(matrix("inner", dim, inner_dim), rows=states, columns=inner),
        inner_bias=lengthened(vector("inner", inner_dim), inner),
        outer=pack_weights(matrix("outer", inner_dim, dim), rows=inner, columns=states),
        outer_bias=lengthened(vector("outer", dim), states),
        feed_forward_scale=lengthened(vector("feed_forward_norm", dim, "weight"), states),
        feed_forward_shift=lengthened(vector("feed_forward_norm", dim), states),
    )


def _shaped(array: Float32Array | None, shape: tuple[int, ...], name: str) -> Float32Array:
    if array is None:
        return np.zeros(shape, np.float32)
    if array.shape != shape:
        raise ValueError(f"{name} has shape {array.shape}, expected {shape}")
    return array


def _spread(columns: Float32Array, num_heads: int, width: int) -> Float32Array:
    """(rows, dim) -> (rows, num_heads * width): each head's columns in panels of their own, zeros behind them."""
    by_head = columns.reshape(len(columns), num_heads, -1)
    wide = np.zeros((len(columns), num_heads, width), np.float32)
    wide[:, :, : by_head.shape[2]] = by_head
    return wide.reshape(len(columns), -1)


def lengthened(vector: Float32Array, size: int) -> Float32Array:
    """Put zeros behind a vector."""
    return np.concatenate([vector, np.zeros(size - len(vector), np.float32)])
