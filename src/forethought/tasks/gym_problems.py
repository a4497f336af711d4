"""The problems of a reasoning-gym family: making them, telling the splits apart, none twice."""

from __future__ import annotations

import contextlib
import importlib
import io
import itertools
import json
import re
import tempfile
import warnings
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from forethought.errors import TaskError
from forethought.grading.workers import shared_pool
from forethought.tasks.files import BOXED_INSTRUCTION
from forethought.tasks.gym_families import (
    EXACT_FAMILIES,
    PROGRAM_FAMILIES,
    REFERENCE_KEYS,
    UNORDERED_FAMILIES,
)
from forethought.tasks.gym_scoring import is_harmless
from forethought.tasks.problems import is_test_key
from forethought.types import Example

_NUMBER = re.compile(r"[0-9.]*[0-9]")
_CHUNK = 1_000
_AT_ONCE = 10  # an answer of the pool has at most a megabyte
_MAKE = "forethought.tasks.gym_worker:make"
# A problem drawn anew for so long means that there are no others.
_MAX_TRIES = 1_000
# Half of all questions of a family with a scorer: some take a second to make, and where a tenth
# were the test split, nine of ten would be thrown away for it.
_TEST_FRACTION = 0.5


def import_gym(name: str) -> Any:
    """The package, for the family `name`. Raises TaskError where it is not installed."""
    try:
        with _quiet():
            return importlib.import_module("reasoning_gym")
    except ModuleNotFoundError as error:
        raise TaskError(f"gym:{name} needs reasoning-gym: pip install reasoning-gym") from error


def settings_at(gym: Any, name: str, difficulty: object) -> dict[str, Any]:
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
    config = curriculum.generate_configuration()
    fields: list[str] = []
    for attribute in curriculum.attributes.values():
        one = getattr(attribute, "field_name", None)
        fields += [one] if one else [attribute.lower_field_name, attribute.upper_field_name]
    return {field: getattr(config, field) for field in fields}


def draw_examples(
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
    make: Callable[..., Iterator[Mapping[str, Any] | None]]
    make = _made_elsewhere if name in PROGRAM_FAMILIES else _made_here
    for seed in itertools.count(start, _CHUNK):
        for index, item in enumerate(make(gym, name, settings, seed)):
            if item is not None:
                yield seed + index, item


def _made_here(
    gym: Any, name: str, settings: Mapping[str, Any], seed: int
) -> Iterator[Mapping[str, Any]]:
    with _quiet():
        items = _open(gym, name, settings, seed)
    for index in range(_CHUNK):
        with _quiet():
            item = items[index]
        yield item


def _made_elsewhere(
    gym: Any, name: str, settings: Mapping[str, Any], seed: int
) -> Iterator[Mapping[str, Any] | None]:
    """Items whose making runs programs of the package's data files: in a worker of the pool."""
    _open(gym, name, settings, seed)  # a wrong setting is said as ever
    with tempfile.TemporaryDirectory() as folder:
        for first in range(0, _CHUNK, _AT_ONCE):
            arguments = (name, dict(settings), seed, first, _AT_ONCE, folder)
            outcome = shared_pool().run(_MAKE, *arguments, deadline_seconds=60.0)
            if not isinstance(outcome.value, list):
                raise TaskError(f"gym:{name} cannot make its problems: {outcome.message}")
            yield from outcome.value


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


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Of what a package prints and warns of while it makes problems, nothing is for the user."""
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        yield
