r"""Grading by reasoning-gym's own scorers, without running the model's text.

Nine of them hand the answer to `eval` or to sympy's `parse_expr`, which is `eval`. So an answer
first passes a screen in this process: for those nine it must be made of what an answer of that
family is made of, so that nothing in it can be a call, an attribute or a huge power. What passes
is scored in a worker of the grading pool (`gym_worker`), which is killed at its deadline.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from forethought.grading.answers import BOX_OPEN, THINK_CLOSE, THINK_OPEN, Extracted, split_think
from forethought.grading.jobs import Job
from forethought.grading.workers import Outcome, OutcomeStatus
from forethought.types import Grade, GradeStatus

MAX_ANSWER_CHARS = 20_000  # grids and move lists are long
MAX_EXPRESSION_CHARS = 500
DEADLINE_SECONDS = 5.0
_SCORE = "forethought.tasks.gym_worker:score"
_BRACE = re.compile(r"[{}]")


# --- The screen ---------------------------------------------------------------------------------

# What answers are made of where the scorer evaluates them, and in complex_arithmetic, whose scorer
# takes "nan" for right: nothing else gets through.
_ALPHABETS: Mapping[str, re.Pattern[str]] = {
    "string_insertion": re.compile(r"[A-Z\s,\[\]'\"]*"),
    "spiral_matrix": re.compile(r"[0-9\s,\[\]]*", re.ASCII),
    "binary_matrix": re.compile(r"[0-9\s,\[\]]*", re.ASCII),
    "n_queens": re.compile(r"[Q_\s,\[\]'\"]*"),
    "complex_arithmetic": re.compile(r"[0-9\s+\-.eEij*()]*", re.ASCII),
    "countdown": re.compile(r"(?:[0-9\s+\-/().]|\*(?!\*))*", re.ASCII),
    "puzzle24": re.compile(r"(?:[0-9\s+\-/().]|\*(?!\*))*", re.ASCII),
}
_ALGEBRA = frozenset(
    ("polynomial_multiplication", "simple_integration", "intermediate_integration")
)
SCREENED_FAMILIES = frozenset(_ALPHABETS) | _ALGEBRA

_FUNCTIONS = {"sin", "cos", "tan", "asin", "acos", "atan", "sinh", "cosh", "tanh", "sec", "csc"}
_FUNCTIONS |= {"cot", "exp", "log", "ln", "sqrt", "Abs", "pi"}
_SYMBOLS = re.compile(r"[0-9A-Za-z\s+\-*/().]*", re.ASCII)
_WORD = re.compile(r"[A-Za-z]+")
_DOTTED = re.compile(r"\.(?![0-9])|[A-Za-z)]\.")  # an attribute, not a decimal point
# An exponent: a small number, a fraction, a letter or a multiple of it; never a tower.
_POWER = re.compile(
    r"\*\*\s*(?:([0-9]{1,2})|[a-z]|\(\s*-?\s*[0-9]{1,2}(?:\s*/\s*[0-9]{1,2})?\s*\)"
    r"|\(\s*-?\s*(?:[0-9]{1,2}\s*\*\s*)?[a-z]\s*\))(?!\w|\s*\*\*)",
    re.ASCII,
)
_POWER_OF_SUM = re.compile(r"\)\s*\*\*\s*\(?\s*-?\s*([0-9]{1,2})", re.ASCII)
_MAX_EXPANSION = 100  # product of the exponents of sums, which may stand inside each other
_HUGE_EXPONENT = re.compile(r"[0-9.][eE][+-]?[0-9]{4,}", re.ASCII)  # Fraction("1e999999999")


def is_harmless(family: str, answer: str) -> bool:
    """Whether an answer may be shown to the family's scorer. Linear time; never raises."""
    if len(answer) > MAX_ANSWER_CHARS or "\0" in answer or _HUGE_EXPONENT.search(answer):
        return False
    if family in _ALPHABETS:
        is_expression = family in ("countdown", "puzzle24")
        if is_expression and len(answer) > MAX_EXPRESSION_CHARS:
            return False
        return _ALPHABETS[family].fullmatch(answer) is not None
    return family not in _ALGEBRA or _is_algebra(answer)


def _is_algebra(text: str) -> bool:
    if len(text) > MAX_EXPRESSION_CHARS or not _SYMBOLS.fullmatch(text) or _DOTTED.search(text):
        return False
    words = _WORD.findall(text)
    # One letter is a variable or a constant; of sympy's own one-letter names, none computes.
    if any(len(word) > 1 and word not in _FUNCTIONS for word in words) or {"N", "S"} & {*words}:
        return False
    if text.count("**") != len(_POWER.findall(text)):
        return False
    expansion = 1
    for exponent in _POWER_OF_SUM.findall(text):
        expansion *= max(1, int(exponent))
    return expansion <= _MAX_EXPANSION


# --- Grading ------------------------------------------------------------------------------------


def extract_long_answer(completion: str) -> Extracted:
    r"""The content of the last `\boxed{...}` after the think block, lines and all.

    As `grading.answers` reads it, but up to MAX_ANSWER_CHARS, for grids and lists of moves.
    """
    visible = split_think(completion)[1]
    if not visible and completion.rfind(THINK_OPEN) > completion.rfind(THINK_CLOSE):
        return Extracted(status=GradeStatus.UNCLOSED_THINK)
    start = visible.rfind(BOX_OPEN)
    end = _closing(visible, start + len(BOX_OPEN)) if start >= 0 else None
    answer = visible[start + len(BOX_OPEN) : end].strip() if end is not None else ""
    return Extracted(answer=answer) if answer else Extracted(status=GradeStatus.NO_ANSWER)


def _closing(text: str, start: int) -> int | None:
    """Where the brace that was open at `start` closes, within MAX_ANSWER_CHARS."""
    depth = 1
    for match in _BRACE.finditer(text, start, start + MAX_ANSWER_CHARS + 1):
        depth += 1 if match.group() == "{" else -1
        if depth == 0:
            return match.start()
    return None


def begin_grade(
    family: str,
    settings: Mapping[str, Any],
    entry: Mapping[str, Any],
    completion: str,
    *,
    binarise: bool = True,
) -> Grade | Job:
    """Have a completion graded by the family's scorer, in the pool. Never raises.

    With `binarise` only a full score counts. A timeout scores 0 and so does an answer on which
    the scorer fails; where the scorer itself cannot run, the score is unknown.
    """
    found = extract_long_answer(completion)
    answer = found.answer
    if answer is None:
        return Grade(score=0.0, status=found.status or GradeStatus.NO_ANSWER)
    if not is_harmless(family, answer):
        return Grade(score=0.0, status=GradeStatus.WRONG, extracted=answer)
    return Job(
        function=_SCORE,
        arguments=(family, dict(settings), dict(entry), answer),
        finish=lambda outcome: _grade_of(outcome, answer, binarise=binarise),
        deadline_seconds=DEADLINE_SECONDS,
    )


def _grade_of(outcome: Outcome, answer: str, *, binarise: bool) -> Grade:
    def grade(score: float | None, status: GradeStatus) -> Grade:
        return Grade(score=score, status=status, extracted=answer, seconds=outcome.seconds)

    if outcome.status is OutcomeStatus.TIMEOUT:
        return grade(0.0, GradeStatus.TIMEOUT)
    if outcome.status is OutcomeStatus.DIED and outcome.seconds > 0:  # the answer was its end
        return grade(0.0, GradeStatus.ERROR)
    if not isinstance(outcome.value, dict):  # it never ran
        return grade(None, GradeStatus.ERROR)
    score = outcome.value.get("score")
    if not isinstance(score, (int, float)):
        return grade(0.0, GradeStatus.ERROR)
    if score >= 1.0:
        return grade(1.0, GradeStatus.CORRECT)
    return grade(0.0 if binarise else max(0.0, float(score)), GradeStatus.WRONG)
