"""Which examples teach: scores of a run's examples from how right its rollouts of them were.

`examples.jsonl` of the run folder holds, for every step, the accuracy of each example that the step
sampled. Historical variance (one-shot RLVR, arXiv 2504.20571, equations 1 and 2) prefers examples
whose accuracy moved most while the model learned.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, pvariance
from typing import Any

from forethought.config import load_recipe
from forethought.durable import read_lines
from forethought.errors import RecipeError
from forethought.run import EXAMPLES
from forethought.schema import RlRecipe
from forethought.tasks.base import FamilyTask, MixedTask, load_task
from forethought.tasks.files import FileTask
from forethought.training.held import batch_number
from forethought.types import Example, RolloutGroup, Task

_MIN_VISITS = 2  # one accuracy has no variance


@dataclass(frozen=True, slots=True, kw_only=True)
class ScoredExample:
    """An example, its score, and its accuracy at each visit: a step that sampled it.

    `columns` are those of a data file, which reward functions may ask for.
    """

    example: Example
    score: float
    accuracies: tuple[float, ...]
    columns: Mapping[str, Any]

    def row(self) -> dict[str, Any]:
        """A line that a `jsonl:` task reads."""
        messages = self.example.messages
        is_plain = len(messages) == 1
        return {
            **self.columns,
            "id": self.example.id,
            "question": messages[0]["content"] if is_plain else list(messages),
            "answer": self.example.answer,
            "score": round(self.score, 6),
            "accuracies": [round(accuracy, 4) for accuracy in self.accuracies],
        }


def example_accuracies(groups: Iterable[RolloutGroup]) -> dict[str, float | None]:
    """Mean score of a step's graded rollouts by example id; None where none was graded."""
    scores: dict[str, list[float]] = {}
    for group in groups:
        found = scores.setdefault(group.example.id, [])
        grades = [rollout.grade for rollout in group.rollouts if rollout.grade is not None]
        found += [grade.score for grade in grades if grade.score is not None]
    return {name: fmean(found) if found else None for name, found in scores.items()}


def historical_variance(accuracies: Sequence[float]) -> float:
    """Population variance of an example's accuracies over its visits."""
    return pvariance(accuracies)


SCORES: Mapping[str, Callable[[Sequence[float]], float]] = {
    "historical-variance": historical_variance
}


def score_run(folder: Path, by: str) -> list[ScoredExample]:
    """The examples of the run in `folder` that were sampled twice or more, highest score first.

    Equal scores keep the task's order. Raises RecipeError when the run has nothing to score.
    """
    recipe = recipe_of(folder)
    visits: defaultdict[str, list[float]] = defaultdict(list)
    for row in read_lines(folder / EXAMPLES):
        for name, accuracy in zip(row["ids"], row["accuracies"], strict=True):
            if accuracy is not None:
                visits[name].append(accuracy)
    known = {name: found for name, found in visits.items() if len(found) >= _MIN_VISITS}
    if not known:
        raise RecipeError(
            f"run '{folder}' sampled no example {_MIN_VISITS} times or more, so {by} is unknown; "
            "train for more steps, or on a task of fewer problems"
        )
    task = load_task(recipe.task, split="train", seed=recipe.seed)
    scored = [
        ScoredExample(
            example=example,
            score=SCORES[by](known[example.id]),
            accuracies=tuple(known[example.id]),
            columns=example.meta if isinstance(task, FileTask) else {},
        )
        for example in map(task.__getitem__, range(len(task)))
        if example.id in known
    ]
    return sorted(scored, key=lambda found: -found.score)


def loses_its_grader(recipe: RlRecipe) -> bool:
    """True when the task grades in a way of its own, which a file of its problems does not keep."""
    return not _is_compared(load_task(recipe.task, split="train", seed=recipe.seed))


def _is_compared(task: Task) -> bool:
    """True when the task compares an answer with its reference, as a file's task does."""
    if isinstance(task, MixedTask):
        return all(map(_is_compared, task.parts))
    return isinstance(task, FileTask) or (isinstance(task, FamilyTask) and not task.family.check)


def recipe_of(folder: Path) -> RlRecipe:
    """What the run in `folder` was started with. Raises RecipeError when it is none of rl."""
    if not (folder / "run.json").exists():
        raise RecipeError(f"'{folder}' is not a run folder (it has no run.json): give --run one")
    recipe = load_recipe(folder / "recipe.toml")
    if not isinstance(recipe, RlRecipe):
        raise RecipeError(
            f"run '{folder}' is of stage {recipe.stage!r}, which samples no examples; give --run "
            "the folder of an rl stage"
        )
    return recipe


def refuse_few_visits(recipe: RlRecipe, task: Task) -> None:
    """Raise RecipeError when the recipe's steps do not sample every example twice."""
    num_batches = batch_number(recipe, recipe.num_steps)
    num_drawn = num_batches * recipe.prompts_per_step
    if num_drawn < _MIN_VISITS * len(task):
        raise RecipeError(
            f"num_steps={recipe.num_steps} of {recipe.prompts_per_step} prompts see the "
            f"{len(task):,} problems of task={recipe.task!r} less than {_MIN_VISITS} times; raise "
            "num_steps, or take fewer problems, as in sum:size=64"
        )
