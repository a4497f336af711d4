"""What stands between the matrix products of the lean decoding step, compiled by numba.

With few rows such small operations take longer than the products when torch runs them one by one;
here each is one pass over its rows, which reads what a product gave in its format and writes what
the next takes in its own (`sampling/scaled.py`), so that nothing is converted by itself. A row's
result never depends on the other rows. Arrays are float32 where no format is named, indices int64;
the first call of a kernel compiles it.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numba import njit, types
from numba.extending import overload

from forethought.sampling.lanes import (
    EXP_HIGHEST,
    EXP_LOWEST,
    EXP_POWERS,
    LN2_HIGH,
    LN2_LOW,
    PER_LN2,
    may_use_amx,
)
from forethought.sampling.row_passes import (
    add_and_square,
    copy,
    gate_row,
    magnitude,
    quantize,
    scale,
)
from forethought.sampling.scaled import ZERO
from forethought.sampling.team import share_out

Kernel = TypeVar("Kernel", bound=Callable[..., Any])
# Multiply and add may be one; what is not a number stays one.
_FASTMATH = {"nsz", "contract"}
_ZERO, _ONE, _HALF = np.float32(0.0), np.float32(1.0), np.float32(0.5)
_SMALLEST = np.float32(1e-12)
_SOURCES = (
    *(
        "sampling/" + name
        for name in ("amx", "attention", "draw_kernel", "head_vectors", "kernels")
    ),
    *("sampling/" + name for name in ("lanes", "paired_attention", "row_passes", "row_vectors")),
    *("sampling/" + name for name in ("scaled", "team", "tile_outputs", "tiles", "vectors")),
    "sampling/whole_step",
    *("training/" + name for name in ("paired_strips", "passes", "row_gradients", "softmax")),
    *("training/strip_attention", "training/strip_rows"),
    *("training/word_layouts", "training/word_products"),
)
OPTIONS: dict[str, Any] = {"fastmath": _FASTMATH, "error_model": "numpy"}
PART: dict[str, Any] = OPTIONS | {"forceinline": True}
SUM: dict[str, Any] = PART | {"fastmath": _FASTMATH | {"reassoc"}}


def compiled(function: Kernel) -> Kernel:
    """Machine code that is kept on disk until any of the files that kernels are made of changes:
    numba itself looks at the one in which a kernel stands."""
    return _kept(function, OPTIONS)


def part(function: Kernel) -> Kernel:
    """A part of kernels, that becomes one with each of them. Were it called, the copy beside the
    kernel or the part's own could be found, and which it is depends on what was on disk; as sums
    may be reordered, they need not give the same bits."""
    return _kept(function, PART)


def summing(function: Kernel) -> Kernel:
    """A part that only sums up, in any order, so that it runs in vector registers. It must write to
    no array: of a loop that does, there is a version for arrays that lie close together in memory,
    and where they lie differs from one process to the next; another order is other bits."""
    return _kept(function, SUM)


def _kept(function: Kernel, options: dict[str, Any]) -> Kernel:
    try:
        kernel: Any = njit(cache=True, nogil=True, **options)(function)
    except RuntimeError:  # no folder for the machine code can be written
        return njit(nogil=True, **options)(function)  # type: ignore[no-any-return]
    file = getattr(getattr(kernel, "_cache", None), "_cache_file", None)
    if file is None:  # another numba, whose kept code could be of other sources
        return njit(nogil=True, **options)(function)  # type: ignore[no-any-return]
    file._source_stamp = (file._source_stamp, _digest())
    return kernel  # type: ignore[no-any-return]


@cache
def _digest() -> str:
    """Of the files that kernels are made of, and of whether they may use AMX, which numba, that
    keeps code for each kind of processor, does not know."""
    folder = Path(__file__).parent.parent
    sources = b"".join((folder / f"{name}.py").read_bytes() for name in _SOURCES)
    return hashlib.sha256(sources + bytes([may_use_amx()])).hexdigest()


_PER_LN2, _LN2_HIGH, _LN2_LOW = map(np.float32, (PER_LN2, LN2_HIGH, LN2_LOW))
_C5, _C4, _C3, _C2, _C1, _ = map(np.float32, EXP_POWERS)
_LOWEST, _HIGHEST = np.float32(EXP_LOWEST), np.float32(EXP_HIGHEST)
_BIAS, _MANTISSA = np.int32(127), np.int32(23)
_SIGN, _UNSIGNED = np.int32(31), np.int32(0x7FFFFFFF)


@part
def as_float(bits: Any) -> Any:
    """The float32 of these bits, an int32."""
    return np.int32(bits).view(np.float32)


@part
def exponential(x: Any) -> Any:
    """exp(x) to 2 units in the last place, within [-87, 88]. In a loop it runs in vector
    instructions, where a call of exp would not: 2^k is written bit by bit."""
    value = min(max(x, _LOWEST), _HIGHEST)
    k = np.floor(value * _PER_LN2 + _HALF)  # math.floor's int64 has no vector instruction
    r = value - k * _LN2_HIGH - k * _LN2_LOW
    p = ((((_C5 * r + _C4) * r + _C3) * r + _C2) * r + _C1) * r + _HALF
    return (p * r * r + r + _ONE) * as_float(np.int32(np.int32(k) + _BIAS) << _MANTISSA)


@part
def in_order(bits: Any) -> Any:
    """The bits of a float32 as an int32 in the order of the floats, and back: whole numbers are
    compared as vectors, where numbers that may be none are not."""
    return np.int32(bits ^ ((bits >> _SIGN) & _UNSIGNED))


@part
def to_bfloat16(bits: Any) -> Any:
    """The upper half of a float32, given by its bits: to the nearest, of two as near to the even
    one; what is not a number stays so."""
    if (bits & np.uint32(0x7FFFFFFF)) > np.uint32(0x7F800000):
        return np.uint32(bits >> np.uint32(16)) | np.uint32(0x40)
    odd = (bits >> np.uint32(16)) & np.uint32(1)
    return np.uint32((bits + np.uint32(0x7FFF) + odd) >> np.uint32(16))


@compiled
def largest(x: Any) -> Any:
    """The largest magnitude in x, and never 0; not a number where x has one."""
    bits = x.view(np.int32)  # of floats without a sign, in their order: they compare as vectors
    top = np.int32(0)
    for i in range(len(bits)):
        top = max(top, np.int32(bits[i] & _UNSIGNED))
    return _SMALLEST + as_float(top)


def take(values: Any, r: int, row: Any) -> None:
    """Row r of what a product gave, (n, K) in float32 or bfloat16, into row (K,)."""


@overload(take, jit_options=PART)  # type: ignore[untyped-decorator]
def _take(values: Any, r: Any, row: Any) -> Any:
    def from_float32(values: Any, r: Any, row: Any) -> Any:
        if values.strides[1] == values.itemsize:
            copy(row, values[r])
            return
        for i in range(len(row)):
            row[i] = values[r, i]

    def from_bfloat16(values: Any, r: Any, row: Any) -> Any:
        if values.strides[1] == values.itemsize:
            copy(row, values[r])
            return
        bits = row.view(np.uint32)
        for i in range(len(row)):
            bits[i] = np.uint32(values[r, i]) << np.uint32(16)

    return from_float32 if values.dtype == types.float32 else from_bfloat16


def put(row: Any, out: Any, scales: Any, r: int) -> None:
    """row (K,) into row r of out (n, K), in its format, and its scale into scales (n,)."""


@overload(put, jit_options=PART)  # type: ignore[untyped-decorator]
def _put(row: Any, out: Any, scales: Any, r: Any) -> Any:
    def as_levels(row: Any, out: Any, scales: Any, r: Any) -> Any:
        top = _SMALLEST + magnitude(row)
        scales[r] = top / np.float32(127)
        quantize(row, np.float32(127) / top, np.float32(ZERO) + _HALF, out[r])

    def unscaled(row: Any, out: Any, scales: Any, r: Any) -> Any:
        scales[r] = _ONE
        store(row, out[r])

    return as_levels if out.dtype == types.uint8 else unscaled


def store(row: Any, out: Any) -> None:
    """row (K,) into out (K,), which need not be contiguous, in float32 or bfloat16."""


@overload(store, jit_options=PART)  # type: ignore[untyped-decorator]
def _store(row: Any, out: Any) -> Any:
    def as_float32(row: Any, out: Any) -> Any:
        if out.strides[0] == out.itemsize:
            copy(out, row)
            return
        for i in range(len(row)):
            out[i] = row[i]

    def as_bfloat16(row: Any, out: Any) -> Any:
        if out.strides[0] == out.itemsize:
            copy(out, row)
            return
        bits = row.view(np.uint32)
        for i in range(len(row)):
            out[i] = np.uint16(to_bfloat16(bits[i]))

    return as_float32 if out.dtype == types.float32 else as_bfloat16


@summing
def dot(x: Any, y: Any) -> Any:
    """The sum of x * y, both (D,), in float32."""
    total = _ZERO
    for i in range(len(x)):
        total += x[i] * y[i]
    return total


@compiled
def rms_norm(x: Any, weight: Any, epsilon: Any, out: Any) -> None:
    """RMSNorm (arXiv 1910.07467) of x (D,) into out (D,), which may be x."""
    factor = _ONE / math.sqrt(dot(x, x) / np.float32(len(x)) + epsilon)
    for i in range(len(x)):
        out[i] = x[i] * factor * weight[i]


@compiled
def add_and_norm(
    num_threads: int,
    hidden: Any,
    more: Any,
    weight: Any,
    epsilon: Any,
    out: Any,
    scales: Any,
) -> None:
    """hidden (n, D) += more (n, D), and RMSNorm of it into out (n, D)."""
    arguments = (hidden, more, weight, epsilon, out, scales)
    share_out(norm_rows, arguments, len(hidden), num_threads)


@part
def norm_rows(
    hidden: Any,
    more: Any,
    weight: Any,
    epsilon: Any,
    out: Any,
    scales: Any,
    start: int,
    stop: int,
) -> None:
    """`add_and_norm` of the rows from `start` to `stop`."""
    row = np.empty(hidden.shape[1], np.float32)
    for r in range(start, stop):
        square = add_and_square(hidden[r], more[r])
        factor = _ONE / math.sqrt(square / np.float32(len(row)) + epsilon)
        scale(hidden[r], factor, weight, row)
        put(row, out, scales, r)


@compiled
def silu_gate(num_threads: int, gate_up: Any, out: Any, scales: Any) -> None:
    """SwiGLU (arXiv 2002.05202): silu(gate) * up of gate_up (n, 2 * F) into out (n, F)."""
    arguments = (gate_up, out, scales)
    share_out(gate_rows, arguments, len(out), num_threads)


@part
def gate_rows(gate_up: Any, out: Any, scales: Any, start: int, stop: int) -> None:
    """`silu_gate` of the rows from `start` to `stop`."""
    width = out.shape[1]
    row = np.empty(width, np.float32)
    for r in range(start, stop):
        both = gate_up[r]
        gate_row(row, both[:width], both[width:])
        put(row, out, scales, r)


@compiled
def scale_rows(x: Any, out: Any, scales: Any) -> None:
    """Each row of x (n, K) over its largest magnitude, which goes into scales (n,)."""
    rows, width = x.shape
    for r in range(rows):
        scales[r] = largest(x[r])
        factor = _ONE / scales[r]
        for i in range(width):
            out[r, i] = x[r, i] * factor


@compiled
def to_levels(weight: Any, top: int, levels: Any, scales: Any) -> None:
    """Each row of weight (N, K) as whole numbers from -top to top, levels (N, K) int8, times a
    scale (N,)."""
    rows, width = weight.shape
    for r in range(rows):
        most = largest(weight[r])
        scales[r] = most / np.float32(top)
        factor = np.float32(top) / most
        for i in range(width):
            levels[r, i] = np.int8(np.rint(weight[r, i] * factor))
