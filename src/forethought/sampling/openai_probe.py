"""What a server can do, found out with a few calls of one token each.

The API has no question for it. A server that refuses a field is asked again without it; one that
ignores a field shows it in the reply: one choice where two were asked for, no log-probabilities,
a prompt as long as if the assistant's turn had been closed.
"""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, TypeVar

from forethought.sampling.openai_client import ServerError
from forethought.sampling.openai_reply import Reply

MAX_TOP_LOGPROBS = 20  # of OpenAI's API
_WORD = "Hello"
_REFUSED = (400, 422, 501)

# Every field that some server does not know, as the probe asks for it.
_OPTIONAL = {"n": 2, "seed": 1, "logprobs": True, "top_logprobs": 2, "return_token_ids": True}
# Counts in every chunk: vLLM's and SGLang's.
LIVE_COUNTS = {"include_usage": True, "continuous_usage_stats": True}
END_COUNTS = {"include_usage": True}
CONTINUE = {"add_generation_prompt": False, "continue_final_message": True}

Found = TypeVar("Found")
Ask = Callable[[Mapping[str, Any]], Awaitable[Reply]]
AskLive = Callable[[Mapping[str, Any]], Awaitable[tuple[bool, bool]]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Traits:
    """What a server does beyond plain chat. The defaults are the least that a server can do."""

    n: bool = False  # several choices in one call
    seed: bool = False  # accepts one; whether it keeps to it, nothing tells
    logprobs: bool = False
    top_logprobs: bool = False
    token_ids: bool = False  # vLLM's return_token_ids
    prefix: bool = False  # vLLM's and SGLang's continue_final_message
    counts: bool = True  # says how many tokens a call took
    live_counts: bool = False  # in every chunk of a stream, so that it can be left early
    end_counts: bool = False  # in the last one, if not in every one
    limit_field: str = "max_tokens"  # or max_completion_tokens
    context: int | None = None  # positions of the model's window; vLLM and SGLang tell it
    overhead_tokens: int | None = None  # at most, around every message of a prompt


async def probe(ask: Ask, ask_live: AskLive, model: str) -> Traits:
    """The traits of the server behind `ask`, which sends a body; `ask_live` streams one and says
    whether counts came along with the text, and at all. Raises ServerError when not even plain
    chat works."""
    plain: dict[str, Any] = {
        "model": model,
        "messages": [{"role": "user", "content": _WORD}],
        "max_tokens": 1,
    }
    accepted, reply = await _accepted(ask, plain, _OPTIONAL)
    traits = _read_traits(accepted, reply)
    base = {name: accepted[name] for name in plain if name in accepted}
    if traits.limit_field not in base:
        base[traits.limit_field] = 1
    # Two tokens, for counts that come before the end.
    live = base | {"stream": True, "stream_options": LIVE_COUNTS, traits.limit_field: 2}
    found = await _unless_refused(ask_live(live))
    if found is None:
        found = await _unless_refused(ask_live(live | {"stream_options": END_COUNTS}))
    live_counts, end_counts = found or (False, False)
    return replace(
        traits,
        prefix=await _continues(ask, base),
        live_counts=live_counts,
        end_counts=end_counts,
    )


async def _accepted(
    ask: Ask, plain: Mapping[str, Any], optional: Mapping[str, Any]
) -> tuple[dict[str, Any], Reply]:
    """The fields that the server takes, and its reply to all of them at once."""
    extra = dict(optional)
    base = dict(plain)
    while True:
        try:
            return base | extra, await ask(base | extra)
        except ServerError as error:
            if error.status not in _REFUSED:
                raise
            said = error.said
            if "max_tokens" in base and "max_completion_tokens" in said:
                base["max_completion_tokens"] = base.pop("max_tokens")
                continue
            if not extra:
                raise
            named = [name for name in extra if re.search(rf"\b{name}\b", said)]
            for name in named or list(extra):
                del extra[name]
            if "logprobs" not in extra:
                extra.pop("top_logprobs", None)


def _read_traits(accepted: Mapping[str, Any], reply: Reply) -> Traits:
    first = reply.choices[0]
    prompt = reply.counts.prompt
    return Traits(
        n=len(reply.choices) == accepted.get("n"),
        seed="seed" in accepted,
        logprobs=bool(first.logprobs),
        top_logprobs=bool(first.confidences),
        token_ids=bool(first.token_ids),
        counts=prompt is not None and reply.counts.sampled is not None,
        limit_field="max_tokens" if "max_tokens" in accepted else "max_completion_tokens",
        overhead_tokens=prompt,
    )


async def _continues(ask: Ask, base: Mapping[str, Any]) -> bool:
    """Whether a last message of the assistant's is gone on with. A server that does so leaves out
    the end of that turn and the start of the next: the prompt is shorter."""
    body = {**base, "messages": [*base["messages"], {"role": "assistant", "content": _WORD}]}
    closed = await _unless_refused(ask(body))
    going_on = await _unless_refused(ask(body | CONTINUE))
    if closed is None or going_on is None:
        return False
    shorter, longer = going_on.counts.prompt, closed.counts.prompt
    return shorter is not None and longer is not None and shorter < longer


async def _unless_refused(found: Awaitable[Found]) -> Found | None:
    """What is found; None when the server refuses the call."""
    try:
        return await found
    except ServerError as error:
        if error.status not in _REFUSED:
            raise
        return None
