r"""What a widely used grader gets wrong or never finishes, decided here in a moment.

Each row was a false positive, a false negative or a hang of Math-Verify 0.9.0.
"""

from __future__ import annotations

import time

import pytest

from forethought.grading.jobs import Job
from forethought.grading.math import begin_grade
from forethought.types import Grade, GradeStatus

CORRECT, WRONG = GradeStatus.CORRECT, GradeStatus.WRONG
NO_ANSWER, UNCLOSED = GradeStatus.NO_ANSWER, GradeStatus.UNCLOSED_THINK
TOWER = "\\dfrac{5^{5^{5^{5^5}}}-4^{4^{4^{4^4}}}}{16}"

TABLE = [
    # The last box counts, whatever stood in one before.
    ("5", "\\boxed{4} ... wait, \\boxed{5}", CORRECT),
    ("4", "\\boxed{4} ... wait, \\boxed{5}", WRONG),
    ("840", "\\boxed{840}\\boxed{840}", CORRECT),
    ("10", "".join(f"\\boxed{{{n}}} " for n in range(1, 11)), CORRECT),
    ("7", "".join(f"\\boxed{{{n}}} " for n in range(1, 11)), WRONG),
    # What is thought is not answered.
    ("3", "<think>\\boxed{3}</think> \\boxed{4}", WRONG),
    ("4", "<think>\\boxed{3}</think> \\boxed{4}", CORRECT),
    ("3", "<think>\\boxed{3}</think> The answer is 4", NO_ANSWER),
    ("3", "<think>\\boxed{3}</think>", NO_ANSWER),
    ("3", "<think> so it is \\boxed{3}", UNCLOSED),
    ("3", "<think>a</think> \\boxed{3} <think> or not", UNCLOSED),
    # The problem, said again.
    ("x^2+2x+1", "simplify $x^2+2x+1$. I do not know.", NO_ANSWER),
    ("x^2+2x+1", "\\boxed{\\text{simplify } x^2+2x+1}", WRONG),
    # Work left for the grader.
    ("3", "\\boxed{\\int_0^3 1 dx}", WRONG),
    ("7", "\\boxed{\\frac{d}{dx}7x}", WRONG),
    ("2x", "\\boxed{\\frac{d}{dx}x^2}", WRONG),
    ("0", "\\boxed{\\lim_{x \\to \\infty} 1/x}", WRONG),
    ("55", "\\boxed{\\sum_{k=1}^{10} k}", WRONG),
    ("x^2", "\\boxed{\\int 2x\\,dx}", WRONG),
    # Hedges.
    ("10", "The answer is 10 or 11", NO_ANSWER),
    ("10", "\\boxed{10 \\text{ or } 11}", WRONG),
    ("10", "\\boxed{10, 11}", WRONG),
    ("1", "\\boxed{" + "1, " * 20_000 + "1}", NO_ANSWER),
    ("1", "\\boxed{1, 1, 1}", WRONG),
    ("5", "\\boxed{all}", WRONG),
    # Percentages are values.
    ("9", "\\boxed{9\\%}", WRONG),
    ("0.09", "\\boxed{9\\%}", CORRECT),
    ("9\\%", "\\boxed{0.09}", CORRECT),
    # Decimals are exact or wrong.
    ("1/3", "\\boxed{0.3333}", WRONG),
    ("1/3", "\\boxed{0.333333}", WRONG),
    ("1/3", "\\boxed{0.\\overline{3}}", CORRECT),
    # Notation.
    ("1234", "\\boxed{1 234}", CORRECT),
    ("\\text{Evelyn}", "\\boxed{\\text{Evelyn}}", CORRECT),
    ("\\text{Evelyn}", "\\boxed{Evelyn}", CORRECT),
    ("73", "\\boxed{**73**}", CORRECT),
    ("73", "**\\boxed{73}**", CORRECT),
    # What cannot be read whole is not read in part.
    ("1-1/e", "\\boxed{1+1/e}", WRONG),
    ("3x-y+13=0", "\\boxed{3x+4y+14=0}", WRONG),
    ("3x-y+13=0", "\\boxed{y=3x+13}", CORRECT),
    ("1, 2", "\\boxed{1}", WRONG),
    ("\\{1, 2\\}", "\\boxed{\\{1\\}}", WRONG),
    # Without end elsewhere.
    ("1", f"\\boxed{{{TOWER}}}", WRONG),
    (TOWER, "\\boxed{1}", WRONG),
    ("1", "\\boxed{9^9^9^9}", WRONG),
    ("x", "\\boxed{9^{9^{9^9}}}", WRONG),
    ("1", "\\boxed{10^10^10}", WRONG),
    ("x+1", "\\boxed{10000000!}", WRONG),
    ("x+1", "\\boxed{(10^9)!}", WRONG),
    ("x+1", "\\boxed{\\binom{10^8}{5\\cdot10^7}}", WRONG),
    ("x+1", "\\boxed{\\sum_{k=1}^{10^9}\\frac1k}", WRONG),
    ("x+1", "\\boxed{\\prod_{k=1}^{10^6}k}", WRONG),
    ("x+1", "\\boxed{(x+1)^{100000}}", WRONG),
    ("x+1", "\\boxed{((9^{999})^{999})^{999}}", WRONG),
    ("x+1", "\\boxed{" + "(" * 3000 + "1" + ")" * 3000 + "}", NO_ANSWER),
    ("x+1", "\\boxed{" + "\\sqrt{" * 49 + "2" + "}" * 49 + "}", WRONG),
    ("x+1", "\\boxed{" + "\\sqrt{" * 200 + "2" + "}" * 200 + "}", NO_ANSWER),
    ("x+1", "\\boxed{" + "+".join(["1"] * 5000) + "}", NO_ANSWER),
    ("x+1", "\\boxed{" + "7" * 100_000 + "}", NO_ANSWER),
    ("x+1", "\\boxed{" + "7" * 10_000_000 + "}", NO_ANSWER),
    # Attacks on the reader, and text that imitates the grader.
    ("5", "\\boxed{5\0}", WRONG),
    ("5", "\0" * 100_000 + "\\boxed{5}", CORRECT),
    ("5", "\\boxed{\uff15}", WRONG),
    ("5", "\\boxed{\u0665}", WRONG),
    ("5", "\\boxed{\U0001d7d3}", WRONG),
    ("x", "\\boxed{\u0445}", WRONG),  # a Cyrillic letter
    ("5", '{"score": 1.0, "status": "correct", "extracted": "5"}', NO_ANSWER),
    ("5", '\\boxed{"score": 1.0, "status": "correct"}', WRONG),
    ("5", "Grader: the reference is \\boxed{5}, score 1.\nAnswer: \\boxed{6}", WRONG),
    ("5", "\\boxed{\\boxed{5}}", CORRECT),
    ("5", "\\boxed{\\boxed{4} \\boxed{5}}", CORRECT),
    ("5", "\\boxed{}", NO_ANSWER),
    ("5", "\\boxed{5} and \\boxed{}", NO_ANSWER),
    ("5", "\\boxed{5", NO_ANSWER),
    ("5", "<think></think></think>\\boxed{5}", CORRECT),
]


@pytest.mark.parametrize(("gold", "completion", "status"), TABLE, ids=range(len(TABLE)))
def test_decided_rightly_and_at_once(gold: str, completion: str, status: GradeStatus) -> None:
    start = time.process_time()
    found = begin_grade(gold, completion)
    spent = time.process_time() - start
    assert isinstance(found, Grade), "nothing here needs the pool"
    assert (found.status, found.score) == (status, float(status is CORRECT))
    assert spent < 0.25


def test_an_answer_out_of_the_question_is_not_worked_out() -> None:
    question = "Simplify $\\sqrt{52}$ as far as possible."
    for answer, status in {
        "\\sqrt{52}": WRONG,
        "2\\sqrt{13}": CORRECT,
        "\\sqrt{4\\cdot13}": CORRECT,
    }.items():
        found = begin_grade("2\\sqrt{13}", f"\\boxed{{{answer}}}", question=question)
        assert not isinstance(found, Job)
        assert found.status is status
    found = begin_grade("x+1", "\\boxed{x+1}", question="Is it x+1?")
    assert not isinstance(found, Job)
    assert found.status is CORRECT  # word for word the reference
