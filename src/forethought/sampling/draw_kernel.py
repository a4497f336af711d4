"""From logits to tokens in one compiled pass a row, which writes no table of probabilities."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from forethought.sampling.kernels import as_float, compiled, exponential, in_order, summing
from forethought.sampling.team import share_out

_BLOCK = 256
_LEAST_WEIGHT = np.float32(1e-30)  # of the likeliest token's: less is never drawn
_BELOW_ALL, _ZERO, _ONE = np.int32(-(2**31)), np.float32(0.0), np.float32(1.0)
_JUST_BELOW = 1 - 1e-7


@compiled
def draw_rows(
    num_threads: int, logits: Any, temperatures: Any, uniforms: Any, token_ids: Any, logprobs: Any
) -> None:
    """The token at which each row's cumulative probability passes its uniform, and its
    log-probability in nats; see `draw_tokens`. logits: (n, V); all others (n,), token_ids int64."""
    arguments = (logits, temperatures, uniforms, token_ids, logprobs)
    share_out(_draw_rows, arguments, len(logits), num_threads)


@compiled
def _draw_rows(
    logits: Any,
    temperatures: Any,
    uniforms: Any,
    token_ids: Any,
    logprobs: Any,
    start: int,
    stop: int,
) -> None:
    num_blocks = (logits.shape[1] + _BLOCK - 1) // _BLOCK
    sums = np.empty(num_blocks, np.float32)
    for r in range(start, stop):
        row = logits[r]
        top = _largest(row)
        factor = _ONE if temperatures[r] == _ZERO else _ONE / temperatures[r]
        total = 0.0
        for b in range(num_blocks):
            sums[b] = _sum(row[b * _BLOCK : (b + 1) * _BLOCK], top, factor)
            total += sums[b]
        if temperatures[r] == _ZERO:
            token = _first(row, top)
        else:
            token = _pick(row, top, factor, sums, uniforms[r] * total * _JUST_BELOW)
        token_ids[r] = token
        logprobs[r] = (row[token] - top) * factor - math.log(total)


@compiled
def _largest(row: Any) -> Any:
    """The largest of a row; not a number where any is none."""
    bits = row.view(np.int32)
    top, num_odd = _BELOW_ALL, 0
    for t in range(len(row)):
        top = max(top, in_order(bits[t]))
        num_odd += row[t] != row[t]
    return as_float(in_order(top)) if num_odd == 0 else np.float32(np.nan)


@summing
def _sum(block: Any, top: Any, factor: Any) -> Any:
    """The weights of a block's tokens together, where the likeliest token of the row weighs 1."""
    total = _ZERO
    for i in range(len(block)):
        total += exponential((block[i] - top) * factor)
    return total


@compiled
def _pick(row: Any, top: Any, factor: Any, sums: Any, rest: float) -> int:
    """The first token whose cumulative weight is above `rest`; rounding may lead to the end, where
    it is the last that has weight."""
    token = 0
    for b in range(len(sums)):
        is_last = b == len(sums) - 1
        if sums[b] < _LEAST_WEIGHT or (rest >= sums[b] and not is_last):
            rest -= sums[b]
            continue
        for t in range(b * _BLOCK, min((b + 1) * _BLOCK, len(row))):
            weight = exponential((row[t] - top) * factor)
            if weight < _LEAST_WEIGHT:
                continue
            token = t
            if rest < weight:
                return token
            rest -= weight
    return token


@compiled
def _first(row: Any, top: Any) -> int:
    for t in range(len(row)):
        if row[t] == top:
            return t
    return 0
