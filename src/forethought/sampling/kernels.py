"""What stands between the matrix products of the lean decoding step, compiled by numba.

With few rows such small operations take longer than the products when torch runs them one by one;
here each is one pass over its rows. A row's result never depends on the other rows. Arrays are
C-contiguous float32, indices int64; the first call of a kernel compiles it and keeps the machine
code on disk.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, TypeVar

import numpy as np
from numba import njit

Kernel = TypeVar("Kernel", bound=Callable[..., Any])
# Sums may be reordered, so that they run in vector registers; what is not a number stays one.
_FASTMATH = {"nsz", "arcp", "contract", "reassoc"}
_ZERO, _ONE, _HALF = np.float32(0.0), np.float32(1.0), np.float32(0.5)
_FAR_BELOW = np.float32(-3.0e38)
_SMALLEST = np.float32(1e-12)


def _compiled(function: Kernel) -> Kernel:
    options: dict[str, Any] = {"fastmath": _FASTMATH, "nogil": True, "error_model": "numpy"}
    try:
        return njit(cache=True, **options)(function)  # type: ignore[no-any-return]
    except RuntimeError:  # no folder for the machine code can be written
        return njit(**options)(function)  # type: ignore[no-any-return]


# exp(x) = 2^k * exp(r) with |r| <= ln(2) / 2; the polynomial is that of Cephes' expf.
_PER_LN2 = np.float32(1.44269504)
_LN2_HIGH, _LN2_LOW = np.float32(0.693359375), np.float32(-2.12194440e-4)
_C5, _C4, _C3 = np.float32(1.9875691500e-4), np.float32(1.3981999507e-3), np.float32(8.3334519e-3)
_C2, _C1 = np.float32(4.1665795894e-2), np.float32(1.6666665459e-1)
_LOWEST, _HIGHEST = np.float32(-87.0), np.float32(88.0)
_BIAS, _MANTISSA = np.int32(127), np.int32(23)


@_compiled
def exponentials(x: Any, count: int, powers: Any, bits: Any) -> None:
    """x[:count] becomes exp(x), to 2 units in the last place, within [-87, 88].

    `powers` is scratch of that size and `bits` the same memory as int32: 2^k is written there bit
    by bit, which compiles to vector instructions where a call of exp would not.
    """
    for i in range(count):
        value = min(max(x[i], _LOWEST), _HIGHEST)
        k = np.floor(value * _PER_LN2 + _HALF)  # math.floor's int64 has no vector instruction
        bits[i] = (np.int32(k) + _BIAS) << _MANTISSA
        x[i] = value - k * _LN2_HIGH - k * _LN2_LOW
    for i in range(count):
        r = x[i]
        p = ((((_C5 * r + _C4) * r + _C3) * r + _C2) * r + _C1) * r + _HALF
        x[i] = (p * r * r + r + _ONE) * powers[i]


@_compiled
def rms_norm(hidden: Any, weight: Any, epsilon: Any, out: Any) -> None:
    """RMSNorm (arXiv 1910.07467) of hidden (n, D) into out (n, D)."""
    rows, width = hidden.shape
    for r in range(rows):
        total = _ZERO
        for i in range(width):
            total += hidden[r, i] * hidden[r, i]
        factor = _ONE / math.sqrt(total / np.float32(width) + epsilon)
        for i in range(width):
            out[r, i] = hidden[r, i] * factor * weight[i]


@_compiled
def norm_heads(heads: Any, start: int, stop: int, weight: Any, epsilon: Any) -> None:
    """RMSNorm in place of every head from `start` to `stop`, by itself: heads (n, H, head_dim)."""
    for r in range(len(heads)):
        rms_norm(heads[r, start:stop], weight, epsilon, heads[r, start:stop])


@_compiled
def add(hidden: Any, more: Any) -> None:
    """hidden (n, D) += more (n, D)."""
    rows, width = hidden.shape
    for r in range(rows):
        for i in range(width):
            hidden[r, i] += more[r, i]


@_compiled
def scale_rows(x: Any, out: Any, largest: Any) -> None:
    """Each row of x (n, K) over its largest magnitude, which goes into largest (n,)."""
    rows, width = x.shape
    for r in range(rows):
        largest[r] = _largest(x[r])
        factor = _ONE / largest[r]
        for i in range(width):
            out[r, i] = x[r, i] * factor


@_compiled
def rescale(y: Any, rows: Any, columns: Any) -> None:
    """y (n, N) times the scale of its row, (n,), and of its column, (N,)."""
    count, width = y.shape
    for r in range(count):
        for j in range(width):
            y[r, j] *= rows[r] * columns[j]


@_compiled
def to_levels(weight: Any, top: int, levels: Any, scales: Any) -> None:
    """Each row of weight (N, K) as whole numbers from -top to top, levels (N, K) int8, times a
    scale (N,)."""
    rows, width = weight.shape
    for r in range(rows):
        largest = _largest(weight[r])
        scales[r] = largest / np.float32(top)
        factor = np.float32(top) / largest
        for i in range(width):
            levels[r, i] = np.int8(np.rint(weight[r, i] * factor))


@_compiled
def _largest(x: Any) -> Any:
    """The largest magnitude in x, and never 0."""
    top = _SMALLEST
    for i in range(len(x)):
        top = max(top, abs(x[i]))
    return top


@_compiled
def silu_gate(gate_up: Any, out: Any, powers: Any, bits: Any) -> None:
    """SwiGLU (arXiv 2002.05202): silu(gate) * up of gate_up (n, 2 * F) into out (n, F)."""
    rows, width = out.shape
    for r in range(rows):
        gate, up, found = gate_up[r, :width], gate_up[r, width:], out[r]
        for i in range(width):
            found[i] = -gate[i]
        exponentials(found, width, powers, bits)
        for i in range(width):
            found[i] = gate[i] * up[i] / (_ONE + found[i])


@_compiled
def turn_and_store(
    heads: Any,
    cos: Any,
    sin: Any,
    positions: Any,
    own: Any,
    layer: int,
    columns: Any,
) -> None:
    """Rotary position embedding (arXiv 2104.09864) of queries and keys in place; the token's keys
    and values go into the cache.

    heads: (n, query heads + 2 * kv_heads, head_dim); cos, sin: (all positions, head_dim);
    positions: (n,); own: (layers, 2, rows, kv_heads, columns, head_dim); columns: (n,).
    """
    rows, num_heads, size = heads.shape
    kv_heads, half = own.shape[3], size // 2
    for r in range(rows):
        c, s = cos[positions[r]], sin[positions[r]]
        for h in range(num_heads - kv_heads):
            x = heads[r, h]
            for i in range(half):
                low, high = x[i], x[i + half]
                x[i] = low * c[i] - high * s[i]
                x[i + half] = high * c[i + half] + low * s[i + half]
        for h in range(kv_heads):
            own[layer, 0, r, h, columns[r]] = heads[r, num_heads - 2 * kv_heads + h]
            own[layer, 1, r, h, columns[r]] = heads[r, num_heads - kv_heads + h]


@_compiled
def attend(
    heads: Any,
    prompts: Any,
    own: Any,
    layer: int,
    groups: Any,
    prompt_lengths: Any,
    own_lengths: Any,
    scores: Any,
    powers: Any,
    bits: Any,
    out: Any,
    start: int,
    stop: int,
) -> None:
    """Attention of one query a row, from row `start` to `stop`, over prompt and own tokens.

    heads: (n, query heads + 2 * kv_heads, head_dim); prompts: (layers, 2, groups, kv_heads, P,
    head_dim); own: the same by rows; groups: (n,); prompt_lengths, own_lengths: (n,), this token
    counted; scores: (n * kv_heads, query heads a key-value head, P + T) scratch, powers and bits
    one row of it; out: (n, query heads, head_dim).
    """
    kv_heads, size = own.shape[3], heads.shape[2]
    repeats = (heads.shape[1] - 2 * kv_heads) // kv_heads
    scale = np.float32(1.0 / math.sqrt(size))
    for item in range(start * kv_heads, stop * kv_heads):
        r, h = item // kv_heads, item % kv_heads
        prompt_keys, prompt_values = (
            prompts[layer, 0, groups[r], h],
            prompts[layer, 1, groups[r], h],
        )
        own_keys, own_values = own[layer, 0, r, h], own[layer, 1, r, h]
        first, count = prompt_lengths[r], prompt_lengths[r] + own_lengths[r]
        for j in range(repeats):
            query, weights = heads[r, h * repeats + j], scores[item, j]
            _dots(query, prompt_keys, first, scale, weights[:first])
            _dots(query, own_keys, count - first, scale, weights[first:])
            total = _exponentiate(weights, count, powers[item], bits[item])
            found = out[r, h * repeats + j]
            for i in range(size):
                found[i] = _ZERO
            _weigh(weights[:first], prompt_values, first, found)
            _weigh(weights[first:], own_values, count - first, found)
            for i in range(size):
                found[i] /= total


@_compiled
def _exponentiate(x: Any, count: int, powers: Any, bits: Any) -> Any:
    """x[:count] becomes exp(x - max(x)), and their sum is returned; `powers` and `bits` are as for
    `exponentials`."""
    whole = count - count % 4
    a, b, c, d = _FAR_BELOW, _FAR_BELOW, _FAR_BELOW, _FAR_BELOW
    for t in range(0, whole, 4):  # four that do not wait for each other
        a, b, c, d = max(a, x[t]), max(b, x[t + 1]), max(c, x[t + 2]), max(d, x[t + 3])
    top = max(max(a, b), max(c, d))
    for t in range(whole, count):
        top = max(top, x[t])
    for t in range(count):
        x[t] -= top
    exponentials(x, count, powers, bits)
    total = _ZERO
    for t in range(count):
        total += x[t]
    return total


@_compiled
def _dots(query: Any, keys: Any, count: int, scale: Any, out: Any) -> None:
    """out[t] = scale * query (size,) . keys[t] (size,): four at a time, so that the query is read
    once for four sums that do not wait for each other."""
    whole = count - count % 4
    for t in range(0, whole, 4):
        a, b, c, d = _ZERO, _ZERO, _ZERO, _ZERO
        for i in range(len(query)):
            x = query[i]
            a += x * keys[t, i]
            b += x * keys[t + 1, i]
            c += x * keys[t + 2, i]
            d += x * keys[t + 3, i]
        out[t], out[t + 1], out[t + 2], out[t + 3] = a * scale, b * scale, c * scale, d * scale
    for t in range(whole, count):
        a = _ZERO
        for i in range(len(query)):
            a += query[i] * keys[t, i]
        out[t] = a * scale


@_compiled
def _weigh(weights: Any, values: Any, count: int, out: Any) -> None:
    """out (size,) += the sum of weights[t] * values[t]: four at a time, so that `out` is read and
    written a quarter as often."""
    whole = count - count % 4
    for t in range(0, whole, 4):
        a, b, c, d = weights[t], weights[t + 1], weights[t + 2], weights[t + 3]
        for i in range(len(out)):
            out[i] += (a * values[t, i] + b * values[t + 1, i]) + (
                c * values[t + 2, i] + d * values[t + 3, i]
            )
    for t in range(whole, count):
        for i in range(len(out)):
            out[i] += weights[t] * values[t, i]
