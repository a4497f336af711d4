"""Down-sampling inside a group: the siblings whose rewards differ most are the ones learned from.

PODS (Xu et al. 2025, arXiv 2504.13818): sampling is cheaper than learning, so sample n completions
and learn from m of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from forethought.types import RolloutGroup


def most_varied(rewards: Sequence[float], count: int) -> list[int]:
    """Indices, ascending, of `count` rewards whose population variance is the largest possible.

    Such a set is the `i` lowest and the `count - i` highest of the sorted rewards for some i (PODS,
    lemma 3.1); prefix sums make trying every i O(n) after a sort of O(n log n). Of equal rewards
    the first come first, and of equal variances the set with the most even halves is taken.
    All indices when there are no more than `count`.
    """
    if len(rewards) <= count:
        return list(range(len(rewards)))
    mean = sum(rewards) / len(rewards)  # variance does not move with it, and rounding is smaller
    order = sorted(range(len(rewards)), key=lambda i: rewards[i])
    centered = [rewards[i] - mean for i in order]
    head, tail = _moments(centered, count), _moments(centered[::-1], count)

    def variance(num_low: int) -> float:
        (low, low_squares), (high, high_squares) = head[num_low], tail[count - num_low]
        return (low_squares + high_squares) / count - ((low + high) / count) ** 2

    middle_first = sorted(range(count + 1), key=lambda i: abs(2 * i - count))
    num_low = max(middle_first, key=variance)
    num_high = count - num_low
    highest_first = sorted(range(len(rewards)), key=lambda i: -rewards[i])
    return sorted(order[:num_low] + _without(highest_first, order[:num_low])[:num_high])


def _moments(values: Sequence[float], count: int) -> list[tuple[float, float]]:
    """(sum, sum of squares) of the first 0, 1, ..., `count` values."""
    found = [(0.0, 0.0)]
    for value in values[:count]:
        found.append((found[-1][0] + value, found[-1][1] + value * value))
    return found


def _without(indices: Sequence[int], taken: Sequence[int]) -> list[int]:
    others = set(taken)
    return [i for i in indices if i not in others]


def keep_most_varied(group: RolloutGroup, count: int) -> RolloutGroup:
    """The group with only the `count` graded rollouts whose rewards vary most, in their order.

    A group that all siblings did equally well keeps its first `count`: it stays without signal.
    """
    graded = [r for r in group.rollouts if r.reward is not None]
    rewards = [r.reward for r in graded if r.reward is not None]
    chosen = most_varied(rewards, count)
    return replace(group, rollouts=tuple(graded[i] for i in chosen))
