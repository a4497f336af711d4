"""PPO's critic: its values, what they make of rewards, and runs that learn from both."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from forethought import schema_tables as tables
from forethought.config import parse_recipe
from forethought.errors import RecipeError
from forethought.schema import RlRecipe
from forethought.training.backward import backward
from forethought.training.batch import pack_batches
from forethought.training.critic import (
    ValueHead,
    advantages_and_returns,
    build_critic,
    critic_loss,
    explained_variance,
    load_critic,
    save_critic,
    update_critic,
)
from forethought.training.held import Scores
from forethought.training.learner import Learner, build_learner
from forethought.training.rollouts import sample_rollouts
from forethought.training.scores import charge_rewards
from forethought.training.stages import run_stage, start_run
from forethought.training.strips import Row
from forethought.training.token_scores import criticise, rewards_of_tokens
from forethought.types import FinishReason, Rollout, RolloutGroup
from tiny_runs import NARROWEST, rl_tables, save_tiny, train_in_two, without_clock

pytestmark = pytest.mark.usefixtures("one_thread")


def rollout(reward: float, sampled: int, prompt: int = 2) -> Rollout:
    count = prompt + sampled
    return Rollout(
        example_id="1",
        token_ids=tuple(range(count)),
        sampled_mask=(False,) * prompt + (True,) * sampled,
        logprobs=(0.0,) * count,
        text="",
        finish_reason=FinishReason.EOS,
        reward=reward,
    )


def outcomes(rollouts: Sequence[Rollout]) -> list[list[float]]:
    """The reward of each token: the rollout's own on its last one."""
    return [[*[0.0] * (len(r.token_ids) - 1), r.reward or 0.0] for r in rollouts]


# --- the head ---


def test_values_start_at_0_and_do_not_depend_on_the_scale_of_hidden_states() -> None:
    head = ValueHead(4, 0.0)
    hidden = torch.randn(5, 4)
    assert torch.equal(head(hidden), torch.zeros(5))
    with torch.no_grad():
        head.linear.weight.fill_(0.5)
    assert torch.allclose(head(hidden), head(100 * hidden), atol=1e-5)
    normed = hidden / hidden.square().mean(-1, keepdim=True).sqrt()
    assert torch.allclose(head(hidden), 0.5 * normed.sum(-1), atol=1e-5)


def test_the_coefficient_is_the_share_of_the_gradient_that_the_policy_gets() -> None:
    found = {}
    for coefficient in (0.0, 0.25, 1.0):
        head = ValueHead(3, coefficient)
        with torch.no_grad():
            head.linear.weight.copy_(torch.tensor([[1.0, -2.0, 0.5]]))
        hidden = torch.tensor([[1.0, 2.0, 3.0], [0.5, 0.1, -1.0]], requires_grad=True)
        head(hidden).square().sum().backward()
        weight = head.linear.weight.grad
        assert weight is not None
        found[coefficient] = (weight, hidden.grad)
    own = [weight for weight, _ in found.values()]
    assert torch.allclose(own[0], own[1], atol=1e-6) and torch.allclose(own[0], own[2], atol=1e-6)
    assert found[0.0][1] is None
    whole, part = found[1.0][1], found[0.25][1]
    assert whole is not None and part is not None and float(whole.abs().sum()) > 0
    assert torch.allclose(part, 0.25 * whole, atol=1e-6)


# --- from values to advantages ---

Unit = st.floats(0.0, 1.0)
Trajectory = st.tuples(st.floats(-2, 2), st.lists(st.floats(-2, 2), min_size=1, max_size=6))


def naive_advantages(
    reward: float, values: Sequence[float], gamma: float, lam: float
) -> list[float]:
    """The definition of GAE as a sum: A_t = sum over l of (gamma lam)^l delta_(t+l)."""
    ahead = [*values[1:], 0.0]
    rewards = [0.0] * (len(values) - 1) + [reward]
    deltas = [r + gamma * n - v for r, n, v in zip(rewards, ahead, values, strict=True)]
    return [
        sum((gamma * lam) ** k * delta for k, delta in enumerate(deltas[t:]))
        for t in range(len(deltas))
    ]


@given(st.lists(Trajectory, min_size=1, max_size=4), Unit, Unit)
def test_advantages_are_gae_whitened_over_all_tokens(
    trajectories: list[tuple[float, list[float]]], gamma: float, lam: float
) -> None:
    config = tables.Critic(gamma=gamma, lam=lam)
    rollouts = [rollout(reward, len(values)) for reward, values in trajectories]
    rows = [[9.0, 9.0, *values] for _, values in trajectories]  # what the prompt has is not read
    advantages, returns = advantages_and_returns(rollouts, outcomes(rollouts), rows, config)
    naive = [naive_advantages(reward, values, gamma, lam) for reward, values in trajectories]
    pooled = [a for row in naive for a in row]
    mean, spread = fmean(pooled), stdev(pooled) if len(pooled) > 1 else 0.0
    for row, found, target, (_, values) in zip(
        naive, advantages, returns, trajectories, strict=True
    ):
        assert found[:2] == target[:2] == (0.0, 0.0)
        assert target[2:] == pytest.approx([a + v for a, v in zip(row, values, strict=True)])
        expected = [(a - mean) / (spread + 1e-8) for a in row]
        assert found[2:] == pytest.approx(expected, abs=1e-4)


def test_no_rollouts_have_no_advantages() -> None:
    assert advantages_and_returns([], [], [], tables.Critic()) == ([], [])


def test_explained_variance_is_that_of_the_outcome() -> None:
    rollouts = [rollout(1.0, 3), rollout(0.0, 2)]
    known = [[0.0, 0.0, 1.0, 1.0, 1.0], [0.0, 0.0, 0.0, 0.0]]
    constant = [[0.0, 0.0, 0.4, 0.4, 0.4], [0.0, 0.0, 0.4, 0.4]]
    wrong = [[0.0, 0.0, 0.0, 0.0, 0.0], [0.0, 0.0, 1.0, 1.0]]
    rewards = outcomes(rollouts)
    assert explained_variance(rollouts, rewards, known, 1.0) == pytest.approx(1.0)
    assert explained_variance(rollouts, rewards, constant, 1.0) == pytest.approx(0.0)
    assert explained_variance(rollouts, rewards, wrong, 1.0) == pytest.approx(-3.0)
    alike = [rollout(1.0, 3)] * 2
    assert math.isnan(explained_variance(alike, outcomes(alike), [known[0]] * 2, 1.0))
    assert math.isnan(explained_variance([], [], [], 1.0))


# --- learning ---


def test_the_loss_is_the_clipped_one_at_the_tokens_own_targets() -> None:
    critic = build_critic(tables.Critic(clip=0.5), 3, "cpu")
    with torch.no_grad():
        critic.head.linear.bias.fill_(2.0)  # V = 2 everywhere
    rows = [
        Row(token_ids=[4, 5, 6], weights=[0.0, 0.25, 0.25]),
        Row(token_ids=[7, 8], weights=[0.0, 0.5]),
    ]
    scores = [
        Scores(logprobs=(0.0,) * 3, values=(0.0, 1.0, 1.9), returns=(0.0, 3.0, 0.0)),
        Scores(logprobs=(0.0,) * 2, values=(0.0, 2.0), returns=(0.0, 1.0)),
    ]
    [batch] = pack_batches(rows, max_batch_tokens=99, pad_id=0)
    loss = critic_loss(critic, torch.zeros(3, 3), batch, scores)
    # V = 2 lies 1 above its first value 1 and is held to 1.5 there: (1.5 - 3)^2 is the larger miss
    expected = 0.25 * 1.5**2 + 0.25 * 2.0**2 + 0.5 * 1.0**2
    assert loss.item() == pytest.approx(expected / 2)


def test_a_critic_learns_what_a_line_can_tell_and_is_kept(tmp_path: Path) -> None:
    critic = build_critic(tables.Critic(learning_rate=0.05), 4, "cpu")
    hidden = torch.randn(64, 4, generator=torch.Generator().manual_seed(0))
    outcome = (hidden[:, 0] > 0).float()

    def step(learner: Any) -> float:
        loss = (learner.head(hidden) - outcome).square().mean()
        loss.backward()
        update_critic(learner, skips=False)
        return float(loss.detach())

    losses = [step(critic) for _ in range(60)]
    assert losses[0] == pytest.approx(float(outcome.mean()))
    assert losses[-1] < 0.1
    save_critic(tmp_path, critic)
    copy = build_critic(critic.config, 4, "cpu")
    load_critic(tmp_path, copy)
    assert [step(copy) for _ in range(3)] == [step(critic) for _ in range(3)]
    before = critic.head.linear.weight.clone()
    critic.head(hidden).sum().backward()
    update_critic(critic, skips=True)
    assert torch.equal(critic.head.linear.weight, before)
    assert critic.head.linear.weight.grad is None


# --- runs ---

# of eight tokens: what the siblings of a group differ in, and what only their problems differ in
PAY = """
def even(completion_ids, **kwargs):
    return [sum(t % 2 == 0 for t in ids) / len(ids) for ids in completion_ids]

def easy(prompts, completion_ids, **kwargs):
    return [float(len(str(prompt)) % 2) for prompt in prompts]
"""


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny(tmp_path_factory.mktemp("model") / "tiny")


def ppo_tables(base: Path, folder: Path, pays: str = "even", **changes: Any) -> dict[str, Any]:
    folder.mkdir(exist_ok=True)
    (folder / "pay.py").write_text(PAY)
    shared: dict[str, Any] = {
        "estimator": "ppo",
        "reward": {"parts": {f"{folder}/pay.py:{pays}": 1.0}},
    }
    return rl_tables(base, folder / "run", **(shared | changes))


def train(tables: dict[str, Any]) -> list[dict[str, Any]]:
    recipe = parse_recipe(tables)
    with start_run(recipe, ["test"]) as run:
        run_stage(recipe, run)
        return run.metrics()


def column(metrics: list[dict[str, Any]], name: str) -> list[float]:
    return [row[name] for row in metrics if row.get(name) is not None]


@pytest.mark.parametrize(
    "changes",
    [{"num_steps": 32}, {"num_steps": 64, "num_iterations": 2, "minibatches": 2}],
    ids=["fresh", "reused"],
)
def test_ppo_learns_what_is_paid_for(changes: dict[str, Any], base: Path, tmp_path: Path) -> None:
    metrics = train(ppo_tables(base, tmp_path, prompts_per_step=8, **changes))
    rewards = column(metrics, "reward/mean")
    assert fmean(rewards[-3:]) > fmean(rewards[:3]) + 0.08
    losses = column(metrics, "loss/value")
    assert fmean(losses[-3:]) < 0.5 * fmean(losses[:3])
    assert len(column(metrics, "critic/explained_variance")) == len(rewards)
    assert set(column(metrics, "rollout/kept_frac")) == {1.0}


def test_a_critic_teaches_where_siblings_are_alike(base: Path, tmp_path: Path) -> None:
    """Equal rewards leave rloo without any signal; the critic still tells tokens apart."""
    alike = train(ppo_tables(base, tmp_path / "rloo", "easy", estimator="rloo"))
    assert set(column(alike, "rollout/kept_frac")) == {0.0}
    found = train(ppo_tables(base, tmp_path / "ppo", "easy"))
    assert set(column(found, "rollout/kept_frac")) == {1.0}
    assert min(column(found, "optim/grad_norm")) > 0


def some_learner(base: Path, folder: Path, **changes: Any) -> tuple[Learner, list[RolloutGroup]]:
    """A learner whose critic and policy have moved, and new rollouts with rewards."""
    recipe = parse_recipe(ppo_tables(base, folder, **changes))
    assert isinstance(recipe, RlRecipe)
    with start_run(recipe, ["test"]) as run:
        learner = build_learner(recipe, run)
    generator = torch.Generator().manual_seed(3)
    moved = [*learner.policy.parameters()]
    moved += [] if learner.critic is None else [*learner.critic.head.parameters()]
    with torch.no_grad():
        for parameter in moved:
            change = 0.05 * torch.randn(parameter.shape, generator=generator)
            parameter.add_(change.to(parameter.device))
    learner.engine.update_weights(learner.policy, 0)
    examples = [learner.task[i] for i in range(3)]
    groups = sample_rollouts(learner.engine, examples, recipe, 1)
    numbers = iter(range(99))
    return learner, [
        replace(g, rollouts=tuple(replace(r, reward=next(numbers) % 3) for r in g.rollouts))
        for g in groups
    ]


def test_what_a_token_is_charged_adds_up_to_what_a_rollout_is(base: Path, tmp_path: Path) -> None:
    charged = {
        "kl_coefficient": 0.5,
        "kl_in": "reward",
        "entropy_coefficient": 0.1,
        "entropy_in": "reward",
    }
    learner, groups = some_learner(base, tmp_path / "ppo", **charged)
    assert charge_rewards(learner, groups) == groups
    rollouts = [r for group in groups for r in group.rollouts]
    tokens = rewards_of_tokens(learner, rollouts)
    whole = [
        r.reward for g in charge_rewards(replace(learner, critic=None), groups) for r in g.rollouts
    ]
    assert [sum(row) for row in tokens] == pytest.approx(whole, abs=1e-5)
    assert whole != pytest.approx([r.reward for r in rollouts], abs=0.01)
    for rollout, row in zip(rollouts, tokens, strict=True):
        prompt = rollout.sampled_mask.index(True)
        assert not any(row[:prompt]) and all(row[prompt:-1])


@pytest.mark.usefixtures("on_cpu")
@pytest.mark.parametrize("coefficient", [0.0, 0.5])
def test_the_critic_pulls_at_the_policy_as_far_as_it_may(
    coefficient: float, base: Path, tmp_path: Path
) -> None:
    learner, groups = some_learner(base, tmp_path / "ppo", critic={"coefficient": coefficient})
    critic = learner.critic
    assert critic is not None
    rollouts = [replace(r, advantage=0.0) for group in groups for r in group.rollouts]
    everyone = range(len(rollouts))
    scores, found = criticise(learner, critic, rollouts, everyone)
    assert found["critic/explained_variance"] < 1.0
    gradients = []
    for someone in (learner, replace(learner, critic=None)):
        metrics = backward(someone, rollouts, everyone, scores)
        assert ("loss/value" in metrics) == (someone.critic is not None)
        gradients.append(
            [p.grad.clone() for p in learner.policy.parameters() if p.grad is not None]
        )
        learner.policy.zero_grad()
    assert critic.head.linear.weight.grad is not None
    same = [torch.equal(a, b) for a, b in zip(*gradients, strict=True)]
    assert all(same) if coefficient == 0 else not any(same)


def test_values_and_advantages_are_those_of_a_plain_pass(base: Path, tmp_path: Path) -> None:
    learner, groups = some_learner(base, tmp_path / "ppo", critic={"gamma": 0.9, "lam": 0.7})
    assert learner.critic is not None
    rollouts = [r for group in groups for r in group.rollouts]
    kept = [i for i in range(len(rollouts)) if i != 4]
    scores, _ = criticise(learner, learner.critic, rollouts, kept)
    assert scores[4].values is None and scores[4].logprobs == rollouts[4].logprobs
    naive: list[list[float]] = []
    for i in kept:
        values, returns = scores[i].values, scores[i].returns
        assert values is not None and returns is not None
        ids, start = torch.tensor([rollouts[i].token_ids]), rollouts[i].sampled_mask.index(True)
        with torch.no_grad():
            hidden = learner.policy.base_model(ids.to(learner.policy.device)).last_hidden_state[0]
            plain = learner.critic.head(hidden)[start - 1 : -1].tolist()
        assert values[start:] == pytest.approx(plain, abs=1e-5)
        naive.append(naive_advantages(rollouts[i].reward or 0.0, plain, 0.9, 0.7))
        expected = [a + v for a, v in zip(naive[-1], plain, strict=True)]
        assert returns[start:] == pytest.approx(expected, abs=1e-5)
    pooled = [a for row in naive for a in row]
    for i, row in zip(kept, naive, strict=True):
        advantages = scores[i].advantages
        assert advantages is not None
        expected = [(a - fmean(pooled)) / stdev(pooled) for a in row]
        assert advantages[-len(row) :] == pytest.approx(expected, abs=1e-4)


@pytest.mark.usefixtures("on_cpu")
@pytest.mark.parametrize(
    "changes",
    [
        {"num_iterations": 3, "kl_coefficient": 0.1, "kl_in": "reward"},
        {"lora": {"rank": 4}, "critic": {"coefficient": 0.0}, "rollout_dtype": NARROWEST},
    ],
    ids=["reused", "lora"],
)
def test_ppo_resumes_to_the_same_bits(
    changes: dict[str, Any], base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tables = ppo_tables(base, tmp_path, **changes)
    whole = train(tables)
    broken = train_in_two(tables | {"run_dir": str(tmp_path / "broken")}, monkeypatch)
    assert without_clock(broken) == without_clock(whole)
    names = ("weights.safetensors", "optimizer.pt", "critic.safetensors", "critic_optimizer.pt")
    for name in names:
        last = Path("checkpoints") / "step_000004" / name
        assert (tmp_path / "broken" / last).read_bytes() == (tmp_path / "run" / last).read_bytes()


# --- mistakes ---


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"critic": {"lam": 0.5}, "estimator": "grpo"}, "critic is set, but estimator='grpo' has"),
        ({"scale_rewards": "group"}, "scale_rewards='group' is not for estimator='ppo'"),
        ({"select": {"replay_share": 0.5}}, r"select\.replay_share=0\.5 is not for"),
        ({"top_entropy_quantile": 0.2}, r"top_entropy_quantile=0\.2 is not for estimator='ppo'"),
        ({"critic": {"lam": 1.5}}, r"critic\.lam=1\.5 is wrong"),
        ({"critic": {"clip": 0}}, r"critic\.clip=0 is wrong"),
        ({"critic": {"lambda": 1}}, "did you mean lam"),
    ],
)
def test_what_does_not_go_together_is_one_sentence(changes: dict[str, Any], problem: str) -> None:
    with pytest.raises(RecipeError, match=problem):
        parse_recipe(rl_tables(Path("model"), Path("run"), **({"estimator": "ppo"} | changes)))
