r"""What only Math-Verify can decide, in the pool; and what it never gets to see."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator

import pytest

from forethought.grading import math, screen
from forethought.grading.jobs import Job, begin, settle
from forethought.grading.math import ALGEBRA, begin_grade, needs_algebra
from forethought.grading.screen import is_fit_for_algebra
from forethought.grading.workers import GradingPool, Outcome, OutcomeStatus
from forethought.types import Grade, GradeStatus

GRACE = 0.5
VERDICT = "forethought.grading.algebra:verdict"


@pytest.fixture(scope="module")
def pool() -> Iterator[GradingPool]:
    with GradingPool(num_workers=1, deadline_seconds=20.0) as pool:
        yield pool


@pytest.mark.parametrize(
    ("gold", "answer", "status"),
    [
        ("\\lfloor x+1 \\rfloor", "\\lfloor 1+x \\rfloor", GradeStatus.CORRECT),
        ("\\lfloor x \\rfloor", "\\lceil x \\rceil", GradeStatus.WRONG),
        ("\\max(a,b)", "\\max(b,a)", GradeStatus.CORRECT),
        ("\\max(x,1)", "\\min(x,1)", GradeStatus.WRONG),
        ("(1, \\lfloor x+1 \\rfloor)", "(1, \\lfloor 1+x \\rfloor)", GradeStatus.CORRECT),
        ("\\binom{n}{2}", "\\frac{n(n-1)}{2}", GradeStatus.CORRECT),
        ("\\lfloor x \\rfloor + 0.5", "\\lfloor x \\rfloor + \\frac{1}{2}", GradeStatus.WRONG),
    ],
)
def test_formulas_beyond_our_own_reader(
    pool: GradingPool, gold: str, answer: str, status: GradeStatus
) -> None:
    found = begin_grade(gold, f"\\boxed{{{answer}}}")
    assert isinstance(found, Job)
    grade = begin(found, pool).result()
    assert (grade.status, grade.score) == (status, float(status is GradeStatus.CORRECT))
    assert grade.extracted == answer
    assert grade.seconds > 0


def test_siblings_with_one_answer_share_one_call(pool: GradingPool) -> None:
    found = begin_grade("\\lfloor y+1 \\rfloor", "\\boxed{\\lfloor 1+y \\rfloor}")
    grades = [begin(found, pool).result() for _ in range(3)]
    assert len({grade.seconds for grade in grades}) == 1  # of the one call


def test_without_math_verify_the_exact_tiers_decide(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(math, "has_algebra", lambda: False)
    found = begin_grade("\\max(a,b)", "\\boxed{\\max(b,a)}")
    assert isinstance(found, Grade)
    assert found.status is GradeStatus.WRONG


def test_math_verify_is_never_in_this_process() -> None:
    assert screen.has_algebra()
    settle(begin_grade("\\lceil x+1 \\rceil", "\\boxed{\\lceil 1+x \\rceil}"))
    assert "math_verify" not in sys.modules


@pytest.mark.parametrize(
    ("outcome", "status", "score"),
    [
        (Outcome(True, OutcomeStatus.OK, "", 0.1), GradeStatus.CORRECT, 1.0),
        (Outcome(False, OutcomeStatus.OK, "", 0.1), GradeStatus.WRONG, 0.0),
        (Outcome("yes", OutcomeStatus.OK, "", 0.1), GradeStatus.ERROR, 0.0),
        (Outcome(1, OutcomeStatus.OK, "", 0.1), GradeStatus.ERROR, 0.0),
        (Outcome(None, OutcomeStatus.TIMEOUT, "", 5.0), GradeStatus.TIMEOUT, 0.0),
        (Outcome(None, OutcomeStatus.ERROR, "", 0.1), GradeStatus.ERROR, 0.0),
        (Outcome(None, OutcomeStatus.DIED, "", 0.1), GradeStatus.ERROR, 0.0),
        # It never ran: that says nothing about the answer.
        (Outcome(None, OutcomeStatus.DIED, "", 0.0), GradeStatus.ERROR, None),
    ],
)
def test_what_an_outcome_means(outcome: Outcome, status: GradeStatus, score: float | None) -> None:
    found = begin_grade("\\max(a,b)", "\\boxed{\\max(b,a)}")
    assert isinstance(found, Job)
    grade = found.finish(outcome)
    assert (grade.status, grade.score) == (status, score)


BOMBS = [
    "\\dfrac{5^{5^{5^{5^5}}}-4^{4^{4^{4^4}}}}{16}",
    "9^9^9^9",
    "10^10^10",
    "10000000!",
    "((x!)!)!",
    "\\binom{10^8}{5\\cdot10^7}",
    "(x+1)^{100000}",
    "((9^{99})^{99})^{99}",
    "\\sum_{k=1}^{10^9}\\frac{1}{k}",
    "\\prod_{k=1}^{10^6}k",
    "\\int_0^1 e^{x^2} dx",
    "\\lim_{n\\to\\infty}(1+1/n)^n",
    "\\frac{d}{dx}x^x",
    "\\frac{d^2}{dx^2}x^x",
    "\\sqrt{" * 30 + "2" + "}" * 30,
    "x+" * 300 + "1",
    "7" * 100,
    "one plus one",
    "52_8",
    "x; y",
    "\\lfloor x \\rfloor \\href{a}{b}",
    "x\0",
]


@pytest.mark.parametrize("bomb", BOMBS)
def test_the_screen_refuses(bomb: str) -> None:
    assert not is_fit_for_algebra(bomb)
    for gold, answer in (("\\max(a,b)", bomb), (bomb, "\\max(a,b)")):
        assert not needs_algebra(gold, answer)


@pytest.mark.parametrize(
    "formula", ["2\\sqrt{3}", "\\max(a,b)", "x^{10}+1", "\\binom{n}{2}", "5!", "\\frac{x_1}{2}"]
)
def test_the_screen_lets_school_mathematics_pass(formula: str) -> None:
    assert is_fit_for_algebra(formula)


@pytest.mark.parametrize("bomb", BOMBS[:12])
def test_no_input_holds_a_worker_beyond_its_deadline(pool: GradingPool, bomb: str) -> None:
    """Behind the screen: what passed it by mistake must not hold the pool either."""
    pool.run(ALGEBRA, "\\lfloor x \\rfloor", "\\lceil x \\rceil")  # Math-Verify is loaded
    start = time.monotonic()
    outcome = pool.run(VERDICT, "16", bomb, deadline_seconds=0.5)
    assert time.monotonic() - start < 0.5 + GRACE
    assert outcome.value is not True
    if bomb == BOMBS[0]:  # Math-Verify's own timeout does not end this one
        assert outcome.status is OutcomeStatus.TIMEOUT


def test_numbers_are_never_sent(pool: GradingPool) -> None:
    for answer in ("2+3", "\\max(2,5)", "\\lfloor 5.5 \\rfloor", "\\binom{5}{1}"):
        assert not needs_algebra("5", answer)
