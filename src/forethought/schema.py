"""The tables and keys of a recipe, one class a stage: what each key is, its limits, its default."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

PositiveInt = Annotated[int, Field(ge=1)]
Fraction = Annotated[float, Field(ge=0.0, le=1.0)]
Decay = Annotated[float, Field(ge=0.0, lt=1.0)]
Weights = Annotated[dict[str, Annotated[float, Field(gt=0)]], Field(min_length=1)]
DType = Literal["auto", "float32", "bfloat16"]


class Section(BaseModel):
    model_config = ConfigDict(
        extra="forbid", frozen=True, allow_inf_nan=False, coerce_numbers_to_str=True
    )


class Optimizer(Section):
    """AdamW, or Muon for the matrices inside the blocks and AdamW for the rest.

    `learning_rate` is reached after `warmup_steps` updates and follows `schedule`.
    """

    learning_rate: Annotated[float, Field(gt=0.0)]
    muon_learning_rate: Annotated[float, Field(gt=0.0)] | None = None
    """Of Muon; None trains everything with AdamW."""
    weight_decay: Annotated[float, Field(ge=0.0)] = 0.0
    beta1: Decay = 0.9
    beta2: Decay = 0.95
    warmup_steps: Annotated[int, Field(ge=0)] = 0
    schedule: Literal["constant", "linear", "cosine"] = "constant"
    final_fraction: Fraction = 0.1
    """What is left of the learning rate once the last update is done (linear, cosine)."""
    max_grad_norm: Annotated[float, Field(gt=0.0)] = 1.0


class Architecture(Section):
    """A Llama from scratch."""

    vocab_size: Annotated[int, Field(ge=300)] = 512
    hidden_size: PositiveInt = 128
    num_layers: PositiveInt = 4
    num_heads: PositiveInt = 4
    intermediate_size: PositiveInt = 384
    max_context: PositiveInt = 1024

    @model_validator(mode="after")
    def _heads_divide_width(self) -> Architecture:
        if self.hidden_size % self.num_heads:
            raise ValueError(
                f"hidden_size={self.hidden_size} must be a multiple of num_heads={self.num_heads}"
            )
        if self.hidden_size // self.num_heads % 2:  # rotary positions turn pairs
            raise ValueError(
                f"hidden_size={self.hidden_size} over num_heads={self.num_heads} must be even"
            )
        return self


class Quality(Section):
    """How flawed generated traces are: probabilities a document; `slip_rate` a step."""

    slip_rate: Fraction = 0.0
    early_stop: Fraction = 0.0
    skip_steps: Fraction = 0.0
    verbose: Fraction = 0.0
    hasty: Fraction = 0.0
    """Share of direct answers that leave the last step out."""


class Mixture(Section):
    """What generated text is made of: relative weights of families and of writers."""

    families: Weights
    writers: Weights = {"trace": 1.0}
    max_difficulty: dict[str, PositiveInt] = {}
    quality: Quality = Quality()


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

    @model_validator(mode="after")
    def _one_source(self) -> SftRecipe:
        if self.mixture is None and self.data is None:
            raise ValueError("data is missing; give data (a JSONL path) or a [mixture] table")
        if self.mixture is not None and self.data is not None:
            raise ValueError(f"data={self.data!r} and [mixture] contradict each other; keep one")
        return self


class CosineLength(Section):
    """What the part "cosine_length" pays, from an empty completion to one of `max_length`."""

    correct_short: float = 1.0
    correct_long: float = 0.5
    wrong_short: float = -1.0
    wrong_long: float = -0.5
    exceeded: float | None = None
    """For a completion that reaches `max_length`; None pays it as the longest."""
    max_length: PositiveInt | None = None
    """None is the recipe's `max_tokens`; so it is in the tables below."""


class SoftOverlong(Section):
    """Where the part "soft_overlong" begins to punish: `buffer` tokens before `max_length`."""

    max_length: PositiveInt | None = None
    buffer: PositiveInt | None = None
    """None is a fifth of `max_length`."""


class Repetition(Section):
    """Of what the part "repetition" counts copies: n-grams of tokens."""

    ngram_size: PositiveInt = 3


class Reward(Section):
    """Named parts, built in or `file.py:function`, and how they make one number."""

    combine: Literal["sum", "product"] = "sum"
    parts: dict[str, float] = {"accuracy": 1.0, "format": 0.1}
    cosine_length: CosineLength = CosineLength()
    soft_overlong: SoftOverlong = SoftOverlong()
    repetition: Repetition = Repetition()

    @model_validator(mode="after")
    def _parts_fit(self) -> Reward:
        if not any(self.parts.values()):
            raise ValueError(f"parts={self.parts} must give at least one part a weight")
        if self.combine == "product":
            for name, weight in self.parts.items():
                if not 0.0 <= weight <= 1.0:
                    raise ValueError(
                        f"parts.{name}={weight} must be 0 to 1 where combine is 'product'"
                    )
        for name in ("cosine_length", "soft_overlong", "repetition"):
            if name not in self.parts and getattr(self, name) != Reward.model_fields[name].default:
                raise ValueError(f"{name} is set, but parts does not name it; give it a weight")
        return self


class Select(Section):
    """Which examples a batch is sampled from, and which of its groups are learned from."""

    examples: Literal["walk", "greso", "difficulty"] = "walk"
    """How examples are drawn: one after the other; past those that stopped teaching; or near a
    failure rate of one half."""
    target_dead_share: Annotated[float, Field(gt=0.0, lt=1.0)] = 0.25
    """With greso: the share of sampled groups that may be without signal."""
    difficulty_temperature: Annotated[float, Field(gt=0.0)] = 0.1
    """With difficulty: how far from one half a failure rate may be."""
    max_batches: PositiveInt = 1
    """Engine calls of one batch, made until `prompts_per_step` groups have signal."""
    keep_per_group: Annotated[int, Field(ge=2)] | None = None
    """Siblings of a group that are learned from, those whose rewards vary most; None: all."""
    replay_share: Decay = 0.0
    """Share of a batch's groups that come from earlier batches."""
    replay_capacity: PositiveInt = 256
    """How many groups with signal are kept for that, the newest."""


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
    ] = "rloo"
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
