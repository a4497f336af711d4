"""Budgets: what fits, what is left, and that a nested one never lets its parent's be exceeded."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from forethought.budget import FREE, Account, Ask, Budget, Hold, Prices, fit
from forethought.types import Usage

PRICES = Prices(prompt_per_million=1.0, cached_per_million=0.5, sampled_per_million=4.0)
small = st.integers(0, 60)


def asks() -> st.SearchStrategy[Ask]:
    return st.builds(
        Ask,
        prompt_tokens=small,
        n=st.integers(1, 8),
        max_tokens=st.integers(1, 30),
        reserve=st.integers(0, 10),
        calls_each=st.booleans(),
    )


def fits(part: Ask, left: Budget, prices: Prices) -> bool:
    worst = part.worst()
    return (
        (left.tokens is None or worst.total_tokens <= left.tokens)
        and (left.calls is None or worst.num_calls <= left.calls)
        and (left.money is None or prices.cost(worst) <= left.money)
    )


@given(
    asks(),
    st.builds(
        Budget,
        tokens=st.none() | st.integers(0, 400),
        calls=st.none() | st.integers(0, 9),
        money=st.none() | st.floats(0, 2e-3),
    ),
)
def test_what_fits_is_the_most_that_does(ask: Ask, left: Budget) -> None:
    every = [
        Ask(
            prompt_tokens=ask.prompt_tokens,
            n=n,
            max_tokens=size,
            reserve=ask.reserve,
            calls_each=ask.calls_each,
        )
        for n, size in [(n, ask.max_tokens) for n in range(ask.n, 0, -1)]
        + [(1, size) for size in range(ask.max_tokens - 1, 0, -1)]
    ]
    expected = next((part for part in every if fits(part, left, PRICES)), None)
    assert fit(left, PRICES, ask) == expected


def test_no_call_starts_when_time_is_over() -> None:
    ask = Ask(prompt_tokens=1, n=1, max_tokens=1)
    assert fit(Budget(seconds=0.0), FREE, ask) is None
    assert fit(Budget(seconds=0.1), FREE, ask) == ask


def test_an_account_counts_what_is_held_and_what_is_spent() -> None:
    account = Account(Budget(tokens=100, calls=3, seconds=2.0, money=1.0), PRICES)
    held = account.hold(Ask(prompt_tokens=10, n=2, max_tokens=15))
    assert account.left.tokens == 50 and account.left.calls == 2
    assert account.left.money == pytest.approx(1 - (20 * 1 + 30 * 4) / 1e6)
    account.settle(held, Usage(prompt_tokens=20, cached_tokens=10, sampled_tokens=7, num_calls=1))
    account.spend_seconds(0.5)
    left = account.left
    assert (left.tokens, left.calls, left.seconds) == (73, 2, 1.5)
    assert left.money == pytest.approx(1 - (10 * 1 + 10 * 0.5 + 7 * 4) / 1e6)


def test_a_nested_account_charges_its_parent() -> None:
    parent = Account(Budget(tokens=100))
    first, second = (Account(Budget(tokens=80), parent=parent) for _ in range(2))
    held = first.hold(Ask(prompt_tokens=0, n=1, max_tokens=70))
    assert (first.left.tokens, second.left.tokens, parent.left.tokens) == (10, 30, 30)
    first.settle(held, Usage(sampled_tokens=20, num_calls=1))
    assert (first.left.tokens, second.left.tokens, parent.left.tokens) == (60, 80, 80)
    assert parent.spent.sampled_tokens == 20 and second.spent == Usage()


def test_what_was_spent_beyond_a_limit_leaves_nothing() -> None:
    account = Account(Budget(tokens=5))
    account.settle(account.hold(Ask(prompt_tokens=0, n=1, max_tokens=5)), Usage(sampled_tokens=9))
    assert account.left == Budget(tokens=0)


def test_holds_add_up() -> None:
    assert Hold(tokens=1, calls=1, money=0.5) + Hold(tokens=2) == Hold(tokens=3, calls=1, money=0.5)


@pytest.mark.parametrize("limit", ["tokens", "calls", "seconds", "money"])
def test_a_limit_below_zero_is_refused(limit: str) -> None:
    with pytest.raises(ValueError, match=f"{limit} must be at least 0, got -1"):
        Budget(**{limit: -1})
    with pytest.raises(ValueError, match=limit):
        Budget(**{limit: float("nan")})


def test_the_tighter_of_two_budgets() -> None:
    first, second = Budget(tokens=5, calls=2), Budget(tokens=3, money=1.0)
    assert first.within(second) == Budget(tokens=3, calls=2, money=1.0)


@pytest.mark.parametrize(
    "wrong",
    [
        {"prompt_per_million": -1.0},
        {"sampled_per_million": float("inf")},
        {"prompt_per_million": 1.0, "cached_per_million": 2.0},
    ],
)
def test_wrong_prices_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=r"per_million|prices"):
        Prices(**wrong)


def test_usage_adds_up_by_sum_and_peak_by_maximum() -> None:
    first = Usage(prompt_tokens=3, sampled_tokens=4, reasoning_tokens=1, peak_context=7, money=0.5)
    second = Usage(prompt_tokens=1, cached_tokens=1, num_retries=2, peak_context=5, seconds=1.0)
    both = first + second
    assert (both.total_tokens, both.computed_tokens, both.visible_tokens) == (8, 7, 3)
    assert (both.peak_context, both.num_retries, both.money) == (7, 2, 0.5)
    assert both == second + first
