"""The driver: budgets that hold, a ledger that adds up, and results that no batch changes."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from forethought.budget import Account, Budget, Prices
from forethought.errors import EngineError
from forethought.sampling.scripted import ABLE, Reply, ScriptedEngine
from forethought.strategies.driver import MAX_RETRIES, Listener, solve_all
from forethought.strategies.registry import parse_strategy
from forethought.types import (
    Completion,
    FinishReason,
    Problem,
    Purpose,
    Request,
    Solution,
    Steps,
    Usage,
)
from strategy_bench import RIGHT, box, in_turn, problems, solve, voters

SPECS = (
    "greedy",
    "majority:n=6",
    "asc:n=9",
    "esc:n=9,window=3",
    "best_of_n:n=3",
    "deepconf:n=6",
    "deepconf:mode=online,n=6,warmup=2",
    "s2a:variant=relevance+majority:n=3",
    "budget_forcing:waits=1",
    "majority:n=3+budget_forcing",
    "no_thinking",
    "early_exit:at=newline",
)
PRICES = Prices(prompt_per_million=100.0, cached_per_million=10.0, sampled_per_million=400.0)


def rambler(request: Request, rng: Random) -> str:
    """Thinks and answers at random lengths, whatever it is asked."""
    words = " ".join(str(rng.randint(1, 3)) for _ in range(rng.randint(0, 12)))
    lines = words.replace(" 2", "\n2")
    answer = box(str(rng.randint(1, 2)))
    is_thinking = request.prefix.startswith("<think>") and "</think>" not in request.prefix
    return f"{lines}\n</think>\n{answer}" if is_thinking else f"{lines} {answer}"


def ledger(solutions: Sequence[Solution]) -> Usage:
    return sum((call.usage for s in solutions for call in s.trace), start=Usage())


@settings(max_examples=300)
@given(
    st.sampled_from(SPECS),
    st.integers(0, 3),
    st.none() | st.integers(0, 200),
    st.none() | st.integers(0, 7),
    st.none() | st.floats(0.0, 0.05),
)
def test_a_budget_is_never_exceeded_and_the_ledger_adds_up(
    spec: str, seed: int, tokens: int | None, calls: int | None, money: float | None
) -> None:
    engine = ScriptedEngine(rambler)
    budget = Budget(tokens=tokens, calls=calls, money=money)
    solutions = solve_all(
        engine, parse_strategy(spec), problems(3, seed=seed), budget=budget, prices=PRICES
    )
    assert len(solutions) == 3
    for solution in solutions:
        usage = solution.usage
        assert tokens is None or usage.total_tokens <= tokens
        assert calls is None or usage.num_calls <= calls
        assert money is None or PRICES.cost(usage) <= money
        assert usage.money == pytest.approx(PRICES.cost(usage))
        assert solution.text or solution.answer is None
    counted = replace(ledger(solutions), money=0.0)
    assert counted == engine.usage
    total = sum((s.usage for s in solutions), start=Usage())
    assert total.total_tokens == engine.usage.total_tokens
    assert total.num_calls == engine.usage.num_calls


@pytest.mark.parametrize("spec", SPECS)
def test_a_result_depends_on_neither_the_batch_nor_the_budget_that_suffices(spec: str) -> None:
    def texts(solutions: Sequence[Solution]) -> list[tuple[str, str | None, FinishReason]]:
        return [(s.text, s.answer, s.finish_reason) for s in solutions]

    strategy = parse_strategy(spec)
    together = solve_all(ScriptedEngine(rambler), strategy, problems(5))
    alone = [solve_all(ScriptedEngine(rambler), strategy, [p])[0] for p in problems(5)]
    assert texts(together) == texts(alone)
    rich = Budget(tokens=100_000, calls=1000)
    assert texts(solve_all(ScriptedEngine(rambler), strategy, problems(5), budget=rich)) == texts(
        alone
    )
    others = solve_all(ScriptedEngine(rambler), strategy, problems(5, seed=1))
    assert spec == "greedy" or [s.trace for s in others] != [s.trace for s in together]


def test_a_small_budget_votes_on_the_first_completions_of_a_large_one() -> None:
    [large] = solve("majority:n=16", voters({"1": 0.5, "2": 0.5}))
    [small] = solve("majority:n=16", voters({"1": 0.5, "2": 0.5}), budget=Budget(tokens=20))
    sampled = [c.text for call in small.trace for c in call.completions]
    assert 0 < len(sampled) < 16
    assert sampled == [c.text for call in large.trace for c in call.completions][: len(sampled)]
    assert small.finish_reason is FinishReason.BUDGET and small.answer in ("1", "2")


def test_the_requests_of_every_problem_meet_in_one_call() -> None:
    engine = ScriptedEngine(rambler)
    solve_all(engine, parse_strategy("majority:n=4+budget_forcing"), problems(10))
    assert [len(call) for call in engine.calls] == [40, 40]


def test_thinking_under_a_token_budget_leaves_room_for_an_answer() -> None:
    def endless(request: Request, rng: Random) -> str:
        return box(RIGHT) if "</think>" in request.prefix else "hm " * 1000

    [found] = solve("budget_forcing", endless, max_tokens=500, budget=Budget(tokens=200))
    assert found.answer == RIGHT and found.finish_reason is FinishReason.BUDGET
    assert 150 < found.usage.total_tokens <= 200
    assert found.trace[0].completions[0].finish_reason is FinishReason.BUDGET


@pytest.mark.parametrize("tokens", range(60, 700, 40))
def test_every_thought_that_was_paid_for_is_answered_at_like_length(tokens: int) -> None:
    def think(request: Request, rng: Random) -> str:
        return "so " * 200 if "</think>" in request.prefix else "hm " * rng.randint(1, 60)

    spec = "majority:n=6+budget_forcing:answer_tokens=8"
    [found] = solve(spec, think, max_tokens=60, budget=Budget(tokens=tokens))
    answers = [call for call in found.trace if "</think>" in call.request.prefix]
    thoughts = [call for call in found.trace if call.request.reserve]
    assert len(answers) == len(thoughts) > 0
    sizes = {call.request.params.max_tokens for call in answers}
    assert len(sizes) == 1 and min(sizes) >= 8
    assert found.usage.total_tokens <= tokens


def test_a_shared_budget_holds_for_all_problems_together() -> None:
    parent = Account(Budget(tokens=60))
    found = solve("majority:n=4", voters({"1": 1.0}), count=20, parent=parent)
    assert sum(s.usage.total_tokens for s in found) == parent.spent.total_tokens <= 60
    assert sum(s.finish_reason is FinishReason.BUDGET for s in found) >= 10


def test_time_is_charged_and_ends_a_strategy() -> None:
    [found] = solve("esc:window=2,n=40", rambler, budget=Budget(seconds=1e-9))
    assert len(found.trace) == 1 and found.finish_reason is FinishReason.BUDGET
    assert found.trace[0].request.params.max_seconds == 1e-9
    assert found.answer is not None and found.usage.wall_seconds > 0


def test_a_clamped_completion_that_ended_by_itself_is_not_the_budgets_doing() -> None:
    [found] = solve("sample", voters({"1": 1.0}), budget=Budget(tokens=10))
    assert found.trace[0].request.params.max_tokens == 9
    assert found.finish_reason is FinishReason.BOXED


# --- Failures -----------------------------------------------------------------------------------


def test_a_completion_that_failed_is_asked_again_and_counted() -> None:
    script = in_turn([box("1"), Reply(text="", is_failure=True), box("3"), box("2")])
    [found] = solve("majority:n=3", script)
    assert [c.text for c in found.trace[1].completions] == [box("2")]
    assert found.trace[1].request.params.first_sibling == 1
    assert found.usage.num_retries == 1 and found.usage.num_calls == 2
    assert sorted(vote.answer for vote in found.votes) == ["1", "2", "3"]


def test_an_engine_that_always_fails_is_given_up_on() -> None:
    engine = ScriptedEngine(lambda request, rng: Reply(text="", is_failure=True))
    [found] = solve_all(engine, parse_strategy("sample"), problems(1))
    assert found.answer is None and found.finish_reason is FinishReason.ERROR
    assert len(engine.calls) == 1 + MAX_RETRIES and found.usage.num_retries == MAX_RETRIES


def test_an_engine_that_returns_the_wrong_number_is_found_out() -> None:
    class Short(ScriptedEngine):
        def generate(self, requests: Sequence[Request]) -> list[list[Completion]]:
            return [group[1:] for group in super().generate(requests)]

    with pytest.raises(EngineError, match="returned 2 completions where 3 were asked"):
        solve_all(Short(rambler), parse_strategy("majority:n=3"), problems(1))


@dataclass(frozen=True)
class Stubborn:
    """A user's strategy that goes on asking whatever it gets."""

    def solve(self, problem: Problem) -> Steps:
        while True:
            yield [Request(messages=problem.messages, params=problem.params)]


def test_a_strategy_that_will_not_stop_is_stopped() -> None:
    [found] = solve_all(ScriptedEngine(rambler), Stubborn(), problems(1), budget=Budget(calls=3))
    assert found.finish_reason is FinishReason.BUDGET and found.usage.num_calls == 3


@dataclass(frozen=True)
class Judged:
    """A user's strategy: a sample, and the model's own verdict on it."""

    def solve(self, problem: Problem) -> Steps:
        request = Request(messages=problem.messages, params=problem.params)
        [[first]] = yield [request]
        [[verdict]] = yield [replace(request, purpose=Purpose.VERIFY)]
        return Solution(answer=verdict.text, text=first.text, finish_reason=first.finish_reason)


def test_what_a_verifier_costs_is_told_apart() -> None:
    [found] = solve_all(ScriptedEngine(rambler), Judged(), problems(1))
    assert found.usage.verifier_tokens == found.trace[1].usage.total_tokens > 0


def test_an_engine_without_n_makes_a_call_a_completion() -> None:
    able = replace(ABLE, n=False)
    each = [replace(problem, capabilities=able) for problem in problems(1)]
    [found] = solve_all(
        ScriptedEngine(rambler, able), parse_strategy("majority:n=9"), each, budget=Budget(calls=4)
    )
    assert found.usage.num_calls == 4 and len(found.trace[0].completions) == 4


def test_an_engine_that_cannot_count_prompts_is_bounded_by_their_bytes() -> None:
    class Blind:
        capabilities = ABLE

        def __init__(self) -> None:
            self.inner = ScriptedEngine(rambler)

        def generate(self, requests: Sequence[Request]) -> list[list[Completion]]:
            return self.inner.generate(requests)

    [found] = solve_all(
        Blind(), parse_strategy("sample"), problems(1), budget=Budget(tokens=64 + 4 + 5)
    )
    assert found.trace[0].request.params.max_tokens == 5


def test_thinking_that_fills_the_window_ends_there() -> None:
    able = replace(ABLE, context=12)
    each = [replace(problem, capabilities=able) for problem in problems(1)]
    script = in_turn(["hm " * 20, box("1")])
    engine = ScriptedEngine(script, able)
    [found] = solve_all(engine, parse_strategy("budget_forcing:max_thinking=15"), each)
    assert len(engine.calls) == 1 and found.answer is None
    assert found.finish_reason is FinishReason.LENGTH


# --- What is shown ------------------------------------------------------------------------------


@pytest.mark.parametrize("streams", [True, False])
def test_completions_are_heard_of_as_they_come(streams: bool) -> None:
    class Streaming(ScriptedEngine):
        def generate(self, requests, on_finish=None):  # type: ignore[no-untyped-def]
            groups = super().generate(requests)
            for index, group in enumerate(groups):
                for completion in group:
                    on_finish(index, completion)
            return groups

    heard: list[tuple[int, str]] = []
    engine = (Streaming if streams else ScriptedEngine)(rambler, replace(ABLE, streams=streams))
    found = solve_all(
        engine,
        parse_strategy("majority:n=2"),
        problems(2),
        listener=Listener(
            ended=lambda index, _, completion: heard.append((index, completion.text))
        ),
    )
    traced = [
        (i, c.text) for i, s in enumerate(found) for call in s.trace for c in call.completions
    ]
    assert heard == traced


def test_a_solution_is_plain_data() -> None:
    [found] = solve("majority:n=2", rambler)
    assert json.loads(json.dumps(asdict(found)))["usage"]["num_calls"] == 1


def test_a_strategy_sees_no_reference_answer() -> None:
    assert list(Problem.__dataclass_fields__) == ["messages", "params", "capabilities"]
