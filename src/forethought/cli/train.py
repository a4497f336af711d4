"""`forethought train RECIPE.toml`: run one stage, or continue a run that was stopped."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from forethought.cli.console import Progress, format_seconds, note, print_json, show_warnings
from forethought.cli.preflight import check_command, preflight_of, show_preflight
from forethought.errors import EngineError, RecipeError, UserError
from forethought.machine import what_changed

if TYPE_CHECKING:
    from forethought.config import AnyRecipe
    from forethought.run import Run
    from forethought.training.loop import Metrics

# metric -> (label, format), in the order shown; a stage shows those it has
_SHOWN = {
    "loss/mean": ("loss", "{:.4f}"),
    "reward/mean": ("reward", "{:.3f}"),
    "rollout/signal_frac": ("signal", "{:.0%}"),
    "rollout/length_mean": ("length", "{:.0f}"),
    "rollout/tokens_per_second": ("tok/s", "{:,.0f}"),
    "data/tokens_per_second": ("tok/s", "{:,.0f}"),
    "eval/accuracy": ("held-out", "{:.1%}"),
}


def train_command(
    recipe: Annotated[Path | None, typer.Argument(help="A recipe file (TOML).")] = None,
    set_: Annotated[
        list[str] | None, typer.Option("--set", help="key=value, overrides the recipe.")
    ] = None,
    resume: Annotated[
        Path | None, typer.Option("--resume", help="Continue the run in this folder.")
    ] = None,
    check: Annotated[
        bool, typer.Option("--check", help="Try the recipe out on a few problems, train nothing.")
    ] = False,
    json: Annotated[bool, typer.Option("--json", help="One JSON object at the end.")] = False,
) -> None:
    """Run a recipe: pretrain, sft or rl. Ctrl-C leaves a run that --resume continues."""
    from forethought.cli.recipes import named_recipe
    from forethought.config import parse_recipe
    from forethought.run import Run
    from forethought.training.stages import check_recipe, start_run

    began = time.perf_counter()
    if (recipe is None) == (resume is None):
        raise RecipeError("give a recipe file, or --resume with a run folder, but not both")
    if check and resume is not None:
        raise RecipeError("--check is for a recipe; a run that is resumed has had its preflight")
    if resume is not None:
        import tomllib

        if set_:
            raise RecipeError(
                f"--set {set_[0]} cannot change a run that is resumed; leave it out, or start a new"
                " run with it"
            )
        run = Run.open(resume)
        note_differences(run)
        # the folder may have been moved since
        parsed = parse_recipe(tomllib.loads(run.recipe_text) | {"run_dir": str(run.folder)})
    else:
        assert recipe is not None
        parsed = named_recipe(recipe, set_ or [])
        check_recipe(parsed)
        if check:
            with show_warnings():
                check_command(parsed, json=json)
            return
        run = start_run(parsed, sys.argv)
    with run:
        totals = run_with_progress(parsed, run, quiet=json, is_new=resume is None)
    last = (
        Path(parsed.stages[parsed.order[-1]].run_dir) if parsed.stage == "pipeline" else run.folder
    )
    model = last / "model"
    seconds = time.perf_counter() - began
    if json:
        print_json(
            {
                "run": str(run.folder),
                "model": str(model),
                "seconds": seconds,
                "preflight": preflight_of(last),
            }
            | totals
        )
    else:
        print(f"trained in {format_seconds(seconds)}; the model is in {model}")


def run_with_progress(recipe: AnyRecipe, run: Run, *, quiet: bool, is_new: bool) -> Metrics:
    """Run or resume the recipe in its folder, showing how it goes; returns the run's totals.

    The folder of a new run that a mistake of the user's ends at once is removed.
    """
    from forethought.training.stages import discard_unused, finished_steps, run_stage

    first = finished_steps(recipe, run)
    if first >= recipe.num_steps:
        note(f"all {recipe.num_steps} steps of this run are done; nothing is left to train")
    title = recipe.name or recipe.stage
    progress = Progress(title, recipe.num_steps, first_step=first, quiet=quiet)
    with show_warnings(), progress:
        try:
            return run_stage(
                recipe,
                run,
                lambda step, metrics: progress.update(step, shown_fields(metrics)),
                None if quiet else show_preflight,
            )
        except KeyboardInterrupt:
            note(f"stopped; continue with: forethought train --resume {run.folder}")
            raise
        except (UserError, EngineError):
            if is_new:
                discard_unused(run)
            raise


def note_differences(run: Run) -> None:
    """Say in a line each what keeps a resumed run from ending as an unbroken one would."""
    if changed := what_changed(run.info):
        note(f"results may differ in their last bits: the run began with {changed}")
    if (run.folder / "recipe.toml").read_text(encoding="utf-8") != run.recipe_text:
        note(f"changes of {run.folder / 'recipe.toml'} have no effect on a run that has begun")


def shown_fields(metrics: Mapping[str, float]) -> dict[str, str]:
    """The metrics worth a glance while a run goes on."""
    return {
        label: form.format(metrics[name])
        for name, (label, form) in _SHOWN.items()
        if name in metrics
    }
