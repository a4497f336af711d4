"""Named warnings: what goes wrong in a run, said once, with the likely cause and what to change.

They are a pure function of metrics.jsonl and the recipe, so a resumed run raises those that an
unbroken one would have raised.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from forethought.durable import read_lines
from forethought.run import WARNINGS, Run
from forethought.schema import RecipeBase
from forethought.training.history import History
from forethought.training.loop import OnStep
from forethought.training.symptoms import Symptom, symptoms_of

logger = logging.getLogger("forethought")


@dataclass(frozen=True, slots=True, kw_only=True)
class NamedWarning:
    """A line of warnings.jsonl. `text` says what was seen, why, and what to change."""

    step: int
    name: str
    text: str


def warnings_of(rows: Sequence[Mapping[str, Any]], recipe: RecipeBase) -> list[NamedWarning]:
    """Every warning of a run with these rows of metrics.jsonl, in the order raised."""
    history = History(rows)
    found: list[NamedWarning] = []
    for count, row in enumerate(rows, start=1):
        found += _new(history.upto(count), int(row["step"]), recipe, {w.name for w in found})
    return found


def _new(history: History, step: int, recipe: RecipeBase, known: set[str]) -> list[NamedWarning]:
    """What the newest row of the history gives away, but for what is known."""
    found = []
    for symptom in symptoms_of(recipe):
        seen = None if symptom.name in known else symptom.sign(history, recipe)
        if seen is not None:
            found.append(NamedWarning(step=step, name=symptom.name, text=sentence(symptom, seen)))
    return found


def sentence(symptom: Symptom, seen: str) -> str:
    """What was seen, what it likely comes from, and what to change."""
    return f"{seen}; likely {symptom.cause}: {symptom.knob}"


def watched(run: Run, recipe: RecipeBase, on_step: OnStep | None) -> OnStep:
    """`on_step`, after a look at the run's health: a new warning is written down and logged."""
    rows: list[Mapping[str, Any]] = []
    known: set[str] = set()

    def look(step: int, metrics: Mapping[str, float]) -> None:
        if not rows:  # the first step since the start or the resume, which took back later lines
            rows.extend(run.metrics()[:-1])
            known.update(row["name"] for row in read_lines(run.folder / WARNINGS))
        rows.append({name: value for name, value in metrics.items() if math.isfinite(value)})
        for warning in _new(History(rows), step, recipe, known):
            known.add(warning.name)
            run.warn(warning.step, warning.name, warning.text)
            logger.warning("%s: %s", warning.name, warning.text)
        if on_step is not None:
            on_step(step, metrics)

    return look
