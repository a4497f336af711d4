"""Passes over the numbers of one head, written for vector registers.

They go LANES at a time and over the rest one by one; a plain loop over so few would all run so.
Arrays of heads (cells, heads, size) are float32 or bfloat16 (`sampling/lanes.py`), rows float32.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from forethought.sampling.lanes import (
    FLOAT,
    INT,
    INT16,
    INT32,
    LANES,
    Value,
    across,
    add_to,
    array_of,
    constant,
    fetch,
    load,
    load_from,
    minus,
    over,
    plus,
    row_at,
    shape_of,
    spread,
    store,
    store_into,
    times,
    variable,
    vector,
)

_AHEAD = 8  # cells: a row that is read so much later is asked for, as heads lie far apart


@intrinsic  # type: ignore[untyped-decorator]
def read(typing: Any, values: Any, cell: Any, head: Any, rows: Any, r: Any) -> Any:
    """values[cell, head] (size,), of either kind, into the first numbers of rows[r]."""

    def body(context: Any, b: Any, signature: Any, arguments: Any) -> Any:
        values = array_of(context, b, signature.args[0], arguments[0])
        source = row_at(b, values, arguments[1], arguments[2])
        rows = array_of(context, b, signature.args[3], arguments[3])
        row = row_at(b, rows, arguments[4])
        following = row_at(b, values, b.add(arguments[1], INT(_AHEAD)), arguments[2])

        def copy(at: Value, n: int) -> None:
            fetch(b, b.gep(following, [at]), cache=1)
            store_into(b, load_from(b, source, at, n), row, at)

        over(b, shape_of(b, values)[2], copy)
        return context.get_dummy_value()

    return types.void(values, cell, head, rows, r), body


@intrinsic  # type: ignore[untyped-decorator]
def read_turned(
    typing: Any,
    values: Any,
    cell: Any,
    head: Any,
    rows: Any,
    r: Any,
    factor: Any,
    cos: Any,
    sin: Any,
    position: Any,
) -> Any:
    """The same times `factor` and turned by rotary position embedding (arXiv 2104.09864), by
    cos[position] and sin[position] (size,)."""

    def body(context: Any, b: Any, signature: Any, arguments: Any) -> Any:
        values, rows, cos, sin = (
            array_of(context, b, signature.args[i], arguments[i]) for i in (0, 3, 6, 7)
        )
        source, row = row_at(b, values, *arguments[1:3]), row_at(b, rows, arguments[4])
        cosines, sines = (row_at(b, table, arguments[8]) for table in (cos, sin))
        half = b.lshr(shape_of(b, values)[2], INT(1))
        following = row_at(b, values, b.add(arguments[1], INT(_AHEAD)), arguments[2])

        def turn(at: Value, n: int) -> None:
            factor, behind = spread(b, arguments[5], n), b.add(at, half)
            for i in (at, behind):
                fetch(b, b.gep(following, [i]), cache=1)
            low, high = (times(b, load_from(b, source, i, n), factor) for i in (at, behind))
            of_low, of_high = (load_from(b, cosines, i, n) for i in (at, behind))
            to_low, to_high = (load_from(b, sines, i, n) for i in (at, behind))
            store_into(b, minus(b, times(b, low, of_low), times(b, high, to_low)), row, at)
            store_into(b, plus(b, times(b, high, of_high), times(b, low, to_high)), row, behind)

        over(b, half, turn)
        return context.get_dummy_value()

    return types.void(values, cell, head, rows, r, factor, cos, sin, position), body


@intrinsic  # type: ignore[untyped-decorator]
def write(typing: Any, rows: Any, r: Any, factor: Any, out: Any, cell: Any, head: Any) -> Any:
    """The first numbers of rows[r] times `factor` into out[cell, head] (size,), of either kind."""

    def body(context: Any, b: Any, signature: Any, arguments: Any) -> Any:
        rows, out = (array_of(context, b, signature.args[i], arguments[i]) for i in (0, 3))
        row, target = row_at(b, rows, arguments[1]), row_at(b, out, *arguments[4:6])

        def scale(at: Value, n: int) -> None:
            numbers = times(b, load_from(b, row, at, n), spread(b, arguments[2], n))
            store_into(b, numbers, target, at)

        over(b, shape_of(b, out)[2], scale)
        return context.get_dummy_value()

    return types.void(rows, r, factor, out, cell, head), body


@intrinsic  # type: ignore[untyped-decorator]
def write_turned_back(
    typing: Any,
    rows: Any,
    r: Any,
    factor: Any,
    out: Any,
    cell: Any,
    head: Any,
    cos: Any,
    sin: Any,
) -> Any:
    """rows[r], the gradient of what `read_turned` gave, carried on to what it was given, into
    out[cell, head]."""

    def body(context: Any, b: Any, signature: Any, arguments: Any) -> Any:
        rows, out, cos, sin = (
            array_of(context, b, signature.args[i], arguments[i]) for i in (0, 3, 6, 7)
        )
        row, target = row_at(b, rows, arguments[1]), row_at(b, out, *arguments[4:6])
        cosines, sines = (row_at(b, table, arguments[4]) for table in (cos, sin))
        half = b.lshr(shape_of(b, out)[2], INT(1))

        def turn(at: Value, n: int) -> None:
            factor, behind = spread(b, arguments[2], n), b.add(at, half)
            low, high = (times(b, load_from(b, row, i, n), factor) for i in (at, behind))
            of_low, of_high = (load_from(b, cosines, i, n) for i in (at, behind))
            to_low, to_high = (load_from(b, sines, i, n) for i in (at, behind))
            store_into(b, plus(b, times(b, low, of_low), times(b, high, to_high)), target, at)
            store(
                b, minus(b, times(b, high, of_high), times(b, low, to_low)), b.gep(target, [behind])
            )

        over(b, half, turn)
        return context.get_dummy_value()

    return types.void(rows, r, factor, out, cell, head, cos, sin), body


@intrinsic  # type: ignore[untyped-decorator]
def product_with(typing: Any, values: Any, cell: Any, head: Any, rows: Any, r: Any) -> Any:
    """values[cell, head] . the first numbers of rows[r]."""

    def body(context: Any, b: Any, signature: Any, arguments: Any) -> Any:
        values, rows = (array_of(context, b, signature.args[i], arguments[i]) for i in (0, 3))
        source, row = row_at(b, values, *arguments[1:3]), row_at(b, rows, arguments[4])
        totals = {n: variable(b, constant(0.0, n)) for n in (LANES, 1)}
        following = row_at(b, values, b.add(arguments[1], INT(_AHEAD)), arguments[2])

        def add(at: Value, n: int) -> None:
            fetch(b, b.gep(following, [at]), cache=1)
            add_to(
                b,
                totals[n],
                times(b, load_from(b, source, at, n), load_from(b, row, at, n)),
            )

        over(b, shape_of(b, values)[2], add)
        return plus(b, across(b, b.load(totals[LANES]), plus), b.load(totals[1]))

    return types.float32(values, cell, head, rows, r), body


@intrinsic  # type: ignore[untyped-decorator]
def transpose(typing: Any, rows: Any, size: Any, blocks: Any) -> Any:
    """blocks[k, i, lane] = rows[k * LANES + lane, i] for each i < size; blocks: (blocks, size,
    LANES), rows: (at least blocks * LANES, at least size)."""

    def body(context: Any, b: Any, signature: Any, arguments: Any) -> Any:
        rows, blocks = (array_of(context, b, signature.args[i], arguments[i]) for i in (0, 2))
        lanes = range(LANES)
        with cgutils.for_range(b, shape_of(b, blocks)[0]) as block:
            first = b.mul(block.index, INT(LANES))
            sources = [row_at(b, rows, b.add(first, INT(i))) for i in lanes]
            target = row_at(b, blocks, block.index)

            def turn(at: Value, n: int) -> None:
                if n == 1:
                    numbers = ir.Constant(vector(FLOAT), ir.Undefined)
                    for i in lanes:
                        numbers = b.insert_element(
                            numbers, load_from(b, sources[i], at, 1), INT32(i)
                        )
                    store_into(b, numbers, target, b.mul(at, INT(LANES)))
                    return
                columns = exchanged(b, [load_from(b, source, at, n) for source in sources])
                for i, column in enumerate(columns):
                    store_into(b, column, target, b.mul(b.add(at, INT(i)), INT(LANES)))

            over(b, arguments[1], turn)
        return context.get_dummy_value()

    return types.void(rows, size, blocks), body


@intrinsic  # type: ignore[untyped-decorator]
def turn_square(typing: Any, x: Any, c: Any, out: Any, r: Any, to: Any) -> Any:
    """out[r + i, to + j] = x[j, c + i] for i and j below LANES, in bfloat16, bit by bit."""

    def body(context: Any, b: Any, signature: Any, arguments: Any) -> Any:
        x, out = (array_of(context, b, signature.args[i], arguments[i]) for i in (0, 2))
        c, r, to = (arguments[i] for i in (1, 3, 4))
        lanes = range(LANES)
        rows = [load(b, b.gep(row_at(b, x, INT(j)), [c])) for j in lanes]
        for i, column in enumerate(exchanged(b, rows)):
            bits = b.lshr(b.bitcast(column, vector(INT32)), constant(16, LANES, INT32))
            halves = b.trunc(bits, vector(INT16))
            place = b.gep(row_at(b, out, b.add(r, INT(i))), [to])
            b.store(halves, b.bitcast(place, vector(INT16).as_pointer()), align=2)
        return context.get_dummy_value()

    return types.void(x, c, out, r, to), body


def exchanged(b: Any, rows: list[Value]) -> list[Value]:
    """The columns of LANES vectors: halves are exchanged, then quarters of halves, and so on."""
    step = LANES // 2
    kind = ir.VectorType(INT32, LANES)
    while step:
        upper = [bool(i & step) for i in range(LANES)]
        first = [i + LANES - step if up else i for i, up in enumerate(upper)]
        second = [i + LANES if up else i + step for i, up in enumerate(upper)]
        for i in range(LANES):
            if not upper[i]:
                pair = rows[i], rows[i + step]
                rows[i] = b.shuffle_vector(*pair, ir.Constant(kind, first))
                rows[i + step] = b.shuffle_vector(*pair, ir.Constant(kind, second))
        step //= 2
    return rows
