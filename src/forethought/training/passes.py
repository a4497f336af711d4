"""What stands between the matrix products of a training pass, there and back, compiled by numba.

Torch runs RMSNorm as six operations and its gradient as more, each of which goes through memory;
here each is one pass over its rows. Arrays are float32, or uint16, which stands for bfloat16; sums
are in float32 whatever the arrays are. The sampler's passes (`sampling/kernels.py`) have no
gradient, and need none.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from forethought.sampling.kernels import compiled, dot, part
from forethought.sampling.row_passes import copy, gate_row, scale
from forethought.sampling.team import share_out
from forethought.training.row_gradients import (
    add_row,
    gate_row_back,
    norm_row_back,
    sum_of_products,
)

_ZERO, _ONE = np.float32(0.0), np.float32(1.0)
ROWS_TOGETHER = 64  # whose part of a weight's gradient is one sum, whatever the number of threads


@compiled
def norm(num_threads: int, x: Any, weight: Any, epsilon: Any, out: Any, factors: Any) -> None:
    """RMSNorm (arXiv 1910.07467): x (n, D) * factor * weight (D,) into out (n, D), with the factors
    1 / sqrt(mean(x^2) + epsilon) into factors (n,)."""
    share_out(_norm, (x, weight, epsilon, out, factors), len(x), num_threads)


@part
def _norm(x: Any, weight: Any, epsilon: Any, out: Any, factors: Any, start: int, stop: int) -> None:
    for r in range(start, stop):
        factor = _ONE / np.float32(math.sqrt(dot(x[r], x[r]) / np.float32(x.shape[1]) + epsilon))
        factors[r] = factor
        scale(x[r], factor, weight, out[r])


@compiled
def norm_back(
    num_threads: int, x: Any, weight: Any, factors: Any, gradient: Any, to_x: Any, to_weight: Any
) -> None:
    """The gradient (n, D) of `norm`'s out carried on to x, into to_x (n, D), and to the weight: row
    k of to_weight (chunks, D) is the part of the k-th ROWS_TOGETHER rows."""
    arguments = (x, weight, factors, gradient, to_x, to_weight)
    share_out(_norm_back, arguments, len(to_weight), num_threads)


@part
def _norm_back(
    x: Any,
    weight: Any,
    factors: Any,
    gradient: Any,
    to_x: Any,
    to_weight: Any,
    start: int,
    stop: int,
) -> None:
    """With y = x f: dx = f (g w - y mean(g w y)), dw = sum over rows of g y."""
    rows, width = x.shape
    for chunk in range(start, stop):
        to_weight[chunk] = _ZERO
        for r in range(chunk * ROWS_TOGETHER, min(rows, (chunk + 1) * ROWS_TOGETHER)):
            factor = factors[r]
            total = sum_of_products(gradient[r], weight, x[r])
            mean = total * factor / np.float32(width) * factor
            norm_row_back(x[r], weight, gradient[r], factor, mean, to_x[r], to_weight[chunk])


@compiled
def norm_back_onto(
    num_threads: int,
    x: Any,
    weight: Any,
    factors: Any,
    gradient: Any,
    so_far: Any,
    to_x: Any,
    to_weight: Any,
) -> None:
    """As `norm_back`, where x goes around the norm too and has the gradient `so_far` (n, D) from
    there."""
    arguments = (x, weight, factors, gradient, so_far, to_x, to_weight)
    share_out(_norm_back_onto, arguments, len(to_weight), num_threads)


@part
def _norm_back_onto(
    x: Any,
    weight: Any,
    factors: Any,
    gradient: Any,
    so_far: Any,
    to_x: Any,
    to_weight: Any,
    start: int,
    stop: int,
) -> None:
    for chunk in range(start, stop):
        _norm_back(x, weight, factors, gradient, to_x, to_weight, chunk, chunk + 1)
        for r in range(chunk * ROWS_TOGETHER, min(len(x), (chunk + 1) * ROWS_TOGETHER)):
            add_row(to_x[r], so_far[r])


@compiled
def round_rows(num_threads: int, x: Any, out: Any) -> None:
    """x (n, D) in the format of out (n, D)."""
    share_out(_round_rows, (x, out), len(x), num_threads)


@part
def _round_rows(x: Any, out: Any, start: int, stop: int) -> None:
    for r in range(start, stop):
        copy(out[r], x[r])


@compiled
def gate(num_threads: int, gates: Any, ups: Any, out: Any) -> None:
    """SwiGLU (arXiv 2002.05202): silu(gates) * ups into out, all (n, F)."""
    share_out(_gate, (gates, ups, out), len(out), num_threads)


@part
def _gate(gates: Any, ups: Any, out: Any, start: int, stop: int) -> None:
    for r in range(start, stop):
        gate_row(out[r], gates[r], ups[r])


@compiled
def gate_back(
    num_threads: int, gates: Any, ups: Any, gradient: Any, to_gates: Any, to_ups: Any
) -> None:
    """The gradient (n, F) of `gate`'s out carried on to both."""
    share_out(_gate_back, (gates, ups, gradient, to_gates, to_ups), len(gates), num_threads)


@part
def _gate_back(
    gates: Any, ups: Any, gradient: Any, to_gates: Any, to_ups: Any, start: int, stop: int
) -> None:
    for r in range(start, stop):
        gate_row_back(gates[r], ups[r], gradient[r], to_gates[r], to_ups[r])
