"""Strategies against closed forms: golden values of the papers, and simulated voters.

A voter gives answers with known probabilities; what a strategy then gets right and what it costs
follows by enumeration, and 1,000 problems must come within a binomial interval of it. Every seed
is fixed.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache
from random import Random
from statistics import fmean

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from forethought.sampling.scripted import Reply, ScriptedEngine
from forethought.strategies.deepconf import (
    MEASURES,
    bottom_confidence,
    group_confidences,
    lowest_confidence,
    percentile,
    tail_confidence,
)
from forethought.strategies.driver import solve_all
from forethought.strategies.registry import parse_strategy
from forethought.strategies.stopping_rules import (
    beta_confidence,
    dirichlet_confidence,
    least_more,
)
from forethought.strategies.vote import elect
from forethought.types import FinishReason, Purpose, Request, Solution
from strategy_bench import RIGHT, box, problems, solve, voters

COUNT = 1000
SHARES = {RIGHT: 0.45, "8": 0.35, "9": 0.2}


def assert_share(found: float, expected: float, count: int = COUNT) -> None:
    """Within a binomial interval of 99.9%."""
    assert abs(found - expected) <= 3.29 * math.sqrt(expected * (1 - expected) / count) + 1e-9


def assert_mean(values: Sequence[float], expected: float) -> None:
    """Within 3.29 standard errors."""
    error = np.std(values) / math.sqrt(len(values))
    assert abs(fmean(values) - expected) <= 3.29 * error + 1e-9


def accuracy(solutions: Sequence[Solution]) -> float:
    return fmean(solution.answer == RIGHT for solution in solutions)


def num_samples(solution: Solution) -> int:
    return sum(len(call.completions) for call in solution.trace)


# --- Adaptive self-consistency ------------------------------------------------------------------


def test_adaptive_consistency_needs_as_many_equal_votes_as_published() -> None:
    """4, 6, 8, 9, 11, 12, 14 against 0 to 6 others, at 0.95."""
    needed = [
        next(v for v in itertools.count(others) if beta_confidence([v, others]) >= 0.95)
        for others in range(7)
    ]
    assert needed == [4, 6, 8, 9, 11, 12, 14]
    assert [others + least_more([others, others], "beta", 0.95, 40) for others in range(1, 7)] == (
        needed[1:]
    )


@given(st.integers(0, 20), st.integers(0, 20))
def test_beta_confidence_is_the_integral_it_stands_for(first: int, second: int) -> None:
    x = np.linspace(0, 1, 20_001)
    high, low = max(first, second), min(first, second)
    density = x**high * (1 - x) ** low
    expected = np.trapezoid(density[10_000:], x[10_000:]) / np.trapezoid(density, x)
    assert beta_confidence([first, second]) == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("counts", [(3, 2, 1), (5, 5, 5), (10, 3, 2, 2, 1), (1, 0, 0), (40, 1, 1)])
def test_dirichlet_confidence_is_the_share_of_draws_that_the_leader_wins(
    counts: tuple[int, ...],
) -> None:
    draws = np.random.default_rng(0).dirichlet([c + 1 for c in counts], 200_000)
    expected = float((draws.argmax(axis=1) == 0).mean())
    assert dirichlet_confidence(counts) == pytest.approx(expected, abs=0.005)


def test_two_answers_are_a_beta_to_dirichlet_too() -> None:
    assert dirichlet_confidence([5, 2]) == beta_confidence([5, 2])
    # a third answer that nobody gives takes nothing from an even race but its own small chance
    assert dirichlet_confidence([9, 9, 0]) == pytest.approx(0.5, abs=1e-3)


@lru_cache
def adaptive(right: int, wrong: int, share: float, most: int) -> tuple[float, float]:
    """(P(right), expected votes) of sampling one at a time between two answers, from here on."""
    if right + wrong == most or beta_confidence([right, wrong]) >= 0.95:
        return (0.5 if right == wrong else float(right > wrong)), right + wrong
    yes, no = adaptive(right + 1, wrong, share, most), adaptive(right, wrong + 1, share, most)
    return (
        share * yes[0] + (1 - share) * no[0],
        share * yes[1] + (1 - share) * no[1],
    )


@pytest.mark.parametrize("share", [0.55, 0.7, 0.9])
def test_asc_is_right_and_costs_as_one_vote_at_a_time_would(share: float) -> None:
    found = solve("asc:n=16", voters({RIGHT: share, "8": 1 - share}), count=COUNT)
    expected, votes = adaptive(0, 0, share, 16)
    assert_share(accuracy(found), expected)
    assert_mean([num_samples(s) for s in found], votes)


# --- Early-stopping self-consistency ------------------------------------------------------------


def test_esc_costs_what_the_paper_says_and_is_right_as_often_as_enumeration() -> None:
    window, windows = 3, 4
    found = solve(f"esc:window={window},n={window * windows}", voters(SHARES), count=COUNT)
    q = sum(p**window for p in SHARES.values())
    stops = sum(q * (1 - q) ** i * (i + 1) for i in range(windows - 1))
    expected = window * (stops + (1 - q) ** (windows - 1) * windows)
    assert_mean([num_samples(s) for s in found], expected)
    at_once = sum(SHARES[RIGHT] ** window * (1 - q) ** i for i in range(windows))
    assert_share(accuracy(found), at_once + mixed_windows(window, windows))


def mixed_windows(window: int, windows: int) -> float:
    """P(no window is of one mind, and the majority of all votes is right, ties split evenly)."""
    probability: dict[tuple[int, ...], float] = {}
    for votes in itertools.product(range(3), repeat=window):
        counts = tuple(votes.count(i) for i in range(3))
        if max(counts) < window:
            share = math.prod(list(SHARES.values())[v] for v in votes)
            probability[counts] = probability.get(counts, 0.0) + share
    total: dict[tuple[int, ...], float] = {(0, 0, 0): 1.0}
    for _ in range(windows):
        after: dict[tuple[int, ...], float] = {}
        for counts, p in total.items():
            for more, share in probability.items():
                key = tuple(a + b for a, b in zip(counts, more, strict=True))
                after[key] = after.get(key, 0.0) + p * share
        total = after
    return sum(p * tie_share(counts) for counts, p in total.items())


def tie_share(counts: Sequence[int]) -> float:
    """What an even split of ties gives the first answer."""
    top = max(counts)
    return (counts[0] == top) / list(counts).count(top)


# --- Majority -----------------------------------------------------------------------------------


def multinomial(n: int, shares: Sequence[float]) -> Iterator[tuple[tuple[int, ...], float]]:
    """Every way that n votes can fall, with its probability."""
    for counts in itertools.product(range(n + 1), repeat=len(shares)):
        if sum(counts) == n:
            ways = math.factorial(n) / math.prod(map(math.factorial, counts))
            yield counts, ways * math.prod(p**c for p, c in zip(shares, counts, strict=True))


@pytest.mark.parametrize("n", [1, 2, 5, 8])
def test_majority_is_right_as_often_as_enumeration_says(n: int) -> None:
    """Whoever is first among equals is drawn evenly: ties split."""
    found = solve(f"majority:n={n}", voters(SHARES), count=COUNT)
    expected = sum(p * tie_share(c) for c, p in multinomial(n, list(SHARES.values())))
    assert_share(accuracy(found), expected)
    assert {num_samples(s) for s in found} == {n}


def test_blank_votes_count_for_nothing() -> None:
    shares = {RIGHT: 0.3, "8": 0.3, "": 0.4}
    found = solve("majority:n=4", voters(shares), count=COUNT)
    expected = sum(
        p * (tie_share(c[:2]) if any(c[:2]) else 0.0)
        for c, p in multinomial(4, list(shares.values()))
    )
    assert_share(accuracy(found), expected)


@given(st.lists(st.sampled_from(["1", "2", "3", None]), min_size=1, max_size=9))
def test_the_elected_answer_is_the_first_of_the_most_frequent(answers: list[str | None]) -> None:
    made = [Solution(answer=a, text=str(a), finish_reason=FinishReason.EOS) for a in answers]
    given_answers = [a for a in answers if a is not None]
    best = max(
        given_answers, key=lambda a: (given_answers.count(a), -given_answers.index(a)), default=None
    )
    assert elect(made).answer == best


# --- The others ---------------------------------------------------------------------------------


@pytest.mark.parametrize("spec", ["sample", "majority:n=1", "esc:n=1", "best_of_n:n=1"])
def test_one_sample_is_right_with_its_probability(spec: str) -> None:
    assert_share(accuracy(solve(spec, voters(SHARES), count=COUNT)), SHARES[RIGHT])


def test_greedy_gives_the_same_answer_to_everybody() -> None:
    assert len({s.answer for s in solve("greedy", voters(SHARES), count=20)}) == 1


def noisy(request: Request, rng: Random) -> Reply:
    """Right with probability 0.4; surer when right, by a margin that noise often covers."""
    is_right = rng.random() < 0.4
    level = rng.choice([1.0, 2.0, 3.0]) + is_right
    return Reply(text=box(RIGHT if is_right else "8"), logprob=-5 + level, confidence=level)


OUTCOMES = [(is_right, 1.0 + i + is_right) for is_right in (True, False) for i in range(3)]


def by_enumeration(n: int, rule: Callable[[Sequence[tuple[bool, float]]], float]) -> float:
    """P(right) of a rule over every sequence of n outcomes of `noisy`."""
    total = 0.0
    for sequence in itertools.product(OUTCOMES, repeat=n):
        probability = math.prod((0.4 if right else 0.6) / 3 for right, _ in sequence)
        total += probability * rule(sequence)
    return total


def test_best_of_n_picks_the_likeliest() -> None:
    def rule(sequence: Sequence[tuple[bool, float]]) -> float:
        return float(max(sequence, key=lambda outcome: outcome[1])[0])

    expected = by_enumeration(4, rule)
    assert_share(accuracy(solve("best_of_n:n=4", noisy, count=COUNT)), expected)


def test_deepconf_votes_of_the_surest() -> None:
    def rule(sequence: Sequence[tuple[bool, float]]) -> float:
        bar = float(np.percentile([level for _, level in sequence], 50))
        kept = [(right, level) for right, level in sequence if level >= bar]
        yes = sum(level for right, level in kept if right)
        no = sum(level for right, level in kept if not right)
        return float(yes > no) if yes != no else float(kept[0][0])

    expected = by_enumeration(5, rule)
    found = solve("deepconf:n=5,keep=50", noisy, count=COUNT)
    assert_share(accuracy(found), expected)


def test_weighted_votes() -> None:
    def rule(sequence: Sequence[tuple[bool, float]]) -> float:
        yes = sum(math.exp(-5 + level) for right, level in sequence if right)
        return float(yes > sum(math.exp(-5 + level) for right, level in sequence if not right))

    expected = by_enumeration(3, rule)
    found = solve("majority:n=3,weight=logprob", noisy, count=COUNT)
    assert_share(accuracy(found), expected)


def halver(request: Request, rng: Random) -> Reply:
    """Every line thought halves the chance of being wrong, and it knows; it thinks four."""
    num_lines = request.prefix.count("line")
    if "</think>" not in request.prefix:
        lines = "".join(f"line{i}\n" for i in range(num_lines, 4))
        return Reply(text=lines + "</think>")
    answer = RIGHT if rng.random() < 1 - 0.5**num_lines else "8"
    opened = request.prefix.endswith("\\boxed{")
    text = f"{answer}}}" if opened else box(answer)
    return Reply(text=text, logprob=math.log(max(1 - 0.5**num_lines, 0.01)))


@pytest.mark.parametrize("cap", [1, 2, 4, 9])
def test_budget_forcing_buys_accuracy_with_thinking(cap: int) -> None:
    found = solve(f"budget_forcing:max_thinking={cap}", halver, count=COUNT)
    assert_share(accuracy(found), 1 - 0.5 ** min(cap, 4))
    # the question and "<think>\n"; then the question, thinking, "\n</think>\n" and the answer
    thought = min(cap, 5)
    lines = min(cap, 4)
    assert {s.usage.sampled_tokens for s in found} == {thought + 1}
    assert {s.usage.prompt_tokens for s in found} == {3 + lines + 4}


def test_no_thinking_costs_and_gets_what_no_thought_does() -> None:
    found = solve("no_thinking:thought=line", halver, count=COUNT)
    assert_share(accuracy(found), 0.5)
    assert {s.usage.sampled_tokens for s in found} == {1}


@pytest.mark.parametrize(("threshold", "num_lines"), [(0.4, 1), (0.7, 2), (0.8, 3), (0.99, 4)])
def test_early_exit_thinks_until_it_is_sure(threshold: float, num_lines: int) -> None:
    found = solve(f"early_exit:at=newline,threshold={threshold}", halver, count=COUNT)
    assert_share(accuracy(found), 1 - 0.5**num_lines)


def test_s2a_answers_as_if_nothing_had_distracted() -> None:
    question = "Ann has 3 pens. Ben is 40. How many pens does Ann have?"

    def swayed(request: Request, rng: Random) -> str:
        assert request.messages is not None
        text = request.messages[-1]["content"]
        if request.purpose is Purpose.REWRITE:
            return question.replace("Ben is 40. ", "")
        return box(RIGHT if rng.random() < (0.2 if "Ben" in text else 0.8) else "8")

    def run(spec: str) -> float:
        engine = ScriptedEngine(swayed)
        return accuracy(solve_all(engine, parse_strategy(spec), problems(COUNT, question)))

    assert_share(run("sample"), 0.2)
    assert_share(run("s2a:variant=relevance"), 0.8)
    assert_share(run("s2a:variant=instructed"), 0.2)


# --- DeepConf's numbers -------------------------------------------------------------------------


@given(st.lists(st.floats(0, 50), min_size=1, max_size=30), st.floats(0, 100))
def test_percentiles_are_numpys(values: list[float], percent: float) -> None:
    assert percentile(values, percent) == pytest.approx(float(np.percentile(values, percent)))


@given(st.lists(st.floats(0, 50), min_size=1, max_size=60), st.integers(1, 70))
def test_group_confidences_are_means_over_windows(values: list[float], window: int) -> None:
    size = min(window, len(values))
    expected = [fmean(values[i : i + size]) for i in range(len(values) - size + 1)]
    assert group_confidences(values, window) == pytest.approx(expected)
    assert lowest_confidence(values, window) == pytest.approx(min(expected))
    bottom = sorted(expected)[: max(1, len(expected) // 10)]
    assert bottom_confidence(values, window) == pytest.approx(fmean(bottom))
    assert tail_confidence(values, window) == pytest.approx(fmean(values[-window:]))
    for measure in MEASURES.values():
        assert min(values) - 1e-9 <= measure(values, window) <= max(values) + 1e-9
