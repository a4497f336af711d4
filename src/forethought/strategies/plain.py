"""One completion: the likeliest, or a sampled one."""

from __future__ import annotations

from dataclasses import dataclass, replace

from forethought.strategies.base import draw, unsolved
from forethought.types import Problem, Steps


@dataclass(frozen=True, slots=True, kw_only=True)
class Greedy:
    """The likeliest token at every step."""

    def solve(self, problem: Problem) -> Steps:
        params = replace(problem.params, temperature=0.0)
        found = yield from draw(replace(problem, params=params), None, 1)
        return found[0] if found else unsolved()


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """One completion at the problem's temperature."""

    def solve(self, problem: Problem) -> Steps:
        found = yield from draw(problem, None, 1)
        return found[0] if found else unsolved()
