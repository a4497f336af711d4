"""Passes over a row of scores, written for vector registers.

LLVM prepares a plain loop for four registers at a time, so that one over as few scores as a short
prompt has would run number by number; here LANES are gone over at a time. Rows are float32, and
have room for a multiple of LANES.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from forethought.sampling.lanes import (
    INT,
    INT32,
    LANES,
    Value,
    across,
    add_to,
    array_of,
    constant,
    exponential,
    greater,
    load,
    minus,
    plus,
    row_at,
    spread,
    store,
    times,
    variable,
    vector,
)

_BELOW_ALL = float("-inf")


@intrinsic  # type: ignore[untyped-decorator]
def largest_of(typing: Any, x: Any, r: Any, count: Any) -> Any:
    """The largest of x[r, :count]."""

    def body(context: Any, b: Any, signature: Any, values: Any) -> Any:
        x, count = array_of(context, b, signature.args[0], values[0]), values[2]
        row = row_at(b, x, values[1])
        top = variable(b, constant(_BELOW_ALL))
        _find_top(b, row, count, top)
        return across(b, b.load(top), greater)

    return types.float32(x, r, count), body


@intrinsic  # type: ignore[untyped-decorator]
def exponentials(typing: Any, x: Any, r: Any, count: Any, stop: Any, top: Any, out: Any) -> Any:
    """out[r, :count] becomes exp(x[r] - top), and out[r, count:stop] 0, up to a multiple of LANES;
    out is float32, and may be x, or bfloat16. Returns the sum, of what is not rounded."""

    def body(context: Any, b: Any, signature: Any, values: Any) -> Any:
        row, target = (
            row_at(b, array_of(context, b, signature.args[i], values[i]), values[1]) for i in (0, 5)
        )
        (count, stop), top = values[2:4], spread(b, values[4])
        total = variable(b, constant(0.0))
        _raise(b, row, target, count, stop, top, total)
        return across(b, b.load(total), plus)

    return types.float32(x, r, count, stop, top, out), body


@intrinsic  # type: ignore[untyped-decorator]
def exponentials_of_both(
    typing: Any, x: Any, r: Any, first: Any, begin: Any, count: Any, stop: Any, out: Any
) -> Any:
    """Of x[r, :first] and x[r, begin:][:count] together: exp(x - the largest of them) into out[r],
    bfloat16, followed by zeros up to `begin` and to `stop` behind it. Returns the sum, of what is
    not rounded, and the largest."""

    def body(context: Any, b: Any, signature: Any, values: Any) -> Any:
        x, out = (
            row_at(b, array_of(context, b, signature.args[i], values[i]), values[1]) for i in (0, 6)
        )
        first, begin, count, stop = values[2:6]
        parts = [
            (x, out, first, begin),
            (b.gep(x, [begin]), b.gep(out, [begin]), count, stop),
        ]
        tops, total = variable(b, constant(_BELOW_ALL)), variable(b, constant(0.0))
        for row, _, count, _ in parts:
            _find_top(b, row, count, tops)
        largest = across(b, b.load(tops), greater)
        top = spread(b, largest)
        for row, target, count, stop in parts:
            _raise(b, row, target, count, stop, top, total)
        found = across(b, b.load(total), plus), largest
        return context.make_tuple(b, signature.return_type, found)

    two = types.UniTuple(types.float32, 2)
    return two(x, r, first, begin, count, stop, out), body


@intrinsic  # type: ignore[untyped-decorator]
def to_slopes(
    typing: Any,
    scores: Any,
    slopes: Any,
    r: Any,
    count: Any,
    stop: Any,
    logsum: Any,
    whole: Any,
) -> Any:
    """scores[r, :count] become weights w = exp(score - logsum), and slopes[r, :count], the
    gradients of weights, w * (slope - whole), those of scores; both 0 from `count` to `stop`, up
    to a multiple of LANES."""

    def body(context: Any, b: Any, signature: Any, values: Any) -> Any:
        rows = [
            row_at(b, array_of(context, b, signature.args[i], values[i]), values[2]) for i in (0, 1)
        ]
        count, stop = values[3:5]
        logsum, whole = (spread(b, number) for number in values[5:7])
        with _blocks(b, count) as start:
            scores, slopes = (load(b, b.gep(row, [start])) for row in rows)
            weights = exponential(b, minus(b, scores, logsum))
            slopes = times(b, weights, minus(b, slopes, whole))
            for row, numbers in zip(rows, (weights, slopes), strict=True):
                numbers = b.select(_before(b, start, count), numbers, constant(0.0))
                store(b, numbers, b.gep(row, [start]))
        for row in rows:
            _clear(b, row, count, stop)
        return context.get_dummy_value()

    return types.void(scores, slopes, r, count, stop, logsum, whole), body


@intrinsic  # type: ignore[untyped-decorator]
def to_slopes_of_key(
    typing: Any,
    scores: Any,
    slopes: Any,
    r: Any,
    first: Any,
    stop: Any,
    logsums: Any,
    wholes: Any,
    to_weights: Any,
    to_slopes: Any,
) -> Any:
    """What `to_slopes` works out for a query, for one key, whose queries are the columns from
    `first` on: to_weights[r] = w = exp(scores[r] - logsums) and to_slopes[r] = w * (slopes[r] -
    wholes), 0 before `first`, up to `stop`, a multiple of LANES."""

    def body(context: Any, b: Any, signature: Any, values: Any) -> Any:
        *tables, logsums, wholes = (
            array_of(context, b, signature.args[i], values[i]) for i in (0, 1, 7, 8, 5, 6)
        )
        scores, slopes, *targets = (row_at(b, table, values[2]) for table in tables)
        first, stop = values[3:5]
        whole = b.and_(first, INT(-LANES))  # before it no vector has anything
        whole = b.select(b.icmp_signed("<", whole, stop), whole, stop)
        with cgutils.for_range_slice(b, INT(0), whole, INT(LANES)) as (start, _):
            for target in targets:
                store(b, constant(0.0), b.gep(target, [start]))
        with cgutils.for_range_slice(b, whole, stop, INT(LANES)) as (start, _):
            row, slope, logsum, mean = (
                load(b, b.gep(place, [start]))
                for place in (scores, slopes, logsums.data, wholes.data)
            )
            weights = exponential(b, minus(b, row, logsum))
            found = weights, times(b, weights, minus(b, slope, mean))
            is_before = _before(b, start, first)
            for numbers, target in zip(found, targets, strict=True):
                numbers = b.select(is_before, constant(0.0), numbers)
                store(b, numbers, b.gep(target, [start]))
        return context.get_dummy_value()

    signature = types.void(scores, slopes, r, first, stop, logsums, wholes, to_weights, to_slopes)
    return signature, body


def _find_top(b: Any, row: Value, count: Value, tops: Value) -> None:
    """Every lane's largest number of a row, or what is in `tops` already."""
    lowest = constant(_BELOW_ALL)
    with _blocks(b, count) as start:
        numbers = b.select(_before(b, start, count), load(b, b.gep(row, [start])), lowest)
        b.store(greater(b, numbers, b.load(tops)), tops)


def _raise(
    b: Any, row: Value, target: Value, count: Value, stop: Value, top: Value, total: Value
) -> None:
    """target[:count] = exp(row - top), with zeros up to `stop`; added to every lane of `total`."""
    with _blocks(b, count) as start:
        found = exponential(b, minus(b, load(b, b.gep(row, [start])), top))
        found = b.select(_before(b, start, count), found, constant(0.0))
        store(b, found, b.gep(target, [start]))
        add_to(b, total, found)
    _clear(b, target, count, stop)


@contextmanager
def _blocks(b: Any, count: Value) -> Iterator[Value]:
    """A loop over the vectors that `count` numbers fill, the last of them in part."""
    with cgutils.for_range_slice(b, INT(0), count, INT(LANES)) as (start, _):
        yield start


def _clear(b: Any, row: Value, count: Value, stop: Value) -> None:
    """Zeros from behind the last vector of `count` numbers to the end of that of `stop`."""
    rounded = b.and_(b.add(count, INT(LANES - 1)), INT(-LANES))
    with cgutils.for_range_slice(b, rounded, stop, INT(LANES)) as (start, _):
        store(b, constant(0.0), b.gep(row, [start]))


def _before(b: Any, start: Value, count: Value) -> Value:
    """Which lanes of the vector at `start` lie before `count`."""
    left = spread(b, b.trunc(b.sub(count, start), INT32))
    return b.icmp_signed("<", ir.Constant(vector(INT32), list(range(LANES))), left)
