"""What may be spent, what tokens cost, and the account that keeps the two apart.

A budget is a promise: a request is cut to what is left before it is asked, at its worst case, so
that the limit on tokens, calls or money is never passed. Seconds are known only afterwards: no call
starts once they are over, and a call under way ends by `SamplingParams.max_seconds`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, fields, replace

from forethought.types import Usage


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

    def within(self, other: Budget) -> Budget:
        """The tighter limit of each kind."""
        pairs = {f.name: (getattr(self, f.name), getattr(other, f.name)) for f in fields(self)}
        known = {name: [v for v in pair if v is not None] for name, pair in pairs.items()}
        return Budget(**{name: min(values) for name, values in known.items() if values})


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
class Hold:
    """What is set aside for a call under way: the most that it can cost."""

    tokens: int
    money: float

    def __add__(self, other: Hold) -> Hold:
        return Hold(tokens=self.tokens + other.tokens, money=self.money + other.money)


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
        held = sum(self._held, start=Hold(tokens=0, money=0.0))
        spent, limit = self.spent, self.budget
        gone = {
            "tokens": spent.total_tokens + held.tokens,
            "calls": spent.num_calls + len(self._held),
            "seconds": spent.wall_seconds,
            "money": self.prices.cost(spent) + held.money,
        }
        rest = {name: getattr(limit, name) for name in gone}
        mine = {n: None if rest[n] is None else max(0, rest[n] - gone[n]) for n in gone}
        own = Budget(**mine)
        return own if self._parent is None else own.within(self._parent.left)

    def hold(self, prompt_tokens: int, n: int, max_tokens: int) -> Hold:
        """Set aside the most that `n` completions of one prompt can cost."""
        worst = _worst(prompt_tokens, n, max_tokens)
        held = Hold(tokens=worst.total_tokens, money=self.prices.cost(worst))
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


def fit(
    left: Budget, prices: Prices, *, prompt_tokens: int, n: int, max_tokens: int
) -> tuple[int, int] | None:
    """How many completions (at most `n`) of how many tokens each fit what is `left`.

    Whole completions first: fewer of them, and only the last one shorter. None when there is not
    room for a single token.
    """
    if (left.calls is not None and left.calls < 1) or (
        left.seconds is not None and left.seconds <= 0
    ):
        return None
    whole = _largest(
        n, lambda count: _affords(left, prices, _worst(prompt_tokens, count, max_tokens))
    )
    if whole:
        return whole, max_tokens
    short = _largest(
        max_tokens, lambda size: _affords(left, prices, _worst(prompt_tokens, 1, size))
    )
    return (1, short) if short else None


def _largest(most: int, fits: Callable[[int], bool]) -> int:
    """The largest number from 1 to `most` that fits, 0 when none does; larger ones fit worse."""
    low, high = 0, most
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if fits(middle) else (low, middle - 1)
    return low


def _affords(left: Budget, prices: Prices, worst: Usage) -> bool:
    if left.tokens is not None and worst.total_tokens > left.tokens:
        return False
    return left.money is None or prices.cost(worst) <= left.money


def _worst(prompt_tokens: int, n: int, max_tokens: int) -> Usage:
    """Nothing cached, every completion as long as it may be."""
    return Usage(prompt_tokens=n * prompt_tokens, sampled_tokens=n * max_tokens)
