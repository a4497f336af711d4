"""Every loss on packed tokens against a plain one on padded tables, and what its paper says."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, get_args

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from forethought.schema import RlRecipe
from forethought.training.advantages import ESTIMATORS
from forethought.training.algorithms import ALGORITHMS, Aggregation, Objective
from forethought.training.losses import (
    ImportanceMode,
    KlEstimator,
    entropy_bonus,
    entropy_threshold,
    importance_weights,
    kl_penalty,
    policy_loss,
    token_weights,
    value_loss,
)

OBJECTIVES: tuple[Objective, ...] = get_args(Objective)
AGGREGATIONS: tuple[Aggregation, ...] = get_args(Aggregation)
MAX_TOKENS = 9


@dataclass(frozen=True)
class Sample:
    """A few sequences as padded tables: (B, T), and (B,) advantages."""

    logprobs: Tensor
    old: Tensor
    advantages: Tensor
    lengths: list[int]

    def packed(self, table: Tensor) -> Tensor:
        return torch.cat([table[i, :n] for i, n in enumerate(self.lengths)])

    def each(self, values: Sequence[float]) -> Tensor:
        """A value a sequence, at each of its tokens."""
        pairs = zip(values, self.lengths, strict=True)
        return torch.tensor([v for v, n in pairs for _ in range(n)], dtype=torch.float64)

    def rows(self) -> Tensor:
        return self.each(list(range(len(self.lengths)))).long()


def sample(lengths: list[int], seed: int, spread: float = 0.5) -> Sample:
    generator = torch.Generator().manual_seed(seed)
    shape = (len(lengths), max(lengths))

    def normal(*size: int) -> Tensor:
        return torch.randn(*size, generator=generator, dtype=torch.float64)

    logprobs = -normal(*shape).abs()
    old = logprobs + spread * normal(*shape)
    return Sample(logprobs.requires_grad_(), old, normal(len(lengths)), lengths)


def at_most(value: Tensor, bound: float) -> Tensor:
    return value if float(value.detach()) <= bound else 0 * value + bound


def at_least(value: Tensor, bound: float) -> Tensor:
    return value if float(value.detach()) >= bound else 0 * value + bound


def padded_loss(
    s: Sample,
    objective: str,
    aggregation: str,
    epsilon: float,
    epsilon_high: float,
    delta: float | None,
) -> Tensor:
    """Sequence by sequence and token by token, as in the papers."""
    per_token = []
    for i, length in enumerate(s.lengths):
        advantage, terms = s.advantages[i], []
        log_ratios = [s.logprobs[i, t] - s.old[i, t] for t in range(length)]
        for t in range(length):
            if objective == "policy_gradient":
                terms.append(-advantage * s.logprobs[i, t])
                continue
            mean = sum(log_ratios, torch.zeros(())) / length
            ratio = (mean if objective == "sequence_clip" else log_ratios[t]).exp()
            if objective == "cispo":
                weight = min(float(ratio.detach()), epsilon_high)
                terms.append(-weight * advantage * s.logprobs[i, t])
                continue
            clipped = at_most(at_least(ratio, 1 - epsilon), 1 + epsilon_high)
            if delta is not None:
                ratio = at_most(ratio, delta)
            terms.append(-torch.minimum(ratio * advantage, clipped * advantage))
        per_token.append(terms)
    if aggregation == "token_mean":
        return torch.stack([x for terms in per_token for x in terms]).mean()
    if aggregation == "sequence_mean":
        return torch.stack([torch.stack(terms).mean() for terms in per_token]).mean()
    everyone = torch.stack([x for terms in per_token for x in terms])
    return everyone.sum() / (len(s.lengths) * MAX_TOKENS)


def our_loss(
    s: Sample,
    objective: Objective,
    aggregation: Aggregation,
    epsilon: float = 0.2,
    epsilon_high: float = 0.2,
    delta: float | None = None,
) -> Any:
    return policy_loss(
        objective,
        s.packed(s.logprobs),
        s.packed(s.old),
        s.each(s.advantages.tolist()),
        s.each(token_weights(aggregation, s.lengths, MAX_TOKENS)),
        s.rows(),
        epsilon=epsilon,
        epsilon_high=epsilon_high,
        delta=delta,
    )


def gradient(loss: Tensor, of: Tensor) -> Tensor:
    found: Tensor = torch.autograd.grad(loss, of)[0]
    return found


LENGTHS = st.lists(st.integers(1, MAX_TOKENS), min_size=1, max_size=6)
SEEDS = st.integers(0, 10**6)


@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize("aggregation", AGGREGATIONS)
@settings(max_examples=15)
@given(LENGTHS, SEEDS, st.sampled_from([None, 1.3, 4.0]), st.sampled_from([3e-4, 0.2]))
def test_packed_tokens_have_the_loss_and_gradient_of_padded_ones(
    objective: Objective,
    aggregation: Aggregation,
    lengths: list[int],
    seed: int,
    delta: float | None,
    epsilon: float,
) -> None:
    s = sample(lengths, seed)
    ours = our_loss(s, objective, aggregation, epsilon, 1.4 * epsilon, delta).loss
    theirs = padded_loss(s, objective, aggregation, epsilon, 1.4 * epsilon, delta)
    assert float(ours.detach()) == pytest.approx(float(theirs.detach()), abs=1e-12)
    assert torch.allclose(
        gradient(ours, s.logprobs), gradient(theirs, s.logprobs), rtol=0, atol=1e-12
    )


@settings(max_examples=20)
@given(LENGTHS, SEEDS)
def test_on_fresh_rollouts_every_objective_is_the_policy_gradient(
    lengths: list[int], seed: int
) -> None:
    s = sample(lengths, seed, spread=0.0)
    for aggregation in AGGREGATIONS:
        plain, *others = (
            our_loss(s, objective, aggregation, epsilon_high=5.0) for objective in OBJECTIVES
        )
        expected = gradient(plain.loss, s.logprobs)
        for other in others:
            found = gradient(other.loss, s.logprobs)
            assert torch.allclose(found, expected, rtol=0, atol=1e-12)
            assert int(other.low_clipped) == int(other.high_clipped) == 0


@pytest.mark.parametrize("objective", OBJECTIVES)
@settings(max_examples=15)
@given(st.lists(st.integers(1, 9), min_size=2, max_size=6), SEEDS)
def test_micro_batches_of_whole_sequences_add_up(
    objective: Objective, lengths: list[int], seed: int
) -> None:
    s = sample(lengths, seed)
    whole = our_loss(s, objective, "token_mean")
    weights, rows = s.each(token_weights("token_mean", lengths, MAX_TOKENS)), s.rows()
    columns = (s.packed(s.logprobs), s.packed(s.old), s.each(s.advantages.tolist()), weights, rows)
    low = high = 0
    total = torch.zeros((), dtype=torch.float64)
    for part in (rows % 2 == 0, rows % 2 == 1):  # interleaved: numbers of rows have gaps
        found = policy_loss(
            objective, *(c[part] for c in columns), epsilon=0.2, epsilon_high=0.2, delta=None
        )
        total = total + found.loss
        low, high = low + int(found.low_clipped), high + int(found.high_clipped)
    assert float(total.detach()) == pytest.approx(float(whole.loss.detach()), abs=1e-12)
    assert (low, high) == (int(whole.low_clipped), int(whole.high_clipped))


def by_hand(
    objective: Objective,
    ratios: Sequence[float],
    advantages: Sequence[float],
    delta: float | None = None,
    **epsilons: float,
) -> tuple[Tensor, Any]:
    """One sequence of tokens with these ratios, each of weight 1 and log pi = -1."""
    logprobs = torch.full((len(ratios),), -1.0, dtype=torch.float64, requires_grad=True)
    found = policy_loss(
        objective,
        logprobs,
        logprobs.detach() - torch.tensor(ratios, dtype=torch.float64).log(),
        torch.tensor(advantages, dtype=torch.float64),
        torch.ones(len(ratios), dtype=torch.float64),
        torch.zeros(len(ratios), dtype=torch.int64),
        delta=delta,
        **({"epsilon": 0.2, "epsilon_high": 0.2} | epsilons),
    )
    return gradient(found.loss, logprobs), found


def test_the_clip_by_hand() -> None:
    slope, found = by_hand("clip", [1.5, 0.5, 1.5, 0.5, 1.1], [2.0, 2.0, -2.0, -2.0, 2.0])
    # up too far; down against the advantage; up against it; down too far; within
    assert slope.tolist() == pytest.approx([0.0, -1.0, 3.0, 0.0, -2.2])
    assert float(found.loss.detach()) == pytest.approx(-2.4 - 1.0 + 3.0 + 1.6 - 2.2)
    assert (int(found.low_clipped), int(found.high_clipped)) == (1, 1)


def test_clipping_higher_lets_likely_tokens_rise_further() -> None:
    slope, found = by_hand("clip", [1.25, 1.25], [1.0, -1.0], epsilon_high=0.28)
    assert slope.tolist() == pytest.approx([-1.25, 1.25])
    assert int(found.high_clipped) == 0
    assert int(by_hand("clip", [1.25, 1.25], [1.0, -1.0])[1].high_clipped) == 1


def test_delta_bounds_what_the_clip_does_not() -> None:
    slope, found = by_hand("clip", [9.0, 9.0], [-1.0, 1.0], delta=4.0)
    assert slope.tolist() == [0.0, 0.0]
    assert float(found.loss.detach()) == pytest.approx(4.0 - 1.2)
    assert by_hand("clip", [9.0, 9.0], [-1.0, 1.0])[0].tolist() == pytest.approx([9.0, 0.0])


def test_a_sequence_is_held_back_whole() -> None:
    # the geometric mean of 2 and 1 / 2 is 1: no token is clipped, each has half of the gradient
    slope, found = by_hand("sequence_clip", [2.0, 0.5], [1.0, 1.0])
    assert slope.tolist() == pytest.approx([-1.0, -1.0])
    assert int(found.high_clipped) == 0
    slope, found = by_hand("sequence_clip", [2.0, 0.8], [1.0, 1.0])  # 1.26
    assert slope.tolist() == [0.0, 0.0]
    assert float(found.loss.detach()) == pytest.approx(-2.4)
    assert int(found.high_clipped) == 2


def test_cispo_bounds_the_weight_and_keeps_the_gradient() -> None:
    slope, found = by_hand("cispo", [9.0, 0.01, 9.0], [1.0, 1.0, -1.0], epsilon_high=5.0)
    assert slope.tolist() == pytest.approx([-5.0, -0.01, 5.0])
    assert float(found.loss.detach()) == pytest.approx(5.0 + 0.01 - 5.0)
    assert (int(found.low_clipped), int(found.high_clipped)) == (0, 1)


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_no_ratio_makes_a_gradient_that_is_no_number(objective: Objective) -> None:
    logprobs = torch.tensor([-1.0, -1.0, -90.0, 0.0], requires_grad=True)
    old = torch.tensor([-500.0, -500.0, -0.1, -700.0])
    advantages, ones = torch.tensor([1.0, -1.0, -1.0, 0.0]), torch.ones(4)
    found = policy_loss(
        objective,
        logprobs,
        old,
        advantages,
        ones,
        torch.arange(4),
        epsilon=0.2,
        epsilon_high=0.2,
        delta=None,
    )
    assert found.loss.isfinite() and gradient(found.loss, logprobs).isfinite().all()


def test_no_tokens_are_no_loss() -> None:
    empty = torch.zeros(0, requires_grad=True)
    for objective in OBJECTIVES:
        found = policy_loss(
            objective,
            empty,
            empty,
            empty,
            empty,
            torch.zeros(0, dtype=torch.int64),
            epsilon=0.2,
            epsilon_high=0.2,
        )
        assert float(found.loss.detach()) == 0.0


@given(LENGTHS, st.integers(1, 100))
def test_token_weights_are_the_means_they_are_named_after(lengths: list[int], most: int) -> None:
    by_token, by_sequence, constant = (token_weights(a, lengths, most) for a in AGGREGATIONS)
    assert by_token == [1 / sum(lengths)] * len(lengths)
    assert by_sequence == pytest.approx([1 / n / len(lengths) for n in lengths])
    assert constant == [1 / (len(lengths) * most)] * len(lengths)


# --- the reference policy ---

LOGITS = torch.tensor([0.3, -1.0, 0.8, 0.1], dtype=torch.float64)
REFERENCE = torch.tensor([-0.5, 0.4, 0.2, 1.0], dtype=torch.float64).log_softmax(0)
OLD = torch.tensor([0.1, 0.0, 0.5, -0.9], dtype=torch.float64).log_softmax(0)


def mean_gradient(estimator: KlEstimator, drawn_from: Tensor | None) -> Tensor:
    """Of the penalty, over all four tokens by their probability, with respect to the logits.

    `drawn_from`: log-probabilities of an older policy that sampled, None for the policy itself
    without the ratio.
    """
    logits = LOGITS.clone().requires_grad_()
    logprobs = logits.log_softmax(0)
    chances = (logprobs if drawn_from is None else drawn_from).exp().detach()
    return gradient(kl_penalty(estimator, logprobs, REFERENCE, chances, drawn_from), logits)


def true_gradient(divergence: Callable[[Tensor], Tensor]) -> Tensor:
    logits = LOGITS.clone().requires_grad_()
    return gradient(divergence(logits.log_softmax(0)), logits)


def reverse(logprobs: Tensor) -> Tensor:
    """KL(pi || ref)."""
    return (logprobs.exp() * (logprobs - REFERENCE)).sum()


def forward(logprobs: Tensor) -> Tensor:
    """KL(ref || pi)."""
    return (REFERENCE.exp() * (REFERENCE - logprobs)).sum()


def test_each_estimate_pulls_where_its_docstring_says() -> None:
    nothing = torch.zeros_like(LOGITS)
    assert torch.allclose(mean_gradient("k1", None), nothing, atol=1e-12)
    assert torch.allclose(mean_gradient("k2", None), true_gradient(reverse), atol=1e-12)
    assert torch.allclose(mean_gradient("k3", None), true_gradient(forward), atol=1e-12)
    assert not torch.allclose(true_gradient(forward), true_gradient(reverse), atol=0.01)


@pytest.mark.parametrize("estimator", ["k1", "k3"])
@pytest.mark.parametrize("old", [LOGITS.log_softmax(0), OLD], ids=["fresh", "used"])
def test_the_ratio_makes_k1_and_k3_pull_to_the_reference(
    estimator: KlEstimator, old: Tensor
) -> None:
    assert torch.allclose(mean_gradient(estimator, old), true_gradient(reverse), atol=1e-12)


def test_k1_and_k3_are_unbiased_and_k2_is_not() -> None:
    logprobs = LOGITS.log_softmax(0)
    k1, k2, k3 = (
        float(kl_penalty(e, logprobs, REFERENCE, logprobs.exp())) for e in get_args(KlEstimator)
    )
    assert k1 == pytest.approx(float(reverse(logprobs)))
    assert k3 == pytest.approx(float(reverse(logprobs)))
    assert abs(k2 - k1) > 0.01


def test_estimates_by_hand() -> None:
    ours, theirs, weight = (torch.tensor([x], dtype=torch.float64) for x in (-1.0, -3.0, 0.5))
    assert float(kl_penalty("k1", ours, theirs, weight)) == pytest.approx(1.0)
    assert float(kl_penalty("k2", ours, theirs, weight)) == pytest.approx(1.0)
    assert float(kl_penalty("k3", ours, theirs, weight)) == pytest.approx((math.exp(-2) + 1) / 2)
    old = ours - math.log(3)
    assert float(kl_penalty("k1", ours, theirs, weight, old)) == pytest.approx(3.0)


@given(st.lists(st.tuples(st.floats(-8, 0), st.floats(-8, 0)), min_size=1, max_size=10))
def test_k2_and_k3_are_never_negative(pairs: list[tuple[float, float]]) -> None:
    ours, theirs = (torch.tensor(column) for column in zip(*pairs, strict=True))
    for estimator in ("k2", "k3"):
        assert float(kl_penalty(estimator, ours, theirs, torch.ones_like(ours))) >= -1e-7
        assert float(kl_penalty(estimator, ours, ours, torch.ones_like(ours))) == 0.0


# --- entropy ---


def test_the_bonus_is_the_weighted_entropy() -> None:
    entropies = torch.tensor([1.0, 3.0], requires_grad=True)
    bonus = entropy_bonus(entropies, torch.tensor([0.5, 0.25]))
    assert float(bonus.detach()) == pytest.approx(1.25)
    assert gradient(bonus, entropies).tolist() == [0.5, 0.25]


@given(st.lists(st.integers(0, 99), min_size=1, max_size=40), st.integers(1, 100))
def test_the_threshold_leaves_the_tokens_that_a_quantile_leaves(
    entropies: list[int], percent: int
) -> None:
    values = torch.tensor(entropies, dtype=torch.float64)
    expected = values >= values.quantile(1 - percent / 100) - 1e-9
    threshold = entropy_threshold(entropies, percent / 100)
    assert [e >= threshold for e in entropies] == expected.tolist()


def test_the_threshold_by_hand() -> None:
    entropies = [0.1, 2.0, 0.0, 1.5, 0.2, 0.3, 0.0, 0.4, 0.1, 0.9, 0.2]
    assert entropy_threshold(entropies, 0.2) == pytest.approx(0.9, abs=2e-5)  # 3 of 11
    assert entropy_threshold(entropies, 1.0) == pytest.approx(0.0, abs=2e-5)
    assert entropy_threshold([0.7], 0.01) == pytest.approx(0.7, abs=2e-5)


def test_rounding_does_not_part_equal_entropies() -> None:
    siblings = [2.0, 2.0 - 2e-6, 2.0 + 2e-6, 2.0]
    threshold = entropy_threshold([*siblings, 1.0, 0.5], 0.3)  # 2 of 6
    assert all(entropy >= threshold for entropy in siblings) and threshold > 1.9


# --- a sampler that is not quite the policy ---


def padded_importance(
    s: Sample, mode: ImportanceMode, cap: float, floor: float | None
) -> list[float]:
    found = []
    for i, length in enumerate(s.lengths):
        logs = [float((s.logprobs - s.old).detach()[i, t]) for t in range(length)]
        for t in range(length):
            ratio = math.exp(sum(logs) if mode.startswith("sequence") else logs[t])
            if mode.endswith("truncate"):
                found.append(max(min(ratio, cap), floor or 0.0))
            else:
                found.append(ratio if (floor or 0.0) <= ratio <= cap else 0.0)
    return found


@pytest.mark.parametrize("mode", get_args(ImportanceMode))
@settings(max_examples=20)
@given(LENGTHS, SEEDS, st.sampled_from([None, 0.5]))
def test_importance_weights_are_the_ratio_within_bounds(
    mode: ImportanceMode, lengths: list[int], seed: int, floor: float | None
) -> None:
    s = sample(lengths, seed)
    found = importance_weights(
        mode, s.packed(s.logprobs), s.packed(s.old), s.rows(), cap=2.0, floor=floor
    )
    assert not found.requires_grad
    assert found.tolist() == pytest.approx(padded_importance(s, mode, 2.0, floor))
    same = importance_weights(mode, s.packed(s.old), s.packed(s.old), s.rows(), cap=2.0)
    assert same.tolist() == [1.0] * sum(lengths)


@pytest.mark.parametrize("mode", get_args(ImportanceMode))
def test_importance_weights_of_far_policies_are_numbers(mode: ImportanceMode) -> None:
    far = torch.tensor([0.0, -500.0]), torch.tensor([-500.0, 0.0])
    found = importance_weights(mode, *far, torch.tensor([0, 1]), cap=3.0)
    assert found.tolist() == [3.0 if mode.endswith("truncate") else 0.0, 0.0]


# --- the critic ---


def test_the_value_loss_by_hand() -> None:
    values = torch.tensor([2.0, 2.0, 0.9], requires_grad=True)
    old, returns = torch.tensor([1.0, 1.0, 1.0]), torch.tensor([3.0, 0.0, 2.0])
    weights = torch.full((3,), 0.5)
    plain = value_loss(values, old, returns, weights, None)
    assert float(plain.detach()) == pytest.approx(0.25 * (1 + 4 + 1.21))
    clipped = value_loss(values, old, returns, weights, 0.2)
    # towards its return beyond the bound: no gradient; away from it: all of it; within: all of it
    assert float(clipped.detach()) == pytest.approx(0.25 * (1.8**2 + 4 + 1.21))
    assert gradient(clipped, values).tolist() == pytest.approx([0.0, 1.0, -0.55])


# --- algorithms ---


@pytest.mark.parametrize("name", ALGORITHMS)
def test_an_algorithm_is_made_of_parts_that_exist(name: str) -> None:
    algorithm = ALGORITHMS[name]
    assert algorithm.advantages in ESTIMATORS
    assert algorithm.aggregation in AGGREGATIONS and algorithm.objective in OBJECTIVES
    assert algorithm.needs_critic == (algorithm.advantages == "reward")
    assert 0 < algorithm.epsilon <= algorithm.epsilon_high


def test_a_recipe_may_name_every_algorithm() -> None:
    assert set(get_args(RlRecipe.model_fields["estimator"].annotation)) == ALGORITHMS.keys()


def test_algorithms_have_the_numbers_of_their_papers() -> None:
    def clip(name: str) -> tuple[float, float]:
        return ALGORITHMS[name].epsilon, ALGORITHMS[name].epsilon_high

    assert clip("grpo") == clip("ppo") == (0.2, 0.2)
    assert clip("dapo") == (0.2, 0.28)
    assert clip("gspo") == (3e-4, 4e-4)
    assert ALGORITHMS["cispo"].epsilon_high == 5.0
