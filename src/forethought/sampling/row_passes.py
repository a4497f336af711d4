"""Passes over the numbers of a whole row, written for vector registers.

LLVM makes such loops by itself, but half as wide as registers are, and bfloat16 in ten instructions
where a processor has one. All arrays are rows without gaps, float32 where nothing else is said, or
else bfloat16 too (`sampling/lanes.py`).
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
    exponential,
    load_from,
    minus,
    over,
    plus,
    shape_of,
    spread,
    store_into,
    times,
    to_bfloat16,
    variable,
    vector,
)

_BYTE = ir.IntType(8)


def rows_of(context: Any, b: Any, signature: Any, values: Any, *indices: int) -> list[Value]:
    """Where the arguments of these numbers begin, and the length of the first of them."""
    arrays = [array_of(context, b, signature.args[i], values[i]) for i in indices]
    return [*(array.data for array in arrays), shape_of(b, arrays[0])[0]]


@intrinsic  # type: ignore[untyped-decorator]
def copy(typing: Any, out: Any, x: Any) -> Any:
    """out = x, both of either format."""

    def body(context: Any, b: Any, signature: Any, values: Any) -> Any:
        out, x, count = rows_of(context, b, signature, values, 0, 1)
        over(b, count, lambda at, n: store_into(b, load_from(b, x, at, n), out, at))
        return context.get_dummy_value()

    return types.void(out, x), body


@intrinsic  # type: ignore[untyped-decorator]
def add_and_square(typing: Any, x: Any, more: Any) -> Any:
    """x += more, of either format. Returns the sum of x * x."""

    def body(context: Any, b: Any, signature: Any, values: Any) -> Any:
        x, more, count = rows_of(context, b, signature, values, 0, 1)
        totals = {n: variable(b, constant(0.0, n)) for n in (LANES, 1)}

        def add(at: Value, n: int) -> None:
            found = plus(b, load_from(b, x, at, n), load_from(b, more, at, n))
            store_into(b, found, x, at)
            add_to(b, totals[n], times(b, found, found))

        over(b, count, add)
        return plus(b, across(b, b.load(totals[LANES]), plus), b.load(totals[1]))

    return types.float32(x, more), body


@intrinsic  # type: ignore[untyped-decorator]
def scale(typing: Any, x: Any, factor: Any, weight: Any, out: Any) -> Any:
    """out = x * factor * weight."""

    def body(context: Any, b: Any, signature: Any, values: Any) -> Any:
        x, weight, out, count = rows_of(context, b, signature, values, 0, 2, 3)

        def work(at: Value, n: int) -> None:
            found = times(b, load_from(b, x, at, n), spread(b, values[1], n))
            store_into(b, times(b, found, load_from(b, weight, at, n)), out, at)

        over(b, count, work)
        return context.get_dummy_value()

    return types.void(x, factor, weight, out), body


@intrinsic  # type: ignore[untyped-decorator]
def gate_row(typing: Any, out: Any, gates: Any, ups: Any) -> Any:
    """out = silu(gates) * ups, all of either format."""

    def body(context: Any, b: Any, signature: Any, values: Any) -> Any:
        out, gates, ups, count = rows_of(context, b, signature, values, 0, 1, 2)

        def work(at: Value, n: int) -> None:
            x = load_from(b, gates, at, n)
            below = plus(b, exponential(b, minus(b, constant(0.0, n), x)), constant(1.0, n))
            store_into(b, b.fdiv(times(b, x, load_from(b, ups, at, n)), below), out, at)

        over(b, count, work)
        return context.get_dummy_value()

    return types.void(out, gates, ups), body


@intrinsic  # type: ignore[untyped-decorator]
def magnitude(typing: Any, x: Any) -> Any:
    """The largest magnitude in x; not a number where x has one, as bits without a sign compare in
    the order of what they stand for."""

    def body(context: Any, b: Any, signature: Any, values: Any) -> Any:
        x, count = rows_of(context, b, signature, values, 0)
        tops = {n: variable(b, constant(0, n, INT32)) for n in (LANES, 1)}

        def work(at: Value, n: int) -> None:
            bits = b.bitcast(load_from(b, x, at, n), vector(INT32, n))
            bits = b.and_(bits, constant(0x7FFFFFFF, n, INT32))
            b.store(_larger(b, bits, b.load(tops[n])), tops[n])

        over(b, count, work)
        top = _larger(b, across(b, b.load(tops[LANES]), _larger), b.load(tops[1]))
        return b.bitcast(top, FLOAT)

    return types.float32(x), body


@intrinsic  # type: ignore[untyped-decorator]
def quantize(typing: Any, x: Any, factor: Any, middle: Any, out: Any) -> Any:
    """out, uint8, = x * factor + middle without what is behind the point."""

    def body(context: Any, b: Any, signature: Any, values: Any) -> Any:
        x, out, count = rows_of(context, b, signature, values, 0, 3)

        def work(at: Value, n: int) -> None:
            factor, middle = (spread(b, number, n) for number in values[1:3])
            found = plus(b, times(b, load_from(b, x, at, n), factor), middle)
            levels = b.trunc(b.fptosi(found, vector(INT32, n)), vector(_BYTE, n))
            place = b.bitcast(b.gep(out, [at]), vector(_BYTE, n).as_pointer())
            b.store(levels, place, align=1)

        over(b, count, work)
        return context.get_dummy_value()

    return types.void(x, factor, middle, out), body


@intrinsic  # type: ignore[untyped-decorator]
def put_in_pairs(typing: Any, x: Any, which: Any, out: Any) -> Any:
    """out[2 * i + which] = x[i], in bfloat16; which is 0 or 1. What stands between is not touched:
    another thread may write it."""

    def body(context: Any, b: Any, signature: Any, values: Any) -> Any:
        x, out, count = rows_of(context, b, signature, values, 0, 2)
        is_second = b.trunc(values[1], ir.IntType(1))

        def work(at: Value, n: int) -> None:
            place = b.gep(out, [b.add(b.shl(at, INT(1)), values[1])])
            if n == 1:
                store_into(b, load_from(b, x, at, 1), place, INT(0))
                return
            bits = b.zext(to_bfloat16(b, load_from(b, x, at, n)), vector(INT32, n))
            bits = b.shl(bits, b.select(is_second, *(constant(i, n, INT32) for i in (16, 0))))
            pairs, mask = vector(INT16, 2 * n), vector(ir.IntType(1), 2 * n)
            seconds = b.select(is_second, *(ir.Constant(mask, [i, 1 - i] * n) for i in (0, 1)))
            kind = ir.FunctionType(ir.VoidType(), [pairs, pairs.as_pointer(), INT32, mask])
            name = f"llvm.masked.store.v{2 * n}i16.p0v{2 * n}i16"
            masked = cgutils.get_or_insert_function(b.module, kind, name)
            start = b.bitcast(b.gep(out, [b.shl(at, INT(1))]), pairs.as_pointer())
            b.call(masked, [b.bitcast(bits, pairs), start, INT32(2), seconds])

        over(b, count, work)
        return context.get_dummy_value()

    return types.void(x, which, out), body


def _larger(b: Any, x: Value, y: Value) -> Value:
    return b.select(b.icmp_signed(">", x, y), x, y)
