"""Tasks by name: `sum`, `story:difficulty=3`, `sum+story`, `jsonl:PATH`, `gym:NAME`, `humaneval`.

A generated task is a pure function of (spec, split, size, seed). Its splits cannot overlap:
whether a problem is a test problem is a function of the problem's content (`tasks.problems`).
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from random import Random

from forethought.errors import TaskError
from forethought.grading.answers import extract_answer
from forethought.grading.math import grade_answer
from forethought.tasks.arithmetic import EQUATION, STORY, SUM
from forethought.tasks.problems import MAX_DISTRACT, Arithmetic, Content, Family
from forethought.tasks.puzzles import COUNTDOWN, RULE
from forethought.types import Example, Grade, GradeStatus, Task

FAMILIES: Mapping[str, Family] = {f.name: f for f in (SUM, STORY, EQUATION, RULE, COUNTDOWN)}

HUMANEVAL = "humaneval"
DEFAULT_SIZES = {"train": 10_000, "test": 500}
_MAX_TRIES = 1_000  # draws without a new problem before a task is called exhausted


@dataclass(frozen=True, slots=True)
class FamilyTask:
    """`size` problems of one family at one difficulty; test problems are all different.

    With `at_most`, a test split with fewer different problems than `size` is smaller.
    """

    family: Family
    difficulty: int
    split: str
    size: int
    seed: int
    distract: int = 0
    at_most: bool = False
    _contents: tuple[Content, ...] = field(default=(), repr=False)

    def __post_init__(self) -> None:
        if self.split == "test":
            object.__setattr__(self, "_contents", self._distinct_contents())
            object.__setattr__(self, "size", len(self._contents))

    @property
    def name(self) -> str:
        distracted = f",distract={self.distract}" if self.distract else ""
        return f"{self.family.name}:difficulty={self.difficulty}{distracted}"

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, index: int) -> Example:
        if not 0 <= index < self.size:
            raise IndexError(index)
        rng = Random(f"{self.seed}/{self.split}/{self.name}/{index}")
        content = (
            self._contents[index]
            if self._contents
            else self.family.draw_in_split(rng, self.difficulty, test=False)
        )
        question, plain = self.family.ask(content, rng, self.distract)
        return Example(
            id=f"{self.name}/{self.split}/{self.seed}/{index}",
            messages=({"role": "user", "content": question},),
            answer=self.family.work(content, Arithmetic()).answer,
            meta={
                "family": self.family.name,
                "difficulty": self.difficulty,
                "key": self.family.key(content),
                "content": content,
                "plain": plain,
            },
        )

    def grade(self, example: Example, completion: str) -> Grade:
        if self.family.check is None:
            return grade_answer(example.answer, completion)
        found = extract_answer(completion)
        if found.answer is None:
            return Grade(score=0.0, status=found.status or GradeStatus.NO_ANSWER)
        right = self.family.check(example.meta["content"], found.answer)
        status = GradeStatus.CORRECT if right else GradeStatus.WRONG
        return Grade(score=float(right), status=status, extracted=found.answer)

    def _distinct_contents(self) -> tuple[Content, ...]:
        rng = Random(f"{self.seed}/test/{self.name}")
        seen: dict[str, Content] = {}
        tries = 0
        while len(seen) < self.size:
            content = self.family.draw_in_split(rng, self.difficulty, test=True)
            tries = 0 if self.family.key(content) not in seen else tries + 1
            seen.setdefault(self.family.key(content), content)
            if tries > _MAX_TRIES:
                if self.at_most:
                    break
                raise TaskError(
                    f"size={self.size} is more than the {len(seen)} different test problems of "
                    f"{self.name}; ask for fewer or raise difficulty"
                )
        return tuple(seen.values())


@dataclass(frozen=True, slots=True)
class MixedTask:
    """Several tasks dealt in turn, up to `max_size`: example i comes from part i mod n."""

    parts: tuple[Task, ...]
    max_size: int | None = None

    @property
    def name(self) -> str:
        return "+".join(p.name for p in self.parts)

    def __len__(self) -> int:
        full = len(self.parts) * min(map(len, self.parts))
        return full if self.max_size is None else min(full, self.max_size)

    def __getitem__(self, index: int) -> Example:
        if not 0 <= index < len(self):
            raise IndexError(index)
        return self.parts[index % len(self.parts)][index // len(self.parts)]

    def grade(self, example: Example, completion: str) -> Grade:
        for part in self.parts:
            if example.id.startswith(part.name + "/"):
                return part.grade(example, completion)
        raise KeyError(example.id)


def load_task(spec: str, *, split: str = "test", size: int | None = None, seed: int = 0) -> Task:
    """The task that `spec` names, of at most `size` problems; test splits may have fewer.

    Raises TaskError for an unknown name or option, with the nearest known one.
    """
    if split not in DEFAULT_SIZES:
        raise TaskError(f"split={split} is unknown; use train or test")
    if spec.startswith(("jsonl:", "parquet:", "gym:", "code:")) or spec.split(":")[0] == HUMANEVAL:
        return _load_outside(spec, split, size, seed)
    names = [s for s in spec.split("+") if s]
    if not names:
        raise TaskError(f"task={spec!r} names no task; known are {', '.join(FAMILIES)}")
    each = None if size is None else -(-size // len(names))
    parts = tuple(_load_family(name, split, each, seed) for name in names)
    if len({(part.name, part.seed) for part in parts}) < len(parts):
        raise TaskError(f"task={spec} deals the same problems twice; name each part once")
    return parts[0] if len(parts) == 1 else MixedTask(parts, size)


def parse_spec(spec: str) -> tuple[str, dict[str, str]]:
    """`name:key=value,key=value` -> (name, options)."""
    name, _, tail = spec.partition(":")
    options: dict[str, str] = {}
    for item in filter(None, tail.split(",")):
        key, equals, value = item.partition("=")
        if not equals:
            raise TaskError(f"task option {item!r} of {name} needs the form key=value")
        options[key.strip()] = value.strip()
    return name.strip(), options


def _load_family(spec: str, split: str, size: int | None, seed: int) -> FamilyTask:
    name, options = parse_spec(spec)
    family = FAMILIES.get(name)
    if family is None:
        near = difflib.get_close_matches(name, FAMILIES, 1)
        hint = f"did you mean {near[0]}?" if near else f"known are {', '.join(FAMILIES)}"
        raise TaskError(f"task={name} is unknown; {hint}")
    known = {
        "difficulty": family.default_difficulty,
        "size": DEFAULT_SIZES[split] if size is None else size,
        "seed": seed,
        "distract": 0,
    }
    for key, value in options.items():
        if key not in known:
            known_keys = ", ".join(known)
            raise TaskError(f"{key}={value} is no option of task {name}; known are {known_keys}")
        if not re.fullmatch("-?[0-9]{1,18}", value):
            raise TaskError(f"{key}={value} of task {name} is not a whole number; give a number")
        known[key] = int(value)
    if not 1 <= known["difficulty"] <= family.max_difficulty:
        raise TaskError(
            f"difficulty={known['difficulty']} of task {name} is out of range; "
            f"use 1 to {family.max_difficulty}"
        )
    if known["size"] < 1:
        raise TaskError(f"size={known['size']} of task {name} must be at least 1")
    if not 0 <= known["distract"] <= MAX_DISTRACT:
        raise TaskError(
            f"distract={known['distract']} of task {name} is out of range; use 0 to {MAX_DISTRACT}"
        )
    return FamilyTask(
        family=family,
        difficulty=known["difficulty"],
        split=split,
        size=known["size"],
        seed=known["seed"],
        distract=known["distract"],
        at_most="size" not in options,
    )


def _load_outside(spec: str, split: str, size: int | None, seed: int) -> Task:
    """Tasks from files, from reasoning-gym and of code, imported only when asked for."""
    kind, _, rest = spec.partition(":")
    if kind in ("code", HUMANEVAL):
        from forethought.tasks import code

        if kind == HUMANEVAL:
            return code.humaneval_task(parse_spec(spec)[1], split, size)
        path, options = _split_path(rest)
        return code.code_file_task(path, options, split, size)
    if kind == "gym":
        from forethought.tasks.gym import gym_task

        name, options = parse_spec(rest)
        return gym_task(name, options, split, size, seed)
    from forethought.tasks import files

    path, options = _split_path(rest)
    load = files.jsonl_task if kind == "jsonl" else files.parquet_task
    limit = options.get("limit", "")
    if size is not None and (
        not limit or (re.fullmatch("[0-9]{1,18}", limit) and int(limit) > size)
    ):
        options["limit"] = str(size)  # a limit that is no number is refused below
    task: Task = load(path, options, split=split)
    return task


def _split_path(rest: str) -> tuple[str, dict[str, str]]:
    """A path may hold colons: options are what follows the last colon when it reads key=value."""
    path, colon, tail = rest.rpartition(":")
    if colon and "=" in tail and "/" not in tail:
        return path, parse_spec(f"x:{tail}")[1]
    return rest, {}
