"""Reinforcement learning with a verifiable reward, one optimizer step a batch of rollouts.

Every step samples all its rollouts ahead in one engine call (preemptive sampling, DASH arXiv
2505.17218), drops those without advantage before any forward pass, and makes one update, so the
policy that samples is the policy that learns: plain policy gradient, no ratio and no clipping.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, cast

import torch
from jinja2 import TemplateError
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from forethought.errors import RecipeError
from forethought.evaluation.evaluate import evaluate
from forethought.grading.rewards import RewardPart, load_rewards
from forethought.grading.watch import GradeWatch
from forethought.models.load import LoadedModel, context_of, load_model
from forethought.models.precision import compute_in
from forethought.models.save import save_model
from forethought.models.threads import fit_threads
from forethought.run import Run
from forethought.sampling.cache import sliding_window
from forethought.sampling.decoder import has_lean_step
from forethought.sampling.local import LocalEngine
from forethought.sampling.products import Weights, can_multiply
from forethought.schema import RlRecipe
from forethought.tasks.base import load_task
from forethought.tasks.check import refuse_unsound
from forethought.training.batch import Batch, batch_logprobs, pack_batches, pairs_per_token
from forethought.training.checkpoint import settled_dtypes
from forethought.training.filters import filter_rollouts
from forethought.training.loop import Metrics, OnStep, run_steps
from forethought.training.losses import (
    importance_weights,
    kl_penalty,
    policy_gradient_loss,
    token_weights,
)
from forethought.training.rl_metrics import describe_rollouts, evaluation_metrics, transcript_rows
from forethought.training.rollouts import (
    StepGrades,
    assign_advantages,
    draw_examples,
    grade_rollouts,
    sample_rollouts,
)
from forethought.training.strips import Row
from forethought.training.update import Optimizers, apply_update, build_optimizers
from forethought.types import Rollout, Task

# To see whether completions fit, the longest of so many prompts are encoded.
_PROMPTS_LOOKED_AT, _PROMPTS_ENCODED = 10_000, 32
_INT8_CAP = 2.0  # as the paper of truncated importance sampling has it


@dataclass(frozen=True, slots=True, kw_only=True)
class Learner:
    """What the steps of a run share. `policy` holds fp32 master weights, `engine` samples."""

    recipe: RlRecipe
    task: Task
    eval_task: Task | None
    parts: tuple[RewardPart, ...]
    policy: PreTrainedModel
    reference: PreTrainedModel | None
    tokenizer: PreTrainedTokenizerBase
    engine: LocalEngine
    optimizers: Optimizers
    dtype: torch.dtype
    pairs_per_token: float = 0.0  # what siblings gain by sharing their prompt; 0 when they cannot
    watch: GradeWatch = field(default_factory=GradeWatch)
    eval_watch: GradeWatch = field(default_factory=GradeWatch)


def run_rl(recipe: RlRecipe, run: Run, on_step: OnStep | None = None) -> Metrics:
    """Train the recipe's model on its task and save `model/` in the run folder.

    Raises UserError before any model loads when the task or a reward function is wrong.
    """
    learner = build_learner(recipe, run)

    def step_function(step: int) -> Metrics:
        return train_step(learner, run, step)

    totals = run_steps(
        run,
        learner.policy,
        learner.optimizers,
        step_function,
        num_steps=recipe.num_steps,
        checkpoint_every=recipe.checkpoint_every,
        on_step=on_step,
        on_resume=lambda step: start_or_resume(learner, run, step),
    )
    save_model(learner.policy, learner.tokenizer, run.folder / "model")
    return totals


def check_rl(recipe: RlRecipe) -> tuple[Task, Task, tuple[RewardPart, ...]]:
    """Training task, held-out task and rewards, tried out. Raises UserError; loads no model."""
    task = load_task(recipe.task, split="train", seed=recipe.seed)
    if not recipe.allow_unsound_task:
        refuse_unsound(task, recipe.task)
    held_out = load_task(recipe.eval_task or recipe.task, split="test")
    samples = [task[0], task[min(1, len(task) - 1)]]
    parts = load_rewards(recipe.reward, max_tokens=recipe.max_tokens, examples=samples)
    return task, held_out, parts


def build_learner(recipe: RlRecipe, run: Run) -> Learner:
    """Check task and rewards, then load the policy, the sampler's copy of it, and the reference."""
    task, held_out, parts = check_rl(recipe)
    loaded = load_model(recipe.model, dtype="float32")
    policy: Any = loaded.model  # transformers' own annotations are in the way
    _check_context(loaded, task, recipe.max_tokens)
    dtypes = settled_dtypes(run, recipe.dtype, str(policy.device))
    engine = _build_engine(loaded, recipe, dtypes["sampling"])
    return Learner(
        recipe=recipe,
        task=task,
        eval_task=held_out if recipe.eval_problems else None,
        parts=parts,
        policy=policy.eval(),  # no dropout: the policy that learns is the one that samples
        reference=copy.deepcopy(policy).eval() if recipe.kl_coefficient else None,
        tokenizer=loaded.tokenizer,
        engine=engine,
        optimizers=build_optimizers(policy, recipe.optimizer),
        dtype=dtypes["training"],
        pairs_per_token=pairs_per_token(policy),
        watch=GradeWatch(task.name),
        eval_watch=GradeWatch(held_out.name),
    )


def _build_engine(loaded: LoadedModel, recipe: RlRecipe, dtype: torch.dtype) -> LocalEngine:
    """The sampler: over the policy's own weights where it computes in their format, else a copy."""
    policy: Any = loaded.model
    weights = _rollout_weights(loaded, recipe.rollout_dtype, dtype)
    if recipe.rollout_dtype == "bfloat16":
        dtype = torch.bfloat16
    sampler = policy if weights or dtype == policy.dtype else copy.deepcopy(policy).to(dtype)
    return LocalEngine(
        sampler, loaded.tokenizer, max_rows=recipe.max_rows, weights=weights or "float32"
    )


def _rollout_weights(loaded: LoadedModel, wanted: str, dtype: torch.dtype) -> Weights | None:
    """The format of packed weights, None for the model's own forward pass in `dtype`."""
    if wanted == "bfloat16":
        return None
    can_pack = has_lean_step(loaded.model)
    if wanted == "auto":
        is_better = can_pack and dtype == torch.float32 and can_multiply("float16")
        return "float16" if is_better else None
    weights = cast(Weights, wanted)
    if weights != "float32" and not (can_pack and can_multiply(weights)):
        raise RecipeError(
            f"rollout_dtype={wanted!r} needs numba, and a Llama or Qwen model on a "
            f"processor with such a product; here is {loaded.model.config.model_type} on "
            f"{loaded.model.device}: pip install numba, or take 'auto'"
        )
    return weights


def _check_context(loaded: LoadedModel, task: Task, max_tokens: int) -> None:
    """Raise RecipeError when prompt and completion do not fit into the model's positions, or its
    chat template refuses the messages."""
    context = min(
        filter(None, (context_of(loaded.model), sliding_window(loaded.model))), default=None
    )
    prompts = [task[i].messages for i in range(min(len(task), _PROMPTS_LOOKED_AT))]
    prompts.sort(key=lambda messages: -sum(len(m["content"]) for m in messages))
    longest_first = [[dict(m) for m in messages] for messages in prompts[:_PROMPTS_ENCODED]]
    tokenizer: Any = loaded.tokenizer
    try:
        texts = tokenizer.apply_chat_template(
            longest_first, tokenize=False, add_generation_prompt=True
        )
    except TemplateError as error:
        raise RecipeError(
            f"the chat template of model={loaded.spec!r} refuses the task's messages ({error}); "
            "take a task without them, or another model"
        ) from error
    encoded = tokenizer(texts, add_special_tokens=False)["input_ids"]
    longest = max(map(len, encoded))
    if context is not None and longest + max_tokens > context:
        raise RecipeError(
            f"max_tokens={max_tokens} and prompts of {longest} tokens exceed the model's context "
            f"of {context}; lower max_tokens to at most {max(1, context - longest)}"
        )


def start_or_resume(learner: Learner, run: Run, step: int) -> None:
    """Give the sampler the weights to start from; measure them when the run is new."""
    learner.engine.update_weights(learner.policy, step)
    if step == 0 and learner.eval_task is not None:
        run.log(0, measure(learner))


def train_step(learner: Learner, run: Run, step: int) -> Metrics:
    """One optimizer step, as the list in docs/architecture.md."""
    recipe, clock = learner.recipe, _Clock()
    examples = draw_examples(learner.task, recipe.seed, step, recipe.prompts_per_step)
    grades = StepGrades(learner.task, examples)
    groups = sample_rollouts(learner.engine, examples, recipe, step, grades)
    learner.engine.release()
    clock.lap("sample")
    groups = grade_rollouts(groups, learner.task, learner.parts, grades, recipe=recipe, step=step)
    groups = assign_advantages(groups, recipe.estimator)
    clock.lap("grade")
    rollouts = [rollout for group in groups for rollout in group.rollouts]
    graded = [rollout.grade for rollout in rollouts if rollout.grade is not None]
    learner.watch.look(graded, is_last=step == recipe.num_steps)
    kept = filter_rollouts(
        rollouts, min_advantage=recipe.min_advantage, mask_truncated=recipe.mask_truncated
    )
    metrics = backward(learner, rollouts, kept)
    update = apply_update(
        learner.policy, learner.optimizers, recipe.optimizer, step - 1, recipe.num_steps
    )
    clock.lap("update")
    learner.engine.update_weights(learner.policy, step)
    clock.lap("publish")
    metrics |= describe_rollouts(groups, len(kept), clock.laps["time/sample_seconds"])
    metrics |= {
        "optim/grad_norm": update.grad_norm,
        "optim/learning_rate": update.learning_rate,
        "optim/skipped": float(update.skipped),
    }
    if learner.eval_task is not None and (
        step % recipe.eval_every == 0 or step == recipe.num_steps
    ):
        metrics |= measure(learner)
        clock.lap("eval")
    run.transcript(step, transcript_rows(groups[: recipe.transcripts_per_step]))
    return metrics | clock.laps


def backward(learner: Learner, rollouts: Sequence[Rollout], kept: Sequence[int]) -> Metrics:
    """Accumulate the gradient of the kept rollouts; the loss is normalised over all of them."""
    recipe = learner.recipe
    weights = token_weights(recipe.estimator, rollouts, recipe.max_tokens)
    rows = [_row(rollouts[i], weights[i]) for i in kept]
    device, pad_id = str(learner.policy.device), learner.tokenizer.pad_token_id
    loss, gap, kl, num_learned = 0.0, 0.0, 0.0, 0
    num_cells, num_capped = 0, 0
    cap = _importance_cap(recipe)
    for batch in pack_batches(
        rows,
        max_batch_tokens=recipe.max_batch_tokens,
        pad_id=pad_id,
        device=device,
        pairs_per_token=learner.pairs_per_token,
    ):
        fit_threads()
        logprobs = _logprobs(learner, learner.policy, batch)
        token_weight = batch.weights
        if cap is not None:
            ratio = importance_weights(logprobs, batch.sampler_logprobs, cap)
            token_weight = token_weight * ratio
            num_capped += int((ratio >= cap).sum())
        batch_loss = policy_gradient_loss(logprobs, batch.advantages, token_weight)
        if learner.reference is not None:
            penalty = _kl_to_reference(learner, batch, logprobs)
            batch_loss = batch_loss + recipe.kl_coefficient * penalty
            kl += penalty.item()
        batch_loss.backward()  # type: ignore[no-untyped-call]
        loss += batch_loss.item()
        gap += (logprobs.detach() - batch.sampler_logprobs).abs().sum().item()
        num_learned += len(batch.targets)
        num_cells += batch.input_ids.numel()
    metrics = {
        "loss/policy": loss,
        "policy/sampler_gap": gap / max(1, num_learned),
        "total/learned_tokens": float(num_learned),
        "total/computed_tokens": float(num_cells),
    }
    if cap is not None:
        metrics["policy/capped_frac"] = num_capped / max(1, num_learned)
    return metrics | ({"policy/kl": kl} if learner.reference is not None else {})


def _importance_cap(recipe: RlRecipe) -> float | None:
    if recipe.importance_cap is None and recipe.rollout_dtype == "int8":
        return _INT8_CAP
    return recipe.importance_cap


def _row(rollout: Rollout, weight: float) -> Row:
    assert rollout.advantage is not None, "advantages are assigned before the update"
    return Row(
        token_ids=rollout.token_ids,
        weights=[weight if sampled else 0.0 for sampled in rollout.sampled_mask],
        advantage=rollout.advantage,
        sampler_logprobs=rollout.logprobs,
        num_prompt=rollout.sampled_mask.index(True),
    )


def _logprobs(learner: Learner, model: PreTrainedModel, batch: Batch) -> torch.Tensor:
    """log pi (N,) of the batch's targets under `model`, at the temperature of sampling."""
    with compute_in(str(model.device), learner.dtype):
        return batch_logprobs(model, batch, learner.recipe.temperature)


def _kl_to_reference(learner: Learner, batch: Batch, logprobs: torch.Tensor) -> torch.Tensor:
    assert learner.reference is not None
    with torch.no_grad():
        reference_logprobs = _logprobs(learner, learner.reference, batch)
    return kl_penalty(logprobs, reference_logprobs, batch.weights)


def measure(learner: Learner) -> Metrics:
    """Held-out accuracy and completion length at temperature 1, with 95% intervals."""
    assert learner.eval_task is not None
    recipe = learner.recipe
    found = evaluate(
        learner.engine,
        learner.eval_task,
        num_samples=recipe.eval_samples,
        temperature=1.0,
        max_tokens=recipe.max_tokens,
        limit=recipe.eval_problems,
        stop_at_boxed=recipe.stop_at_boxed,
        watch=learner.eval_watch,
    )
    return evaluation_metrics(found)


class _Clock:
    """Seconds between laps, by name."""

    def __init__(self) -> None:
        self._last = time.perf_counter()
        self.laps: dict[str, float] = {}

    def lap(self, name: str) -> None:
        now = time.perf_counter()
        self.laps[f"time/{name}_seconds"] = now - self._last
        self._last = now
