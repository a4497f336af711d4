"""The recipes of the stages: the keys of each, their limits, their defaults."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from forethought.schema_tables import (
    Architecture,
    Critic,
    Fraction,
    Lora,
    Mixture,
    Optimizer,
    PositiveInt,
    Reward,
    Section,
    Select,
)

DType = Literal["auto", "float32", "bfloat16"]


def _refuse_beside(lora: Lora | None, optimizer: Optimizer, trained_layers: int | None) -> None:
    """Muon's step is made for a whole matrix, not for the factors of one; and where an adapter
    learns, no layer does."""
    if lora is None:
        return
    if optimizer.muon_learning_rate is not None:
        raise ValueError(
            f"optimizer.muon_learning_rate={optimizer.muon_learning_rate} is not for adapters; "
            "leave it or [lora] out"
        )
    if trained_layers is not None:
        raise ValueError(
            f"trained_layers={trained_layers} is not for adapters, which leave the layers as they "
            "are; leave it or [lora] out"
        )


class RecipeBase(Section):
    """What every stage has."""

    name: str = ""
    run_dir: str
    seed: Annotated[int, Field(ge=0)] = 0
    num_steps: PositiveInt
    optimizer: Optimizer
    max_batch_tokens: PositiveInt = 4096
    """Cells of one micro-batch (rows x width): memory, never the gradient."""
    dtype: DType = "auto"
    checkpoint_every: PositiveInt = 100
    """Steps between checkpoints; the last step always has one."""
    keep_checkpoints: PositiveInt = 2
    """So many of the newest stay."""
    keep_every: PositiveInt | None = None
    """Those of steps divisible by it stay too."""

    @model_validator(mode="after")
    def _kept_are_made(self) -> RecipeBase:
        if self.keep_every is not None and self.keep_every % self.checkpoint_every:
            raise ValueError(
                f"keep_every={self.keep_every} must be a multiple of "
                f"checkpoint_every={self.checkpoint_every}"
            )
        return self

    @model_validator(mode="after")
    def _warmup_fits(self) -> RecipeBase:
        if self.optimizer.warmup_steps >= self.num_steps:
            raise ValueError(
                f"optimizer.warmup_steps={self.optimizer.warmup_steps} must be below "
                f"num_steps={self.num_steps}"
            )
        return self


class PretrainRecipe(RecipeBase):
    """Self-supervised next-token prediction on generated text, from random weights."""

    stage: Literal["pretrain"]
    tokens_per_step: PositiveInt = 8192
    prompt_weight: Fraction = 1.0
    """Loss weight of prompt tokens; what a completion token has is 1."""
    architecture: Architecture = Architecture()
    mixture: Mixture


class SftRecipe(RecipeBase):
    """Supervised fine-tuning on worked traces, generated or from a JSONL file."""

    stage: Literal["sft"]
    model: str
    traces_per_step: PositiveInt = 16
    mixture: Mixture | None = None
    data: str | None = None
    """JSONL of {"prompt", "completion"} (TRL's prompt-completion format)."""
    lora: Lora | None = None
    trained_layers: PositiveInt | None = None
    """So many of the last layers learn; None: every weight of the model."""

    @model_validator(mode="after")
    def _one_source(self) -> SftRecipe:
        if self.mixture is None and self.data is None:
            raise ValueError("data is missing; give data (a JSONL path) or a [mixture] table")
        if self.mixture is not None and self.data is not None:
            raise ValueError(f"data={self.data!r} and [mixture] contradict each other; keep one")
        return self

    @model_validator(mode="after")
    def _adapter_fits(self) -> SftRecipe:
        _refuse_beside(self.lora, self.optimizer, self.trained_layers)
        return self


class RlRecipe(RecipeBase):
    """Reinforcement learning with a verifiable reward."""

    stage: Literal["rl"]
    model: str
    task: str
    allow_unsound_task: bool = False
    """Train although the task's grader fails `forethought task check`."""
    prompts_per_step: PositiveInt = 32
    group_size: Annotated[int, Field(ge=2)] = 16
    max_tokens: PositiveInt = 128
    temperature: Annotated[float, Field(gt=0.0)] = 1.0
    stop_at_boxed: bool = True
    max_rows: PositiveInt = 512
    estimator: Literal[
        "reinforce",
        "rloo",
        "reinforce_plus_plus",
        "grpo",
        "dr_grpo",
        "bnpo",
        "dapo",
        "gspo",
        "cispo",
        "ppo",
    ] = "rloo"
    critic: Critic = Critic()
    """Of estimator "ppo"."""
    scale_rewards: Literal["group", "batch", "none"] | None = None
    """Whose standard deviation divides advantages; None: the estimator's own choice."""
    rollout_dtype: Literal["auto", "float32", "float16", "bfloat16", "int8"] = "auto"
    importance_cap: Annotated[float, Field(ge=1.0)] | None = None
    """Cap of the weight pi / pi_sampler of a token; None: 2 with int8 rollouts, else no weight."""
    importance_mode: Literal[
        "token_truncate", "token_mask", "sequence_truncate", "sequence_mask"
    ] = "token_truncate"
    importance_floor: Annotated[float, Field(gt=0.0, le=1.0)] | None = None
    """The other end of the cap; None: no end."""
    num_iterations: PositiveInt = 1
    """Passes over a batch of rollouts."""
    minibatches: PositiveInt = 1
    """Parts of a batch, by prompt; each pass makes one update a part."""
    epsilon: Annotated[float, Field(gt=0.0)] | None = None
    """Lower reach of the clip; None: the estimator's own. So it is with the upper one."""
    epsilon_high: Annotated[float, Field(gt=0.0)] | None = None
    delta: Annotated[float, Field(gt=1.0)] | None = None
    """Cap of the ratio where the clip has none (two-sided clipping); None: no cap."""
    min_advantage: Annotated[float, Field(ge=0.0)] = 1e-6
    """Rollouts with |advantage| below this leave before any forward pass; 0 keeps all."""
    kl_coefficient: Annotated[float, Field(ge=0.0)] = 0.0
    """Weight of the KL penalty to the starting model; 0 loads no reference model."""
    kl_estimator: Literal["k1", "k2", "k3"] = "k3"
    kl_in: Literal["loss", "reward"] = "loss"
    kl_correction: bool = False
    """Multiply the term in the loss by pi / pi_old, with the gradient of the ratio."""
    entropy_coefficient: Annotated[float, Field(ge=0.0)] = 0.0
    """Weight of the entropy bonus."""
    entropy_in: Literal["loss", "reward"] = "loss"
    top_entropy_quantile: Annotated[float, Field(gt=0.0, le=1.0)] = 1.0
    """Share of the tokens, those of highest entropy, that carry the policy gradient."""
    mask_truncated: bool = False
    lora: Lora | None = None
    trained_layers: PositiveInt | None = None
    """So many of the last layers learn; None: every weight of the model."""
    reward: Reward = Reward()
    select: Select = Select()
    preflight_problems: Annotated[int, Field(ge=0)] = 8
    """Groups sampled before a new run begins, to see what it is in for; 0 turns that off."""
    eval_task: str | None = None
    """Held-out task for the curves; None uses the test split of `task`."""
    eval_problems: Annotated[int, Field(ge=0)] = 100
    """Problems of one evaluation on the way; 0 turns them off."""
    eval_samples: PositiveInt = 2
    eval_strategy: str | None = None
    """How a held-out problem is answered, as in "majority:n=4"; None: plain samples."""
    eval_budget: str | None = None
    """What it may cost, as in "512" tokens or "tokens=512,calls=4"."""
    eval_every: PositiveInt = 20
    transcripts_per_step: Annotated[int, Field(ge=0)] = 2

    @model_validator(mode="after")
    def _budget_has_a_strategy(self) -> RlRecipe:
        if self.eval_budget is not None and self.eval_strategy is None:
            raise ValueError(
                f"eval_budget={self.eval_budget!r} goes with eval_strategy: name one, such as "
                "majority:n=8, or remove it"
            )
        return self

    @model_validator(mode="after")
    def _critic_fits(self) -> RlRecipe:
        if self.estimator != "ppo":
            if self.critic != Critic():
                raise ValueError(
                    f"critic is set, but estimator={self.estimator!r} has none; take "
                    "estimator='ppo', or remove [critic]"
                )
            return self
        refused = {
            "scale_rewards": (self.scale_rewards, None, "its advantages are whitened"),
            "top_entropy_quantile": (self.top_entropy_quantile, 1.0, "a critic needs all tokens"),
            "select.replay_share": (self.select.replay_share, 0.0, "values are of new rollouts"),
        }
        for key, (value, default, why) in refused.items():
            if value != default:
                raise ValueError(f"{key}={value!r} is not for estimator='ppo', {why}; remove it")
        return self

    @model_validator(mode="after")
    def _adapter_fits(self) -> RlRecipe:
        _refuse_beside(self.lora, self.optimizer, self.trained_layers)
        if self.lora is not None and self.lora.dropout:
            raise ValueError(
                f"lora.dropout={self.lora.dropout} would train another policy than the one that "
                "samples; remove it"
            )
        return self

    @model_validator(mode="after")
    def _reuse_fits(self) -> RlRecipe:
        if self.minibatches > self.prompts_per_step:
            raise ValueError(
                f"minibatches={self.minibatches} must be at most prompts_per_step="
                f"{self.prompts_per_step}: a part holds whole groups"
            )
        if self.num_iterations * self.minibatches == 1 and not self.select.replay_share:
            for key in ("epsilon", "epsilon_high", "delta"):
                if getattr(self, key) is not None:
                    raise ValueError(
                        f"{key}={getattr(self, key)} does nothing with one update a batch; "
                        "set num_iterations, minibatches or select.replay_share, or remove it"
                    )
        return self

    @model_validator(mode="after")
    def _no_key_is_idle(self) -> RlRecipe:
        has_weights = self.importance_cap is not None or self.rollout_dtype == "int8"
        idle = [
            (
                self.estimator == "cispo",
                "epsilon",
                "with estimator='cispo', which has no lower end",
            ),
            (
                self.estimator == "cispo",
                "delta",
                "with estimator='cispo'; its bound is epsilon_high",
            ),
            (not has_weights, "importance_floor", "without importance_cap"),
        ]
        for is_idle, key, why in idle:
            if is_idle and getattr(self, key) is not None:
                raise ValueError(f"{key}={getattr(self, key)} does nothing {why}; remove it")
        return self

    @model_validator(mode="after")
    def _subset_fits(self) -> RlRecipe:
        keep = self.select.keep_per_group
        if keep is not None and keep > self.group_size:
            raise ValueError(
                f"select.keep_per_group={keep} must be at most group_size={self.group_size}"
            )
        return self


class PipelineRecipe(Section):
    """Several stages in a row, each starting from the model that the one before saved.

    `order` names tables of this recipe; each is the recipe of one stage, without run_dir, seed
    and (but for the first) model.
    """

    stage: Literal["pipeline"]
    name: str = ""
    run_dir: str
    seed: Annotated[int, Field(ge=0)] = 0
    order: Annotated[list[str], Field(min_length=1)]
    stages: dict[str, SftRecipe | RlRecipe]

    @property
    def num_steps(self) -> int:
        return sum(stage.num_steps for stage in self.stages.values())
