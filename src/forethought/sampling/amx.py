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
    Value,
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
_TILE = 4 * ROWS * WORDS  # bytes of a register
_OF_BLOCK = WORDS * PANEL * 4 // LINE  # lines of a block of weights, 16 words of every output
_AHEAD = 3 * _OF_BLOCK
# The registers of sums are those below. At times a product with four or five in use takes half of
# what it takes with all eight, as if there were few to rename them to (docs/performance.md).
_INPUTS, _WEIGHTS = 4, 5
_CHANGED = "~{memory},~{dirflag},~{fpsr},~{flags}"


def _shapes() -> Any:
    """For `configure`: at r the registers of sums and inputs have r rows, those of weights all."""
    shapes = np.zeros((ROWS + 1, 64), np.uint8)
    shapes[:, 0] = 1  # the one palette there is
    shapes[:, 16:32].view(np.uint16)[:] = 4 * WORDS  # bytes of a row, of each register
    shapes[:, 48:56] = WORDS
    shapes[:, 48 : 48 + _INPUTS + 1] = np.arange(ROWS + 1)[:, None]
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


def _tiles(num_tiles: int) -> Any:
    @intrinsic  # type: ignore[untyped-decorator]
    def tiles(
        typing: Any,
        start: Any,
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
        outputs, for `count` rows (as many as are configured) from `start` on; then less offsets,
        times factors * scales[r], plus biases, which are the `constants`, (64,) each.

        In bfloat16 there are no offsets, factors or scales, and sums begin with their biases.

        inputs (n, W): int32 where their bytes are numbers, else uint32; panel (W, 64) of the same,
        W whole registers, placed as `place_of` says; scales (n,); out (n, N); ahead: the panel that
        is next, and which lines of each of its blocks are fetched meanwhile: the first one and how
        many.
        """
        signature = types.void(
            start, count, inputs, panel, at, constants, scales, out, column, ahead
        )
        is_bytes = inputs.dtype == types.int32

        def body(context: Any, b: Any, signature: Any, values: Any) -> Any:
            inputs, panel, scales, out = (
                array_of(context, b, signature.args[i], values[i]) for i in (2, 3, 6, 7)
            )
            kinds, parts = signature.args[5], cgutils.unpack_tuple(b, values[5])
            start, count, at, column = (values[i] for i in (0, 1, 4, 8))
            following, *lines = cgutils.unpack_tuple(b, values[9])
            coming = array_of(context, b, signature.args[9][0], following), *lines
            places = row_at(b, inputs, start), b.gep(panel.data, [b.mul(at, INT(WORDS))])
            of_outputs = [
                b.gep(array_of(context, b, kind, part).data, [at])
                for kind, part in zip(kinds, parts, strict=True)
            ]
            _begin(b, num_tiles, None if is_bytes else of_outputs[2])
            _sum_up(b, num_tiles, is_bytes, inputs, panel, places, coming)
            if not is_bytes:
                _give(b, num_tiles, row_at(b, out, start, column), _row_of(b, out))
                return context.get_dummy_value()
            room = _room(b, num_tiles)
            _give(b, num_tiles, room, INT(4 * num_tiles * WORDS))
            constants = [constants_of(b, of_outputs, v) for v in range(num_tiles)]
            with cgutils.for_range(b, count) as loop:
                r = b.add(start, loop.index)
                scale, place = b.load(b.gep(scales.data, [r])), row_at(b, out, r, column)
                line = b.gep(room, [b.mul(loop.index, INT(num_tiles * WORDS))])
                for v in range(num_tiles):
                    found = load_at(b, line, v, VECTOR)
                    finish(b, found, constants[v], scale, place, v, is_bytes)
            return context.get_dummy_value()

        return signature, body

    return tiles


def _row_of(b: Any, array: Any) -> Value:
    """Bytes of a row."""
    return cgutils.unpack_tuple(b, array.strides)[0]


def _begin(b: Any, num_tiles: int, biases: Value | None) -> None:
    """The registers of sums: 0, or in every row the biases."""
    for register in range(num_tiles):
        if biases is None:
            _emit(b, f"tilezero %tmm{register}")
        else:
            place = b.ptrtoint(b.gep(biases, [INT(register * WORDS)]), INT)
            _emit(b, f"tileloadd ($0,$1,1), %tmm{register}", place, INT(0))


def _sum_up(
    b: Any, num_tiles: int, is_bytes: bool, inputs: Any, panel: Any, places: Any, coming: Any
) -> None:
    """Onto the registers of sums: of 16 rows of inputs by 16 outputs after 16 others. All weights
    go through one register, whose rows stand one after the other in memory."""
    product = "tdpbusd" if is_bytes else "tdpbf16ps"
    start, weights = (b.ptrtoint(place, INT) for place in places)
    following, first, num_lines = coming
    num_blocks = b.udiv(shape_of(b, panel)[0], INT(WORDS))
    with cgutils.for_range(b, num_blocks) as loop:
        block = row_at(b, following, b.mul(loop.index, INT(WORDS)))
        with cgutils.for_range(b, num_lines) as line:
            number = b.add(first, line.index)
            fetch(b, b.gep(block, [b.mul(number, INT(LINE // 4))]))
        along = b.mul(loop.index, INT(4 * WORDS))
        place = b.add(start, along)
        _emit(b, f"tileloadd ($0,$1,1), %tmm{_INPUTS}", place, _row_of(b, inputs))
        block = b.add(weights, b.mul(along, INT(PANEL)))
        for v in range(num_tiles):
            _emit(b, f"tileloadd {_TILE * v}($0,$1,1), %tmm{_WEIGHTS}", block, INT(4 * WORDS))
            _emit(b, f"{product} %tmm{_WEIGHTS}, %tmm{_INPUTS}, %tmm{v}")


def _give(b: Any, num_tiles: int, start: Value, of_row: Value) -> None:
    """The registers of sums to where rows of so many bytes begin at `start`."""
    for register in range(num_tiles):
        place = b.ptrtoint(b.gep(start, [INT(register * WORDS)]), INT)
        _emit(b, f"tilestored %tmm{register}, ($0,$1,1)", place, of_row)


def _room(b: Any, num_registers: int) -> Value:
    """For as many registers of int32."""
    room = cgutils.alloca_once(b, ir.ArrayType(INT32, num_registers * ROWS * WORDS))
    room.align = LINE
    return b.bitcast(room, INT32.as_pointer())


half_panel, whole_panel = _tiles(2), _tiles(4)


def _strip(num_tiles: int, is_more: bool = False) -> Any:
    @intrinsic  # type: ignore[untyped-decorator]
    def strip(
        typing: Any,
        left: Any,
        row: Any,
        right: Any,
        offset: Any,
        strides: Any,
        num_steps: Any,
        ahead: Any,
        out: Any,
        out_row: Any,
        column: Any,
    ) -> Any:
        """out[out_row:, column:] = the product in bfloat16 of the rows of `left` from `row` on, as
        many as are configured, with so many tiles of `right`, 16 columns each; or where there
        `is_more` += it.

        left: (rows, num_steps * 32 or more); out: float32. A tile of `right` is 16 rows of 16 words
        of two numbers, which one column has below each other; the first begins `offset` bytes from
        where `right` does, and `strides` are the bytes from a tile to the next one, from a tile to
        that of the next 32 numbers of `left`, and from row to row. `ahead`: what stands as `right`
        does and is read next, and is fetched meanwhile, or ().
        """
        signature = types.void(
            left, row, right, offset, strides, num_steps, ahead, out, out_row, column
        )
        fetches = not isinstance(ahead, types.BaseTuple)

        def body(context: Any, b: Any, signature: Any, values: Any) -> Any:
            left, right, out = (
                array_of(context, b, signature.args[i], values[i]) for i in (0, 2, 7)
            )
            row, offset, num_steps, out_row, column = (values[i] for i in (1, 3, 5, 8, 9))
            of_tile, of_step, of_row = cgutils.unpack_tuple(b, values[4])
            of_left, of_out = _row_of(b, left), _row_of(b, out)
            start = b.ptrtoint(row_at(b, left, row), INT)
            place = b.add(b.ptrtoint(right.data, INT), offset)
            if fetches:
                coming = array_of(context, b, signature.args[6], values[6])
                coming = b.add(b.ptrtoint(coming.data, INT), offset)
            sums = [
                b.gep(row_at(b, out, out_row), [b.add(column, INT(v * WORDS))])
                for v in range(num_tiles)
            ]
            sums = [b.ptrtoint(found, INT) for found in sums]
            for v, found in enumerate(sums):
                if is_more:
                    _emit(b, f"tileloadd ($0,$1,1), %tmm{v}", found, of_out)
                else:
                    _emit(b, f"tilezero %tmm{v}")
            with cgutils.for_range(b, num_steps) as loop:
                along = b.add(start, b.mul(loop.index, INT(4 * WORDS)))
                _emit(b, f"tileloadd ($0,$1,1), %tmm{_INPUTS}", along, of_left)
                for v in range(num_tiles):
                    past = b.add(b.mul(loop.index, of_step), b.mul(INT(v), of_tile))
                    _emit(b, f"tileloadd ($0,$1,1), %tmm{_WEIGHTS}", b.add(place, past), of_row)
                    _emit(b, f"tdpbf16ps %tmm{_WEIGHTS}, %tmm{_INPUTS}, %tmm{v}")
                    if not fetches:
                        continue
                    following = b.add(coming, past)
                    with cgutils.for_range(b, INT(ROWS)) as line:
                        at = b.add(following, b.mul(line.index, of_row))
                        fetch(b, b.inttoptr(at, INT32.as_pointer()))
            for v, found in enumerate(sums):
                _emit(b, f"tilestored %tmm{v}, ($0,$1,1)", found, of_out)
            return context.get_dummy_value()

        return signature, body

    return strip


strip_1, strip_2, more_2 = _strip(1), _strip(2), _strip(2, is_more=True)


@intrinsic  # type: ignore[untyped-decorator]
def fetch_lines(typing: Any, x: Any) -> Any:
    """Ask for all of x, which is contiguous."""

    def body(context: Any, b: Any, signature: Any, values: Any) -> Any:
        x = array_of(context, b, signature.args[0], values[0])
        start, of_first = b.ptrtoint(x.data, INT), _row_of(b, x)
        size = b.mul(shape_of(b, x)[0], of_first)
        with cgutils.for_range_slice(b, INT(0), size, INT(LINE)) as (at, _):
            fetch(b, b.inttoptr(b.add(start, at), INT32.as_pointer()))
        return context.get_dummy_value()

    return types.void(x), body


@part
def place_of(word: int, output: int) -> Any:
    """Where in a panel (W, 64) a word of an output stands: what goes into a register at once, 16
    words of 16 outputs, is one piece of memory, and the four of a panel follow each other."""
    row = word // WORDS * WORDS + output // WORDS * (WORDS // 4) + word % WORDS // 4
    return row, word % 4 * WORDS + output % WORDS


@part
def _lines_each(num_rows: int) -> int:
    """Of a block of the next panel how many lines each of the tiles with these rows fetches."""
    count = (num_rows + ROWS - 1) // ROWS * 2
    return (_OF_BLOCK + count - 1) // count


@compiled
def by_amx(
    by_rows: bool, inputs: Any, product: Any, scales: Any, out: Any, start: int, stop: int
) -> None:
    """`multiply` of `sampling/tiles.py`, of the rows or else the panels from `start` to `stop`.

    Rows that fill no register are multiplied once more with some of those before them. Rows that
    have a panel to themselves fetch the blocks of it that they will come to; else the rows at a
    panel fetch the next one.
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
        panel, constants, column = panels[p], (offsets[p], factors[p], biases[p]), p * PANEL
        if count == n - first:
            ahead = (panel, _AHEAD, _OF_BLOCK)
            whole_panel(first, count, inputs, panel, 0, constants, scales, out, column, ahead)
            continue
        following, line = panels[min(p + 1, end - 1)], 0
        for r in range(first, n, ROWS):
            row = min(r, n - ROWS)
            for at in (0, _HALF):
                ahead, to = (following, line, lines), column + at
                half_panel(row, count, inputs, panel, at, constants, scales, out, to, ahead)
                line += lines
    release()
