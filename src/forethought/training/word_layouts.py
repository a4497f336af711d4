"""Matrices laid out for AMX's products: words of two numbers in bfloat16, 16 words of 16 columns
after each other, and rows turned into columns.

Arrays are float32, or uint16, which stands for bfloat16.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from forethought.sampling.head_vectors import exchanged
from forethought.sampling.lanes import (
    FLOAT,
    INT,
    INT16,
    INT32,
    LANES,
    Value,
    array_of,
    constant,
    load,
    row_at,
    to_bfloat16,
    vector,
)


@intrinsic  # type: ignore[untyped-decorator]
def words_of_rows(typing: Any, x: Any, row: Any, column: Any, out: Any, block: Any) -> Any:
    """out[block, column / 2 + k, j] = the word of x[row + j, column + 2 k] and the number behind
    it, for j and k below LANES; out: (blocks, words, LANES), int32."""

    def body(context: Any, b: Any, signature: Any, arguments: Any) -> Any:
        x, out = (array_of(context, b, signature.args[i], arguments[i]) for i in (0, 3))
        row, column, block = (arguments[i] for i in (1, 2, 4))
        rows = [_words(b, b.gep(row_at(b, x, b.add(row, INT(j))), [column])) for j in range(LANES)]
        first = row_at(b, out, block, b.lshr(column, INT(1)))
        for k, words in enumerate(exchanged(b, rows)):
            _put(b, words, b.gep(first, [INT(LANES * k)]))
        return context.get_dummy_value()

    return types.void(x, row, column, out, block), body


def _words(b: Any, place: Value) -> Value:
    """The LANES words from `place` on."""
    if place.type.pointee != FLOAT:
        return b.load(b.bitcast(place, vector(INT32).as_pointer()), align=2)
    halves = [to_bfloat16(b, load(b, b.gep(place, [INT(LANES * i)]))) for i in range(2)]
    order = ir.Constant(vector(INT32, 2 * LANES), list(range(2 * LANES)))
    return b.bitcast(b.shuffle_vector(*halves, order), vector(INT32))


@intrinsic  # type: ignore[untyped-decorator]
def words_of_pairs(
    typing: Any, x: Any, row: Any, column: Any, out: Any, block: Any, word: Any
) -> Any:
    """out[block, word, j] = the word of x[row, column + j] and the number below it, for j below
    LANES."""

    def body(context: Any, b: Any, signature: Any, arguments: Any) -> Any:
        x, out = (array_of(context, b, signature.args[i], arguments[i]) for i in (0, 3))
        row, column, block, word = (arguments[i] for i in (1, 2, 4, 5))
        _put(b, _pairs(b, x, row, column), row_at(b, out, block, word))
        return context.get_dummy_value()

    return types.void(x, row, column, out, block, word), body


def _pairs(b: Any, x: Any, row: Value, column: Value) -> Value:
    first, second = (
        b.zext(_halves(b, b.gep(row_at(b, x, at), [column])), vector(INT32))
        for at in (row, b.add(row, INT(1)))
    )
    return b.or_(first, b.shl(second, constant(16, LANES, INT32)))


def _halves(b: Any, place: Value) -> Value:
    """The LANES numbers from `place` on, in bfloat16."""
    if place.type.pointee == FLOAT:
        return to_bfloat16(b, load(b, place))
    return b.load(b.bitcast(place, vector(INT16).as_pointer()), align=2)


@intrinsic  # type: ignore[untyped-decorator]
def turn_tile(typing: Any, x: Any, row: Any, column: Any, out: Any) -> Any:
    """out[column + j, row + i] = x[row + i, column + j] for j below LANES, i below 2 * LANES."""

    def body(context: Any, b: Any, signature: Any, arguments: Any) -> Any:
        x, out = (array_of(context, b, signature.args[i], arguments[i]) for i in (0, 3))
        row, column = arguments[1:3]
        pairs = [_pairs(b, x, b.add(row, INT(2 * k)), column) for k in range(LANES)]
        for j, words in enumerate(exchanged(b, pairs)):
            _put(b, words, b.gep(row_at(b, out, b.add(column, INT(j))), [row]))
        return context.get_dummy_value()

    return types.void(x, row, column, out), body


@intrinsic  # type: ignore[untyped-decorator]
def round_row(typing: Any, x: Any, row: Any, out: Any, to: Any, column: Any) -> Any:
    """out[to, column:] = x[row], 2 * LANES numbers."""

    def body(context: Any, b: Any, signature: Any, arguments: Any) -> Any:
        x, out = (array_of(context, b, signature.args[i], arguments[i]) for i in (0, 2))
        words = _words(b, row_at(b, x, arguments[1]))
        _put(b, words, b.gep(row_at(b, out, arguments[3]), [arguments[4]]))
        return context.get_dummy_value()

    return types.void(x, row, out, to, column), body


def _put(b: Any, numbers: Value, place: Value) -> None:
    """Bit by bit."""
    b.store(numbers, b.bitcast(place, numbers.type.as_pointer()), align=2)
