"""Several updates on one batch of rollouts, and what the updates are told of it."""

from __future__ import annotations

import math
import tempfile
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from forethought.config import parse_recipe
from forethought.errors import RecipeError
from forethought.schema import RlRecipe
from forethought.training.backward import backward
from forethought.training.held import (
    Scores,
    batch_number,
    ends_batch,
    hold,
    load_held,
    minibatch,
    save_held,
    starts_batch,
)
from forethought.training.learner import build_learner
from forethought.training.rl import start_or_resume, train_step
from forethought.training.scores import charge_rewards, needs_scores, score_rollouts
from forethought.training.stages import start_run
from forethought.types import Rollout, RolloutGroup
from test_training_units import (
    EXAMPLE,
    TOKENIZER,
    close,
    gradient,
    learner_for,
    naive_logprob,
    rl_recipe,
    some_rollouts,
)
from tiny_runs import EVEN_REWARD, rl_tables, save_tiny, tiny_policy


def groups_of(count: int, size: int) -> list[RolloutGroup]:
    siblings = tuple(some_rollouts()[:size])
    return [RolloutGroup(example=EXAMPLE, rollouts=siblings) for _ in range(count)]


def as_sampled_by(policy: Any, rollouts: Sequence[Rollout]) -> list[Rollout]:
    """The same tokens with the log-probabilities that `policy` gives them."""
    found = []
    for r in rollouts:
        with torch.no_grad():
            logprobs = [
                float(naive_logprob(policy, r.token_ids, t, 1.0)) if sampled else 0.0
                for t, sampled in enumerate(r.sampled_mask)
            ]
        found.append(replace(r, logprobs=tuple(logprobs)))
    return found


@given(iterations=st.integers(1, 4), minibatches=st.integers(1, 4), num_groups=st.integers(4, 7))
def test_every_pass_learns_from_every_rollout_once(
    iterations: int, minibatches: int, num_groups: int
) -> None:
    recipe = rl_recipe(num_iterations=iterations, minibatches=minibatches)
    held = hold(groups_of(num_groups, 2), kept=range(2 * num_groups))
    updates = iterations * minibatches
    first = 3 * updates + 1  # of the fourth batch
    for iteration in range(iterations):
        seen: Counter[int] = Counter()
        for part in range(minibatches):
            step = first + iteration * minibatches + part
            assert batch_number(recipe, step) == 4
            assert starts_batch(recipe, step) == (step == first)
            assert ends_batch(recipe, step) == (step == first + updates - 1)
            mine = minibatch(held, recipe, step)
            assert {i ^ 1 for i in mine} == set(mine)  # groups of two stay together
            seen.update(mine)
        assert seen == Counter(range(2 * num_groups))


def test_passes_are_cut_differently() -> None:
    recipe = rl_recipe(num_iterations=3, minibatches=2, prompts_per_step=8)
    held = hold(groups_of(8, 2), kept=range(16))
    assert len({tuple(minibatch(held, recipe, step)) for step in (1, 3, 5)}) > 1


@given(st.lists(st.floats(allow_nan=False), min_size=1, max_size=8))
def test_a_batch_in_use_comes_back_from_its_file_in_the_same_bits(values: list[float]) -> None:
    groups = groups_of(2, 3)
    [first, *others] = groups[0].rollouts
    first = replace(first, logprobs=tuple(values))
    groups[0] = replace(groups[0], rollouts=(first, *others))
    scores = [Scores(logprobs=r.logprobs) for g in groups for r in g.rollouts]
    held = hold(groups, kept=[0, 4], scores=scores)
    with tempfile.TemporaryDirectory() as folder:
        assert load_held(Path(folder)) is None
        save_held(Path(folder), None)
        assert load_held(Path(folder)) is None
        save_held(Path(folder), held)
        found = load_held(Path(folder))
    assert found == held
    assert found is not None
    signs = [math.copysign(1, v) for v in found.rollouts[0].logprobs]
    assert signs == [math.copysign(1, v) for v in values]


def test_a_second_update_weighs_tokens_by_what_the_policy_has_become() -> None:
    before, now = tiny_policy(TOKENIZER, seed=0), tiny_policy(TOKENIZER, seed=1)
    rollouts = as_sampled_by(before, some_rollouts())
    recipe = rl_recipe(num_iterations=2, epsilon=0.01, epsilon_high=0.02)
    metrics = backward(learner_for(recipe, now), rollouts, range(len(rollouts)))
    found = gradient(now)
    total, low, high = torch.zeros(()), 0, 0
    count = sum(r.num_sampled for r in rollouts)
    for r in rollouts:
        for t, sampled in enumerate(r.sampled_mask):
            if sampled:
                ratio = (naive_logprob(now, r.token_ids, t, 1.0) - r.logprobs[t]).exp()
                advantage = r.advantage or 0.0
                total = total - torch.minimum(
                    ratio * advantage, ratio.clamp(0.99, 1.02) * advantage
                )
                low += int(ratio < 0.99 and advantage < 0)
                high += int(ratio > 1.02 and advantage > 0)
    loss = total / count
    loss.backward()  # type: ignore[no-untyped-call]
    assert metrics["loss/policy"] == pytest.approx(float(loss.detach()), abs=1e-5)
    assert close(found, gradient(now), 1e-5)
    assert low and high  # both ends of the clip did something
    assert metrics["policy/clipped_low_frac"] == pytest.approx(low / count)
    assert metrics["policy/clipped_high_frac"] == pytest.approx(high / count)


def test_fresh_rollouts_have_the_gradient_of_the_plain_loss() -> None:
    policy = tiny_policy(TOKENIZER)
    rollouts = as_sampled_by(policy, some_rollouts())
    backward(learner_for(rl_recipe(), policy), rollouts, range(12))
    plain = gradient(policy)
    backward(learner_for(rl_recipe(num_iterations=2), policy), rollouts, range(12))
    assert close(gradient(policy), plain)


def test_a_coarse_sampler_is_corrected_before_the_ratio() -> None:
    policy = tiny_policy(TOKENIZER)
    rollouts = as_sampled_by(policy, some_rollouts())
    coarse = [replace(r, logprobs=tuple(p - 0.5 * (p != 0) for p in r.logprobs)) for r in rollouts]
    recipe = rl_recipe(num_iterations=2, importance_cap=1.25)
    learner = learner_for(recipe, policy)
    assert needs_scores(recipe)
    scores = score_rollouts(learner, coarse, range(12))
    for score, rollout in zip(scores, rollouts, strict=True):
        assert close(score.logprobs, rollout.logprobs, 1e-5)
    metrics = backward(learner, coarse, range(12), scores)
    found = gradient(policy)
    backward(learner_for(rl_recipe(), policy), rollouts, range(12))
    # the ratio is 1, and exp(0.5) is cut to the cap
    assert close(found, 1.25 * gradient(policy), 1e-5)
    assert metrics["policy/capped_frac"] == 1.0


def test_the_entropy_bonus_is_the_mean_entropy_of_the_tokens() -> None:
    policy = tiny_policy(TOKENIZER)
    rollouts = some_rollouts()
    recipe = rl_recipe(entropy_coefficient=0.3)
    metrics = backward(learner_for(recipe, policy), rollouts, range(12))
    found = gradient(policy)
    backward(learner_for(rl_recipe(), policy), rollouts, range(12))
    plain = gradient(policy)
    total, count = torch.zeros(()), 0
    for r in rollouts:
        logits = policy(input_ids=torch.tensor([r.token_ids])).logits[0].log_softmax(-1)
        entropies = -(logits.exp() * logits).sum(-1)
        for t, sampled in enumerate(r.sampled_mask):
            if sampled:
                total, count = total + entropies[t - 1], count + 1
    (total / count).backward()  # type: ignore[no-untyped-call]
    assert metrics["policy/token_entropy"] == pytest.approx(float(total.detach()) / count, abs=1e-5)
    assert close(found, plain - 0.3 * gradient(policy), 1e-5)


def test_only_the_least_certain_tokens_learn_where_asked() -> None:
    policy = tiny_policy(TOKENIZER)
    rollouts = as_sampled_by(policy, some_rollouts())
    recipe = rl_recipe(top_entropy_quantile=0.25)
    assert needs_scores(recipe)
    scores = score_rollouts(learner_for(recipe, policy), rollouts, range(12))
    count = sum(r.num_sampled for r in rollouts)
    learning = 0
    for score, rollout in zip(scores, rollouts, strict=True):
        assert score.advantages is not None
        assert {*score.advantages} <= {0.0, rollout.advantage}
        learning += sum(a != 0 for a in score.advantages)
    dead = sum(r.num_sampled for r in rollouts if r.advantage == 0)
    assert count / 4 - dead <= learning <= math.ceil(count / 4)


def test_rewards_are_charged_with_what_leaving_the_reference_costs() -> None:
    policy, reference = tiny_policy(TOKENIZER, seed=1), tiny_policy(TOKENIZER)
    rollouts = as_sampled_by(policy, some_rollouts())
    rollouts[0] = replace(rollouts[0], reward=None)
    groups = [RolloutGroup(example=EXAMPLE, rollouts=tuple(rollouts))]
    recipe = rl_recipe(kl_coefficient=0.5, kl_in="reward")
    [charged] = charge_rewards(learner_for(recipe, policy, reference), groups)
    for before, after in zip(rollouts[1:], charged.rollouts[1:], strict=True):
        steps = [t for t, sampled in enumerate(before.sampled_mask) if sampled]
        with torch.no_grad():
            theirs = sum(float(naive_logprob(reference, before.token_ids, t, 1.0)) for t in steps)
        assert before.reward is not None
        wanted = before.reward - 0.5 * (sum(before.logprobs) - theirs)
        assert after.reward == pytest.approx(wanted, abs=1e-4)
    assert charged.rollouts[0].reward is None
    # and the loss has no second penalty
    metrics = backward(learner_for(recipe, policy, reference), rollouts, range(12))
    assert "policy/kl" not in metrics


def test_maximum_entropy_pays_for_what_is_unlikely() -> None:
    rollouts = as_sampled_by(tiny_policy(TOKENIZER), some_rollouts())
    groups = [RolloutGroup(example=EXAMPLE, rollouts=tuple(rollouts))]
    recipe = rl_recipe(entropy_coefficient=0.1, entropy_in="reward")
    [charged] = charge_rewards(learner_for(recipe, tiny_policy(TOKENIZER)), groups)
    for before, after in zip(rollouts, charged.rollouts, strict=True):
        assert before.reward is not None
        assert after.reward == pytest.approx(before.reward - 0.1 * sum(before.logprobs))


def test_rollouts_are_sampled_once_a_batch(tmp_path: Path) -> None:
    model = save_tiny(tmp_path / "model")
    (tmp_path / "even.py").write_text(EVEN_REWARD)
    tables = rl_tables(
        model,
        tmp_path / "run",
        num_iterations=2,
        minibatches=2,
        num_steps=6,
        reward={"parts": {f"{tmp_path}/even.py:even": 1.0}},
    )
    recipe = parse_recipe(tables)
    assert isinstance(recipe, RlRecipe)
    with start_run(recipe, ["test"]) as run:
        learner = build_learner(recipe, run)
        start_or_resume(learner, run, 0)
        found = [train_step(learner, run, step) for step in range(1, 7)]
    assert ["reward/mean" in metrics for metrics in found] == [True, *[False] * 3, True, False]
    assert learner.state.held is not None  # the second batch has two updates to go
    assert all(metrics["optim/grad_norm"] > 0 for metrics in found)
    learned = [metrics["total/learned_tokens"] for metrics in found]
    assert learned[0] + learned[1] == learned[2] + learned[3]
    assert found[0]["policy/clipped_low_frac"] == found[0]["policy/clipped_high_frac"] == 0.0


@pytest.mark.parametrize(
    ("changes", "parts"),
    [
        ({"minibatches": 5}, ["minibatches=5", "prompts_per_step=4"]),
        ({"epsilon": 0.1}, ["epsilon=0.1", "num_iterations"]),
        ({"delta": 2.0}, ["delta=2.0", "minibatches"]),
    ],
)
def test_numbers_that_contradict_each_other_are_refused(
    changes: dict[str, Any], parts: list[str]
) -> None:
    with pytest.raises(RecipeError) as caught:
        parse_recipe(rl_tables(Path("m"), Path("r"), **changes))
    assert all(part in str(caught.value) for part in parts)
