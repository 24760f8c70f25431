"""Softmax attention over one user's own tokens, one head after the other.

Two forms: every token looks at those up to its own time, or one token alone looks at all.
"""

from __future__ import annotations

import numpy as np
from numba import njit

from ipsrec_kernels.dense import multiply
from ipsrec_kernels.gemm_tile import FEW_ROWS, LANES, PANEL, ROWS
from ipsrec_kernels.row_kernels import softmax_row, softmax_rows, turn_block
from ipsrec_kernels.vectors import BYTES, never_inline


@njit(cache=True, nogil=True)
def attend_causally(start, stop, step, heads, buffers):
    """Let the tokens start..stop - 1 look at each other, backwards in time: buffers.mixed from queries, keys, values.

    Args:
        start: first token of the user.
        stop: the token behind the last; a few rows of buffers.mixed behind it are overwritten.
        step: tokens of one moment, which see each other: 1, or 2 where items and providers alternate.
        heads: of equal width, whole panels.
        buffers: Buffers; the queries are scaled already.
    """
    never_inline()
    queries, out, values = buffers.queries, buffers.mixed, buffers.values
    turned, scores, counts, zeros = buffers.turned, buffers.scores, buffers.counts, buffers.zeros
    width = queries.shape[1] // heads
    tokens = stop - start
    stride, score_stride, values_step = queries.shape[1], scores.shape[1], values.shape[1] * PANEL
    for head in range(heads):
        column = head * width
        _turn_keys(
            buffers.keys.ctypes.data + (start * stride + column) * BYTES, stride, width, tokens, turned.ctypes.data
        )
        values_of_head = values.ctypes.data + (column // PANEL * values_step + start * PANEL) * BYTES
        for first in range(0, tokens, ROWS):
            rows = min(ROWS, tokens - first)
            at = ((start + first) * stride + column) * BYTES
            visible = min(tokens, ((first + rows - 1) // step + 1) * step)
            multiply(
                scores.ctypes.data,
                score_stride,
                PANEL,
                queries.ctypes.data + at,
                stride,
                rows,
                turned.ctypes.data,
                width * PANEL,
                (visible + PANEL - 1) // PANEL,
                width,
                zeros.ctypes.data,
                False,
            )
            across = (visible + LANES - 1) // LANES * LANES
            for row in range(0, rows, FEW_ROWS):
                for number in range(FEW_ROWS):
                    counts[number] = min(visible, ((first + row + number) // step + 1) * step)
                softmax_rows(scores.ctypes.data + row * score_stride * BYTES, score_stride, counts.ctypes.data, across)
            multiply(
                out.ctypes.data + at,
                stride,
                PANEL,
                scores.ctypes.data,
                score_stride,
                rows,
                values_of_head,
                values_step,
                width // PANEL,
                visible,
                zeros.ctypes.data,
                False,
            )


@njit(cache=True, nogil=True)
def _turn_keys(keys, stride, width, tokens, turned):
    """Copy one head's keys so that neighbours in memory are tokens: panels of (width, PANEL); addresses."""
    for token in range(0, tokens, LANES):
        number, lane = divmod(token, PANEL)
        for k in range(0, width, LANES):
            to = turned + ((number * width + k) * PANEL + lane) * BYTES
            turn_block(keys + (token * stride + k) * BYTES, stride, to, PANEL)


@njit(cache=True, nogil=True, fastmath={"reassoc", "contract"})
def attend_from_newest(user, states, start, stop, heads, buffers):
    """Let one token of a user look at all: buffers.newest_mixed from newest_queries, both a row for each user.

    Args:
        user: the row.
        states: (rows, width) float32, keys and values at once.
        start: first token of the user.
        stop: the token behind the last.
        heads: how many.
        buffers: Buffers; each head's query was carried through its key matrix.
    """
    never_inline()
    queries, out, scores, counts = buffers.newest_queries, buffers.newest_mixed, buffers.scores, buffers.counts
    width = states.shape[1]
    tokens = stop - start
    counts[0] = tokens
    across = (tokens + LANES - 1) // LANES * LANES
    weights = scores[0]
    for head in range(heads):
        query = queries[user, head * width : (head + 1) * width]
        for token in range(tokens):
            state = states[start + token]
            total = np.float32(0)
            for d in range(width):
                total += query[d] * state[d]
            weights[token] = total
        softmax_row(weights.ctypes.data, scores.shape[1], counts.ctypes.data, across)
        mixed = out[user, head * width : (head + 1) * width]
        for d in range(width):
            mixed[d] = np.float32(0)
        for token in range(tokens):
            state = states[start + token]
            weight = weights[token]
            for d in range(width):
                mixed[d] += weight * state[d]
