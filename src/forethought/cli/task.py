"""`forethought task list|show`: which problems there are, and what they look like."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from forethought.cli.console import console, print_json, printable
from forethought.tasks.base import FAMILIES, HUMANEVAL, load_task
from forethought.tasks.gym import NUMBER_FAMILIES, TEXT_FAMILIES

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
    gym = [f"gym:{name}" for name in sorted(NUMBER_FAMILIES | TEXT_FAMILIES)]
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
    out.print(f"From reasoning-gym: {', '.join(gym)}.")


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
