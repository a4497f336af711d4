"""What an update needs to know of every token of new rollouts, by a critic where there is one."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from forethought.models.lora import without_adapter
from forethought.training.advantages import token_rewards
from forethought.training.critic import Critic, advantages_and_returns, explained_variance
from forethought.training.held import Scores
from forethought.training.learner import Learner
from forethought.training.loop import Metrics
from forethought.training.scores import (
    needs_scores,
    put,
    read_rollouts,
    readings_of,
    score_rollouts,
    zeros,
)
from forethought.types import Rollout


def score_tokens(
    learner: Learner, rollouts: Sequence[Rollout], kept: Sequence[int]
) -> tuple[list[Scores] | None, Metrics]:
    """What the updates of a batch need to know of each token, and metrics of it."""
    if learner.critic is not None:
        return criticise(learner, learner.critic, rollouts, kept)
    if not needs_scores(learner.recipe):
        return None, {}
    return score_rollouts(learner, rollouts, kept), {}


@torch.no_grad()
def criticise(
    learner: Learner, critic: Critic, rollouts: Sequence[Rollout], kept: Sequence[int]
) -> tuple[list[Scores], Metrics]:
    """The scores of all rollouts, and what the critic's values were worth.

    Those that are not kept are not read and keep the sampler's log-probabilities.
    """
    some = [rollouts[i] for i in kept]
    logprobs, values = zeros(some), zeros(some)
    for reading, places in readings_of(learner, learner.policy, some):
        put(logprobs, places, reading.logprobs)
        put(values, places, critic.head(reading.hidden))
    rewards = rewards_of_tokens(learner, some)
    advantages, returns = advantages_and_returns(some, rewards, values, critic.config)
    scores = [Scores(logprobs=r.logprobs) for r in rollouts]
    for place, i in enumerate(kept):
        scores[i] = Scores(
            logprobs=tuple(logprobs[place]),
            advantages=advantages[place],
            values=tuple(values[place]),
            returns=returns[place],
        )
    explained = explained_variance(some, rewards, values, critic.config.gamma)
    return scores, {"critic/explained_variance": explained}


def rewards_of_tokens(learner: Learner, rollouts: Sequence[Rollout]) -> list[list[float]]:
    """The reward of every token of graded rollouts: the rollout's own on the last one, and on each
    what the recipe charges in the reward (`charge_rewards` has the formulas)."""
    recipe = learner.recipe
    reference: Sequence[Sequence[float] | None] = [None] * len(rollouts)
    if learner.reference is not None and recipe.kl_in == "reward":
        with without_adapter(learner.reference) as model:
            reference, _ = read_rollouts(learner, model, rollouts)
    charge = recipe.entropy_coefficient if recipe.entropy_in == "reward" else 0.0
    return [
        token_rewards(
            0.0 if rollout.reward is None else rollout.reward,
            rollout.logprobs,
            theirs,
            kl_coefficient=recipe.kl_coefficient,
            entropy_coefficient=charge,
        )
        for rollout, theirs in zip(rollouts, reference, strict=True)
    ]
