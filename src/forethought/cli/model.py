"""`forethought model get|info|list`."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Annotated

import typer

from forethought.models.info import describe
from forethought.models.registry import REGISTERED, get_model, is_fetched, model_folder
from forethought.models.resolve import BUNDLED_DIR, BUNDLED_PREFIX, bundled_names

QUESTION = "What is 7 + 5?"

app = typer.Typer(help="Fetch, inspect and list models.", no_args_is_help=True)

AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object, for machines.")]


@app.command("get")
def get(
    name: Annotated[str, typer.Argument(help="A registered model, such as smollm2-135m.")],
    as_json: AsJson = False,
) -> None:
    """Fetch a registered model, convert it, and prove it by generating."""
    was_there = name in REGISTERED and is_fetched(name)
    folder = get_model(name, progress=lambda line: typer.echo(line, err=as_json))
    answer = None if was_there else prove(name)
    if as_json:
        facts = {"name": name, "folder": str(folder), "was_there": was_there}
        typer.echo(json.dumps(facts | {"question": QUESTION, "answer": answer}))
    elif answer is not None:
        typer.echo(f"{QUESTION}\n{answer}")


def prove(name: str) -> str:
    """Load the model as any command would and let it answer one question."""
    from forethought.models.load import answer_greedily, load_model

    return answer_greedily(load_model(name, device="cpu"), QUESTION)


@app.command("info")
def info(
    spec: Annotated[str, typer.Argument(help="A folder, bundled:NAME or a registered name.")],
    as_json: AsJson = False,
) -> None:
    """Say what a model is: size, shape, template, card. Loads no weights."""
    facts = asdict(describe(spec))
    if as_json:
        typer.echo(json.dumps(facts))
        return
    for key, value in facts.items():
        typer.echo(f"{key:18} {readable(value)}")


def readable(value: object) -> str:
    """A fact as a person reads it."""
    if value is None:
        return "unknown"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:,}" if isinstance(value, int) else str(value)


@app.command("list")
def list_models(as_json: AsJson = False) -> None:
    """List the models that need no path: bundled ones, and registered ones with their state."""
    rows: list[dict[str, str | bool]] = [
        {"spec": BUNDLED_PREFIX + name, "ready": True, "folder": str(BUNDLED_DIR / name)}
        for name in bundled_names()
    ]
    rows += [
        {"spec": name, "ready": is_fetched(name), "folder": str(model_folder(name))}
        for name in sorted(REGISTERED)
    ]
    if as_json:
        typer.echo(json.dumps({"models": rows}))
        return
    for row in rows:
        state = "ready" if row["ready"] else f"fetch with: forethought model get {row['spec']}"
        typer.echo(f"{row['spec']:24} {state}")
