"""The rules of selection against their formulas: PODS, GRESO, DOTS and replay, without a model."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from itertools import combinations
from random import Random
from statistics import pvariance

import pytest
from hypothesis import given
from hypothesis import strategies as st

from forethought.tasks.base import load_task
from forethought.training.difficulty import (
    FailureRates,
    Rate,
    bucket_of,
    count_failures,
    draw_near_half,
    failure_rate,
)
from forethought.training.greso import (
    Greso,
    adjust,
    count_visits,
    kind_of,
    skip_probability,
    walk_past,
)
from forethought.training.replay import (
    Kept,
    draw_kept,
    mean_age,
    num_replayed,
    push,
)
from forethought.training.subset import keep_most_varied, most_varied
from forethought.training.text import shuffled_index
from forethought.types import Example, FinishReason, Grade, GradeStatus, Rollout, RolloutGroup

EXAMPLE = Example(id="e", messages=({"role": "user", "content": "?"},), answer="1")


def rollout(reward: float | None, score: float | None, version: int = 0) -> Rollout:
    return Rollout(
        example_id="e",
        token_ids=(1, 2),
        sampled_mask=(False, True),
        logprobs=(0.0, -0.1 / 3),
        text="\ud800 2",
        finish_reason=FinishReason.EOS,
        grade=Grade(score=score, status=GradeStatus.CORRECT if score else GradeStatus.WRONG),
        reward=reward,
        reward_parts={"accuracy": score},
        policy_version=version,
    )


def group(*rewards: float | None, bonus: float = 0.0, version: int = 0) -> RolloutGroup:
    """Rollouts whose reward is their score and a bonus."""
    rollouts = (rollout(None if r is None else r + bonus, r, version) for r in rewards)
    return RolloutGroup(example=EXAMPLE, rollouts=tuple(rollouts))


# --- PODS ---

REWARDS = st.one_of(
    st.lists(st.sampled_from([0.0, 0.1, 1.0, 1.1]), min_size=2, max_size=9),
    st.lists(st.floats(-5, 5), min_size=2, max_size=9),
)


@given(REWARDS, st.data())
def test_no_subset_varies_more_than_the_one_kept(rewards: list[float], data: st.DataObject) -> None:
    count = data.draw(st.integers(2, len(rewards)))
    chosen = most_varied(rewards, count)
    assert chosen == sorted(set(chosen))
    assert len(chosen) == count
    best = max(pvariance(subset) for subset in combinations(rewards, count))
    assert pvariance([rewards[i] for i in chosen]) == pytest.approx(best, abs=1e-9)


@pytest.mark.parametrize(
    ("rewards", "count", "chosen"),
    [
        ([0, 1, 0, 1, 0, 0, 0, 1], 4, [0, 1, 2, 3]),  # half right, half wrong, the first of each
        ([0, 0, 0, 0, 0, 0, 0, 1], 4, [0, 1, 2, 7]),
        ([1, 1, 1, 0], 2, [0, 3]),
        ([3, 1, 2, 9], 3, [1, 2, 3]),  # 1, 2, 9 vary more than 1, 3, 9
        ([1, 1, 1, 1], 2, [0, 1]),
        ([1, 0], 2, [0, 1]),
    ],
)
def test_the_most_varied_rewards_by_hand(
    rewards: list[float], count: int, chosen: list[int]
) -> None:
    assert most_varied(rewards, count) == chosen


def test_a_subset_keeps_order_and_leaves_the_ungraded_out() -> None:
    kept = keep_most_varied(group(1.0, None, 1.0, 0.0, None, 0.0, 1.0), 4)
    assert [r.reward for r in kept.rollouts] == [1.0, 1.0, 0.0, 0.0]
    assert [r.reward for r in keep_most_varied(group(None, 1.0, 0.0), 3).rollouts] == [1.0, 0.0]


# --- GRESO ---


def test_what_was_easy_or_hard_is_skipped_by_the_formula() -> None:
    state = Greso(p_easy=0.6, p_hard=0.4, streaks={1: 1, 2: 3, 3: -2, 4: 50})
    found = [skip_probability(state, index) for index in range(5)]
    assert found == pytest.approx([0.0, 0.4, 1 - 0.6**3, 1 - 0.4**2, 0.99])


def test_streaks_by_hand() -> None:
    state = Greso()
    trajectory = []
    for kind in (1, 1, 0, -1, -1, 1, 1):  # easy, easy, with signal, hard, hard, easy, easy
        state = count_visits(state, [(7, kind)])
        trajectory.append(state.streaks.get(7, 0))
    assert trajectory == [1, 2, 0, -1, -2, 1, 2]
    assert count_visits(Greso(), [(1, 1), (2, -1), (1, 1)]).streaks == {1: 2, 2: -1}


def test_groups_are_told_apart() -> None:
    assert kind_of(group(1.0, 1.0)) == 1
    assert kind_of(group(0.0, 0.0, bonus=0.1)) == -1
    assert kind_of(group(0.0, 1.0)) == 0
    assert kind_of(group(None, 1.0)) == 1
    assert kind_of(group(None, None)) == 0


def test_chances_move_by_a_hundredth_towards_their_targets() -> None:
    # of 12 groups 1 easy (at its target of 1/12) and 1 hard (below its target of 2/12)
    after = adjust(Greso(), [1, -1, *[0] * 10], 0.25)
    assert (after.p_easy, after.p_hard) == pytest.approx((0.49, 0.51))
    after = adjust(after, [-1, -1, *[0] * 10], 0.25)  # no easy one; hard ones at their target
    assert (after.p_easy, after.p_hard) == pytest.approx((0.50, 0.50))
    state = Greso(p_easy=0.055, p_hard=0.945)
    for kinds in ([1, 0], [1, 0], [1, 0]):
        state = adjust(state, kinds, 0.25)
    assert (state.p_easy, state.p_hard) == (0.05, 0.95)


def test_a_walk_past_nothing_is_the_plain_walk() -> None:
    found, cursor = walk_past(Greso(), size=10, seed=3, cursor=7, count=6)
    assert found == [shuffled_index(10, 3, position) for position in range(7, 13)]
    assert cursor == 13


def test_a_walk_skips_as_often_as_the_formula_says() -> None:
    size = 10
    streaks = dict.fromkeys(range(5), 1) | dict.fromkeys(range(5, 8), -2)
    state = Greso(p_easy=0.7, p_hard=0.6, streaks=streaks)
    found, cursor = walk_past(state, size=size, seed=0, cursor=0, count=6000)
    visits, laps = Counter(found), cursor / size
    for index in range(size):
        expected = {5: 0.7, 3: 0.36, 2: 1.0}[5 if index < 5 else 3 if index < 8 else 2]
        error = 4 * math.sqrt(expected * (1 - expected) / laps) + 1 / laps
        assert abs(visits[index] / laps - expected) <= error


@given(st.integers(0, 200), st.integers(1, 20), st.integers(1, 20), st.integers(0, 5))
def test_a_walk_can_be_broken_off_anywhere(cursor: int, first: int, second: int, seed: int) -> None:
    state = Greso(p_easy=0.3, p_hard=0.2, streaks={0: 2, 1: -1, 2: -9})
    whole = walk_past(state, size=7, seed=seed, cursor=cursor, count=first + second)
    head, middle = walk_past(state, size=7, seed=seed, cursor=cursor, count=first)
    tail, end = walk_past(state, size=7, seed=seed, cursor=middle, count=second)
    assert (head + tail, end) == whole


# --- DOTS ---


def no_bucket(index: int) -> str:
    return ""


def test_failure_rates_by_hand() -> None:
    history = count_failures(
        FailureRates(), [(3, "a", group(1.0, 1.0, 0.0, 0.0)), (4, "a", group(0.0))]
    )
    assert failure_rate(history, 3, "a") == 0.5
    assert failure_rate(history, 4, "a") == 1.0
    assert failure_rate(history, 5, "a") == pytest.approx(3 / 5)  # unseen: as its bucket
    assert failure_rate(history, 5, "b") == 0.5
    history = count_failures(history, [(3, "a", group(1.0, 1.0, None))])
    assert failure_rate(history, 3, "a") == pytest.approx(1 / 4)  # (2 / 2 + 0) / (4 / 2 + 2)
    assert history.examples[4] == Rate(1.0, 1.0)  # what was not visited does not fade
    assert count_failures(history, [(9, "", group(None, None))]) == history


@pytest.mark.parametrize(
    ("spec", "bucket"),
    [("sum:difficulty=2", "family=sum difficulty=2"), ("rule", "family=rule difficulty=2")],
)
def test_generated_examples_say_their_bucket(spec: str, bucket: str) -> None:
    assert bucket_of(load_task(spec, split="train", size=3)[1]) == bucket


def test_examples_that_say_nothing_have_no_bucket() -> None:
    assert bucket_of(EXAMPLE) == ""
    assert bucket_of(Example(id="1", messages=(), answer="", meta={"level": ["x"]})) == ""
    assert bucket_of(Example(id="1", messages=(), answer="", meta={"level": 5})) == "level=5"


def test_examples_are_drawn_as_the_formula_says() -> None:
    rates = {0: Rate(0.0, 4.0), 1: Rate(1.0, 4.0), 2: Rate(2.0, 4.0), 3: Rate(4.0, 4.0)}
    history, temperature = FailureRates(examples=rates), 0.4
    weights = [math.exp(-abs(d - 0.5) / temperature) for d in (0.0, 0.25, 0.5, 1.0, 0.5)]
    rng, draws = Random(0), 20_000
    found = Counter(
        draw_near_half(history, no_bucket, size=5, rng=rng, count=1, temperature=temperature)[0]
        for _ in range(draws)
    )
    for index, weight in enumerate(weights):
        share = weight / sum(weights)
        assert abs(found[index] / draws - share) < 4 * math.sqrt(share * (1 - share) / draws)


def test_draws_do_not_repeat_and_spare_what_is_taken() -> None:
    def draw(count: int, taken: Sequence[int]) -> list[int]:
        return draw_near_half(
            FailureRates(),
            no_bucket,
            size=10,
            rng=Random(1),
            count=count,
            temperature=0.1,
            taken=taken,
        )

    assert sorted(draw(10, ())) == list(range(10))
    assert sorted(draw(10, (2, 5))) == [0, 1, 3, 4, 6, 7, 8, 9]
    assert draw(4, ()) == draw(10, ())[:4]


def test_of_a_huge_task_a_random_part_is_looked_at() -> None:
    asked: list[int] = []

    def bucket(index: int) -> str:
        asked.append(index)
        return "even" if index % 2 == 0 else "odd"

    history = FailureRates(buckets={"even": Rate(4.0, 8.0), "odd": Rate(0.0, 8.0)})
    found = draw_near_half(history, bucket, size=10**12, rng=Random(0), count=300, temperature=0.02)
    assert len(set(found)) == 300
    assert len(asked) < 10_000
    assert all(index % 2 == 0 for index in found)
    assert max(found) > 10**11


# --- replay ---


def test_only_groups_with_signal_enter_and_the_oldest_leave() -> None:
    dead, mixed = group(1.0, 1.0), group(0.0, 1.0)
    buffer = push((), [(1, mixed), (2, dead), (3, mixed), (4, group(None, 0.0))], 3)
    assert [kept.index for kept in buffer] == [1, 3]
    buffer = push(buffer, [(5, mixed), (6, mixed)], 3)
    assert [kept.index for kept in buffer] == [3, 5, 6]


def test_a_share_of_the_batch_is_replayed_as_far_as_the_buffer_goes() -> None:
    buffer = [Kept(index=i, rollouts=group(0.0, 1.0, version=i).rollouts) for i in range(10)]
    assert num_replayed(buffer, 0.5, 8) == 4
    assert num_replayed(buffer, 0.5, 9) == 4
    assert num_replayed(buffer[:3], 0.5, 8) == 3
    assert num_replayed([], 0.5, 8) == 0
    assert num_replayed(buffer, math.nextafter(1.0, 0.0), 5) == 4  # one group is always sampled
    drawn = draw_kept(buffer, rng=Random(0), count=4)
    assert len({kept.index for kept in drawn}) == 4
    assert mean_age(buffer[2:4], policy_version=7) == 4.5  # sampled by policies 2 and 3
