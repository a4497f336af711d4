"""Rows of attention's numbers in training: read, turned, laid in blocks, weighed and given back.

What goes over the numbers of one head or one query's weights is in `sampling/head_vectors.py`
and `sampling/row_vectors.py`.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from forethought.sampling.head_vectors import (
    product_with,
    read,
    read_turned,
    transpose,
    write,
    write_turned_back,
)
from forethought.sampling.kernels import part
from forethought.sampling.lanes import LANES
from forethought.sampling.vectors import MOST_HEADS

_ZERO, _ONE = np.float32(0.0), np.float32(1.0)


@part
def keys_in_blocks(keys: Any, rotation: Any, cell: int, count: int, h: int) -> Any:
    return to_blocks(read_rows(keys, rotation, cell, count, h, 1, _ONE), count, keys.shape[2])


@part
def to_blocks(rows: Any, count: int, size: int) -> Any:
    """(blocks, size, LANES) of rows as `read_rows` gives them, of which `count` mean something."""
    found = np.empty((-(-count // LANES), size, LANES), np.float32)
    transpose(rows, size, found)
    return found


@part
def read_rows(
    values: Any, rotation: Any, cell: int, count: int, h: int, repeats: int, factor: Any
) -> Any:
    """Of `count` cells the heads that stand at key-value head h, one after the other, as rows of
    whole vectors: times `factor` and turned, or with 0 as they are. There are at least as many rows
    as whole tiles of MOST_HEADS and whole blocks of LANES have, the last of them 0."""
    size = values.shape[2]
    num = count * repeats
    rows = max(-(-num // MOST_HEADS) * MOST_HEADS, -(-num // LANES) * LANES)
    found = np.empty((rows, -(-size // LANES) * LANES), np.float32)
    found[num:] = _ZERO
    if size < found.shape[1]:
        found[:num, size:] = _ZERO
    fill_rows(values, rotation, cell, count, h, repeats, factor, found)
    return found


@part
def fill_rows(
    values: Any,
    rotation: Any,
    cell: int,
    count: int,
    h: int,
    repeats: int,
    factor: Any,
    found: Any,
) -> None:
    """What `read_rows` reads, into the first rows of `found`, in float32 or bfloat16."""
    cos, sin = rotation
    for t in range(count):
        for r in range(repeats):
            head, row = h * repeats + r, t * repeats + r
            if factor != _ZERO:
                read_turned(values, cell + t, head, found, row, factor, cos, sin, cell + t)
            else:
                read(values, cell + t, head, found, row)


@part
def give_rows(
    rows: Any,
    rotation: Any,
    cell: int,
    count: int,
    h: int,
    repeats: int,
    factor: Any,
    out: Any,
) -> None:
    """Gradients of what `read_rows` gave, turned back, into those of what it was given."""
    cos, sin = rotation
    for t in range(count):
        for r in range(repeats):
            head, row = h * repeats + r, t * repeats + r
            if factor != _ZERO:
                write_turned_back(rows, row, factor, out, cell + t, head, cos, sin)
            else:
                write(rows, row, _ONE, out, cell + t, head)


@part
def following(t: int, r: int, repeats: int) -> Any:
    """The query after the r-th of cell t, without the division that takes as long as a key."""
    return (t + 1, 0) if r + 1 == repeats else (t, r + 1)


@part
def read_sums(
    out: Any, logsums: Any, given: Any, cell: int, count: int, h: int, repeats: int, sums: Any
) -> None:
    """Of each query the logarithm of its weights' sum, and that of gradient times what it found."""
    for t in range(count):
        for r in range(repeats):
            head, row = h * repeats + r, t * repeats + r
            sums[0, row] = logsums[cell + t, head]
            sums[1, row] = product_with(out, cell + t, head, given, row)


@part
def clear_padding(to_heads: Any, start: int, stop: int, h: int, repeats: int) -> None:
    """No gradient for the cells from `start` to `stop`, of key-value head h and its queries."""
    to_queries, to_keys, to_values = to_heads
    to_queries[start:stop, h * repeats : (h + 1) * repeats] = 0
    to_keys[start:stop, h], to_values[start:stop, h] = 0, 0
