"""A recipe in, a finished run folder out: which function runs which stage."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from forethought.config import AnyRecipe, dump_recipe
from forethought.models.resolve import resolve
from forethought.run import Run
from forethought.schema import PipelineRecipe, PretrainRecipe, RlRecipe, SftRecipe
from forethought.training.checkpoint import load_counters
from forethought.training.loop import Metrics, OnStep

if TYPE_CHECKING:
    from forethought.training.preflight import OnPreflight


def start_run(recipe: AnyRecipe, command: Sequence[str]) -> Run:
    """A new run folder at the recipe's `run_dir`. Raises RecipeError when it cannot be used."""
    return Run.create(
        Path(recipe.run_dir),
        stage=recipe.stage,
        recipe_text=dump_recipe(recipe),
        seed=recipe.seed,
        command=command,
        name=recipe.name,
    )


def run_stage(
    recipe: AnyRecipe,
    run: Run,
    on_step: OnStep | None = None,
    on_preflight: OnPreflight | None = None,
) -> Metrics:
    """Run or resume the recipe's stage in its folder; returns the totals of the run.

    `on_preflight` hears of the rollouts that a new run of rl begins with.
    """
    match recipe:
        case PretrainRecipe():
            from forethought.training.pretrain import run_pretrain

            return run_pretrain(recipe, run, on_step)
        case SftRecipe():
            from forethought.training.sft import run_sft

            return run_sft(recipe, run, on_step)
        case RlRecipe():
            from forethought.training.rl import run_rl

            return run_rl(recipe, run, on_step, on_preflight)
        case PipelineRecipe():
            return _run_pipeline(recipe, run, on_step, on_preflight)


def check_recipe(recipe: AnyRecipe) -> None:
    """Find a mistake in what a recipe names (model, task, rewards, mixture, data) before anything
    is written or loaded. Raises UserError."""
    if isinstance(recipe, PipelineRecipe):
        resolve(recipe.stages[recipe.order[0]].model)
        for stage in recipe.stages.values():
            _check(stage)
        return
    if not isinstance(recipe, PretrainRecipe):
        resolve(recipe.model)
    _check(recipe)


def finished_steps(recipe: AnyRecipe, run: Run) -> int:
    """Steps of the run that need not be made again."""
    if not isinstance(recipe, PipelineRecipe):
        return _checkpointed_steps(run)
    done = 0
    for name in recipe.order:
        stage = recipe.stages[name]
        if _saved_model(stage).exists():
            done += stage.num_steps
        elif (Path(stage.run_dir) / "run.json").exists():
            with Run.open(Path(stage.run_dir)) as inner:
                done += _checkpointed_steps(inner)
    return done


def _checkpointed_steps(run: Run) -> int:
    found = run.latest_checkpoint()
    return found[0] if found else 0


def discard_unused(run: Run) -> None:
    """Remove the folder of a new run that a user's mistake ended before its first measurement."""
    if not any(run.folder.rglob("metrics.jsonl")):
        shutil.rmtree(run.folder, ignore_errors=True)


def _run_pipeline(
    recipe: PipelineRecipe,
    run: Run,
    on_step: OnStep | None,
    on_preflight: OnPreflight | None,
) -> Metrics:
    """Each stage in a run folder of its own below the pipeline's; finished ones are skipped."""
    totals: Metrics = {}
    done = 0
    for name in recipe.order:
        stage = recipe.stages[name]
        folder = Path(stage.run_dir)
        is_started = (folder / "run.json").exists()
        opened = Run.open(folder) if is_started else start_run(stage, run.info["command"])
        with opened as inner:
            if _saved_model(stage).exists():
                found = _stored_totals(inner)
            else:
                found = run_stage(stage, inner, _shifted(on_step, done), on_preflight)
        totals |= {f"{name}/{key}": value for key, value in found.items()}
        done += stage.num_steps
    return totals


def _stored_totals(run: Run) -> Metrics:
    """The totals of a stage that is done, by its last checkpoint; none where that was removed."""
    found = run.latest_checkpoint()
    return load_counters(found[1]) if found else {}


def _check(stage: PretrainRecipe | SftRecipe | RlRecipe) -> None:
    match stage:
        case PretrainRecipe():
            from forethought.training.text import build_mixture

            build_mixture(stage.mixture)
        case SftRecipe():
            from forethought.training.sft import check_sft

            check_sft(stage)
        case RlRecipe():
            from forethought.training.learner import check_rl

            check_rl(stage)


def _saved_model(stage: SftRecipe | RlRecipe) -> Path:
    return Path(stage.run_dir) / "model"


def _shifted(on_step: OnStep | None, before: int) -> OnStep | None:
    """`on_step`, told steps of the whole pipeline."""
    if on_step is None:
        return None
    return lambda step, metrics: on_step(before + step, metrics)
