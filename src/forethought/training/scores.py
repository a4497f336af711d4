"""A pass without gradient over rollouts: what a model says of them before anything is learned."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

import torch
from torch import Tensor
from transformers import PreTrainedModel

from forethought.models.heads import Reading
from forethought.models.lora import without_adapter
from forethought.schema import RlRecipe
from forethought.training.backward import batches_of, importance_cap, read
from forethought.training.held import Scores, is_off_policy
from forethought.training.learner import Learner
from forethought.training.losses import entropy_threshold
from forethought.training.strips import Row
from forethought.types import Rollout, RolloutGroup


def needs_scores(recipe: RlRecipe) -> bool:
    """True where the sampler's own log-probabilities do not say all that the updates need."""
    is_weighed = is_off_policy(recipe) and importance_cap(recipe) is not None
    return recipe.top_entropy_quantile < 1 or is_weighed


@torch.no_grad()
def readings_of(
    learner: Learner,
    model: PreTrainedModel,
    rollouts: Sequence[Rollout],
    *,
    wants_entropy: bool = False,
) -> Iterator[tuple[Reading, list[tuple[int, int]]]]:
    """What `model` says of the sampled tokens, a batch at a time, and which they are: the number of
    the rollout and of the token in it."""
    rows = [
        Row(
            token_ids=r.token_ids,
            weights=[float(sampled) for sampled in r.sampled_mask],
            num_prompt=r.sampled_mask.index(True),
        )
        for r in rollouts
    ]
    for batch in batches_of(learner, rows):
        places = list(zip(batch.rows.tolist(), batch.columns.tolist(), strict=True))
        yield read(learner, model, batch, wants_entropy=wants_entropy), places


def read_rollouts(
    learner: Learner,
    model: PreTrainedModel,
    rollouts: Sequence[Rollout],
    *,
    wants_entropy: bool = False,
) -> tuple[list[list[float]], list[list[float]]]:
    """Log-probabilities and entropies (0 unless wanted), a value a token of each rollout."""
    logprobs, entropies = zeros(rollouts), zeros(rollouts)
    for reading, places in readings_of(learner, model, rollouts, wants_entropy=wants_entropy):
        put(logprobs, places, reading.logprobs)
        if reading.entropies is not None:
            put(entropies, places, reading.entropies)
    return logprobs, entropies


def zeros(rollouts: Sequence[Rollout]) -> list[list[float]]:
    """A 0 for each token of each rollout."""
    return [[0.0] * len(rollout.token_ids) for rollout in rollouts]


def put(table: list[list[float]], places: Sequence[tuple[int, int]], values: Tensor) -> None:
    """Write `values` (N,) down at their places."""
    for (row, column), value in zip(places, values.tolist(), strict=True):
        table[row][column] = value


def score_rollouts(
    learner: Learner, rollouts: Sequence[Rollout], kept: Sequence[int]
) -> list[Scores]:
    """The scores of all rollouts; those that are not kept are not read and keep the sampler's."""
    quantile = learner.recipe.top_entropy_quantile
    some = [rollouts[i] for i in kept]
    logprobs, entropies = read_rollouts(learner, learner.policy, some, wants_entropy=quantile < 1)
    scores = [Scores(logprobs=r.logprobs) for r in rollouts]
    # without a cap, only the ratio knows that replayed rollouts are of an older policy
    if importance_cap(learner.recipe) is not None or not learner.recipe.select.replay_share:
        for i, values in zip(kept, logprobs, strict=True):
            scores[i] = Scores(logprobs=tuple(values))
    if quantile < 1:
        for i, advantages in zip(kept, _of_uncertain(some, entropies, quantile), strict=True):
            scores[i] = replace(scores[i], advantages=tuple(advantages))
    return scores


def _of_uncertain(
    rollouts: Sequence[Rollout], entropies: Sequence[Sequence[float]], quantile: float
) -> list[list[float]]:
    """Advantages a token: 0 for all but the `quantile` of tokens with the highest entropy."""
    found = [
        value
        for rollout, row in zip(rollouts, entropies, strict=True)
        for value, sampled in zip(row, rollout.sampled_mask, strict=True)
        if sampled
    ]
    if not found:
        return [[] for _ in rollouts]
    threshold = entropy_threshold(found, quantile)
    return [
        [(r.advantage or 0.0) if value >= threshold else 0.0 for value in row]
        for r, row in zip(rollouts, entropies, strict=True)
    ]


def charge_rewards(learner: Learner, groups: Sequence[RolloutGroup]) -> list[RolloutGroup]:
    """Rewards less what the recipe charges for a rollout's log-probability.

    kl_in = "reward":       r - kl_coefficient * sum over tokens of (log pi - log ref)
    entropy_in = "reward":  r - entropy_coefficient * sum over tokens of log pi

    The sum of k1 is an unbiased estimate of the sequence's KL divergence, as RLOO has it (Ahmadian
    et al. 2024, arXiv 2402.14740); the second is maximum-entropy RL (Ziebart 2010; Haarnoja et al.
    2018). pi is what the sampler recorded. An ungraded rollout stays ungraded. With a critic every
    token is charged for itself, in `training/token_scores.py`.
    """
    recipe = learner.recipe
    wants_kl = learner.reference is not None and recipe.kl_in == "reward"
    wants_entropy = recipe.entropy_coefficient > 0 and recipe.entropy_in == "reward"
    if learner.critic is not None or not (wants_kl or wants_entropy):
        return list(groups)
    rollouts = [rollout for group in groups for rollout in group.rollouts]
    charges = [0.0] * len(rollouts)
    if wants_entropy:
        charges = [recipe.entropy_coefficient * sum(r.logprobs) for r in rollouts]
    if wants_kl:
        assert learner.reference is not None
        with without_adapter(learner.reference) as model:
            reference, _ = read_rollouts(learner, model, rollouts)
        for i, (rollout, theirs) in enumerate(zip(rollouts, reference, strict=True)):
            charges[i] += recipe.kl_coefficient * (sum(rollout.logprobs) - sum(theirs))
    charged = iter(
        r if r.reward is None else replace(r, reward=r.reward - charge)
        for r, charge in zip(rollouts, charges, strict=True)
    )
    return [replace(g, rollouts=tuple(next(charged) for _ in g.rollouts)) for g in groups]
