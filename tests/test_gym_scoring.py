r"""reasoning-gym's scorers: what may reach them, and what becomes of what they say."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from forethought.grading.answers import Extracted
from forethought.grading.jobs import settle
from forethought.tasks.check import PAYLOADS
from forethought.tasks.gym import ScoredGymTask, gym_task
from forethought.tasks.gym_scoring import (
    SCREENED_FAMILIES,
    begin_grade,
    extract_long_answer,
    is_harmless,
)
from forethought.types import Grade, GradeStatus

needs_gym = pytest.mark.skipif(
    find_spec("reasoning_gym") is None, reason="reasoning-gym is not installed"
)


def boxed(text: str) -> str:
    return f"\\boxed{{{text}}}"


# --- The screen ---------------------------------------------------------------------------------


@pytest.mark.parametrize("family", sorted(SCREENED_FAMILIES))
def test_no_code_reaches_a_scorer_that_would_run_it(family: str) -> None:
    for payload in PAYLOADS:
        assert not is_harmless(family, payload.replace("MARKER", "m").replace("GOLD", "1")), payload


@pytest.mark.parametrize(
    ("family", "answer"),
    [
        ("string_insertion", "AABCD"),
        ("string_insertion", "['A', 'B']"),
        ("spiral_matrix", "1 2 3\n4"),
        ("binary_matrix", "[[0, 1], [2, 0]]"),
        ("n_queens", "_ Q _\nQ _ _"),
        ("countdown", "53*58/53 + (53 - 1.5)"),
        ("puzzle24", "1*9*3 - 3"),
        ("polynomial_multiplication", "-185024*x**7 + 10443*x**4*y"),
        ("simple_integration", "4*X**9 - X**(8) + C"),
        ("intermediate_integration", "2*(4*x + 2)**(3/2)/3 + C"),
        ("intermediate_integration", "x*exp(2*x)/2 - asin(x)*sin(0.5*x) + log(Abs(x))"),
        ("intermediate_integration", "2**(3*x)/7 + C"),
        ("complex_arithmetic", "-12.0 - 3.0i"),
        ("sudoku", "anything (else) may pass, it is only read"),
    ],
)
def test_answers_pass(family: str, answer: str) -> None:
    assert is_harmless(family, answer)


@pytest.mark.parametrize(
    ("family", "answer"),
    [
        ("complex_arithmetic", "nan"),
        ("intermediate_integration", "2*Integral(x*sin(x), x) + C"),
        ("countdown", "9**9**9"),
        ("countdown", "9" * 600),
        ("puzzle24", "factorial(4)"),
        ("puzzle24", "24 if 1 else 0"),
        ("simple_integration", "x**9**9"),
        ("simple_integration", "x**(9**9)"),
        ("simple_integration", "2**999"),
        ("simple_integration", "((9**99)**99)**99"),
        ("simple_integration", "(x + 1)**99*(x + 2)**99"),
        ("simple_integration", "x.func"),
        ("simple_integration", "sin(x).doit"),
        ("simple_integration", "factorial(x)"),
        ("simple_integration", "S(1)"),
        ("simple_integration", "N(x)"),
        ("simple_integration", "x__y"),
        ("string_insertion", "self"),
        ("string_insertion", "'A'*9"),
        ("spiral_matrix", "1" + "+1" * 9),
        ("coin_flip", "1e999999999"),
        ("sudoku", "1" * 30_000),
        ("sudoku", "1\0"),
    ],
)
def test_what_could_compute_does_not_pass(family: str, answer: str) -> None:
    assert not is_harmless(family, answer)


@given(st.text(alphabet="x01()*+-/.,_'\"[]{}\\ \n=", max_size=80))
def test_what_passes_the_screen_of_algebra_has_no_way_to_call(text: str) -> None:
    for family in sorted(SCREENED_FAMILIES):
        if is_harmless(family, text):
            assert "_" not in text or family == "n_queens"
            assert "=" not in text and "{" not in text


# --- The answer in the completion ---------------------------------------------------------------


@pytest.mark.parametrize(
    ("completion", "answer", "status"),
    [
        ("<think>\\boxed{1}</think> \\boxed{a\nb}", "a\nb", None),
        ('\\boxed{{"a": {"b": 1}}}', '{"a": {"b": 1}}', None),
        ("\\boxed{1} \\boxed{2}", "2", None),
        ("\\boxed{" + "1 " * 2_000 + "}", ("1 " * 2_000).strip(), None),
        ("\\boxed{1} \\boxed{2", None, GradeStatus.NO_ANSWER),
        ("\\boxed{ }", None, GradeStatus.NO_ANSWER),
        ("\\boxed{" + "1" * 30_000 + "}", None, GradeStatus.NO_ANSWER),
        ("<think>\\boxed{1}", None, GradeStatus.UNCLOSED_THINK),
        ("1", None, GradeStatus.NO_ANSWER),
    ],
)
def test_a_long_answer_is_read_from_the_last_box(
    completion: str, answer: str | None, status: GradeStatus | None
) -> None:
    assert extract_long_answer(completion) == Extracted(answer=answer, status=status)


# --- Grading ------------------------------------------------------------------------------------


def entry(gold: str, **metadata: Any) -> dict[str, Any]:
    return {"question": "?", "answer": gold, "metadata": metadata}


def graded(family: str, item: dict[str, Any], answer: str, **kwargs: Any) -> Grade:
    return settle(begin_grade(family, {}, item, boxed(answer), **kwargs))


@needs_gym
def test_only_a_full_score_counts_unless_asked_otherwise() -> None:
    item = entry("AB", solution="AB")
    assert graded("string_insertion", item, "AB").score == 1.0
    half = graded("string_insertion", item, "['A', 'B']")
    assert (half.score, half.status) == (0.0, GradeStatus.WRONG)
    assert graded("string_insertion", item, "['A', 'B']", binarise=False).score == 0.1
    assert graded("string_insertion", item, "AB", binarise=False).score == 1.0


@needs_gym
def test_a_scorer_that_fails_on_an_answer_says_wrong_and_error() -> None:
    item = entry("2 \u00d7 3", factors=[2, 3], number=6)
    found = graded("prime_factorization", item, "two")
    assert (found.score, found.status, found.extracted) == (0.0, GradeStatus.ERROR, "two")
    assert graded("prime_factorization", item, "2 \u00d7 3").score == 1.0


def test_where_no_scorer_can_run_the_score_is_unknown() -> None:
    found = settle(begin_grade("no_such_family", {}, entry("1"), boxed("1")))
    assert (found.score, found.status) == (None, GradeStatus.ERROR)


@needs_gym
def test_a_scorer_that_hangs_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("forethought.tasks.gym_scoring.DEADLINE_SECONDS", 0.5)
    # Of an answer that reaches sympy's simplify, none of ours hangs; the entry's integrand does.
    item = entry("x", variable="x", integrand="9**9**9**9*x")
    found = graded("simple_integration", item, "x")
    assert (found.score, found.status) == (0.0, GradeStatus.TIMEOUT)


@needs_gym
@pytest.mark.parametrize("family", sorted(SCREENED_FAMILIES))
def test_the_families_whose_scorer_runs_text_grade_and_run_none(
    family: str, tmp_path: Path
) -> None:
    task = gym_task(family, {}, size=1)
    assert isinstance(task, ScoredGymTask)
    example = task[0]
    assert task.grade(example, boxed(example.answer)).score == 1.0
    for number, payload in enumerate(PAYLOADS):
        marker = tmp_path / str(number)
        text = payload.replace("MARKER", str(marker)).replace("GOLD", example.answer)
        assert task.grade(example, boxed(text)).score == 0.0
        assert not marker.exists()
