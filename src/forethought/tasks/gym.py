"""Every family of reasoning-gym as a task `gym:NAME`, through the extra `gym`.

Families with one right answer are compared exactly; the others are graded by reasoning-gym's own
scorer, behind a screen and in a process that can be killed (`gym_scoring`).

Train and test cannot overlap: a hash of what the question is about says which split it belongs to
(its text; its numbers in any order where order or wording hardly matters; the plaintext of a
cipher), and the two splits draw from seeds far apart.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from forethought.errors import TaskError
from forethought.grading.jobs import Job, settle
from forethought.grading.math import grade_answer
from forethought.tasks.gym_families import EXACT_FAMILIES, SLOW_FAMILIES, TEXT_FAMILIES
from forethought.tasks.gym_problems import draw_examples, import_gym, settings_at
from forethought.tasks.gym_scoring import begin_grade
from forethought.types import Example, Grade, GradeStatus

_OWN_OPTIONS = ("size", "seed", "difficulty", "binarise")
_SIZES = {"train": 2_000, "test": 500}
_SLOW_SIZES = {"train": 200, "test": 50}
_MAX_SIZE = 1_000_000
# Item i of a family is drawn from Random(seed + i), so neighbouring seeds share nearly all items.
_SEED_STRIDE = 1_000_000_000
_MAX_SEED = 2**32 - 10**8  # numpy takes no more than 32 bits


@dataclass(frozen=True, slots=True, kw_only=True)
class GymTask:
    """Examples of one reasoning-gym family, all distinct, graded by exact comparison."""

    name: str
    examples: tuple[Example, ...]
    is_text: bool

    def __len__(self) -> int:
        return len(self.examples)

    def __getitem__(self, index: int) -> Example:
        return self.examples[index]

    def grade(self, example: Example, completion: str) -> Grade:
        grade = grade_answer(example.answer, completion)
        return _exact(grade, example.answer) if self.is_text else _no_expression(grade)


@dataclass(frozen=True, slots=True, kw_only=True)
class ScoredGymTask:
    """Examples of one family, all distinct, graded by the family's own scorer.

    What the scorer needs to know of a problem is in its `meta["entry"]`. With `binarise` only a
    full score counts, as 1. Without a reference answer, `answer` is "".
    """

    name: str
    family: str
    examples: tuple[Example, ...]
    settings: Mapping[str, Any]
    binarise: bool = True

    def __len__(self) -> int:
        return len(self.examples)

    def __getitem__(self, index: int) -> Example:
        return self.examples[index]

    def grade(self, example: Example, completion: str) -> Grade:
        return settle(self.begin_grade(example, completion))

    def begin_grade(self, example: Example, completion: str) -> Grade | Job:
        """The grade, or a job for the pool where the scorer has to look."""
        entry = example.meta["entry"]
        return begin_grade(self.family, self.settings, entry, completion, binarise=self.binarise)


def gym_families() -> tuple[str, ...]:
    """The names of all families, sorted. Raises TaskError without reasoning-gym."""
    return tuple(sorted(set(import_gym("*").factory.DATASETS) - {"composite"}))


def gym_task(
    name: str,
    options: Mapping[str, str],
    split: str = "test",
    size: int | None = None,
    seed: int = 0,
) -> GymTask | ScoredGymTask:
    """At most `size` distinct examples of a family, fixed by `seed`.

    `options` are the family's own settings, and `size` and `seed`, which win over the arguments,
    `difficulty` and `binarise`. A family with fewer different questions gives fewer, unless the
    option `size` asked for them. Raises TaskError when the family or a setting is unknown or wrong,
    or reasoning-gym is not installed.
    """
    gym = import_gym(name)
    if name not in gym.factory.DATASETS or name == "composite":
        near = difflib.get_close_matches(name, gym.factory.DATASETS, 1, 0.6)
        hint = f"did you mean gym:{near[0]}?" if near else "`forethought task list` names them"
        raise TaskError(f"task=gym:{name} is unknown; {hint}")
    sizes = _SLOW_SIZES if name in SLOW_FAMILIES else _SIZES
    if split not in sizes:
        raise TaskError(f"split {split!r} is unknown for gym:{name}: use train or test")
    own = {key: _setting(options[key]) for key in _OWN_OPTIONS if key in options}
    settings = {key: _setting(text) for key, text in options.items() if key not in own}
    if "difficulty" in own:
        settings = settings_at(gym, name, own["difficulty"]) | settings
    size = _whole(own.get("size", sizes[split] if size is None else size), "size", name)
    seed = _whole(own.get("seed", seed), "seed", name)
    if not 1 <= size <= _MAX_SIZE:
        raise TaskError(f"size={size} of gym:{name} must be 1 to {_MAX_SIZE}")
    if seed < 0:
        raise TaskError(f"seed={seed} of gym:{name} must be at least 0")
    binarise = own.get("binarise", 1)
    if binarise not in (0, 1) or (name in EXACT_FAMILIES and not binarise):
        why = "its answers are compared exactly" if name in EXACT_FAMILIES else "use 0 or 1"
        raise TaskError(f"binarise={options['binarise']} of gym:{name} is wrong: {why}")
    is_test = split == "test"
    start = (2 * seed + is_test) * _SEED_STRIDE % _MAX_SEED
    try:
        examples = draw_examples(gym, name, settings, start, size, is_test=is_test)
    except TaskError as error:
        if "difficulty" not in own:
            raise
        raise TaskError(
            f"difficulty={own['difficulty']} of gym:{name} is a level that reasoning-gym itself "
            f"refuses ({error}); take another, or give its own settings"
        ) from error
    if len(examples) < size and ("size" in own or not examples):
        raise TaskError(
            f"gym:{name} has only {len(examples)} distinct questions with these settings: "
            f"ask for size={len(examples)} or fewer, or widen the settings"
        )
    shown = [f"{k}={v}" for k, v in sorted(options.items()) if k not in ("size", "seed")]
    full_name = f"gym:{name}" + (f":{','.join(shown)}" if shown else "")
    if name in EXACT_FAMILIES:
        return GymTask(name=full_name, examples=examples, is_text=name in TEXT_FAMILIES)
    return ScoredGymTask(
        name=full_name,
        family=name,
        examples=examples,
        settings=settings,
        binarise=bool(binarise),
    )


def _setting(text: str) -> bool | int | float | str:
    if text in ("true", "false"):
        return text == "true"
    for read in (int, float):
        try:
            return read(text)
        except ValueError:
            continue
    return text


def _whole(value: object, key: str, name: str) -> int:
    if isinstance(value, bool) or not isinstance(value, int):
        raise TaskError(f"{key}={value} of gym:{name} must be a whole number")
    return value


def _exact(grade: Grade, gold: str) -> Grade:
    """Judge text by its letters: 2e3 in base 16 is not two thousand."""
    if grade.extracted is None or grade.status not in _JUDGED:
        return grade
    return _judged(grade, _plain(grade.extracted) == _plain(gold))


def _no_expression(grade: Grade) -> Grade:
    """An answer must be a number: "10/2" only states the question again."""
    text = grade.extracted or ""
    if grade.status is GradeStatus.CORRECT and ("/" in text or "frac" in text):
        return _judged(grade, False)
    return grade


_JUDGED = (GradeStatus.CORRECT, GradeStatus.WRONG)


def _judged(grade: Grade, is_right: bool) -> Grade:
    status = GradeStatus.CORRECT if is_right else GradeStatus.WRONG
    return replace(grade, score=float(is_right), status=status)


def _plain(text: str) -> str:
    for command in ("\\text{", "\\texttt{", "\\mathrm{"):
        if text.startswith(command) and text.endswith("}"):
            text = text.removeprefix(command).removesuffix("}")
    return " ".join(text.casefold().split())
