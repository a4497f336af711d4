"""Strategies in one string: what is read, and what a mistake is told."""

from __future__ import annotations

from pathlib import Path

import pytest

from forethought.errors import StrategyError
from forethought.strategies.best_of_n import BestOfN
from forethought.strategies.forcing import BudgetForcing, NoThinking
from forethought.strategies.registry import STRATEGIES, options_of, parse_strategy, wraps
from forethought.strategies.system2_attention import System2Attention
from forethought.strategies.vote import AdaptiveConsistency, Majority
from forethought.types import Strategy


@pytest.mark.parametrize("name", STRATEGIES)
def test_every_name_alone_is_a_strategy(name: str) -> None:
    assert isinstance(parse_strategy(name), Strategy)


@pytest.mark.parametrize(
    ("spec", "expected"),
    [
        ("majority:n=3", Majority(n=3)),
        ("majority:n=3,weight=logprob", Majority(n=3, weight="logprob")),
        (
            "asc:confidence=0.8,rule=dirichlet",
            AdaptiveConsistency(confidence=0.8, rule="dirichlet"),
        ),
        ("no_thinking:thought=", NoThinking(thought="")),
        (
            "s2a:variant=keep_original,guard=0+majority:n=8",
            System2Attention(variant="keep_original", guard=False, inner=Majority(n=8)),
        ),
        (
            "s2a + majority:n=2 + budget_forcing:waits=1",
            System2Attention(inner=Majority(n=2, inner=BudgetForcing(waits=1))),
        ),
    ],
)
def test_a_spec_is_read(spec: str, expected: Strategy) -> None:
    assert parse_strategy(spec) == expected


@pytest.mark.parametrize(
    ("spec", "sentence"),
    [
        ("majorty", "strategy='majorty' is unknown; known are greedy, sample, majority"),
        ("", "strategy='' is unknown"),
        ("s2a+", "strategy='' is unknown"),
        ("majority:m=3", "'m=3' is no option of strategy majority; known are n, weight"),
        ("majority:n", "'n' is no option of strategy majority"),
        ("greedy:n=3", "'n=3' is no option of strategy greedy; known are none"),
        ("majority:inner=greedy", "'inner=greedy' is no option"),
        ("majority:n=many", "n=many of strategy majority must be a whole number"),
        ("s2a:guard=maybe", "guard=maybe of strategy s2a must be 1 or 0"),
        ("asc:confidence=x", "confidence=x of strategy asc must be a number"),
        ("majority:n=0", "strategy majority:n=0: n must be at least 1"),
        ("deepconf:keep=0", "keep must be above 0"),
        ("s2a:variant=x", "variant must be one of two_step, single"),
        ("greedy+majority", "strategy greedy cannot wrap another; those that can are majority,"),
        ("best_of_n:verifier=nowhere.py:f", "there is no file 'nowhere.py'"),
    ],
)
def test_a_mistake_is_one_sentence_that_lists_what_is_known(spec: str, sentence: str) -> None:
    with pytest.raises(StrategyError) as caught:
        parse_strategy(spec)
    assert sentence in str(caught.value) and "\n" not in str(caught.value)


def test_a_verifier_is_a_function_of_the_users(tmp_path: Path) -> None:
    file = tmp_path / "mine.py"
    file.write_text("def shorter(question, completion):\n    return -len(completion)\n")
    strategy = parse_strategy(f"best_of_n:n=2,verifier={file}:shorter")
    assert isinstance(strategy, BestOfN) and strategy.verifier is not None
    assert strategy.verifier("", "abc") == -3


def test_options_have_defaults_and_inner_is_none_of_them() -> None:
    assert options_of("majority") == {"n": 16, "weight": "none"}
    assert [name for name in STRATEGIES if wraps(name)] == [
        "majority", "asc", "esc", "best_of_n", "s2a",
    ]  # fmt: skip
