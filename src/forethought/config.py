"""Recipes: TOML in, validated and frozen configuration out.

One class a stage. A recipe is wrong at load time or not at all: an unknown key, a bad value or
numbers that contradict each other raise RecipeError with the key, the value and the fix.
"""

from __future__ import annotations

import difflib
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError, model_validator

from forethought.errors import RecipeError
from forethought.toml import apply_override, copy_tables, to_toml

PositiveInt = Annotated[int, Field(ge=1)]
Fraction = Annotated[float, Field(ge=0.0, le=1.0)]
Decay = Annotated[float, Field(ge=0.0, lt=1.0)]
Weights = Annotated[dict[str, Annotated[float, Field(gt=0)]], Field(min_length=1)]
DType = Literal["auto", "float32", "bfloat16"]


class _Section(BaseModel):
    model_config = ConfigDict(
        extra="forbid", frozen=True, allow_inf_nan=False, coerce_numbers_to_str=True
    )


class Optimizer(_Section):
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


class Architecture(_Section):
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


class Quality(_Section):
    """How flawed generated traces are: probabilities a document; `slip_rate` a step."""

    slip_rate: Fraction = 0.0
    early_stop: Fraction = 0.0
    skip_steps: Fraction = 0.0
    verbose: Fraction = 0.0
    hasty: Fraction = 0.0
    """Share of direct answers that leave the last step out."""


class Mixture(_Section):
    """What generated text is made of: relative weights of families and of writers."""

    families: Weights
    writers: Weights = {"trace": 1.0}
    max_difficulty: dict[str, PositiveInt] = {}
    quality: Quality = Quality()


class _Recipe(_Section):
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
    def _warmup_fits(self) -> _Recipe:
        if self.optimizer.warmup_steps >= self.num_steps:
            raise ValueError(
                f"optimizer.warmup_steps={self.optimizer.warmup_steps} must be below "
                f"num_steps={self.num_steps}"
            )
        return self


class PretrainRecipe(_Recipe):
    """Self-supervised next-token prediction on generated text, from random weights."""

    stage: Literal["pretrain"]
    tokens_per_step: PositiveInt = 8192
    prompt_weight: Fraction = 1.0
    """Loss weight of prompt tokens; what a completion token has is 1."""
    architecture: Architecture = Architecture()
    mixture: Mixture


class SftRecipe(_Recipe):
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


class Reward(_Section):
    """A weighted sum of named parts: built-in names or `file.py:function`."""

    parts: dict[str, float] = {"accuracy": 1.0, "format": 0.1}

    @model_validator(mode="after")
    def _something_counts(self) -> Reward:
        if not any(self.parts.values()):
            raise ValueError(f"parts={self.parts} must give at least one part a weight")
        return self


class RlRecipe(_Recipe):
    """Reinforcement learning with a verifiable reward."""

    stage: Literal["rl"]
    model: str
    task: str
    prompts_per_step: PositiveInt = 32
    group_size: Annotated[int, Field(ge=2)] = 16
    max_tokens: PositiveInt = 128
    temperature: Annotated[float, Field(gt=0.0)] = 1.0
    stop_at_boxed: bool = True
    max_rows: PositiveInt = 512
    estimator: Literal["reinforce", "rloo", "grpo", "dr_grpo"] = "rloo"
    rollout_dtype: Literal["auto", "float32", "float16", "bfloat16", "int8"] = "auto"
    importance_cap: Annotated[float, Field(ge=1.0)] | None = None
    """Cap of the weight pi / pi_sampler of a token; None: 2 with int8 rollouts, else no weight."""
    min_advantage: Annotated[float, Field(ge=0.0)] = 1e-6
    """Rollouts with |advantage| at or below this leave before any forward pass."""
    kl_coefficient: Annotated[float, Field(ge=0.0)] = 0.0
    """Weight of the KL penalty to the starting model; 0 loads no reference model."""
    mask_truncated: bool = False
    reward: Reward = Reward()
    eval_task: str | None = None
    """Held-out task for the curves; None uses the test split of `task`."""
    eval_problems: Annotated[int, Field(ge=0)] = 100
    """Problems of one evaluation on the way; 0 turns them off."""
    eval_samples: PositiveInt = 2
    eval_every: PositiveInt = 20
    transcripts_per_step: Annotated[int, Field(ge=0)] = 2


class PipelineRecipe(_Section):
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


Recipe = Annotated[PretrainRecipe | SftRecipe | RlRecipe, Field(discriminator="stage")]
_ADAPTER: TypeAdapter[PretrainRecipe | SftRecipe | RlRecipe] = TypeAdapter(Recipe)
AnyRecipe = PretrainRecipe | SftRecipe | RlRecipe | PipelineRecipe
STAGES: Mapping[str, type[_Recipe]] = {"pretrain": PretrainRecipe, "sft": SftRecipe, "rl": RlRecipe}


def load_recipe(path: str | Path, overrides: Sequence[str] = ()) -> AnyRecipe:
    """Read a recipe file and apply `key=value` overrides. Raises RecipeError."""
    try:
        data = tomllib.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise RecipeError(f"recipe {path} cannot be read ({error}); check the path") from None
    except tomllib.TOMLDecodeError as error:
        raise RecipeError(f"recipe {path} is not valid TOML: {error}; correct it") from None
    return parse_recipe(data, overrides)


def parse_recipe(data: Mapping[str, Any], overrides: Sequence[str] = ()) -> AnyRecipe:
    """Validate a recipe's tables after applying `key=value` overrides. Raises RecipeError."""
    merged = copy_tables(data)
    for override in overrides:
        apply_override(merged, override)
    stage = merged.get("stage")
    if stage == "pipeline":
        return _parse_pipeline(merged)
    if not isinstance(stage, str) or stage not in STAGES:
        known = ", ".join([*STAGES, "pipeline"])
        raise RecipeError(f"stage={stage!r} is not a stage; use one of {known}")
    return _parse_stage(merged)


def _parse_stage(data: dict[str, Any], table: str = "") -> PretrainRecipe | SftRecipe | RlRecipe:
    """Validate one stage; `table` is where it stands in a pipeline."""
    try:
        return _ADAPTER.validate_python(data)
    except ValidationError as error:
        raise RecipeError(_explain(error, STAGES[data["stage"]], table)) from None


def _parse_pipeline(data: dict[str, Any]) -> PipelineRecipe:
    """Fill in what the stages of a pipeline share, and validate each as a recipe of its own."""
    order = _stage_names(data.get("order"))
    known = [*_SHARED, "stage", "order", *order]
    for key in data:
        if key not in known:
            raise RecipeError(f"{key} is not a key of this recipe; {_nearest(key, known)}")
    if "run_dir" not in data:
        raise RecipeError("run_dir is missing from the recipe; add it or give --set run_dir=DIR")
    shared = {key: data[key] for key in ("seed", "model") if key in data}
    stages: dict[str, SftRecipe | RlRecipe] = {}
    for number, name in enumerate(order, 1):
        folder = f"{data['run_dir']}/{number}-{name}"
        derived = shared | {"name": name, "run_dir": folder}
        stages[name] = _parse_pipeline_stage(name, data.get(name), derived)
        shared["model"] = f"{folder}/model"
    own = {key: data[key] for key in ("stage", "name", "run_dir", "seed") if key in data}
    try:
        return PipelineRecipe(**own, order=order, stages=stages)
    except ValidationError as error:
        raise RecipeError(_explain(error, PipelineRecipe)) from None


_SHARED = ("name", "run_dir", "seed", "model")  # a pipeline's own, never a stage's


def _stage_names(order: object) -> list[str]:
    """The names in `order`: different strings, none of them a key with another meaning."""
    names = order if isinstance(order, list) else []
    taken = {*_SHARED, "stage", "order"}
    are_free = all(isinstance(name, str) and name not in taken for name in names)
    if not names or not are_free or len(set(names)) < len(names):
        raise RecipeError(f'order={order!r} must name each stage once, as in ["sft", "rl"]')
    return names


def _parse_pipeline_stage(
    name: str, table: object, derived: Mapping[str, Any]
) -> SftRecipe | RlRecipe:
    if not isinstance(table, dict):
        raise RecipeError(f"order names {name} but the recipe has no table [{name}]; add it")
    if table.get("stage") not in ("sft", "rl"):
        raise RecipeError(f"{name}.stage={table.get('stage')!r} is wrong; use sft or rl")
    for key in _SHARED:
        if key in table:
            raise RecipeError(
                f"{name}.{key}={table[key]!r} belongs to the whole recipe; move it up"
            )
    stage = _parse_stage({**derived, **table}, name)
    assert not isinstance(stage, PretrainRecipe)
    return stage


def _explain(error: ValidationError, recipe: type[BaseModel], table: str = "") -> str:
    """The worst error as one sentence: key, value, fix. `table` stands before a stage's keys."""
    # a mistyped key is the cause where its right name is reported missing
    first = min(error.errors(include_url=False), key=lambda e: e["type"] != "extra_forbidden")
    path = [str(part) for part in first["loc"]]
    path = path[1:] if path and path[0] in STAGES else path
    before = [table] if table and path[:1] not in [[key] for key in _SHARED] else []
    key, value = ".".join([*before, *path]), first.get("input")
    if first["type"] == "extra_forbidden":
        shown = "" if isinstance(value, dict) else f"={value!r}"
        hint = _nearest(path[-1], _known_keys(recipe, path[:-1]))
        return f"{key}{shown} is not a key of this recipe; {hint}"
    if first["type"] == "missing":
        return f"{key} is missing from the recipe; add it or give --set {key}=VALUE"
    if first["type"] in ("model_type", "dict_type"):
        return f"{key}={value!r} is not a table; write [{key}] and its keys below"
    message = first["msg"].removeprefix("Value error, ")
    if first["type"] == "value_error":  # one of ours: it begins with a key of this table
        return ".".join(filter(None, [key, message]))
    return f"{key}={value!r} is wrong: {message[0].lower()}{message[1:]}"


def _nearest(key: str, known: Sequence[str]) -> str:
    near = difflib.get_close_matches(key, known, 1)
    return f"did you mean {near[0]}?" if near else f"known keys are {', '.join(known)}"


def _known_keys(recipe: type[BaseModel], path: Sequence[str]) -> list[str]:
    """The keys of the table at `path`, following nested sections."""
    for name in path:
        annotation = recipe.model_fields[name].annotation if name in recipe.model_fields else None
        options = [annotation, *getattr(annotation, "__args__", ())]
        nested = [o for o in options if isinstance(o, type) and issubclass(o, BaseModel)]
        if not nested:
            return list(recipe.model_fields)
        recipe = nested[0]
    return list(recipe.model_fields)


def dump_recipe(recipe: BaseModel) -> str:
    """The resolved recipe as TOML; loading it again gives the same recipe."""
    data = recipe.model_dump()
    if isinstance(recipe, PipelineRecipe):
        data |= {"model": recipe.stages[recipe.order[0]].model}
        derived = {"name", "run_dir", "seed", "model"}
        for name, stage in data.pop("stages").items():
            data[name] = {key: value for key, value in stage.items() if key not in derived}
    return to_toml(data)
