r"""Decide whether two answers are the same, by what the gold answer is.

An answer is read once (`reading`): a number (exact, as a Fraction), a group (tuple, interval, set,
matrix, ...) compared item by item, a time or date, words, or a formula. Tiers, cheapest first:
equal as text; equal in value, as numbers and groups; and where the gold answer is a formula, equal
at chosen points (`formula`). All of this takes microseconds, evaluates no text and cannot hang.
What a formula beyond that grammar equals is left to Math-Verify, in a process that can be killed
(`algebra`): `begin_grade` returns a job for these pairs, and `needs_algebra` says which they are.

What is forgiven, always decided by the type of the gold answer:
- LaTeX and spacing (`\dfrac12`, `\left(`, `\text{}`, `$`, thousands separators, a final full stop);
- a name before `=` or a unit after the value, when the other side has none (`x=5`, `5 \text{ cm}`);
- capitals in words, and the order of sets and of bare lists (`1, -2`); where order matters the
  gold answer wears brackets: `(1, -2)` or `[1, -2]`;
- the form of a formula, where the gold answer is one: `\sqrt{12}` is `2\sqrt3`, `x+1` is `1+x`.

What is not: a rounded decimal (0.333 is not 1/3), other bracket kinds (`(1,2]` is not `(1,2)`),
digits outside ASCII, work left undone where the gold answer is a number (2+3 is not 5), and a bare
number for a percentage or the other way round: `9\%` is 0.09, and neither is 9.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from fractions import Fraction

from forethought.grading.answers import Extracted, extract_answer
from forethought.grading.formula import same_value
from forethought.grading.jobs import Job
from forethought.grading.latex import normalise
from forethought.grading.reading import INTERVALS, Answer, AnswerType, as_interval, read_answer
from forethought.grading.screen import has_algebra, is_fit_for_algebra
from forethought.grading.workers import Outcome, OutcomeStatus
from forethought.types import Grade, GradeStatus

# Whether two formulas that differ as texts are the same.
Algebra = Callable[[str, str], bool]

ALGEBRA = "forethought.grading.algebra:is_same"


def is_equivalent(gold: str, answer: str) -> bool:
    """True when `answer` says the same as `gold`. Not symmetric: the gold answer sets the type.

    Empty answers, and those longer than MAX_ANSWER_CHARS or nested deeper than MAX_NESTING, equal
    nothing. Never raises.
    """
    return compare(gold, answer, _by_value)


def needs_algebra(gold: str, answer: str) -> bool:
    """True for pairs that only Math-Verify could find equal, and that it is safe to show to it.

    False without the extra `math`.
    """
    if not has_algebra() or is_equivalent(gold, answer):
        return False
    return compare(gold, answer, _may_be_same)


def answer_type(gold: str) -> AnswerType | None:
    """What kind of thing a gold answer is; None when it is unusable."""
    found = read_answer(gold)
    return None if found is None else found.type


def grade_answer(gold: str, completion: str, *, opened: bool = False) -> Grade:
    """Grade the boxed answer of a completion against the gold answer: 1.0, 0.0 or None.

    Without algebra, so at once. None (UNPARSABLE_GOLD) means that the problem is unusable, whatever
    the completion says. `opened` says that the prompt ended inside a think block.
    """
    start = time.perf_counter()
    return grade_extracted(gold, extract_answer(completion, opened=opened), start)


def begin_grade(
    gold: str, completion: str, *, question: str = "", opened: bool = False
) -> Grade | Job:
    """`grade_answer`, or a job for the pool where algebra has to decide.

    An answer that stands in the `question` is the question, not worked out: algebra is not asked.
    """
    start = time.perf_counter()
    return begin_extracted(gold, extract_answer(completion, opened=opened), start, question)


def grade_extracted(gold: str, found: Extracted, start: float) -> Grade:
    """Grade an answer that has been found already; `start` is on the clock of perf_counter."""
    status = found.status
    if read_answer(gold) is None:
        status = GradeStatus.UNPARSABLE_GOLD
    elif found.answer is not None:
        correct = is_equivalent(gold, found.answer)
        status = GradeStatus.CORRECT if correct else GradeStatus.WRONG
    assert status is not None
    return _grade(status, found.answer, time.perf_counter() - start)


def begin_extracted(gold: str, found: Extracted, start: float, question: str = "") -> Grade | Job:
    """`grade_extracted`, or a job for the pool where algebra has to decide."""
    grade = grade_extracted(gold, found, start)
    answer = grade.extracted
    if (
        grade.status is GradeStatus.CORRECT
        and answer is not None
        and restates(question, gold, answer)
    ):
        return _grade(GradeStatus.WRONG, answer, grade.seconds)
    if grade.status is not GradeStatus.WRONG or answer is None or not needs_algebra(gold, answer):
        return grade
    if restates(question, gold, answer):
        return grade

    def finish(outcome: Outcome) -> Grade:
        return _grade_outcome(outcome, answer)

    return Job(function=ALGEBRA, arguments=(gold, answer), finish=finish, is_pure=True)


def restates(question: str, gold: str, answer: str) -> bool:
    """True when an answer is right by its value alone and its very words stand in the question."""
    if not question or compare(gold, answer, _never):
        return False
    return _squeezed(answer) in _squeezed(question)


def _squeezed(text: str) -> str:
    return "".join(normalise(text).split())


def _grade_outcome(outcome: Outcome, answer: str) -> Grade:
    """What Math-Verify said. A pair that stops it scores 0; unknown is what never ran."""
    if outcome.status is OutcomeStatus.OK and isinstance(outcome.value, bool):
        status = GradeStatus.CORRECT if outcome.value else GradeStatus.WRONG
    else:
        is_late = outcome.status is OutcomeStatus.TIMEOUT
        status = GradeStatus.TIMEOUT if is_late else GradeStatus.ERROR
    grade = _grade(status, answer, outcome.seconds)
    return replace(grade, score=None) if outcome.seconds == 0 else grade


def _grade(status: GradeStatus, extracted: str | None, seconds: float) -> Grade:
    score = None if status is GradeStatus.UNPARSABLE_GOLD else float(status is GradeStatus.CORRECT)
    return Grade(score=score, status=status, extracted=extracted, seconds=seconds)


# --- Compare ------------------------------------------------------------------------------------


def compare(gold: str, answer: str, algebra: Algebra) -> bool:
    """True when the answers are the same, item by item, formulas by the judgement of `algebra`."""
    expected, given = read_answer(gold), read_answer(answer)
    return expected is not None and given is not None and _same(expected, given, algebra)


def _never(gold: str, answer: str) -> bool:
    return False


def _by_value(gold: str, answer: str) -> bool:
    return same_value(gold, answer) is True


def _may_be_same(gold: str, answer: str) -> bool:
    known = same_value(gold, answer)
    if known is not None:
        return known
    return is_fit_for_algebra(gold) and is_fit_for_algebra(answer)


def _same(gold: Answer, answer: Answer, algebra: Algebra) -> bool:
    if gold.name and answer.name and gold.name != answer.name:
        return False
    if "%" in (gold.unit, answer.unit):
        return _same_percentage(gold, answer)
    if gold.unit and answer.unit and gold.unit != answer.unit:
        return False
    if gold.number is not None:
        return gold.number == answer.number
    if gold.kind != answer.kind and not INTERVALS.isdisjoint((gold.kind, answer.kind)):
        gold, answer = as_interval(gold) or gold, as_interval(answer) or answer
    if gold.kind or answer.kind:
        return _same_group(gold, answer, algebra)
    if answer.number is None and gold.text == answer.text:
        return True
    return gold.type is AnswerType.EXPRESSION and algebra(*_formulas(gold, answer))


def _same_percentage(gold: Answer, answer: Answer) -> bool:
    """By value: 9% is 0.09 and not 9. A percentage is not so many of anything else."""
    if gold.number is None or answer.number is None or not {gold.unit, answer.unit} <= {"%", ""}:
        return False
    return _share(gold) == _share(answer)


def _share(answer: Answer) -> Fraction:
    assert answer.number is not None
    return answer.number / 100 if answer.unit == "%" else answer.number


def _formulas(gold: Answer, answer: Answer) -> tuple[str, str]:
    """Both as formulas; y=2x+3 as an equation where the other side is one: 2x-y+3=0."""
    left = f"{gold.name}={gold.text}" if gold.name and "=" in answer.text else gold.text
    right = f"{answer.name}={answer.text}" if answer.name and "=" in gold.text else answer.text
    return left, right


def _same_group(gold: Answer, answer: Answer, algebra: Algebra) -> bool:
    unordered = ("list", "{}", "union")
    both_collections = gold.kind in unordered[:2] and answer.kind in unordered[:2]
    if gold.kind != answer.kind and not both_collections:
        return False
    if gold.text != answer.text or len(gold.items) != len(answer.items):
        return False
    if gold.kind not in unordered:
        pairs = zip(gold.items, answer.items, strict=True)
        return all(_same(one, other, algebra) for one, other in pairs)
    left = list(answer.items)
    for item in gold.items:
        found = next((i for i, other in enumerate(left) if _same(item, other, algebra)), None)
        if found is None:
            return False
        del left[found]
    return True
