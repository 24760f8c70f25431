"""The arrays that the fused encoder works on: packed weights, what streams start from, and scratch."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numba import njit

from ipsrec_kernels.array_types import Float32Array, Int64Array
from ipsrec_kernels.gemm_tile import FEW_ROWS, LANES, PANEL, ROWS

CHUNK_ROWS = 8 * ROWS  # tokens that a layer is closed for at once: their inner states stay in the first-level cache
SLACK_ROWS = max(LANES, ROWS)  # behind the rows that count: a last tile or block is worked on to its end


class Norm(NamedTuple):
    """What all LayerNorms of a model share.

    Attributes:
        dim: of the model, without padding.
        eps: float32, added to the variance.
    """

    dim: int
    eps: np.float32


class StreamInput(NamedTuple):
    """What the tokens of one stream start from.

    Attributes:
        table: (entries + 1, dim) float32 embeddings.
        place: (max_len, dim) float32 by position from the oldest, the segment embedding included.
        scale: (D,) float32 of the LayerNorm that follows; D is dim padded, with 0.
        shift: (D,) float32.
    """

    table: Float32Array
    place: Float32Array
    scale: Float32Array
    shift: Float32Array


class Layers(NamedTuple):
    """Packed weights of n layers. D states padded, A heads padded side by side, I inner width padded, in PANELs.

    Attributes:
        query: (n, A / PANEL, D, PANEL) float32, divided by the root of a head's width.
        query_bias: (n, A), so too.
        key: (n, A / PANEL, D, PANEL).
        key_bias: (n, A).
        key_absorbed: (n, heads, D / PANEL, A / heads, PANEL), the transposed key matrix of each head.
        value: (n, A / PANEL, D, PANEL).
        value_bias: (n, A).
        output: (n, D / PANEL, A, PANEL).
        output_bias: (n, D).
        attention_scale: (n, D), as the other three of LayerNorm; 0 behind the model's dim.
        attention_shift: (n, D).
        inner: (n, I / PANEL, D, PANEL).
        inner_bias: (n, I).
        outer: (n, D / PANEL, I, PANEL).
        outer_bias: (n, D).
        feed_forward_scale: (n, D).
        feed_forward_shift: (n, D).
    """

    query: Float32Array
    query_bias: Float32Array
    key: Float32Array
    key_bias: Float32Array
    key_absorbed: Float32Array
    value: Float32Array
    value_bias: Float32Array
    output: Float32Array
    output_bias: Float32Array
    attention_scale: Float32Array
    attention_shift: Float32Array
    inner: Float32Array
    inner_bias: Float32Array
    outer: Float32Array
    outer_bias: Float32Array
    feed_forward_scale: Float32Array
    feed_forward_shift: Float32Array


class Buffers(NamedTuple):
    """Scratch for the tokens of one group: R rows, S tokens of the longest user.

    Attributes:
        queries: (R, A) float32.
        keys: (R, A).
        values: (A / PANEL, R, PANEL).
        mixed: (R, A), what attention gives.
        added: (CHUNK_ROWS, D), what is added to the states; with slack, as inner.
        inner: (CHUNK_ROWS, I).
        turned: (A / heads * S padded,), keys of one head, tokens side by side.
        scores: (ROWS, S padded).
        counts: (FEW_ROWS,) int64, how many scores of each row count.
        newest_queries: (users, heads * D).
        newest_mixed: (users, heads * D).
        zeros: (the longest row of sums that start from 0,), never written to.
    """

    queries: Float32Array
    keys: Float32Array
    values: Float32Array
    mixed: Float32Array
    added: Float32Array
    inner: Float32Array
    turned: Float32Array
    scores: Float32Array
    counts: Int64Array
    newest_queries: Float32Array
    newest_mixed: Float32Array
    zeros: Float32Array


@njit(cache=True, nogil=True)
def make_buffers(layers, rows, users, longest):
    """Scratch for groups of up to `rows` tokens and `users` users, none of more than `longest` tokens."""
    heads, width = layers.key_absorbed.shape[1], layers.key_absorbed.shape[3]
    dim, inner = layers.output_bias.shape[1], layers.inner_bias.shape[1]
    across = (longest + PANEL - 1) // PANEL * PANEL
    return Buffers(
        np.zeros((rows + SLACK_ROWS, heads * width), np.float32),
        np.zeros((rows + SLACK_ROWS, heads * width), np.float32),
        np.zeros((heads * width // PANEL, rows + SLACK_ROWS, PANEL), np.float32),
        np.zeros((rows + SLACK_ROWS, heads * width), np.float32),
        np.zeros((CHUNK_ROWS + SLACK_ROWS, dim), np.float32),
        np.zeros((CHUNK_ROWS + SLACK_ROWS, inner), np.float32),
        np.zeros(width * across, np.float32),
        np.zeros((ROWS, across), np.float32),
        np.zeros(FEW_ROWS, np.int64),
        np.zeros((users + SLACK_ROWS, heads * dim), np.float32),
        np.zeros((users + SLACK_ROWS, heads * dim), np.float32),
        np.zeros(max(across, dim, width), np.float32),
    )
