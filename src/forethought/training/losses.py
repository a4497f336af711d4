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

from torch import Tensor

from forethought.types import Rollout


def token_weights(estimator: str, rollouts: Sequence[Rollout], max_tokens: int) -> list[float]:
    """The weight w of each rollout's tokens (the same for all tokens of a rollout)."""
    if estimator == "grpo":
        return [1.0 / (max(1, r.num_sampled) * len(rollouts)) for r in rollouts]
    if estimator == "dr_grpo":
        return [1.0 / (len(rollouts) * max_tokens)] * len(rollouts)
    total = sum(r.num_sampled for r in rollouts)
    return [1.0 / total] * len(rollouts)


def policy_gradient_loss(logprobs: Tensor, advantages: Tensor, weights: Tensor) -> Tensor:
    """-sum(w * A * log pi); all arguments (N,), tokens that carry loss."""
    return -(weights * advantages * logprobs).sum()


def importance_weights(logprobs: Tensor, sampler_logprobs: Tensor, cap: float) -> Tensor:
    """min(pi / pi_sampler, cap) of every token (N,), without gradient: truncated importance
    sampling, for a sampler whose arithmetic is coarser than the learner's (Yao et al. 2025, "Your
    efficient RL framework secretly brings you off-policy RL training")."""
    return (logprobs.detach() - sampler_logprobs).exp().clamp(max=cap)


def kl_penalty(logprobs: Tensor, reference_logprobs: Tensor, weights: Tensor) -> Tensor:
    """sum(w * k3), k3 = exp(d) - d - 1, d = log ref - log pi (Schulman 2020): unbiased, >= 0."""
    difference = reference_logprobs - logprobs
    return (weights * (difference.exp() - difference - 1)).sum()
