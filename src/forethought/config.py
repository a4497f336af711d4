"""Recipes: TOML in, validated and frozen configuration out.

A recipe is wrong at load time or not at all: an unknown key, a bad value or
numbers that contradict each other raise RecipeError with the key, the value and the fix.
"""

from __future__ import annotations

import difflib
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, Field, TypeAdapter, ValidationError

from forethought.errors import RecipeError
from forethought.schema import PipelineRecipe, PretrainRecipe, RecipeBase, RlRecipe, SftRecipe
from forethought.toml import apply_override, copy_tables, to_toml

Recipe = Annotated[PretrainRecipe | SftRecipe | RlRecipe, Field(discriminator="stage")]
_ADAPTER: TypeAdapter[PretrainRecipe | SftRecipe | RlRecipe] = TypeAdapter(Recipe)
AnyRecipe = PretrainRecipe | SftRecipe | RlRecipe | PipelineRecipe
STAGES: Mapping[str, type[RecipeBase]] = {
    "pretrain": PretrainRecipe,
    "sft": SftRecipe,
    "rl": RlRecipe,
}


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
