"""Best of N: sample, score each completion, keep the best.

A verifier judges a completion without seeing the reference answer. Without one the score is the
log-probability per token, which costs nothing more.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

from forethought.errors import StrategyError
from forethought.strategies.base import at_least, draw, unsolved
from forethought.types import Problem, Solution, Steps, Strategy

Verifier = Callable[[str, str], float]  # (question, completion) -> score, higher is better


@dataclass(frozen=True, slots=True, kw_only=True)
class BestOfN:
    """The best of `n` completions by `verifier`, or by log-probability. One that has an answer is
    better than one that has none; ties go to the first."""

    n: int = 8
    verifier: Verifier | None = None
    inner: Strategy | None = None

    def __post_init__(self) -> None:
        at_least("n", self.n, 1)

    def solve(self, problem: Problem) -> Steps:
        found = yield from draw(problem, self.inner, self.n)
        if not found:
            return unsolved()
        question = problem.messages[-1]["content"]
        scores = [self._score(question, solution) for solution in found]
        best = max(range(len(found)), key=lambda i: (found[i].answer is not None, scores[i]))
        discarded = sum(solution.discarded_tokens for solution in found)
        return replace(found[best], score=scores[best], discarded_tokens=discarded)

    def _score(self, question: str, solution: Solution) -> float:
        if self.verifier is None:
            return -math.inf if solution.score is None else solution.score
        score = self.verifier(question, solution.text)
        if isinstance(score, bool) or not isinstance(score, int | float) or math.isnan(score):
            raise StrategyError(f"the verifier returned {score!r}: it must return a number")
        return float(score)
