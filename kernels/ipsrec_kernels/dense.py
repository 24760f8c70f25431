"""Dense layers over many tokens: packed weights, and the product of tiles."""

from __future__ import annotations

import numpy as np
from numba import njit

from ipsrec_kernels.array_types import Float32Array
from ipsrec_kernels.gemm_tile import (
    FEW_ROWS,
    PANEL,
    ROWS,
    gelu_tile_of_few_rows,
    gelu_tile_of_rows,
    tile_of_few_rows,
    tile_of_rows,
)
from ipsrec_kernels.vectors import BYTES, never_inline


def padded(width: int) -> int:
    """The next whole number of panels: what rows of states are long."""
    return -(-width // PANEL) * PANEL


def pack_weights(weights: Float32Array, *, rows: int, columns: int) -> Float32Array:
    """Lay the weights of a dense layer out in panels, zeros where there are none.

    Args:
        weights: (inputs, outputs) float32.
        rows: inputs or more; what the rows of X are long.
        columns: outputs or more, whole panels.

    Returns:
        (columns / PANEL, rows, PANEL) float32.

    Raises:
        ValueError: the columns are no whole panels, or the weights are larger.
    """
    inputs, outputs = weights.shape
    if columns % PANEL or inputs > rows or outputs > columns:
        raise ValueError(
            f"weights are {inputs} x {outputs}, expected to fit into {rows} x {columns}, panels of {PANEL}"
        )
    whole = np.zeros((rows, columns), np.float32)
    whole[:inputs, :outputs] = weights
    return np.ascontiguousarray(whole.reshape(rows, columns // PANEL, PANEL).transpose(1, 0, 2))


@njit(cache=True, nogil=True)
def multiply(out, out_stride, out_step, x, x_stride, count, panels, panel_step, num_panels, inputs, start, activate):
    """Write out[:count, :num_panels * PANEL] = act(start + x[:count, :inputs] W), act GELU or nothing.

    Rows are done FEW_ROWS at a time at least: up to FEW_ROWS - 1 more are read and written.

    Args:
        out: address of float32, as x, panels and start.
        out_stride: from row to row, in elements like all strides and steps.
        out_step: from the outputs of one panel to those of the next.
        x: not out.
        x_stride: from row to row.
        count: rows to do.
        panels: W in panels of (inputs, PANEL).
        panel_step: from panel to panel.
        num_panels: how many.
        inputs: rows of W.
        start: (num_panels * PANEL,) what the sums start from.
        activate: whether GELU follows.
    """
    never_inline()
    for number in range(num_panels):
        panel = panels + number * panel_step * BYTES
        bias = start + number * PANEL * BYTES
        row = 0
        while row < count:
            from_ = x + row * x_stride * BYTES
            to = out + (row * out_stride + number * out_step) * BYTES
            if count - row > ROWS - FEW_ROWS:
                if activate:
                    gelu_tile_of_rows(to, out_stride, from_, x_stride, panel, inputs, bias)
                else:
                    tile_of_rows(to, out_stride, from_, x_stride, panel, inputs, bias)
                row += ROWS
            else:
                if activate:
                    gelu_tile_of_few_rows(to, out_stride, from_, x_stride, panel, inputs, bias)
                else:
                    tile_of_few_rows(to, out_stride, from_, x_stride, panel, inputs, bias)
                row += FEW_ROWS


@njit(cache=True, nogil=True)
def dense(x, x_row, x_column, count, panels, bias, out, out_row, out_column, activate):
    """Write out[out_row:, out_column:] = act(bias + x[x_row:, x_column:] W) for `count` rows, act GELU or nothing.

    Args:
        x: (rows, ...) float32; up to ROWS more rows than `count` are read.
        x_row: where they begin.
        x_column: where the inputs of the layer begin.
        count: rows to do.
        panels: (P, inputs, PANEL) float32 of pack_weights.
        bias: (P * PANEL,) float32.
        out: (rows, ...) float32, not x; up to ROWS more rows than `count` are written.
        out_row: where they begin.
        out_column: where the outputs of the layer begin.
        activate: whether GELU follows.
    """
    inputs = panels.shape[1]
    multiply(
        out.ctypes.data + (out_row * out.shape[1] + out_column) * BYTES,
        out.shape[1],
        PANEL,
        x.ctypes.data + (x_row * x.shape[1] + x_column) * BYTES,
        x.shape[1],
        count,
        panels.ctypes.data,
        inputs * PANEL,
        len(panels),
        inputs,
        bias.ctypes.data,
        activate,
    )


@njit(cache=True, nogil=True)
def dense_into_panels(x, count, panels, bias, out):
    """Write bias + x W for the first rows as `multiply` reads its second factor: out (P, rows, PANEL) float32."""
    inputs = panels.shape[1]
    multiply(
        out.ctypes.data,
        PANEL,
        out.shape[1] * PANEL,
        x.ctypes.data,
        x.shape[1],
        count,
        panels.ctypes.data,
        inputs * PANEL,
        len(panels),
        inputs,
        bias.ctypes.data,
        False,
    )
