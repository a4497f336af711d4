"""The gradient of one update: kept rollouts packed into micro-batches, losses added up.

Everything is normalised over all rollouts of the update, those that were filtered out too, so
neither filtering nor the size of a micro-batch changes the gradient (without KL and entropy terms).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor
from transformers import PreTrainedModel

from forethought.models.heads import Reading
from forethought.models.lora import without_adapter
from forethought.models.precision import compute_in, keep_casts
from forethought.models.threads import fit_threads
from forethought.schema import RlRecipe
from forethought.training.algorithms import ALGORITHMS
from forethought.training.batch import Batch, flat_step, pack_batches, read_batch
from forethought.training.critic import critic_loss
from forethought.training.faults import LossNotFinite, fault_of_loss
from forethought.training.held import Scores, is_off_policy
from forethought.training.learner import Learner
from forethought.training.loop import Metrics
from forethought.training.losses import (
    PolicyLoss,
    entropy_bonus,
    importance_weights,
    kl_penalty,
    policy_loss,
    token_weights,
)
from forethought.training.strips import Row
from forethought.types import Rollout

_INT8_CAP = 2.0  # as the paper of truncated importance sampling has it


def backward(
    learner: Learner,
    rollouts: Sequence[Rollout],
    kept: Sequence[int],
    scores: Sequence[Scores] | None = None,
) -> Metrics:
    """Add up the gradient of the rollouts numbered `kept`; `scores` are of all `rollouts`.

    Raises LossNotFinite at the first micro-batch of which that is true.
    """
    weights = token_weights(
        ALGORITHMS[learner.recipe.estimator].aggregation,
        [rollout.num_sampled for rollout in rollouts],
        learner.recipe.max_tokens,
    )
    rows = [_row(rollouts[i], weights[i], scores[i] if scores else None) for i in kept]
    sums: dict[str, float] = defaultdict(float)
    with keep_casts(str(learner.policy.device), learner.dtype):
        for number, batch in enumerate(batches_of(learner, rows)):
            reading = read(
                learner, learner.policy, batch, wants_entropy=_wants_entropy(learner.recipe)
            )
            loss = _loss(learner, batch, reading, sums)
            sums["loss"] += loss.item()
            if learner.critic is not None:
                assert scores is not None, "the critic has looked at what is learned from"
                own = [scores[i] for i in kept]
                miss = critic_loss(learner.critic, reading.hidden, batch, own)
                loss = loss + miss
                sums["value"] += miss.item()
            if fault := fault_of_loss(loss, reading.logprobs, batch, number):
                raise LossNotFinite(fault)
            loss.backward()  # type: ignore[no-untyped-call]
            gap = (reading.logprobs.detach() - batch.sampler_logprobs).abs().sum()
            sums["gap"] += gap.item()
            sums["learned"] += len(batch.targets)
            sums["cells"] += batch.input_ids.numel()
    metrics = _metrics(learner.recipe, sums)
    return metrics if learner.critic is None else metrics | {"loss/value": float(sums["value"])}


def _loss(learner: Learner, batch: Batch, reading: Reading, sums: dict[str, float]) -> Tensor:
    """The loss of one micro-batch; what it consists of is added to `sums`."""
    recipe = learner.recipe
    surrogate = _surrogate(recipe, batch, reading, sums)
    loss = surrogate.loss
    sums["clipped_low"] += int(surrogate.low_clipped)
    sums["clipped_high"] += int(surrogate.high_clipped)
    if learner.reference is not None and recipe.kl_in == "loss":
        with torch.no_grad(), without_adapter(learner.reference) as model:
            reference = read(learner, model, batch).logprobs
        penalty = kl_penalty(
            recipe.kl_estimator,
            reading.logprobs,
            reference,
            batch.weights,
            _old_logprobs(recipe, batch, reading) if recipe.kl_correction else None,
        )
        loss = loss + recipe.kl_coefficient * penalty
        sums["kl"] += penalty.item()
    if reading.entropies is not None:
        bonus = entropy_bonus(reading.entropies, batch.weights)
        loss = loss - recipe.entropy_coefficient * bonus
        sums["entropy"] += bonus.item()
    return loss


def _surrogate(
    recipe: RlRecipe, batch: Batch, reading: Reading, sums: dict[str, float]
) -> PolicyLoss:
    """The part of the loss whose gradient raises what paid."""
    weights, algorithm = batch.weights, ALGORITHMS[recipe.estimator]
    old_logprobs = _old_logprobs(recipe, batch, reading)
    cap, floor = importance_cap(recipe), recipe.importance_floor
    if cap is not None:
        ratio = importance_weights(
            recipe.importance_mode, old_logprobs, batch.sampler_logprobs, batch.rows, cap, floor
        )
        weights = weights * ratio
        sums["capped"] += int((ratio >= cap).sum()) + int((ratio <= (floor or 0)).sum())
    return policy_loss(
        algorithm.objective if is_off_policy(recipe) else "policy_gradient",
        reading.logprobs,
        old_logprobs,
        batch.advantages,
        weights,
        batch.rows,
        epsilon=algorithm.epsilon if recipe.epsilon is None else recipe.epsilon,
        epsilon_high=algorithm.epsilon_high if recipe.epsilon_high is None else recipe.epsilon_high,
        delta=recipe.delta,
    )


def _old_logprobs(recipe: RlRecipe, batch: Batch, reading: Reading) -> Tensor:
    """log pi (N,) of the policy that the batch's rollouts were new to, without gradient."""
    return batch.old_logprobs if is_off_policy(recipe) else reading.logprobs.detach()


def _metrics(recipe: RlRecipe, sums: dict[str, float]) -> Metrics:
    count = max(1, sums["learned"])
    metrics = {
        "loss/policy": float(sums["loss"]),
        "policy/sampler_gap": sums["gap"] / count,
        "total/learned_tokens": float(sums["learned"]),
        "total/computed_tokens": float(sums["cells"]),
    }
    if importance_cap(recipe) is not None:
        metrics["policy/capped_frac"] = sums["capped"] / count
    if is_off_policy(recipe):
        metrics["policy/clipped_low_frac"] = sums["clipped_low"] / count
        metrics["policy/clipped_high_frac"] = sums["clipped_high"] / count
    if recipe.kl_coefficient and recipe.kl_in == "loss":
        metrics["policy/kl"] = float(sums["kl"])
    if _wants_entropy(recipe):
        metrics["policy/token_entropy"] = float(sums["entropy"])
    return metrics


def importance_cap(recipe: RlRecipe) -> float | None:
    """The cap of a token's weight, None where sampler and policy count as one."""
    if recipe.importance_cap is None and recipe.rollout_dtype == "int8":
        return _INT8_CAP
    return recipe.importance_cap


def _wants_entropy(recipe: RlRecipe) -> bool:
    return recipe.entropy_coefficient > 0 and recipe.entropy_in == "loss"


def _row(rollout: Rollout, weight: float, scores: Scores | None) -> Row:
    assert rollout.advantage is not None, "advantages are assigned before the update"
    own = None if scores is None else scores.advantages
    return Row(
        token_ids=rollout.token_ids,
        weights=[weight if sampled else 0.0 for sampled in rollout.sampled_mask],
        advantage=rollout.advantage if own is None else own,
        sampler_logprobs=rollout.logprobs,
        old_logprobs=None if scores is None else scores.logprobs,
        num_prompt=rollout.sampled_mask.index(True),
    )


def batches_of(learner: Learner, rows: Sequence[Row]) -> Iterator[Batch]:
    """The rows as micro-batches, on as many threads as the machine has free."""
    for batch in pack_batches(
        rows,
        max_batch_tokens=learner.recipe.max_batch_tokens,
        pad_id=learner.tokenizer.pad_token_id,
        device=str(learner.policy.device),
        pairs_per_token=learner.pairs_per_token,
        flat_step=flat_step(learner.policy, learner.dtype),
    ):
        fit_threads()
        yield batch


def read(
    learner: Learner, model: PreTrainedModel, batch: Batch, *, wants_entropy: bool = False
) -> Reading:
    """What `model` says of the batch's targets, at the temperature of sampling."""
    with compute_in(str(model.device), learner.dtype):
        return read_batch(model, batch, learner.recipe.temperature, wants_entropy=wants_entropy)
