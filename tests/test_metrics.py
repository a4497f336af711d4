"""pass@k, majority@k and intervals: golden values by hand, and brute force as the judge."""

from __future__ import annotations

import math
from collections import Counter
from itertools import combinations
from statistics import fmean

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from forethought.evaluation.metrics import (
    majority_at_k,
    mcnemar_p,
    mean_interval,
    paired_difference,
    pass_at_k,
)

ANSWERS = st.lists(st.sampled_from(["a", "b", "c", "d", None]), min_size=1, max_size=8)


def enumerate_majority(answers: list[str | None], right: set[str], k: int) -> float:
    chances = []
    for drawn in combinations(answers, k):
        votes = Counter(answer for answer in drawn if answer is not None)
        top = [a for a, count in votes.items() if count == max(votes.values())]
        chances.append(sum(a in right for a in top) / len(top) if top else 0.0)
    return fmean(chances)


@pytest.mark.parametrize(
    ("num_samples", "num_correct", "k", "expected"),
    [(4, 1, 1, 0.25), (4, 1, 2, 0.5), (4, 2, 2, 5 / 6), (4, 1, 4, 1.0), (5, 0, 5, 0.0)],
)
def test_pass_at_k_by_hand(num_samples: int, num_correct: int, k: int, expected: float) -> None:
    assert pass_at_k(num_samples, num_correct, k) == pytest.approx(expected, abs=1e-12)


@given(st.data())
def test_pass_at_k_equals_the_share_of_subsets_with_a_right_sample(data: st.DataObject) -> None:
    marks = data.draw(st.lists(st.booleans(), min_size=1, max_size=9))
    k = data.draw(st.integers(1, len(marks)))
    share = fmean(any(drawn) for drawn in combinations(marks, k))
    assert pass_at_k(len(marks), sum(marks), k) == pytest.approx(share, abs=1e-12)


def test_pass_at_k_of_many_samples_does_not_overflow() -> None:
    assert pass_at_k(100_000, 50_000, 2) == pytest.approx(0.75, abs=1e-4)


@pytest.mark.parametrize(("n", "c", "k"), [(4, 5, 1), (4, -1, 1), (4, 1, 5), (4, 1, 0)])
def test_pass_at_k_refuses_what_cannot_be(n: int, c: int, k: int) -> None:
    with pytest.raises(ValueError, match="pass@"):
        pass_at_k(n, c, k)


@pytest.mark.parametrize(
    ("answers", "k", "expected"),
    [
        # Two of three vote right: the pairs are aa, ab, ab = 1 + 1/2 + 1/2.
        (["a", "a", "b"], 2, 2 / 3),
        (["a", "a", "b"], 3, 1.0),
        (["a", "b", "b"], 3, 0.0),
        (["a", "b", "c", "d"], 4, 0.25),
        # A blank is no vote: a against b and a blank is a tie of two.
        (["a", "b", None], 3, 0.5),
        # ... but it is one of the k: the pairs are ab, a-, b- = 1/2 + 1 + 0.
        (["a", "b", None], 2, 0.5),
        ([None, None], 2, 0.0),
    ],
)
def test_majority_at_k_by_hand(answers: list[str | None], k: int, expected: float) -> None:
    correct = [answer == "a" for answer in answers]
    assert majority_at_k(answers, correct, k) == pytest.approx(expected, abs=1e-12)


@settings(max_examples=150)
@given(ANSWERS, st.sets(st.sampled_from("abcd")), st.data())
def test_majority_at_k_equals_enumeration(
    answers: list[str | None], right: set[str], data: st.DataObject
) -> None:
    k = data.draw(st.integers(1, len(answers)))
    found = majority_at_k(answers, [answer in right for answer in answers], k)
    assert found == pytest.approx(enumerate_majority(answers, right, k), abs=1e-12)


def test_majority_at_one_is_the_share_of_right_samples() -> None:
    answers = ["a", "a", "b", None, "c"]
    assert majority_at_k(answers, [a == "a" for a in answers], 1) == pytest.approx(0.4)


def test_majority_of_64_different_answers_is_quick_and_fair() -> None:
    answers = [str(i) for i in range(64)]
    assert majority_at_k(answers, [i == 0 for i in range(64)], 32) == pytest.approx(1 / 64)


def test_majority_refuses_an_answer_that_is_both_right_and_wrong() -> None:
    with pytest.raises(ValueError, match="both right and wrong"):
        majority_at_k(["a", "a"], [True, False], 1)


def test_an_interval_of_zeros_and_ones_is_wilsons() -> None:
    # 8 of 10, worked by hand: (0.8 + 0.19207) / 1.38415 -+ 0.22658.
    found = mean_interval([1.0] * 8 + [0.0] * 2)
    assert (found.mean, found.low, found.high) == pytest.approx((0.8, 0.49016, 0.94331), abs=1e-4)


def test_wilson_stays_honest_when_all_are_right() -> None:
    found = mean_interval([1, 1, 1])
    assert found.high == 1.0
    assert found.low == pytest.approx(3 / (3 + 1.959964**2), abs=1e-5)


def test_an_interval_of_means_is_students() -> None:
    # mean 3, s = sqrt(2.5), t(4) = 2.7764: half = 2.7764 * 0.70711.
    found = mean_interval([1.0, 2.0, 3.0, 4.0, 5.0])
    assert (found.mean, found.low, found.high) == pytest.approx((3, 1.03676, 4.96324), abs=1e-4)


@pytest.mark.parametrize(("num", "t"), [(12, 2.20099), (31, 2.04227), (101, 1.98397)])
def test_t_quantiles_of_longer_lists(num: int, t: float) -> None:
    values = [0.25 + 0.5 * (i % 2) for i in range(num)]
    spread = math.sqrt(sum((v - fmean(values)) ** 2 for v in values) / (num - 1))
    found = mean_interval(values)
    assert found.high - found.mean == pytest.approx(t * spread / math.sqrt(num), rel=1e-4)


def test_one_value_says_nothing_about_its_spread() -> None:
    found = mean_interval([0.5])
    assert (found.mean, found.low, found.high) == (0.5, -math.inf, math.inf)


@given(st.lists(st.floats(0, 1), min_size=1, max_size=40))
def test_an_interval_holds_its_mean(values: list[float]) -> None:
    found = mean_interval(values)
    assert found.low <= found.mean <= found.high


def test_no_values_have_no_interval() -> None:
    with pytest.raises(ValueError, match="no values"):
        mean_interval([])


def test_pairing_removes_the_spread_between_questions() -> None:
    before, after = [0.0, 0.3, 0.6, 0.9], [0.1, 0.4, 0.7, 1.0]
    found = paired_difference(before, after)
    assert (found.mean, found.low, found.high) == pytest.approx((0.1, 0.1, 0.1), abs=1e-9)


def test_a_paired_difference_by_hand() -> None:
    # Differences 1, 0, 0, -1, 1, 0: mean 1/6, s = 0.752773, t(5) = 2.5706.
    found = paired_difference([0, 1, 0, 1, 0, 1], [1, 1, 0, 0, 1, 1])
    assert (found.mean, found.low, found.high) == pytest.approx(
        (1 / 6, 1 / 6 - 0.78999, 1 / 6 + 0.78999), abs=1e-4
    )


def test_a_difference_needs_pairs() -> None:
    with pytest.raises(ValueError, match="cannot pair"):
        paired_difference([1.0], [1.0, 0.0])


def test_mcnemar_by_hand() -> None:
    # Won 5, lost 1: 2 * (C(6,0) + C(6,1)) / 64.
    before = [False] * 5 + [True] + [True] * 10
    after = [True] * 5 + [False] + [True] * 10
    assert mcnemar_p(before, after) == pytest.approx(14 / 64)
    assert mcnemar_p(after, before) == pytest.approx(14 / 64)
    assert mcnemar_p(before, before) == 1.0
