"""Gradient filtering: what carries no signal leaves before any forward pass.

DASH (arXiv 2505.17218) drops rollouts with a small |advantage|; its released code does so after the
forward pass, where little is saved. Here it comes first.
"""

from __future__ import annotations

from collections.abc import Sequence

from forethought.types import Rollout, RolloutGroup


def has_signal(group: RolloutGroup) -> bool:
    """True when at least two graded siblings got different rewards."""
    rewards = {r.reward for r in group.rollouts if r.reward is not None}
    return len(rewards) > 1


def filter_rollouts(
    rollouts: Sequence[Rollout], *, min_advantage: float, mask_truncated: bool
) -> list[int]:
    """Indices of the rollouts worth a forward pass; 0 keeps all.

    An advantage that is no number is kept: the update then says so.
    """
    return [
        i
        for i, rollout in enumerate(rollouts)
        if rollout.advantage is not None
        and not abs(rollout.advantage) < min_advantage
        and not (mask_truncated and rollout.finish_reason.is_truncated)
    ]
