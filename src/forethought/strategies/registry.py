"""Strategies by name, in one string: `majority:n=16`, `s2a:variant=keep_original+majority:n=8`.

The left strategy of a `+` wraps the right one: in the example System 2 Attention rewrites the
question and a majority of eight answers it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from typing import Any, get_type_hints

from forethought.errors import RewardError, StrategyError
from forethought.grading.user_rewards import load_function
from forethought.strategies.best_of_n import BestOfN
from forethought.strategies.deepconf import DeepConf
from forethought.strategies.early_exit import EarlyExit
from forethought.strategies.forcing import BudgetForcing, NoThinking
from forethought.strategies.plain import Greedy, Sample
from forethought.strategies.system2_attention import System2Attention
from forethought.strategies.vote import AdaptiveConsistency, EarlyStoppingConsistency, Majority
from forethought.types import Strategy


@dataclass(frozen=True, slots=True)
class Entry:
    """A strategy's class, whose fields are its options, and a line about it."""

    build: Callable[..., Strategy]
    summary: str


STRATEGIES: Mapping[str, Entry] = {
    "greedy": Entry(Greedy, "the likeliest token at every step"),
    "sample": Entry(Sample, "one sampled completion"),
    "majority": Entry(Majority, "the most frequent of n answers"),
    "asc": Entry(AdaptiveConsistency, "sample until the leading answer is sure"),
    "esc": Entry(EarlyStoppingConsistency, "sample in windows until one is unanimous"),
    "best_of_n": Entry(BestOfN, "the best of n by a verifier or by log-probability"),
    "deepconf": Entry(DeepConf, "a vote of the traces that were sure of themselves"),
    "s2a": Entry(System2Attention, "rewrite the question without what misleads, then answer"),
    "budget_forcing": Entry(BudgetForcing, "cut thinking at a cap, or make it go on"),
    "no_thinking": Entry(NoThinking, "answer at once, as if thinking were done"),
    "early_exit": Entry(EarlyExit, "stop thinking once a trial answer is sure"),
}


def parse_strategy(spec: str) -> Strategy:
    """The strategy that `spec` names. Raises StrategyError, which lists what is known."""
    strategy: Strategy | None = None
    for part in reversed(spec.split("+")):
        strategy = _build(part.strip(), strategy)
    assert strategy is not None
    return strategy


def options_of(name: str) -> dict[str, Any]:
    """The options of a strategy by name, with their defaults."""
    build: Any = STRATEGIES[name].build
    return {f.name: f.default for f in fields(build) if f.name != "inner"}


def wraps(name: str) -> bool:
    """Whether the strategy can stand to the left of a `+`."""
    build: Any = STRATEGIES[name].build
    return any(field.name == "inner" for field in fields(build))


def _build(part: str, inner: Strategy | None) -> Strategy:
    name, _, tail = part.partition(":")
    if name not in STRATEGIES:
        raise StrategyError(f"strategy={name!r} is unknown; known are {', '.join(STRATEGIES)}")
    options: dict[str, Any] = {}
    for item in filter(None, tail.split(",")):
        key, equals, value = item.partition("=")
        known = options_of(name)
        if not equals or key not in known:
            listed = ", ".join(known) or "none"
            raise StrategyError(f"{item!r} is no option of strategy {name}; known are {listed}")
        options[key] = _read(name, key, value)
    if inner is not None:
        if not wraps(name):
            able = ", ".join(each for each in STRATEGIES if wraps(each))
            raise StrategyError(f"strategy {name} cannot wrap another; those that can are {able}")
        options["inner"] = inner
    try:
        return STRATEGIES[name].build(**options)
    except ValueError as error:
        raise StrategyError(f"strategy {part}: {error}") from error


def _read(name: str, key: str, text: str) -> Any:
    """The option's value, by the type of its field."""
    kind = get_type_hints(STRATEGIES[name].build)[key]
    try:
        if kind is bool:
            return {"1": True, "0": False, "true": True, "false": False}[text.lower()]
        if kind in (int, float, str):
            return kind(text)
        return load_function(text)
    except RewardError as error:
        raise StrategyError(f"{key}={text} of strategy {name}: {error}") from error
    except (ValueError, KeyError) as error:
        wanted = {bool: "1 or 0", int: "a whole number", float: "a number"}[kind]
        raise StrategyError(f"{key}={text} of strategy {name} must be {wanted}") from error
