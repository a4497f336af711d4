"""Rows of attention's numbers in training: read, turned, laid in blocks, weighed and given back.

A loop of so few numbers as a head has would run one by one, as LLVM prepares vector instructions
for four registers at a time; so what goes over many goes LANES by LANES.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numba import types
from numba.extending import overload

from forethought.sampling.kernels import (
    PART,
    as_float,
    exponential,
    in_order,
    part,
    to_bfloat16,
)
from forethought.sampling.vectors import LANES, MOST_HEADS

_ZERO, _ONE = np.float32(0.0), np.float32(1.0)


@part
def keys_in_blocks(keys: Any, rotation: Any, cell: int, count: int, h: int) -> Any:
    return to_blocks(read_rows(keys, rotation, cell, count, h, 1, _ONE), count, keys.shape[2])


@part
def to_blocks(rows: Any, count: int, size: int) -> Any:
    """(blocks, size, LANES) of rows (count or more, size or more), 0 behind the last."""
    found = np.zeros((-(-count // LANES), size, LANES), np.float32)
    for t in range(count):
        for i in range(size):
            found[t // LANES, i, t % LANES] = rows[t, i]
    return found


@part
def read_rows(
    values: Any, rotation: Any, cell: int, count: int, h: int, repeats: int, factor: Any
) -> Any:
    """Of `count` cells the heads that stand at key-value head h, one after the other, as a multiple
    of MOST_HEADS rows of whole vectors: times `factor` and turned, or with 0 as they are."""
    cos, sin = rotation
    size = values.shape[2]
    rows = -(-count * repeats // MOST_HEADS) * MOST_HEADS
    found = np.zeros((rows, -(-size // LANES) * LANES), np.float32)
    for t in range(count):
        for r in range(repeats):
            _read(values, cell + t, h * repeats + r, found, t * repeats + r)
            if factor != _ZERO:
                _turn(found, t * repeats + r, size, factor, cos, sin, cell + t)
    return found


@part
def give_rows(
    rows: Any,
    rotation: Any,
    cell: int,
    count: int,
    h: int,
    repeats: int,
    factor: Any,
    out: Any,
) -> None:
    """Gradients of what `read_rows` gave, turned back, into those of what it was given."""
    cos, sin = rotation
    size = out.shape[2]
    for t in range(count):
        for r in range(repeats):
            if factor != _ZERO:
                _turn_back(rows, t * repeats + r, size, factor, cos, sin, cell + t)
            write(rows, t * repeats + r, out, cell + t, h * repeats + r)


@part
def read_sums(
    out: Any, logsums: Any, given: Any, cell: int, count: int, h: int, repeats: int, sums: Any
) -> None:
    """Of each query the logarithm of its weights' sum, and that of gradient times what it found."""
    found = np.zeros((1, given.shape[1]), np.float32)
    for t in range(count):
        for r in range(repeats):
            row = t * repeats + r
            _read(out, cell + t, h * repeats + r, found, 0)
            total = _ZERO
            for i in range(given.shape[1]):
                total += found[0, i] * given[row, i]
            sums[0, row], sums[1, row] = logsums[cell + t, h * repeats + r], total


@part
def to_slopes(scores: Any, slopes: Any, r: int, count: int, logsum: Any, whole: Any) -> None:
    """The first `count` scores of row r become weights, and the gradients of weights those of
    scores. What is behind them, up to a multiple of LANES, becomes anything."""
    for start in range(0, count, LANES):
        for t in range(start, start + LANES):
            scores[r, t] = exponential(scores[r, t] - logsum)
        for t in range(start, start + LANES):
            slopes[r, t] = scores[r, t] * (slopes[r, t] - whole)


@part
def softmax(x: Any, bits: Any, tops: Any, r: int, count: int) -> Any:
    """softmax of x[r, :count] in place; returns the logarithm of the sum of exp(x). Rows have room
    for a multiple of LANES, of which what is behind `count` becomes 0; `bits` are those of x, and
    `tops` has room for LANES. Sums run down the lanes, and across them once."""
    stop = -(-count // LANES) * LANES
    for t in range(count, stop):
        x[r, t] = x[r, 0]
    for i in range(LANES):
        tops[i] = in_order(bits[r, i])
    for start in range(LANES, count, LANES):
        for i in range(LANES):
            tops[i] = max(tops[i], in_order(bits[r, start + i]))
    top = tops[0]
    for i in range(1, LANES):
        top = max(top, tops[i])
    most = as_float(in_order(top))
    sums = tops.view(np.float32)
    for i in range(LANES):
        sums[i] = _ZERO
    for start in range(0, stop, LANES):
        for i in range(LANES):
            value = exponential(x[r, start + i] - most)
            if start + i >= count:
                value = _ZERO
            x[r, start + i] = value
            sums[i] += value
    total = _ZERO
    for i in range(LANES):
        total += sums[i]
    share = _ONE / total
    for start in range(0, stop, LANES):
        for i in range(LANES):
            x[r, start + i] *= share
    return most + np.float32(math.log(total))


@part
def _turn(rows: Any, r: int, size: int, factor: Any, cos: Any, sin: Any, cell: int) -> None:
    """Rotary position embedding (arXiv 2104.09864) of rows[r, :size], times `factor`."""
    half = size // 2
    for start in range(0, half, LANES):
        for i in range(start, min(half, start + LANES)):
            a, b = rows[r, i] * factor, rows[r, half + i] * factor
            rows[r, i] = a * cos[cell, i] - b * sin[cell, i]
            rows[r, half + i] = b * cos[cell, half + i] + a * sin[cell, half + i]


@part
def _turn_back(rows: Any, r: int, size: int, factor: Any, cos: Any, sin: Any, cell: int) -> None:
    """The gradient of what `_turn` gave, in place."""
    half = size // 2
    for i in range(half):
        a, b = rows[r, i] * factor, rows[r, half + i] * factor
        rows[r, i] = a * cos[cell, i] + b * sin[cell, half + i]
        rows[r, half + i] = b * cos[cell, half + i] - a * sin[cell, i]


def _read(values: Any, cell: int, head: int, rows: Any, r: int) -> None:
    """values[cell, head] (size,), float32 or bfloat16, into the first numbers of rows[r]."""


@overload(_read, jit_options=PART)  # type: ignore[untyped-decorator]
def _read_as(values: Any, cell: Any, head: Any, rows: Any, r: Any) -> Any:
    def from_float32(values: Any, cell: Any, head: Any, rows: Any, r: Any) -> Any:
        for i in range(values.shape[2]):
            rows[r, i] = values[cell, head, i]

    def from_bfloat16(values: Any, cell: Any, head: Any, rows: Any, r: Any) -> Any:
        for i in range(values.shape[2]):
            rows[r, i] = as_float(np.uint32(values[cell, head, i]) << np.uint32(16))

    return from_float32 if values.dtype == types.float32 else from_bfloat16


def write(rows: Any, r: int, out: Any, cell: int, head: int) -> None:
    """The first numbers of rows[r] into out[cell, head] (size,), in its format."""


@overload(write, jit_options=PART)  # type: ignore[untyped-decorator]
def _write_as(rows: Any, r: Any, out: Any, cell: Any, head: Any) -> Any:
    def as_float32(rows: Any, r: Any, out: Any, cell: Any, head: Any) -> Any:
        for i in range(out.shape[2]):
            out[cell, head, i] = rows[r, i]

    def as_bfloat16(rows: Any, r: Any, out: Any, cell: Any, head: Any) -> Any:
        for i in range(out.shape[2]):
            bits = np.float32(rows[r, i]).view(np.uint32)
            out[cell, head, i] = np.uint16(to_bfloat16(bits))

    return as_float32 if out.dtype == types.float32 else as_bfloat16
