"""Many requests to a server that fails in every way, and the two books held against each other."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass
from random import Random
from typing import Any

from fault_server import Body, Fault, FaultServer
from forethought.sampling.openai import Limits, OpenAIEngine
from forethought.sampling.openai_client import Traffic, endpoint
from forethought.sampling.openai_probe import Traits
from forethought.sampling.retries import RetryPolicy
from forethought.types import Completion, Message, Request, SamplingParams, Usage

KINDS = [fault for fault in Fault if fault not in (Fault.NONE, Fault.STORM)]
MAX_FAULTS = 3  # of one request, on top of the storms
STORMS = (range(200, 232), range(700, 732))  # the calls that a storm of 429s meets
TRAITS = Traits(n=True, seed=True, logprobs=True, overhead_tokens=7)  # of the fault server
IMPATIENT = Limits(
    max_concurrent=16,
    request_seconds=1.0,
    call_seconds=120.0,
    retries=RetryPolicy(max_retries=40, first_wait_seconds=0.01, max_wait_seconds=0.1),
)


def trouble(seed: int) -> Callable[[int, Body], Fault]:
    """No fault, or up to three, for each prompt, the same whatever the order; storms for all."""
    num_tries: Counter[str] = Counter()

    def plan(call: int, body: Body) -> Fault:
        if any(call in storm for storm in STORMS):
            return Fault.STORM
        prompt = body["messages"][-1]["content"]
        rng = Random(f"{seed}/{prompt}")
        faults = [rng.choice(KINDS) for _ in range(rng.choice([0, 0, 1, 2, MAX_FAULTS]))]
        num_tries[prompt] += 1
        return faults[num_tries[prompt] - 1] if num_tries[prompt] <= len(faults) else Fault.NONE

    return plan


def named(body: Body, index: int) -> list[str]:
    """A completion that says which it is: its prompt, the seed of its call, and its index."""
    name = f"{body['messages'][-1]['content']}/{body['seed']}/{index}"
    return [name, *[" word"] * (body["seed"] % 20)]


@dataclass(frozen=True, slots=True, kw_only=True)
class FaultRecord:
    """What came back, and both books."""

    requests: tuple[Request, ...]
    found: list[list[Completion]]
    usage: Usage
    traffic: Traffic
    server: dict[str, Any]
    seconds: float
    failures: list[str]


def run_with_faults(num_requests: int, n: int, seed: int) -> FaultRecord:
    """`num_requests` requests of `n` completions, with every fault there is."""
    requests = tuple(
        Request(
            messages=(Message(role="user", content=f"question {index}"),),
            params=SamplingParams(n=n, seed=index, stop_at_boxed=False),
        )
        for index in range(num_requests)
    )
    with (
        FaultServer(trouble(seed), say=named) as server,
        OpenAIEngine(endpoint(server.url), "fake", traits=TRAITS, limits=IMPATIENT) as engine,
    ):
        began = time.perf_counter()
        found = engine.generate(requests)
        seconds = time.perf_counter() - began
        traffic, failures = engine.traffic, engine.failures
    counted = asdict(server.counted)
    del counted["bodies"], counted["headers"]
    counted["faults"] = dict(server.counted.faults)
    return FaultRecord(
        requests=requests,
        found=found,
        usage=sum((c.usage for group in found for c in group), start=Usage()),
        traffic=traffic,
        server=counted,
        seconds=seconds,
        failures=failures,
    )


def num_lost(record: FaultRecord) -> int:
    """Completions that were asked for and did not come."""
    pairs = zip(record.requests, record.found, strict=True)
    return sum(max(0, request.params.n - len(group)) for request, group in pairs)


def num_twice(record: FaultRecord) -> int:
    """Completions beyond those asked for."""
    pairs = zip(record.requests, record.found, strict=True)
    return sum(max(0, len(group) - request.params.n) for request, group in pairs)
