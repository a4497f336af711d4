"""Recipes: what loads, what is refused and in which words, and that a dumped recipe loads again."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from forethought.config import AnyRecipe, dump_recipe, load_recipe, parse_recipe
from forethought.errors import RecipeError
from forethought.schema import PipelineRecipe, PretrainRecipe, RlRecipe, SftRecipe
from forethought.toml import to_toml

RECIPES = sorted((Path(__file__).resolve().parent.parent / "recipes").glob("*.toml"))

RL: dict[str, Any] = {
    "stage": "rl",
    "run_dir": "runs/a",
    "num_steps": 10,
    "model": "bundled:seedling",
    "task": "sum",
    "optimizer": {"learning_rate": 1e-3},
}
SFT: dict[str, Any] = {
    "stage": "sft",
    "run_dir": "runs/a",
    "num_steps": 10,
    "model": "m",
    "data": "traces.jsonl",
    "optimizer": {"learning_rate": 1e-3},
}
PRETRAIN: dict[str, Any] = {
    "stage": "pretrain",
    "run_dir": "runs/a",
    "num_steps": 10,
    "optimizer": {"learning_rate": 1e-3},
    "mixture": {"families": {"sum": 1}},
}
PIPELINE: dict[str, Any] = {
    "stage": "pipeline",
    "run_dir": "runs/a",
    "model": "m",
    "order": ["warm", "learn"],
    "warm": {k: SFT[k] for k in ("stage", "num_steps", "data", "optimizer")},
    "learn": {k: RL[k] for k in ("stage", "num_steps", "task", "optimizer")},
}


def refusal(data: dict[str, Any], *overrides: str) -> str:
    """The sentence that a recipe is refused with."""
    with pytest.raises(RecipeError) as caught:
        parse_recipe(data, overrides)
    sentence = str(caught.value)
    assert sentence and "\n" not in sentence and len(sentence) < 1000
    return sentence


# --set on a good recipe -> what the sentence must hold: the key, the value and the fix
MISTAKES = [
    (RL, "num_step=5", ["num_step=5", "did you mean num_steps?"]),
    (RL, "optimizer.learning_rat=1", ["optimizer.learning_rat=1", "mean learning_rate?"]),
    (RL, "zzz=5", ["zzz=5", "known keys are", "group_size"]),
    (RL, "num_steps=0", ["num_steps=0", "greater than or equal to 1"]),
    (RL, "group_size=1", ["group_size=1", "greater than or equal to 2"]),
    (RL, "num_steps=many", ["num_steps='many'", "valid integer"]),
    (RL, "estimator=trpo", ["estimator='trpo'", "'rloo'", "'grpo'"]),
    (RL, "dtype=float8", ["dtype='float8'", "'bfloat16'"]),
    (RL, "temperature=0", ["temperature=0", "greater than 0"]),
    (RL, "kl_coefficient=nan", ["kl_coefficient=nan", "finite"]),
    (RL, "optimizer.learning_rate=inf", ["optimizer.learning_rate=inf", "finite"]),
    (RL, "optimizer.learning_rate=-1", ["optimizer.learning_rate=-1", "greater than 0"]),
    (RL, "optimizer.beta1=1", ["optimizer.beta1=1", "less than 1"]),
    (RL, "optimizer.schedule=step", ["optimizer.schedule='step'", "'cosine'"]),
    (RL, "optimizer=3", ["optimizer=3", "not a table", "[optimizer]"]),
    (RL, "reward.parts={}", ["reward.parts={}", "at least one"]),
    (RL, "reward.parts={accuracy=0}", ["reward.parts", "at least one"]),
    (RL, "reward.parts.accuracy=much", ["reward.parts.accuracy='much'", "valid number"]),
    (RL, "stage=dpo", ["stage='dpo'", "pretrain, sft, rl, pipeline"]),
    (RL, "stage=[]", ["stage=[]", "not a stage"]),
    (
        RL,
        "optimizer.warmup_steps=10",
        ["optimizer.warmup_steps=10", "below num_steps=10"],
    ),
    (SFT, "mixture.families.sum=1", ["data='traces.jsonl'", "[mixture]", "keep one"]),
    (PRETRAIN, "mixture.families={}", ["mixture.families={}", "at least 1"]),
    (PRETRAIN, "mixture.writers={}", ["mixture.writers={}", "at least 1"]),
    (PRETRAIN, "mixture.families.sum=0", ["mixture.families.sum=0", "greater than 0"]),
    (PRETRAIN, "mixture.quality.slip_rate=2", ["mixture.quality.slip_rate=2", "equal to 1"]),
    (
        PRETRAIN,
        "architecture={hidden_size=100, num_heads=3}",
        ["architecture.hidden_size=100", "multiple of num_heads=3"],
    ),
    (
        PRETRAIN,
        "architecture={hidden_size=9, num_heads=3}",
        ["architecture.hidden_size=9", "num_heads=3", "even"],
    ),
    (PIPELINE, "order=[]", ["order=[]", '["sft", "rl"]']),
    (PIPELINE, "order=rl", ["order='rl'", '["sft", "rl"]']),
    (PIPELINE, "order=[1]", ["order=[1]", '["sft", "rl"]']),
    (PIPELINE, 'order=["warm", "warm"]', ["warm", "once"]),
    (PIPELINE, 'order=["warm", "model"]', ["order=", "must name each stage once"]),
    (PIPELINE, 'order=["warm", "learn", "x"]', ["[x]", "add it"]),
    (PIPELINE, "lern.num_steps=3", ["lern", "did you mean learn?"]),
    (PIPELINE, "learn.seed=3", ["learn.seed=3", "move it up"]),
    (PIPELINE, "learn.stage=pretrain", ["learn.stage='pretrain'", "use sft or rl"]),
    (PIPELINE, "learn.num_step=3", ["learn.num_step=3", "did you mean num_steps?"]),
    (PIPELINE, "warm.num_steps=0", ["warm.num_steps=0", "equal to 1"]),
    (
        PIPELINE,
        "learn.optimizer.warmup_steps=99",
        ["learn.optimizer.warmup_steps=99", "below num_steps=10"],
    ),
    (PIPELINE, "seed=-1", ["seed=-1", "equal to 0"]),
    (PIPELINE, "name=true", ["name=True", "valid string"]),
]


@pytest.mark.parametrize(("recipe", "override", "words"), MISTAKES, ids=[m[1] for m in MISTAKES])
def test_a_mistake_is_one_sentence(recipe: dict[str, Any], override: str, words: list[str]) -> None:
    sentence = refusal(recipe, override)
    for word in words:
        assert word in sentence


@pytest.mark.parametrize("recipe", [RL, SFT, PRETRAIN], ids=lambda r: r["stage"])
@pytest.mark.parametrize("key", ["run_dir", "num_steps", "optimizer"])
def test_a_missing_key_is_named_with_the_way_to_give_it(recipe: dict[str, Any], key: str) -> None:
    sentence = refusal({k: v for k, v in recipe.items() if k != key})
    assert sentence == f"{key} is missing from the recipe; add it or give --set {key}=VALUE"


@pytest.mark.parametrize("key", ["run_dir", "model", "warm", "order"])
def test_a_pipeline_needs_its_parts(key: str) -> None:
    assert key in refusal({k: v for k, v in PIPELINE.items() if k != key})


def test_a_missing_key_of_a_pipeline_stage_is_named_where_it_stands() -> None:
    stage = {k: v for k, v in PIPELINE["learn"].items() if k != "task"}
    assert "--set learn.task=VALUE" in refusal(PIPELINE | {"learn": stage})


def test_sft_without_any_source() -> None:
    sentence = refusal({k: v for k, v in SFT.items() if k != "data"})
    assert "data" in sentence and "[mixture]" in sentence and "give" in sentence


def test_a_mistyped_table_is_blamed_before_the_missing_one() -> None:
    recipe = {k: v for k, v in RL.items() if k != "optimizer"} | {"optimiser": RL["optimizer"]}
    assert refusal(recipe) == "optimiser is not a key of this recipe; did you mean optimizer?"


@pytest.mark.parametrize("override", ["num_steps", "=3", "a b=3", ".x=3", "x..y=3", "", "\n=1"])
def test_set_needs_key_and_value(override: str) -> None:
    assert "needs the form key=value" in refusal(RL, override)


def test_set_cannot_go_below_a_value() -> None:
    assert "num_steps is a value, not a table" in refusal(RL, "num_steps.x=3")


@pytest.mark.parametrize(
    ("override", "path", "value"),
    [
        ("num_steps=12", "num_steps", 12),
        ("optimizer.learning_rate=3e-4", "optimizer.learning_rate", 3e-4),
        ("optimizer.muon_learning_rate=0.02", "optimizer.muon_learning_rate", 0.02),
        ("stop_at_boxed=false", "stop_at_boxed", False),
        ("task=sum:difficulty=3,size=9", "task", "sum:difficulty=3,size=9"),
        ("task=sum+story", "task", "sum+story"),
        ("model=./runs/a b/model", "model", "./runs/a b/model"),
        ('run_dir="x y"', "run_dir", "x y"),
        ("run_dir=2026-01-31", "run_dir", "2026-01-31"),
        ("name=7", "name", "7"),
        ("name=", "name", ""),
        ("reward.parts={accuracy=1, format=0.5}", "reward.parts", {"accuracy": 1, "format": 0.5}),
        (
            'reward.parts."my.rewards.py:pay"=2',
            "reward.parts",
            {"accuracy": 1.0, "my.rewards.py:pay": 2},
        ),
    ],
)
def test_set_reads_values_by_type(override: str, path: str, value: object) -> None:
    recipe: Any = parse_recipe(RL | {"reward": {"parts": {"accuracy": 1.0}}}, [override])
    for name in path.split("."):
        recipe = getattr(recipe, name)
    assert recipe == value


def test_the_last_set_wins_and_the_tables_given_stay_as_they_were() -> None:
    recipe = parse_recipe(RL, ["optimizer.learning_rate=1.0", "optimizer.learning_rate=0.5"])
    assert isinstance(recipe, RlRecipe) and recipe.optimizer.learning_rate == 0.5
    assert RL["optimizer"] == {"learning_rate": 1e-3}


def test_a_file_that_is_missing_broken_or_no_text(tmp_path: Path) -> None:
    broken, binary = tmp_path / "broken.toml", tmp_path / "binary.toml"
    broken.write_text('stage = "rl"\nnum_steps = = 3\n')
    binary.write_bytes(b"\xff\xfe\x00")
    for path, words in (
        (tmp_path / "no.toml", ["no.toml", "cannot be read", "check the path"]),
        (tmp_path, ["cannot be read"]),
        (broken, ["broken.toml", "not valid TOML", "line 2", "correct it"]),
        (binary, ["binary.toml", "cannot be read"]),
    ):
        with pytest.raises(RecipeError) as caught:
            load_recipe(path)
        assert all(word in str(caught.value) for word in words)


@pytest.mark.parametrize("path", RECIPES, ids=lambda p: p.stem)
def test_the_recipes_of_this_package_load_and_dump(path: Path) -> None:
    recipe = load_recipe(path)
    assert again(recipe) == recipe
    assert recipe.run_dir == f"runs/{recipe.name}"


def test_pipeline_stages_hand_their_model_on() -> None:
    recipe = parse_recipe(PIPELINE, ["seed=5"])
    assert isinstance(recipe, PipelineRecipe)
    warm, learn = recipe.stages["warm"], recipe.stages["learn"]
    assert isinstance(warm, SftRecipe) and isinstance(learn, RlRecipe)
    assert warm.model == "m" and learn.model == f"{warm.run_dir}/model"
    assert warm.run_dir != learn.run_dir
    assert warm.seed == learn.seed == 5
    assert recipe.num_steps == 20
    assert again(recipe) == recipe


def again(recipe: AnyRecipe) -> AnyRecipe:
    return parse_recipe(tomllib.loads(dump_recipe(recipe)))


TEXT = st.text(max_size=12)
POSITIVE = st.floats(min_value=1e-12, max_value=1e12)
FRACTION = st.floats(min_value=0, max_value=1)


@given(
    name=TEXT,
    run_dir=TEXT,
    seed=st.integers(0, 2**63),
    num_steps=st.integers(1, 10**9),
    rate=POSITIVE,
    muon=st.none() | POSITIVE,
    parts=st.dictionaries(TEXT, POSITIVE, min_size=1, max_size=3),
    mask=st.booleans(),
    eval_task=st.none() | TEXT,
)
def test_any_rl_recipe_survives_its_dump(
    name: str,
    run_dir: str,
    seed: int,
    num_steps: int,
    rate: float,
    muon: float | None,
    parts: dict[str, float],
    mask: bool,
    eval_task: str | None,
) -> None:
    optimizer = {"learning_rate": rate, "muon_learning_rate": muon}
    recipe = RlRecipe.model_validate(
        RL
        | {"name": name, "run_dir": run_dir, "seed": seed, "num_steps": num_steps}
        | {"optimizer": optimizer, "reward": {"parts": parts}}
        | {"mask_truncated": mask, "eval_task": eval_task}
    )
    assert again(recipe) == recipe


@given(
    families=st.dictionaries(TEXT, POSITIVE, min_size=1, max_size=3),
    tops=st.dictionaries(TEXT, st.integers(1, 9), max_size=3),
    slip=FRACTION,
)
def test_any_mixture_survives_its_dump(
    families: dict[str, float], tops: dict[str, int], slip: float
) -> None:
    mixture = {"families": families, "max_difficulty": tops, "quality": {"slip_rate": slip}}
    recipe = PretrainRecipe.model_validate(PRETRAIN | {"mixture": mixture})
    assert again(recipe) == recipe


SCALARS = st.booleans() | st.integers(-(2**63), 2**63) | st.floats(allow_nan=False) | TEXT
TABLES = st.recursive(
    st.dictionaries(TEXT, SCALARS | st.lists(SCALARS, max_size=3), max_size=4),
    lambda inner: st.dictionaries(TEXT, SCALARS | inner, max_size=4),
    max_leaves=8,
)


@given(TABLES)
def test_any_tables_survive_toml(tables: dict[str, Any]) -> None:
    assert tomllib.loads(to_toml(tables)) == tables
