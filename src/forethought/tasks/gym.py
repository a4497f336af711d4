"""Families of reasoning-gym as tasks, through the extra `gym`.

reasoning-gym's own scorers are never called: several run the model's text as code. Only families
with one right answer that an exact comparison of ours can check are allowed.

Train and test cannot overlap: a hash of what the question is about says which split it belongs to
(its text; its numbers in any order where order or wording hardly matters; the plaintext of a
cipher), and the two splits draw from seeds far apart.
"""

from __future__ import annotations

import difflib
import importlib
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from forethought.errors import TaskError
from forethought.grading.math import grade_answer
from forethought.tasks.files import BOXED_INSTRUCTION
from forethought.tasks.problems import is_test_key
from forethought.types import Example, Grade, GradeStatus

# The answer is one number and the question never states it: equal in value is right.
NUMBER_FAMILIES = frozenset(
    (
        "basic_arithmetic",
        "binary_alternation",
        "chain_sum",
        "count_bits",
        "count_primes",
        "decimal_chain_sum",
        "gcd",
        "gsm_symbolic",
        "largest_island",
        "lcm",
        "leg_counting",
        "letter_counting",
        "products",
        "rotten_oranges",
        "simple_equations",
    )
)
# The answer is one string: equal letter for letter, but for case and spaces around it.
TEXT_FAMILIES = frozenset(
    (
        "base_conversion",
        "bitwise_arithmetic",
        "caesar_cipher",
        "calendar_arithmetic",
        "spell_backward",
    )
)
# "3 * 7", "7 * 3" and another wording of either must not stand on both sides of the split.
_UNORDERED = frozenset(
    ("basic_arithmetic", "chain_sum", "decimal_chain_sum", "gcd", "lcm", "products")
)
_NUMBER = re.compile(r"[0-9.]*[0-9]")

_DEFAULT_SIZES = {"train": 2_000, "test": 500}
_MAX_SIZE = 1_000_000
# Item i of a family is drawn from Random(seed + i), so neighbouring seeds share nearly all items.
_SEED_STRIDE = 1_000_000_000
# A tenth of all questions is the test split; some are drawn twice.
_DRAWS_PER_EXAMPLE = 40


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


def gym_task(
    name: str,
    options: Mapping[str, str],
    split: str = "test",
    size: int | None = None,
    seed: int = 0,
) -> GymTask:
    """`size` distinct examples of a family (default 2,000 train, 500 test), fixed by `seed`.

    `options` are the family's own settings; `size` and `seed` among them win over the arguments.
    Raises TaskError when the family is not allowed, reasoning-gym is not installed, a setting is
    unknown or wrong, or the family has fewer distinct questions than asked for.
    """
    if name not in NUMBER_FAMILIES | TEXT_FAMILIES:
        allowed = ", ".join(sorted(NUMBER_FAMILIES | TEXT_FAMILIES))
        if near := difflib.get_close_matches(name, NUMBER_FAMILIES | TEXT_FAMILIES, 1, 0.8):
            raise TaskError(f"task=gym:{name} is unknown; did you mean gym:{near[0]}?")
        raise TaskError(
            f"gym:{name} is not allowed yet, because only reasoning-gym's own scorer could grade "
            f"it and those scorers can run the model's text: use one of {allowed}"
        )
    if split not in _DEFAULT_SIZES:
        raise TaskError(f"split {split!r} is unknown for gym:{name}: use train or test")
    settings = {key: _setting(value) for key, value in options.items()}
    size = _whole(
        settings.pop("size", _DEFAULT_SIZES[split] if size is None else size), "size", name
    )
    seed = _whole(settings.pop("seed", seed), "seed", name)
    if not 1 <= size <= _MAX_SIZE:
        raise TaskError(f"size={size} of gym:{name} must be 1 to {_MAX_SIZE}")
    if seed < 0:
        raise TaskError(f"seed={seed} of gym:{name} must be at least 0")
    is_test = split == "test"
    start = (2 * seed + is_test) * _SEED_STRIDE
    items = _open(name, settings, seed=start, num_draws=size * _DRAWS_PER_EXAMPLE)
    examples = _draw(name, items, size, is_test=is_test)
    return GymTask(name=f"gym:{name}", examples=examples, is_text=name in TEXT_FAMILIES)


def _open(name: str, settings: Mapping[str, Any], *, seed: int, num_draws: int) -> Any:
    try:
        gym: Any = importlib.import_module("reasoning_gym")
    except ModuleNotFoundError as error:
        raise TaskError(f"gym:{name} needs reasoning-gym: pip install reasoning-gym") from error
    try:
        return gym.create_dataset(name, seed=seed, size=num_draws, **settings)
    except (AssertionError, AttributeError, KeyError, TypeError, ValueError) as error:
        given = ",".join(f"{key}={value}" for key, value in settings.items())
        raise TaskError(f"gym:{name} does not take {given}: {error}") from error


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


def _draw(name: str, items: Any, size: int, *, is_test: bool) -> tuple[Example, ...]:
    """The first `size` distinct questions of the split that have an answer."""
    examples: dict[str, Example] = {}
    for index in range(len(items)):
        item = items[index]
        question, answer = str(item["question"]).strip(), str(item["answer"]).strip()
        # base_conversion writes zero as the empty string: no answer to compare with.
        if not answer or is_test_key(_split_key(name, question, answer)) is not is_test:
            continue
        if question not in examples:
            examples[question] = _example(name, index, question, answer, items.seed)
        if len(examples) == size:
            return tuple(examples.values())
    raise TaskError(
        f"gym:{name} has only {len(examples)} distinct questions with these settings: "
        f"ask for size={len(examples)} or fewer, or widen the settings"
    )


def _split_key(name: str, question: str, answer: str) -> str:
    """What decides the split. Questions of equal text have equal keys, whatever the family."""
    if name in _UNORDERED:
        return f"gym:{name}:{sorted(_NUMBER.findall(question))}"
    return f"gym:{name}:{answer if name == 'caesar_cipher' else question}"


def _example(name: str, index: int, question: str, answer: str, seed: int) -> Example:
    prompt = f"{question}\n{BOXED_INSTRUCTION}"
    return Example(
        id=f"{name}-{seed + index}",
        messages=({"role": "user", "content": prompt},),
        answer=answer,
        meta={"family": name, "seed": seed + index},
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
