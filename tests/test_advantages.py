"""Baselines, scales and the advantages of tokens against their definitions."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from forethought.training.advantages import (
    ESTIMATORS,
    advantages_of,
    gae,
    scale_rewards,
    token_rewards,
    whiten,
)

REWARD = st.floats(-10, 10)
GROUPS = st.lists(st.lists(st.none() | REWARD, min_size=1, max_size=8), min_size=1, max_size=5)
BASELINES = ["reinforce", "rloo", "grpo", "dr_grpo", "reinforce_plus_plus"]
SCALES = [None, "group", "batch", "none"]


def graded(group: Sequence[float | None]) -> list[float]:
    return [r for r in group if r is not None]


def spread(values: Sequence[float]) -> float:
    return statistics.stdev(values) if len(values) > 1 else 0.0


def estimate(name: str, *groups: Sequence[float | None]) -> list[list[float]]:
    return ESTIMATORS[name](groups)


def test_advantages_by_hand() -> None:
    group = [1.0, 0.0, 0.0, 1.0, 1.0]  # mean 0.6, unbiased variance 0.3
    assert estimate("dr_grpo", group) == [pytest.approx([0.4, -0.6, -0.6, 0.4, 0.4])]
    # leave one out: 1 - 2/4, 0 - 3/4
    assert estimate("rloo", group) == [pytest.approx([0.5, -0.75, -0.75, 0.5, 0.5])]
    std = math.sqrt(0.3) + 1e-4
    assert estimate("grpo", group) == [
        pytest.approx([0.4 / std, -0.6 / std, -0.6 / std, 0.4 / std, 0.4 / std])
    ]
    # one baseline for the whole step: mean of 1, 0, 0, 3 is 1
    assert estimate("reinforce", [1.0, 0.0], [0.0, 3.0]) == [
        pytest.approx([0.0, -1.0]),
        pytest.approx([-1.0, 2.0]),
    ]


REWARDS = st.lists(st.floats(-10, 10), min_size=2, max_size=16)


@given(REWARDS)
def test_rloo_is_each_reward_less_the_mean_of_the_others(rewards: list[float]) -> None:
    [found] = estimate("rloo", rewards)
    assert sum(found) == pytest.approx(0.0, abs=1e-9)
    for i, advantage in enumerate(found):
        others = rewards[:i] + rewards[i + 1 :]
        assert advantage == pytest.approx(rewards[i] - sum(others) / len(others), abs=1e-9)


@given(REWARDS, st.floats(0.5, 100), st.floats(-10, 10))
def test_grpo_ignores_scale_and_shift(rewards: list[float], scale: float, shift: float) -> None:
    assume(max(rewards) - min(rewards) > 1)
    [before] = estimate("grpo", rewards)
    [after] = estimate("grpo", [scale * r + shift for r in rewards])
    assert after == pytest.approx(before, rel=2e-3, abs=1e-6)  # up to the 1e-4 beside the std
    assert all(abs(a) <= math.sqrt(len(rewards)) for a in before)


@given(st.sampled_from(["rloo", "grpo", "dr_grpo"]), GROUPS, GROUPS)
def test_groups_do_not_see_each_other(
    name: str, first: list[list[float | None]], second: list[list[float | None]]
) -> None:
    estimator = ESTIMATORS[name]
    assert estimator(first + second) == estimator(first) + estimator(second)


@pytest.mark.parametrize("name", BASELINES)
def test_a_single_graded_sibling_teaches_nothing_in_its_group(name: str) -> None:
    assert estimate(name, [None, 1.0, None]) == [[0.0, 0.0, 0.0]]
    assert estimate(name, [None, None]) == [[0.0, 0.0]]


@given(GROUPS)
def test_reinforce_plus_plus_divides_by_the_spread_of_what_is_left(
    groups: list[list[float | None]],
) -> None:
    means = [statistics.fmean(graded(g)) if graded(g) else 0.0 for g in groups]
    left = [r - m for g, m in zip(groups, means, strict=True) for r in graded(g)]
    for group, mean, found in zip(
        groups, means, advantages_of(groups, "reinforce_plus_plus"), strict=True
    ):
        expected = [0.0 if r is None else (r - mean) / (spread(left) + 1e-4) for r in group]
        assert found == pytest.approx(expected, abs=1e-6)


def test_the_spreads_differ() -> None:
    groups = [[0.0, 0.0, 0.0, 1.0], [1.0, 1.0, 1.0, 0.0], [1.0, 1.0, 1.0, 1.0]]
    eleven = math.sqrt(11)
    plus_plus = advantages_of(groups, "reinforce_plus_plus")
    # squares of what is left: 2 * 3/4, over 11
    assert plus_plus[0] == pytest.approx(
        [a / (math.sqrt(1.5) / eleven + 1e-4) for a in (-0.25, -0.25, -0.25, 0.75)]
    )
    assert plus_plus[2] == [0.0] * 4
    # squares of rewards around 2/3: 8 * 1/9 + 4 * 4/9
    batch = advantages_of(groups, "grpo", "batch")
    assert batch[0][3] == pytest.approx(0.75 / (math.sqrt(24 / 9) / eleven + 1e-4))
    # squares within the group: 3/4, over 3
    group = advantages_of(groups, "grpo")
    assert group[0][3] == pytest.approx(0.75 / (0.5 + 1e-4))


@pytest.mark.parametrize("name", ESTIMATORS)
@given(groups=GROUPS)
def test_without_a_scale_an_estimator_takes_its_own(
    name: str, groups: list[list[float | None]]
) -> None:
    own = {"grpo": "group", "reinforce_plus_plus": "batch"}.get(name, "none")
    assert advantages_of(groups, name) == ESTIMATORS[name](groups)
    assert advantages_of(groups, name, own) == ESTIMATORS[name](groups)


@given(GROUPS)
def test_grpo_without_its_division_is_dr_grpo_and_the_other_way_round(
    groups: list[list[float | None]],
) -> None:
    plain, divided = ESTIMATORS["dr_grpo"](groups), ESTIMATORS["grpo"](groups)
    assert advantages_of(groups, "grpo", "none") == plain
    assert advantages_of(groups, "dr_grpo", "group") == divided
    batch = scale_rewards(plain, groups, "batch")
    assert advantages_of(groups, "grpo", "batch") == batch
    everyone = [r for g in groups for r in graded(g)]
    for row, scaled in zip(plain, batch, strict=True):
        assert scaled == pytest.approx([a / (spread(everyone) + 1e-4) for a in row], abs=1e-6)


@pytest.mark.parametrize("name", BASELINES)
@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("value", [0.0, 1.0, 0.1 + 0.2, 1 / 3, -1e9 / 7, 1e-300])
def test_equal_rewards_teach_exactly_nothing(name: str, scale: str, value: float) -> None:
    for count in (1, 2, 3, 7, 16):
        groups = [[value] * count] * 2
        assert advantages_of(groups, name, scale) == [[0.0] * count] * 2


@pytest.mark.parametrize("name", ["rloo", "grpo", "dr_grpo", "reinforce_plus_plus"])
@pytest.mark.parametrize("scale", SCALES)
def test_a_dead_group_stays_dead_beside_a_live_one(name: str, scale: str) -> None:
    dead, live = advantages_of([[1 / 3] * 5, [0.0, 1.0, 1.0]], name, scale)
    assert dead == [0.0] * 5
    assert all(live)


@given(st.sampled_from(sorted(ESTIMATORS)), st.sampled_from(SCALES), GROUPS)
def test_ungraded_rollouts_get_nothing_and_move_nothing(
    name: str, scale: str, groups: list[list[float | None]]
) -> None:
    found = advantages_of(groups, name, scale)
    alone = advantages_of([graded(g) for g in groups], name, scale)
    for group, row, expected in zip(groups, found, alone, strict=True):
        assert all(a == 0.0 for a, r in zip(row, group, strict=True) if r is None)
        kept = [a for a, r in zip(row, group, strict=True) if r is not None]
        assert kept == pytest.approx(expected)


def test_a_reward_is_its_own_advantage_where_a_critic_is_the_baseline() -> None:
    assert advantages_of([[1.0, None], [0.5, 0.5]], "reward") == [[1.0, 0.0], [0.5, 0.5]]


# --- tokens ---

STEPS = st.lists(st.tuples(st.floats(-3, 3), st.floats(-3, 3)), min_size=1, max_size=12)
SHARE = st.floats(0, 1)


@given(STEPS, SHARE, SHARE)
def test_gae_is_the_sum_that_its_paper_defines(
    steps: list[tuple[float, float]], gamma: float, lam: float
) -> None:
    rewards, values = [r for r, _ in steps], [v for _, v in steps]
    ahead = [*values[1:], 0.0]
    differences = [r + gamma * n - v for r, v, n in zip(rewards, values, ahead, strict=True)]
    expected = [
        sum((gamma * lam) ** k * d for k, d in enumerate(differences[t:]))
        for t in range(len(steps))
    ]
    advantages, returns = gae(rewards, values, gamma, lam)
    assert advantages == pytest.approx(expected, abs=1e-9)
    assert returns == pytest.approx([a + v for a, v in zip(expected, values, strict=True)])


@given(STEPS, SHARE)
def test_with_lambda_1_returns_are_the_rewards_to_come(
    steps: list[tuple[float, float]], gamma: float
) -> None:
    rewards, values = [r for r, _ in steps], [v for _, v in steps]
    _, returns = gae(rewards, values, gamma, 1.0)
    for t in range(len(steps)):
        to_come = sum(gamma**k * r for k, r in enumerate(rewards[t:]))
        assert returns[t] == pytest.approx(to_come, abs=1e-9)


def test_gae_by_hand() -> None:
    advantages, returns = gae([0.0, 0.0, 1.0], [0.5, 0.6, 0.7], 1.0, 0.5)
    assert advantages == pytest.approx([0.1 + 0.05 + 0.075, 0.1 + 0.15, 0.3])
    assert returns == pytest.approx([0.725, 0.85, 1.0])
    assert gae([0.0, 1.0], [0.0, 0.0], 1.0, 1.0) == ([1.0, 1.0], [1.0, 1.0])


def test_token_rewards_by_hand() -> None:
    assert token_rewards(1.0, [-0.5, -2.0]) == [0.0, 1.0]
    ours, theirs = [-0.5, -2.0], [-1.5, -1.0]
    assert token_rewards(1.0, ours, theirs, kl_coefficient=0.1) == pytest.approx([-0.1, 1.1])
    assert token_rewards(1.0, ours, entropy_coefficient=0.1) == pytest.approx([0.05, 1.2])


def test_in_the_mean_they_are_the_reward_the_divergence_and_the_entropy() -> None:
    chances, reference = [0.5, 0.3, 0.2], [0.2, 0.2, 0.6]
    mean = sum(
        p * sum(token_rewards(2.0, [math.log(p)], [math.log(q)], kl_coefficient=0.1)) +
        p * sum(token_rewards(0.0, [math.log(p)], entropy_coefficient=0.3))
        for p, q in zip(chances, reference, strict=True)
    )  # fmt: skip
    divergence = sum(p * math.log(p / q) for p, q in zip(chances, reference, strict=True))
    entropy = -sum(p * math.log(p) for p in chances)
    assert mean == pytest.approx(2.0 - 0.1 * divergence + 0.3 * entropy)


@given(st.lists(st.lists(REWARD, min_size=1, max_size=6), min_size=1, max_size=4))
def test_whitened_advantages_have_mean_0_and_spread_1(rows: list[list[float]]) -> None:
    found = whiten(rows)
    assert [len(row) for row in found] == [len(row) for row in rows]
    flat = [a for row in found for a in row]
    assert statistics.fmean(flat) == pytest.approx(0.0, abs=1e-6)
    if spread([a for row in rows for a in row]) > 1e-3:
        assert spread(flat) == pytest.approx(1.0, abs=1e-4)


def test_equal_advantages_whiten_to_exactly_nothing() -> None:
    assert whiten([[1 / 3], [1 / 3, 1 / 3]]) == [[0.0], [0.0, 0.0]]
