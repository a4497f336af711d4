"""The softmax of a head's logits, there and back, compiled by numba.

Logits stand with a token of the vocabulary as a row and a position as a column: so the gradient's
product with hidden states, which is that of the weight, reads them in the order in which they
stand, and a pass goes over many positions at a time. Logits are float32, or uint16, which stands
for bfloat16; everything is worked out in float32.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from forethought.sampling.kernels import compiled, exponential, part, store, take
from forethought.sampling.team import share_out

ROWS_TOGETHER = 64  # whose part of a sum is one sum, whatever the number of threads
_ZERO = np.float32(0.0)


@compiled
def sum_up(num_threads: int, logits: Any, scale: Any, tops: Any, totals: Any) -> None:
    """Of every ROWS_TOGETHER rows of logits (V, N) the largest of each column into a row of tops
    (chunks, N), and the sum of exp(scale * (logit - largest)) into one of totals (chunks, N)."""
    share_out(_sum_up, (logits, scale, tops, totals), len(tops), num_threads)


@part
def _sum_up(logits: Any, scale: Any, tops: Any, totals: Any, start: int, stop: int) -> None:
    vocabulary, count = logits.shape
    rows = np.empty((3, count), np.float32)
    row, top, total = rows[0], rows[1], rows[2]
    for chunk in range(start, stop):
        first, last = chunk * ROWS_TOGETHER, min(vocabulary, (chunk + 1) * ROWS_TOGETHER)
        take(logits, first, top)
        for v in range(first + 1, last):
            take(logits, v, row)
            for n in range(count):
                top[n] = max(top[n], row[n])
        total[:] = _ZERO
        for v in range(first, last):
            take(logits, v, row)
            for n in range(count):
                below = scale * (row[n] - top[n])
                total[n] += exponential(below) + (below - below)  # not a number where it is none
        tops[chunk] = top
        totals[chunk] = total


@compiled
def to_gradient(
    num_threads: int, logits: Any, scale: Any, tops: Any, logs: Any, upstream: Any
) -> None:
    """Logits (V, N) become -upstream * exp(scale * (logit - top) - log), with tops, logs and
    upstream (N,): the gradient of a log-probability, but for its target's one."""
    share_out(_to_gradient, (logits, scale, tops, logs, upstream), len(logits), num_threads)


@part
def _to_gradient(
    logits: Any, scale: Any, tops: Any, logs: Any, upstream: Any, start: int, stop: int
) -> None:
    count = logits.shape[1]
    row = np.empty(count, np.float32)
    for v in range(start, stop):
        take(logits, v, row)
        for n in range(count):
            row[n] = -upstream[n] * exponential(scale * (row[n] - tops[n]) - logs[n])
        store(row, logits[v])
