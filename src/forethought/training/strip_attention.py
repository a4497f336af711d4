"""Attention of strips (`training/strips.py`), there and back, compiled by numba.

A completion sees its prompt and itself up to the token that asks, and no other pair is worked out.
Queries and keys are turned here (RoPE), keys and values are read once for all query heads that
share them. Everything is in float32; what comes in and goes out may be bfloat16, in uint16. A
strip's key-value head is the work of one thread, so that sums have one order.

The gradient is FlashAttention's (arXiv 2205.14135): with S = Q K^T, P = exp(S - L) and D the sum of
dO * O over a row, dV = P^T dO, dS = P * (dO V^T - D), dQ = dS K and dK = dS^T Q.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from forethought.sampling.attention import weigh
from forethought.sampling.kernels import compiled, part
from forethought.sampling.team import share_out
from forethought.sampling.vectors import (
    LANES,
    MOST_HEADS,
    SUMS,
    columns_1,
    columns_2,
    columns_4,
    score,
)
from forethought.training.strip_rows import (
    give_rows,
    keys_in_blocks,
    read_rows,
    read_sums,
    softmax,
    to_blocks,
    to_slopes,
    write,
)

TOGETHER = (0,) * MOST_HEADS  # as many queries, or keys, as are gone over at once
_CHUNK = 8 * MOST_HEADS  # queries whose weights stand side by side in the gradient
_ZERO, _ONE = np.float32(0.0), np.float32(1.0)


@compiled
def attend(
    num_threads: int,
    heads: Any,
    rotation: Any,
    layout: Any,
    scale: Any,
    out: Any,
    logsums: Any,
) -> None:
    """What each query finds, into out (cells, query heads, head_dim), 0 behind a strip, and the
    logarithms of its weights' sums into logsums (cells, query heads).

    heads: queries (cells, query heads, head_dim), keys and values (cells, kv heads, head_dim), not
    turned; rotation: cos and sin (cells, head_dim); layout: the lengths of all pieces, where each
    strip's begin among them (strips + 1,), and where among the cells (strips + 1,).
    """
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
    for unit in range(start, stop):
        strip, h = unit // kv_heads, unit % kv_heads
        shared, cell = 0, starts[strip]
        prompt_keys = keys_in_blocks(keys, rotation, cell, 0, h)
        prompt_values = read_rows(values, rotation, cell, 0, h, 1, _ZERO)
        for piece in range(firsts[strip], firsts[strip + 1]):
            count = lengths[piece]
            asking = read_rows(queries, rotation, cell, count, h, repeats, scale)
            own_keys = keys_in_blocks(keys, rotation, cell, count, h)
            own_values = read_rows(values, rotation, cell, count, h, 1, _ZERO)
            weights = np.empty((MOST_HEADS, shared + count + LANES), np.float32)
            bits, tops = weights.view(np.int32), np.empty(LANES, np.int32)
            found = np.empty((MOST_HEADS, asking.shape[1]), np.float32)
            for first in range(0, count * repeats, MOST_HEADS):
                seen = min(count, (first + MOST_HEADS - 1) // repeats + 1)
                tile = asking[first : first + MOST_HEADS, :size]
                _score(tile, prompt_keys, shared, own_keys, seen, weights)
                found[:] = _ZERO
                for i in range(MOST_HEADS):
                    t, r = (first + i) // repeats, (first + i) % repeats
                    if t < count:
                        far = softmax(weights, bits, tops, i, shared + t + 1)
                        logsums[cell + t, h * repeats + r] = far
                        weights[i, shared + t + 1 : shared + seen] = _ZERO
                    else:
                        weights[i, : shared + seen] = _ZERO
                weigh(TOGETHER, weights, 0, prompt_values, shared, found, prompt_values)
                weigh(TOGETHER, weights, shared, own_values, seen, found, own_values)
                for i in range(MOST_HEADS):
                    t, r = (first + i) // repeats, (first + i) % repeats
                    if t < count:
                        write(found, i, out, cell + t, h * repeats + r)
            if piece == firsts[strip]:
                shared, prompt_keys, prompt_values = count, own_keys, own_values
            cell += count
        out[cell : starts[strip + 1], h * repeats : (h + 1) * repeats] = 0


@compiled
def attend_back(
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
    """The gradient of `attend`'s out carried on to queries, keys and values, which are as those
    and filled with 0."""
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
    for unit in range(start, stop):
        strip, h = unit // kv_heads, unit % kv_heads
        shared, begin = 0, starts[strip]
        prompt = _own(keys, values, rotation, begin, 0, h)
        to_prompt = _room(0, size)
        cell = begin
        for piece in range(firsts[strip], firsts[strip + 1]):
            count = lengths[piece]
            mine, to_mine = _own(keys, values, rotation, cell, count, h), _room(count, size)
            asking = read_rows(queries, rotation, cell, count, h, repeats, scale)
            given = read_rows(gradient, rotation, cell, count, h, repeats, _ZERO)
            to_asking = np.zeros_like(asking)
            sums = np.empty((2, len(asking)), np.float32)
            read_sums(out, logsums, given, cell, count, h, repeats, sums)
            for first in range(0, count * repeats, _CHUNK):
                last = min(first + _CHUNK, len(asking))
                some = (asking[first:last], given[first:last], to_asking[first:last])
                _chunk(first, repeats, count, shared, some, sums, prompt, mine, to_prompt, to_mine)
            give_rows(to_asking, rotation, cell, count, h, repeats, scale, to_heads[0])
            if piece == firsts[strip]:
                shared, prompt, to_prompt = count, mine, to_mine
            else:
                give_rows(to_mine[0], rotation, cell, count, h, 1, _ONE, to_heads[1])
                give_rows(to_mine[1], rotation, cell, count, h, 1, _ZERO, to_heads[2])
            cell += count
        give_rows(to_prompt[0], rotation, begin, shared, h, 1, _ONE, to_heads[1])
        give_rows(to_prompt[1], rotation, begin, shared, h, 1, _ZERO, to_heads[2])


@part
def _chunk(
    first: int,
    repeats: int,
    count: int,
    shared: int,
    some: Any,
    sums: Any,
    prompt: Any,
    mine: Any,
    to_prompt: Any,
    to_mine: Any,
) -> None:
    """What some queries, from the one numbered `first` of a piece on, give to all they see."""
    asking, given, to_asking = some
    rows, size = len(asking), mine[0].shape[1]
    all_seen = min(count, (first + rows - 1) // repeats + 1)
    weights = np.empty((rows, shared + all_seen + LANES), np.float32)
    slopes = np.empty((rows, shared + all_seen + LANES), np.float32)
    for k in range(0, rows, MOST_HEADS):
        seen = min(count, (first + k + MOST_HEADS - 1) // repeats + 1)
        few, slope = weights[k : k + MOST_HEADS], slopes[k : k + MOST_HEADS]
        _score(asking[k : k + MOST_HEADS, :size], prompt[0], shared, mine[0], seen, few)
        _score(given[k : k + MOST_HEADS, :size], prompt[1], shared, mine[1], seen, slope)
        for i in range(MOST_HEADS):
            row = first + k + i
            until = shared + row // repeats + 1 if row < count * repeats else 0
            logsum, whole = sums[0, row], sums[1, row]
            to_slopes(few, slope, i, until, logsum, whole)
            few[i, until : shared + all_seen + MOST_HEADS] = _ZERO
            slope[i, until : shared + all_seen + MOST_HEADS] = _ZERO
        to_some = to_asking[k : k + MOST_HEADS]
        weigh(TOGETHER, slope, 0, prompt[2], shared, to_some, prompt[2])
        weigh(TOGETHER, slope, shared, mine[2], seen, to_some, mine[2])
    _weigh_columns(slopes, 0, shared, asking, to_prompt[0])
    _weigh_columns(weights, 0, shared, given, to_prompt[1])
    _weigh_columns(slopes, shared, all_seen, asking, to_mine[0])
    _weigh_columns(weights, shared, all_seen, given, to_mine[1])


@part
def _weigh_columns(weights: Any, first: int, count: int, rows: Any, out: Any) -> None:
    """out[t] += the sum over r of weights[r, first + t] * rows[r], for each t < count, and for
    those behind up to a multiple of MOST_HEADS."""
    size = out.shape[1]
    for t in range(0, count, MOST_HEADS):
        few, at = out[t : t + MOST_HEADS], 0
        if 4 * MOST_HEADS <= SUMS:
            while at + 4 * LANES <= size:
                columns_4(TOGETHER, weights, first + t, rows, len(rows), few, at, rows)
                at += 4 * LANES
        while at + 2 * LANES <= size:
            columns_2(TOGETHER, weights, first + t, rows, len(rows), few, at, rows)
            at += 2 * LANES
        while at < size:
            columns_1(TOGETHER, weights, first + t, rows, len(rows), few, at, rows)
            at += LANES


@part
def _score(
    asking: Any, prompt_keys: Any, shared: int, own_keys: Any, seen: int, scores: Any
) -> None:
    """Products of MOST_HEADS queries with the prompt's keys and the first `seen` of their own."""
    blocks, own_blocks = -(-shared // LANES), -(-seen // LANES)
    score(TOGETHER, asking, prompt_keys, blocks, scores, 0, prompt_keys)
    score(TOGETHER, asking, own_keys, own_blocks, scores, shared, own_keys)


@part
def _own(keys: Any, values: Any, rotation: Any, cell: int, count: int, h: int) -> Any:
    """Keys and values of `count` cells in blocks, and the keys in rows."""
    rows = read_rows(keys, rotation, cell, count, h, 1, _ONE)
    plain = read_rows(values, rotation, cell, count, h, 1, _ZERO)
    return to_blocks(rows, count, keys.shape[2]), to_blocks(plain, count, keys.shape[2]), rows


@part
def _room(count: int, size: int) -> Any:
    """For the gradients of so many keys and values, and of those that come out as anything."""
    shape = (count + MOST_HEADS, -(-size // LANES) * LANES)
    return np.zeros(shape, np.float32), np.zeros(shape, np.float32)
