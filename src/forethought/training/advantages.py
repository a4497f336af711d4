"""Advantage estimators: rewards of the groups of one step in, one advantage a rollout out.

Pure functions on lists of floats. A reward of None (ungraded) gets advantage 0 and takes no part
in its group's baseline. G is the number of graded rollouts of a group, r_i a reward.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

Rewards = Sequence[float | None]
Estimator = Callable[[Sequence[Rewards]], list[list[float]]]

_GRPO_EPSILON = 1e-4  # TRL's; keeps a group of equal rewards at 0


def reinforce(groups: Sequence[Rewards]) -> list[list[float]]:
    """r_i - mean over the whole step: REINFORCE with a baseline (Williams 1992)."""
    centered = iter(_centered([r for group in groups for r in group]))
    return [[next(centered) for _ in group] for group in groups]


def rloo(groups: Sequence[Rewards]) -> list[list[float]]:
    """r_i - mean of the other G - 1 rewards (leave-one-out; Kool et al. 2019, Ahmadian 2024)."""
    return [_rloo_group(group) for group in groups]


def _rloo_group(group: Rewards) -> list[float]:
    count = sum(r is not None for r in group)
    if count < 2:
        return [0.0] * len(group)
    return [a * count / (count - 1) for a in _centered(group)]


def grpo(groups: Sequence[Rewards]) -> list[list[float]]:
    """(r_i - mean) / (std + 1e-4), unbiased std (GRPO; Shao et al. 2024, arXiv 2402.03300)."""
    return [_grpo_group(group) for group in groups]


def _grpo_group(group: Rewards) -> list[float]:
    centered = _centered(group)
    count = sum(r is not None for r in group)
    if count < 2:
        return [0.0] * len(group)
    std = math.sqrt(sum(a * a for a in centered) / (count - 1))
    return [a / (std + _GRPO_EPSILON) for a in centered]


def dr_grpo(groups: Sequence[Rewards]) -> list[list[float]]:
    """r_i - mean of the group, no division (Dr. GRPO; Liu et al. 2025, arXiv 2503.20783)."""
    return [_centered(group) for group in groups]


def _centered(group: Rewards) -> list[float]:
    """r_i - mean; exactly 0 for a group of equal rewards, whatever rounding says."""
    graded = [r for r in group if r is not None]
    if not graded or min(graded) == max(graded):
        return [0.0] * len(group)
    mean = sum(graded) / len(graded)
    return [0.0 if r is None else r - mean for r in group]


ESTIMATORS: Mapping[str, Estimator] = {
    "reinforce": reinforce,
    "rloo": rloo,
    "grpo": grpo,
    "dr_grpo": dr_grpo,
}
