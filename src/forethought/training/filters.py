"""Gradient filtering: what carries no signal leaves before any forward pass.

DASH (arXiv 2505.17218) drops rollouts with a small |advantage|; its released code does so after the
forward pass, where little is saved. Here it comes first.
"""

from __future__ import annotations

from collections.abc import Sequence

from forethought.schema import RlRecipe
from forethought.training.algorithms import ALGORITHMS
from forethought.types import Rollout, RolloutGroup


def has_signal(group: RolloutGroup) -> bool:
    """True when at least two graded siblings got different rewards."""
    rewards = {r.reward for r in group.rollouts if r.reward is not None}
    return len(rewards) > 1


def worth_learning(rollouts: Sequence[Rollout], recipe: RlRecipe) -> list[int]:
    """Indices of the rollouts that the recipe's updates learn from.

    With a critic these are all that have a reward: it tells tokens of equal siblings apart.
    """
    if not ALGORITHMS[recipe.estimator].needs_critic:
        return filter_rollouts(
            rollouts, min_advantage=recipe.min_advantage, mask_truncated=recipe.mask_truncated
        )
    kept = filter_rollouts(rollouts, min_advantage=0.0, mask_truncated=recipe.mask_truncated)
    return [i for i in kept if rollouts[i].reward is not None]


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
