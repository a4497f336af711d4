"""What a request must be before a single token is computed for it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from forethought.errors import EngineError
from forethought.types import Request


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What a model can take, in tokens."""

    num_ids: int  # ids run from 0 to num_ids - 1
    context: int | None  # positions it was made for; None without a limit
    window: int | None  # reach of its sliding attention, None without any


def admit(index: int, request: Request, prompt: Sequence[int], limits: Limits) -> int:
    """How many tokens the completion of this request may have: `max_tokens`, or less when the
    model's context leaves less (the completion then ends as truncated, by length).

    Raises EngineError, naming the request by its `index`, when the prompt is empty, has ids
    that the model does not know, or leaves no room in the context; when prompt and completion
    could outgrow a sliding window; when a stop string is empty; or when a prefix, which
    belongs to messages, comes with prompt ids.
    """
    problem = _problem(request, prompt, limits)
    if problem is not None:
        raise EngineError(f"request {index} cannot be sampled: {problem}")
    if limits.context is None:
        return request.params.max_tokens
    return min(request.params.max_tokens, limits.context - len(prompt))


def _problem(request: Request, prompt: Sequence[int], limits: Limits) -> str | None:
    longest = len(prompt) + request.params.max_tokens
    if request.prefix and request.prompt_ids is not None:
        return "prefix goes with messages; with prompt_ids, put its tokens at their end"
    if "" in request.params.stop:
        return "a stop string is empty; leave it out"
    if not prompt:
        return "its prompt has no tokens; give at least one"
    if min(prompt) < 0 or max(prompt) >= limits.num_ids:
        return f"its prompt_ids must lie between 0 and {limits.num_ids - 1}"
    if limits.context is not None and len(prompt) >= limits.context:
        return (
            f"its prompt has {len(prompt)} tokens and the model's context holds "
            f"{limits.context}, completion included; shorten the prompt"
        )
    if limits.window is not None and min(longest, limits.context or longest) > limits.window:
        return (
            f"prompt and max_tokens come to {longest} tokens and this engine samples within the "
            f"model's sliding window of {limits.window}; lower max_tokens"
        )
    return None
