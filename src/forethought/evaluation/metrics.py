"""What samples say about a model: pass@k, majority@k, and intervals whose unit is the question.

Pure functions on plain numbers; standard library only. Samples of one question are averaged
first: they are not independent measurements, questions are.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache
from statistics import NormalDist, fmean, stdev

_Z_95 = NormalDist().inv_cdf(0.975)
# Two-sided 95% quantiles of Student's t for 1 to 10 degrees of freedom (any printed table).
_T_95 = (12.7062, 4.3027, 3.1824, 2.7764, 2.5706, 2.4469, 2.3646, 2.3060, 2.2622, 2.2281)

Coefficients = dict[tuple[int, int], tuple[int, int]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Interval:
    """A mean and its 95% interval, in the unit of the values."""

    mean: float
    low: float
    high: float


def pass_at_k(num_samples: int, num_correct: int, k: int) -> float:
    """Probability that at least one of k samples drawn without replacement is right.

    Unbiased: 1 - C(n - c, k) / C(n, k) (Chen et al. 2021, arXiv 2107.03374), as a product so that
    no binomial overflows. Raises ValueError unless 0 <= c <= n and 1 <= k <= n.
    """
    if not (0 <= num_correct <= num_samples and 1 <= k <= num_samples):
        raise ValueError(f"pass@{k} needs 0 <= {num_correct} <= {num_samples} and k <= samples")
    if num_samples - num_correct < k:
        return 1.0
    first = num_samples - num_correct + 1
    return 1.0 - math.prod(1.0 - k / i for i in range(first, num_samples + 1))


def majority_at_k(answers: Sequence[str | None], correct: Sequence[bool], k: int) -> float:
    """Probability that the most frequent answer among k samples is right.

    The k samples are drawn without replacement from the ones given. A tie is split evenly among
    the answers in it. None is no vote, yet counts as one of the k; k samples without a vote are
    wrong. Exact for every k: subsets are counted by a polynomial in (votes, ties) for each
    possible winning count, not enumerated. Raises ValueError when one answer is marked both right
    and wrong, when lengths differ, or unless 1 <= k <= len(answers).
    """
    if len(answers) != len(correct) or not 1 <= k <= len(answers):
        raise ValueError(f"majority@{k} over {len(answers)} answers and {len(correct)} marks")
    marks: dict[str, bool] = {}
    sizes: dict[str, int] = defaultdict(int)
    for answer, mark in zip(answers, correct, strict=True):
        if answer is None:
            continue
        if marks.setdefault(answer, mark) != mark:
            raise ValueError(f"answer {answer!r} is marked both right and wrong")
        sizes[answer] += 1
    classes = tuple(sorted((sizes[answer], marks[answer]) for answer in sizes))
    return _majority(classes, len(answers) - sum(sizes.values()), k)


@lru_cache(maxsize=4096)
def _majority(classes: tuple[tuple[int, bool], ...], num_blank: int, k: int) -> float:
    """majority_at_k from (size, is right) of each distinct answer and the number of non-votes."""
    num_samples = sum(size for size, _ in classes) + num_blank
    wins = Fraction(0)
    for top in range(1, max((size for size, _ in classes), default=0) + 1):
        ways: Coefficients = {(0, 0): (1, 0)}
        for size, is_right in classes:
            ways = _with_class(ways, size, is_right, top, k)
        for (votes, ties), (_, right) in ways.items():
            if ties and k - votes <= num_blank:
                wins += Fraction(right * math.comb(num_blank, k - votes), ties)
    return float(wins / math.comb(num_samples, k))


def _with_class(ways: Coefficients, size: int, is_right: bool, top: int, k: int) -> Coefficients:
    """Give one more answer 0 to `top` of the k draws.

    `ways[votes, ties]` is (number of draws, the same weighted by how many of the tied are right).
    """
    result: dict[tuple[int, int], list[int]] = defaultdict(lambda: [0, 0])
    for (votes, ties), (count, right) in ways.items():
        for taken in range(min(size, top, k - votes) + 1):
            factor = math.comb(size, taken)
            is_top = taken == top
            cell = result[votes + taken, ties + is_top]
            cell[0] += count * factor
            cell[1] += (right + count * (is_top and is_right)) * factor
    return {key: (count, right) for key, (count, right) in result.items()}


def mean_interval(values: Sequence[float]) -> Interval:
    """Mean over questions and its 95% interval; `values` holds one number a question.

    Wilson's score interval when every value is 0 or 1 (it stays honest near 0% and 100%), else
    Student's t: mean +- t * s / sqrt(n) (Miller 2024, arXiv 2411.00640). One value that is not 0
    or 1 says nothing about its spread: its interval is infinite. Raises ValueError when empty.
    """
    if not values:
        raise ValueError("no values to average")
    if all(value in (0, 1) for value in values):
        return _wilson(sum(values), len(values))
    return _t_interval(values)


def paired_difference(before: Sequence[float], after: Sequence[float]) -> Interval:
    """Mean of `after - before` question by question and its 95% t interval.

    Pairing removes the spread of difficulty between questions. Raises ValueError when the two
    differ in length or are empty.
    """
    if len(before) != len(after) or not before:
        raise ValueError(f"cannot pair {len(before)} values with {len(after)}")
    return _t_interval([new - old for old, new in zip(before, after, strict=True)])


def mcnemar_p(before: Sequence[bool], after: Sequence[bool]) -> float:
    """Two-sided exact McNemar test: p of the split of the questions where the two disagree.

    2 * P(Binomial(b + c, 1/2) <= min(b, c)), at most 1, where b and c count the questions only
    one of them got right (McNemar 1947). Raises ValueError when the two differ in length.
    """
    lost = sum(old and not new for old, new in zip(before, after, strict=True))
    won = sum(new and not old for old, new in zip(before, after, strict=True))
    total = lost + won
    tail = sum(math.comb(total, i) for i in range(min(lost, won) + 1))
    return min(1.0, float(Fraction(2 * tail, 2**total)))


def _wilson(num_right: float, num: int) -> Interval:
    """Wilson (1927) score interval of a proportion."""
    share, z2 = num_right / num, _Z_95**2
    centre = (share + z2 / (2 * num)) / (1 + z2 / num)
    half = _Z_95 / (1 + z2 / num) * math.sqrt(share * (1 - share) / num + z2 / (4 * num**2))
    # Exactly 0 and 1 at the ends: rounding must not push the interval past its own mean.
    low = 0.0 if num_right == 0 else centre - half
    return Interval(mean=share, low=low, high=1.0 if num_right == num else centre + half)


def _t_interval(values: Sequence[float]) -> Interval:
    mean = fmean(values)
    if len(values) == 1:
        return Interval(mean=mean, low=-math.inf, high=math.inf)
    half = _t_quantile(len(values) - 1) * stdev(values) / math.sqrt(len(values))
    return Interval(mean=mean, low=mean - half, high=mean + half)


def _t_quantile(freedom: int) -> float:
    """97.5% quantile of Student's t, to 1e-4 (Abramowitz and Stegun 1964, 26.7.5, above 10)."""
    if freedom <= len(_T_95):
        return _T_95[freedom - 1]
    z = _Z_95
    return (
        z
        + (z**3 + z) / (4 * freedom)
        + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * freedom**2)
        + (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / (384 * freedom**3)
    )
