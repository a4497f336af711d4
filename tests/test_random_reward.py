"""The coin of a control: fair, the same whenever it is thrown again, blind to what was said."""

from __future__ import annotations

from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from forethought.grading.built_in_rewards import toss
from forethought.grading.reward_batch import RewardBatch
from forethought.grading.rewards import load_reward, score_rollouts
from forethought.types import Example, Grade, GradeStatus

RIGHT = Grade(score=1.0, status=GradeStatus.CORRECT)


def batch(texts: list[str], *, name: str = "a", **changes: Any) -> RewardBatch:
    example = Example(id=name, messages=({"role": "user", "content": "1 + 1?"},), answer="2")
    count = len(texts)
    values: dict[str, Any] = {
        "examples": (example,) * count,
        "completions": tuple(texts),
        "grades": (RIGHT,) * count,
        "completion_ids": ((),) * count,
    }
    return RewardBatch(**values | changes)


@given(st.lists(st.text(max_size=8), max_size=20), st.randoms())
def test_the_order_of_completions_changes_no_coin(texts: list[str], rng: Any) -> None:
    mixed = rng.sample(texts, len(texts))
    coins = sorted(zip(texts, toss(batch(texts)), strict=True))
    assert sorted(zip(mixed, toss(batch(mixed)), strict=True)) == coins


def test_about_half_are_paid_also_where_all_say_the_same() -> None:
    for texts in (["the same"] * 2000, [str(number) for number in range(2000)]):
        assert 900 < sum(toss(batch(texts))) < 1100


def test_another_step_seed_or_example_has_coins_of_its_own() -> None:
    texts = [str(number) for number in range(64)]
    changes: list[dict[str, Any]] = [{}, {"step": 2}, {"seed": 1}, {"name": "b"}]
    assert len({tuple(toss(batch(texts, **change))) for change in changes}) == 4
    assert toss(batch(texts, step=2, seed=3)) == toss(batch(texts, step=2, seed=3))


def test_a_recipe_can_pay_by_it() -> None:
    found = batch([str(number) for number in range(32)], step=5, seed=7)
    results = score_rollouts(
        [load_reward("random", weight=2.0)],
        found.examples,
        found.completions,
        found.grades,
        step=5,
        seed=7,
    )
    assert [result.reward for result in results] == [2.0 * coin for coin in toss(found)]
