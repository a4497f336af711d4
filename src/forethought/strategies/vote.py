"""Self-consistency (arXiv 2203.11171): sample, group equivalent answers, take the largest group.

Answers are equivalent as a grader sees them ("1/2" and "0.5"), not as text. A completion without
an answer has no vote. Ties go to the answer that came first.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from forethought.grading.math import is_equivalent
from forethought.strategies.base import at_least, draw, one_of, unsolved
from forethought.strategies.stopping_rules import RULES, least_more
from forethought.types import Problem, Solution, Steps, Strategy, Vote

# Beyond this length two answers are compared as strings: they are not numbers.
_MAX_COMPARED = 64


def same_answer(first: str, second: str) -> bool:
    """Whether either answer, taken as the gold one, accepts the other."""
    if first == second:
        return True
    if max(len(first), len(second)) > _MAX_COMPARED:
        return False
    return is_equivalent(first, second) or is_equivalent(second, first)


def tally(
    solutions: Sequence[Solution], weights: Sequence[float] | None = None
) -> tuple[list[Vote], list[int | None]]:
    """The classes of equivalent answers, heaviest first and then in the order of their first vote,
    and of each solution the place of its class in that list (None: no answer)."""
    weights = [1.0] * len(solutions) if weights is None else weights
    seen: dict[str, int] = {}  # the class of each spelling
    classes: list[Vote] = []
    chosen: list[int | None] = []
    for solution, weight in zip(solutions, weights, strict=True):
        answer = solution.answer
        if answer is None:
            chosen.append(None)
            continue
        if answer not in seen:
            same = (i for i, vote in enumerate(classes) if same_answer(vote.answer, answer))
            seen[answer] = next(same, len(classes))
            if seen[answer] == len(classes):
                classes.append(Vote(answer=answer, count=0, weight=0.0))
        index = seen[answer]
        vote = classes[index]
        classes[index] = replace(vote, count=vote.count + 1, weight=vote.weight + weight)
        chosen.append(index)
    order = sorted(range(len(classes)), key=lambda i: -classes[i].weight)
    place = {index: rank for rank, index in enumerate(order)}
    return [classes[i] for i in order], [None if i is None else place[i] for i in chosen]


def elect(solutions: Sequence[Solution], weights: Sequence[float] | None = None) -> Solution:
    """The solution that first gave the winning answer, with the votes; without any answer, the
    first solution."""
    if not solutions:
        return unsolved()
    votes, chosen = tally(solutions, weights)
    winner = solutions[chosen.index(0)] if votes else solutions[0]
    discarded = sum(solution.discarded_tokens for solution in solutions)
    return replace(winner, votes=tuple(votes), discarded_tokens=discarded)


@dataclass(frozen=True, slots=True, kw_only=True)
class Majority:
    """The most frequent of `n` answers. With weight=logprob a vote counts as the probability per
    token of its completion."""

    n: int = 16
    weight: str = "none"
    inner: Strategy | None = None

    def __post_init__(self) -> None:
        at_least("n", self.n, 1)
        one_of("weight", self.weight, ("none", "logprob"))

    def solve(self, problem: Problem) -> Steps:
        found = yield from draw(problem, self.inner, self.n)
        return elect(found, None if self.weight == "none" else [_probability(s) for s in found])


def _probability(solution: Solution) -> float:
    return 0.0 if solution.score is None else math.exp(solution.score)


@dataclass(frozen=True, slots=True, kw_only=True)
class AdaptiveConsistency:
    """Sample until the lead is sure, `n` times at most (arXiv 2305.11860)."""

    n: int = 40
    confidence: float = 0.95
    rule: str = "beta"
    inner: Strategy | None = None

    def __post_init__(self) -> None:
        at_least("n", self.n, 1)
        if not 0.5 <= self.confidence < 1:
            raise ValueError("confidence must be at least 0.5 and below 1")
        one_of("rule", self.rule, tuple(RULES))

    def solve(self, problem: Problem) -> Steps:
        found: list[Solution] = []
        while len(found) < self.n:
            counts = [vote.count for vote in tally(found)[0]]
            more = least_more(counts, self.rule, self.confidence, self.n - len(found))
            if not more:
                break
            drawn = yield from draw(problem, self.inner, more, len(found))
            found += drawn
            if len(drawn) < more:
                break
        return elect(found)


@dataclass(frozen=True, slots=True, kw_only=True)
class EarlyStoppingConsistency:
    """Sample `window` at a time until a window is of one mind, `n` at most (arXiv 2401.10480)."""

    n: int = 40
    window: int = 5
    inner: Strategy | None = None

    def __post_init__(self) -> None:
        at_least("n", self.n, 1)
        at_least("window", self.window, 1)

    def solve(self, problem: Problem) -> Steps:
        found: list[Solution] = []
        while len(found) < self.n:
            count = min(self.window, self.n - len(found))
            drawn = yield from draw(problem, self.inner, count, len(found))
            found += drawn
            if len(drawn) < count:
                break
            if count == self.window and set(tally(drawn)[1]) == {0}:
                whole = elect(found)
                return replace(drawn[0], votes=whole.votes, discarded_tokens=whole.discarded_tokens)
        return elect(found)
