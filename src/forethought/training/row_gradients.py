"""Passes of training over the numbers of a whole row, written for vector registers, as
`sampling/row_passes.py`.

All arrays are rows of one length without gaps, float32 or bfloat16 where nothing else is said.
"""

from __future__ import annotations

from typing import Any

from numba import types
from numba.extending import intrinsic

from forethought.sampling.lanes import (
    LANES,
    Value,
    across,
    add_to,
    constant,
    exponential,
    greater,
    load_from,
    minus,
    over,
    plus,
    spread,
    store_into,
    times,
    variable,
)
from forethought.sampling.row_passes import rows_of


@intrinsic  # type: ignore[untyped-decorator]
def gate_row_back(typing: Any, gates: Any, ups: Any, given: Any, to_gates: Any, to_ups: Any) -> Any:
    """The gradient of silu(gates) * ups carried on to both: d silu(x) / dx = s (1 + x (1 - s)) with
    s = sigmoid(x)."""

    def body(context: Any, b: Any, signature: Any, values: Any) -> Any:
        *rows, to_gates, to_ups, count = rows_of(context, b, signature, values, 0, 1, 2, 3, 4)

        def work(at: Value, n: int) -> None:
            x, up, given = (load_from(b, row, at, n) for row in rows)
            one = constant(1.0, n)
            below = plus(b, exponential(b, minus(b, constant(0.0, n), x)), one)
            share = b.fdiv(one, below)
            slope = times(b, share, plus(b, times(b, x, minus(b, one, share)), one))
            store_into(b, times(b, times(b, given, up), slope), to_gates, at)
            store_into(b, times(b, times(b, given, x), share), to_ups, at)

        over(b, count, work)
        return context.get_dummy_value()

    return types.void(gates, ups, given, to_gates, to_ups), body


@intrinsic  # type: ignore[untyped-decorator]
def sum_of_products(typing: Any, x: Any, y: Any, z: Any) -> Any:
    """The sum of x * y * z."""

    def body(context: Any, b: Any, signature: Any, values: Any) -> Any:
        *rows, count = rows_of(context, b, signature, values, 0, 1, 2)
        totals = {n: variable(b, constant(0.0, n)) for n in (LANES, 1)}

        def add(at: Value, n: int) -> None:
            x, y, z = (load_from(b, row, at, n) for row in rows)
            add_to(b, totals[n], times(b, times(b, x, y), z))

        over(b, count, add)
        return plus(b, across(b, b.load(totals[LANES]), plus), b.load(totals[1]))

    return types.float32(x, y, z), body


@intrinsic  # type: ignore[untyped-decorator]
def norm_row_back(
    typing: Any, x: Any, weight: Any, given: Any, factor: Any, mean: Any, to_x: Any, to_weight: Any
) -> Any:
    """to_x = factor * (given * weight - x * mean), and to_weight += given * x * factor."""

    def body(context: Any, b: Any, signature: Any, values: Any) -> Any:
        *rows, to_x, to_weight, count = rows_of(context, b, signature, values, 0, 1, 2, 5, 6)

        def work(at: Value, n: int) -> None:
            x, weight, given = (load_from(b, row, at, n) for row in rows)
            factor, mean = (spread(b, number, n) for number in values[3:5])
            more = times(b, times(b, given, x), factor)
            store_into(b, plus(b, load_from(b, to_weight, at, n), more), to_weight, at)
            found = minus(b, times(b, given, weight), times(b, x, mean))
            store_into(b, times(b, factor, found), to_x, at)

        over(b, count, work)
        return context.get_dummy_value()

    return types.void(x, weight, given, factor, mean, to_x, to_weight), body


@intrinsic  # type: ignore[untyped-decorator]
def add_row(typing: Any, x: Any, more: Any) -> Any:
    """x += more."""

    def body(context: Any, b: Any, signature: Any, values: Any) -> Any:
        x, more, count = rows_of(context, b, signature, values, 0, 1)

        def work(at: Value, n: int) -> None:
            store_into(b, plus(b, load_from(b, x, at, n), load_from(b, more, at, n)), x, at)

        over(b, count, work)
        return context.get_dummy_value()

    return types.void(x, more), body


@intrinsic  # type: ignore[untyped-decorator]
def raise_to(typing: Any, tops: Any, x: Any) -> Any:
    """tops = the larger of tops and x."""

    def body(context: Any, b: Any, signature: Any, values: Any) -> Any:
        tops, x, count = rows_of(context, b, signature, values, 0, 1)

        def work(at: Value, n: int) -> None:
            found = greater(b, load_from(b, x, at, n), load_from(b, tops, at, n))
            store_into(b, found, tops, at)

        over(b, count, work)
        return context.get_dummy_value()

    return types.void(tops, x), body


@intrinsic  # type: ignore[untyped-decorator]
def add_exponentials(typing: Any, totals: Any, x: Any, tops: Any, scale: Any) -> Any:
    """totals += exp(scale * (x - tops)), not a number where x is none or infinite."""

    def body(context: Any, b: Any, signature: Any, values: Any) -> Any:
        totals, x, tops, count = rows_of(context, b, signature, values, 0, 1, 2)

        def work(at: Value, n: int) -> None:
            below = minus(b, load_from(b, x, at, n), load_from(b, tops, at, n))
            below = times(b, spread(b, values[3], n), below)
            found = plus(b, exponential(b, below), minus(b, below, below))
            store_into(b, plus(b, load_from(b, totals, at, n), found), totals, at)

        over(b, count, work)
        return context.get_dummy_value()

    return types.void(totals, x, tops, scale), body


@intrinsic  # type: ignore[untyped-decorator]
def softmax_back(typing: Any, x: Any, scale: Any, tops: Any, logs: Any, upstream: Any) -> Any:
    """x = -upstream * exp(scale * (x - tops) - logs)."""

    def body(context: Any, b: Any, signature: Any, values: Any) -> Any:
        x, *rows, count = rows_of(context, b, signature, values, 0, 2, 3, 4)

        def work(at: Value, n: int) -> None:
            top, log, upstream = (load_from(b, row, at, n) for row in rows)
            below = times(b, spread(b, values[1], n), minus(b, load_from(b, x, at, n), top))
            found = times(b, upstream, exponential(b, minus(b, below, log)))
            store_into(b, minus(b, constant(0.0, n), found), x, at)

        over(b, count, work)
        return context.get_dummy_value()

    return types.void(x, scale, tops, logs, upstream), body
