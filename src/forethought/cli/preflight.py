"""The preflight of a run as a block of lines, and `forethought train RECIPE --check`."""

from __future__ import annotations

from json import loads
from pathlib import Path
from typing import TYPE_CHECKING, Any

from forethought.cli.console import format_seconds, note, print_json
from forethought.errors import RecipeError

if TYPE_CHECKING:
    from forethought.config import AnyRecipe
    from forethought.training.preflight import Preflight


def check_command(recipe: AnyRecipe, *, json: bool) -> None:
    """Sample what the recipe's first stage would learn from, if it is one of rl. Trains nothing."""
    from forethought.schema import PipelineRecipe, RlRecipe
    from forethought.training.rl import check_flight

    stage = recipe.stages[recipe.order[0]] if isinstance(recipe, PipelineRecipe) else recipe
    found: list[Preflight] = []
    if isinstance(stage, RlRecipe):
        if not stage.preflight_problems:
            raise RecipeError("preflight_problems=0 leaves nothing to check; set it to 8")
        check_flight(stage, found.append if json else print_preflight)
    elif not json:
        print(f"the recipe is sound; stage={stage.stage!r} has nothing to sample")
    if json:
        print_json({"preflight": found[0].to_json() if found else None})


def preflight_of(folder: Path) -> Any:
    """What a run folder says of its preflight, None when it had none."""
    path = folder / "preflight.json"
    return loads(path.read_text(encoding="utf-8")) if path.exists() else None


def print_preflight(found: Preflight) -> None:
    """The block as a result, on stdout."""
    print("\n".join(preflight_lines(found)), flush=True)


def show_preflight(found: Preflight) -> None:
    """The block on stderr, out of the way of results."""
    note("\n".join(preflight_lines(found)))


def preflight_lines(found: Preflight) -> list[str]:
    """A heading, and a line for each thing worth knowing before the first step."""
    rows = {
        "right": _right(found),
        "signal": _signal(found),
        "length": _length(found),
        "a step": _step(found),
        "memory": _memory(found),
    }
    heading = (
        f"Preflight: {found.num_groups} groups of {found.task}, {found.group_size} samples "
        f"each, {format_seconds(found.seconds.total)}"
    )
    return [heading, *(f"  {name:<8}{text}" for name, text in rows.items())]


def _right(found: Preflight) -> str:
    if found.accuracy is None:
        return "unknown: nothing could be graded"
    best = found.pass_at[found.group_size]
    text = f"{found.accuracy:.0%} of samples, pass@{found.group_size} {best:.0%}"
    return text + (f", {found.unread_frac:.0%} without an answer" if found.unread_frac else "")


def _signal(found: Preflight) -> str:
    return (
        f"{found.signal_frac:.0%} of problems teach ({found.none_right_frac:.0%} never right, "
        f"{found.all_right_frac:.0%} always)"
    )


def _length(found: Preflight) -> str:
    parts = [f"{found.length_mean:.0f} tokens", f"{found.truncated_frac:.0%} cut off"]
    if found.length_p95 is not None:
        parts.append(f"95% of right ones within {found.length_p95}")
    if found.suggested_max_tokens is not None:
        parts.append(f"try max_tokens={found.suggested_max_tokens}")
    return ", ".join(parts)


def _step(found: Preflight) -> str:
    step, count = found.seconds.step, found.num_steps
    return (
        f"about {format_seconds(step)}, all {count} about {format_seconds(step * count)}, "
        "evaluations not counted"
    )


def _memory(found: Preflight) -> str:
    needed = _size(found.memory.update_bytes)
    free = found.memory.free_bytes
    return f"{needed} for an update, " + ("unknown" if free is None else _size(free)) + " free"


def _size(count: int) -> str:
    return f"{count / 2**30:.1f} GiB" if count >= 2**30 else f"{count / 2**20:.0f} MiB"
