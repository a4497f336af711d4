"""`forethought task list|show|check`: which problems there are, and whether they grade soundly."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer

from forethought.cli.console import Progress, console, print_json, printable
from forethought.errors import TaskError, UserError
from forethought.tasks.base import FAMILIES, HUMANEVAL, load_task

if TYPE_CHECKING:
    from forethought.tasks.check import TaskCheck

app = typer.Typer(help="List tasks and show their problems.", no_args_is_help=True)

AsJson = Annotated[bool, typer.Option("--json", help="One JSON object on stdout.")]


@app.command("list")
def list_tasks(as_json: AsJson = False) -> None:
    """List the task families, with their difficulties, and the tasks that come from elsewhere."""
    families: list[dict[str, Any]] = [
        {
            "task": family.name,
            "summary": family.summary,
            "max_difficulty": family.max_difficulty,
            "default_difficulty": family.default_difficulty,
        }
        for family in FAMILIES.values()
    ]
    gym = _gym_specs()
    if as_json:
        files = ["jsonl:PATH", "parquet:PATH", "code:PATH"]
        print_json({"tasks": families, "gym": gym, "files": files, "code": [HUMANEVAL]})
        return
    out = console()
    for row in families:
        dial = f"difficulty 1 to {row['max_difficulty']}, by default {row['default_difficulty']}"
        out.print(f"{row['task']:<12}{row['summary']} ({dial})")
    out.print("\nWith options: sum:difficulty=3; several in turn: sum+story.")
    out.print("Your own: jsonl:PATH, parquet:PATH (id, question, answer).")
    out.print(f"Code, run in a sandbox: {HUMANEVAL}, code:PATH (question, entry_point, tests).")
    out.print(f"From reasoning-gym: {', '.join(gym) or 'pip install reasoning-gym'}.")


def _gym_specs() -> list[str]:
    from forethought.tasks.gym import gym_families

    try:
        return [f"gym:{name}" for name in gym_families()]
    except TaskError:  # an extra that is not installed has no families
        return []


@app.command("show")
def show(
    task: Annotated[
        str, typer.Argument(help="NAME[:key=value,...], jsonl:PATH, code:PATH or gym:NAME.")
    ],
    split: Annotated[str, typer.Option(help="train or test.")] = "train",
    num: Annotated[int, typer.Option(min=1, help="How many problems.")] = 3,
    seed: Annotated[int, typer.Option(min=0, help="Fixes which problems are drawn.")] = 0,
    as_json: AsJson = False,
) -> None:
    """Show the first problems of a task with their reference answers."""
    problems = load_task(task, split=split, seed=seed)
    examples = [problems[index] for index in range(min(num, len(problems)))]
    if as_json:
        rows = [{"id": e.id, "messages": list(e.messages), "answer": e.answer} for e in examples]
        print_json({"task": problems.name, "split": split, "size": len(problems), "examples": rows})
        return
    out = console()
    out.print(f"{problems.name}, {split} split: {len(problems):,} problems", style="bold")
    for example in examples:
        out.print(f"\n{example.id}", style="dim")
        for message in example.messages:
            out.print(printable(message["content"]))
        out.print(f"answer: {printable(example.answer)}")


@app.command("check")
def check(
    task: Annotated[
        str | None, typer.Argument(help="NAME[:key=value,...], a data file or gym:NAME.")
    ] = None,
    every: Annotated[bool, typer.Option("--all", help="Every family there is.")] = False,
    num: Annotated[int, typer.Option(min=1, help="Problems of each split.")] = 10,
    as_json: AsJson = False,
) -> None:
    """Test a task's grader: right answers score 1, all else 0, and no answer is run as code.

    A single task that is unsound ends with exit code 1.
    """
    from forethought.tasks.check import all_specs, check_task

    if (task is None) is not every:
        raise UserError("task check takes a task or --all; give one of them")
    specs = all_specs() if task is None else [task]
    found: dict[str, TaskCheck] = {}
    with Progress("check", total=len(specs), quiet=as_json or len(specs) == 1) as bar:
        for spec in specs:
            found[spec] = check_task(spec, num_problems=num)
            bar.update(len(found), {"task": spec})
    if as_json:
        print_json(summary_of(found))
    else:
        _show_checks(found)
    if task is not None and not found[task].is_sound:
        raise typer.Exit(1)


def summary_of(found: dict[str, TaskCheck]) -> dict[str, Any]:
    """What `--json` prints: which tasks are sound, why the others are not, and each in detail."""
    return {
        "num_families": len(found),
        "sound": [name for name, result in found.items() if result.is_sound],
        "unsound": {n: list(result.faults) for n, result in found.items() if result.faults},
        "tasks": {name: asdict(result) for name, result in found.items()},
    }


def _show_checks(found: dict[str, TaskCheck]) -> None:
    out = console()
    for name, result in found.items():
        verdict = "sound" if result.is_sound else "UNSOUND"
        grade_ms = 1000 * result.median_seconds
        out.print(f"{name:<30}{verdict:<9}{result.num_grades} grades, {grade_ms:.1f} ms each")
        for line in (*result.faults, *result.notes):
            out.print(printable(f"    {line}"))
    if len(found) > 1:
        num_sound = sum(result.is_sound for result in found.values())
        out.print(f"{num_sound} of {len(found)} families are sound", style="bold")
