"""Attention by AMX: as `sampling/attention.py`, over keys and values that stand in pairs.

An instruction of AMX multiplies words, two numbers in bfloat16 each. So a word of a key holds two
of its numbers next to each other, a word of values the same number of two tokens. Siblings go over
the prompt that they share together: their queries are rows of one register.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from forethought.sampling.amx import (
    ROWS,
    SHAPES,
    WORDS,
    configure,
    fetch_lines,
    more_2,
    release,
    strip_1,
    strip_2,
)
from forethought.sampling.attention import norm_heads
from forethought.sampling.head_vectors import read_turned, write
from forethought.sampling.kernels import part, put, take
from forethought.sampling.lanes import LINE
from forethought.sampling.row_passes import put_in_pairs
from forethought.sampling.row_vectors import exponentials_of_both

TOKENS = 2 * WORDS  # that one instruction weighs
_ONE = np.float32(1.0)
_AHEAD = 2  # rows: where a key is stored so much later is fetched


@part
def store_paired(
    is_reading: bool,
    products: Any,
    norms: Any,
    epsilon: Any,
    cos: Any,
    sin: Any,
    positions: Any,
    own: Any,
    layer: int,
    seats: Any,
    own_lengths: Any,
    queries: Any,
    start: int,
    stop: int,
) -> None:
    """`store_rows` of `sampling/attention.py`, but own: keys (layers, seats, kv_heads, blocks,
    head_dim / 2, WORDS), uint32, and values (layers, seats, kv_heads, columns / 2, head_dim * 2),
    uint16; queries: (kv_heads, n * those of a key head, head_dim), in bfloat16. Unless rows are
    tokens of one prompt (`is_reading`), which are stored in any order, the first value of all that
    one instruction weighs makes the others 0: their weights will be, and they must be numbers."""
    keys, values = own
    kv_heads, size = keys.shape[2], 2 * keys.shape[4]
    repeats = queries.shape[1] // len(products)
    num_heads = kv_heads * repeats
    row = np.empty((num_heads + 2 * kv_heads) * size, np.float32)
    heads = row.reshape(1, -1, size)
    key = np.empty((1, size), np.uint16)
    words = key[0].view(np.uint32)
    scale = np.float32(1.0 / math.sqrt(size))
    for r in range(start, stop):
        coming = min(r + _AHEAD, len(seats) - 1)
        later, place = seats[coming], own_lengths[coming] - 1
        take(products, r, row)
        norm_heads(heads, num_heads, kv_heads, norms, epsilon)
        seat, column, position = seats[r], own_lengths[r] - 1, positions[r]
        for h in range(kv_heads):
            fetch_lines(keys[layer, later, h, place // WORDS])
            fetch_lines(values[layer, later, h, place // 2])
            for j in range(h * repeats, (h + 1) * repeats):
                to = (r - h) * repeats + j
                read_turned(heads, 0, j, queries[h], to, scale, cos, sin, position)
            read_turned(heads, 0, num_heads + h, key, 0, _ONE, cos, sin, position)
            block = keys[layer, seat, h, column // WORDS]
            for i in range(size // 2):
                block[i, column % WORDS] = words[i]
            if column % TOKENS == 0 and not is_reading:
                values[layer, seat, h, column // 2 : column // 2 + WORDS] = np.uint16(0)
            pairs = values[layer, seat, h, column // 2]
            put_in_pairs(heads[0, num_heads + kv_heads + h], column % 2, pairs)


@part
def attend_paired(
    queries: Any,
    prompts: Any,
    own: Any,
    layer: int,
    groups: Any,
    prompt_lengths: Any,
    seats: Any,
    own_lengths: Any,
    out: Any,
    scales: Any,
    start: int,
    stop: int,
) -> None:
    """`attend_rows` of `sampling/attention.py`, over what `store_paired` stored. Rows of a group
    had better be next to each other."""
    (prompt_keys, prompt_values), (own_keys, own_values) = prompts, own
    kv_heads, size, n = len(queries), queries.shape[2], len(seats)
    repeats = queries.shape[1] // n
    at_once, num_tokens = ROWS // repeats, 0
    for r in range(start, stop):
        num_tokens = max(num_tokens, whole_steps(prompt_lengths[r]) + whole_steps(own_lengths[r]))
    num_tokens += TOKENS * (1 - num_tokens // TOKENS % 2)  # else rows meet in the nearest cache
    scores = from_line(4 * ROWS * num_tokens).view(np.float32).reshape(ROWS, num_tokens)
    weights = from_line(2 * ROWS * num_tokens).view(np.uint16).reshape(ROWS, num_tokens)
    found = from_line(4 * ROWS * size).view(np.float32).reshape(ROWS, size)
    heads = np.empty((at_once, kv_heads * repeats, size), np.float32)
    rows, factors = heads.reshape(at_once, -1), np.empty(ROWS, np.float32)
    r = start
    while r < stop:
        end = _end_of_run(groups, seats, r, min(stop, r + at_once))
        is_one = end - r > 1 and seats[r] == seats[r + 1]
        each = end - r if is_one else 1  # rows that see the same of their own
        g, first, count, following = (
            groups[r],
            prompt_lengths[r],
            (end - r) * repeats,
            min(end, n - 1),
        )
        begin = whole_steps(first)
        for h in range(kv_heads):
            is_last = h + 1 == kv_heads  # of the heads: the next rows come then
            g2, s2 = (groups[following], seats[following]) if is_last else (g, seats[r])
            h2 = 0 if is_last else h + 1
            if first:
                configure(SHAPES[count])
                keys, ahead = prompt_keys[layer, g, h], prompt_keys[layer, g2, h2]
                score_pairs(queries[h], r * repeats, keys, first, ahead, scores, 0, 0)
            configure(SHAPES[each * repeats])
            for i in range(r, end, each):
                s3, h3 = (seats[i + each], h) if i + each < end else (s2, h2)
                keys, ahead = own_keys[layer, seats[i], h], own_keys[layer, s3, h3]
                at, longest = (i - r) * repeats, own_lengths[i + each - 1]
                score_pairs(queries[h], i * repeats, keys, longest, ahead, scores, at, begin)
                for j in range(at, at + each * repeats):
                    own_length, to = own_lengths[r + j // repeats], whole_steps(longest)
                    total, _ = exponentials_of_both(
                        scores, j, first, begin, own_length, to, weights
                    )
                    factors[j] = _ONE / total
                values, ahead_too = own_values[layer, seats[i], h], own_values[layer, s3, h3]
                weigh_pairs(False, weights, at, begin, values, longest, ahead_too, found)
            if first:
                configure(SHAPES[count])
                values, ahead_too = prompt_values[layer, g, h], prompt_values[layer, g2, h2]
                weigh_pairs(True, weights, 0, 0, values, first, ahead_too, found)
            for i in range(count):
                write(found, i, factors[i], heads, i // repeats, h * repeats + i % repeats)
        for i in range(r, end):
            put(rows[i - r], out, scales, i)
        r = end
    release()


@part
def _end_of_run(groups: Any, seats: Any, start: int, stop: int) -> int:
    """Behind the rows from `start` on that are tokens of one seat, the longest last, or else
    siblings."""
    end = start + 1
    if end < stop and seats[end] == seats[start]:
        while end < stop and seats[end] == seats[start]:
            end += 1
        return end
    while end < stop and groups[end] == groups[start]:
        end += 1
    return end


@part
def score_pairs(
    queries: Any, row: int, keys: Any, count: int, ahead: Any, scores: Any, at: int, column: int
) -> None:
    """scores[at:, column:][:, :count] = queries[row:] . keys, of as many rows as are configured,
    and of what else the last block has room for."""
    strides = keys.strides[0], ROWS * keys.strides[1], keys.strides[1]
    num_steps, num_blocks = queries.shape[1] // TOKENS, (count + WORDS - 1) // WORDS
    for block in range(0, num_blocks - 1, 2):
        offset, to = block * keys.strides[0], column + block * WORDS
        strip_2(queries, row, keys, offset, strides, num_steps, ahead, scores, at, to)
    if num_blocks % 2:
        offset, to = (num_blocks - 1) * keys.strides[0], column + (num_blocks - 1) * WORDS
        strip_1(queries, row, keys, offset, strides, num_steps, ahead, scores, at, to)


@part
def weigh_pairs(
    is_more: bool,
    weights: Any,
    row: int,
    column: int,
    values: Any,
    count: int,
    ahead: Any,
    out: Any,
) -> None:
    """out[row:] = weights[row:, column:][:, :count] times values, of as many rows as are
    configured, or where there `is_more` += it."""
    strides = 4 * WORDS, ROWS * values.strides[0], values.strides[0]
    given, num_steps, size = weights[:, column:], whole_steps(count) // TOKENS, out.shape[1]
    for at in range(0, size, 2 * WORDS):
        if is_more:
            more_2(given, row, values, 4 * at, strides, num_steps, ahead, out, row, at)
        else:
            strip_2(given, row, values, 4 * at, strides, num_steps, ahead, out, row, at)


@part
def whole_steps(count: int) -> int:
    """`count` rounded up to what instructions weigh."""
    return (count + TOKENS - 1) // TOKENS * TOKENS


@part
def from_line(size: int) -> Any:
    """So many bytes, not filled in yet, from where a line of memory begins."""
    room = np.empty(size + LINE, np.uint8)
    start = -room.ctypes.data % LINE
    return room[start : start + size]
