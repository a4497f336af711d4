"""Advantage estimators: rewards of the groups of one batch in, one advantage a rollout out.

Pure functions on lists of floats. A reward of None (ungraded) gets advantage 0 and takes no part
in any baseline or spread. G is the number of graded rollouts of a group, r_i a reward. An
estimator is a baseline and, for two of them, a division by a standard deviation; `scale` replaces
that division. `gae` is the one that a critic needs: it gives every token its own advantage.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence

from forethought.training.algorithms import Scale

Rewards = Sequence[float | None]
Estimator = Callable[[Sequence[Rewards]], list[list[float]]]

_EPSILON = 1e-4  # beside a standard deviation, as in TRL and verl


def advantages_of(
    groups: Sequence[Rewards], estimator: str, scale: str | None = None
) -> list[list[float]]:
    """The named estimator's advantages, their division replaced by `scale` (None: its own).

    `scale="batch"` on any estimator but reinforce_plus_plus is TRL's: the spread of all rewards.
    """
    baseline, own = _DIVIDED.get(estimator, (estimator, "none"))
    if scale is None or scale == own:
        return ESTIMATORS[estimator](groups)
    return scale_rewards(ESTIMATORS[baseline](groups), groups, scale)


# --- baselines ---


def reward(groups: Sequence[Rewards]) -> list[list[float]]:
    """r_i itself, 0 where ungraded: for PPO, whose baseline is the critic (see `gae`)."""
    return [[0.0 if r is None else r for r in group] for group in groups]


def reinforce(groups: Sequence[Rewards]) -> list[list[float]]:
    """r_i - mean over the whole batch: REINFORCE with a baseline (Williams 1992).

    Unlike all others it tells an easy prompt from a hard one: a group whose rewards are equal but
    not the batch's mean still has advantages.
    """
    centered = iter(_centered([r for group in groups for r in group]))
    return [[next(centered) for _ in group] for group in groups]


def rloo(groups: Sequence[Rewards]) -> list[list[float]]:
    """r_i - mean of the other G - 1 rewards (leave-one-out; Kool et al. 2019, Ahmadian et al. 2024,
    arXiv 2402.14740). It is dr_grpo's times G / (G - 1), and free of the bias that comes from a
    baseline with r_i in it."""
    return [_rloo_group(group) for group in groups]


def _rloo_group(group: Rewards) -> list[float]:
    count = sum(r is not None for r in group)
    if count < 2:
        return [0.0] * len(group)
    return [a * count / (count - 1) for a in _centered(group)]


def dr_grpo(groups: Sequence[Rewards]) -> list[list[float]]:
    """r_i - mean of the group (Dr. GRPO; Liu et al. 2025, arXiv 2503.20783): GRPO without the
    division, which makes prompts that are almost always or never solved weigh more."""
    return [_centered(group) for group in groups]


def grpo(groups: Sequence[Rewards]) -> list[list[float]]:
    """(r_i - mean) / (std + 1e-4) of the group, unbiased std (GRPO; Shao et al. 2024, arXiv
    2402.03300; the 1e-4 is TRL's)."""
    return scale_rewards(dr_grpo(groups), groups, "group")


def reinforce_plus_plus(groups: Sequence[Rewards]) -> list[list[float]]:
    """(r_i - mean of the group) / (s + 1e-4), s the unbiased std of all these differences.

    REINFORCE++ with baseline (Hu et al. 2025, arXiv 2501.03262), the variant for several samples a
    prompt. One s for the whole batch, so a prompt's difficulty does not scale its gradient as in
    GRPO; and s is of differences, not of rewards as in GRPO with scale "batch". verl and OpenRLHF
    also subtract the mean over tokens: in that, long rollouts weigh more and a group of equal
    rewards moves off 0. Over rollouts, as here and in ms-swift, that mean is 0.
    """
    centered = dr_grpo(groups)
    pairs = zip(centered, groups, strict=True)
    spread = _std(
        a for row, group in pairs for a, r in zip(row, group, strict=True) if r is not None
    )
    return [[a / (spread + _EPSILON) for a in row] for row in centered]


# --- scaling ---


def scale_rewards(
    advantages: Sequence[Sequence[float]], groups: Sequence[Rewards], scale: str
) -> list[list[float]]:
    """Advantages divided by std + 1e-4 of the rewards: of the "group" (Shao et al. 2024), of the
    whole "batch" ("Part I: tricks or traps?", 2025, arXiv 2508.08221), or, with "none", by nothing.
    TRL's `scale_rewards`; std is unbiased, and 0 where fewer than two are graded."""
    if scale == "none":
        return [list(row) for row in advantages]
    if scale == "group":
        spreads = [_std(r for r in group if r is not None) for group in groups]
    else:
        spreads = [_std(r for group in groups for r in group if r is not None)] * len(groups)
    return [
        [a / (spread + _EPSILON) for a in row]
        for row, spread in zip(advantages, spreads, strict=True)
    ]


def _centered(group: Rewards) -> list[float]:
    """r_i - mean; exactly 0 for a group of equal rewards, whatever rounding says."""
    graded = [r for r in group if r is not None]
    if not graded or min(graded) == max(graded):
        return [0.0] * len(group)
    mean = sum(graded) / len(graded)
    return [0.0 if r is None else r - mean for r in group]


def _std(values: Iterable[float]) -> float:
    """With n - 1 below; 0 of fewer than two."""
    centered = _centered(list(values))
    if len(centered) < 2:
        return 0.0
    return math.sqrt(sum(a * a for a in centered) / (len(centered) - 1))


# --- advantages of tokens ---


def gae(
    rewards: Sequence[float], values: Sequence[float], gamma: float = 1.0, lam: float = 0.95
) -> tuple[list[float], list[float]]:
    """Advantages and returns (T,), (T,) of the tokens of one finished rollout.

    d_t = r_t + gamma V_(t+1) - V_t, A_t = d_t + gamma lam A_(t+1), both 0 behind the last token;
    return_t = A_t + V_t, the critic's target. Generalised advantage estimation (Schulman et al.
    2016, arXiv 1506.02438): lam = 1 is the reward to come less V_t, lam = 0 one step of it.
    values[t] is V before token t was drawn.
    """
    advantages = [0.0] * len(rewards)
    following, next_value = 0.0, 0.0
    for t in reversed(range(len(rewards))):
        difference = rewards[t] + gamma * next_value - values[t]
        following = difference + gamma * lam * following
        advantages[t], next_value = following, values[t]
    return advantages, [a + v for a, v in zip(advantages, values, strict=True)]


def token_rewards(
    reward: float,
    logprobs: Sequence[float],
    reference_logprobs: Sequence[float] | None = None,
    *,
    kl_coefficient: float = 0.0,
    entropy_coefficient: float = 0.0,
) -> list[float]:
    """The reward of every token (T,) of a rollout: its reward on the last one, and on each

        - kl_coefficient * (log pi - log ref) - entropy_coefficient * log pi

    the first the KL penalty of Ziegler et al. 2019 (arXiv 1909.08593), the second maximum-entropy
    RL (Ziebart 2010; Haarnoja et al. 2018, arXiv 1801.01290), whose mean is the entropy. `logprobs`
    are those of the policy that sampled. Without a critic, a rollout's reward is the sum of these,
    as in TRL's RLOO.
    """
    found = [-entropy_coefficient * ours for ours in logprobs]
    if reference_logprobs is not None:
        pairs = zip(logprobs, reference_logprobs, strict=True)
        for t, (ours, theirs) in enumerate(pairs):
            found[t] -= kl_coefficient * (ours - theirs)
    found[-1] += reward
    return found


def whiten(advantages: Sequence[Sequence[float]]) -> list[list[float]]:
    """Advantages of all tokens of a batch with mean 0 and standard deviation 1, as PPO wants them
    (Andrychowicz et al. 2021, arXiv 2006.05990); exactly 0 where all are equal."""
    flat = [a for row in advantages for a in row]
    spread = _std(flat)
    centered = iter(_centered(flat))
    return [[next(centered) / (spread + 1e-8) for _ in row] for row in advantages]


ESTIMATORS: Mapping[str, Estimator] = {
    "reward": reward,
    "reinforce": reinforce,
    "rloo": rloo,
    "grpo": grpo,
    "dr_grpo": dr_grpo,
    "reinforce_plus_plus": reinforce_plus_plus,
}

# estimators that divide: (the same without it, what they divide by)
_DIVIDED: Mapping[str, tuple[str, Scale]] = {
    "grpo": ("dr_grpo", "group"),
    "reinforce_plus_plus": ("dr_grpo", "batch"),
}
