"""A recipe's estimator and its keys, as a training step carries them out."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from forethought.training.algorithms import ALGORITHMS
from forethought.training.backward import backward
from forethought.training.rollouts import assign_advantages
from forethought.types import Rollout, RolloutGroup
from test_losses import Sample, padded_loss
from test_reuse import as_sampled_by
from test_training_units import (
    CRITIC_FREE,
    EXAMPLE,
    TOKENIZER,
    close,
    gradient,
    learner_for,
    naive_logprob,
    rl_recipe,
    rollout,
    some_rollouts,
)
from tiny_runs import tiny_policy

MAX_TOKENS = 9  # of padded_loss


def as_tables(policy: Any, rollouts: list[Rollout]) -> Sample:
    """log pi of every sampled token as one padded table, with gradient, and the sampler's."""
    logprobs, old = [], []
    for r in rollouts:
        columns = [t for t, sampled in enumerate(r.sampled_mask) if sampled]
        logprobs.append(torch.stack([naive_logprob(policy, r.token_ids, t, 1.0) for t in columns]))
        old.append(torch.tensor([r.logprobs[t] for t in columns]))
    return Sample(
        torch.nn.utils.rnn.pad_sequence(logprobs, batch_first=True),
        torch.nn.utils.rnn.pad_sequence(old, batch_first=True),
        torch.tensor([r.advantage for r in rollouts]),
        [len(row) for row in old],
    )


@pytest.mark.parametrize("name", CRITIC_FREE)
def test_used_rollouts_have_the_loss_of_their_algorithm(name: str) -> None:
    algorithm = ALGORITHMS[name]
    before, now = tiny_policy(TOKENIZER, seed=0), tiny_policy(TOKENIZER, seed=1)
    rollouts = as_sampled_by(before, some_rollouts())
    recipe = rl_recipe(estimator=name, num_iterations=2, max_tokens=MAX_TOKENS)
    metrics = backward(learner_for(recipe, now), rollouts, range(len(rollouts)))
    found = gradient(now)
    loss = padded_loss(
        as_tables(now, rollouts),
        algorithm.objective,
        algorithm.aggregation,
        algorithm.epsilon,
        algorithm.epsilon_high,
        None,
    )
    loss.backward()  # type: ignore[no-untyped-call]
    assert metrics["loss/policy"] == pytest.approx(float(loss.detach()), abs=1e-5)
    assert found.norm() > 1e-3
    assert close(found, gradient(now), 1e-5)


@pytest.mark.parametrize("is_used", [False, True])
def test_the_corrected_penalty_is_weighed_by_the_ratio(is_used: bool) -> None:
    before, now = tiny_policy(TOKENIZER, seed=0), tiny_policy(TOKENIZER, seed=1)
    reference = tiny_policy(TOKENIZER, seed=2)
    rollouts = as_sampled_by(before, some_rollouts())
    recipe = rl_recipe(
        kl_coefficient=0.5, kl_correction=True, num_iterations=2 if is_used else 1, epsilon=None
    )
    metrics = backward(learner_for(recipe, now, reference), rollouts, range(len(rollouts)))
    found = gradient(now)
    table, theirs = as_tables(now, rollouts), as_tables(reference, rollouts).logprobs.detach()
    objective = "clip" if is_used else "policy_gradient"
    loss = padded_loss(table, objective, "token_mean", 0.2, 0.2, None)
    difference = theirs - table.logprobs
    old = table.old if is_used else table.logprobs.detach()
    k3: Tensor = (table.logprobs - old).exp() * (difference.exp() - difference - 1)
    kl = table.packed(k3).mean()
    (loss + 0.5 * kl).backward()  # type: ignore[no-untyped-call]
    assert metrics["policy/kl"] == pytest.approx(float(kl.detach()), abs=1e-5)
    assert close(found, gradient(now), 1e-5)


def test_rollouts_far_off_the_sampler_leave_at_both_ends() -> None:
    sampler, policy = tiny_policy(TOKENIZER, seed=0), tiny_policy(TOKENIZER, seed=1)
    rollouts = as_sampled_by(sampler, some_rollouts())
    recipe = rl_recipe(
        estimator="rloo", importance_mode="token_mask", importance_cap=1.05, importance_floor=0.95
    )
    metrics = backward(learner_for(recipe, policy), rollouts, range(len(rollouts)))
    found = gradient(policy)
    table = as_tables(policy, rollouts)
    ratio = (table.logprobs - table.old).detach().exp()
    ratio = ratio.where((ratio >= 0.95) & (ratio <= 1.05), torch.zeros(()))
    terms = -ratio * table.advantages[:, None] * table.logprobs
    kept = table.packed((ratio > 0).float())
    assert 0.1 < kept.mean() < 0.9
    table.packed(terms).mean().backward()  # type: ignore[no-untyped-call]
    assert close(found, gradient(policy), 1e-5)
    assert metrics["policy/capped_frac"] == pytest.approx(1 - float(kept.mean()))


def test_a_recipe_replaces_the_scale_of_its_estimator() -> None:
    rewards = [1.0, 0.0, 0.0, 1.0]
    group = RolloutGroup(example=EXAMPLE, rollouts=tuple(rollout(reward=r) for r in rewards))

    def advantage(estimator: str, scale: str | None) -> float | None:
        return assign_advantages([group], estimator, scale)[0].rollouts[0].advantage

    assert advantage("gspo", None) == pytest.approx(0.5 / (3**-0.5 + 1e-4))
    assert advantage("gspo", "none") == 0.5
    assert advantage("rloo", "group") == pytest.approx(2 / 3 / (3**-0.5 + 1e-4))


@pytest.mark.parametrize(
    ("changes", "key"),
    [
        ({"estimator": "cispo", "num_iterations": 2, "epsilon": 0.1}, "epsilon"),
        ({"estimator": "cispo", "num_iterations": 2, "delta": 2.0}, "delta"),
        ({"importance_floor": 0.5}, "importance_floor"),
    ],
)
def test_a_key_that_does_nothing_is_refused(changes: dict[str, Any], key: str) -> None:
    with pytest.raises(ValueError, match=f"{key}=.* does nothing with"):
        rl_recipe(**changes)
