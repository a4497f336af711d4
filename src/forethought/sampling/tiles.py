"""A matrix product for processors with AVX-512's dot products of int8 (VNNI) or bfloat16, or AMX.

A library's product costs tens of microseconds before it begins, packs slowly, and prepares itself
anew for every number of rows; when a few rows decode, that is half of the time. One instruction
multiplies 4 bytes of an input (4 numbers of 8 bits, or 2 in bfloat16) with those of 16 outputs and
adds the results up. A tile is a few rows times 64 outputs, whose sums stay in registers while the
inputs are gone through; weights stand in the order in which tiles read them. Where the processor
has AMX, which multiplies whole tiles, the same weights are read by `sampling/amx.py`.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic, overload

from forethought.sampling import amx, lanes
from forethought.sampling.kernels import compiled, largest, part, to_bfloat16
from forethought.sampling.lanes import INT, PANEL, fetch, may_use_amx, processor_has, row_at, spread
from forethought.sampling.scaled import ZERO
from forethought.sampling.team import share_out
from forethought.sampling.tile_outputs import AT_ONCE, WORDS, constants_of, finish, load_at

HAS_INT8 = lanes.CAN_ASSEMBLE and processor_has("avx512vnni")
HAS_BFLOAT16 = lanes.HAS_BFLOAT16
HAS_AMX = lanes.CAN_ASSEMBLE and may_use_amx()
WORDS_AT_ONCE = amx.WORDS if HAS_AMX else 1  # of an input

_ROWS = 6  # of a tile: 24 registers of sums, 4 of weights
_QUARTERS = 4  # of a panel, which is 4 lines of memory a word: a tile fetches a line a word
# From so many rows a thread on, threads had better share out rows; AMX multiplies faster than
# memory gives each thread all weights, and gains nothing from it with fewer.
ROWS_EACH = 48 if HAS_AMX else 16
_TOP = np.float32(127)
_ZEROS = ir.Constant(WORDS, [0] * AT_ONCE)


@intrinsic  # type: ignore[untyped-decorator]
def _tile(
    typing: Any,
    rows: Any,
    inputs: Any,
    first: Any,
    panel: Any,
    offsets: Any,
    factors: Any,
    biases: Any,
    scales: Any,
    out: Any,
    column: Any,
    ahead: Any,
) -> Any:
    """out[r, column:][:PANEL] = (dot of row r with the panel - offsets) * factors * scales[r] +
    biases, for as many rows from `first` on as `rows` is long.

    inputs: (n, W) words of 4 bytes, as int32 where they are bytes, as uint32 where bfloat16; panel:
    (W, PANEL) such words; offsets int32, factors, biases: (PANEL,); scales: (n,); out: (n, N);
    ahead: the panel that is next and a quarter of it (0 to 3) that is fetched meanwhile, or ().
    """
    count = len(rows)
    is_bytes = inputs.dtype == types.int32
    signature = types.void(
        rows, inputs, first, panel, offsets, factors, biases, scales, out, column, ahead
    )

    def body(context: Any, b: Any, signature: Any, values: Any) -> Any:
        arrays = {
            i: context.make_array(signature.args[i])(context, b, values[i])
            for i in (1, 3, 4, 5, 6, 7, 8)
        }
        first, column = values[2], values[9]
        numbers = [b.add(first, INT(r)) for r in range(count)]
        input_rows = [row_at(b, arrays[1], r) for r in numbers]
        num_words = cgutils.unpack_tuple(b, arrays[3].shape)[0]
        sums = [[cgutils.alloca_once(b, WORDS) for _ in range(4)] for _ in rows]
        for total in (total for totals in sums for total in totals):
            b.store(_ZEROS, total)
        if len(ahead):
            following, quarter = cgutils.unpack_tuple(b, values[10])
            coming = row_at(b, context.make_array(ahead[0])(context, b, following))
            coming = b.gep(coming, [b.mul(quarter, b.mul(num_words, INT(AT_ONCE)))])
        with cgutils.for_range(b, num_words) as loop:
            words = row_at(b, arrays[3], loop.index)
            if len(ahead):
                fetch(b, b.gep(coming, [b.mul(loop.index, INT(AT_ONCE))]))
            weights = [load_at(b, words, v, WORDS) for v in range(4)]
            for row, totals in zip(input_rows, sums, strict=True):
                given = spread(b, b.load(b.gep(row, [loop.index])), WORDS.count)
                for weight, total in zip(weights, totals, strict=True):
                    b.store(_dot(b, b.load(total), given, weight, is_bytes), total)
        places = [arrays[i].data for i in (4, 5, 6)]
        constants = [constants_of(b, places, v) for v in range(4)]
        for r, totals in zip(numbers, sums, strict=True):
            scale = b.load(b.gep(arrays[7].data, [r]))
            place = b.gep(row_at(b, arrays[8], r), [column])
            for v, total in enumerate(totals):
                finish(b, b.load(total), constants[v], scale, place, v, is_bytes)
        return context.get_dummy_value()

    return signature, body


def _dot(b: Any, total: Any, given: Any, weight: Any, is_bytes: bool) -> Any:
    """total + the dot products of 4 bytes each: unsigned times signed ones, or bfloat16."""
    instruction = "vpdpbusd" if is_bytes else "vdpbf16ps"
    kind = ir.FunctionType(WORDS, [WORDS] * 3)
    operands = [given, weight, total]
    return b.asm(kind, f"{instruction} $2, $1, $0", "=v,v,v,0", operands, False)


@compiled
def multiply(
    num_threads: int, by_rows: bool, inputs: Any, product: Any, scales: Any, out: Any
) -> None:
    """The product of inputs (n, W) with `product`, into out (n, P * PANEL): panels (P, W, PANEL),
    and offsets, factors and biases, (P, PANEL) each. See `_tile`.

    With few rows every thread should read its own share of the weights, which is what takes time
    then. With many it should have its own rows (`by_rows`), as in the passes between two products,
    so that what one thread wrote is not read by another, from whose cache it would have to come.
    Its first tiles of a panel fetch the next one then: multiplying takes as long as reading it.
    """
    arguments = by_rows, inputs, product, scales, out
    share_out(multiply_rows, arguments, len(inputs) if by_rows else len(product[0]), num_threads)


@compiled
def by_dot_products(
    by_rows: bool, inputs: Any, product: Any, scales: Any, out: Any, start: int, stop: int
) -> None:
    """`multiply`, of the rows or else the panels from `start` to `stop`, by AVX-512."""
    panels, offsets, factors, biases = product
    first_panel, end = (0, len(panels)) if by_rows else (start, stop)
    first_row, n = (start, stop) if by_rows else (0, len(inputs))
    for p in range(first_panel, end):
        w, o, f, b, c = panels[p], offsets[p], factors[p], biases[p], p * PANEL
        r = first_row
        if n - r >= _QUARTERS * _ROWS:
            ahead = panels[min(p + 1, end - 1)]
            for quarter in range(_QUARTERS):
                _tile((0, 0, 0, 0, 0, 0), inputs, r, w, o, f, b, scales, out, c, (ahead, quarter))
                r += _ROWS
        while n - r >= _ROWS:
            _tile((0, 0, 0, 0, 0, 0), inputs, r, w, o, f, b, scales, out, c, ())
            r += _ROWS
        if n - r == 5:
            _tile((0, 0, 0, 0, 0), inputs, r, w, o, f, b, scales, out, c, ())
        elif n - r == 4:
            _tile((0, 0, 0, 0), inputs, r, w, o, f, b, scales, out, c, ())
        elif n - r == 3:
            _tile((0, 0, 0), inputs, r, w, o, f, b, scales, out, c, ())
        elif n - r == 2:
            _tile((0, 0), inputs, r, w, o, f, b, scales, out, c, ())
        elif n - r == 1:
            _tile((0,), inputs, r, w, o, f, b, scales, out, c, ())


multiply_rows = amx.by_amx if HAS_AMX else by_dot_products


@compiled
def pack(num_threads: int, weight: Any, panels: Any, offsets: Any, factors: Any) -> None:
    """weight (N, K) into panels (P, W, PANEL), int32 for int8 and uint32 for bfloat16, beside what
    an output is to be lessened by and multiplied with, (P, PANEL). Outputs beyond N are 0."""
    share_out(_pack, (weight, panels, offsets, factors), len(panels), num_threads)


@compiled
def _pack(weight: Any, panels: Any, offsets: Any, factors: Any, start: int, stop: int) -> None:
    for p in range(start, stop):
        for c in range(PANEL):
            if p * PANEL + c < len(weight):
                _fill(weight[p * PANEL + c], panels, offsets, factors, p, c)
            else:
                for k in range(panels.shape[1]):
                    to, column = _place(k, c)
                    panels[p, to, column] = 0
                offsets[p, c], factors[p, c] = 0, 0


@part
def _in_order(word: int, output: int) -> Any:
    """Where in a panel (W, 64) a word of an output stands, for `by_dot_products`."""
    return word, output


_place = amx.place_of if HAS_AMX else _in_order


def _fill(row: Any, panels: Any, offsets: Any, factors: Any, p: int, c: int) -> None:
    """One output's weights (K,) into column c of panel p."""


@overload(_fill)  # type: ignore[untyped-decorator]
def _fill_as(row: Any, panels: Any, offsets: Any, factors: Any, p: Any, c: Any) -> Any:
    def levels(row: Any, panels: Any, offsets: Any, factors: Any, p: Any, c: Any) -> Any:
        top = largest(row)
        factor, total = _TOP / top, np.int32(0)
        for k in range(panels.shape[1]):
            word = np.int32(0)
            for i in range(4):
                level = np.int32(np.rint(row[4 * k + i] * factor))
                total += level
                word |= (level & 0xFF) << (8 * i)
            to, column = _place(k, c)
            panels[p, to, column] = np.int32(word)
        offsets[p, c], factors[p, c] = ZERO * total, top / _TOP

    def halves(row: Any, panels: Any, offsets: Any, factors: Any, p: Any, c: Any) -> Any:
        bits = row.view(np.uint32)
        for k in range(panels.shape[1]):
            low, high = to_bfloat16(bits[2 * k]), to_bfloat16(bits[2 * k + 1])
            to, column = _place(k, c)
            panels[p, to, column] = np.uint32(low | (high << np.uint32(16)))
        offsets[p, c], factors[p, c] = 0, 1

    return levels if panels.dtype == types.int32 else halves
