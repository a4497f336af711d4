"""Sums of a tile by AMX: 8 registers of 16 rows of 64 bytes, and instructions that multiply two.

One instruction multiplies 16 rows of 16 words of inputs with 16 words of 16 outputs each and adds
the results up: 16 times the work of AVX-512's dot products. A word is 4 bytes: 2 numbers in
bfloat16, or 4 of 8 bits. Before its first use a process asks the system for these registers, and a
thread says what shape each has.
"""

from __future__ import annotations

import ctypes
import platform
from functools import cache
from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from forethought.sampling.kernels import compiled
from forethought.sampling.lanes import INT, PANEL, array_of, processor_has, row_at, shape_of
from forethought.sampling.outputs import AT_ONCE, constants_of, finish, load_at
from forethought.sampling.outputs import WORDS as VECTOR

ROWS = 16  # of a register
WORDS = 16  # of one of its rows
_HALF = PANEL // 2
_NUM_SUMS = 4  # registers of sums; inputs and weights have the other four
_ARCH_PRCTL, _REQUEST, _TILE_DATA = 158, 0x1023, 18  # in Linux' numbers
_CHANGED = "~{memory},~{dirflag},~{fpsr},~{flags}"


@cache
def may_use_amx() -> bool:
    """Whether this processor has AMX for int8 and bfloat16, and the system lets this process use
    its registers, which it asks for."""
    is_linux = platform.system() == "Linux" and platform.machine() == "x86_64"
    if not (is_linux and processor_has("amx-bf16") and processor_has("amx-int8")):
        return False
    return bool(ctypes.CDLL(None).syscall(_ARCH_PRCTL, _REQUEST, _TILE_DATA) == 0)


def _shapes() -> Any:
    """For `configure`: at r the registers of sums and inputs have r rows, those of weights all."""
    shapes = np.zeros((ROWS + 1, 64), np.uint8)
    shapes[:, 0] = 1  # the one palette there is
    shapes[:, 16:32].view(np.uint16)[:] = 4 * WORDS  # bytes of a row, of each register
    shapes[:, 48:56] = WORDS
    shapes[:, 48 : 48 + _NUM_SUMS + 1] = np.arange(ROWS + 1)[:, None]
    return shapes


SHAPES = _shapes()


def _emit(b: Any, text: str, *operands: Any) -> None:
    kind = ir.FunctionType(ir.VoidType(), [operand.type for operand in operands])
    constraints = ",".join(["r"] * len(operands) + [_CHANGED])
    b.asm(kind, text, constraints, operands, True)


@intrinsic  # type: ignore[untyped-decorator]
def configure(typing: Any, shape: Any) -> Any:
    """Give this thread's registers that shape (64,), a row of SHAPES."""

    def body(context: Any, b: Any, signature: Any, values: Any) -> Any:
        place = array_of(context, b, signature.args[0], values[0]).data
        _emit(b, "ldtilecfg ($0)", b.ptrtoint(place, INT))
        return context.get_dummy_value()

    return types.void(shape), body


@intrinsic  # type: ignore[untyped-decorator]
def release(typing: Any) -> Any:
    """This thread has no use for its registers now; the system need not keep them for it."""

    def body(context: Any, b: Any, signature: Any, values: Any) -> Any:
        _emit(b, "tilerelease")
        return context.get_dummy_value()

    return types.void(), body


def _summing(num_inputs: int) -> Any:
    num_weights = _NUM_SUMS // num_inputs

    @intrinsic  # type: ignore[untyped-decorator]
    def sums(typing: Any, firsts: Any, inputs: Any, panel: Any, at: Any, out: Any, to: Any) -> Any:
        """out[r, to:] = the bits of the dot products of row r with panel[:, at:], of 16 times so
        many outputs, for the 16 rows (or as many as are configured) from each of `firsts` on.

        inputs (n, W): int32 where their bytes are numbers, else uint32; panel (W, 64) of the same,
        W whole registers; out (n, N) float32, of which the bits are int32 for bytes.
        """
        product = "tdpbusd" if inputs.dtype == types.int32 else "tdpbf16ps"

        def body(context: Any, b: Any, signature: Any, values: Any) -> Any:
            inputs, panel, out = (
                array_of(context, b, signature.args[i], values[i]) for i in (1, 2, 4)
            )
            rows, at, to = cgutils.unpack_tuple(b, values[0]), values[3], values[5]
            given = [b.ptrtoint(row_at(b, inputs, r), INT) for r in rows]
            found = [b.ptrtoint(row_at(b, out, r, to), INT) for r in rows]
            weights = b.ptrtoint(row_at(b, panel, INT(0), at), INT)
            strides = [cgutils.unpack_tuple(b, a.strides)[0] for a in (inputs, panel, out)]
            for register in range(_NUM_SUMS):
                _emit(b, f"tilezero %tmm{register}")
            num_blocks = b.udiv(shape_of(b, panel)[0], INT(WORDS))
            with cgutils.for_range(b, num_blocks) as loop:
                along = b.mul(loop.index, INT(4 * WORDS))
                for i, place in enumerate(given):
                    register = _NUM_SUMS + i
                    _emit(
                        b, f"tileloadd ($0,$1,1), %tmm{register}", b.add(place, along), strides[0]
                    )
                line = b.add(weights, b.mul(loop.index, b.mul(strides[1], INT(WORDS))))
                for v in range(num_weights):
                    of_weights = _NUM_SUMS + num_inputs + v % (_NUM_SUMS - num_inputs)
                    _emit(b, f"tileloadd {64 * v}($0,$1,1), %tmm{of_weights}", line, strides[1])
                    for i in range(num_inputs):
                        of_inputs, total = _NUM_SUMS + i, i * num_weights + v
                        _emit(b, f"{product} %tmm{of_weights}, %tmm{of_inputs}, %tmm{total}")
            for i, place in enumerate(found):
                for v in range(num_weights):
                    total = i * num_weights + v
                    _emit(b, f"tilestored %tmm{total}, {64 * v}($0,$1,1)", place, strides[2])
            return context.get_dummy_value()

        return types.void(firsts, inputs, panel, at, out, to), body

    return sums


sums_of_one, sums_of_two = _summing(1), _summing(2)  # 64 outputs of 16 rows, 32 of twice 16


@intrinsic  # type: ignore[untyped-decorator]
def _finish(
    typing: Any,
    inputs: Any,
    first: Any,
    end: Any,
    offsets: Any,
    factors: Any,
    biases: Any,
    scales: Any,
    out: Any,
    column: Any,
) -> Any:
    """Bits of sums to outputs, of rows `first` to `end` and PANEL columns (`sampling/outputs.py`);
    `inputs` tell which sums they are."""
    is_bytes = inputs.dtype == types.int32
    every = range(PANEL // AT_ONCE)

    def body(context: Any, b: Any, signature: Any, values: Any) -> Any:
        offsets, factors, biases, scales, out = (
            array_of(context, b, signature.args[i], values[i]) for i in (3, 4, 5, 6, 7)
        )
        places = offsets.data, factors.data, biases.data
        constants = [constants_of(b, *places, v) for v in every]
        with cgutils.for_range_slice(b, values[1], values[2], INT(1)) as (r, _):
            place, scale = row_at(b, out, r, values[8]), b.load(b.gep(scales.data, [r]))
            for v in every:
                sums = load_at(b, place, v, VECTOR)
                finish(b, sums, constants[v], scale, place, v, is_bytes)
        return context.get_dummy_value()

    return (
        types.void(inputs, first, end, offsets, factors, biases, scales, out, column),
        body,
    )


@compiled
def multiply_rows(
    by_rows: bool,
    inputs: Any,
    panels: Any,
    offsets: Any,
    factors: Any,
    biases: Any,
    scales: Any,
    out: Any,
    start: int,
    stop: int,
) -> None:
    """`multiply` in `sampling/tiles.py`, of the rows or else the panels from `start` to `stop`.

    Rows that fill no register are multiplied once more with some of those before them.
    """
    first_panel, end = (0, len(panels)) if by_rows else (start, stop)
    first, n = (start, stop) if by_rows else (0, len(inputs))
    if first == n or first_panel == end:
        return
    configure(SHAPES[min(n - first, ROWS)])
    for p in range(first_panel, end):
        r, column = first, p * PANEL
        while n - r > ROWS:
            both = (r, min(r + ROWS, n - ROWS))
            sums_of_two(both, inputs, panels[p], 0, out, column)
            sums_of_two(both, inputs, panels[p], _HALF, out, column + _HALF)
            r += 2 * ROWS
        if r < n:
            sums_of_one((max(first, n - ROWS),), inputs, panels[p], 0, out, column)
        _finish(inputs, first, n, offsets[p], factors[p], biases[p], scales, out, column)
    release()
