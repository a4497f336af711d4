"""When enough votes are in: adaptive self-consistency's rules (arXiv 2305.11860).

Both ask how probable it is that the answer in the lead is the likeliest one, were sampling to go on
for ever, and stop at a given confidence. Pure functions on the counts of votes.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache

_MAX_CLASSES = 5  # the paper looks at the five most frequent answers
_PIECES = 400  # of Simpson's rule: an error below 1e-6 for up to a hundred votes


def beta_confidence(counts: Sequence[int]) -> float:
    """P(p > 1/2) for p ~ Beta(v1 + 1, v2 + 1), v1 and v2 the largest counts."""
    first, second, *_ = [*sorted(counts, reverse=True), 0, 0]
    total = first + second + 1
    return 1.0 - math.ldexp(sum(math.comb(total, k) for k in range(second + 1)), -total)


def dirichlet_confidence(counts: Sequence[int]) -> float:
    """P(the leader's share is the largest) under Dirichlet(counts + 1), by quadrature; of fewer
    than three answers, `beta_confidence`."""
    top = tuple(sorted(counts, reverse=True)[:_MAX_CLASSES])
    return beta_confidence(top) if len(top) < 3 else _dirichlet(top)


@lru_cache(maxsize=4096)
def _dirichlet(counts: tuple[int, ...]) -> float:
    """Shares are Gamma(count + 1) variables over their sum: integrate the leader's density times
    the others' distribution functions."""
    shape = counts[0] + 1
    end = shape + 12 * math.sqrt(shape) + 12
    step = end / _PIECES
    values = []
    for index in range(1, _PIECES + 1):
        x = index * step
        density = math.exp((shape - 1) * math.log(x) - x - math.lgamma(shape))
        values.append(density * math.prod(_gamma_cdf(count + 1, x) for count in counts[1:]))
    # at 0 the integrand is 0: every distribution function is
    weights = (4 if index % 2 else 2 for index in range(1, _PIECES))
    inner = sum(weight * value for weight, value in zip(weights, values, strict=False))
    return (inner + values[-1]) * step / 3


def _gamma_cdf(shape: int, x: float) -> float:
    """P(Gamma(shape) <= x) for a whole shape: that `shape` Poisson events came by x."""
    term = total = math.exp(-x)
    for index in range(1, shape):
        term *= x / index
        total += term
    return 1.0 - total


RULES: Mapping[str, Callable[[Sequence[int]], float]] = {
    "beta": beta_confidence,
    "dirichlet": dirichlet_confidence,
}


def least_more(counts: Sequence[int], rule: str, confidence: float, most: int) -> int:
    """The fewest votes more after which the rule could be satisfied, `most` at most: all of them
    for the leader. So votes can be asked for that many at a time, and not one is asked for that
    asking one by one would have saved. 0 when it is satisfied."""
    first, *others = sorted(counts, reverse=True) or [0]

    def is_enough(more: int) -> bool:
        return RULES[rule]([first + more, *others]) >= confidence

    return bisect_left(range(most), True, key=is_enough)
