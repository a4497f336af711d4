"""`forethought ask`: one question, the model's reasoning, its answer and what they cost."""

from __future__ import annotations

import math
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from forethought.cli.ask_live import GrowingText
from forethought.cli.backend import ApiKeyEnv, Backend, Source, open_engine
from forethought.cli.console import console, format_seconds, print_json, printable
from forethought.errors import UserError

if TYPE_CHECKING:
    from forethought.types import Completion, Engine, Request


def ask_command(
    question: Annotated[str, typer.Argument(help="The question; - reads it from stdin.")],
    model: Annotated[str, typer.Option(help="Model folder, hub id, bundled:NAME or a name.")],
    max_tokens: Annotated[int, typer.Option(min=1, help="Longest completion, in tokens.")] = 256,
    temperature: Annotated[
        float | None, typer.Option(min=0.0, help="0 is greedy. [default: 0, with --strategy 1]")
    ] = None,
    strategy: Annotated[
        str | None, typer.Option(help="How to spend compute, as in s2a+majority:n=8.")
    ] = None,
    budget: Annotated[
        str | None, typer.Option(help="Tokens in all, or tokens=N,calls=N,seconds=S,money=M.")
    ] = None,
    prices: Annotated[Path | None, typer.Option(help="TOML table of prices of tokens.")] = None,
    seed: Annotated[int, typer.Option(min=0, help="Fixes every draw.")] = 0,
    backend: Backend = None,
    api_key_env: ApiKeyEnv = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object on stdout.")] = False,
) -> None:
    """Ask a model one question and show how it came to its answer."""
    from forethought.types import Message, Request, SamplingParams

    is_plain = strategy is None and budget is None and prices is None
    if temperature is None:
        temperature = 0.0 if strategy is None else 1.0
    if not math.isfinite(temperature):
        raise UserError(f"--temperature {temperature} must be a finite number of at least 0")
    params = SamplingParams(max_tokens=max_tokens, temperature=temperature, seed=seed)
    message = Message(role="user", content=read_question(question))
    source = Source(model, backend, api_key_env)
    if not is_plain:
        from forethought.cli.ask_strategy import ask_by_strategy

        spec = strategy or ("greedy" if temperature == 0 else "sample")
        ask_by_strategy(source, message, params, spec, budget, prices, as_json=as_json)
        return
    with open_engine(source) as engine:
        start = time.perf_counter()
        growing = GrowingText(console()) if not as_json and _is_watched(engine) else None
        completion = _sample(engine, Request(messages=(message,), params=params), growing)
        seconds = time.perf_counter() - start
    result = describe(completion, seconds)
    if as_json:
        print_json(result)
        return
    if growing is None:
        _show_text(result)
    _show_end(result)


def read_question(question: str) -> str:
    """The question given, or the one on stdin for "-". Raises UserError when it is empty."""
    text = sys.stdin.read() if question == "-" else question
    if not text.strip():
        raise UserError("the question is empty: give one in quotes, or - to read it from stdin")
    return text.strip()


def describe(completion: Completion, seconds: float) -> dict[str, Any]:
    """What `--json` prints. `answer` is None when the completion has no answer to be read."""
    from forethought.grading.answers import extract_answer, split_think

    reasoning, visible = split_think(completion.text)
    usage = completion.usage
    return {
        "answer": extract_answer(completion.text).answer,
        "text": completion.text,
        "reasoning": reasoning.strip(),
        "visible": visible.strip(),
        "finish_reason": completion.finish_reason.value,
        "usage": {
            "prompt_tokens": usage.prompt_tokens,
            "sampled_tokens": usage.sampled_tokens,
            "total_tokens": usage.total_tokens,
            "seconds": round(seconds, 4),
        },
    }


def _is_watched(engine: Engine) -> bool:
    """Whether the text can be shown while it grows."""
    return console().is_terminal and engine.capabilities.streams


def _sample(engine: Engine, request: Request, growing: GrowingText | None) -> Completion:
    """The completion, shown as it grows where `growing` is given."""
    if growing is None:
        return engine.generate([request])[0][0]
    streaming: Any = engine
    completion: Completion = streaming.generate([request], on_piece=growing.grow)[0][0]
    growing.end(completion.text)
    return completion


def _show_text(result: dict[str, Any]) -> None:
    out = console()
    if result["reasoning"]:
        out.print(printable(result["reasoning"]), style="dim")
        out.print()
    if result["visible"]:
        out.print(printable(result["visible"]))


def _show_end(result: dict[str, Any]) -> None:
    out = console()
    if result["answer"] is not None:
        out.print(f"answer: {printable(result['answer'])}", style="bold")
    else:
        out.print(f"no answer to be read (finish reason: {result['finish_reason']})", style="bold")
    usage = result["usage"]
    out.print(
        f"{usage['prompt_tokens']} prompt + {usage['sampled_tokens']} sampled tokens, "
        f"{format_seconds(usage['seconds'])}",
        style="dim",
    )
