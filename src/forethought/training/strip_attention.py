"""Attention of strips (`training/strips.py`), there and back, compiled by numba.

A completion sees its prompt and itself up to the token that asks, and no other pair is worked out.
Queries and keys are turned here (RoPE), keys and values are read once for all query heads that
share them. Everything is in float32; what comes in and goes out may be bfloat16, in uint16. A
strip's key-value head is the work of one thread, so that sums have one order.

The gradient is FlashAttention's (arXiv 2205.14135): with S = Q K^T, P = exp(S - L) and D the sum of
dO * O over a row, dV = P^T dO, dS = P * (dO V^T - D), dQ = dS K and dK = dS^T Q.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from forethought.sampling.attention import weigh
from forethought.sampling.head_vectors import write
from forethought.sampling.kernels import compiled, part
from forethought.sampling.lanes import LANES
from forethought.sampling.row_vectors import exponentials, largest_of, to_slopes
from forethought.sampling.team import share_out
from forethought.sampling.vectors import (
    MOST_HEADS,
    SUMS,
    columns_1,
    columns_2,
    columns_4,
    score,
)
from forethought.training.strip_rows import (
    clear_padding,
    following,
    give_rows,
    keys_in_blocks,
    read_rows,
    read_sums,
    to_blocks,
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
    kv_heads = keys.shape[1]
    repeats = queries.shape[1] // kv_heads
    factors = np.empty(MOST_HEADS, np.float32)
    found = np.empty((MOST_HEADS, -(-keys.shape[2] // LANES) * LANES), np.float32)
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
            for first in range(0, count * repeats, MOST_HEADS):
                seen = min(count, (first + MOST_HEADS - 1) // repeats + 1)
                _score(asking, first, prompt_keys, shared, own_keys, seen, weights, 0)
                found[:] = _ZERO
                t, r = first // repeats, first % repeats
                for i in range(MOST_HEADS):
                    until = shared + t + 1 if t < count else 0
                    top = largest_of(weights, i, until)
                    total = exponentials(weights, i, until, shared + seen, top, weights)
                    if t < count:
                        factors[i] = _ONE / total
                        logsums[cell + t, h * repeats + r] = top + np.float32(math.log(total))
                    t, r = following(t, r, repeats)
                weigh(TOGETHER, weights, 0, prompt_values, shared, found, 0, prompt_values)
                weigh(TOGETHER, weights, shared, own_values, seen, found, 0, own_values)
                t, r = first // repeats, first % repeats
                for i in range(MOST_HEADS):
                    if t < count:
                        write(found, i, factors[i], out, cell + t, h * repeats + r)
                    t, r = following(t, r, repeats)
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
    """The gradient of `attend`'s out carried on to queries, keys and values."""
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
            tiles = -(-count * repeats // MOST_HEADS) * MOST_HEADS
            sums = np.empty((2, tiles), np.float32)
            read_sums(out, logsums, given, cell, count, h, repeats, sums)
            for first in range(0, count * repeats, _CHUNK):
                last = min(first + _CHUNK, tiles)
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
        clear_padding(to_heads, cell, starts[strip + 1], h, repeats)


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
    rows = len(asking)
    all_seen = min(count, (first + rows - 1) // repeats + 1)
    end = shared + all_seen + MOST_HEADS  # keys are gone over so many at a time
    weights, slopes = np.empty((2, rows, end + LANES), np.float32)
    for k in range(0, rows, MOST_HEADS):
        seen = min(count, (first + k + MOST_HEADS - 1) // repeats + 1)
        _score(asking, k, prompt[0], shared, mine[0], seen, weights, k)
        _score(given, k, prompt[1], shared, mine[1], seen, slopes, k)
        t, r = (first + k) // repeats, (first + k) % repeats
        for i in range(k, k + MOST_HEADS):
            until = shared + t + 1 if t < count else 0
            logsum, whole = sums[0, first + i], sums[1, first + i]
            to_slopes(weights, slopes, i, until, end, logsum, whole)
            t, r = following(t, r, repeats)
        weigh(TOGETHER, slopes, 0, prompt[2], shared, to_asking, k, prompt[2])
        weigh(TOGETHER, slopes, shared, mine[2], seen, to_asking, k, mine[2])
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
        at = 0
        if 4 * MOST_HEADS <= SUMS:
            while at + 4 * LANES <= size:
                columns_4(TOGETHER, weights, first + t, rows, len(rows), out, t, at, rows)
                at += 4 * LANES
        while at + 2 * LANES <= size:
            columns_2(TOGETHER, weights, first + t, rows, len(rows), out, t, at, rows)
            at += 2 * LANES
        while at < size:
            columns_1(TOGETHER, weights, first + t, rows, len(rows), out, t, at, rows)
            at += LANES


@part
def _score(
    asking: Any,
    query: int,
    prompt_keys: Any,
    shared: int,
    own_keys: Any,
    seen: int,
    scores: Any,
    row: int,
) -> None:
    """Products of MOST_HEADS queries, from that one on, with the prompt's keys and the first `seen`
    of their own, into as many rows of scores."""
    blocks, own_blocks = -(-shared // LANES), -(-seen // LANES)
    score(TOGETHER, asking, query, prompt_keys, blocks, scores, row, 0, prompt_keys)
    score(TOGETHER, asking, query, own_keys, own_blocks, scores, row, shared, own_keys)


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
