"""Cosine length, soft overlong and repetition: the papers' formulas, and what a recipe sets."""

from __future__ import annotations

import dataclasses
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from forethought.config import parse_recipe
from forethought.errors import RecipeError, RewardError
from forethought.grading.length_rewards import cosine_length, repetition, soft_overlong
from forethought.grading.rewards import load_reward, load_rewards, score_rollouts
from forethought.schema import RlRecipe
from forethought.schema_tables import CosineLength, Repetition, Reward, SoftOverlong
from forethought.tasks.base import load_task
from forethought.training.rollouts import grade_rollouts
from forethought.types import Example, FinishReason, Grade, GradeStatus, Rollout, RolloutGroup

EXAMPLE = Example(id="a", messages=({"role": "user", "content": "1 + 1?"},), answer="2")
RIGHT = Grade(score=1.0, status=GradeStatus.CORRECT)
WRONG = Grade(score=0.0, status=GradeStatus.WRONG)
UNKNOWN = Grade(score=None, status=GradeStatus.UNPARSABLE_GOLD)
# arXiv 2502.03373 pays 2 to 1 for right answers, -10 to 0 for wrong ones, -10 beyond the limit.
STEEP = CosineLength(
    correct_short=2.0, correct_long=1.0, wrong_short=-10.0, wrong_long=0.0, exceeded=-10.0
)


@pytest.mark.parametrize(
    ("score", "length", "expected"),
    [
        (1.0, 0, 2.0),
        (1.0, 50, 1.5),
        (1.0, 25, 1.0 + 0.5 * (1.0 + math.sqrt(0.5))),
        (0.0, 0, -10.0),
        (0.0, 50, -5.0),
        (0.0, 99, -10.0 * 0.5 * (1.0 + math.cos(0.99 * math.pi))),
        (0.5, 50, -1.75),
        (1.0, 100, -10.0),
        (0.0, 1000, -10.0),
    ],
)
def test_cosine_length_follows_its_paper(score: float, length: int, expected: float) -> None:
    assert cosine_length(score, length, 100, STEEP) == pytest.approx(expected)


def test_cosine_length_as_trl_documents_it() -> None:
    # TRL 1.16: 50 of 100 tokens give 0.75 for a right answer and -0.75 for a wrong one.
    assert cosine_length(1.0, 50, 100, CosineLength()) == pytest.approx(0.75)
    assert cosine_length(0.0, 50, 100, CosineLength()) == pytest.approx(-0.75)
    # Beyond the limit the cosine does not climb again.
    assert cosine_length(1.0, 200, 100, CosineLength()) == pytest.approx(0.5)
    assert cosine_length(0.0, 200, 100, CosineLength()) == pytest.approx(-0.5)


@given(st.integers(0, 300), st.integers(0, 300))
def test_shorter_is_better_when_right_and_worse_when_wrong(one: int, other: int) -> None:
    short, long = sorted((one, other))
    values = CosineLength()
    assert cosine_length(1.0, short, 200, values) >= cosine_length(1.0, long, 200, values)
    assert cosine_length(0.0, short, 200, values) <= cosine_length(0.0, long, 200, values)
    assert cosine_length(1.0, long, 200, values) > cosine_length(0.0, long, 200, values)


@pytest.mark.parametrize(
    ("length", "expected"), [(0, 0.0), (80, 0.0), (81, -0.05), (90, -0.5), (100, -1), (101, -1)]
)
def test_soft_overlong_follows_dapo(length: int, expected: float) -> None:
    assert soft_overlong(length, 100, 20) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("tokens", "size", "expected"),
    [
        ([1, 2, 3, 4], 2, 0.0),
        ([5, 5, 5, 5, 5], 2, -0.75),
        ([1, 2, 1, 2, 1, 2], 3, -0.5),
        ([1, 1], 3, 0.0),
        ([], 1, 0.0),
    ],
)
def test_repetition_counts_ngrams(tokens: list[int], size: int, expected: float) -> None:
    assert repetition(tokens, size) == pytest.approx(expected)


def rewards(name: str, settings: Reward, max_tokens: int | None = None) -> list[float | None]:
    part = load_reward(name, settings=settings, max_tokens=max_tokens)
    ids = [[7] * 90, list(range(90)), [7] * 10]
    grades = [RIGHT, WRONG, UNKNOWN]
    found = score_rollouts([part], [EXAMPLE] * 3, ["", "", ""], grades, completion_ids=ids)
    return [result.reward for result in found]


def test_parts_read_their_tables_and_the_longest_completion() -> None:
    overlong = Reward(parts={"soft_overlong": 1.0})
    assert rewards("soft_overlong", overlong, max_tokens=100) == [-0.5, -0.5, 0.0]
    given = SoftOverlong(max_length=95, buffer=10)
    own = Reward(parts={"soft_overlong": 1.0}, soft_overlong=given)
    assert rewards("soft_overlong", own, max_tokens=1000) == [-0.5, -0.5, 0.0]
    tripled = Reward(parts={"repetition": 1.0}, repetition=Repetition(ngram_size=90))
    assert rewards("repetition", tripled) == [0.0, 0.0, 0.0]
    assert rewards("repetition", Reward())[:2] == [pytest.approx(1 / 88 - 1), 0.0]


def test_cosine_length_of_an_unknown_grade_is_unknown() -> None:
    found = rewards("cosine_length", Reward(), max_tokens=180)
    assert found == [pytest.approx(0.75), pytest.approx(-0.75), None]


def test_a_length_that_nobody_named_is_asked_for() -> None:
    with pytest.raises(RewardError, match="'soft_overlong' needs its max_length"):
        load_reward("soft_overlong")
    wide = Reward(parts={"soft_overlong": 1.0}, soft_overlong=SoftOverlong(buffer=200))
    with pytest.raises(RewardError, match=r"buffer=200 is more than its max_length of 100"):
        load_reward("soft_overlong", settings=wide, max_tokens=100)


def recipe(reward: dict[str, object]) -> RlRecipe:
    found = parse_recipe(
        {"stage": "rl", "run_dir": "r", "model": "m", "task": "sum", "num_steps": 1}
        | {"optimizer": {"learning_rate": 1e-4}, "reward": reward}
    )
    assert isinstance(found, RlRecipe)
    return found


def test_a_recipe_sets_the_parts_and_how_they_combine() -> None:
    parts = {"accuracy": 1.0, "cosine_length": 0.5}
    found = recipe({"combine": "product", "parts": parts, "cosine_length": {"correct_short": 0.8}})
    assert found.reward.combine == "product"
    assert found.reward.cosine_length.correct_short == 0.8


def test_a_step_combines_as_its_recipe_says() -> None:
    task = load_task("sum", size=1)
    text = f"\\boxed{{{task[0].answer}}}"
    rollout = Rollout(
        example_id=task[0].id,
        token_ids=(5, 7, 7, 7, 7),
        sampled_mask=(False, True, True, True, True),
        logprobs=(0.0,) * 5,
        text=text,
        finish_reason=FinishReason.BOXED,
    )
    group = RolloutGroup(example=task[0], rollouts=(rollout,))
    parts = {"accuracy": 1.0, "repetition": 1.0}
    for combine, expected in (("sum", 0.5), ("product", 0.5)):
        found = recipe({"combine": combine, "parts": parts, "repetition": {"ngram_size": 3}})
        loaded = load_rewards(found.reward, max_tokens=found.max_tokens)
        (graded,) = grade_rollouts([group], task, loaded, recipe=found, step=1)
        assert graded.rollouts[0].reward == pytest.approx(expected)
    wrong = dataclasses.replace(rollout, text="\\boxed{no}")
    lost = [RolloutGroup(example=task[0], rollouts=(wrong,))]
    (graded,) = grade_rollouts(lost, task, loaded, recipe=found, step=1)
    assert graded.rollouts[0].reward == 0.0  # of a product; a sum would be -0.5


@pytest.mark.parametrize(
    ("reward", "said"),
    [
        ({"combine": "mean"}, "reward.combine='mean'"),
        ({"combine": "product", "parts": {"accuracy": 2.0}}, r"parts.accuracy=2.0 must be 0 to 1"),
        ({"repetition": {"ngram_size": 2}}, "repetition is set, but parts does not name it"),
        ({"repetition": {"ngram_size": 0}}, "reward.repetition.ngram_size=0"),
        ({"soft_overlong": {"bufer": 3}}, "did you mean buffer"),
    ],
)
def test_a_reward_table_that_cannot_be_meant_is_refused(
    reward: dict[str, object], said: str
) -> None:
    with pytest.raises(RecipeError, match=said):
        recipe(reward)
