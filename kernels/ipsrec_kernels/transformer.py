"""Post-LayerNorm Transformer layers over the tokens of a group of users, which lie end to end."""

from __future__ import annotations

from numba import njit

from ipsrec_kernels.attention import attend_causally, attend_from_newest
from ipsrec_kernels.dense import dense, dense_into_panels
from ipsrec_kernels.encoder_arrays import CHUNK_ROWS
from ipsrec_kernels.gemm_tile import PANEL
from ipsrec_kernels.row_kernels import add_norm


@njit(cache=True, nogil=True)
def look_back(layers, number, query_number, asking, looked_at, residual, starts, step, norm, buffers, out):
    """One layer for all tokens, each looking at those of its user up to its own time.

    Args:
        layers: Layers.
        number: whose keys, values, output and feed-forward count.
        query_number: whose query matrix counts; in co-attention it may be the other stream's.
        asking: (rows, D) float32, states that queries are made of.
        looked_at: (rows, D) float32, states that keys and values are made of.
        residual: (rows, D) float32.
        starts: (users + 1,) int64, where each user's tokens start.
        step: tokens of one moment.
        norm: Norm.
        buffers: Buffers.
        out: (rows, D) float32, new states; may be any of the others.
    """
    heads, tokens = layers.key_absorbed.shape[1], starts[-1]
    queries, keys = buffers.queries, buffers.keys
    dense(asking, 0, 0, tokens, layers.query[query_number], layers.query_bias[query_number], queries, 0, 0, False)
    dense(looked_at, 0, 0, tokens, layers.key[number], layers.key_bias[number], keys, 0, 0, False)
    dense_into_panels(looked_at, tokens, layers.value[number], layers.value_bias[number], buffers.values)
    for user in range(len(starts) - 1):
        attend_causally(starts[user], starts[user + 1], step, heads, buffers)
    _close(layers, number, residual, tokens, norm, buffers, out)


@njit(cache=True, nogil=True)
def look_from_newest(layers, number, query_number, asking, looked_at, residual, starts, norm, buffers, out):
    """One layer for one token of each user, looking at all of the user's tokens.

    Keys and values of the tokens are never made. A score q (W_k x + b_k) is (W_k^T q) x and a number that the softmax
    does not see; a mix of values is W_v (mix of x) + b_v, for the shares sum to 1.

    Args:
        layers: Layers.
        number: whose keys, values, output and feed-forward count.
        query_number: whose query matrix counts.
        asking: (users, D) float32, states that queries are made of.
        looked_at: (rows, D) float32, states of all tokens.
        residual: (users, D) float32.
        starts: (users + 1,) int64, where each user's tokens start.
        norm: Norm.
        buffers: Buffers.
        out: (users, D) float32, new states; may be asking or residual.
    """
    users, dim = len(starts) - 1, looked_at.shape[1]
    heads, width = layers.key_absorbed.shape[1], layers.key_absorbed.shape[3]
    queries, mixed = buffers.newest_queries, buffers.newest_mixed
    dense(
        asking, 0, 0, users, layers.query[query_number], layers.query_bias[query_number], buffers.queries, 0, 0, False
    )
    for head in range(heads):
        absorbed = layers.key_absorbed[number, head]
        dense(buffers.queries, 0, head * width, users, absorbed, buffers.zeros, queries, 0, head * dim, False)
    for user in range(users):
        attend_from_newest(user, looked_at, starts[user], starts[user + 1], heads, buffers)
    for head in range(heads):
        values = layers.value[number, head * width // PANEL : (head + 1) * width // PANEL]
        bias = layers.value_bias[number, head * width :]
        dense(mixed, 0, head * dim, users, values, bias, buffers.mixed, 0, head * width, False)
    _close(layers, number, residual, users, norm, buffers, out)


@njit(cache=True, nogil=True)
def _close(layers, number, residual, count, norm, buffers, out):
    """Output projection of buffers.mixed, Add & Norm, feed-forward, Add & Norm, a chunk of rows at a time."""
    added, inner = buffers.added, buffers.inner
    for first in range(0, count, CHUNK_ROWS):
        rows = min(CHUNK_ROWS, count - first)
        dense(buffers.mixed, first, 0, rows, layers.output[number], layers.output_bias[number], added, 0, 0, False)
        add_norm(
            residual, added, layers.attention_scale[number], layers.attention_shift[number], first, rows, norm, out
        )
        dense(out, first, 0, rows, layers.inner[number], layers.inner_bias[number], inner, 0, 0, True)
        dense(inner, 0, 0, rows, layers.outer[number], layers.outer_bias[number], added, 0, 0, False)
        add_norm(
            out, added, layers.feed_forward_scale[number], layers.feed_forward_shift[number], first, rows, norm, out
        )
