"""Two sides that train the same model from the same start, by the seconds until each copy.

A `Race` says what both train; TRL's side runs with a `Setting`, ours with changes to a recipe. The
weights are kept every few batches, off the clock; afterwards our engine answers the same held-out
problems with each copy. A target is reached at the first copy from which on accuracy stays above a
share of TRL's final gain.
"""

from __future__ import annotations

import shutil
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from forethought.config import parse_recipe
from forethought.evaluation.evaluate import evaluate
from forethought.models.load import load_model
from forethought.models.pages import keep_pages
from forethought.models.save import save_model
from forethought.sampling.local import LocalEngine
from forethought.schema import RlRecipe
from forethought.tasks.base import load_task
from forethought.training.held import updates_per_batch
from forethought.training.learner import build_learner
from forethought.training.rl import start_or_resume, train_step
from forethought.training.stages import start_run
from trl_side import train_trl

Point = dict[str, float]  # batch, seconds and accuracy of one copy


@dataclass(frozen=True)
class Race:
    """What both sides train on, and what their copies are asked."""

    task: str
    batch: int  # rollouts
    batches: int
    every: int  # batches from one copy to the next
    copies: int  # in that time, of a side whose steps allow it
    max_tokens: int
    micro_batch: int  # of TRL, as is the next
    warmup: int  # steps in which the rate rises, from 0 in the first
    recipe: dict[str, Any]  # ours, beside what this class says
    problems: int
    samples: int

    def steps_a_batch(self, prompts: int, group: int) -> int:
        assert self.batch % (prompts * group) == 0, "a step is a share of a batch"
        return self.batch // (prompts * group)

    def steps_between(self, steps: int) -> int:
        """From one copy to the next, of a side that makes a batch in so many."""
        between = self.every * steps
        return between // self.copies if between % self.copies == 0 else between


@dataclass(frozen=True)
class Setting:
    """One of TRL's: RATE[:UPDATES[:PROMPTSxGROUP[:DTYPE[:LAYERS]]]]; a step is a batch or a share
    of one, and with so many LAYERS only the last ones learn."""

    rate: str
    updates: str
    prompts: int
    group: int
    dtype: str
    layers: str = ""

    @staticmethod
    def read(text: str, shape: str, dtype: str = "float32") -> Setting:
        """`shape` and `dtype` where the text has none."""
        given = text.split(":")
        rate, updates, shape, dtype, layers = given + ["", "1", shape, dtype, ""][len(given) :]
        prompts, group = shape.split("x")
        return Setting(rate, updates, int(prompts), int(group), dtype, layers)

    @property
    def name(self) -> str:
        last = f"_last{self.layers}" if self.layers else ""
        return f"{self.rate}_{self.updates}_{self.prompts}x{self.group}_{self.dtype}{last}"


def train_peer(
    race: Race, setting: Setting, model: Path, seed: int, folder: Path
) -> dict[float, float]:
    """Seconds of TRL's training until each copy, by its batch."""
    steps = race.steps_a_batch(setting.prompts, setting.group)
    until = train_trl(
        model, race.task, setting.rate, seed, race.batches * steps,
        race.steps_between(steps), folder,
        "--updates", setting.updates, "--prompts", setting.prompts, "--group", setting.group,
        "--max-tokens", race.max_tokens, "--micro-batch", race.micro_batch,
        "--dtype", setting.dtype, "--warmup", race.warmup,
        *(["--layers", setting.layers] if setting.layers else []),
    )  # fmt: skip
    for step in until:
        (folder / f"step-{step}").rename(copy_of(folder, step / steps))
    return {step / steps: seconds for step, seconds in until.items()}


def copy_of(folder: Path, batch: float) -> Path:
    return folder / f"batch-{batch:g}"


def train_own(
    race: Race, model: str, seed: int, folder: Path, changes: Sequence[str]
) -> dict[float, float]:
    """Seconds of our training until each copy, by its batch."""
    given = {
        "stage": "rl",
        "run_dir": str(folder / "run"),
        "seed": seed,
        "model": model,
        "task": race.task,
        "num_steps": race.batch,  # until the recipe tells how many make a batch
        "max_tokens": race.max_tokens,
        "stop_at_boxed": False,
        "eval_problems": 0,
    }
    recipe = parse_recipe(given | race.recipe, list(changes))
    assert isinstance(recipe, RlRecipe), "the recipe above is one of RL"
    steps = race.steps_a_batch(recipe.prompts_per_step, recipe.group_size)
    updates = updates_per_batch(recipe) * steps  # of a batch
    recipe = recipe.model_copy(update={"num_steps": race.batches * updates})
    seconds, spent = {}, 0.0
    with start_run(recipe, ["race"]) as run:
        learner = build_learner(recipe, run)
        keep_pages(learner.policy)  # as a run does
        start_or_resume(learner, run, 0)
        for update in range(1, recipe.num_steps + 1):
            began = time.perf_counter()
            train_step(learner, run, update)
            spent += time.perf_counter() - began
            if update % race.steps_between(updates) == 0:
                batch = update / updates
                save_model(learner.policy, learner.tokenizer, copy_of(folder, batch))
                seconds[batch] = spent
    return seconds


def accuracy_of(race: Race, model: Path, base: str) -> float:
    """Percent of samples right on the held-out problems."""
    load_model(base).tokenizer.save_pretrained(model)  # TRL's copies have none
    loaded = load_model(str(model))
    found = evaluate(
        LocalEngine(loaded.model, loaded.tokenizer),
        load_task(race.task, split="test"),
        num_samples=race.samples,
        max_tokens=race.max_tokens,
        limit=race.problems,
        stop_at_boxed=False,
    )
    scores = [score or 0.0 for result in found.results for score in result.scores]
    return 100 * sum(scores) / len(scores)


def curve(race: Race, folder: Path, seconds: dict[float, float], base: str) -> list[Point]:
    """The copies' accuracy; they are deleted."""
    points = []
    for batch, spent in seconds.items():
        copy = copy_of(folder, batch)
        accuracy = accuracy_of(race, copy, base)
        points.append({"batch": batch, "seconds": spent, "accuracy": accuracy})
        shutil.rmtree(copy)
    return points


def reached(points: list[Point], target: float) -> float | None:
    """Seconds of the first point from which on accuracy stays at or above the target."""
    found = None
    for point in reversed(points):
        if point["accuracy"] < target:
            break
        found = point["seconds"]
    return found


def final(race: Race, points: list[Point]) -> float:
    """The mean accuracy of the copies of the last batches, so many as from one to the fourth."""
    since = points[-1]["batch"] - 3 * race.every
    return statistics.mean(point["accuracy"] for point in points if point["batch"] > since)


def compare(
    race: Race, start: float, peer: list[Point], own: list[Point], shares: Sequence[float]
) -> dict[str, Any]:
    """Seconds of both sides until each share of the peer's gain, and their ratio."""
    ends = final(race, peer), final(race, own)
    gain = ends[0] - start
    result: dict[str, Any] = {"trl_final": round(ends[0], 1), "own_final": round(ends[1], 1)}
    batches = [round(side[-1]["seconds"] / side[-1]["batch"], 3) for side in (peer, own)]
    result |= {"trl_batch_seconds": batches[0], "own_batch_seconds": batches[1]}
    for share in shares:
        target = start + share * gain
        theirs, ours = reached(peer, target), reached(own, target)
        result[f"at_{100 * share:.0f}"] = {
            "target": round(target, 1),
            "trl_seconds": theirs and round(theirs, 1),
            "own_seconds": ours and round(ours, 1),
            "ratio": round(theirs / ours, 2) if theirs and ours else None,
        }
    return result
