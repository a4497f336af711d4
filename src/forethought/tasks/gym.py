"""Every family of reasoning-gym as a task `gym:NAME`, through the extra `gym`.

Families with one right answer are compared exactly; the others are graded by reasoning-gym's own
scorer, behind a screen and in a process that can be killed (`gym_scoring`).

Train and test cannot overlap: a hash of what the question is about says which split it belongs to
(its text; its numbers in any order where order or wording hardly matters; the plaintext of a
cipher), and the two splits draw from seeds far apart.
"""

from __future__ import annotations

import contextlib
import dataclasses
import difflib
import importlib
import io
import itertools
import json
import re
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from forethought.errors import TaskError
from forethought.grading.math import grade_answer
from forethought.tasks.files import BOXED_INSTRUCTION
from forethought.tasks.gym_families import (
    EXACT_FAMILIES,
    REFERENCE_KEYS,
    SLOW_FAMILIES,
    TEXT_FAMILIES,
    UNORDERED_FAMILIES,
)
from forethought.tasks.gym_scoring import grade_by_scorer, is_harmless
from forethought.tasks.problems import is_test_key
from forethought.types import Example, Grade, GradeStatus

_NUMBER = re.compile(r"[0-9.]*[0-9]")
_OWN_OPTIONS = ("size", "seed", "difficulty", "binarise")
_SIZES = {"train": 2_000, "test": 500}
_SLOW_SIZES = {"train": 200, "test": 50}
_MAX_SIZE = 1_000_000
# Item i of a family is drawn from Random(seed + i), so neighbouring seeds share nearly all items.
_SEED_STRIDE = 1_000_000_000
_MAX_SEED = 2**32 - 10**8  # numpy takes no more than 32 bits
_CHUNK = 1_000
# A problem drawn anew for so long means that there are no others.
_MAX_TRIES = 1_000
# Half of all questions of a family with a scorer: some take a second to make, and where a tenth
# were the test split, nine of ten would be thrown away for it.
_TEST_FRACTION = 0.5


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
        return grade_by_scorer(
            self.family,
            self.settings,
            example.meta["entry"],
            completion,
            binarise=self.binarise,
        )


def gym_families() -> tuple[str, ...]:
    """The names of all families, sorted. Raises TaskError without reasoning-gym."""
    return tuple(sorted(set(_gym("list").factory.DATASETS) - {"composite"}))


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
    gym = _gym(name)
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
        settings = _at_difficulty(gym, name, own["difficulty"]) | settings
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
    examples = _draw(gym, name, settings, start, size, is_test=is_test)
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


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Of what a package prints and warns of while it makes problems, nothing is for the user."""
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        yield


def _gym(name: str) -> Any:
    try:
        with _quiet():
            return importlib.import_module("reasoning_gym")
    except ModuleNotFoundError as error:
        raise TaskError(f"gym:{name} needs reasoning-gym: pip install reasoning-gym") from error


def _at_difficulty(gym: Any, name: str, difficulty: object) -> dict[str, Any]:
    """The settings of a level of the family's curriculum; 1 is its first."""
    if not gym.factory.has_curriculum(name):
        raise TaskError(
            f"difficulty={difficulty}: gym:{name} has no curriculum; give its own settings instead"
        )
    curriculum = gym.factory.create_curriculum(name)
    most = max(len(attribute.levels) for attribute in curriculum.attributes.values())
    if isinstance(difficulty, bool) or not isinstance(difficulty, int):
        raise TaskError(f"difficulty={difficulty} of gym:{name} must be a whole number")
    if not 1 <= difficulty <= most:
        raise TaskError(f"difficulty={difficulty} of gym:{name} is out of range; use 1 to {most}")
    curriculum.set_global_level(difficulty - 1)
    config = dataclasses.asdict(curriculum.generate_configuration())
    return {key: value for key, value in config.items() if key not in ("size", "seed")}


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


def _draw(
    gym: Any, name: str, settings: Mapping[str, Any], start: int, size: int, *, is_test: bool
) -> tuple[Example, ...]:
    """The first `size` distinct questions of the split, or fewer where there are no more."""
    fraction = {} if name in EXACT_FAMILIES else {"fraction": _TEST_FRACTION}
    examples: dict[str, Example] = {}
    tries = 0
    for seed, item in _items(gym, name, settings, start):
        tries += 1
        question, answer = str(item["question"]).strip(), _reference(name, item)
        # base_conversion writes zero as the empty string: no answer to compare with. The answers of
        # intermediate_integration can be integrals, which only state the question again.
        is_usable = is_harmless(name, answer) if answer else item["answer"] is None
        if is_usable:
            key = _split_key(name, question, answer)
            if question not in examples and is_test_key(key, **fraction) is is_test:
                examples[question] = _example(name, seed, question, answer, item)
                tries = 0
        if len(examples) == size or tries == _MAX_TRIES:
            break
    return tuple(examples.values())


def _items(
    gym: Any, name: str, settings: Mapping[str, Any], start: int
) -> Iterator[tuple[int, Mapping[str, Any]]]:
    """(seed, item) without end. In chunks, since some families make all their items at once."""
    for seed in itertools.count(start, _CHUNK):
        with _quiet():
            items = _open(gym, name, settings, seed)
        for index in range(_CHUNK):
            with _quiet():
                item = items[index]
            yield seed + index, item


def _open(gym: Any, name: str, settings: Mapping[str, Any], seed: int) -> Any:
    try:
        return gym.create_dataset(name, seed=seed, size=_CHUNK, **settings)
    except (AssertionError, AttributeError, KeyError, TypeError, ValueError) as error:
        given = ",".join(f"{key}={value}" for key, value in settings.items())
        raise TaskError(f"gym:{name} does not take {given}: {error}") from error


def _reference(name: str, item: Mapping[str, Any]) -> str:
    """The answer, or one of the right answers, or "" where reasoning-gym names none."""
    found = item["answer"]
    if found is None and name in REFERENCE_KEYS:
        found = item["metadata"][REFERENCE_KEYS[name]]
        found = found if isinstance(found, str) else json.dumps(found)
    return "" if found is None else str(found).strip()


def _split_key(name: str, question: str, answer: str) -> str:
    """What decides the split. Questions of equal text have equal keys, whatever the family."""
    if name in UNORDERED_FAMILIES:
        return f"gym:{name}:{sorted(_NUMBER.findall(question))}"
    return f"gym:{name}:{answer if name == 'caesar_cipher' else question}"


def _example(name: str, seed: int, question: str, answer: str, item: Mapping[str, Any]) -> Example:
    meta: dict[str, Any] = {"family": name, "seed": seed}
    if name not in EXACT_FAMILIES:
        meta["entry"] = json.loads(json.dumps(item))
    return Example(
        id=f"{name}-{seed}",
        messages=({"role": "user", "content": f"{question}\n{BOXED_INSTRUCTION}"},),
        answer=answer,
        meta=meta,
    )


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
