"""What the steps of an RL run share: task, rewards, policy, sampler, optimizers."""

from __future__ import annotations

import copy
from dataclasses import dataclass, field
from typing import Any, cast

import torch
from jinja2 import TemplateError
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from forethought.errors import RecipeError
from forethought.grading.rewards import RewardPart, load_rewards
from forethought.grading.watch import GradeWatch
from forethought.models.load import LoadedModel, context_of, load_model
from forethought.models.lora import adapt, plain_copy, require_peft
from forethought.models.trained_layers import train_last
from forethought.run import Run
from forethought.sampling.cache import sliding_window
from forethought.sampling.decoder import has_lean_step
from forethought.sampling.draw import stable_seed
from forethought.sampling.local import LocalEngine
from forethought.sampling.products import Weights, can_multiply
from forethought.schema import RlRecipe
from forethought.tasks.base import load_task
from forethought.tasks.check import refuse_unsound
from forethought.training.algorithms import ALGORITHMS
from forethought.training.batch import pairs_per_token
from forethought.training.checkpoint import settled_dtypes
from forethought.training.critic import Critic, build_critic
from forethought.training.held import Held
from forethought.training.measure import check_measuring
from forethought.training.selection import Selection
from forethought.training.update import Optimizers, build_optimizers
from forethought.types import Task

# To see whether completions fit, the longest of so many prompts are encoded.
_PROMPTS_LOOKED_AT, _PROMPTS_ENCODED = 10_000, 32


@dataclass(slots=True)
class LearnerState:
    """What changes from step to step beside weights and optimizer; a checkpoint holds it."""

    held: Held | None = None  # rollouts that further updates will learn from
    selection: Selection = field(default_factory=Selection)  # what the choice of examples goes by
    buckets: dict[int, str] = field(default_factory=dict)  # looked up, and not in a checkpoint


@dataclass(frozen=True, slots=True, kw_only=True)
class Learner:
    """What the steps of a run share. `policy` holds fp32 master weights, `engine` samples."""

    recipe: RlRecipe
    task: Task
    eval_task: Task | None
    parts: tuple[RewardPart, ...]
    policy: PreTrainedModel
    reference: PreTrainedModel | None  # read inside `without_adapter`
    tokenizer: PreTrainedTokenizerBase
    engine: LocalEngine
    optimizers: Optimizers
    dtype: torch.dtype
    critic: Critic | None = None  # of PPO
    pairs_per_token: float = 0.0  # what siblings gain by sharing their prompt; 0 when they cannot
    watch: GradeWatch = field(default_factory=GradeWatch)
    eval_watch: GradeWatch = field(default_factory=GradeWatch)
    state: LearnerState = field(default_factory=LearnerState)


def check_rl(recipe: RlRecipe) -> tuple[Task, Task, tuple[RewardPart, ...]]:
    """Training task, held-out task and rewards, all tried out. Raises UserError; loads no model."""
    require_peft(recipe.lora)
    task = load_task(recipe.task, split="train", seed=recipe.seed)
    if not recipe.allow_unsound_task:
        refuse_unsound(task, recipe.task)
    held_out = load_task(recipe.eval_task or recipe.task, split="test")
    check_measuring(recipe)
    samples = [task[0], task[min(1, len(task) - 1)]]
    parts = load_rewards(recipe.reward, max_tokens=recipe.max_tokens, examples=samples)
    return task, held_out, parts


def build_learner(recipe: RlRecipe, run: Run) -> Learner:
    """Check task and rewards, then load the policy, the sampler's copy of it, and the reference."""
    task, held_out, parts = check_rl(recipe)
    loaded = load_model(recipe.model, dtype="float32")
    policy: Any = loaded.model  # transformers' own annotations are in the way
    _check_context(loaded, task, recipe.max_tokens)
    adapt(loaded, recipe.lora, seed=stable_seed("lora", recipe.seed))
    train_last(policy, recipe.trained_layers)
    dtypes = settled_dtypes(run, recipe.dtype, str(policy.device))
    engine = _build_engine(loaded, recipe, dtypes["sampling"])
    return Learner(
        recipe=recipe,
        task=task,
        eval_task=held_out if recipe.eval_problems else None,
        parts=parts,
        policy=policy.eval(),  # no dropout: the policy that learns is the one that samples
        reference=_reference(recipe, policy),
        tokenizer=loaded.tokenizer,
        engine=engine,
        optimizers=build_optimizers(policy, recipe.optimizer),
        dtype=dtypes["training"],
        critic=_critic(recipe, policy),
        pairs_per_token=pairs_per_token(policy),
        watch=GradeWatch(task.name),
        eval_watch=GradeWatch(held_out.name),
    )


def _reference(recipe: RlRecipe, policy: PreTrainedModel) -> PreTrainedModel | None:
    """Who the policy was at first: a copy of what learns, or the policy itself where only an
    adapter does."""
    if not recipe.kl_coefficient:
        return None
    if recipe.lora is not None:
        return policy
    return copy.deepcopy(policy, {id(p): p for p in policy.parameters() if not p.requires_grad})


def _critic(recipe: RlRecipe, policy: PreTrainedModel) -> Critic | None:
    if not ALGORITHMS[recipe.estimator].needs_critic:
        return None
    width = policy.config.get_text_config().hidden_size
    return build_critic(recipe.critic, width, str(policy.device))


def _build_engine(loaded: LoadedModel, recipe: RlRecipe, dtype: torch.dtype) -> LocalEngine:
    """The sampler: over the policy's own weights where it computes in their format and they are all
    there is to it, else a copy."""
    policy: Any = loaded.model
    weights = _rollout_weights(loaded, recipe.rollout_dtype, dtype)
    if recipe.rollout_dtype == "bfloat16":
        dtype = torch.bfloat16
    own_dtype = policy.dtype if weights else dtype
    is_shared = recipe.lora is None and own_dtype == policy.dtype
    sampler = policy if is_shared else plain_copy(policy, own_dtype)
    return LocalEngine(
        sampler,
        loaded.tokenizer,
        max_rows=recipe.max_rows,
        weights=weights or "float32",
        prefill_dtype=dtype if weights in ("bfloat16", "int8") else torch.float32,
    )


def _rollout_weights(loaded: LoadedModel, wanted: str, dtype: torch.dtype) -> Weights | None:
    """The format of packed weights, None for the model's own forward pass in `dtype`."""
    can_pack = has_lean_step(loaded.model)
    if wanted in ("auto", "bfloat16"):
        is_wide = wanted == "auto" and dtype == torch.float32
        half: Weights = "float16" if is_wide else "bfloat16"
        return half if can_pack and can_multiply(half) else None
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
