"""`forethought task check` finds the graders that can be fooled, and passes those that cannot."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import pytest
from typer.testing import CliRunner

from forethought.cli.app import main
from forethought.cli.task import app
from forethought.config import parse_recipe
from forethought.errors import TaskError
from forethought.grading.answers import extract_answer
from forethought.schema import RlRecipe
from forethought.tasks import check
from forethought.tasks.base import FAMILIES
from forethought.tasks.check import check_task, find_faults, refuse_unsound
from forethought.training.learner import check_rl
from forethought.types import Example, Grade, GradeStatus

needs_gym = pytest.mark.skipif(
    find_spec("reasoning_gym") is None, reason="reasoning-gym is not installed"
)


@dataclass(frozen=True)
class MadeTask:
    """Three problems, and a grader under test."""

    judge: Callable[[Example, str], float | None]
    name: str = "made"
    answers: tuple[str, ...] = ("11", "12", "13")

    def __len__(self) -> int:
        return len(self.answers)

    def __getitem__(self, index: int) -> Example:
        question = f"What is 10 + {index + 1}?"
        messages = ({"role": "user", "content": question},)
        return Example(id=str(index), messages=messages, answer=self.answers[index])

    def grade(self, example: Example, completion: str) -> Grade:
        score = self.judge(example, extract_answer(completion).answer or "")
        return Grade(score=score, status=GradeStatus.CORRECT if score else GradeStatus.WRONG)


def equal(example: Example, answer: str) -> float:
    return float(answer == example.answer)


def check_made(monkeypatch: pytest.MonkeyPatch, task: MadeTask, train: MadeTask | None = None):
    """`check_task`, on a task that has no name."""
    splits = {"test": task, "train": train or MadeTask(equal, answers=())}
    monkeypatch.setattr(check, "load_task", lambda spec, split, size, seed: splits[split])
    return check_task("made")


def test_a_good_grader_is_sound() -> None:
    assert find_faults(MadeTask(equal)) == []
    refuse_unsound(MadeTask(equal), "made")


@pytest.mark.parametrize(
    ("judge", "fault"),
    [
        (lambda e, a: 0.0, "the reference answer scores 0 on 3 of 3 problems"),
        (lambda e, a: 0.5 * equal(e, a), "the reference answer scores 0.5 on 3"),
        (lambda e, a: None, "the reference answer cannot be graded on 3 of 3"),
        (lambda e, a: 1.0, "an empty answer scores up to 1 on 3 of 3"),
        (lambda e, a: float(bool(a)), "junk scores up to 1 on 3 of 3"),
        (lambda e, a: max(0.05 * bool(a), equal(e, a)), "junk scores up to 0.05 on 3 of 3"),
        (lambda e, a: float("10 + " in a or equal(e, a)), "the question itself scores up to 1"),
    ],
)
def test_a_grader_that_can_be_fooled_is_found(
    judge: Callable[[Example, str], float | None], fault: str
) -> None:
    faults = find_faults(MadeTask(judge))
    assert any(fault in found for found in faults), faults
    with pytest.raises(TaskError, match=r"task=made is unsound: .*allow_unsound_task = true"):
        refuse_unsound(MadeTask(judge), "made")


@pytest.mark.parametrize(("num_lenient", "is_fault"), [(0, False), (2, False), (3, True)])
def test_quoting_the_question_may_be_right_by_chance_but_not_often(
    num_lenient: int, is_fault: bool
) -> None:
    def judge(example: Example, answer: str) -> float:
        is_quoted = answer == f"10 + {int(example.id) + 1}?" and int(example.id) < num_lenient
        return float(answer == example.answer or is_quoted)

    @dataclass(frozen=True)
    class Quotable(MadeTask):
        def __getitem__(self, index: int) -> Example:
            content = f"What is it?\n1. 10 + {index + 1}?"
            messages = ({"role": "user", "content": content},)
            return Example(id=str(index), messages=messages, answer=self.answers[index])

    faults = find_faults(Quotable(judge, answers=tuple(map(str, range(11, 21)))))
    expected = [f"a line of the question scores up to 1 on {num_lenient} of 10 problems"]
    assert faults == (expected if is_fault else [])


def test_a_grader_that_raises_is_found() -> None:
    def judge(example: Example, answer: str) -> float:
        return float(int(answer) == int(example.answer))

    (fault,) = find_faults(MadeTask(judge))
    assert fault.startswith("grading raises ValueError (")


def test_a_task_without_references_is_unsound() -> None:
    faults = find_faults(MadeTask(lambda e, a: 0.0, answers=("", "")))
    assert faults == ["there is no reference answer, so nothing shows that a right one scores 1"]


@pytest.mark.filterwarnings("ignore::ResourceWarning")  # the markers are opened, never closed
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_grader_that_runs_the_answer_is_caught_by_its_marker(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def judge(example: Example, answer: str) -> float:
        try:
            return float(eval(answer) == int(example.answer))  # what no grader should do
        except Exception:
            return 0.0

    found = check_made(monkeypatch, MadeTask(judge))
    executed = [fault for fault in found.faults if "the text of an answer is run" in fault]
    assert len(executed) >= 5
    assert not found.is_sound
    assert check_made(monkeypatch, MadeTask(equal)).is_sound


def test_problems_of_both_splits_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    found = check_made(monkeypatch, MadeTask(equal), train=MadeTask(equal))
    assert found.faults == ("3 of 3 test problems are training problems too",)


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_our_own_families_are_sound(family: str) -> None:
    found = check_task(family)
    assert found.is_sound, found.faults
    assert (found.num_problems, found.num_timeouts, found.num_errors) == (10, 0, 0)
    assert found.num_grades > 100


@needs_gym
@pytest.mark.parametrize("family", ["countdown", "prime_factorization", "gcd"])
def test_gym_families_are_sound(family: str) -> None:
    found = check_task(f"gym:{family}", num_problems=4)
    assert found.is_sound, found.faults


@needs_gym
@pytest.mark.parametrize("family", ["game_of_life_halting", "boxnet", "rush_hour"])
def test_training_on_an_unsound_family_must_be_asked_for(family: str) -> None:
    recipe = {
        "stage": "rl",
        "run_dir": "r",
        "model": "bundled:seedling",
        "task": f"gym:{family}:size=20",
        "num_steps": 1,
        "optimizer": {"learning_rate": 1e-4},
    }
    strict = parse_recipe(recipe)
    assert isinstance(strict, RlRecipe)
    with pytest.raises(TaskError, match=f"task=gym:{family}:size=20 is unsound: "):
        check_rl(strict)
    allowed = parse_recipe(recipe | {"allow_unsound_task": True})
    assert isinstance(allowed, RlRecipe)
    task, _, _ = check_rl(allowed)
    assert len(task) == 20


@needs_gym
def test_evaluation_on_an_unsound_family_only_warns(capsys: pytest.CaptureFixture[str]) -> None:
    task = "gym:game_of_life_halting"
    arguments = ["--model", "bundled:seedling", "--task", task, "--limit", "1"]
    assert main(["eval", *arguments, "--max-tokens", "2", "--json"]) == 0
    shown = capsys.readouterr()
    assert f"warning: {task} is not graded soundly: junk scores" in shown.err
    assert json.loads(shown.out)["num_problems"] == 1


# --- The command --------------------------------------------------------------------------------


def run(*arguments: str) -> tuple[int, str]:
    answer = CliRunner().invoke(app, ["check", *arguments])
    return answer.exit_code, answer.stdout


def test_the_command_prints_one_object(tmp_path: Path) -> None:
    data = tmp_path / "own.jsonl"
    rows = [{"id": str(n), "question": f"What is {n} + 1?", "answer": str(n + 1)} for n in range(9)]
    data.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    code, shown = run(str(data), "--json", "--num", "5")
    found = json.loads(shown)
    assert code == 0
    assert (found["num_families"], found["sound"], found["unsound"]) == (1, [str(data)], {})
    (details,) = found["tasks"].values()
    assert details["num_problems"] == 5
    assert "no test split" in details["notes"][0]
    code, shown = run(f"jsonl:{data}:holdout=0.5", "--num", "5")
    assert (code, "sound" in shown, "no test split" in shown) == (0, True, False)


def test_a_file_whose_answers_cannot_be_read_is_unsound(tmp_path: Path) -> None:
    data = tmp_path / "own.jsonl"
    data.write_text(json.dumps({"question": "Why?", "answer": "\\frac{1}{"}), encoding="utf-8")
    code, shown = run(str(data), "--json")
    assert code == 1
    assert "the reference answer" in json.loads(shown)["unsound"][str(data)][0]


@needs_gym
def test_an_unsound_family_ends_with_exit_code_1_and_says_why() -> None:
    code, shown = run("gym:game_of_life_halting", "--num", "2")
    assert code == 1
    assert "UNSOUND" in shown
    assert "junk scores up to 1 on 2 of 2 problems" in shown


def test_all_covers_every_family(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(check, "all_specs", lambda: ["sum", "countdown"])
    code, shown = run("--all", "--json", "--num", "2")
    assert (code, json.loads(shown)["num_families"]) == (0, 2)


@pytest.mark.parametrize("arguments", [[], ["sum", "--all"]])
def test_a_task_or_all_must_be_asked_for(arguments: list[str]) -> None:
    answer = CliRunner().invoke(app, ["check", *arguments])
    assert "takes a task or --all" in str(answer.exception)


@needs_gym
def test_every_family_is_listed_for_all() -> None:
    specs = check.all_specs()
    assert specs[: len(FAMILIES)] == list(FAMILIES)
    assert len(specs) >= len(FAMILIES) + 105
