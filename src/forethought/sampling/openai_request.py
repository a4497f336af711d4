"""The body of one chat completion call, and what a request must be to become one."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

from forethought.errors import EngineError
from forethought.sampling.openai_probe import (
    CONTINUE,
    END_COUNTS,
    LIVE_COUNTS,
    MAX_TOP_LOGPROBS,
    Traits,
)
from forethought.types import Request


def admit(index: int, request: Request, traits: Traits) -> None:
    """Raise EngineError, naming the request by its `index`, when the server cannot sample it."""
    problem = _problem(request, traits)
    if problem is not None:
        raise EngineError(f"request {index} cannot be sampled: {problem}")


def _problem(request: Request, traits: Traits) -> str | None:
    params = request.params
    if request.messages is None:
        return "a chat server takes messages, not prompt_ids"
    if not request.messages:
        return "it has no messages; give at least one"
    if request.prefix and not traits.prefix:
        return "its assistant's turn has a prefix, and the server does not continue one"
    if "" in params.stop:
        return "a stop string is empty; leave it out"
    if params.top_logprobs > MAX_TOP_LOGPROBS:
        return f"a chat server gives {MAX_TOP_LOGPROBS} top log-probabilities at most"
    if params.top_logprobs and not traits.top_logprobs:
        return "the server gives no top log-probabilities"
    return None


def request_body(
    request: Request,
    *,
    model: str,
    traits: Traits,
    n: int,
    sibling: int,
    stream: bool,
    extra: Mapping[str, Any],
) -> dict[str, Any]:
    """`n` completions of `request`, the first of which is its `sibling`-th."""
    params = request.params
    messages = [dict(message) for message in request.messages or ()]
    body: dict[str, Any] = {
        "model": model,
        "messages": messages,
        traits.limit_field: params.max_tokens,
        # Both always: a server's own defaults may come from the model's generation config.
        "temperature": params.temperature,
        "top_p": params.top_p,
    }
    if n > 1:
        body["n"] = n
    if traits.seed:
        body["seed"] = derived_seed(params.seed, params.first_sibling + sibling)
    if params.stop:
        body["stop"] = list(params.stop)
    if traits.logprobs:
        body["logprobs"] = True
    if params.top_logprobs:
        body["top_logprobs"] = params.top_logprobs
    if traits.token_ids:
        body["return_token_ids"] = True
    if request.prefix:
        messages.append({"role": "assistant", "content": request.prefix})
        body |= CONTINUE
    if stream:
        options = LIVE_COUNTS if traits.live_counts else END_COUNTS
        body |= {"stream": True, "stream_options": options}
    return body | dict(extra)


def derived_seed(seed: int, sibling: int) -> int:
    """A seed of 31 bits, which fit every server's. Asking again for siblings that are missing
    takes another one than the call that lacked them: the same would bring the same again."""
    digest = hashlib.sha256(f"{seed}/{sibling}".encode()).digest()
    return int.from_bytes(digest[:4], "big") >> 1


def count_bound(request: Request, overhead_tokens: int) -> int:
    """At most how many tokens the prompt has: a token with text has at least one byte of it."""
    contents = [message["content"] for message in request.messages or ()]
    num_bytes = sum(len(text.encode("utf-8", "replace")) for text in [*contents, request.prefix])
    return num_bytes + overhead_tokens * len(contents)


def prompt_key(request: Request) -> object:
    """Equal for requests that have the same prompt."""
    turns = tuple((message["role"], message["content"]) for message in request.messages or ())
    return turns, request.prefix
