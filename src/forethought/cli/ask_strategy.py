"""`forethought ask --strategy`: the trace as it comes, the votes, the answer and its cost."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from forethought.cli.ask_live import LiveTrace
from forethought.cli.console import console, format_seconds, print_json, printable

if TYPE_CHECKING:
    from forethought.budget import Prices
    from forethought.cli.backend import Source
    from forethought.types import (
        Call,
        Engine,
        Message,
        SamplingParams,
        Solution,
    )


def ask_by_strategy(
    source: Source,
    message: Message,
    params: SamplingParams,
    spec: str,
    budget: str | None,
    prices: Path | None,
    *,
    as_json: bool,
) -> None:
    """Answer one question by the strategy `spec` and print how. Raises UserError, and EngineError
    where the engine lacks what the strategy needs."""
    from forethought.budget import FREE, Budget, parse_budget
    from forethought.cli.backend import open_engine
    from forethought.prices import load_prices
    from forethought.strategies.registry import parse_strategy

    parse_strategy(spec)  # mistakes fail before torch is imported
    limits = Budget() if budget is None else parse_budget(budget)
    table = FREE if prices is None else load_prices(prices, source.model)
    with open_engine(source) as engine:
        solution = solve_one(engine, spec, message, params, limits, table, is_quiet=as_json)
        result = describe_solution(spec, solution, engine.capabilities.context)
    if as_json:
        print_json(result)
    else:
        _show(result)


def solve_one(
    engine: Engine,
    spec: str,
    message: Message,
    params: SamplingParams,
    limits: Any,
    prices: Prices,
    *,
    is_quiet: bool,
) -> Solution:
    """The solution; unless quiet, with its completions as they come."""
    from forethought.strategies.driver import SILENT, solve_all
    from forethought.strategies.registry import parse_strategy
    from forethought.types import Problem

    problem = Problem(messages=(message,), params=params, capabilities=engine.capabilities)
    with LiveTrace(console()) as trace:
        [solution] = solve_all(
            engine,
            parse_strategy(spec),
            [problem],
            budget=limits,
            prices=prices,
            listener=SILENT if is_quiet else trace.listener(),
        )
    return solution


def describe_solution(spec: str, solution: Solution, context: int | None) -> dict[str, Any]:
    """What `--json` prints; `usage` has every field of the ledger."""
    from forethought.evaluation.curves import ledger_of

    return {
        "strategy": spec,
        "answer": solution.answer,
        "text": solution.text,
        "finish_reason": solution.finish_reason.value,
        "score": solution.score,
        "usage": ledger_of(solution.usage, context),
        "votes": [asdict(vote) for vote in solution.votes],
        "trace": [_describe_call(call) for call in solution.trace],
    }


def _describe_call(call: Call) -> dict[str, Any]:
    request, params = call.request, call.request.params
    return {
        "purpose": request.purpose.value,
        "messages": [dict(message) for message in request.messages or ()],
        "prefix": request.prefix,
        "n": params.n,
        "max_tokens": params.max_tokens,
        "temperature": params.temperature,
        "completions": [
            {
                "text": completion.text,
                "finish_reason": completion.finish_reason.value,
                "sampled_tokens": completion.usage.sampled_tokens,
            }
            for completion in call.completions
        ],
        "total_tokens": call.usage.total_tokens,
    }


def _show(result: dict[str, Any]) -> None:
    screen = console()
    if len(result["votes"]) > 1 or any(vote["count"] > 1 for vote in result["votes"]):
        votes = (f"{printable(vote['answer'])} x {vote['count']}" for vote in result["votes"])
        screen.print("votes: " + ", ".join(votes))
    answer = result["answer"]
    shown = "no answer to be read" if answer is None else f"answer: {printable(answer)}"
    ending = " (the budget ran out)" if result["finish_reason"] == "budget" else ""
    screen.print(shown + ending, style="bold")
    screen.print(cost_line(result["usage"]), style="dim")


def cost_line(usage: dict[str, Any]) -> str:
    """One line of the ledger: what a reader asks first."""
    parts = [
        f"{usage['total_tokens']} tokens: {usage['prompt_tokens']} prompt "
        f"({usage['cached_tokens']} cached) + {usage['sampled_tokens']} sampled "
        f"({usage['reasoning_tokens']} reasoning, {usage['discarded_tokens']} discarded)",
        f"{usage['num_calls']} calls",
        format_seconds(usage["wall_seconds"]),
    ]
    if usage["num_retries"]:
        parts.insert(2, f"{usage['num_retries']} retries")
    if usage["money"]:
        parts.append(f"{usage['money']:.6f} money")
    return ", ".join(parts)
