"""A matrix product by AMX: 8 registers of 16 rows of 64 bytes, and instructions that multiply two.

One instruction multiplies 16 rows of 16 words of inputs with 16 words of 16 outputs each and adds
the results up: 16 times the work of AVX-512's dot products. A word is 4 bytes: 2 numbers in
bfloat16, or 4 of 8 bits. Before its first use a process asks the system for these registers, and a
thread says what shape each has.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from forethought.sampling.kernels import compiled, part
from forethought.sampling.lanes import (
    INT,
    INT32,
    LINE,
    PANEL,
    array_of,
    fetch,
    row_at,
    shape_of,
)
from forethought.sampling.tile_outputs import WORDS as VECTOR
from forethought.sampling.tile_outputs import constants_of, finish, load_at

ROWS = 16  # of a register
WORDS = 16  # of one of its rows
_HALF = PANEL // 2
_OF_BLOCK = WORDS * PANEL * 4 // LINE  # lines of a block of weights, 16 words of every output
_AHEAD = 3 * _OF_BLOCK
_NUM_SUMS = 4  # registers of sums; inputs and weights have the other four
_CHANGED = "~{memory},~{dirflag},~{fpsr},~{flags}"


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


def _tiles(num_inputs: int) -> Any:
    num_weights = _NUM_SUMS // num_inputs

    @intrinsic  # type: ignore[untyped-decorator]
    def tiles(
        typing: Any,
        rows: Any,
        count: Any,
        inputs: Any,
        panel: Any,
        at: Any,
        constants: Any,
        scales: Any,
        out: Any,
        column: Any,
        ahead: Any,
    ) -> Any:
        """out[r, column:] = the dot products of row r with panel[:, at:], of 16 times so many
        outputs, for `count` rows (as many as are configured) from each of `rows` on; then less
        offsets, times factors * scales[r], plus biases, which are the `constants`, (64,) each.

        inputs (n, W): int32 where their bytes are numbers, else uint32; panel (W, 64) of the same,
        W whole registers; scales (n,); out (n, N); ahead: the panel that is next, and which lines
        of each of its blocks are fetched meanwhile: the first one and how many.
        """
        signature = types.void(
            rows, count, inputs, panel, at, constants, scales, out, column, ahead
        )
        is_bytes = inputs.dtype == types.int32

        def body(context: Any, b: Any, signature: Any, values: Any) -> Any:
            inputs, panel, scales, out = (
                array_of(context, b, signature.args[i], values[i]) for i in (2, 3, 6, 7)
            )
            kinds, parts = signature.args[5], cgutils.unpack_tuple(b, values[5])
            starts, count, at, column = (values[i] for i in (0, 1, 4, 8))
            following, *lines = cgutils.unpack_tuple(b, values[9])
            coming = array_of(context, b, signature.args[9][0], following), *lines
            starts = cgutils.unpack_tuple(b, starts)
            places = [row_at(b, inputs, r) for r in starts], row_at(b, panel, INT(0), at)
            _sum_up(b, num_weights, is_bytes, inputs, panel, places, coming)
            sums = _stored(b)
            of_outputs = [
                b.gep(array_of(context, b, kind, part).data, [at])
                for kind, part in zip(kinds, parts, strict=True)
            ]
            constants = [constants_of(b, of_outputs, v) for v in range(num_weights)]
            for i, start in enumerate(starts):
                with cgutils.for_range(b, count) as loop:
                    r = b.add(start, loop.index)
                    scale, place = b.load(b.gep(scales.data, [r])), row_at(b, out, r, column)
                    for v in range(num_weights):
                        at = b.add(INT((i * num_weights + v) * ROWS), loop.index)
                        found = load_at(b, b.gep(sums, [b.mul(at, INT(WORDS))]), 0, VECTOR)
                        finish(b, found, constants[v], scale, place, v, is_bytes)
            return context.get_dummy_value()

        return signature, body

    return tiles


def _sum_up(
    b: Any, num_weights: int, is_bytes: bool, inputs: Any, panel: Any, places: Any, coming: Any
) -> None:
    """Into the registers of sums: of the first 16 rows of inputs by 16 outputs after 16 others,
    then of the next. Every block of 16 words needs all of its inputs and weights once."""
    product = "tdpbusd" if is_bytes else "tdpbf16ps"
    of_inputs, of_panel = (cgutils.unpack_tuple(b, array.strides)[0] for array in (inputs, panel))
    starts, weights = [b.ptrtoint(place, INT) for place in places[0]], b.ptrtoint(places[1], INT)
    (following, first, num_lines), free = coming, _NUM_SUMS + len(starts)
    for register in range(_NUM_SUMS):
        _emit(b, f"tilezero %tmm{register}")
    num_blocks = b.udiv(shape_of(b, panel)[0], INT(WORDS))
    with cgutils.for_range(b, num_blocks) as loop:
        block = row_at(b, following, b.mul(loop.index, INT(WORDS)))
        with cgutils.for_range(b, num_lines) as line:
            number = b.add(first, line.index)
            fetch(b, b.gep(block, [b.mul(number, INT(LINE // 4))]))
        along = b.mul(loop.index, INT(4 * WORDS))
        for i, start in enumerate(starts):
            _emit(b, f"tileloadd ($0,$1,1), %tmm{_NUM_SUMS + i}", b.add(start, along), of_inputs)
        block = b.add(weights, b.mul(along, INT(PANEL)))
        for v in range(num_weights):
            given = free + v % (2 * _NUM_SUMS - free)
            _emit(b, f"tileloaddt1 {4 * WORDS * v}($0,$1,1), %tmm{given}", block, of_panel)
            for i in range(len(starts)):
                total = i * num_weights + v
                _emit(b, f"{product} %tmm{given}, %tmm{_NUM_SUMS + i}, %tmm{total}")


def _stored(b: Any) -> Any:
    """The registers of sums in memory, one after the other."""
    room = cgutils.alloca_once(b, ir.ArrayType(INT32, _NUM_SUMS * ROWS * WORDS))
    room.align = LINE
    sums = b.bitcast(room, INT32.as_pointer())
    for register in range(_NUM_SUMS):
        place = b.ptrtoint(b.gep(sums, [INT(register * ROWS * WORDS)]), INT)
        _emit(b, f"tilestored %tmm{register}, ($0,$1,1)", place, INT(4 * WORDS))
    return sums


tiles_of_one, tiles_of_two = _tiles(1), _tiles(2)  # 64 outputs of 16 rows, 32 of twice 16


@part
def _lines_each(num_rows: int) -> int:
    """Of a block of the next panel how many lines each of the tiles with these rows fetches. A tile
    alone fetches nothing of it, but the blocks that it will come to itself."""
    num_pairs, rest = num_rows // (2 * ROWS), num_rows % (2 * ROWS)
    count = 2 * num_pairs + (2 if rest > ROWS else 1 if rest else 0)
    return (_OF_BLOCK + count - 1) // count if count > 1 else 0


@compiled
def by_amx(
    by_rows: bool, inputs: Any, product: Any, scales: Any, out: Any, start: int, stop: int
) -> None:
    """`multiply` of `sampling/tiles.py`, of the rows or else the panels from `start` to `stop`.

    Rows that fill no register are multiplied once more with some of those before them.
    """
    panels, offsets, factors, biases = product
    first_panel, end = (0, len(panels)) if by_rows else (start, stop)
    first, n = (start, stop) if by_rows else (0, len(inputs))
    if first == n or first_panel == end:
        return
    count = min(n - first, ROWS)
    configure(SHAPES[count])
    lines = _lines_each(n - first)
    for p in range(first_panel, end):
        constants, column = (offsets[p], factors[p], biases[p]), p * PANEL
        r, following, line = first, panels[min(p + 1, end - 1)], 0
        while n - r > ROWS:
            rows = r, min(r + ROWS, n - ROWS)
            for at in (0, _HALF):
                ahead, to = (following, line, lines), column + at
                tiles_of_two(rows, count, inputs, panels[p], at, constants, scales, out, to, ahead)
                line += lines
            r += 2 * ROWS
        if r < n:
            ahead = (following, line, lines) if lines else (panels[p], _AHEAD, _OF_BLOCK)
            row = (max(first, n - ROWS),)
            tiles_of_one(row, count, inputs, panels[p], 0, constants, scales, out, column, ahead)
    release()
