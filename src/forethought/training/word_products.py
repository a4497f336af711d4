"""The matrix products of training by AMX: of activations and weights, there and back.

A product is of a left side (n, S), rows of numbers in bfloat16, and a right one (S, N), which is
laid out in words: (N / 16, S / 2, 16), word w of column c being numbers 2 w and 2 w + 1 of that
column. S and N are multiples of 32, sums are in float32. As many rows as a near cache has room for
meet 32 columns after 32 others; a library's product keeps more registers in use, which at times
takes twice as long (`sampling/amx.py`).
"""

from __future__ import annotations

from typing import Any

import numpy as np

from forethought.sampling.amx import (
    ROWS,
    SHAPES,
    WORDS,
    configure,
    more_2,
    release,
    strip_2,
)
from forethought.sampling.kernels import compiled, part
from forethought.sampling.paired_attention import from_line
from forethought.sampling.row_passes import copy
from forethought.sampling.team import share_out
from forethought.training.word_layouts import round_row, turn_tile, words_of_pairs, words_of_rows

AT_ONCE = 2 * WORDS  # numbers of a row that an instruction goes over
_STEPS = 48  # of an instruction, at most, before a sum is put down
_ROOM = 1 << 20  # bytes of the left side that meet all of the right one before others do


@compiled
def lay_rows(num_threads: int, x: Any, words: Any) -> None:
    """x (N, S), the right side turned, into words (N / 16, S / 2, 16) int32."""
    share_out(_lay_rows, (x, words), len(words), num_threads)


@part
def _lay_rows(x: Any, words: Any, start: int, stop: int) -> None:
    for block in range(start, stop):
        for column in range(0, x.shape[1], AT_ONCE):
            words_of_rows(x, block * WORDS, column, words, block)


@compiled
def lay_pairs(num_threads: int, x: Any, words: Any) -> None:
    """x (R, N), the first rows of the right side, into words (N / 16, S / 2, 16) int32; beyond
    them are zeros."""
    share_out(_lay_pairs, (x, words), words.shape[1] // WORDS, num_threads)


@part
def _lay_pairs(x: Any, words: Any, start: int, stop: int) -> None:
    end, rest = np.zeros((2, x.shape[1]), x.dtype), len(x) // 2
    if len(x) % 2:
        end[0] = x[-1]
    for step in range(start, stop):
        for block in range(len(words)):
            for word in range(step * WORDS, (step + 1) * WORDS):
                if word < rest:
                    words_of_pairs(x, 2 * word, block * WORDS, words, block, word)
                elif word == rest and len(x) % 2:
                    words_of_pairs(end, 0, block * WORDS, words, block, word)
                else:
                    words[block, word] = 0


@compiled
def turn(num_threads: int, x: Any, out: Any) -> None:
    """out (N, S) = x (R, N) turned; S is at least R, and what is beyond R is 0."""
    share_out(_turn, (x, out), len(out) // WORDS, num_threads)


@part
def _turn(x: Any, out: Any, start: int, stop: int) -> None:
    whole = len(x) // AT_ONCE * AT_ONCE
    for block in range(start, stop):
        for row in range(0, whole, AT_ONCE):
            turn_tile(x, row, block * WORDS, out)
        for column in range(block * WORDS, (block + 1) * WORDS):
            for row in range(whole, out.shape[1]):
                out[column, row] = x[row, column] if row < len(x) else 0


@compiled
def multiply(num_threads: int, left: Any, right: Any, out: Any) -> None:
    """out (n, N), uint16, = left (n, S) times right, in words."""
    share_out(_multiply, (left, right, out), _num_blocks(left), num_threads)


@part
def _multiply(left: Any, right: Any, out: Any, start: int, stop: int) -> None:
    strides, steps = _strides(right), right.shape[1] // WORDS
    together, end = _rows_together(left.shape[1]), min(stop * ROWS, len(left))
    sums = from_line(4 * ROWS * AT_ONCE).view(np.float32).reshape(ROWS, AT_ONCE)
    for first in range(start * ROWS, end, together):
        last = min(first + together, end)
        for tile in range(0, len(right), 2):
            some = right[tile:]
            configure(SHAPES[ROWS])
            for row in range(first, last, ROWS):
                count = min(ROWS, last - row)
                if count < ROWS:
                    configure(SHAPES[count])
                strip_2(left, row, some, 0, strides, steps, (), sums, 0, 0)
                for i in range(count):
                    round_row(sums, i, out, row + i, tile * WORDS)
            release()


@compiled
def add_product(num_threads: int, is_more: bool, left: Any, right: Any, out: Any) -> None:
    """out (n, N), float32, = left (n, S) times right, in words; or where there `is_more` += it."""
    share_out(_add_product, (is_more, left, right, out), _num_blocks(left), num_threads)


@compiled
def add_onto(num_threads: int, so_far: Any, left: Any, right: Any, out: Any) -> None:
    """out (n, N), float32, = so_far (n, N) + left (n, S) times right, in words."""
    share_out(_add_onto, (so_far, left, right, out), _num_blocks(left), num_threads)


@part
def _add_onto(so_far: Any, left: Any, right: Any, out: Any, start: int, stop: int) -> None:
    together = _rows_together(min(left.shape[1], _STEPS * AT_ONCE))
    blocks = together // ROWS
    for first in range(start, stop, blocks):
        until = min(first + blocks, stop)
        for r in range(first * ROWS, min(until * ROWS, len(left))):
            copy(out[r], so_far[r])
        _add_product(True, left, right, out, first, until)


@part
def _add_product(is_more: bool, left: Any, right: Any, out: Any, start: int, stop: int) -> None:
    strides, steps = _strides(right), right.shape[1] // WORDS
    together = _rows_together(min(left.shape[1], _STEPS * AT_ONCE))
    end = min(stop * ROWS, len(left))
    for step in range(0, steps, _STEPS):
        count, more = min(_STEPS, steps - step), is_more or step > 0
        given = left[:, step * AT_ONCE :]
        for first in range(start * ROWS, end, together):
            last = min(first + together, end)
            for tile in range(0, len(right), 2):
                some, column = right[tile:, step * WORDS :], tile * WORDS
                configure(SHAPES[ROWS])
                for row in range(first, last, ROWS):
                    if last - row < ROWS:
                        configure(SHAPES[last - row])
                    if more:
                        more_2(given, row, some, 0, strides, count, (), out, row, column)
                    else:
                        strip_2(given, row, some, 0, strides, count, (), out, row, column)
                release()


@part
def _strides(right: Any) -> Any:
    """Bytes from one tile of `right` to that of the next columns, of the next words, and from row
    to row."""
    return right.strides[0], right.strides[1] * WORDS, right.strides[1]


@part
def _rows_together(width: int) -> int:
    """Whole blocks of rows of so many numbers, for which the second cache has room."""
    return max(1, _ROOM // (2 * width * ROWS)) * ROWS


@part
def _num_blocks(left: Any) -> int:
    return (len(left) + ROWS - 1) // ROWS
