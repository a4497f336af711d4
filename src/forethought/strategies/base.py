"""What strategies share: asking, running side by side, and reading a completion as a solution.

A strategy is a frozen dataclass whose fields are its options. `solve(problem)` is a generator: it
yields requests to be sampled side by side, receives the completions of each, and returns a
`Solution`. It gets fewer completions than it asked for, or none, when the budget has run out, and
then returns the best it has.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Generator, Sequence
from dataclasses import replace
from statistics import fmean
from typing import TypeVar

from forethought.errors import EngineError
from forethought.grading.answers import extract_answer
from forethought.types import (
    Capabilities,
    Completion,
    Example,
    FinishReason,
    Problem,
    Request,
    SamplingParams,
    Solution,
    Steps,
    Strategy,
)

Result = TypeVar("Result")
# Any part of a strategy: yields requests, receives completions, returns a result.
Part = Generator[Sequence[Request], list[list[Completion]], Result]


def derived_seed(seed: int, name: object) -> int:
    """A seed of 31 bits, which fit every engine's, that is a pure function of both."""
    digest = hashlib.sha256(f"{seed}:{name}".encode()).digest()
    return int.from_bytes(digest[:4], "big") >> 1


def problem_of(example: Example, params: SamplingParams, capabilities: Capabilities) -> Problem:
    """What a strategy may see of an example. Its draws depend on the seed and the id alone."""
    params = replace(params, seed=derived_seed(params.seed, example.id))
    return Problem(messages=example.messages, params=params, capabilities=capabilities)


def ask(request: Request) -> Part[list[Completion]]:
    """The completions of one request."""
    [completions] = yield [request]
    return completions


def side_by_side(parts: Sequence[Steps]) -> Part[list[Solution]]:
    """Run strategies in step, so that their requests meet in one batch."""
    solutions: list[Solution | None] = [None] * len(parts)
    asked: dict[int, Sequence[Request]] = {}
    answers: dict[int, list[list[Completion]] | None] = dict.fromkeys(range(len(parts)))
    while answers:
        asked = {}
        for index, answer in answers.items():
            try:
                asked[index] = parts[index].send(answer)  # type: ignore[arg-type]
            except StopIteration as stop:
                solutions[index] = stop.value
        if not asked:
            break
        groups = yield [request for requests in asked.values() for request in requests]
        rest = iter(groups)
        answers = {index: [next(rest) for _ in requests] for index, requests in asked.items()}
    return [solution for solution in solutions if solution is not None]


def draw(
    problem: Problem, inner: Strategy | None, count: int, first: int = 0
) -> Part[list[Solution]]:
    """`count` solutions to vote on, of which `first` came before: plain samples, or the solutions
    of `inner`. Fewer when the budget runs out."""
    if inner is None:
        params = replace(problem.params, n=count, first_sibling=first)
        completions = yield from ask(Request(messages=problem.messages, params=params))
        return [solution_of(completion) for completion in completions]
    seeds = [derived_seed(problem.params.seed, index) for index in range(first, first + count)]
    problems = [replace(problem, params=replace(problem.params, seed=seed)) for seed in seeds]
    solutions = yield from side_by_side([inner.solve(each) for each in problems])
    return [s for s in solutions if s.text or s.answer is not None]  # some had no budget left


def solution_of(completion: Completion, prefix: str = "") -> Solution:
    """The answer of a completion whose turn began with `prefix`."""
    text = prefix + completion.text
    return Solution(
        answer=extract_answer(text).answer,
        text=text,
        finish_reason=completion.finish_reason,
        score=mean_logprob(completion),
    )


def unsolved() -> Solution:
    """What there is when there was no room for a single completion."""
    return Solution(answer=None, text="", finish_reason=FinishReason.LENGTH)


def mean_logprob(completion: Completion) -> float | None:
    """Log-probability per token; None where the engine gives none."""
    known = [value for value in completion.logprobs if math.isfinite(value)]
    return fmean(known) if known else None


_WORDS = {
    "prefix": "an assistant prefix",
    "logprobs": "log-probabilities",
    "confidences": "top log-probabilities",
}


def require_able(strategy: Strategy | None, capabilities: Capabilities) -> None:
    """Raise EngineError when the engine lacks one of the capabilities that the strategy, or one
    that it wraps, names in `needs`: it cannot do without and does not pretend."""
    while strategy is not None:
        for need in getattr(strategy, "needs", ()):
            if not getattr(capabilities, need):
                raise EngineError(
                    f"{type(strategy).__name__} needs an engine with {_WORDS[need]}, which this "
                    "one does not have: choose another strategy or engine"
                )
        strategy = getattr(strategy, "inner", None)


def num_sampled(completions: Sequence[Completion]) -> int:
    return sum(completion.usage.sampled_tokens for completion in completions)


def at_least(option: str, value: float, least: float) -> None:
    """Raise ValueError, as every check of an option does, when `value` is below `least`."""
    if not value >= least:
        raise ValueError(f"{option} must be at least {least}")


def one_of(option: str, value: str, known: Sequence[str]) -> None:
    if value not in known:
        raise ValueError(f"{option} must be one of {', '.join(known)}")
