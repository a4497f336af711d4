"""Problems and voters for tests of strategies: what a model says with a known probability."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from random import Random
from typing import Any

from forethought.sampling.scripted import ABLE, Reply, ScriptedEngine
from forethought.strategies.base import problem_of
from forethought.strategies.driver import solve_all
from forethought.strategies.registry import parse_strategy
from forethought.types import Example, Problem, Request, SamplingParams, Solution

RIGHT = "7"


def box(answer: str) -> str:
    return f"\\boxed{{{answer}}}"


def problems(count: int, question: str = "Ask?", **params: Any) -> list[Problem]:
    settings = SamplingParams(**({"max_tokens": 50} | params))
    message = {"role": "user", "content": question}
    examples = [Example(id=str(i), messages=(message,), answer="") for i in range(count)]  # type: ignore[arg-type]
    return [problem_of(example, settings, ABLE) for example in examples]


def voters(shares: Mapping[str, float]) -> Callable[[Request, Random], str]:
    """A model that gives each answer with its probability; "" is no answer."""

    def say(request: Request, rng: Random) -> str:
        answer = rng.choices(list(shares), list(shares.values()))[0]
        return box(answer) if answer else "no idea"

    return say


def solve(
    spec: str,
    script: Callable[[Request, Random], str | Reply],
    count: int = 1,
    **options: Any,
) -> list[Solution]:
    params = {name: options.pop(name) for name in ("max_tokens", "seed") if name in options}
    return solve_all(
        ScriptedEngine(script), parse_strategy(spec), problems(count, **params), **options
    )


def in_turn(replies: Sequence[str | Reply]) -> Callable[[Request, Random], str | Reply]:
    """A model whose k-th completion, in the order they are sampled, is `replies[k]`."""
    rest = iter(replies)
    return lambda request, rng: next(rest)
