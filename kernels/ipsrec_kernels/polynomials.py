"""The exp and the erf-GELU of a vector of float32, for intrinsics: Numba's own do not vectorise.

The coefficients are minimax fits (iteratively reweighted least squares in float64) rounded to float32; the errors
below were measured over every range that matters, against float64.
"""

from __future__ import annotations

from typing import Final

import numpy as np
from llvmlite import ir

from ipsrec_kernels.vectors import constant, fma, vector_of

_FLOAT = ir.FloatType()
_INT32 = ir.IntType(32)

# erf(x / sqrt 2) / 2 = x P(x^2) / Q(x^2) up to where the float32 next to erf is 1: 8e-9 off before rounding.
_ERF_END: Final = 5.543717
_ERF_P: Final = (
    2.2480811879e-08,
    6.3524212237e-06,
    1.7095588555e-04,
    4.6899183653e-03,
    3.4076057374e-02,
    3.9894220233e-01,
)
_ERF_Q: Final = (
    1.1897035392e-06,
    7.4256531661e-05,
    1.8965279451e-03,
    2.8771072626e-02,
    2.5208184123e-01,
    1.0000000000e00,
)

# exp(r) = 1 + r + r^2 P(r) for |r| <= ln(2) / 2: 3.1e-9 off before rounding.
_EXP_P: Final = (1.3814612757e-03, 8.3687100559e-03, 4.1668388993e-02, 1.6666521132e-01, 4.9999994040e-01)
_EXP_LOWEST: Final = -87.0  # below, the result would leave the normal numbers; 1.6e-38 stands for 0
_LOG2_E: Final = 1.4426950408889634
_LN2_HIGH: Final = 0.693359375  # few enough bits that a whole number times it is exact
_LN2_LOW: Final = -2.12194440e-4
_ROUNDER: Final = 12582912.0  # 1.5 * 2^23: adding it rounds to a whole number, which then lies in the low bits


def gelu(builder: ir.IRBuilder, x: ir.Value) -> ir.Value:
    """Compute x Phi(x) = x / 2 (1 + erf(x / sqrt 2)); at most 4e-7 |x| from the exact value."""
    lanes = x.type.count
    z = _select_if(builder, "<", x, _constant(-_ERF_END, lanes))
    z = _select_if(builder, ">", z, _constant(_ERF_END, lanes))
    square = builder.fmul(z, z)
    above, below = (_polynomial(builder, square, terms) for terms in (_ERF_P, _ERF_Q))
    half_erf = builder.fdiv(builder.fmul(z, above), below)
    return builder.fmul(x, builder.fadd(half_erf, _constant(0.5, lanes)))


def exp_of_negative(builder: ir.IRBuilder, x: ir.Value) -> ir.Value:
    """Compute exp(x) for x <= 0; at most 1.2e-7 of it from the exact value, and never below 1.6e-38."""
    lanes = x.type.count
    x = _select_if(builder, "<", x, _constant(_EXP_LOWEST, lanes))
    shifted = fma(builder, x, _constant(_LOG2_E, lanes), _constant(_ROUNDER, lanes))
    whole = builder.fsub(shifted, _constant(_ROUNDER, lanes))
    rest = fma(builder, whole, _constant(-_LN2_HIGH, lanes), x)
    rest = fma(builder, whole, _constant(-_LN2_LOW, lanes), rest)
    tail = fma(builder, builder.fmul(rest, rest), _polynomial(builder, rest, _EXP_P), rest)
    power = builder.fadd(tail, _constant(1.0, lanes))
    # Multiplying by 2^whole is adding to the exponent; of the shifted number only its low bits survive the shift.
    integers = vector_of(_INT32, lanes)
    exponent = builder.shl(builder.bitcast(shifted, integers), ir.Constant(integers, [23] * lanes))
    return builder.bitcast(builder.add(builder.bitcast(power, integers), exponent), x.type)


def _polynomial(builder: ir.IRBuilder, x: ir.Value, terms: tuple[float, ...]) -> ir.Value:
    """Horner's rule, highest power first."""
    value = _constant(terms[0], x.type.count)
    for term in terms[1:]:
        value = fma(builder, value, x, _constant(term, x.type.count))
    return value


def _select_if(builder: ir.IRBuilder, relation: str, x: ir.Value, bound: ir.Constant) -> ir.Value:
    """Replace lanes of x that are below or above the bound by it; NaN stays NaN."""
    return builder.select(builder.fcmp_ordered(relation, x, bound), bound, x)


def _constant(number: float, lanes: int) -> ir.Constant:
    return constant(_FLOAT, float(np.float32(number)), lanes)
