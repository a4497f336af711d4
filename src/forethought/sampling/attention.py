"""Attention of one query a row, over the prompt it shares and what stands in its own seat."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from forethought.sampling.head_vectors import read_turned, write
from forethought.sampling.kernels import (
    compiled,
    part,
    put,
    rms_norm,
    store,
    take,
)
from forethought.sampling.lanes import LANES
from forethought.sampling.row_vectors import exponentials, largest_of
from forethought.sampling.team import share_out
from forethought.sampling.vectors import (
    MOST_HEADS,
    SUMS,
    score,
    weigh_1,
    weigh_2,
    weigh_4,
)

_ZERO, _ONE = np.float32(0.0), np.float32(1.0)


def heads_together(num_heads: int, num_kv_heads: int) -> tuple[int, ...]:
    """A tuple as long as there are query heads that go over their keys and values at once."""
    repeats = num_heads // num_kv_heads
    return (0,) * max(n for n in range(1, MOST_HEADS + 1) if repeats % n == 0)


@compiled
def turn_and_store(
    num_threads: int,
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
) -> None:
    """Turn queries and keys (RoPE), queries divided by the root of their size and both normalized
    before where there are weights for that, and put every row's key and value into its seat's last
    column.

    products: (n, (query heads + 2 * kv_heads) * head_dim or more), queries, keys and values; norms:
    (0 or 2, head_dim), RMSNorm's weights of queries and keys; cos, sin: (all positions, head_dim);
    own: keys (layers, seats, kv_heads, blocks, head_dim, LANES) and values (layers, seats,
    kv_heads, columns, head_dim or more); positions, seats, own_lengths: (n,), this token counted;
    queries: (n, query heads, head_dim).
    """
    arguments = (
        products,
        norms,
        epsilon,
        cos,
        sin,
        positions,
        own,
        layer,
        seats,
        own_lengths,
        queries,
    )
    share_out(store_rows, arguments, len(queries), num_threads)


@part
def store_rows(
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
    """`turn_and_store` of the rows from `start` to `stop`."""
    keys, values = own
    kv_heads, (num_heads, size) = keys.shape[2], queries.shape[1:]
    row = np.empty((num_heads + 2 * kv_heads) * size, np.float32)
    heads = row.reshape(1, -1, size)
    turned = np.empty((num_heads + kv_heads, size), np.float32)
    for r in range(start, stop):
        take(products, r, row)
        turn_heads(heads, num_heads, norms, epsilon, cos, sin, positions[r], turned)
        queries[r] = turned[:num_heads]
        seat, column = seats[r], own_lengths[r] - 1
        for h in range(kv_heads):
            key, value = turned[num_heads + h], heads[0, num_heads + kv_heads + h]
            store(key, keys[layer, seat, h, column // LANES, :, column % LANES])
            store(value, values[layer, seat, h, column])


@part
def turn_heads(
    heads: Any,
    num_heads: int,
    norms: Any,
    epsilon: Any,
    cos: Any,
    sin: Any,
    position: int,
    turned: Any,
) -> None:
    """One row's queries and keys, of heads (1, query heads and those behind them, head_dim), into
    turned (query heads and key heads, head_dim), as `turn_and_store` says."""
    norm_heads(heads, num_heads, len(turned) - num_heads, norms, epsilon)
    scale = np.float32(1.0 / math.sqrt(turned.shape[1]))
    for h in range(len(turned)):
        factor = scale if h < num_heads else _ONE
        read_turned(heads, 0, h, turned, h, factor, cos, sin, position)


@part
def norm_heads(heads: Any, num_heads: int, num_keys: int, norms: Any, epsilon: Any) -> None:
    """RMSNorm of one row's queries, and of its keys behind them, if there are weights for it."""
    if len(norms):
        for h in range(num_heads + num_keys):
            rms_norm(heads[0, h], norms[0 if h < num_heads else 1], epsilon, heads[0, h])


@compiled
def attend(
    num_threads: int,
    together: Any,
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
) -> None:
    """What the queries find in their prompt and their seat, as far as they see.

    queries: (n, query heads, head_dim), turned; prompts: as own above, by groups; groups, seats,
    prompt_lengths, own_lengths: (n,); out: (n, query heads * head_dim), in any format.
    """
    arguments = (
        together,
        queries,
        prompts,
        own,
        layer,
        groups,
        prompt_lengths,
        seats,
        own_lengths,
        out,
        scales,
    )
    share_out(attend_rows, arguments, len(queries), num_threads)


@part
def attend_rows(
    together: Any,
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
    """`attend` of the rows from `start` to `stop`."""
    prompt_keys, prompt_values = prompts
    own_keys, own_values = own
    num_heads, size = queries.shape[1:]
    repeats = num_heads // own_keys.shape[2]
    row = np.empty(num_heads * size, np.float32)
    rows = row.reshape(1, num_heads, size)
    found = np.empty((num_heads, own_values.shape[4]), np.float32)
    factors = np.empty(num_heads, np.float32)
    most = np.int64(0)
    for r in range(start, stop):
        most = max(most, prompt_lengths[r] + own_lengths[r])
    scores = np.empty((len(together), most + LANES), np.float32)
    for r in range(start, stop):
        g, first, s, count = groups[r], prompt_lengths[r], seats[r], own_lengths[r]
        following = min(r + 1, len(seats) - 1)
        g2, s2 = groups[following], seats[following]  # fetched meanwhile
        for j in range(0, num_heads, len(together)):
            h = j // repeats
            asking, sums = queries[r, j : j + len(together)], found[j : j + len(together)]
            shared, ahead = prompt_keys[layer, g, h], prompt_keys[layer, g2, h]
            score(together, asking, 0, shared, _blocks(first), scores, 0, 0, ahead)
            mine, ahead = own_keys[layer, s, h], own_keys[layer, s2, h]
            score(together, asking, 0, mine, _blocks(count), scores, 0, first, ahead)
            for i in range(len(together)):
                top = largest_of(scores, i, first + count)
                factors[j + i] = _ONE / exponentials(scores, i, first + count, 0, top, scores)
            sums[:] = _ZERO
            shared, ahead = prompt_values[layer, g, h], prompt_values[layer, g2, h]
            weigh(together, scores, 0, shared, first, sums, 0, ahead)
            mine, ahead = own_values[layer, s, h], own_values[layer, s2, h]
            weigh(together, scores, first, mine, count, sums, 0, ahead)
        for j in range(num_heads):
            write(found, j, factors[j], rows, 0, j)
        put(row, out, scales, r)


@compiled
def _blocks(count: int) -> int:
    return (count + LANES - 1) // LANES


@part
def weigh(
    together: Any,
    weights: Any,
    first: int,
    values: Any,
    count: int,
    out: Any,
    row: int,
    ahead: Any,
) -> None:
    """out[row + h] += weights[row + h, first + t] * values[t], summed over t < count: as many
    vectors at a time as there are registers for. `ahead` as in `weigh_1`."""
    at, size = 0, out.shape[1]
    if 4 * len(together) <= SUMS:
        while at + 4 * LANES <= size:
            weigh_4(together, weights, first, values, count, out, row, at, ahead)
            at += 4 * LANES
    if 2 * len(together) <= SUMS:
        while at + 2 * LANES <= size:
            weigh_2(together, weights, first, values, count, out, row, at, ahead)
            at += 2 * LANES
    while at < size:
        weigh_1(together, weights, first, values, count, out, row, at, ahead)
        at += LANES
