"""Attention of strips by AMX, there and back: as `training/strip_attention.py`, in bfloat16.

Queries, keys, values and what is given back are read as bfloat16 and turned (RoPE) before they are
rounded; weights and their gradients are rounded too, as on a GPU, and all sums are in float32. On
the way back a key's weights of many queries are a row, so that one product with these queries'
words gives its gradient, and another the value's; only the gradients of weights are turned once
more, for that of queries.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from forethought.sampling.amx import ROWS, SHAPES, WORDS, configure, release
from forethought.sampling.head_vectors import transpose, turn_square, write
from forethought.sampling.kernels import compiled, part
from forethought.sampling.paired_attention import (
    TOKENS,
    from_line,
    score_pairs,
    weigh_pairs,
    whole_steps,
)
from forethought.sampling.row_passes import put_in_pairs
from forethought.sampling.row_vectors import exponentials_of_both, to_slopes_of_key
from forethought.sampling.team import share_out
from forethought.training.strip_rows import (
    clear_padding,
    fill_rows,
    following,
    give_rows,
    read_sums,
)

_CHUNK = 8 * ROWS  # queries whose weights are worked out before they are gone over again
_ZERO, _ONE = np.float32(0.0), np.float32(1.0)


@compiled
def attend_paired_strips(
    num_threads: int,
    heads: Any,
    rotation: Any,
    layout: Any,
    scale: Any,
    out: Any,
    logsums: Any,
) -> None:
    """`attend` of `training/strip_attention.py`: heads in bfloat16, head_dim a multiple of 32."""
    units = (len(layout[1]) - 1) * heads[1].shape[1]
    arguments = (heads, rotation, layout, scale, out, logsums)
    share_out(_attend, arguments, units, num_threads)


@part
def _attend(
    heads: Any,
    rotation: Any,
    layout: Any,
    scale: Any,
    out: Any,
    logsums: Any,
    start: int,
    stop: int,
) -> None:
    queries, keys, values = heads
    lengths, firsts, starts = layout
    kv_heads, size = keys.shape[1:]
    repeats = queries.shape[1] // kv_heads
    factors, found = np.empty(ROWS, np.float32), _floats(ROWS, size)
    configure(SHAPES[ROWS])
    for unit in range(start, stop):
        strip, h = unit // kv_heads, unit % kv_heads
        shared, cell = 0, starts[strip]
        prompt_keys = _in_blocks(_rows(keys, rotation, cell, 0, h, 1, _ONE))
        prompt_values = _in_pairs(_rows(values, rotation, cell, 0, h, 1, _ZERO))
        for piece in range(firsts[strip], firsts[strip + 1]):
            count = lengths[piece]
            asking = _rows(queries, rotation, cell, count, h, repeats, scale)
            own_keys = _in_blocks(_rows(keys, rotation, cell, count, h, 1, _ONE))
            own_values = _in_pairs(_rows(values, rotation, cell, count, h, 1, _ZERO))
            begin = whole_steps(shared)
            columns = _apart(begin + whole_steps(count))
            scores, weights = _floats(ROWS, columns), _halves(ROWS, columns)
            for first in range(0, count * repeats, ROWS):
                seen = min(count, (first + ROWS - 1) // repeats + 1)
                score_pairs(asking, first, prompt_keys, shared, (), scores, 0, 0)
                score_pairs(asking, first, own_keys, seen, (), scores, 0, begin)
                rows = min(ROWS, count * repeats - first)
                t, r, to = first // repeats, first % repeats, whole_steps(seen)
                for i in range(rows):
                    total, top = exponentials_of_both(scores, i, shared, begin, t + 1, to, weights)
                    factors[i] = _ONE / total
                    logsums[cell + t, h * repeats + r] = top + np.float32(math.log(total))
                    t, r = following(t, r, repeats)
                weigh_pairs(False, weights, 0, begin, own_values, seen, (), found)
                weigh_pairs(True, weights, 0, 0, prompt_values, shared, (), found)
                t, r = first // repeats, first % repeats
                for i in range(rows):
                    write(found, i, factors[i], out, cell + t, h * repeats + r)
                    t, r = following(t, r, repeats)
            if piece == firsts[strip]:
                shared, prompt_keys, prompt_values = count, own_keys, own_values
            cell += count
        out[cell : starts[strip + 1], h * repeats : (h + 1) * repeats] = 0
    release()


@compiled
def attend_paired_strips_back(
    num_threads: int,
    heads: Any,
    rotation: Any,
    layout: Any,
    scale: Any,
    out: Any,
    logsums: Any,
    gradient: Any,
    to_heads: Any,
) -> None:
    """`attend_back` of `training/strip_attention.py`, of the same arrays as above."""
    units = (len(layout[1]) - 1) * heads[1].shape[1]
    arguments = (heads, rotation, layout, scale, out, logsums, gradient, to_heads)
    share_out(_attend_back, arguments, units, num_threads)


@part
def _attend_back(
    heads: Any,
    rotation: Any,
    layout: Any,
    scale: Any,
    out: Any,
    logsums: Any,
    gradient: Any,
    to_heads: Any,
    start: int,
    stop: int,
) -> None:
    queries, keys, values = heads
    lengths, firsts, starts = layout
    kv_heads, size = keys.shape[1:]
    repeats = queries.shape[1] // kv_heads
    configure(SHAPES[ROWS])
    for unit in range(start, stop):
        strip, h = unit // kv_heads, unit % kv_heads
        shared, begin = 0, starts[strip]
        prompt = _own(keys, values, rotation, begin, 0, h)
        to_prompt = _room(0, size)
        cell = begin
        for piece in range(firsts[strip], firsts[strip + 1]):
            count = lengths[piece]
            mine, to_mine = _own(keys, values, rotation, cell, count, h), _room(count, size)
            asking = _rows(queries, rotation, cell, count, h, repeats, scale)
            given = _rows(gradient, rotation, cell, count, h, repeats, _ZERO)
            to_asking = _floats(len(asking), size)
            sums = np.zeros((2, len(asking)), np.float32)
            read_sums(out, logsums, given, cell, count, h, repeats, sums)
            for first in range(0, count * repeats, _CHUNK):
                last = min(first + _CHUNK, len(asking))
                some = (asking[first:last], given[first:last], to_asking[first:last])
                seen = min(count, (last - 1) // repeats + 1)
                means = (sums[0, first:last], sums[1, first:last])
                _chunk(first, repeats, shared, seen, some, means, prompt, mine, to_prompt, to_mine)
            give_rows(to_asking, rotation, cell, count, h, repeats, scale, to_heads[0])
            if piece == firsts[strip]:
                shared, prompt, to_prompt = count, mine, to_mine
            else:
                give_rows(to_mine[0], rotation, cell, count, h, 1, _ONE, to_heads[1])
                give_rows(to_mine[1], rotation, cell, count, h, 1, _ZERO, to_heads[2])
            cell += count
        give_rows(to_prompt[0], rotation, begin, shared, h, 1, _ONE, to_heads[1])
        give_rows(to_prompt[1], rotation, begin, shared, h, 1, _ZERO, to_heads[2])
        clear_padding(to_heads, cell, starts[strip + 1], h, repeats)
    release()


@part
def _chunk(
    first: int,
    repeats: int,
    shared: int,
    seen: int,
    some: Any,
    sums: Any,
    prompt: Any,
    mine: Any,
    to_prompt: Any,
    to_mine: Any,
) -> None:
    """What some queries, from the one numbered `first` of a piece on, give to all they see."""
    asking, given, to_asking = some
    count, begin = len(asking), whole_steps(shared)
    in_words = (_in_blocks(asking), _in_pairs(asking), _in_blocks(given), _in_pairs(given))
    slopes = _halves(count, _apart(begin + whole_steps(seen)))
    _of_keys(in_words, sums, prompt, shared, 0, 0, to_prompt, slopes, 0)
    _of_keys(in_words, sums, mine, seen, first, repeats, to_mine, slopes, begin)
    for q in range(0, count, ROWS):
        weigh_pairs(False, slopes, q, begin, mine[1], seen, (), to_asking)
        weigh_pairs(True, slopes, q, 0, prompt[1], shared, (), to_asking)


@part
def _of_keys(
    in_words: Any,
    sums: Any,
    seen: Any,
    num_keys: int,
    first: int,
    repeats: int,
    to_seen: Any,
    slopes: Any,
    column: int,
) -> None:
    """The gradients of some keys and values added up, and of the weights of each, which stand in a
    row here, into a column of `slopes` from `column` on. Key k is seen by the queries from number
    k * repeats on, of which the first here is number `first`."""
    ask_blocks, ask_pairs, give_blocks, give_pairs = in_words
    keys, _, values = seen
    count = len(slopes)
    of_weights, of_slopes = _floats(ROWS, _apart(count)), _floats(ROWS, _apart(count))
    weights, rows = _halves(ROWS, _apart(count)), _halves(ROWS, _apart(count))
    for k in range(0, whole_steps(num_keys), ROWS):
        score_pairs(keys, k, ask_blocks, count, (), of_weights, 0, 0)
        score_pairs(values, k, give_blocks, count, (), of_slopes, 0, 0)
        for i in range(ROWS):
            begin = max(0, (k + i) * repeats - first) if k + i < num_keys else count
            to_slopes_of_key(of_weights, of_slopes, i, begin, count, *sums, weights, rows)
        weigh_pairs(True, rows, 0, 0, ask_pairs, count, (), to_seen[0][k:])
        weigh_pairs(True, weights, 0, 0, give_pairs, count, (), to_seen[1][k:])
        for q in range(0, count, WORDS):
            turn_square(rows, q, slopes, q, column + k)


@part
def _own(keys: Any, values: Any, rotation: Any, cell: int, count: int, h: int) -> Any:
    """Keys of `count` cells in rows and in pairs, and values in rows."""
    rows = _rows(keys, rotation, cell, count, h, 1, _ONE)
    return rows, _in_pairs(rows), _rows(values, rotation, cell, count, h, 1, _ZERO)


@part
def _rows(
    values: Any, rotation: Any, cell: int, count: int, h: int, repeats: int, factor: Any
) -> Any:
    """What `read_rows` reads, in bfloat16, with 0 up to whole steps of an instruction."""
    num = count * repeats
    found = _halves(whole_steps(num), values.shape[2])
    found[num:] = 0
    fill_rows(values, rotation, cell, count, h, repeats, factor, found)
    return found


@part
def _in_blocks(rows: Any) -> Any:
    """Words of two numbers of a row, (blocks of WORDS rows, row's words, WORDS)."""
    num_words = rows.shape[1] // 2
    found = _floats(len(rows) // WORDS, num_words * WORDS).reshape(-1, num_words, WORDS)
    transpose(rows.view(np.float32), num_words, found)
    return found


@part
def _in_pairs(rows: Any) -> Any:
    """Words of the same number of two rows, as (rows / 2, twice as many numbers)."""
    found = _halves(len(rows) // 2, 2 * rows.shape[1])
    for i in range(len(rows)):
        put_in_pairs(rows[i], i % 2, found[i // 2])
    return found


@part
def _room(count: int, size: int) -> Any:
    """For the gradients of so many keys and values."""
    keys, values = _floats(whole_steps(count), size), _floats(whole_steps(count), size)
    keys[:], values[:] = _ZERO, _ZERO
    return keys, values


@part
def _floats(rows: int, columns: int) -> Any:
    return from_line(4 * rows * columns).view(np.float32).reshape(rows, columns)


@part
def _halves(rows: int, columns: int) -> Any:
    return from_line(2 * rows * columns).view(np.uint16).reshape(rows, columns)


@part
def _apart(columns: int) -> int:
    """So many or a few more, for rows that do not meet in the nearest cache."""
    return columns + TOKENS * (1 - columns // TOKENS % 2)
