"""The checkpoints of a run: sealed folders named by step, and which of them stay.

A new one is whole, flushed to disk and in its place before an older one is touched.
"""

from __future__ import annotations

import shutil
import tomllib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from forethought.durable import (
    TEMPORARY_PREFIX,
    discard,
    is_sealed,
    make_folder,
    replace_folder,
    seal,
)

Checkpoint = tuple[int, Path]  # step and folder


@dataclass(frozen=True, slots=True)
class Keep:
    """Which checkpoints stay: the `newest` so many, and those of steps divisible by `every`."""

    newest: int = 2
    every: int | None = None


def keep_of(recipe_text: str) -> Keep:
    """What a resolved recipe (TOML) says of it."""
    recipe = tomllib.loads(recipe_text)
    return Keep(recipe.get("keep_checkpoints", Keep().newest), recipe.get("keep_every"))


def outdated(steps: Sequence[int], keep: Keep) -> list[int]:
    """Of the ascending `steps`, those whose checkpoints may go. The last one is never among them.

    >>> outdated([10, 15, 20, 25], Keep(newest=2, every=10))
    [15]
    """
    old = steps[: -keep.newest]
    return [step for step in old if keep.every is None or step % keep.every]


def checkpoints(parent: Path) -> list[Checkpoint]:
    """Every checkpoint in `parent`, damaged ones too, by step."""
    paths = parent.glob("step_*")
    return sorted((int(path.name[5:]), path) for path in paths if path.name[5:].isdigit())


def newest_good(parent: Path) -> Checkpoint | None:
    """The last checkpoint that is exactly what its manifest says, or None. Raises OSError where
    one cannot be read, which is no reason to count it as damaged."""
    return next((c for c in reversed(checkpoints(parent)) if is_sealed(c[1])), None)


def write_checkpoint(parent: Path, step: int, write: Callable[[Path], None]) -> Path:
    """Let `write` fill a folder, which becomes the checkpoint of `step` at once or not at all."""
    temporary = parent / f"{TEMPORARY_PREFIX}{_name(step)}"
    target = parent / _name(step)
    try:
        shutil.rmtree(temporary, ignore_errors=True)
        make_folder(parent)
        temporary.mkdir()
        write(temporary)
        seal(temporary)
        replace_folder(temporary, target)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return target


def prune(parent: Path, keep: Keep) -> None:
    """Remove the checkpoints that `keep` does not want."""
    for step in outdated([step for step, _ in checkpoints(parent)], keep):
        discard(parent / _name(step))


def _name(step: int) -> str:
    return f"step_{step:06d}"
