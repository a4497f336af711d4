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

from forethought.sampling.kernels import (
    compiled,
    dot,
    exponential,
    part,
    store,
    summing,
    take,
)
from forethought.sampling.team import share_out

_ZERO, _ONE = np.float32(0.0), np.float32(1.0)
ROWS_TOGETHER = 64  # whose part of a weight's gradient is one sum, whatever the number of threads


@compiled
def norm(num_threads: int, x: Any, weight: Any, epsilon: Any, out: Any, factors: Any) -> None:
    """RMSNorm (arXiv 1910.07467): x (n, D) * factor * weight (D,) into out (n, D), with the factors
    1 / sqrt(mean(x^2) + epsilon) into factors (n,)."""
    share_out(_norm, (x, weight, epsilon, out, factors), len(x), num_threads)


@part
def _norm(x: Any, weight: Any, epsilon: Any, out: Any, factors: Any, start: int, stop: int) -> None:
    width = x.shape[1]
    row = np.empty(width, np.float32)
    for r in range(start, stop):
        factor = _ONE / math.sqrt(dot(x[r], x[r]) / np.float32(width) + epsilon)
        factors[r] = factor
        for i in range(width):
            row[i] = x[r, i] * factor * weight[i]
        store(row, out[r])


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
    row = np.empty(width, np.float32)
    for chunk in range(start, stop):
        to_weight[chunk] = _ZERO
        for r in range(chunk * ROWS_TOGETHER, min(rows, (chunk + 1) * ROWS_TOGETHER)):
            take(gradient, r, row)
            factor = factors[r]
            back = _dot_3(row, weight, x[r]) * factor / np.float32(width) * factor
            for i in range(width):
                to_weight[chunk, i] += row[i] * x[r, i] * factor
                to_x[r, i] = factor * (row[i] * weight[i] - x[r, i] * back)


@summing
def _dot_3(x: Any, y: Any, z: Any) -> Any:
    """The sum of x * y * z, all (D,), in float32."""
    total = _ZERO
    for i in range(len(x)):
        total += x[i] * y[i] * z[i]
    return total


@compiled
def gate(num_threads: int, gates: Any, ups: Any, out: Any) -> None:
    """SwiGLU (arXiv 2002.05202): silu(gates) * ups into out, all (n, F)."""
    share_out(_gate, (gates, ups, out), len(out), num_threads)


@part
def _gate(gates: Any, ups: Any, out: Any, start: int, stop: int) -> None:
    width = out.shape[1]
    rows = np.empty((3, width), np.float32)
    x, up, row = rows[0], rows[1], rows[2]
    for r in range(start, stop):
        take(gates, r, x)
        take(ups, r, up)
        for i in range(width):
            row[i] = x[i] * up[i] / (_ONE + exponential(-x[i]))
        store(row, out[r])


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
    """d silu(x) / dx = s (1 + x (1 - s)) with s = sigmoid(x)."""
    width = gates.shape[1]
    rows = np.empty((3, width), np.float32)
    x, up, back = rows[0], rows[1], rows[2]
    for r in range(start, stop):
        take(gates, r, x)
        take(ups, r, up)
        take(gradient, r, back)
        for i in range(width):
            share = _ONE / (_ONE + exponential(-x[i]))
            slope = share * (_ONE + x[i] * (_ONE - share))
            x[i], up[i] = back[i] * up[i] * slope, back[i] * x[i] * share
        store(x, to_gates[r])
        store(up, to_ups[r])
