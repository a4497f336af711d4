"""Policy-gradient loss, and how each estimator normalises it.

loss = -sum over rollouts i and tokens t of w_it * A_i * log pi(token_it), one update a batch, so
the policy is the sampler and no ratio is needed. What differs is w:

- grpo: 1 / (|y_i| * N): the mean over tokens of each of N rollouts, then the mean over rollouts
  (Shao et al. 2024); long wrong answers weigh less a token.
- dr_grpo: 1 / (N * max_tokens): a constant (Liu et al. 2025).
- rloo, reinforce: 1 / (tokens of the step): every token weighs the same (as DAPO's loss).

N and the token count are those of the whole step BEFORE filtering: what is filtered out has
advantage 0, so neither filtering nor the micro-batch size changes the gradient.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from forethought.types import Rollout


def token_weights(estimator: str, rollouts: Sequence[Rollout], max_tokens: int) -> list[float]:
    """The weight w of each rollout's tokens (the same for all tokens of a rollout)."""
    if not rollouts:  # a part of a batch that has fewer groups than parts
        return []
    if estimator == "grpo":
        return [1.0 / (max(1, r.num_sampled) * len(rollouts)) for r in rollouts]
    if estimator == "dr_grpo":
        return [1.0 / (len(rollouts) * max_tokens)] * len(rollouts)
    total = sum(r.num_sampled for r in rollouts)
    return [1.0 / total] * len(rollouts)


@dataclass(frozen=True, slots=True)
class PolicyLoss:
    """The summed loss, and how many tokens the clip took the gradient from at either end."""

    loss: Tensor
    low_clipped: Tensor
    high_clipped: Tensor


def policy_loss(
    objective: str,
    logprobs: Tensor,
    old_logprobs: Tensor,
    advantages: Tensor,
    weights: Tensor,
    rows: Tensor,
    *,
    epsilon: float = 0.2,
    epsilon_high: float = 0.2,
    delta: float | None = None,
) -> PolicyLoss:
    """-sum(w * A * log pi), or PPO's clipped ratio in its place; all tensors (N,)."""
    none = torch.zeros((), dtype=torch.int64, device=logprobs.device)
    if objective == "policy_gradient":
        return PolicyLoss(-(weights * advantages * logprobs).sum(), none, none)
    ratio = (logprobs - old_logprobs).exp()
    clipped = ratio.clamp(1 - epsilon, 1 + epsilon_high)
    if delta is not None:
        ratio = ratio.clamp(max=delta)
    gains = torch.minimum(ratio * advantages, clipped * advantages)
    low = ((ratio < 1 - epsilon) & (advantages < 0)).sum()
    high = ((ratio > 1 + epsilon_high) & (advantages > 0)).sum()
    return PolicyLoss(-(weights * gains).sum(), low, high)


def importance_weights(
    mode: str, logprobs: Tensor, sampler_logprobs: Tensor, rows: Tensor, cap: float
) -> Tensor:
    """min(pi / pi_sampler, cap) of every token (N,), without gradient: truncated importance
    sampling, for a sampler whose arithmetic is coarser than the learner's (Yao et al. 2025, "Your
    efficient RL framework secretly brings you off-policy RL training")."""
    return (logprobs.detach() - sampler_logprobs).exp().clamp(max=cap)


def kl_penalty(
    estimator: str, logprobs: Tensor, reference_logprobs: Tensor, weights: Tensor
) -> Tensor:
    """sum(w * k3), k3 = exp(d) - d - 1, d = log ref - log pi (Schulman 2020): unbiased, >= 0."""
    difference = reference_logprobs - logprobs
    return (weights * (difference.exp() - difference - 1)).sum()


def entropy_bonus(entropies: Tensor, weights: Tensor) -> Tensor:
    """sum(w * H), both (N,): the mean entropy of the tokens."""
    return (weights * entropies).sum()
