"""The recipes of one-shot RL and the data they come with."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from forethought.config import load_recipe
from forethought.errors import TaskError
from forethought.schema import RlRecipe
from forethought.tasks.base import load_task
from forethought.training.example_scores import historical_variance
from forethought.types import GradeStatus

ROOT = Path(__file__).resolve().parent.parent
DATA = ROOT / "recipes" / "data"
CONTROLS = ("format", "random", "wrong", "16", "full")


def rows_of(name: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (DATA / name).read_text(encoding="utf-8").splitlines()]


def recipe(name: str) -> RlRecipe:
    found = load_recipe(ROOT / "recipes" / f"{name}.toml")
    assert isinstance(found, RlRecipe)
    return found


@pytest.mark.parametrize("name", CONTROLS)
def test_a_control_differs_in_its_examples_and_its_reward_alone(name: str) -> None:
    own, control = recipe("one-shot").model_dump(), recipe(f"one-shot-{name}").model_dump()
    different = {key for key in own if own[key] != control[key]}
    assert different - {"name", "run_dir"} <= {"task", "reward"}
    assert different & {"task", "reward"}


def test_the_ranking_is_what_the_scout_recipe_makes_of_its_problems() -> None:
    task = load_task(recipe("one-shot-scout").task, split="train", seed=0)
    rows = rows_of("one-shot.jsonl")
    known = {task[i].id: (task[i].messages[0]["content"], task[i].answer) for i in range(len(task))}
    assert {row["id"]: (row["question"], row["answer"]) for row in rows} == known
    for row in rows:
        assert row["score"] == pytest.approx(historical_variance(row["accuracies"]), abs=1e-4)
    scores = [row["score"] for row in rows]
    assert scores == sorted(scores, reverse=True)


def test_the_wrong_example_is_the_best_one_with_a_wrong_answer() -> None:
    (wrong,), best = rows_of("one-shot-wrong.jsonl"), rows_of("one-shot.jsonl")[0]
    assert wrong["question"] == best["question"]
    assert int(wrong["answer"]) == int(best["answer"]) + 1


def test_data_of_the_package_is_found_from_anywhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    task = load_task(recipe("one-shot").task, split="train")
    best = rows_of("one-shot.jsonl")[0]
    assert (len(task), task[0].answer) == (1, best["answer"])
    right = task.grade(task[0], f"<think>\n</think>\n\\boxed{{{best['answer']}}}")
    assert right.status is GradeStatus.CORRECT
    mine = tmp_path / "recipes" / "data" / "one-shot.jsonl"
    mine.parent.mkdir(parents=True)
    mine.write_text('{"question": "1 + 1?", "answer": "2"}\n', encoding="utf-8")
    assert load_task(recipe("one-shot").task, split="train")[0].answer == "2"  # the user's own
    with pytest.raises(TaskError, match="does not exist"):
        load_task("jsonl:recipes/data/nothing.jsonl")
