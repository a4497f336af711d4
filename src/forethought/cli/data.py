"""`forethought data select`: which problems of a run are worth training on."""

from __future__ import annotations

import json as json_module
import sys
from pathlib import Path
from typing import Annotated

import typer

from forethought.cli.console import note, print_json
from forethought.errors import RecipeError

app = typer.Typer(help="Choose training data.", no_args_is_help=True)


@app.callback()
def _data() -> None:
    """Choose training data."""


@app.command("select")
def select(
    recipe: Annotated[Path | None, typer.Argument(help="An rl recipe to run first.")] = None,
    out: Annotated[Path, typer.Option(help="The JSONL file to write.")] = Path("selected.jsonl"),
    by: Annotated[str, typer.Option(help="historical-variance.")] = "historical-variance",
    run: Annotated[
        Path | None, typer.Option("--run", help="Score this run instead of a new one.")
    ] = None,
    set_: Annotated[
        list[str] | None, typer.Option("--set", help="key=value, overrides the recipe.")
    ] = None,
    top: Annotated[int | None, typer.Option(min=1, help="Keep the best; all if left out.")] = None,
    json: Annotated[bool, typer.Option("--json", help="One JSON object on stdout.")] = False,
) -> None:
    """Score a run's problems and write them, best first, as a file that a jsonl: task reads."""
    from forethought.durable import write_atomic
    from forethought.training.example_scores import SCORES, loses_its_grader, recipe_of, score_run

    if by not in SCORES:
        raise RecipeError(f"by={by!r} is unknown; use one of {', '.join(SCORES)}")
    if (recipe is None) == (run is None):
        raise RecipeError("give a recipe to run, or --run with a run folder, but not both")
    if run is not None and set_:
        raise RecipeError("--set cannot change a run that is done; give a recipe to run anew")
    if not out.parent.is_dir():
        raise RecipeError(f"out={str(out)!r} is in a folder that does not exist; make it first")
    folder = run if run is not None else _train(recipe or Path(), set_ or [], quiet=json)
    scored = score_run(folder, by)
    kept = scored[:top]
    if loses_its_grader(recipe_of(folder)):
        note("this task has a grader of its own; a file is graded by comparing with the reference")
    rows = (json_module.dumps(found.row(), ensure_ascii=False) for found in kept)
    write_atomic(out, "".join(row + "\n" for row in rows))
    best = kept[0]
    if json:
        shown = {"out": str(out), "run": str(folder), "by": by, "num_scored": len(scored)}
        print_json(shown | {"num_kept": len(kept), "best": best.row()})
        return
    print(f"{len(scored)} problems scored by {by} over {len(best.accuracies)} visits of the best")
    print(f"the best, {best.score:.4f}: {best.example.messages[-1]['content']}")
    print(f"{len(kept)} written to {out}; train on them with task=jsonl:{out}")


def _train(recipe: Path, overrides: list[str], *, quiet: bool) -> Path:
    """Run the recipe, whose steps must see every problem twice; returns its folder."""
    from forethought.cli.recipes import named_recipe
    from forethought.cli.train import run_with_progress
    from forethought.schema import RlRecipe
    from forethought.tasks.base import load_task
    from forethought.training.example_scores import refuse_few_visits
    from forethought.training.stages import check_recipe, start_run

    parsed = named_recipe(recipe, overrides)
    if not isinstance(parsed, RlRecipe):
        raise RecipeError(f"stage={parsed.stage!r} samples no examples; give a recipe of rl")
    refuse_few_visits(parsed, load_task(parsed.task, split="train", seed=parsed.seed))
    check_recipe(parsed)
    with start_run(parsed, sys.argv) as run:
        run_with_progress(parsed, run, quiet=quiet, is_new=True)
    note(f"the run is in {run.folder}")
    return run.folder
