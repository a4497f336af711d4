"""The softmax of a head's logits, there and back, compiled by numba.

Logits stand with a token of the vocabulary as a row and a position as a column: so the gradient's
product with hidden states, which is that of the weight, reads them in the order in which they
stand, and a pass goes over many positions at a time. Logits are float32, or uint16, which stands
for bfloat16; everything is worked out in float32.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from forethought.sampling.kernels import compiled, part
from forethought.sampling.row_passes import copy
from forethought.sampling.team import share_out
from forethought.training.row_gradients import add_exponentials, raise_to, softmax_back

ROWS_TOGETHER = 64  # whose part of a sum is one sum, whatever the number of threads
_ZERO = np.float32(0.0)


@compiled
def sum_up(num_threads: int, logits: Any, scale: Any, tops: Any, totals: Any) -> None:
    """Of every ROWS_TOGETHER rows of logits (V, N) the largest of each column into a row of tops
    (chunks, N), and the sum of exp(scale * (logit - largest)) into one of totals (chunks, N)."""
    share_out(_sum_up, (logits, scale, tops, totals), len(tops), num_threads)


@part
def _sum_up(logits: Any, scale: Any, tops: Any, totals: Any, start: int, stop: int) -> None:
    vocabulary = len(logits)
    for chunk in range(start, stop):
        first, last = chunk * ROWS_TOGETHER, min(vocabulary, (chunk + 1) * ROWS_TOGETHER)
        copy(tops[chunk], logits[first])
        for v in range(first + 1, last):
            raise_to(tops[chunk], logits[v])
        totals[chunk] = _ZERO
        for v in range(first, last):
            add_exponentials(totals[chunk], logits[v], tops[chunk], scale)


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
    for v in range(start, stop):
        softmax_back(logits[v], scale, tops, logs, upstream)
