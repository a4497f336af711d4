"""The tables of a recipe, one class each: what each key is, its limits, its default."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

PositiveInt = Annotated[int, Field(ge=1)]
Fraction = Annotated[float, Field(ge=0.0, le=1.0)]
Decay = Annotated[float, Field(ge=0.0, lt=1.0)]
Weights = Annotated[dict[str, Annotated[float, Field(gt=0)]], Field(min_length=1)]


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


class Critic(Section):
    """The value head of estimator "ppo", and how its values become advantages."""

    learning_rate: Annotated[float, Field(gt=0.0)] = 1e-3
    gamma: Fraction = 1.0
    """A reward is worth so much less a token away."""
    lam: Fraction = 0.95
    """Of GAE: 1 waits for the outcome, 0 believes the next value."""
    clip: Annotated[float, Field(gt=0.0)] | None = 0.2
    """How far a value may move from the batch's first one; None: as far as it likes."""
    coefficient: Annotated[float, Field(ge=0.0)] = 0.1
    """Share of the value loss's gradient that reaches the policy's own weights."""


class Lora(Section):
    """Low-rank adapters: W + alpha / rank * B A, where only A and B learn.

    The defaults are those of "LoRA without regret" (Schulman et al. 2025).
    """

    rank: PositiveInt = 16
    alpha: Annotated[float, Field(gt=0.0)] = 32.0
    """Constant, so that the best learning rate hardly depends on the rank."""
    dropout: Decay = 0.0
    """Of the adapter's input, in supervised training."""
    targets: Literal["all-linear"] | Annotated[list[str], Field(min_length=1)] = "all-linear"
    """Names, or ends of names, of linear layers; by default all of them inside the blocks."""
