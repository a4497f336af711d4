"""`forethought quickstart`: the bundled base model learns to reason, and shows what it learned."""

from __future__ import annotations

import sys
import time
import tomllib
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from forethought.cli.console import Progress, format_seconds, note, print_json, show_warnings
from forethought.cli.train import note_differences, shown_fields
from forethought.errors import EngineError, RecipeError, UserError

if TYPE_CHECKING:
    from forethought.config import AnyRecipe
    from forethought.evaluation.before_after import Comparison, Measurement
    from forethought.run import Run
    from forethought.schema import RlRecipe

PROBLEMS = 200  # held-out problems measured before and after


def quickstart_command(
    seed: Annotated[
        int | None, typer.Option(min=0, help="Of problems, samples and order. [default: 0]")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Where run folders go. [default: runs]")] = None,
    set_: Annotated[
        list[str] | None, typer.Option("--set", help="key=value, overrides the recipe.")
    ] = None,
    resume: Annotated[
        Path | None, typer.Option("--resume", help="Continue the run in this folder.")
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="One JSON object at the end.")] = False,
) -> None:
    """Train the bundled base model by reinforcement learning alone; about 4 minutes on 2 cores."""
    from forethought.training.stages import check_recipe, discard_unused, start_run

    began = time.perf_counter()
    if resume is None:
        recipe = _require_rl(_new_recipe(seed or 0, out or Path("runs"), set_ or []))
        check_recipe(recipe)
        _require_a_comparison(recipe)
        run = start_run(recipe, sys.argv)
    elif seed is None and out is None and not set_:
        recipe, run = _open(resume)
    else:
        raise RecipeError("--resume takes no --seed, --out or --set; start a new run for these")
    with run, show_warnings():
        try:
            comparison, seconds = _learn(recipe, run, quiet=json)
        except KeyboardInterrupt:
            note(f"stopped; continue with: forethought quickstart --resume {run.folder}")
            raise
        except (UserError, EngineError):
            if resume is None:
                discard_unused(run)
            raise
        total = time.perf_counter() - began
        parts = seconds | {"other": total - sum(seconds.values())}
        report = _write_report(run, recipe, comparison, parts)
    if json:
        figures: dict[str, Any] = dict(comparison.figures())
        print_json(
            figures
            | {
                "seed": recipe.seed,
                "num_problems": comparison.before.greedy.num_problems,
                "seconds_total": total,
                "model": str(run.folder / "model"),
                "report": str(report),
            }
        )
    else:
        _print_tables(comparison, total, run.folder, report)


def _open(folder: Path) -> tuple[RlRecipe, Run]:
    """The run to go on with; the folder may have been moved since it began."""
    from forethought.config import parse_recipe
    from forethought.run import Run

    run = Run.open(folder)
    try:
        note_differences(run)
        data = tomllib.loads(run.recipe_text) | {"run_dir": str(run.folder)}
        return _require_rl(parse_recipe(data)), run
    except UserError:
        run.close()
        raise


def _require_a_comparison(recipe: RlRecipe) -> None:
    """Raise RecipeError when there are too few held-out problems for an interval."""
    from forethought.tasks.base import load_task

    spec = recipe.eval_task or recipe.task
    if (count := len(load_task(spec, split="test"))) < 2:
        raise RecipeError(
            f"eval_task={spec!r} has {count} held-out problem, too few to compare before and "
            "after; give a task of more"
        )


def _require_rl(recipe: AnyRecipe) -> RlRecipe:
    from forethought.schema import RlRecipe

    if not isinstance(recipe, RlRecipe):
        raise RecipeError(
            f"stage={recipe.stage!r} is not what the quickstart runs, which is one stage of rl; "
            "use forethought train"
        )
    return recipe


def _new_recipe(seed: int, out: Path, overrides: list[str]) -> AnyRecipe:
    """The quickstart recipe with a run folder that is still free."""
    from forethought.cli.recipes import find_recipe
    from forethought.config import load_recipe

    out = out.expanduser()
    folder, count = out / "quickstart", 1
    while folder.exists():
        count += 1
        folder = out / f"quickstart-{count}"
    # it measures the model itself
    defaults = [f"seed={seed}", f"run_dir={str(folder)!r}", "preflight_problems=0"]
    return load_recipe(find_recipe("quickstart"), [*defaults, *overrides])


def _learn(recipe: RlRecipe, run: Run, *, quiet: bool) -> tuple[Comparison, dict[str, float]]:
    """Measure, train, measure again. Returns what changed, and the seconds of each part."""
    from forethought.evaluation.before_after import Comparison
    from forethought.training.stages import run_stage

    say = (lambda text: None) if quiet else note
    say(f"Measuring {recipe.model} on {PROBLEMS} held-out problems ...")
    before = _measure(recipe, recipe.model)
    say(_line("before", before))
    say(f"Reinforcement learning, {recipe.num_steps} steps, no worked examples:")
    began = time.perf_counter()
    found = run.latest_checkpoint()
    first_step = found[0] if found else 0
    with Progress("rl", recipe.num_steps, first_step=first_step, quiet=quiet) as progress:
        run_stage(recipe, run, lambda step, metrics: progress.update(step, shown_fields(metrics)))
    training = time.perf_counter() - began
    say("Measuring what it learned, on the same problems ...")
    after = _measure(recipe, str(run.folder / "model"))
    say(_line("after", after))
    seconds = {"measure": before.seconds + after.seconds, "train": training}
    return Comparison(before=before, after=after), seconds


def _measure(recipe: RlRecipe, model: str) -> Measurement:
    from forethought.evaluation.before_after import measure
    from forethought.models.load import load_model
    from forethought.sampling.local import LocalEngine
    from forethought.tasks.base import load_task

    loaded = load_model(model)
    return measure(
        LocalEngine(loaded.model, loaded.tokenizer, max_rows=recipe.max_rows),
        load_task(recipe.eval_task or recipe.task, split="test"),
        num_problems=PROBLEMS,
        max_tokens=recipe.max_tokens,
        stop_at_boxed=recipe.stop_at_boxed,
    )


def _line(when: str, found: Measurement) -> str:
    return (
        f"  {when}: {found.samples.accuracy:.1%} of samples right, greedy "
        f"{found.greedy.accuracy:.1%}, {found.samples.mean_tokens:.0f} tokens a completion"
    )


def _write_report(
    run: Run, recipe: RlRecipe, comparison: Comparison, seconds: dict[str, float]
) -> Path:
    from forethought.evaluation.report import build_report

    summary = comparison.summary() | {
        "title": "A base model learns to reason",
        "seconds": seconds,
        "note": (
            f"{recipe.model} trained by reinforcement learning alone on {recipe.task}; measured "
            f"on {comparison.before.greedy.num_problems} held-out problems, seed {recipe.seed}."
        ),
    }
    run.write_json("summary.json", summary)
    return build_report(run.folder)


def _print_tables(comparison: Comparison, seconds: float, folder: Path, report: Path) -> None:
    from rich.table import Table

    from forethought.cli.console import console

    summary = comparison.summary()
    count = comparison.before.greedy.num_problems
    changes = Table(title=f"Before and after, {count} held-out problems", title_justify="left")
    for name in ("", "before", "after", "change", "95% interval"):
        changes.add_column(name, justify="left" if not name else "right")
    for row in summary["table"]:
        percent = row["kind"] == "fraction"
        scale, form = (100.0, "{:.1f}%") if percent else (1.0, "{:.1f}")
        low, high = (f"{row[k] * scale:+.1f}" for k in ("low", "high"))
        changes.add_row(
            row["name"],
            form.format(row["before"] * scale),
            form.format(row["after"] * scale),
            f"{row['diff'] * scale:+.1f}",
            f"{low} to {high}",
        )
    spending = Table(title="Ways to spend compute", title_justify="left")
    for name in ("", "before", "after", "tokens before", "tokens after"):
        spending.add_column(name, justify="left" if not name else "right")
    for row in summary["strategies"]:
        spending.add_row(
            row["name"],
            f"{row['before']:.1%}",
            f"{row['after']:.1%}",
            f"{row['tokens_before']:.0f}",
            f"{row['tokens_after']:.0f}",
        )
    out = console()
    out.print(changes)
    out.print(spending)
    out.print(f"{format_seconds(seconds)} in all. The model: {folder / 'model'}")
    out.print(f"The report: {report}")
