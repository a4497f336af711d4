"""What may be spent, what tokens cost, and the account that keeps the two apart.

A budget is a promise: a request is cut to what is left before it is asked, at its worst case, so
that the limit on tokens, calls or money is never passed. Seconds are known only afterwards: no call
starts once they are over, and a call under way ends by `SamplingParams.max_seconds`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

from forethought.errors import StrategyError
from forethought.types import Usage

_LIMITS = "tokens, calls, seconds, money"


@dataclass(frozen=True, slots=True, kw_only=True)
class Budget:
    """Limits; None is none. `tokens` are `Usage.total_tokens`: every token of every prompt and
    completion, cached or not, so that what fits does not depend on who shares the batch. `calls`
    are requests, `seconds` those on the wall, `money` is in the currency of the prices."""

    tokens: int | None = None
    calls: int | None = None
    seconds: float | None = None
    money: float | None = None

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if value is not None and not value >= 0:
                raise ValueError(f"{field.name} must be at least 0, got {value}")

    @property
    def spec(self) -> str:
        """As `parse_budget` reads it: `1024` where only tokens are limited; "" without limits."""
        limits = {f.name: getattr(self, f.name) for f in fields(self)}
        known = {name: value for name, value in limits.items() if value is not None}
        if known.keys() == {"tokens"}:
            return str(self.tokens)
        written = {name: repr(value).removesuffix(".0") for name, value in known.items()}
        return ",".join(f"{name}={value}" for name, value in written.items())

    def within(self, other: Budget) -> Budget:
        """The tighter limit of each kind."""
        pairs = {f.name: (getattr(self, f.name), getattr(other, f.name)) for f in fields(self)}
        known = {name: [v for v in pair if v is not None] for name, pair in pairs.items()}
        return Budget(**{name: min(values) for name, values in known.items() if values})


def parse_budget(text: str) -> Budget:
    """`1024` tokens, or limits by name: `tokens=1024,calls=8,seconds=30,money=0.01`. Raises
    StrategyError, which lists the names."""
    limits: dict[str, Any] = {}
    for item in text.split(","):
        name, equals, value = item.strip().rpartition("=")
        name = name if equals else "tokens"
        if name not in (field.name for field in fields(Budget)):
            raise StrategyError(f"budget={text}: {name!r} is no limit; known are {_LIMITS}")
        try:
            limits[name] = (int if name in ("tokens", "calls") else float)(value)
        except ValueError as error:
            raise StrategyError(f"budget={text}: {value!r} is not a number") from error
    try:
        return Budget(**limits)
    except ValueError as error:
        raise StrategyError(f"budget={text}: {error}") from error


def parse_budgets(texts: Sequence[str]) -> list[Budget]:
    """Several budgets: `256,1024` of tokens, `calls=4,8,16` of another kind, and
    `tokens=512,calls=8`, of two kinds, is one. Raises StrategyError."""
    found = [budget for text in texts for budget in _parse_list(text)]
    for budget in found:
        if 0 in (budget.tokens, budget.calls, budget.seconds, budget.money):
            raise StrategyError(f"budget={budget.spec} allows nothing: give more than 0")
        if found.count(budget) > 1:
            raise StrategyError(f"budget={budget.spec} is named twice: name each once")
    return found


def _parse_list(text: str) -> list[Budget]:
    name, items = "tokens", []
    for item in text.split(","):
        before, equals, value = item.strip().rpartition("=")
        name = before if equals else name
        items.append((name, value))
    names = [name for name, _ in items]
    if len(set(names)) == 1:
        return [parse_budget(f"{name}={value}") for name, value in items]
    if len(set(names)) < len(names):
        raise StrategyError(
            f"budget={text} mixes several budgets with several kinds: write kinds that go together "
            "as tokens=512,calls=8, and give --budget once for each budget"
        )
    return [parse_budget(text)]


@dataclass(frozen=True, slots=True, kw_only=True)
class Prices:
    """What a million tokens cost. Cached prompt tokens cost no more than the others."""

    prompt_per_million: float = 0.0
    cached_per_million: float | None = None  # as prompt tokens
    sampled_per_million: float = 0.0

    def __post_init__(self) -> None:
        prices = (self.prompt_per_million, self.cached, self.sampled_per_million)
        if not all(math.isfinite(p) and p >= 0 for p in prices):
            raise ValueError(f"prices must be finite numbers of at least 0, got {prices}")
        if self.cached > self.prompt_per_million:
            raise ValueError("cached_per_million must not be above prompt_per_million")

    @property
    def cached(self) -> float:
        known = self.cached_per_million
        return self.prompt_per_million if known is None else known

    def cost(self, usage: Usage) -> float:
        """Money for the tokens of `usage`."""
        fresh = usage.prompt_tokens - usage.cached_tokens
        return (
            fresh * self.prompt_per_million
            + usage.cached_tokens * self.cached
            + usage.sampled_tokens * self.sampled_per_million
        ) / 1e6


FREE = Prices()


@dataclass(frozen=True, slots=True, kw_only=True)
class Ask:
    """What a request can come to: `n` completions of `max_tokens` behind a prompt of (at most)
    `prompt_tokens`. Beside it, `reserve` tokens of a second request are to remain possible, which
    sends prompt and completion again. `calls_each`: the engine makes a call a completion."""

    prompt_tokens: int
    n: int
    max_tokens: int
    reserve: int = 0
    calls_each: bool = False

    def worst(self) -> Usage:
        """The most it can cost: nothing cached, every completion as long as it may be."""
        again = self.reserve > 0
        longest = self.prompt_tokens + self.max_tokens
        return Usage(
            prompt_tokens=self.n * self.prompt_tokens + (longest if again else 0),
            sampled_tokens=self.n * self.max_tokens + (self.reserve if again else 0),
            num_calls=(self.n if self.calls_each else 1) + again,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Hold:
    """What is set aside for a call under way: the most that it can cost."""

    tokens: int = 0
    calls: int = 0
    money: float = 0.0

    def __add__(self, other: Hold) -> Hold:
        return Hold(
            tokens=self.tokens + other.tokens,
            calls=self.calls + other.calls,
            money=self.money + other.money,
        )


class Account:
    """What was spent against `budget`, and is set aside for calls under way.

    Whatever is charged here is charged to the `parent` too, and what is left is what is left in
    both: a nested budget never lets its parent's be exceeded.
    """

    def __init__(
        self, budget: Budget, prices: Prices = FREE, parent: Account | None = None
    ) -> None:
        self.budget = budget
        self.prices = prices
        self.spent = Usage()
        self._parent = parent
        self._held: list[Hold] = []

    @property
    def left(self) -> Budget:
        """What may still be spent, beside what is set aside. Never below 0."""
        held = sum(self._held, start=Hold())
        spent, limit = self.spent, self.budget
        gone = {
            "tokens": spent.total_tokens + held.tokens,
            "calls": spent.num_calls + held.calls,
            "seconds": spent.wall_seconds,
            "money": self.prices.cost(spent) + held.money,
        }
        rest = {name: getattr(limit, name) for name in gone}
        mine = {n: None if rest[n] is None else max(0, rest[n] - gone[n]) for n in gone}
        own = Budget(**mine)
        return own if self._parent is None else own.within(self._parent.left)

    def hold(self, ask: Ask) -> Hold:
        """Set aside the most that `ask` can cost."""
        worst = ask.worst()
        held = Hold(tokens=worst.total_tokens, calls=worst.num_calls, money=self.prices.cost(worst))
        self._add(held)
        return held

    def settle(self, held: Hold, usage: Usage) -> None:
        """The call that `held` was set aside for has cost `usage`."""
        self._held.remove(held)
        self.spent += usage
        if self._parent is not None:
            self._parent.settle(held, usage)

    def spend_seconds(self, seconds: float) -> None:
        """Time on the wall has passed."""
        self.spent = replace(self.spent, wall_seconds=self.spent.wall_seconds + seconds)

    def _add(self, held: Hold) -> None:
        self._held.append(held)
        if self._parent is not None:
            self._parent._add(held)


def fit(left: Budget, prices: Prices, ask: Ask) -> Ask | None:
    """As much of `ask` as fits what is `left`, at its worst: whole completions first, fewer of them
    if need be, and one alone shortened. None when there is not room for a single token."""
    if left.seconds is not None and left.seconds <= 0:
        return None

    if count := _largest(ask.n, lambda n: _fits(left, prices, [replace(ask, n=n)])):
        return replace(ask, n=count)
    one = replace(ask, n=1)
    size = _largest(ask.max_tokens, lambda m: _fits(left, prices, [replace(one, max_tokens=m)]))
    return replace(one, max_tokens=size) if size else None


def fit_together(left: Budget, prices: Prices, asks: Sequence[Ask]) -> int:
    """How long each completion of `asks` may be at most so that all of them fit what is `left`; 0
    when one of them would go without."""

    def shortened(size: int) -> list[Ask]:
        return [replace(ask, max_tokens=min(ask.max_tokens, size)) for ask in asks]

    longest = max(ask.max_tokens for ask in asks)
    if _fits(left, prices, asks):
        return longest
    return _largest(longest, lambda size: _fits(left, prices, shortened(size)))


def _fits(left: Budget, prices: Prices, asks: Sequence[Ask]) -> bool:
    """Whether all of `asks` are within what is `left`, at their worst."""
    worst = sum((ask.worst() for ask in asks), start=Usage())
    return (
        (left.tokens is None or worst.total_tokens <= left.tokens)
        and (left.calls is None or worst.num_calls <= left.calls)
        and (left.money is None or prices.cost(worst) <= left.money)
    )


def _largest(most: int, fits: Callable[[int], bool]) -> int:
    """The largest number from 1 to `most` that fits, 0 when none does; larger ones fit worse."""
    low, high = 0, most
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if fits(middle) else (low, middle - 1)
    return low
