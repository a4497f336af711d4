"""A server that fails in every way: nothing is lost, nothing counted twice, nothing hangs."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from fault_run import (
    IMPATIENT,
    TRAITS,
    FaultRecord,
    num_lost,
    num_twice,
    run_with_faults,
)
from fault_server import LOST, REFUSED, Body, Dialect, Fault, FaultServer
from forethought.budget import Budget
from forethought.errors import EngineError
from forethought.sampling.openai import Limits, OpenAIEngine
from forethought.sampling.openai_client import ServerError, endpoint
from forethought.sampling.openai_probe import Traits
from forethought.sampling.retries import RetryPolicy
from forethought.strategies.driver import solve_all
from forethought.strategies.registry import parse_strategy
from forethought.types import FinishReason, Message, Problem, Request, SamplingParams, Usage

QUICK = RetryPolicy(max_retries=2, first_wait_seconds=0.001, max_wait_seconds=0.001)


def ask(text: str = "1 + 1", **params: object) -> Request:
    sampling = SamplingParams(**({"max_tokens": 50} | params))  # type: ignore[arg-type]
    return Request(messages=(Message(role="user", content=text),), params=sampling)


@contextmanager
def engine_on(
    server: FaultServer, *, traits: Traits = TRAITS, retries: RetryPolicy = QUICK, **limits: float
) -> Iterator[OpenAIEngine]:
    allowed = Limits(**({"request_seconds": 5.0} | limits), retries=retries)  # type: ignore[arg-type]
    with OpenAIEngine(endpoint(server.url), "fake", traits=traits, limits=allowed) as engine:
        yield engine


def always(fault: Fault, prompt: str | None = None) -> FaultServer:
    """A server that fails on every call, or on those of one prompt."""

    def plan(_call: int, body: Body) -> Fault:
        is_meant = prompt is None or body["messages"][-1]["content"] == prompt
        return fault if is_meant else Fault.NONE

    return FaultServer(plan)


@pytest.fixture(scope="module")
def record() -> FaultRecord:
    return run_with_faults(1000, 4, seed=7)


def test_a_thousand_requests_with_every_fault_come_through(record: FaultRecord) -> None:
    assert record.server["faults"].keys() == {fault.value for fault in Fault}
    assert num_lost(record) == num_twice(record) == 0
    assert record.failures == []
    assert record.seconds < 60


def test_every_completion_stands_where_it_belongs_and_only_there(record: FaultRecord) -> None:
    texts = [completion.text for group in record.found for completion in group]
    assert len(set(texts)) == len(texts) == 4000
    for request, group in zip(record.requests, record.found, strict=True):
        assert request.messages is not None
        prompt = request.messages[0]["content"]
        assert all(completion.text.startswith(f"{prompt}/") for completion in group)


def test_the_ledger_is_the_servers_own_count(record: FaultRecord) -> None:
    usage, traffic, server = record.usage, record.traffic, record.server
    assert usage.prompt_tokens == traffic.prompt_tokens == server["prompt_tokens"]
    assert usage.sampled_tokens == traffic.sampled_tokens == server["sampled_tokens"]
    assert usage.num_calls == 1000
    assert traffic.num_calls == server["calls"]
    assert traffic.num_replies == server["replies"]
    faults = server["faults"]
    assert traffic.num_refused == sum(faults[kind] for kind in REFUSED)
    assert traffic.num_lost == sum(faults[kind] for kind in LOST)
    assert traffic.num_calls == traffic.num_replies + traffic.num_refused + traffic.num_lost
    assert traffic.num_retries == traffic.num_refused + traffic.num_lost
    assert usage.num_calls + usage.num_retries == server["calls"]
    assert traffic.num_unmetered == 0


def test_tokens_of_choices_too_many_are_paid_and_thrown_away(record: FaultRecord) -> None:
    kept = sum(
        len(completion.logprobs) for group in record.found for completion in group
    )  # one a token
    assert record.usage.discarded_tokens == record.usage.sampled_tokens - kept > 0


def test_connections_are_used_again_and_never_too_many_at_once(record: FaultRecord) -> None:
    assert record.server["most_at_once"] == IMPATIENT.max_concurrent
    spoiled = sum(record.server["faults"][kind] for kind in ("gone", "cut", "stall"))
    assert record.server["connections"] <= spoiled + IMPATIENT.max_concurrent


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        (Fault.BUSY, ["HTTP 429", "not now", "fewer requests"]),
        (Fault.BROKEN, ["HTTP 500", "server's log"]),
        (Fault.GONE, ["cut off"]),
        (Fault.CUT, ["cut off"]),
        (Fault.GARBAGE, ["not JSON", "OpenAI-compatible"]),
        (Fault.TRUNCATED, ["not JSON"]),
    ],
)
def test_a_server_that_never_mends_ends_in_one_clear_error(fault: Fault, words: list[str]) -> None:
    with (
        always(fault) as server,
        engine_on(server) as engine,
        pytest.raises(EngineError) as caught,
    ):
        engine.generate([ask()])
    for word in [f"{server.url}/chat/completions", "after 3 tries", *words]:
        assert word in str(caught.value)
    assert server.counted.calls == engine.traffic.num_calls == 3


def test_a_stall_ends_at_the_deadline_of_the_request() -> None:
    began = time.monotonic()
    with (
        always(Fault.STALL) as server,
        engine_on(server, request_seconds=0.1) as engine,
        pytest.raises(ServerError, match=r"no whole reply within 0\.1 seconds; allow a request"),
    ):
        engine.generate([ask()])
    assert time.monotonic() - began < 10
    assert engine.traffic.num_lost == 3


def test_the_whole_call_has_a_deadline() -> None:
    with (
        always(Fault.STALL, "slow") as server,
        engine_on(server, call_seconds=0.3) as engine,
        pytest.raises(ServerError, match=r"everything within 0\.3 seconds"),
    ):
        engine.generate([ask("slow"), ask("quick")])
    assert engine.traffic.num_cancelled == 1


def test_a_request_the_server_keeps_failing_on_does_not_take_the_others_with_it() -> None:
    with always(Fault.BROKEN, "bad") as server, engine_on(server) as engine:
        engine.generate([ask("first")])
        bad, *good = engine.generate([ask("bad", n=2), *[ask(f"good {i}") for i in range(40)]])
    assert [completion.finish_reason for completion in bad] == [FinishReason.ERROR] * 2
    assert sum((c.usage for c in bad), start=Usage()) == Usage(num_calls=1, num_retries=2)
    assert all(group[0].finish_reason is FinishReason.EOS for group in good)
    [failure] = engine.failures
    assert "HTTP 500" in failure


def test_an_error_that_waiting_does_not_mend_is_not_tried_again() -> None:
    strict = FaultServer(dialect=Dialect(seed=False, is_strict=True))
    with (
        strict as server,
        engine_on(server) as engine,
        pytest.raises(ServerError, match="failed: HTTP 400, Unsupported parameter: 'seed'"),
    ):
        engine.generate([ask()])
    assert server.counted.calls == 1


def test_every_call_waits_when_the_server_says_how_long() -> None:
    def plan(call: int, _body: Body) -> Fault:
        return Fault.STORM if call == 0 else Fault.NONE

    with (
        FaultServer(plan, retry_after="1") as server,
        engine_on(server, max_concurrent=1) as engine,
    ):
        began = time.monotonic()
        engine.generate([ask(f"question {i}") for i in range(5)])
        assert 1.0 <= time.monotonic() - began < 6.0
    assert server.counted.calls == 6


def test_a_wait_longer_than_allowed_is_an_error() -> None:
    with (
        FaultServer(lambda *_: Fault.STORM, retry_after="3600") as server,
        engine_on(server) as engine,
        pytest.raises(ServerError, match="the server asks to wait 3600 seconds: try again then"),
    ):
        engine.generate([ask()])
    assert server.counted.calls == 1


def test_an_address_without_a_server_fails_at_once() -> None:
    with FaultServer() as server:
        url = server.url
    with (
        OpenAIEngine(endpoint(url), "fake") as engine,
        pytest.raises(ServerError, match=r"no connection .* is a server running at that address"),
    ):
        engine.generate([ask()])
    assert engine.traffic.num_calls == engine.traffic.num_unreached == 1


def test_a_body_without_end_is_not_read_to_its_end() -> None:
    with (
        FaultServer(say=lambda *_: ["x" * 100_000]) as server,
        engine_on(server, max_body_bytes=10_000) as engine,
        pytest.raises(ServerError, match="longer than 10000 bytes"),
    ):
        engine.generate([ask()])


def test_a_callback_that_fails_cancels_the_rest() -> None:
    def fail(_index: int, _completion: object) -> None:
        raise RuntimeError("enough")

    with (
        always(Fault.STALL, "slow") as server,
        engine_on(server, request_seconds=60) as engine,
        pytest.raises(RuntimeError, match="enough"),
    ):
        engine.generate([ask("slow"), ask("quick")], on_finish=fail)
    assert engine.traffic.num_cancelled == 1  # closing waits for what was cancelled


def test_a_budget_holds_and_the_ledger_is_the_servers_through_a_strategy() -> None:
    """The whole way: a strategy, its driver, the budget, the engine, a server that fails."""
    num_tries: Counter[str] = Counter()

    def plan(call: int, body: Body) -> Fault:
        prompt = body["messages"][-1]["content"]
        num_tries[prompt] += 1
        faults = [Fault.BUSY, Fault.CUT, Fault.FEW, Fault.GARBAGE, Fault.NONE]
        return faults[(call + num_tries[prompt]) % 5] if num_tries[prompt] < 4 else Fault.NONE

    params = SamplingParams(max_tokens=12)
    messages = [(Message(role="user", content=f"what is {i}"),) for i in range(30)]
    with FaultServer(plan) as server, engine_on(server, retries=IMPATIENT.retries) as engine:
        problems = [
            Problem(messages=each, params=params, capabilities=engine.capabilities)
            for each in messages
        ]
        # Before a prompt was asked its length is a bound, which the budget must hold too.
        bound = engine.count_prompt(Request(messages=messages[0]))
        budget = Budget(tokens=bound + 24)
        solutions = solve_all(engine, parse_strategy("majority:n=8"), problems, budget=budget)
    usages = [solution.usage for solution in solutions]
    assert all(0 < usage.total_tokens <= bound + 24 for usage in usages)
    assert {solution.finish_reason for solution in solutions} == {FinishReason.BUDGET}
    counted, spent = server.counted, sum(usages, start=Usage())
    assert spent.prompt_tokens == counted.prompt_tokens
    assert spent.sampled_tokens == counted.sampled_tokens
    assert spent.num_calls + spent.num_retries == counted.calls
    assert engine.failures == []
