"""reasoning-gym families: splits that cannot overlap, exact grading, and the difficulty dial."""

from __future__ import annotations

import json
import re
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from forethought.errors import TaskError
from forethought.tasks.gym import GymTask, ScoredGymTask, gym_families, gym_task
from forethought.tasks.gym_families import EXACT_FAMILIES, SLOW_FAMILIES
from forethought.types import Example, GradeStatus

needs_gym = pytest.mark.skipif(
    find_spec("reasoning_gym") is None, reason="reasoning-gym is not installed"
)


def problem(gold: str) -> Example:
    return Example(id="x", messages=({"role": "user", "content": "?"},), answer=gold)


def score(gold: str, completion: str, *, is_text: bool) -> float | None:
    task = GymTask(name="gym:x", examples=(), is_text=is_text)
    return task.grade(problem(gold), completion).score


@needs_gym
@pytest.mark.parametrize(
    ("family", "said"),
    [
        ("chain_sums", "did you mean gym:chain_sum"),
        ("no_such_family_at_all", "task list"),
        ("composite", "is unknown"),
    ],
)
def test_a_family_that_is_not_there_says_so(family: str, said: str) -> None:
    with pytest.raises(TaskError, match=said):
        gym_task(family, {})


def test_without_the_package_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "reasoning_gym", None)  # as if it were not installed
    with pytest.raises(TaskError, match=r"pip install reasoning-gym"):
        gym_task("chain_sum", {})


@needs_gym
@pytest.mark.parametrize(
    ("arguments", "message"),
    [({"split": "dev"}, "use train or test"), ({"size": 0}, "size=0"), ({"seed": -1}, "seed=-1")],
)
def test_wrong_arguments_are_named(arguments: dict[str, object], message: str) -> None:
    with pytest.raises(TaskError, match=message):
        gym_task("chain_sum", {}, **arguments)  # type: ignore[arg-type]


def test_numbers_are_compared_by_value_and_must_be_numbers() -> None:
    assert score("7.140", "\\boxed{7.14}", is_text=False) == 1.0
    assert score("7.140", "\\boxed{7.1}", is_text=False) == 0.0
    assert score("5", "\\boxed{5}", is_text=False) == 1.0
    # The question restated: "Calculate 10 / 2."
    assert score("5", "\\boxed{10/2}", is_text=False) == 0.0
    assert score("5", "\\boxed{\\frac{10}{2}}", is_text=False) == 0.0


def test_text_is_compared_letter_by_letter() -> None:
    assert score("2e3", "\\boxed{2e3}", is_text=True) == 1.0
    assert score("2e3", "\\boxed{2000}", is_text=True) == 0.0
    assert score("0x5b993", "\\boxed{0x5B993}", is_text=True) == 1.0
    assert score("Friday", "\\boxed{\\text{Friday}}", is_text=True) == 1.0
    assert score("Friday", "\\boxed{Friday the 13th}", is_text=True) == 0.0
    assert score("110", "\\boxed{0110}", is_text=True) == 0.0


def test_no_answer_stays_no_answer() -> None:
    task = GymTask(name="gym:x", examples=(), is_text=True)
    assert task.grade(problem("Friday"), "").status is GradeStatus.NO_ANSWER


@needs_gym
@pytest.mark.parametrize("family", sorted(EXACT_FAMILIES))
def test_an_allowed_family_grades_its_gold_and_splits_without_overlap(family: str) -> None:
    test, train = (gym_task(family, {}, split, size=25) for split in ("test", "train"))
    for example in (*test.examples, *train.examples):
        assert "\\boxed{}" in example.messages[0]["content"]
        assert test.grade(example, f"\\boxed{{{example.answer}}}").score == 1.0
        assert test.grade(example, "\\boxed{junk}").score == 0.0
    asked = [{e.messages[0]["content"] for e in task.examples} for task in (test, train)]
    assert [len(questions) for questions in asked] == [25, 25]
    assert not asked[0] & asked[1]
    assert gym_task(family, {}, "test", size=25) == test


@needs_gym
def test_settings_reach_the_family_and_wrong_ones_are_named() -> None:
    task = gym_task("chain_sum", {"min_terms": "2", "max_terms": "2"}, size=5)
    for example in task.examples:
        asked = example.messages[0]["content"]
        assert asked.count(" + ") + asked.count(" - ") == 1
    with pytest.raises(TaskError, match="does not take colour=red"):
        gym_task("chain_sum", {"colour": "red"})
    with pytest.raises(TaskError, match="does not take min_terms=9"):
        gym_task("chain_sum", {"min_terms": "9"})
    assert gym_task("chain_sum", {"size": "7", "seed": "3"}) == gym_task(
        "chain_sum", {}, size=7, seed=3
    )


@needs_gym
def test_sizes_are_whole_numbers() -> None:
    with pytest.raises(TaskError, match="size=some of gym:gcd must be a whole number"):
        gym_task("gcd", {"size": "some"})


@needs_gym
def test_a_family_too_small_for_the_size_says_so() -> None:
    narrow = {"min_terms": "2", "max_terms": "2", "min_digits": "1", "max_digits": "1"}
    with pytest.raises(TaskError, match="distinct questions"):
        gym_task("chain_sum", narrow | {"size": "400"})
    assert 0 < len(gym_task("chain_sum", narrow, size=400)) < 400  # at most so many


@needs_gym
def test_a_product_with_its_factors_swapped_stays_in_its_split() -> None:
    small = {"min_terms": "2", "max_terms": "2", "min_digits": "1", "max_digits": "2"}
    test, train = (gym_task("products", small, split, size=100) for split in ("test", "train"))
    factors = [
        {tuple(sorted(re.findall("[0-9]+", e.messages[0]["content"]))) for e in task.examples}
        for task in (test, train)
    ]
    assert not factors[0] & factors[1]


@needs_gym
def test_every_family_but_the_mixture_is_a_task() -> None:
    families = gym_families()
    assert len(families) == len(set(families)) >= 105
    assert "composite" not in families
    assert set(families) >= EXACT_FAMILIES | SLOW_FAMILIES


@needs_gym
@pytest.mark.parametrize("family", ["sudoku", "jugs", "arc_agi", "coin_flip", "acre"])
def test_a_scored_family_splits_without_overlap_whatever_the_seed(family: str) -> None:
    tests = [gym_task(family, {}, "test", size=8, seed=seed) for seed in (0, 3)]
    train = gym_task(family, {}, "train", size=8, seed=0)
    asked = {e.messages[0]["content"] for e in train.examples}
    assert len(asked) == 8
    for test in tests:
        assert not asked & {e.messages[0]["content"] for e in test.examples}
    assert gym_task(family, {}, "train", size=8, seed=0) == train
    assert gym_task(family, {}, "train", size=3, seed=0).examples == train.examples[:3]
    json.dumps([example.meta for example in train.examples])


@needs_gym
def test_the_dial_makes_problems_harder() -> None:
    lengths = []
    for difficulty in ("1", "3"):
        task = gym_task("spell_backward", {"difficulty": difficulty}, size=10)
        assert task.name == f"gym:spell_backward:difficulty={difficulty}"
        lengths.append(sum(len(example.answer) for example in task.examples))
    assert lengths[0] < lengths[1]
    easy = gym_task("countdown", {"difficulty": "1", "max_numbers": "3"}, size=2)
    assert isinstance(easy, ScoredGymTask)
    assert easy.settings["max_numbers"] == 3  # a setting of its own wins over the dial


@needs_gym
@pytest.mark.parametrize(
    ("family", "options", "said"),
    [
        ("acre", {"difficulty": "1"}, "gym:acre has no curriculum"),
        ("sudoku", {"difficulty": "99"}, "difficulty=99 of gym:sudoku is out of range; use 1 to"),
        ("sudoku", {"difficulty": "hard"}, "must be a whole number"),
        ("sudoku", {"binarise": "2"}, "binarise=2 of gym:sudoku is wrong: use 0 or 1"),
        ("gcd", {"binarise": "0"}, "binarise=0 of gym:gcd is wrong: .*compared exactly"),
        ("sudoku", {"seed": "-1"}, "seed=-1"),
        ("sudoku", {"empty": "3"}, "gym:sudoku does not take empty=3"),
    ],
)
def test_options_that_cannot_be_meant(family: str, options: dict[str, str], said: str) -> None:
    with pytest.raises(TaskError, match=said):
        gym_task(family, options, size=2)


@needs_gym
def test_programs_that_print_and_write_do_so_elsewhere(
    capfd: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    task = gym_task("codeio", {}, size=20)
    assert len(task) == 20
    assert capfd.readouterr().out == ""
    assert list(tmp_path.iterdir()) == []


@needs_gym
@pytest.mark.parametrize("family", ["arc_agi", "sudoku", "countdown", "word_ladder", "maze"])
def test_every_level_of_the_dial_makes_problems(family: str) -> None:
    problem = gym_task(family, {"difficulty": "2"}, size=1)
    assert problem.grade(problem[0], f"\\boxed{{{problem[0].answer}}}").score == 1.0


@needs_gym
def test_a_level_that_the_package_refuses_itself_is_named() -> None:
    with pytest.raises(TaskError, match=r"difficulty=1 of gym:knight_swap is a level that"):
        gym_task("knight_swap", {"difficulty": "1"}, size=1)
