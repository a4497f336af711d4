"""What one update minimises, on packed tensors of the N tokens that carry loss.

    loss = sum over tokens of w * (policy term of `policy_loss`) + beta * KL - alpha * entropy

w comes from `token_weights` and counts all rollouts of the update BEFORE filtering: what is
filtered out has advantage 0, so neither filtering nor the micro-batch size changes the gradient.
`rows` says which sequence a token belongs to; all tokens of a sequence stand in one batch. Nothing
here is padded, so nothing is masked.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from forethought.training.algorithms import Aggregation, Objective

KlEstimator = Literal["k1", "k2", "k3"]
ImportanceMode = Literal["token_truncate", "token_mask", "sequence_truncate", "sequence_mask"]

# A log-ratio is cut off here before its exponential. It is beyond every clip, and below where a
# float32 becomes infinite, whose gradient would be no number although the token is clipped.
_MAX_LOG_RATIO = 20.0
_TIE = 1e-5  # nats; entropies that are equal but for rounding are this close


def token_weights(aggregation: Aggregation, lengths: Sequence[int], max_tokens: int) -> list[float]:
    """The weight w of each rollout's tokens, from the tokens sampled in every rollout of an update.

    - token_mean: 1 / sum of lengths; every token weighs the same (DAPO, arXiv 2503.14476).
    - sequence_mean: 1 / (length * N); the mean over each of N rollouts, then over rollouts (GRPO,
      arXiv 2402.03300). A token of a long rollout weighs less, so long wrong ones are punished
      less.
    - constant: 1 / (N * max_tokens), without that bias (Dr. GRPO, arXiv 2503.20783).
    """
    if not lengths:  # a part of a batch that has fewer groups than parts
        return []
    if aggregation == "sequence_mean":
        return [1.0 / (max(1, length) * len(lengths)) for length in lengths]
    if aggregation == "constant":
        return [1.0 / (len(lengths) * max_tokens)] * len(lengths)
    return [1.0 / max(1, sum(lengths))] * len(lengths)


@dataclass(frozen=True, slots=True)
class PolicyLoss:
    """`loss` () carries the gradient; how many tokens were held back from below and from above."""

    loss: Tensor
    low_clipped: Tensor
    high_clipped: Tensor


def policy_loss(
    objective: Objective,
    logprobs: Tensor,
    old_logprobs: Tensor,
    advantages: Tensor,
    weights: Tensor,
    rows: Tensor,
    *,
    epsilon: float,
    epsilon_high: float,
    delta: float | None = None,
) -> PolicyLoss:
    """The policy term, summed over tokens. All tensors (N,); rows int64; old_logprobs are those of
    the policy that sampled, without gradient. With A the advantage and ratio = pi / pi_old:

    - policy_gradient: -w A log pi (Williams 1992). Right only where pi is pi_old.
    - clip: -w min(ratio A, clip(ratio, 1 - epsilon, 1 + epsilon_high) A) (PPO, arXiv 1707.06347).
      A token that has moved beyond the bound, in the direction of its advantage, has no gradient.
      A token moved against it still has all of it; `delta` bounds the ratio there too (two-sided
      clipping, INTELLECT-2, arXiv 2505.07291; dual-clip PPO, arXiv 1912.09729).
    - sequence_clip: the same with one ratio a sequence, the geometric mean of its tokens' ratios
      (GSPO, arXiv 2507.18071): a whole sequence is kept or held back.
    - cispo: -w min(ratio, epsilon_high) A log pi, the ratio without gradient (MiniMax-M1, arXiv
      2506.13585). Every token keeps a gradient; only its weight is bounded.

    Where pi is pi_old all four have the gradient of the first. Clipped tokens are counted as TRL
    does: below with A < 0, above with A > 0.
    """
    none = torch.zeros((), dtype=torch.int64, device=logprobs.device)
    if objective == "policy_gradient":
        return PolicyLoss(-(weights * advantages * logprobs).sum(), none, none)
    log_ratio = (logprobs - old_logprobs).clamp(max=_MAX_LOG_RATIO)
    if objective == "cispo":
        ratio = log_ratio.detach().exp()
        loss = -(weights * ratio.clamp(max=epsilon_high) * advantages * logprobs).sum()
        return PolicyLoss(loss, none, ((ratio > epsilon_high) & (advantages > 0)).sum())
    if objective == "sequence_clip":
        log_ratio = _of_sequence(log_ratio, rows, mean=True)
    ratio = log_ratio.exp()
    clipped = ratio.clamp(1 - epsilon, 1 + epsilon_high)
    unclipped = ratio if delta is None else ratio.clamp(max=delta)
    gain = torch.minimum(unclipped * advantages, clipped * advantages)
    return PolicyLoss(
        loss=-(weights * gain).sum(),
        low_clipped=((ratio < 1 - epsilon) & (advantages < 0)).sum(),
        high_clipped=((ratio > 1 + epsilon_high) & (advantages > 0)).sum(),
    )


def _of_sequence(values: Tensor, rows: Tensor, *, mean: bool) -> Tensor:
    """At every token (N,) the sum, or the mean, of `values` over the tokens of its sequence.

    index_add and index_select, not values[rows]: their gradients add up in one fixed order.
    """
    count = int(rows.max()) + 1 if len(rows) else 0
    totals = values.new_zeros(count).index_add(0, rows, values)
    if mean:
        lengths = values.new_zeros(count).index_add(0, rows, torch.ones_like(values))
        totals = totals / lengths.clamp(min=1)
    return totals.index_select(0, rows)


# --- the reference policy ---


def kl_penalty(
    estimator: KlEstimator,
    logprobs: Tensor,
    reference_logprobs: Tensor,
    weights: Tensor,
    old_logprobs: Tensor | None = None,
) -> Tensor:
    """sum(w * k), k an estimate of KL(pi || ref) from a token drawn from pi (Schulman 2020,
    "Approximating KL divergence"). All tensors (N,); d = log pi - log ref.

    - k1 = d: unbiased, of either sign. As a loss it is useless: the mean of its gradient is 0.
    - k2 = d^2 / 2: biased, >= 0. The mean of its gradient is that of KL(pi || ref).
    - k3 = exp(-d) - 1 + d: unbiased, >= 0. The mean of its gradient is that of KL(ref || pi).

    These means are over tokens of pi itself (Tang and Munos 2025, arXiv 2506.09477; Liu et al.
    2025, arXiv 2510.01555); k1 belongs into the reward (`token_rewards`). With `old_logprobs` k is
    multiplied by the ratio pi / pi_old and its gradient, which makes the mean gradient of k1 and k3
    that of KL(pi || ref), on used rollouts as well (DeepSeek-V3.2, arXiv 2512.02556; TRL's
    use_bias_correction_kl).
    """
    d = logprobs - reference_logprobs
    if estimator == "k1":
        k = d
    elif estimator == "k2":
        k = d.square() / 2
    else:
        k = torch.expm1(-d) + d
    if old_logprobs is not None:
        k = k * (logprobs - old_logprobs).clamp(max=_MAX_LOG_RATIO).exp()
    return (weights * k).sum()


# --- entropy ---


def entropy_bonus(entropies: Tensor, weights: Tensor) -> Tensor:
    """sum(w * H), H (N,) the entropy in nats of the distribution each token was drawn from, with
    gradient. The loss subtracts it times a coefficient (Williams and Peng 1991; Mnih et al. 2016,
    arXiv 1602.01783). TRL takes the mean over tokens whatever the loss takes.

    It sees one token ahead. Maximum-entropy RL, which also values the entropy to come, puts
    -alpha log pi into the reward: `token_rewards`.
    """
    return (weights * entropies).sum()


def entropy_threshold(entropies: Sequence[float], top_quantile: float) -> float:
    """The least entropy among the `top_quantile` most uncertain tokens, of which at least one.

    "Beyond the 80/20 rule" (Wang et al. 2025, arXiv 2506.01939): only the 20% of tokens at which
    reasoning forks carry policy gradient; all others have advantage 0, and w stays as it is. Of a
    whole update, not of a micro-batch, and 1 + floor(top_quantile * (n - 1)) tokens reach it, as
    with TRL's top_entropy_quantile. A hair below the least one: the first tokens of siblings have
    one entropy, and rounding must not part them.
    """
    count = 1 + math.floor(top_quantile * (len(entropies) - 1) + 1e-9)
    return sorted(entropies)[-count] - _TIE


# --- a sampler that is not quite the policy ---


def importance_weights(
    mode: ImportanceMode,
    logprobs: Tensor,
    sampler_logprobs: Tensor,
    rows: Tensor,
    cap: float,
    floor: float | None = None,
) -> Tensor:
    """What w is multiplied by (N,), without gradient: ratio = pi / pi_sampler, kept in bounds.

    `logprobs` are the learner's when the rollouts were new. Modes have TRL's names:

    - token_truncate: min(ratio, cap), and at least floor (TIS; Ionides 2008; for RL Yao et al.
      2025, "Your efficient RL framework secretly brings you off-policy RL training").
    - token_mask: 0 where the ratio is out of [floor, cap] (MIS; IcePop, arXiv 2510.18855).
    - sequence_truncate, sequence_mask: one ratio a sequence, the product of its tokens', which is
      unbiased but spreads with length (Liu et al. 2025, "When speed kills stability").
    """
    log_ratio = logprobs.detach() - sampler_logprobs
    if mode.startswith("sequence"):
        log_ratio = _of_sequence(log_ratio, rows, mean=False)
    ratio = log_ratio.exp()
    if mode.endswith("truncate"):
        return ratio.clamp(min=floor, max=cap)
    outside = ratio > cap
    if floor is not None:
        outside = outside | (ratio < floor)
    return ratio.masked_fill(outside, 0.0)


# --- the critic ---


def value_loss(
    values: Tensor, old_values: Tensor, returns: Tensor, weights: Tensor, clip: float | None
) -> Tensor:
    """sum(w * max((V - R)^2, (clip(V, V_old - c, V_old + c) - R)^2) / 2), all tensors (N,).

    The clipped value loss of PPO's authors (openai/baselines, ppo2), as in TRL's and verl's PPO: a
    value that has moved by more than c towards its return R has no gradient. None never clips.
    """
    losses = (values - returns).square()
    if clip is not None:
        bounded = old_values + (values - old_values).clamp(-clip, clip)
        losses = torch.maximum(losses, (bounded - returns).square())
    return (weights * losses).sum() / 2
